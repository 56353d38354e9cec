"""What a rank has in use over a step, as steps in time: SMs by stream, and memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from simulator.engine.kernel_sequence import KernelSequence
from simulator.engine.pricing import neighbour_of
from simulator.engine.tasks import Timeline
from simulator.memory import curve_of
from simulator.results.result import Result

Sample = tuple[int, tuple[int, ...]]
"""From this nanosecond on, these values."""

NAMES = {"SMs in use": ("compute", "all_to_alls", "collectives"), "memory in use": ("bytes",)}
"""Counter -> its series."""


def nanoseconds(seconds: float) -> int:
    """The whole nanosecond next to a time [s]."""
    return round(seconds * 1e9)


def sm_samples(
    result: Result, compute: Sequence[int], all_to_alls: Sequence[int], collectives: Sequence[int]
) -> list[Sample]:
    """SMs open to the compute kernel that runs, and held by all-to-all kernels and collectives, given a rank's tasks of
    each stream.

    An all-to-all holds its SMs from its barrier on. A rank that computes has all that its all-to-all leaves or, without
    one, its collective: as in the engine.
    """
    cluster, sequences = result.scenario.cluster, result.timeline.tasks.sequence
    holding = [task for task in all_to_alls if sequences[task].kind in ("notify", "all_to_all")]
    held = _held(result, sequences[holding[0]]) if holding else 0
    channels = cluster.fabric.nvlink.sms
    streams = (
        [(task, 1) for task in compute],
        [(task, held) for task in holding],
        [(task, round(sequences[task].held * channels)) for task in collectives],
    )
    out: list[Sample] = [(0, (0, 0, 0))]
    for at, (computing, dispatching, collecting) in _levels(result.timeline, *streams):
        left = cluster.gpu.sms - (dispatching or collecting)
        _append(out, at, (left if computing else 0, dispatching, collecting))
    return out


def _held(result: Result, sequence: KernelSequence) -> int:
    return neighbour_of(result.scenario, sequence.ops[0].op).sms


def _levels(timeline: Timeline, *streams: Sequence[tuple[int, int]]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The sum over the tasks of each stream that run, of their second values, from each time at which it
    changes."""
    edges: list[tuple[int, int, int]] = []
    for stream, tasks in enumerate(streams):
        edges += [(nanoseconds(timeline.start[task]), stream, many) for task, many in tasks]
        edges += [(nanoseconds(timeline.end[task]), stream, -many) for task, many in tasks]
    edges.sort()
    level = [0] * len(streams)
    for at, (time, stream, change) in enumerate(edges):
        level[stream] += change
        if at + 1 == len(edges) or edges[at + 1][0] != time:
            yield time, tuple(level)


def memory_samples(result: Result, rank: int) -> list[Sample]:
    """Bytes in use on a rank: what `foretrain memory` draws, added up."""
    if result.scenario.workload.serves:  # nothing is kept between ops
        return [(0, (round(result.memory.peak),))]
    curve = curve_of(result.built, result.schedule, result.timeline, rank)
    out: list[Sample] = []
    for time, *parts in zip(curve.times, *curve.groups.values(), strict=True):
        _append(out, nanoseconds(time), (round(sum(parts)),))
    return out


def _append(samples: list[Sample], at: int, values: tuple[int, ...]) -> None:
    """Add a sample: of one time the last counts, and equal consecutive ones are one."""
    if samples and samples[-1][0] == at:
        samples.pop()
    if not samples or samples[-1][1] != values:
        samples.append((at, values))


def clipped(samples: Iterable[Sample], start: int, end: float) -> Iterator[Sample]:
    """The samples of a window; what held before begins with it."""
    before: tuple[int, ...] | None = None
    for at, values in samples:
        if at <= start:
            before = values
            continue
        if before is not None:
            yield start, before
            before = None
        if at > end:
            return
        yield at, values
    if before is not None:
        yield start, before
