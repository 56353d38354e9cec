"""The quick engine: one pass over the tasks, each starts when its stream is free and what it waits for has ended.

Nothing is shared: every run takes its time alone. Where nothing *is* shared this equals the discrete-event engine to
the last bit, and it is the oracle that engine is tested with.
"""

from __future__ import annotations

from simulator.engine.tasks import LANES, Tasks, Timeline


def longest_path(tasks: Tasks) -> Timeline:
    """Start and end of every task when each kernel sequence takes its time alone."""
    free = [0.0] * (tasks.ranks * LANES)
    start: list[float] = []
    end: list[float] = []
    release = tasks.release
    for lane, sequence, preds in zip(tasks.lane, tasks.sequence, tasks.preds, strict=True):
        begun = free[lane]
        if release:
            begun = max(begun, release.get(len(start), 0.0))
        for pred in preds:
            ended = end[pred]
            if ended > begun:  # faster than max() here, and this is the inner loop
                begun = ended
        start.append(begun)
        begun += sequence.cumulative[0][-1]
        end.append(begun)
        free[lane] = begun
    return Timeline(tasks=tasks, start=start, end=end, changes={})
