"""One combination of a search: whether it is valid, whether it fits, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.errors import ForetrainError
from simulator.estimate.estimate import estimate
from simulator.estimate.serving_step import estimate_serving
from simulator.estimate.shared_prices import SharedPricesMemo
from simulator.inputs.check import check
from simulator.memory.capacity import usable
from simulator.results.metrics import price_of_run, throughput
from simulator.results.serving_metrics import serving_rates
from simulator.routing.published_loads import with_equal_loads
from simulator.spec.scenario import Scenario
from simulator.studies.search.axes import Scenarios

Status = Literal["ok", "invalid", "too big", "failed"]
"""`failed`: a fault of the program, not of the combination."""
Rank = Literal["time", "throughput", "latency", "cost", "memory"]
RANKS: Mapping[bool, tuple[Rank, ...]] = {
    False: ("time", "cost", "memory"),
    True: ("throughput", "latency", "cost", "memory"),
}
"""What candidates can be ranked by, of jobs that train and of jobs that serve; the first where nobody asks."""
FRONTS: Mapping[bool, tuple[Rank, ...]] = {False: ("time", "cost", "memory"), True: ("throughput", "latency")}
"""What no member of the Pareto front is bettered in at once, likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A combination of a search; values are None where they were not needed.

    Parameters
    ----------
    number : number of the combination.
    status : whether it runs.
    step : step time [s].
    per_token : time of all GPUs per token [s].
    cost : cost of the whole run, of a serving job that of a million tokens [USD].
    memory : highest peak of a rank [B].
    mfu : model FLOP utilisation with causal attention.
    rate : tokens/s on each GPU.
    latency : time per output token (decode), to the first token (prefill), of a training step [s].
    why : why it is invalid or failed.
    """

    number: int
    status: Status
    step: float | None = None
    per_token: float | None = None
    cost: float | None = None
    memory: float | None = None
    mfu: float | None = None
    rate: float | None = None
    latency: float | None = None
    why: str = ""

    def by(self, rank: Rank) -> float:
        """What it is ranked by, the less the better; infinite where it cannot run. Time is per token: batches may
        differ."""
        less = None if self.rate is None else -self.rate
        aims = {"time": self.per_token, "throughput": less, "latency": self.latency, "memory": self.memory}
        value = (aims | {"cost": self.cost})[rank]
        return value if self.status == "ok" and value is not None else float("inf")


def judge(number: int, scenario: Scenario, memo: SharedPricesMemo) -> Candidate:
    """Check, fit and time one scenario."""
    broken = next((str(problem) for problem in check(scenario) if problem.severity == "error"), None)
    if broken is not None:
        return Candidate(number=number, status="invalid", why=broken)
    if scenario.workload.serves:
        return _judge_serving(number, scenario)
    try:
        found = estimate(scenario, memo.of(scenario), within=usable(scenario))
    except ForetrainError as error:
        return Candidate(number=number, status="invalid", why=str(error).splitlines()[0])
    if found.step is None:
        return Candidate(number=number, status="too big", memory=found.memory)
    rates = throughput(found.step, scenario.job, scenario.model, scenario.cluster.gpu.peak.bf16)
    return Candidate(
        number=number,
        status="ok",
        step=found.step,
        per_token=found.step / scenario.job.tokens_per_step,
        cost=price_of_run(found.step, scenario)["run_cost_usd"],
        memory=found.memory,
        mfu=rates["mfu_causal"],
        rate=rates["tokens_per_s_per_gpu"],
        latency=found.step,
    )


def _judge_serving(number: int, scenario: Scenario) -> Candidate:
    """Fit and time one valid serving scenario."""
    found = estimate_serving(scenario)
    if found.step is None:
        return Candidate(number=number, status="too big", memory=found.memory)
    rates = serving_rates(found.step, scenario)
    return Candidate(
        number=number,
        status="ok",
        step=found.step,
        per_token=found.step / rates["tokens_per_step"],
        cost=rates["usd_per_million_tokens"],
        memory=found.memory,
        mfu=rates["mfu"],
        rate=rates["tokens_per_s_per_gpu"],
        latency=latency_of(rates),
    )


def latency_of(metrics: Mapping[str, float]) -> float:
    """What a user waits for: time per output token (decode) or to the first one (prefill), else the step [s]."""
    return metrics.get("tpot_s", metrics.get("ttft_s", metrics["step_time_s"]))


class Judge:
    """Judges ranges of a question's combinations; one lives in each worker."""

    def __init__(self, scenarios: Scenarios) -> None:
        self.scenarios = scenarios
        self.memo = SharedPricesMemo()

    def __call__(self, numbers: Iterable[int]) -> list[Candidate]:
        """All of `numbers`, in their order."""
        return [self._judged(number) for number in numbers]

    def _judged(self, number: int) -> Candidate:
        """One of them; a fault in judging it is its own, so that one bad combination never ends a search."""
        try:
            return judge(number, with_equal_loads(self.scenarios.of(number)), self.memo)
        except ForetrainError as error:
            return Candidate(number=number, status="invalid", why=str(error).splitlines()[0])
        except Exception as error:
            self.memo = SharedPricesMemo()  # it may hold what was left half made
            return Candidate(number=number, status="failed", why=fault(error))


def fault(error: Exception) -> str:
    """An error nobody foresaw, as one line."""
    text = " ".join(str(error).split())
    return f"a fault of foretrain, please report it: {type(error).__name__}" + (f": {text}" if text else "")


def dominates(one: Candidate, other: Candidate, aims: Sequence[Rank] = FRONTS[False]) -> bool:
    """Whether `one` is nowhere worse than `other` in all `aims`, and somewhere better."""
    pairs = [(one.by(aim), other.by(aim)) for aim in aims]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto(candidates: Iterable[Candidate], aims: Sequence[Rank] = FRONTS[False]) -> list[Candidate]:
    """Those that nothing dominates, the best by the first aim first; of equals the lowest number."""
    front: list[Candidate] = []
    for one in candidates:
        if one.status != "ok" or any(dominates(kept, one, aims) or _equal(kept, one, aims) for kept in front):
            continue
        front = [kept for kept in front if not dominates(one, kept, aims)]
        front.append(one)
    return sorted(front, key=lambda one: (one.by(aims[0]), one.number))


def _equal(one: Candidate, other: Candidate, aims: Sequence[Rank]) -> bool:
    return all(one.by(aim) == other.by(aim) for aim in aims)
