"""The best of a search through the full discrete-event engine, on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from time import monotonic

from simulator.memory import needed
from simulator.plugins import registered_by_script
from simulator.results.simulate import simulate
from simulator.studies.search.axes import Question, Scenarios
from simulator.studies.search.candidate import RANKS, Candidate, Rank, fault, latency_of
from simulator.studies.search.workers import WORTH_PROCESSES, cores, leave_interrupts, pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """A candidate as the full discrete-event engine sees it: `step` [s], `mfu`, `cost`, `rate` and `latency` as in
    `Candidate`, its `place` among the confirmed by the search's rank, and the `guess`ed place that the fast path gave
    it. `stages`: blocks on each stage; `excess`: by how much the busiest pipeline rank computes longer than the
    mean."""

    candidate: Candidate
    step: float
    mfu: float
    cost: float
    rate: float
    latency: float
    place: int
    guess: int
    stages: tuple[str, ...] = ()
    excess: float = 0.0

    @property
    def per_token(self) -> float:
        """Time per token [s]: the fast path's, as much longer as the step is."""
        assert self.candidate.per_token is not None
        return self.candidate.per_token / (1.0 + self.difference)

    @property
    def difference(self) -> float:
        """The fast path against the engine, relative."""
        assert self.candidate.step is not None
        return self.candidate.step / self.step - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What the engine says of one combination; `fault`: why it says nothing."""

    number: int
    metrics: dict[str, float]
    stages: tuple[str, ...] = ()
    excess: float = 0.0
    fault: str = ""


def _run(scenarios: Scenarios, number: int) -> _Ran:
    """One combination through the full engine; a fault is its own."""
    try:
        result = simulate(scenarios.of(number))
    except Exception as error:
        return _Ran(number=number, metrics={}, fault=fault(error))
    if result.memory.answer == "does not fit":  # the fast path takes loads that nobody stated as equal
        return _Ran(number=number, metrics={}, fault=f"does not fit: {needed(result.memory.verdict())}")
    busy = [rank.compute_busy for rank in result.ranks]
    mean = sum(busy) / len(busy) if busy else 0.0
    return _Ran(
        number=number,
        metrics=result.metrics,
        stages=tuple(result.stages),
        excess=max(busy, default=0.0) / mean - 1.0 if mean else 0.0,
    )


def _all(scenarios: Scenarios, numbers: Sequence[int], jobs: int | None) -> Iterator[_Ran]:
    """All of them: the first in this process, the others in any order over processes if that is worth their start."""
    began, run = monotonic(), partial(_run, scenarios)
    first, left = numbers[:1], numbers[1:]
    yield from map(run, first)
    many = 1 if registered_by_script() else min(jobs or cores(), len(left))
    worth = jobs is not None or (monotonic() - began) * len(left) > WORTH_PROCESSES
    yield from pool(run, left, many, leave_interrupts) if many > 1 and worth else map(run, left)


def confirm(
    asked: Question,
    candidates: Sequence[Candidate],
    progress: Callable[[float], None] | None = None,
    *,
    rank: Rank | None = None,
    jobs: int | None = None,
    failed: Callable[[str], object] | None = None,
) -> list[Confirmed]:
    """The candidates through the full discrete-event engine, in the order given, over `jobs` processes (all cores).

    One that cannot be run by it is left out, and `failed` is shown why.
    """
    found: dict[int, _Ran] = {}
    for ran in _all(Scenarios(asked), [one.number for one in candidates], jobs):
        found[ran.number] = ran
        if progress is not None:
            progress(len(found) / len(candidates))
    if failed is not None:
        for number in (one.number for one in candidates if found[one.number].fault):
            failed(f"combination {number} cannot be confirmed: {found[number].fault}")
    sound = [(at, one, found[one.number]) for at, one in enumerate(candidates, 1) if not found[one.number].fault]
    return _placed(asked, sound, rank or RANKS[asked.serves][0])


def _placed(asked: Question, ran: Sequence[tuple[int, Candidate, _Ran]], rank: Rank) -> list[Confirmed]:
    """What ran, with the place of each by `rank`."""
    cost, mfu = ("usd_per_million_tokens", "mfu") if asked.serves else ("run_cost_usd", "mfu_causal")

    def by(at: int) -> tuple[float, int]:
        _, one, found = ran[at]
        metrics = found.metrics
        aims: dict[Rank, float] = {
            "time": metrics["step_time_s"] / metrics["tokens_per_step"],
            "throughput": -metrics["tokens_per_s_per_gpu"],
            "latency": latency_of(metrics),
            "cost": metrics[cost],
            "memory": one.memory or 0.0,
        }
        return aims[rank], at

    places = {at: place for place, at in enumerate(sorted(range(len(ran)), key=by), 1)}
    return [
        Confirmed(
            candidate=one,
            step=found.metrics["step_time_s"],
            mfu=found.metrics[mfu],
            cost=found.metrics[cost],
            rate=found.metrics["tokens_per_s_per_gpu"],
            latency=latency_of(found.metrics),
            place=places[at],
            guess=guess,
            stages=found.stages,
            excess=found.excess,
        )
        for at, (guess, one, found) in enumerate(ran)
    ]


def in_confirmed_order(candidates: Sequence[Candidate], confirmed: Sequence[Confirmed]) -> list[Candidate]:
    """The confirmed ones by their place, then the others as they were."""
    places = {one.candidate.number: one.place for one in confirmed}
    return sorted(candidates, key=lambda one: places.get(one.number, len(candidates) + 1))
