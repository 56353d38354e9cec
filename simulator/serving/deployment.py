"""What answers requests: engines of one job's layout, with their step times and KV caches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simulator.errors import InputError
from simulator.graph.serving.shapes import serving_of
from simulator.inputs.check import check
from simulator.serving.engine.engine import Engine, Listener
from simulator.serving.engine.kv_tiers import TierRoom
from simulator.serving.handover import Handover, KvLink
from simulator.serving.kv_room import KvRoom, kv_room
from simulator.serving.recorder import Recorder
from simulator.serving.replay import Fleet
from simulator.serving.routers import RouterName, router_of
from simulator.serving.step_times import Pace, StepForecasts, StepTable, StepTimes
from simulator.serving.tier_room import tier_room
from simulator.spec.scenario import Scenario
from simulator.spec.scheduler import Scheduler
from simulator.spec.serving import Serving
from simulator.spec.stack import LIBRARY


class Slowed:
    """Step times of an engine on a GPU that is slower than the others, for which its ranks wait."""

    def __init__(self, times: StepTimes, factor: float) -> None:
        self._times, self._factor = times, factor

    def decode(self, batch: int, context: float) -> Pace:
        """See `StepTimes`."""
        pace = self._times.decode(batch, context)
        return Pace(pace.seconds * self._factor, pace.slope * self._factor, pace.steps)

    def mixed(self, batch: int, context: float, tokens: int, attended: float) -> float:
        """See `StepTimes`."""
        return self._times.mixed(batch, context, tokens, attended) * self._factor


Path = Literal["nic", "nvlink"]
"""What a KV cache crosses between engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """Replicas of one job's layout.

    Parameters
    ----------
    scenario : the job.
    scheduler : settings of each engine.
    room : KV cache of a GPU.
    tiers : where an engine's prefix cache goes on below HBM; None: nowhere.
    table : times of steps.
    ranks : data-parallel ranks of an engine, which run in lock-step (1: each is an engine of its own); sequences are
        spread over them as the router spreads requests over engines.
    engines : engines in all.
    router : how requests are spread over them.
    prompts : engines that compute prompts up to their first tokens, where these here only go on from there.
    link : how KV caches travel between them.
    lost_at : when the last engine is lost [s].
    slow : how many times as long each step of the last engine takes (of those that go on from prompts, if apart).
    received : prompts are computed elsewhere in no time: what comes are their KV caches.
    """

    scenario: Scenario
    scheduler: Scheduler
    room: KvRoom
    table: StepTable
    ranks: int
    engines: int
    router: RouterName
    prompts: Deployment | None = None
    link: KvLink | None = None
    lost_at: float | None = None
    slow: float = 1.0
    tiers: TierRoom | None = None
    received: bool = False

    @property
    def gpus(self) -> int:
        """GPUs of all engines."""
        own = self.engines * self.ranks * self.scenario.job.layout.tp
        return own + (self.prompts.gpus if self.prompts is not None else 0)

    @property
    def sides(self) -> tuple[Deployment, ...]:
        """Itself, and what computes its prompts."""
        return (self,) if self.prompts is None else (self, self.prompts)

    @property
    def blocks(self) -> int:
        """Blocks of the KV cache of one engine."""
        return self.room.blocks * self.ranks

    def start(self, recorder: Recorder) -> Fleet:
        """Fresh engines."""
        router = router_of(self.router)
        if self.prompts is None or self.link is None:
            engines = self._fresh(recorder)
            self._slow_down(engines)
            loss = None if self.lost_at is None else (len(engines) - 1, self.lost_at)
            return Fleet(engines=engines, router=router, loss=loss, received=self.received)
        decoders = self._fresh(recorder, "decode engine")
        self._slow_down(decoders)
        handover = Handover(recorder, self.link, decoders)
        before = self.prompts._fresh(handover, "prefill engine")
        for engine in before:
            engine.keeps = self.link.handover == "pull"
        return Fleet(engines=before, router=router, decoders=decoders, handover=handover)

    def _slow_down(self, engines: list[Engine]) -> None:
        """Let the last engine have a slow GPU, if one is."""
        if self.slow > 1.0:
            engines[-1].times = Slowed(engines[-1].times, self.slow)

    def _fresh(self, recorder: Listener, called: str = "engine") -> list[Engine]:
        s, balanced = self.scheduler, self.router == "least-load"
        whole = replace(s, sequences=s.sequences * self.ranks, step_tokens=s.step_tokens * self.ranks)
        drafts = chances(serving_of(self.scenario))
        every = range(self.engines)
        made = [
            Engine(self.table, whole, self.blocks, recorder, drafts, seed, self.tiers, self.ranks, balanced)
            for seed in every
        ]
        for number, engine in enumerate(made):
            engine.name = f"{called} {number}"
        return made


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
    layout = scenario.job.layout
    travel = scenario.stack.dispatcher not in LIBRARY or layout.ep > layout.tp  # by all-to-alls, or an all-gather
    together = scenario.model.is_moe and layout.ep > 1 and travel
    ranks = scenario.job.dp if together else 1
    room = kv_room(scenario, scheduler)
    return Deployment(
        scenario=scenario,
        scheduler=scheduler,
        room=room,
        tiers=tier_room(scenario, scheduler, room, ranks),
        table=StepTable(StepForecasts(scenario), scheduler),
        ranks=ranks,
        engines=replicas * (1 if together else scenario.job.dp),
        router=router,
    )


