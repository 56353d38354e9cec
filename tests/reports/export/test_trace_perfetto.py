"""A trace as Perfetto reads it: its own trace processor loads what we write and says what became of it.

`test_trace.py` holds the file against the timeline; here its content arrives, whole, where it is looked at. The
processor is that of v52.0, so what newer ones do with sort indices is not seen.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reports.export.trace import LINKS, THREADS, Selection, process, write_trace
from reports.export.trace_counters import NAMES, nanoseconds
from simulator.engine.tasks import LANES
from simulator.inputs import load_scenario
from simulator.memory import memory_of
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.spec.scenario import Scenario
from tests.reports.export.perfetto_engine import TraceProcessor

Event = dict[str, Any]
TRACKS = [name for _, name in sorted((*THREADS.values(), *LINKS.values())) if "host" not in name]
OF_THREAD = "thread_track on track_id = thread_track.id join thread using (utid) join process using (upid)"
OF_PROCESS = "process_counter_track t on track_id = t.id join process using (upid)"


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
    return events_of(file)


@pytest.fixture(scope="module")
def loaded(file: Path) -> TraceProcessor:
    return TraceProcessor(file.read_bytes())


def events_of(file: Path) -> list[Event]:
    found: list[Event] = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return found


def complaints(loaded: TraceProcessor) -> set[str]:
    """What the importer counts as wrong or lost."""
    wrong = loaded.query("select name from stats where value > 0 and severity in ('error', 'data_loss')")
    return {name for (name,) in wrong}


def slices(loaded: TraceProcessor) -> list[tuple[Any, ...]]:
    return sorted(loaded.query(f"select pid, tid, ts, dur, slice.name as what, category from slice join {OF_THREAD}"))


def slices_written(events: list[Event]) -> list[tuple[Any, ...]]:
    return sorted(
        (e["pid"], e["tid"], round(e["ts"] * 1e3), round(e["dur"] * 1e3), e["name"], e["cat"])
        for e in events
        if e["ph"] == "X"
    )


def test_every_slice_arrives_to_the_nanosecond(loaded: TraceProcessor, result: Result, events: list[Event]) -> None:
    assert complaints(loaded) == set()
    assert slices(loaded) == slices_written(events)
    assert loaded.query("select min(ts), max(ts + dur) from slice") == [(0, nanoseconds(result.timeline.makespan))]


def test_slices_nest_as_ops_in_actions(loaded: TraceProcessor) -> None:
    """Ops on the streams that actions use lie one deep, inside their action; nothing lies deeper."""
    depths = loaded.query(
        "select distinct thread.name as thread, depth, category glob 'action,*' as action"
        f" from slice join {OF_THREAD} order by tid, depth"
    )
    deep = {"compute", "all-to-all"}
    assert set(depths) == {(name, int(name in deep), 0) for name in TRACKS} | {(name, 0, 1) for name in deep}
    outside = loaded.query(
        "select count(*) from slice op join slice action on op.parent_id = action.id"
        " where op.ts < action.ts or op.ts + op.dur > action.ts + action.dur or op.track_id != action.track_id"
    )
    assert outside == [(0,)]


def test_tracks_are_named_and_ordered(loaded: TraceProcessor, result: Result) -> None:
    """Perfetto shows the main thread of a process first, then threads by number."""
    found = loaded.query(
        f"select distinct process.name as process, thread.name as thread, is_main_thread from slice join {OF_THREAD}"
        " order by pid, is_main_thread desc, tid"
    )
    ranks = range(result.timeline.tasks.ranks)
    assert [name.partition(" (")[0] for name, _, _ in found] == [f"rank {rank}" for rank in ranks for _ in TRACKS]
    assert [name for _, name, _ in found] == TRACKS * len(ranks)
    assert {name for _, name, main in found if main} == {"compute"}


def test_counters_keep_their_values(loaded: TraceProcessor, result: Result, events: list[Event]) -> None:
    found = sorted(loaded.query(f"select pid, t.name as counter, ts, value from counter join {OF_PROCESS}"))
    assert found == sorted(
        (e["pid"], f"{e['name']} {series}", round(e["ts"] * 1e3), value)
        for e in events
        if e["ph"] == "C"
        for series, value in e["args"].items()
    )
    most = {(pid, name): max(v for p, n, _, v in found if (p, n) == (pid, name)) for pid, name, _, _ in found}
    ranks = memory_of(result.built, result.schedule, result.timeline).ranks
    names = [f"{name} {one}" for name, series in NAMES.items() for one in series]
    assert set(most) == {(process(rank.rank), name) for rank in ranks for name in names}
    for rank in ranks:
        assert most[process(rank.rank), "memory in use bytes"] == pytest.approx(rank.peak, abs=1.0)
        assert most[process(rank.rank), "SMs in use compute"] == result.scenario.cluster.gpu.sms
        assert most[process(rank.rank), "SMs in use all_to_alls"] == result.scenario.job.overlap.comm_sms


def test_arrows_join_sends_with_what_waits_for_them(loaded: TraceProcessor, result: Result) -> None:
    timeline, tasks = result.timeline, result.timeline.tasks
    first = dict[int, int]()
    for task, before in enumerate(tasks.preds):
        first |= {send: task for send in before if send in tasks.peer and send not in first}

    def at(task: int) -> tuple[int, int, str]:
        start, ops = nanoseconds(timeline.start[task]), tasks.sequence[task].ops
        return process(tasks.lane[task] // LANES), start, ops[0].op.name

    ends = "(select slice.id as id, pid, ts, slice.name as what from slice join " + OF_THREAD + ")"
    found = loaded.query(
        "select a.pid as p, a.ts as t, a.what as w, b.pid as q, b.ts as u, b.what as x"
        f" from flow join {ends} a on slice_out = a.id join {ends} b on slice_in = b.id"
    )
    assert sorted(found) == sorted((*at(send), *at(task)) for send, task in first.items())
    assert len(found) == len(tasks.peer) > 0


@pytest.mark.long
def test_ranks_and_window_of_a_large_step(v3: Scenario, tmp_path: Path) -> None:
    """Two neighbours of DeepSeek-V3's pipeline for half a second, that begins and ends amid actions."""
    path, chosen = tmp_path / "part.json.gz", Selection.parse("0,1", "5:5.5", v3)
    write_trace(simulate(v3), path, chosen)
    loaded = TraceProcessor(path.read_bytes())
    assert complaints(loaded) == set()
    found = slices(loaded)
    assert found == slices_written(events_of(path))
    begin, end = nanoseconds(chosen.start), nanoseconds(chosen.end)
    assert {pid for pid, *_ in found} == {process(0), process(1)}
    assert all(ts + dur >= begin and ts <= end for _, _, ts, dur, _, _ in found)
    assert loaded.query("select min(ts), max(ts) <= " + str(end) + " from counter") == [(begin, 1)]
    arrows = loaded.query("select count(*) from flow")
    assert arrows == [(sum(event["ph"] == "s" for event in events_of(path)),)] != [(0,)]


