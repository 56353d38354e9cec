"""A collective that compute hides altogether: no time, no flow on the links."""

from __future__ import annotations

from dataclasses import replace

from simulator.engine.des import simulate as run_events
from simulator.engine.lower import lower
from simulator.engine.tasks import SYNC, Tasks
from simulator.inputs import load_scenario
from simulator.results.simulate import prepare


def test_what_takes_no_time_ends_as_it_starts() -> None:
    whole = lower(*prepare(load_scenario("tiny-1f1b", ["batch.global_batch_size=64"])))
    moved = next(one for one in whole.sequence if one.kind == "collective" and one.nic and len(one.ops) == 1)
    hidden = replace(moved, cumulative=tuple((0.0, 0.0) for _ in moved.cumulative))
    tasks = Tasks(ranks=1, nic=whole.nic, nvlink=whole.nvlink)
    tasks.add(SYNC, moved, (tasks.add(SYNC, hidden, ()),))
    timeline = run_events(tasks)
    assert timeline.start[0] == timeline.end[0] == timeline.start[1] == 0.0
    assert timeline.makespan == moved.alone
