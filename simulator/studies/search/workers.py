"""Who judges the combinations: this process, all cores, or a Dask cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from simulator.errors import InputError
from simulator.studies.search.axes import Question, Scenarios
from simulator.studies.search.candidate import Candidate, Judge

CHUNK = 256
"""Most combinations that a worker takes at once."""

_judge: Judge | None = None


def chunks(asked: Question, done: set[int]) -> Iterator[tuple[int, ...]]:
    """What is left to do, cut where shapes and prices change."""
    size = max(1, min(asked.block, CHUNK))
    for first in range(0, asked.size, size):
        left = tuple(n for n in range(first, min(first + size, asked.size)) if n not in done)
        if left:
            yield left


def _begin(scenarios: Scenarios) -> None:
    """A worker's start: it leaves Ctrl-C to its parent."""
    global _judge  # noqa: PLW0603 - one per process, which is what a pool's initializer is for
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _judge = Judge(scenarios)


def _work(numbers: Sequence[int]) -> list[Candidate]:
    assert _judge is not None
    return _judge(numbers)


def serial(scenarios: Scenarios, left: Iterable[Sequence[int]]) -> Generator[list[Candidate], None, None]:
    """One chunk after the other in this process."""
    judge = Judge(scenarios)
    for numbers in left:
        yield judge(numbers)


def pool(scenarios: Scenarios, left: Iterable[Sequence[int]], jobs: int) -> Generator[list[Candidate], None, None]:
    """Chunks over `jobs` processes, in any order."""
    from simulator.studies.search.spawn import Spawning

    with Spawning().Pool(jobs, _begin, (scenarios,)) as workers:  # leaving it ends the workers
        yield from workers.imap_unordered(_work, left)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_judges: dict[Question, Judge] = {}


def _work_anywhere(asked: Question, numbers: Sequence[int]) -> list[Candidate]:
    """A chunk on a Dask worker, which keeps the judge of one question."""
    if asked not in _judges:
        _judges.clear()
        _judges[asked] = Judge(Scenarios(asked))
    return _judges[asked](numbers)


def dask(scenarios: Scenarios, left: Iterable[Sequence[int]], address: str) -> Generator[list[Candidate], None, None]:
    """Chunks over a Dask cluster; those of workers that die are done again by others."""
    try:
        import distributed  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError("--executor dask: dask.distributed is missing; pip install 'foretrain[dask]'") from None
    client: Any
    with distributed.Client(address) as client:
        futures = [client.submit(_work_anywhere, scenarios.asked, numbers, pure=False, retries=3) for numbers in left]
        for future in distributed.as_completed(futures):
            yield future.result()
            future.release()
