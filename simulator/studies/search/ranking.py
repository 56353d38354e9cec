"""A whole search: judge every combination, keep what is found, rank it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from simulator.errors import InputError
from simulator.plugins import registered_by_script
from simulator.results.metrics import price_of
from simulator.studies.search.axes import Question, Scenarios
from simulator.studies.search.candidate import FRONTS, RANKS, Candidate, Rank, pareto
from simulator.studies.search.store import Store
from simulator.studies.search.workers import (
    WorkersLostError,
    chunks,
    combinations,
    cores,
    dask,
    growing,
    serial,
    work_anywhere,
)
from simulator.studies.uncertainty import Interval, interval

Executor = Literal["local", "dask"]

Progress = Callable[[int, int], None]
"""Called with the combinations done and their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer of a search.

    Parameters
    ----------
    asked : the question.
    rank : what candidates are ranked by.
    best : best candidates, of those within the limit.
    front : Pareto front of time, cost and memory; of a serving job, of throughput and latency.
    counts : candidates of each status.
    complete : whether all were judged.
    obstacle : what makes most of them invalid.
    judged : how many this run judged itself.
    fault : the commonest fault of those that failed.
    limit : highest latency that was asked for [s].
    slow : how many that can run are above it.
    prices : price of a GPU-hour that the best and the front take, and whose it is.
    stopped : why the search ended early, other than by Ctrl-C.
    unsaved : what its file lacks, and why.
    """

    asked: Question
    rank: Rank
    best: list[Candidate]
    front: list[Candidate]
    counts: dict[str, int]
    complete: bool
    obstacle: str = ""
    fault: str = ""
    stopped: str = ""
    prices: tuple[str, ...] = ()
    limit: float | None = None
    slow: int = 0
    unsaved: str = field(default="", compare=False)
    judged: int = field(default=0, compare=False)


def search(
    asked: Question,
    *,
    rank: Rank | None = None,
    limit: float | None = None,
    top: int = 20,
    file: Path | None = None,
    jobs: int | None = None,
    executor: Executor = "local",
    address: str = "",
    progress: Progress | None = None,
    every: Callable[[Iterable[Candidate]], object] | None = None,
) -> Found:
    """Judge all combinations of a question that `file` does not hold yet.

    `rank`: what the best have least of, or most throughput; None: the first of `RANKS` for the job. `limit`: highest
    latency of the best of a serving job [s].
    Ctrl-C, and workers that are lost, keep what is done: the answer then says that it is not `complete`. `every` is
    handed all candidates, by number, at the end. Where a script registered a schedule or an architecture, this process
    judges alone: others do not have it.
    """
    with Store(asked, file) as store:
        done, scenarios = store.done(), Scenarios(asked)
        rank = _allowed(rank, limit, asked.serves)
        ready, complete, stopped = len(done), True, ""
        try:
            with closing(_work(scenarios, done, jobs, executor, address)) as work:
                for found in work:
                    store.add(found)
                    ready += len(found)
                    if progress is not None:
                        progress(ready, asked.size)
        except KeyboardInterrupt:
            complete = False
        except WorkersLostError as error:
            if not ready:
                raise
            complete, stopped = False, str(error)
        if every is not None:
            every(store)
        best, front = store.best(rank, top, limit), pareto(store, FRONTS[asked.serves])
        return Found(
            asked=asked,
            rank=rank,
            best=best,
            front=front,
            counts=store.counts(),
            complete=complete,
            obstacle=store.commonest("invalid"),
            fault=store.commonest("failed"),
            stopped=stopped,
            prices=_prices(scenarios, [*best, *front]),
            limit=limit,
            slow=store.slower(limit),
            unsaved=store.unsaved(),
            judged=ready - len(done),
        )


def _allowed(rank: Rank | None, limit: float | None, serves: bool) -> Rank:
    """The rank to sort by, if it has a meaning for such a job; raises InputError where rank or limit have none."""
    known = RANKS[serves]
    if rank is not None and rank not in known:
        raise InputError(f"--rank: {rank}: a job that {'serves' if serves else 'trains'} has {', '.join(known)}")
    if limit is not None and not serves:
        raise InputError("--max-latency: only jobs that serve have one; rank by time")
    return rank or known[0]


def _prices(scenarios: Scenarios, shown: Iterable[Candidate]) -> tuple[str, ...]:
    each = dict.fromkeys(price_of(scenarios.of(one.number)) for one in shown)
    return tuple(f"${price:,.2f} a GPU-hour, the price {whose}" for price, whose in each)


def _work(
    scenarios: Scenarios, done: set[int], jobs: int | None, executor: Executor, address: str
) -> Generator[list[Candidate], None, None]:
    left = list(chunks(scenarios.asked, done))
    if executor == "dask" and registered_by_script():
        raise InputError("--executor dask: other machines do not know what a script registered; use an entry point")
    if executor == "dask":
        return dask(partial(work_anywhere, scenarios.asked), left, address)
    many = 1 if registered_by_script() else min(jobs or cores(), len(left))
    if many <= 1:
        return serial(scenarios, left)
    return combinations(scenarios, left, many) if jobs else growing(scenarios, left, many)


def intervals(
    asked: Question,
    candidates: Sequence[Candidate],
    *,
    draws: int,
    seed: int,
    steps: Mapping[int, float],
    progress: Callable[[float], None] | None = None,
) -> dict[int, Interval]:
    """Number of a candidate -> the interval of its step time, around `steps` [s] where that has one."""
    scenarios, found = Scenarios(asked), {}
    for at, one in enumerate(candidates):
        around = interval(scenarios.of(one.number), draws=draws, seed=seed)
        step = steps.get(one.number, one.step)
        found[one.number] = around if step is None else around.scaled_to(step)
        if progress is not None:
            progress((at + 1) / len(candidates))
    return found
