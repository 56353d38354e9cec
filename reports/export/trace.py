"""A simulated step as a Chrome trace, for ui.perfetto.dev or chrome://tracing: a process per rank, a thread per stream.

The format is that of "Trace Event Format" (Google, 2016): complete events `X`, flow arrows `s` and `f`, metadata `M`.
A full step has over a million ops, so nothing is kept: every kernel sequence has a template of its events,
into which its times are filled at once, and the text goes through gzip as it comes.

What Perfetto makes of such a file decides some details (v52; the tests ask its importer). It rounds times, written in
microseconds, to whole nanoseconds: ours are such, so that events touch and nest without gaps. A thread 0 takes its
process's number there: numbers begin at 100 and are used once. An arrow binds to the slice that is open when it is
read: arrows stand behind the slices of their rank. Ranks follow their sort index from v53 on; before, those with more
slices came first. Its colours follow names without their digits: actions of a kind look alike there too, `cname` is for
chrome://tracing.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from reports.export import trace_counters as counters
from reports.export.files import replacing
from reports.export.trace_counters import nanoseconds
from reports.export.trace_members import Member, member_events, parse_members
from reports.views.stages import NAMES, late_starts, stage_spans
from reports.views.words import ranges
from simulator.engine.kernel_sequence import KernelSequence, Priced, kernel_spans
from simulator.engine.tasks import COMM, COMPUTE, FROM_HOST, LANES, SEND_NEXT, SEND_PREVIOUS, SYNC, TO_HOST, ActionOf
from simulator.errors import InputError
from simulator.ops import Streaming
from simulator.results.result import Result
from simulator.schedule import Action, Step, halves, stages_on
from simulator.spec.scenario import Scenario

THREADS = {
    COMPUTE: (0, "compute"),
    COMM: (1, "all-to-all"),
    SEND_NEXT: (4, "sends to the next stage"),
    SEND_PREVIOUS: (5, "sends to the previous stage"),
    SYNC: (6, "gradient sync"),
    TO_HOST: (9, "copies to the host"),
    FROM_HOST: (10, "copies from the host"),
}
"""Stream -> thread of a rank (in the order shown), and its name."""
LINKS = {"nic": (2, "IB: all-to-all"), "nvlink": (3, "NVLink: all-to-all")}
"""Links that an all-to-all crosses, each a thread of its own."""

_FIRST, _APART = 100, 100  # number of the first rank's process, and how far the next one is away
_LEVEL = 5  # of gzip: half the size of level 1 for twice its time
_HERE = "\x01"  # where an event's process, thread and step are filled in
_COLOURS = {
    "forward": "rail_response",
    "backward": "thread_state_iowait",
    "weight": "good",
    "recompute": "olive",
    "overlapped": "rail_animation",
    "communication": "rail_load",
    "optimizer": "grey",
}
_PARTS = {"F": "forward", "I": "backward", "W": "weight", "R": "recompute"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What of a step goes into a trace: pipeline ranks (their rank with the mean load), GPUs of a stage that were
    simulated apart, and a window of time [s]."""

    ranks: tuple[int, ...]
    members: tuple[Member, ...] = ()
    start: float = 0.0
    end: float = float("inf")

    @classmethod
    def parse(cls, ranks: str | None, window: str | None, scenario: Scenario) -> Selection:
        """The selection that `--ranks` and `--window` describe, of a scenario's step."""
        count = scenario.job.layout.pp
        parts = ranks.split(",") if ranks is not None else []
        plain = ",".join(part for part in parts if "." not in part)
        members = {each for part in parts if "." in part for each in parse_members(part.strip(), scenario)}
        chosen = tuple(range(count)) if ranks is None else ()
        if plain or (ranks is not None and not members):
            chosen = _numbers(plain, count - 1)
        start, end = parse_window(window) if window is not None else (0.0, float("inf"))
        return cls(ranks=chosen, members=tuple(sorted(members)), start=start, end=end)

    def narrowed(self, result: Result) -> Result:
        """A result whose heat maps have the rows of these GPUs only, where any are named."""
        if result.waits is None or not self.members:
            return result
        return replace(result, waits=result.waits.of(number for _, number in self.members))

    def meets(self, start: float, end: float) -> bool:
        """Whether any of a span lies in the window."""
        return end >= self.start and start <= self.end


def _numbers(text: str, last: int) -> tuple[int, ...]:
    """`0,2-4` -> (0, 2, 3, 4)."""
    chosen: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise InputError(f"--ranks: {text!r}: must be numbers and ranges, as in 0,1,12-15")
        chosen.update(range(int(low), int(high or low) + 1) if int(high or low) <= last else [last + 1])
    if not chosen or max(chosen) > last:
        raise InputError(f"--ranks: {text!r}: the pipeline has ranks 0 to {last}")
    return tuple(sorted(chosen))


