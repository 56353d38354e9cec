"""Chosen GPUs of a stage in a trace, each a process with its own streams, where GPUs were simulated apart.

A slice is a kernel sequence. Times are those of the ranks among themselves (`simulator.engine.ranks`), where links are
not shared: the rank with the mean load, which is drawn kernel by kernel, is the event engine's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from reports.export.trace_counters import nanoseconds
from simulator.engine.ranks.rendezvous import RankTimeline
from simulator.engine.tasks import COMM, COMPUTE, LANES, SYNC, ActionOf
from simulator.errors import InputError
from simulator.results.result import Result
from simulator.results.simulate import members_of
from simulator.spec.scenario import Scenario

Member = tuple[int, int]
"""Pipeline rank, and number of the GPU in its stage."""

_STREAMS = {COMPUTE: "compute", COMM: "all-to-all", SYNC: "gradient sync"}


def parse_members(text: str, scenario: Scenario) -> tuple[Member, ...]:
    """`8.0-3` -> GPUs 0 to 3 of pipeline rank 8. Raises InputError for what was not simulated."""
    rank, _, numbers = text.partition(".")
    low, dash, high = numbers.partition("-")
    if not rank.isdecimal() or not low.isdecimal() or (dash and not high.isdecimal()):
        raise InputError(f"--ranks: {text!r}: GPUs of a stage are written as in 8.0-3: pipeline rank 8, GPUs 0 to 3")
    there, pp = members_of(scenario), scenario.job.layout.pp
    if not there:
        mean = scenario.job.routing.ranks == "mean" and scenario.job.layout.ep > 1
        why = "a mean rank stands for all" if mean else "all are alike"
        what = "routing.ranks=apart" if mean else "routing.kind or stragglers"
        raise InputError(
            f"--ranks: {text!r}: no GPUs of a stage are simulated, {why}; set {what}, or name pipeline ranks"
        )
    if int(rank) >= pp:
        raise InputError(f"--ranks: {text!r}: the pipeline has ranks 0 to {pp - 1}")
    each = len(there) == there[-1] + 1  # else those that are alike are simulated once
    last = there[-1] if each else scenario.job.gpus // pp - 1
    chosen = [number for number in there if int(low) <= number <= int(high or low)]
    if not chosen or int(high or low) > last:
        shown = f"0 to {last}" if each else f"{', '.join(map(str, there))} (the others are like these)"
        raise InputError(f"--ranks: {text!r}: the simulated GPUs of a stage are {shown}")
    return tuple((int(rank), number) for number in chosen)


def member_events(
    result: Result, members: tuple[Member, ...], first: int, apart: int, window: tuple[float, float]
) -> Iterator[str]:
    """The events of these GPUs, each preceded by a comma; their processes are numbered from `first`, `apart` each."""
    uneven = result.uneven
    assert uneven is not None
    lanes: dict[int, list[int]] = {}
    for task, lane in enumerate(result.timeline.tasks.lane):
        lanes.setdefault(lane, []).append(task)
    actions: dict[int, list[ActionOf]] = {}
    for action in result.timeline.tasks.actions:
        actions.setdefault(action.rank, []).append(action)
    for at, (rank, number) in enumerate(members):
        process, column = first + at * apart, uneven.columns.names.index(number)
        yield _meta("process_name", process, process, name=f"rank {rank}, GPU {number} of its stage")
        yield _meta("process_sort_index", process, process, sort_index=process)
        for place, (stream, name) in enumerate(_STREAMS.items()):
            yield _meta("thread_name", process, process + place, name=name)
            yield from _stream(uneven.timeline, lanes.get(rank * LANES + stream, []), column, process, place, window)


def _stream(
    ran: RankTimeline, tasks: list[int], column: int, process: int, place: int, window: tuple[float, float]
) -> Iterator[str]:
    """The tasks of one stream: what is waited for the last rank is a slice of its own."""
    for task in tasks:
        start, end = float(ran.start[task][column]), float(ran.end[task][column])
        if end < window[0] or start > window[1]:
            continue
        sequence = ran.tasks.sequence[task]
        waited = float(ran.wait[task][column]) if task in ran.wait else 0.0
        begun = start + waited
        if waited > 0.0:
            yield _slice("waits for the slowest", "wait", process, place, start, begun)
        name = sequence.first.name if len(sequence.ops) == 1 else sequence.name
        yield _slice(name, sequence.kind, process, place, begun, end)


def _slice(name: str, kind: str, process: int, place: int, start: float, end: float) -> str:
    begin = nanoseconds(start)
    event = {
        "ph": "X",
        "name": name,
        "cat": kind,
        "pid": process,
        "tid": process + place,
        "ts": begin / 1e3,
        "dur": (nanoseconds(end) - begin) / 1e3,
    }
    return f",\n{json.dumps(event, separators=(',', ':'))}"


def _meta(kind: str, process: int, thread: int, **args: Any) -> str:
    event = {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": args}
    return f",\n{json.dumps(event, separators=(',', ':'))}"
