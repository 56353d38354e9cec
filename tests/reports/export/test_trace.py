"""A trace read back: what it holds is the timeline, in a form that Perfetto can nest and order."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from reports.export import trace_counters
from reports.export.trace import LINKS, THREADS, Selection, process, thread, write_trace
from simulator.engine.tasks import COMM, COMPUTE, LANES, SYNC
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.memory import memory_of
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.schedule import stages_on

Event = dict[str, Any]
NS = 1e-3  # of a microsecond
TINY = load_scenario("tiny-dualpipe")


@pytest.fixture(scope="module")
def result() -> Result:
    """A small step in which kernels overlap with all-to-alls and change their speed."""
    return simulate(load_scenario("tiny-dualpipe", ["batch.global_batch_size=160"]))


def read(path: Path) -> list[Event]:
    """The events of a trace file."""
    data = path.read_bytes()
    events: list[Event] = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["traceEvents"]
    return events


@pytest.fixture(scope="module")
def events(result: Result, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """The whole trace of the step."""
    path = tmp_path_factory.mktemp("trace") / "step.json.gz"
    write_trace(result, path)
    return read(path)


def by_track(events: list[Event]) -> dict[tuple[int, int], list[Event]]:
    """Slices by rank and place of the track, in the order of the file."""
    places = [place for place, _ in (*THREADS.values(), *LINKS.values())]
    tracks = {(process(rank), thread(rank, place)): (rank, place) for rank in range(4) for place in places}
    found: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[tracks[event["pid"], event["tid"]]].append(event)
    return found


def counter(events: list[Event], name: str, rank: int) -> list[tuple[float, dict[str, float]]]:
    """Samples of a counter of a rank: time [s], values."""
    return [
        (e["ts"] * 1e-6, e["args"])
        for e in events
        if e["ph"] == "C" and e["name"] == name and e["pid"] == process(rank)
    ]


def is_action(event: Event) -> bool:
    return str(event["cat"]).startswith("action")


def test_every_rank_is_a_process_with_named_and_ordered_threads(result: Result, events: list[Event]) -> None:
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    held = stages_on(result.schedule)
    assert sorted(names) == [process(rank) for rank in range(4)]
    assert names[process(0)] == f"rank 0 (stages {held[0][0]}, {held[0][1]})"
    threads = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
    shown = sum("host" not in name for _, name in THREADS.values()) + len(LINKS)  # nothing is copied to the host here
    assert len(threads) == 4 * shown
    for kind, number in (("process", "pid"), ("thread", "tid")):
        order = {e[number]: e["args"]["sort_index"] for e in events if e["name"] == f"{kind}_sort_index"}
        first = [order[one] for one in sorted(order)][:shown]
        assert first == sorted(set(first))
        assert first[0] > 0


def test_slices_come_in_order_and_nest(events: list[Event]) -> None:
    """On each thread times never go back, ops lie inside their action, and neighbours do not overlap."""
    for (_, place), mine in by_track(events).items():
        starts = [event["ts"] for event in mine]
        assert starts == sorted(starts)
        outer: Event | None = None
        last = 0.0
        for event in mine:
            begin, end = event["ts"], event["ts"] + event["dur"]
            assert event["dur"] >= 0
            if is_action(event):
                assert outer is None or begin >= outer["ts"] + outer["dur"] - NS / 2
                outer = event
                continue
            assert begin >= last - NS / 2
            last = end
            if outer is not None and place in (THREADS[COMPUTE][0], THREADS[COMM][0]):
                assert outer["ts"] - NS / 2 <= begin
                assert end <= outer["ts"] + outer["dur"] + NS / 2


@pytest.mark.parametrize("stream", sorted(THREADS))
def test_times_add_up_to_those_of_the_timeline(stream: int, result: Result, events: list[Event]) -> None:
    timeline = result.timeline
    for rank in range(timeline.tasks.ranks):
        tasks = [task for task, lane in enumerate(timeline.tasks.lane) if lane == rank * LANES + stream]
        mine = [e for e in by_track(events)[rank, THREADS[stream][0]] if not is_action(e)]
        expected = sum(timeline.end[task] - timeline.start[task] for task in tasks)
        assert sum(e["dur"] for e in mine) * 1e-6 == pytest.approx(expected, rel=1e-9, abs=1e-9 * len(mine))
        assert len(mine) == sum(len(timeline.tasks.sequence[task].ops) for task in tasks)


def test_last_event_ends_with_the_step(result: Result, events: list[Event]) -> None:
    end = max(event["ts"] + event["dur"] for event in events if event["ph"] == "X")
    assert end * 1e-6 == pytest.approx(result.metrics["step_time_s"], abs=1e-9)


def test_every_action_of_the_schedule_has_its_slice(result: Result, events: list[Event]) -> None:
    for rank, row in enumerate(result.schedule.rows):
        mine = [e["name"] for e in by_track(events)[rank, THREADS[COMPUTE][0]] if is_action(e)]
        assert mine == [*(str(step) for step in row), "optimizer"]


def test_ops_say_whose_work_they_do(result: Result, events: list[Event]) -> None:
    """In a pair, forward ops carry the forward's microbatch and backward ops the backward's."""
    for (_, place), mine in by_track(events).items():
        inside = ""
        for event in mine:
            if is_action(event):
                inside = event["name"]
            elif inside and inside != "optimizer" and place == THREADS[COMPUTE][0]:
                args = event["args"]
                halves = inside.strip("()").split(";")
                half = halves[0] if event["cat"] == "forward" else halves[-1]
                assert half.startswith(str(args["stage"]))
                assert half.endswith(str(args["microbatch"]))
                assert args["bound_by"]


def test_arrows_lead_from_sends_to_those_who_wait(result: Result, events: list[Event]) -> None:
    leave = {event["id"]: event for event in events if event["ph"] == "s"}
    arrive = {event["id"]: event for event in events if event["ph"] == "f"}
    assert leave
    assert set(leave) == set(arrive) == set(result.timeline.tasks.peer)
    starts = {(e["pid"], e["tid"], e["ts"]) for e in events if e["ph"] == "X"}
    for send, event in leave.items():
        assert arrive[send]["pid"] == process(result.timeline.tasks.peer[send]) != event["pid"]
        assert arrive[send]["ts"] > event["ts"]
        assert (event["pid"], event["tid"], event["ts"]) in starts
        assert (arrive[send]["pid"], arrive[send]["tid"], arrive[send]["ts"]) in starts


def test_links_carry_the_bytes_of_the_all_to_alls(result: Result, events: list[Event]) -> None:
    tasks = result.timeline.tasks
    for rank in range(tasks.ranks):
        mine = [run for lane, run in zip(tasks.lane, tasks.sequence, strict=True) if lane == rank * LANES + COMM]
        for link, (place, _) in LINKS.items():
            moved = sum(e["args"]["bytes"] for e in by_track(events).get((rank, place), []))
            assert moved == pytest.approx(sum(getattr(run, link) for run in mine), abs=len(mine))


def test_gradient_sync_is_there(events: list[Event]) -> None:
    names = {e["name"] for e in by_track(events)[0, THREADS[SYNC][0]]}
    assert any(name.startswith("grad.") for name in names)


def test_same_result_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json.gz", tmp_path / "b.json.gz"
    assert write_trace(result, first) == write_trace(result, second)
    assert first.read_bytes() == second.read_bytes()


def test_a_name_that_ends_in_json_is_not_compressed(result: Result, events: list[Event], tmp_path: Path) -> None:
    write_trace(result, tmp_path / "step.json")
    assert read(tmp_path / "step.json") == events


def test_selection_of_ranks_and_window(result: Result, events: list[Event], tmp_path: Path) -> None:
    step = result.metrics["step_time_s"]
    chosen = Selection(ranks=(1, 2), start=0.4 * step, end=0.5 * step)
    count = write_trace(result, tmp_path / "part.json", chosen)
    part = [e for e in read(tmp_path / "part.json") if e["ph"] == "X"]
    ops = [e for e in part if not is_action(e) and e["cat"] != "link"]
    expected = [
        e
        for e in events
        if e["ph"] == "X" and e["pid"] in (process(1), process(2)) and not is_action(e) and e["cat"] != "link"
        if (e["ts"] + e["dur"]) * 1e-6 >= chosen.start and e["ts"] * 1e-6 <= chosen.end
    ]
    assert len(ops) == count
    assert ops == expected
    assert 0 < len(ops) < len(events)


@pytest.mark.parametrize(
    ("ranks", "window", "meant"),
    [
        (None, None, ((0, 1, 2, 3), 0.0, float("inf"))),
        ("0,2-3", None, ((0, 2, 3), 0.0, float("inf"))),
        ("3, 1", "0.001:0.002", ((1, 3), 0.001, 0.002)),
        (None, ":0.01", ((0, 1, 2, 3), 0.0, 0.01)),
        (None, "0.01:", ((0, 1, 2, 3), 0.01, float("inf"))),
    ],
)
def test_selection_is_parsed(ranks: str | None, window: str | None, meant: object) -> None:
    found = Selection.parse(ranks, window, TINY)
    assert (found.ranks, found.start, found.end) == meant


@pytest.mark.parametrize(
    ("ranks", "window"),
    [("4", None), ("a", None), ("", None), ("1-", None), (None, "1"), (None, ""), (None, "nan:1"), (None, "2:1")],
)
def test_selection_that_means_nothing_is_refused(ranks: str | None, window: str | None) -> None:
    with pytest.raises(InputError, match="--"):
        Selection.parse(ranks, window, TINY)


def test_a_window_behind_the_step_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the step ends after"):
        write_trace(result, tmp_path / "late.json", Selection.parse(None, "9:", TINY))
    assert list(tmp_path.iterdir()) == []


# ---- counters ---------------------------------------------------------------------------------------------------


def test_sms_in_use_follow_the_streams(result: Result, events: list[Event]) -> None:
    """In each stretch: all SMs but the all-to-all's or collective's while a kernel computes, theirs while one runs."""
    timeline, tasks = result.timeline, result.timeline.tasks
    total, held = result.scenario.cluster.gpu.sms, result.scenario.job.overlap.comm_sms
    collectives: set[int] = set()
    for rank in range(tasks.ranks):
        spans: dict[int, list[tuple[float, float]]] = {COMPUTE: [], COMM: [], SYNC: []}
        for task, lane in enumerate(tasks.lane):
            stream = lane - rank * LANES
            if stream in (COMPUTE, SYNC) or (stream == COMM and tasks.sequence[task].kind in ("notify", "all_to_all")):
                spans[stream].append((timeline.start[task], timeline.end[task]))
        samples = counter(events, "SMs in use", rank)
        assert samples[0][0] == pytest.approx(0.0, abs=1e-9)
        assert samples[-1][1] == {"compute": 0, "all_to_alls": 0, "collectives": 0}
        for (begin, values), (end, _) in pairwise(samples):
            middle = (begin + end) / 2
            busy = {stream: any(a <= middle < b for a, b in found) for stream, found in spans.items()}
            collectives.add(values["collectives"])
            assert values["all_to_alls"] == (held if busy[COMM] else 0)
            assert (values["collectives"] > 0) == busy[SYNC]
            left = total - (values["all_to_alls"] or values["collectives"])
            assert values["compute"] == (left if busy[COMPUTE] else 0)
    assert collectives == {0, 2, 16}  # one NIC's channels, and those of a node


def test_memory_in_use_peaks_where_the_forecast_does(result: Result, events: list[Event]) -> None:
    memory = memory_of(result.built, result.schedule, result.timeline)
    for rank in memory.ranks:
        samples = counter(events, "memory in use", rank.rank)
        assert max(values["bytes"] for _, values in samples) == pytest.approx(rank.peak, abs=1.0)
        assert samples[-1][1] == min((values for _, values in samples), key=lambda values: values["bytes"])


def test_counters_of_a_window_begin_with_what_held_before() -> None:
    samples = [(0, (1,)), (10, (2,)), (20, (3,)), (30, (4,))]
    assert list(trace_counters.clipped(samples, 0, float("inf"))) == samples
    assert list(trace_counters.clipped(samples, 12, 25)) == [(12, (2,)), (20, (3,))]
    assert list(trace_counters.clipped(samples, 20, 20)) == [(20, (3,))]
    assert list(trace_counters.clipped(samples, 35, 40)) == [(35, (4,))]
    assert list(trace_counters.clipped(samples, 22, 25)) == [(22, (3,))]


def test_a_file_that_cannot_be_written_leaves_nothing(result: Result, tmp_path: Path) -> None:
    target = tmp_path / "taken"
    target.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_trace(result, target)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