def parse_window(text: str) -> tuple[float, float]:
    """`2.5:3` -> (2.5, 3.0); either side may be left out."""
    low, colon, high = text.partition(":")
    try:
        start, end = float(low or 0.0), float(high or "inf")
    except ValueError:
        colon, start, end = "", 0.0, 0.0
    if not colon or not 0 <= start < end:
        raise InputError(f"--window: {text!r}: must be START:END in seconds, as in 2.5:3")
    return start, end


def process(rank: int) -> int:
    """The process number of a rank."""
    return _FIRST + _APART * rank


def thread(rank: int, place: int) -> int:
    """The thread number of the track at a place (of `THREADS` or `LINKS`) of a rank; the first is the main thread."""
    return process(rank) + place


def write_trace(
    result: Result, path: Path, selection: Selection | None = None, *, progress: Callable[[float], None] | None = None
) -> int:
    """Write the trace of a result, compressed unless the name ends in `.json`; returns the number of op events."""
    chosen = selection or Selection(ranks=tuple(range(result.timeline.tasks.ranks)))
    if chosen.start > result.timeline.makespan:
        raise InputError(f"--window: {chosen.start:g} s: the step ends after {result.timeline.makespan:.3f} s")
    with replacing(path) as raw:
        if path.name.endswith(".json"):
            return _Trace(result, chosen, raw).write(progress)
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=_LEVEL, mtime=0) as packed:
            return _Trace(result, chosen, packed).write(progress)


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int: ...


