"""One combination of a search: whether it is valid, whether it fits, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from simulator.errors import ForetrainError
from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPricesMemo
from simulator.inputs.check import check
from simulator.memory.capacity import usable
from simulator.results.metrics import price_of_run, throughput
from simulator.spec.scenario import Scenario
from simulator.studies.search.axes import Scenarios

Status = Literal["ok", "invalid", "too big", "failed"]
"""`failed`: a fault of the program, not of the combination."""
Rank = Literal["time", "cost", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A combination of a search; values are None where they were not needed.

    Parameters
    ----------
    number : number of the combination.
    status : whether it runs.
    step : step time [s].
    per_token : time of all GPUs per token [s].
    cost : cost of the whole run [USD].
    memory : highest peak of a rank [B].
    mfu : model FLOP utilisation with causal attention.
    why : why it is invalid or failed.
    """

    number: int
    status: Status
    step: float | None = None
    per_token: float | None = None
    cost: float | None = None
    memory: float | None = None
    mfu: float | None = None
    why: str = ""

    def by(self, rank: Rank) -> float:
        """What it is ranked by; infinite where it cannot run. Time is per token: batches may differ."""
        value = {"time": self.per_token, "cost": self.cost, "memory": self.memory}[rank]
        return value if self.status == "ok" and value is not None else float("inf")


def judge(number: int, scenario: Scenario, memo: SharedPricesMemo) -> Candidate:
    """Check, fit and time one scenario."""
    broken = next((str(problem) for problem in check(scenario) if problem.severity == "error"), None)
    if broken is not None:
        return Candidate(number=number, status="invalid", why=broken)
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
    )


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
            return judge(number, self.scenarios.of(number), self.memo)
        except ForetrainError as error:
            return Candidate(number=number, status="invalid", why=str(error).splitlines()[0])
        except Exception as error:
            self.memo = SharedPricesMemo()  # it may hold what was left half made
            return Candidate(number=number, status="failed", why=fault(error))


def fault(error: Exception) -> str:
    """An error nobody foresaw, as one line."""
    text = " ".join(str(error).split())
    return f"a fault of foretrain, please report it: {type(error).__name__}" + (f": {text}" if text else "")


_AIMS: tuple[Callable[[Candidate], float], ...] = (
    lambda one: one.by("time"),
    lambda one: one.by("cost"),
    lambda one: one.by("memory"),
)


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether `one` is nowhere worse than `other` in time, cost and memory, and somewhere better."""
    pairs = [(aim(one), aim(other)) for aim in _AIMS]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those that nothing dominates, fastest first; of equals the lowest number."""
    front: list[Candidate] = []
    for one in candidates:
        if one.status != "ok" or any(dominates(kept, one) or _equal(kept, one) for kept in front):
            continue
        front = [kept for kept in front if not dominates(one, kept)]
        front.append(one)
    return sorted(front, key=lambda one: (one.by("time"), one.number))


def _equal(one: Candidate, other: Candidate) -> bool:
    return all(aim(one) == aim(other) for aim in _AIMS)
