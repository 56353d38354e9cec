"""Who judges the combinations: this process, all cores, or a Dask cluster."""

from __future__ import annotations

import logging
import os
import signal
from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Any, TypeVar

from simulator.errors import ForetrainError, InputError
from simulator.studies.search.axes import Question, Scenarios
from simulator.studies.search.candidate import Candidate, Judge

CHUNK = 256
"""Most combinations that a worker takes at once."""

LEAST = 8
"""Fewest combinations that a worker takes at once, where no neighbours share prices: a hand-over takes time, too."""

WORTH_PROCESSES = 1.0
"""A search that takes longer is spread over processes, each of which takes about as long to start [s]."""

_AHEAD = 4
"""Chunks that a worker process has waiting: a search may have hundreds of thousands."""
_PATIENCE = 10
"""How long a Dask scheduler may take to answer [s]."""
_TOLD = 200
"""Characters of a cluster's own error that are repeated."""

Part = TypeVar("Part")
Answer = TypeVar("Answer")


class WorkersLostError(ForetrainError):
    """Whoever judged combinations is gone; what was judged stays."""


_judge: Judge | None = None


def chunks(asked: Question, done: set[int]) -> Iterator[tuple[int, ...]]:
    """What is left to do, cut where shapes and prices change."""
    size = min(asked.block * max(1, LEAST // asked.block), CHUNK)
    for first in range(0, asked.size, size):
        left = tuple(n for n in range(first, min(first + size, asked.size)) if n not in done)
        if left:
            yield left


def leave_interrupts() -> None:
    """A worker leaves Ctrl-C to its parent."""
    with suppress(ValueError):  # not in the main thread
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _begin(scenarios: Scenarios) -> None:
    """A worker's start."""
    global _judge  # noqa: PLW0603 - one per process, which is what a pool's initializer is for
    leave_interrupts()
    _judge = Judge(scenarios)


def _work(numbers: Sequence[int]) -> list[Candidate]:
    assert _judge is not None
    return _judge(numbers)


def serial(scenarios: Scenarios, left: Iterable[Sequence[int]]) -> Generator[list[Candidate], None, None]:
    """One chunk after the other in this process."""
    judge = Judge(scenarios)
    for numbers in left:
        yield judge(numbers)


def growing(scenarios: Scenarios, left: Sequence[Sequence[int]], jobs: int) -> Generator[list[Candidate], None, None]:
    """One chunk after the other in this process; once their start is worth it, what is left over `jobs` processes."""
    judge, began = Judge(scenarios), monotonic()
    for at, numbers in enumerate(left):
        if monotonic() - began > WORTH_PROCESSES:
            yield from combinations(scenarios, left[at:], min(jobs, len(left) - at))
            return
        yield judge(numbers)


def combinations(
    scenarios: Scenarios, left: Iterable[Sequence[int]], jobs: int
) -> Generator[list[Candidate], None, None]:
    """Chunks over `jobs` processes, each of which keeps its judge."""
    return pool(_work, left, jobs, _begin, (scenarios,))


def pool(
    work: Callable[[Part], Answer],
    left: Iterable[Part],
    jobs: int,
    begin: Callable[..., None] | None = None,
    given: tuple[Any, ...] = (),
) -> Generator[Answer, None, None]:
    """Answers of `work` to every part over `jobs` processes, in any order; each process begins with `begin(*given)`.

    Raises WorkersLostError where one of them is killed.
    """
    from simulator.studies.search.spawn import Spawning

    context, waiting = Spawning(), iter(left)
    executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=begin, initargs=given)
    try:
        running = {executor.submit(work, part) for part in islice(waiting, _AHEAD * jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {executor.submit(work, part) for part in islice(waiting, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise WorkersLostError(
            "a worker process was killed, perhaps for want of memory; --jobs 1 needs the least"
        ) from None
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        context.end()


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_judges: dict[Question, Judge] = {}


def work_anywhere(asked: Question, numbers: Sequence[int]) -> list[Candidate]:
    """A chunk on a Dask worker, which keeps the judge of one question."""
    if asked not in _judges:
        _judges.clear()
        _judges[asked] = Judge(Scenarios(asked))
    return _judges[asked](numbers)


def dask(work: Callable[[Part], Answer], left: Iterable[Part], address: str) -> Generator[Answer, None, None]:
    """Answers of `work` to every part over a Dask cluster; those of workers that die are done again by others.

    Raises WorkersLostError where there is no scheduler at `address`, or where it or all workers die.
    """
    try:
        import distributed  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise InputError("--executor dask: dask.distributed is missing; pip install 'foretrain[dask]'") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it logs a traceback for all that is reported
    client: Any = None
    try:
        client = distributed.Client(address, timeout=_PATIENCE)
        futures = [client.submit(work, part, pure=False, retries=3) for part in left]
        for future in distributed.as_completed(futures):
            yield future.result()
            future.release()
    except ForetrainError:
        raise
    except (Exception, CancelledError) as error:  # a Dask cluster fails in many ways: sockets, comms, killed workers
        what = "was lost" if client is not None else "cannot be reached"
        told = " ".join(str(error).split()) or type(error).__name__
        raise WorkersLostError(
            f"--executor dask: --address {address}: the cluster {what}: {told[:_TOLD]}"
            + ("" if client is not None else "; it is written as in tcp://host:8786")
        ) from None
    finally:
        if client is not None:
            with suppress(Exception, CancelledError):
                client.close(timeout=_PATIENCE)