def test_nanoseconds_last_for_hours() -> None:
    late = range(10**13, 10**13 + 5000)
    text = ",".join(f'{{"ph":"X","pid":1,"tid":1,"name":"op","ts":{at / 1e3:.3f},"dur":0.001}}' for at in late)
    loaded = TraceProcessor(f'{{"traceEvents":[{text}]}}'.encode())
    assert loaded.query("select ts, dur from slice order by ts") == [(at, 1) for at in late]


# ---- the processor notices ----------------------------------------------------------------------------------------


def overlap(events: list[Event]) -> None:
    op = next(e for e in events if e["ph"] == "X" and e["cat"] == "forward")
    events.append({**op, "ts": op["ts"] + op["dur"] / 2})


def arrow_twice(events: list[Event]) -> None:
    events.append(next(e for e in events if e["ph"] == "s"))


def arrow_from_nowhere(events: list[Event]) -> None:
    arrow = next(e for e in events if e["ph"] == "s")
    events.append({**arrow, "id": -1, "ts": 0.0})


def counter_without_a_number(events: list[Event]) -> None:
    next(e for e in events if e["ph"] == "C")["args"] = {"bytes": None}


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (overlap, "slice_drop_overlapping_complete_event"),
        (arrow_twice, "flow_duplicate_id"),
        (arrow_from_nowhere, "flow_no_enclosing_slice"),
        (counter_without_a_number, "json_parser_failure"),
    ],
)
def test_a_spoilt_trace_is_noticed(spoil: Callable[[list[Event]], None], name: str, file: Path) -> None:
    events = events_of(file)
    spoil(events)
    assert complaints(TraceProcessor(json.dumps({"traceEvents": events}).encode())) == {name}


def test_what_is_no_trace_or_no_query_is_an_error(loaded: TraceProcessor) -> None:
    with pytest.raises(ValueError, match="JSON"):
        TraceProcessor(b'{"traceEvents":[{"ph":"X",]}')
    with pytest.raises(ValueError, match="no such table"):
        loaded.query("select 1 from nowhere")


def test_a_serving_step_arrives_with_its_stages_around_its_ops(tmp_path: Path) -> None:
    step = simulate(load_scenario("deepseek-v3-decode-ep128"))
    write_trace(step, tmp_path / "decode.json.gz")
    loaded = TraceProcessor((tmp_path / "decode.json.gz").read_bytes())
    assert complaints(loaded) == set()
    depths = dict(loaded.query("select category, max(depth) from slice where category != 'link' group by category"))
    assert depths["action,forward"] == 0
    assert depths["stage"] == 1
    assert depths["forward"] == depths["communication"] == 2
    stages = {name for (name,) in loaded.query("select distinct name from slice where category = 'stage'")}
    assert {"projections 0", "experts 1", "dispatch 0", "combine 1", "shared experts 0"} <= stages
    waited = loaded.query("select count(*) from args where key = 'args.waited_for'")
    assert int(next(iter(waited))[0]) > 200
