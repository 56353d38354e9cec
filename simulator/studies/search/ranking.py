"""A whole search: judge every combination, keep what is found, confirm the best by the full engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from simulator.errors import InputError
from simulator.plugins import registered_by_script
from simulator.results.simulate import simulate
from simulator.studies.search.axes import Question, Scenarios
from simulator.studies.search.candidate import Candidate, Rank, pareto
from simulator.studies.search.store import Store
from simulator.studies.search.workers import chunks, cores, dask, pool, serial

Executor = Literal["local", "dask"]
Progress = Callable[[int, int], None]
"""Called with the combinations done and their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """A candidate as the full discrete-event engine sees it: `step` [s], and its place in that engine's ranking."""

    candidate: Candidate
    step: float
    place: int

    @property
    def difference(self) -> float:
        """The fast path against the engine, relative."""
        assert self.candidate.step is not None
        return self.candidate.step / self.step - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer of a search.

    Parameters
    ----------
    asked : the question.
    rank : what candidates are ranked by.
    best : best candidates.
    front : Pareto front of time, cost and memory.
    counts : candidates of each status.
    complete : whether all were judged.
    obstacle : what makes most of them invalid.
    judged : how many this run judged itself.
    """

    asked: Question
    rank: Rank
    best: list[Candidate]
    front: list[Candidate]
    counts: dict[str, int]
    complete: bool
    obstacle: str = ""
    judged: int = field(default=0, compare=False)


def search(
    asked: Question,
    *,
    rank: Rank = "time",
    top: int = 20,
    file: Path | None = None,
    jobs: int | None = None,
    executor: Executor = "local",
    address: str = "",
    progress: Progress | None = None,
    every: Callable[[Iterable[Candidate]], object] | None = None,
) -> Found:
    """Judge all combinations of a question that `file` does not hold yet.

    Ctrl-C keeps what is done: the answer then says that it is not `complete`. `every` is handed all candidates, by
    number, at the end. Where a script registered a schedule or an architecture, this process judges alone: others do
    not have it.
    """
    with Store(asked, file) as store:
        done, scenarios = store.done(), Scenarios(asked)
        ready, complete = len(done), True
        try:
            with closing(_work(scenarios, done, jobs, executor, address)) as work:
                for found in work:
                    store.add(found)
                    ready += len(found)
                    if progress is not None:
                        progress(ready, asked.size)
        except KeyboardInterrupt:
            complete = False
        if every is not None:
            every(store)
        return Found(
            asked=asked,
            rank=rank,
            best=store.best(rank, top),
            front=pareto(store),
            counts=store.counts(),
            complete=complete,
            obstacle=store.obstacle(),
            judged=ready - len(done),
        )


def _work(
    scenarios: Scenarios, done: set[int], jobs: int | None, executor: Executor, address: str
) -> Generator[list[Candidate], None, None]:
    left = list(chunks(scenarios.asked, done))
    if executor == "dask" and registered_by_script():
        raise InputError("--executor dask: other machines do not know what a script registered; use an entry point")
    if executor == "dask":
        return dask(scenarios, left, address)
    many = 1 if registered_by_script() else min(jobs or cores(), len(left))
    return pool(scenarios, left, many) if many > 1 else serial(scenarios, left)


def confirm(
    asked: Question, candidates: Sequence[Candidate], progress: Callable[[float], None] | None = None
) -> list[Confirmed]:
    """The candidates through the full discrete-event engine, in the order given."""
    scenarios = Scenarios(asked)
    steps = []
    for at, one in enumerate(candidates):
        steps.append(simulate(scenarios.of(one.number)).metrics["step_time_s"])
        if progress is not None:
            progress((at + 1) / len(candidates))
    per_token = [
        step / scenarios.of(one.number).job.tokens_per_step for step, one in zip(steps, candidates, strict=True)
    ]
    places = {at: place for place, at in enumerate(sorted(range(len(steps)), key=lambda at: (per_token[at], at)), 1)}
    return [
        Confirmed(candidate=one, step=step, place=places[at])
        for at, (one, step) in enumerate(zip(candidates, steps, strict=True))
    ]