def _small(scenario: Scenario) -> Scenario:
    """The job with a step that fits any model: what runs is up to the requests."""
    small = replace(serving_of(scenario), sequences=2, context=0, tokens=1, prefill_tokens=0, prefill_context=0)
    return replace(scenario, job=replace(scenario.job, serving=small))


def disaggregated(decoders: Deployment, prompts: Deployment, path: Path = "nic") -> Deployment:
    """Prompts on some engines, all that follows on others; KV caches travel over the NIC or NVLink of every GPU, or
    NVLink of every GPU of a rack.

    Where tensor parallelism differs, caches are cut anew: every GPU that goes on gets the heads that it works on (all
    latents, where these are the cache), and GPUs that computed the prompt send equal parts of what all of them get.

    Raises
    ------
    InputError : they serve different models, keep their caches in different formats, or NVLink does not join all.
    """
    one, other = decoders.scenario, prompts.scenario
    if one.model.name != other.model.name or decoders.room.per_token <= 0:
        raise InputError(f"{one.name}: {one.model.name} cannot go on from a KV cache of {other.model.name}")
    formats = [serving_of(side).kv_dtype for side in (one, other)]
    if formats[0] != formats[1]:
        raise InputError(
            f"serving.kv_dtype: {formats[0]} cannot go on from a KV cache in {formats[1]}: must be the same in both"
        )
    most = one.cluster.node.gpus
    if path == "nvlink" and (one.cluster.name != other.cluster.name or decoders.gpus + prompts.gpus > most):
        raise InputError(
            f"--kv-path nvlink: {decoders.gpus + prompts.gpus} GPUs: NVLink joins the {most} of a node of"
            f" {one.cluster.name}; use nic"
        )
    there, here = (getattr(side.cluster.node, path) for side in (one, other))
    received = decoders.room.per_token
    sent = received * one.job.layout.tp / other.job.layout.tp
    link = KvLink(
        sending=sent / here.bandwidth,
        receiving=received / there.bandwidth,
        latency=max(here.latency, there.latency),
        layers=one.model.num_hidden_layers,
        handover=decoders.scheduler.kv_handover,
    )
    return replace(decoders, prompts=prompts, link=link)


def failing(deployment: Deployment, lost_at: float | None, slow: float | None) -> Deployment:
    """The deployment with an engine that is lost at some time, or slow.

    Raises
    ------
    InputError : there is no other engine to take over, or one is lost where prompts and the rest are apart.
    """
    if lost_at is None and slow is None:
        return deployment
    if lost_at is not None and deployment.prompts is not None:
        raise InputError("--lose-at: is not modelled of disaggregated deployments; leave out --prefill-replicas")
    if lost_at is not None and deployment.engines < 2:
        raise InputError("--lose-at: there is no other engine to take over; use --replicas 2 or more")
    return replace(deployment, lost_at=lost_at, slow=slow or 1.0)