class _Trace:
    """Writes one trace; gone when `write_trace` returns."""

    def __init__(self, result: Result, selection: Selection, file: Sink) -> None:
        self.result, self.selection, self.file = result, selection, file
        self.timeline = result.timeline
        self.templates: dict[int, str] = {}
        self.places = _places(result)
        self.events = 0

    def write(self, progress: Callable[[float], None] | None) -> int:
        """The whole file."""
        ranks = self.selection.ranks
        lanes, actions = self._tasks_by_lane(), self._actions_by_rank()
        arrows = self._arrows()
        self.put(self._head())
        for at, rank in enumerate(ranks):
            self.put("".join(self._names(rank)))
            for stream in (COMPUTE, COMM):
                for action in actions[rank]:
                    self.put(self._action(action, stream))
            for stream in (SEND_NEXT, SEND_PREVIOUS, SYNC, TO_HOST, FROM_HOST):
                self.put("".join(self._task(task, rank, stream, "") for task in lanes[rank * LANES + stream]))
            for link in LINKS:
                self.put("".join(self._crossings(rank, link, lanes[rank * LANES + COMM])))
            self.put("".join(arrows[rank]))
            self.put("".join(self._counters(rank, lanes)))
            if progress is not None:
                progress((at + 1) / len(ranks))
        chosen = self.selection
        if chosen.members:
            behind = process(self.timeline.tasks.ranks)
            for text in member_events(self.result, chosen.members, behind, _APART, (chosen.start, chosen.end)):
                self.put(text)
                self.events += '"ph":"X"' in text
        self.put("\n]}\n")
        return self.events

    def put(self, text: str) -> None:
        """Append text to the file."""
        if text:
            self.file.write(text.encode())

    # ---- what there is ------------------------------------------------------------------------------------------

    def _tasks_by_lane(self) -> dict[int, list[int]]:
        lanes: dict[int, list[int]] = defaultdict(list)
        for task, lane in enumerate(self.timeline.tasks.lane):
            lanes[lane].append(task)
        return lanes

    def _actions_by_rank(self) -> dict[int, list[ActionOf]]:
        found: dict[int, list[ActionOf]] = defaultdict(list)
        for action in self.timeline.tasks.actions:
            found[action.rank].append(action)
        return found

    def _head(self) -> str:
        """Everything before the events; the first event names the file's step."""
        result = self.result
        about = {
            "job": result.scenario.name,
            "step_time_s": result.metrics["step_time_s"],
            "program": "foretrain",
            "engine": result.provenance["engine"],
        }
        first = {
            "ph": "M",
            "name": "trace_title",
            "pid": process(self.selection.ranks[0] if self.selection.ranks else self.timeline.tasks.ranks),
            "args": {"name": result.scenario.name},
        }
        return f'{{"displayTimeUnit":"ms","otherData":{_json(about)},"traceEvents":[\n{_json(first)}'

    def _names(self, rank: int) -> Iterator[str]:
        """Names and order of a rank's process and threads."""
        held = ranges(stages_on(self.result.schedule)[rank])
        stages = f"stage{'s' if len(held.split(',')) > 1 or '-' in held else ''} {held}"
        yield _meta("process_name", rank, 0, name=f"rank {rank} ({stages})")
        yield _meta("process_sort_index", rank, 0, sort_index=rank + 1)
        away = self.result.scenario.job.offload.activations
        tracks = [track for stream, track in THREADS.items() if away or stream not in (TO_HOST, FROM_HOST)]
        if self.result.scenario.workload.serves:  # no gradients: collectives of tensor parallelism take their stream
            tracks = [(at, "collectives" if at == THREADS[SYNC][0] else name) for at, name in tracks]
        for place, name in sorted((*tracks, *LINKS.values())):
            yield _meta("thread_name", rank, place, name=name)
            yield _meta("thread_sort_index", rank, place, sort_index=place + 1)

    # ---- events -------------------------------------------------------------------------------------------------

    def _action(self, action: ActionOf, stream: int) -> str:
        """The tasks of an action on one stream, inside a slice that bears the action's name."""
        tasks, timeline = self.timeline.tasks, self.timeline
        lane = action.rank * LANES + stream
        mine = [task for task in range(action.first, action.last) if tasks.lane[task] == lane]
        if not mine or not self.selection.meets(timeline.start[mine[0]], timeline.end[mine[-1]]):
            return ""
        begun, ended = timeline.start[mine[0]], timeline.end[mine[-1]]
        name = "optimizer" if action.step is None else str(action.step)
        about = f'"name":"{name}","cat":"action,{action.phase}","cname":"{_COLOURS[action.phase]}"'
        whole = f',\n{{"ph":"X",{about},{_place(action.rank, THREADS[stream][0])},{_span(begun, ended)}}}'
        ahead, back = (_about(half) for half in _halves(action.step))
        parts = [whole]
        for task in mine:
            forward = tasks.sequence[task].ops[0].op.part == "F"
            place = self.places.get(task)
            if place is not None and self.selection.meets(timeline.start[task], timeline.end[task]):
                span = _span(timeline.start[task], timeline.end[task])
                where = _place(action.rank, THREADS[stream][0])
                parts.append(f',\n{{"ph":"X","name":{_json(place.name)},"cat":"stage",{where},{span}}}')
            about = place.args if place is not None else ahead if forward else back
            parts.append(self._task(task, action.rank, stream, about))
        return "".join(parts)

    def _task(self, task: int, rank: int, stream: int, about: str) -> str:
        """One event per op of a task; at the edges of the window, of those inside."""
        timeline, sequence = self.timeline, self.timeline.tasks.sequence[task]
        start, end = timeline.start[task], timeline.end[task]
        if not self.selection.meets(start, end):
            return ""
        template = self.templates.get(id(sequence))
        if template is None:
            template = self.templates[id(sequence)] = "".join(map(_template, sequence.ops))
        spans = kernel_spans(sequence, start, end, timeline.changes.get(task, ()))
        if start < self.selection.start or end > self.selection.end:
            inside = [at for at, span in enumerate(spans) if self.selection.meets(*span)]
            template = "".join(_template(sequence.ops[at]) for at in inside)
            spans = [spans[at] for at in inside]
        self.events += len(spans)
        times: list[float] = []
        for begun, ended in spans:
            nanos = round(begun * 1e9)
            times += (nanos / 1e3, (round(ended * 1e9) - nanos) / 1e3)
        return template.replace(_HERE, f'{_place(rank, THREADS[stream][0])},"args":{{{about}') % tuple(times)

    def _crossings(self, rank: int, link: str, mine: Sequence[int]) -> Iterator[str]:
        """All-to-alls as the link that they cross sees them."""
        timeline = self.timeline
        for task in mine:
            sequence, start, end = timeline.tasks.sequence[task], timeline.start[task], timeline.end[task]
            moved = sequence.nic if link == "nic" else sequence.nvlink
            if moved and self.selection.meets(start, end):
                rate = moved / (end - start) if end > start else 0.0
                yield (
                    f',\n{{"ph":"X","name":"{_name(sequence)}","cat":"link",{_place(rank, LINKS[link][0])},'
                    f'{_span(start, end)},"args":{{"bytes":{moved:.0f},"bytes_per_s":{rate:.4g}}}}}'
                )

    def _arrows(self) -> dict[int, list[str]]:
        """Both ends of flow arrows by rank: they lead from every send to the first task that waits for it."""
        timeline, tasks, chosen = self.timeline, self.timeline.tasks, set(self.selection.ranks)
        waiting: dict[int, int] = {}
        for task, preds in enumerate(tasks.preds):
            for pred in preds:
                if pred in tasks.peer and pred not in waiting:
                    waiting[pred] = task
        found: dict[int, list[str]] = defaultdict(list)
        for send, receiver in waiting.items():
            source, stream = divmod(tasks.lane[send], LANES)
            target, other = divmod(tasks.lane[receiver], LANES)
            spans = ((timeline.start[task], timeline.end[task]) for task in (send, receiver))
            if {source, target} <= chosen and all(self.selection.meets(*span) for span in spans):
                found[source].append(_arrow("s", send, source, stream, timeline.start[send]))
                found[target].append(_arrow("f", send, target, other, timeline.start[receiver]))
        return found

    def _counters(self, rank: int, lanes: Mapping[int, Sequence[int]]) -> Iterator[str]:
        """SMs and memory in use on a rank, a sample wherever they change."""
        begin, end = nanoseconds(self.selection.start), 1e9 * self.selection.end
        sms = counters.sm_samples(self.result, *(lanes[rank * LANES + kind] for kind in (COMPUTE, COMM, SYNC)))
        for samples, (name, series) in zip(
            (sms, counters.memory_samples(self.result, rank)), counters.NAMES.items(), strict=True
        ):
            for at, values in counters.clipped(samples, begin, end):
                shown = ",".join(f'"{one}":{value}' for one, value in zip(series, values, strict=True))
                yield f',\n{{"ph":"C","name":"{name}",{_place(rank, 0)},{_at(at)},"args":{{{shown}}}}}'


