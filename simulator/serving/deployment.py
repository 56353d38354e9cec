"""What answers requests: engines of one job's layout, with their step times and KV caches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from simulator.errors import InputError
from simulator.graph.serving.shapes import serving_of
from simulator.inputs.check import check
from simulator.serving.engine.engine import Engine
from simulator.serving.kv_room import KvRoom, kv_room
from simulator.serving.recorder import Recorder
from simulator.serving.routers import RouterName
from simulator.serving.step_times import Pace, StepForecasts, StepTable, StepTimes
from simulator.spec.scenario import Scenario
from simulator.spec.scheduler import Scheduler
from simulator.spec.serving import Serving


class LockStep:
    """Step times of data-parallel ranks that run every step together, since they share their experts.

    Sequences are spread evenly over the ranks, and a prompt's tokens stay on one rank; every rank takes as long as the
    one with most work.
    """

    def __init__(self, times: StepTimes, ranks: int) -> None:
        self._times, self._ranks = times, ranks

    def decode(self, batch: int, context: float) -> Pace:
        """See `StepTimes`."""
        return self._times.decode(ceil(batch / self._ranks), context)

    def mixed(self, batch: int, context: float, tokens: int, attended: float) -> float:
        """See `StepTimes`."""
        most = max(ceil(tokens / self._ranks), min(tokens, ceil(2 * attended)))
        return self._times.mixed(ceil(batch / self._ranks), context, most, attended)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Replicas of one job's layout.

    Parameters
    ----------
    scenario : the job.
    scheduler : settings of each engine.
    room : KV cache of a GPU.
    table : times of steps.
    ranks : data-parallel ranks of an engine, which run in lock-step (1: each is an engine of its own).
    engines : engines in all.
    router : how requests are spread over them.
    """

    scenario: Scenario
    scheduler: Scheduler
    room: KvRoom
    table: StepTable
    ranks: int
    engines: int
    router: RouterName

    @property
    def gpus(self) -> int:
        """GPUs of all engines."""
        return self.engines * self.ranks * self.scenario.job.layout.tp

    @property
    def blocks(self) -> int:
        """Blocks of the KV cache of one engine."""
        return self.room.blocks * self.ranks

    def start(self, recorder: Recorder) -> list[Engine]:
        """Fresh engines."""
        times: StepTimes = LockStep(self.table, self.ranks) if self.ranks > 1 else self.table
        s = self.scheduler
        whole = replace(s, sequences=s.sequences * self.ranks, step_tokens=s.step_tokens * self.ranks)
        drafts = chances(serving_of(self.scenario))
        return [Engine(times, whole, self.blocks, recorder, drafts, seed) for seed in range(self.engines)]


def chances(serving: Serving) -> tuple[float, ...]:
    """Probability that each drafted token of a step is accepted, where those before it were."""
    given = serving.mtp_acceptance
    return (given,) * serving.mtp_depth if isinstance(given, float) else tuple(given[: serving.mtp_depth])


def deploy(scenario: Scenario, *, replicas: int = 1, router: RouterName = "round-robin") -> Deployment:
    """`replicas` of a job's layout.

    Raises
    ------
    InputError : the job trains, breaks a rule, or its stack says nothing of scheduling.
    PlanError : nothing is left for the KV cache.
    """
    if not scenario.workload.serves:
        raise InputError(f"{scenario.name}: trains: requests are answered by jobs with workload prefill or decode")
    broken = [f"{scenario.name}: {problem}" for problem in check(_small(scenario)) if problem.severity == "error"]
    if broken:
        raise InputError("\n".join(broken))
    scheduler = scenario.stack.scheduler
    if scheduler is None:
        raise InputError(
            f"{scenario.name}: stack {scenario.stack.name}: says nothing of scheduling; use vllm or sglang"
        )
    together = scenario.model.is_moe and scenario.job.layout.ep > 1 and scenario.stack.dispatcher != "nccl"
    ranks = scenario.job.dp if together else 1
    return Deployment(
        scenario=scenario,
        scheduler=scheduler,
        room=kv_room(scenario, scheduler),
        table=StepTable(StepForecasts(scenario), scheduler),
        ranks=ranks,
        engines=replicas * (1 if together else scenario.job.dp),
        router=router,
    )


def _small(scenario: Scenario) -> Scenario:
    """The job with a step that fits any model: what runs is up to the requests."""
    small = replace(serving_of(scenario), sequences=2, context=0, tokens=1, prefill_tokens=0, prefill_context=0)
    return replace(scenario, job=replace(scenario.job, serving=small))
