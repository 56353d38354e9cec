"""A trace as Perfetto reads it: by its own trace processor where there is one, and by the rules of its JSON importer.

The package `perfetto` fetches the trace processor at its first use. Without it, or without network, only the rules are
checked: threads are told apart by number, times lose what is below a nanosecond, a slice that overlaps another one in
part is dropped, and an arrow binds to the slice that is open where it is read.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reports.trace import LINKS, THREADS, write_trace
from reports.trace_counters import NAMES
from simulator.inputs import load_scenario
from simulator.result import Result
from simulator.run import simulate

Event = dict[str, Any]
TRACKS = [name for _, name in sorted((*THREADS.values(), *LINKS.values()))]


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(load_scenario("tiny-dualpipe", ["batch.global_batch_size=160"]))


@pytest.fixture(scope="module")
def file(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perfetto") / "step.json.gz"
    write_trace(result, path)
    return path


@pytest.fixture(scope="module")
def events(file: Path) -> list[Event]:
    found: list[Event] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return found


# ---- the importer's rules ---------------------------------------------------------------------------------------


class Imported:
    """What Perfetto would keep of a trace, and what it would complain about."""

    def __init__(self, events: list[Event]) -> None:
        self.complaints: Counter[str] = Counter()
        self.slices: list[tuple[int, int, int]] = []
        self.flows = 0
        self.open: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.owners: dict[int, int] = {}
        self.leaving: dict[int, int] = {}
        for event in sorted(events, key=lambda event: nanos(event.get("ts", 0))):
            self.take(event)

    def take(self, event: Event) -> None:
        pid, tid = event["pid"], event.get("tid", event["pid"])
        if not pid or not tid:
            self.complaints["idle process"] += 1
        if self.owners.setdefault(tid, pid) != pid:
            self.complaints["thread of two processes"] += 1
        if event["ph"] == "X":
            self.slice(tid, nanos(event["ts"]), nanos(event["dur"]))
        elif event["ph"] in "sf":
            self.arrow(event, tid, nanos(event["ts"]))
        elif event["ph"] == "C":
            numbers = [value for value in event["args"].values() if isinstance(value, int | float)]
            self.complaints["counter without numbers"] += len(numbers) != len(event["args"]) or not numbers

    def close(self, tid: int, at: int) -> list[tuple[int, int]]:
        """The slices of a track still open at a moment."""
        stack = self.open[tid]
        while stack and stack[-1][1] <= at and stack[-1] != (at, at):
            stack.pop()
        return stack

    def slice(self, tid: int, start: int, length: int) -> None:
        stack = self.close(tid, start)
        if any(start < end < start + length for _, end in stack):
            self.complaints["slice dropped"] += 1
            return
        stack.append((start, start + length))
        self.slices.append((tid, start, length))

    def arrow(self, event: Event, tid: int, at: int) -> None:
        if not self.close(tid, at):
            self.complaints["arrow without a slice"] += 1
        elif event["ph"] == "s":
            self.complaints["arrow twice"] += event["id"] in self.leaving
            self.leaving[event["id"]] = tid
        elif self.leaving.pop(event["id"], tid) == tid:
            self.complaints["arrow that did not leave"] += 1
        else:
            self.flows += 1


def nanos(microseconds: float) -> int:
    """As the importer does it: what is below a nanosecond is cut off."""
    return int(microseconds * 1000.0)


def test_nothing_is_lost(result: Result, events: list[Event]) -> None:
    kept = Imported(events)
    assert +kept.complaints == Counter()
    assert len(kept.slices) == sum(event["ph"] == "X" for event in events)
    assert kept.flows == len(result.timeline.tasks.peer)
    assert not kept.leaving


def test_times_are_whole_nanoseconds_even_after_hours(result: Result, events: list[Event]) -> None:
    """The digit behind the third keeps the cut from taking a nanosecond, up to steps of hours."""
    last = max(nanos(event["ts"]) + nanos(event["dur"]) for event in events if event["ph"] == "X")
    assert last == round(result.timeline.makespan * 1e9)
    assert all(nanos(float(f"{number / 1e3:.3f}1")) == number for number in range(10**13, 10**13 + 5000))


def test_the_rules_find_what_is_wrong() -> None:
    def wrong(*changes: Event) -> set[str]:
        found = [{"ph": "X", "pid": 1, "tid": 2, "ts": 1.0, "dur": 1.0, **change} for change in changes]
        return set(+Imported(found).complaints)

    assert wrong({}, {"ts": 2.0}, {"ts": 2.25, "dur": 0.75}) == set()
    assert wrong({}, {"ts": 1.5}) == {"slice dropped"}
    assert wrong({"pid": 0}) == {"idle process"}
    assert wrong({}, {"pid": 3}) == {"thread of two processes"}
    assert wrong({"ph": "s", "id": 1}, {}) == {"arrow without a slice"}
    assert wrong({"ph": "C", "args": {"a": None}}) == {"counter without numbers"}


def test_every_rank_has_its_counters(result: Result, events: list[Event]) -> None:
    found = {(event["pid"], event["name"], *event["args"]) for event in events if event["ph"] == "C"}
    assert len(found) == result.timeline.tasks.ranks * len(NAMES)
    assert {tuple(rest) for _, *rest in found} == {(name, *series) for name, series in NAMES.items()}


# ---- the trace processor ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processor(file: Path) -> Iterator[Any]:
    """The trace in Perfetto's trace processor. Its program: TRACE_PROCESSOR, or on the path, or as the package keeps
    it; it is fetched only if TRACE_PROCESSOR is `fetch`."""
    api = pytest.importorskip("perfetto.trace_processor")
    named = os.environ.get("TRACE_PROCESSOR", "")
    program = None if named == "fetch" else named or shutil.which("trace_processor_shell") or _kept()
    if program is None and named != "fetch":
        pytest.skip("there is no trace_processor_shell here; TRACE_PROCESSOR=fetch lets the package fetch it")
    loaded = api.TraceProcessor(trace=str(file), config=api.TraceProcessorConfig(bin_path=program))
    yield loaded
    loaded.close()


def _kept() -> str | None:
    """The program that the package fetched before."""
    folder = Path.home() / ".local" / "share" / "perfetto" / "prebuilts"
    return next((str(path) for path in sorted(folder.glob("trace_processor_shell*")) if path.suffix != ".tmp"), None)


def rows(processor: Any, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row.__dict__.values()) for row in processor.query(query)]


def test_processor_keeps_every_slice_and_arrow(processor: Any, result: Result, events: list[Event]) -> None:
    assert rows(processor, "select count(*) from slice") == [(sum(event["ph"] == "X" for event in events),)]
    assert rows(processor, "select count(*) from flow") == [(len(result.timeline.tasks.peer),)]
    end = rows(processor, "select max(ts + dur) - min(ts) from slice")
    assert end == [(round(result.timeline.makespan * 1e9),)]
    assert rows(processor, "select name, value from stats where severity = 'error' and value > 0") == []


def test_processor_knows_the_tracks(processor: Any, result: Result) -> None:
    found = rows(
        processor,
        "select process.name as process, thread.name as thread from thread_track join thread using (utid)"
        " join process using (upid) order by pid, tid",
    )
    ranks = range(result.timeline.tasks.ranks)
    assert [process.partition(" (")[0] for process, _ in found] == [f"rank {r}" for r in ranks for _ in TRACKS]
    assert [thread for _, thread in found] == TRACKS * len(ranks)


def test_processor_knows_the_counters(processor: Any, result: Result) -> None:
    found = rows(
        processor,
        "select t.name, count(distinct upid), max(value) from counter c join process_counter_track t"
        " on c.track_id = t.id group by t.name order by t.name",
    )
    names = sorted(f"{name} {one}" for name, series in NAMES.items() for one in series)
    assert [(name, ranks) for name, ranks, _ in found] == [(name, result.timeline.tasks.ranks) for name in names]
    most = {name: value for name, _, value in found}
    assert most["SMs in use compute"] <= result.scenario.cluster.gpu.sms
    assert most["SMs in use exchanges"] == result.scenario.job.overlap.comm_sms