def _halves(step: Step | None) -> tuple[Action | None, Action | None]:
    """The actions that forward and backward ops of a step belong to."""
    return (None, None) if step is None else halves(step)


@dataclass(frozen=True, slots=True)
class _Where:
    """Where a task of a serving step stands: the name of its slice, and what its ops say of it."""

    name: str
    args: str


def _places(result: Result) -> dict[int, _Where]:
    """Of a serving step: layer, microbatch and stage of each task of the first rank, and what it waited for."""
    if not result.scenario.workload.serves:
        return {}
    spans = stage_spans(result)
    found: dict[int, dict[str, Any]] = {}
    for span in spans:
        stage = NAMES.get(span.segment, span.segment)
        found[span.task] = {"layer": span.block, "microbatch": span.microbatch, "stage": stage}
    for task, seconds, whom in late_starts(result, spans):
        found[task] |= {"waited_us": round(1e6 * seconds, 3), "waited_for": whom}
    return {
        task: _Where(name=f"{place['stage']} {place['microbatch']}", args=_json(place)[1:-1] + ",")
        for task, place in found.items()
    }


def _about(action: Action | None) -> str:
    return "" if action is None else f'"microbatch":{action.microbatch},"stage":{action.stage},'


def _template(priced: Priced) -> str:
    """The event of an op, with gaps for place and times."""
    op, cost = priced.op, priced.cost
    comm = op.stream == "comm"
    phase = "optimizer" if op.segment == "optimizer" else "communication" if comm else _PARTS[op.part]
    moved = cost.nic_bytes + cost.nvlink_bytes if comm else 0.0
    moved = op.work.bytes * op.count if isinstance(op.work, Streaming) else moved
    args = {
        "class": op.cls,
        "bound_by": cost.bound_by,
        **({"bytes": round(moved)} if moved else {}),
        **({"flop": round(op.flops)} if op.flops else {}),
        **({"kernels": op.count} if op.count > 1 else {}),
    }
    fixed = f'"name":{_json(op.name)},"cat":"{phase}","cname":"{_COLOURS[phase]}"'.replace("%", "%%")
    rest = _json(args)[1:].replace("%", "%%")
    return f',\n{{"ph":"X",{fixed},{_HERE}{rest},"ts":%.3f,"dur":%.3f}}'


def _name(sequence: KernelSequence) -> str:
    return sequence.ops[0].op.name


def _place(rank: int, place: int) -> str:
    return f'"pid":{process(rank)},"tid":{thread(rank, place)}'


def _at(nanos: int) -> str:
    """A time, in microseconds."""
    return f'"ts":{nanos / 1e3:.3f}'


def _span(start: float, end: float) -> str:
    begin = nanoseconds(start)
    return f'{_at(begin)},"dur":{(nanoseconds(end) - begin) / 1e3:.3f}'


def _arrow(ph: str, number: int, rank: int, stream: int, at: float) -> str:
    binding = ',"bp":"e"' if ph == "f" else ""
    place = _place(rank, THREADS[stream][0])
    return f',\n{{"ph":"{ph}","name":"send","cat":"send","id":{number},{place},{_at(nanoseconds(at))}{binding}}}'


def _meta(kind: str, rank: int, place: int, /, **args: Any) -> str:
    return f",\n{_json({'ph': 'M', 'name': kind, 'pid': process(rank), 'tid': thread(rank, place), 'args': args})}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
