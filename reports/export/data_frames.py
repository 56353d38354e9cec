"""Tables of a result for pandas: data frames, and the same as CSV and Parquet files.

Columns carry their unit in their name. Parquet is written where pyarrow is installed (the extra `parquet`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from reports.export.files import replacing
from reports.views.actions import ActionSpan, action_list, representative
from reports.views.idle import idle_by_cause
from reports.views.ops import ops_of
from reports.views.stages import stage_spans, waits
from simulator.engine.tasks import LANES
from simulator.results.result import Result

STREAMS = ("compute", "all_to_all", "send_next", "send_previous", "sync", "to_host", "from_host")


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """All tables of a result by name: metrics, ranks, classes, actions, timeline, ops, idle; of a serving step stages
    and waits in place of the last."""
    actions = action_list(result.timeline)
    chosen = representative(actions)
    return {
        "metrics": pd.DataFrame({"metric": list(result.metrics), "value": list(result.metrics.values())}),
        "ranks": pd.DataFrame(
            [
                {
                    "rank": rank.rank,
                    **{f"{phase}_s": seconds for phase, seconds in rank.phases.items()},
                    "exposed_comm_s": rank.exposed_comm,
                    "compute_busy_s": rank.compute_busy,
                }
                for rank in result.ranks
            ]
        ),
        "classes": pd.DataFrame([asdict(item) for item in result.classes]),
        "actions": pd.DataFrame(
            [
                {
                    "rank": a.rank,
                    "action": a.text,
                    "phase": a.phase,
                    "stage": a.stages[0] if a.stages else -1,
                    "microbatch": a.microbatches[0] if a.microbatches else -1,
                    "start_s": a.start,
                    "end_s": a.end,
                }
                for a in actions
            ]
        ),
        "timeline": timeline_table(result),
        "ops": pd.DataFrame(
            [{"action": chosen.text, "rank": chosen.rank, **asdict(op)} for op in ops_of(result.timeline, chosen)]
        ).rename(
            columns={"start": "start_s", "end": "end_s", "alone": "alone_s", "flops": "work_flop", "bytes": "work_b"}
        ),
        **_idle(result, actions),
    }


def _idle(result: Result, actions: Sequence[ActionSpan]) -> dict[str, pd.DataFrame]:
    """Why compute idles, by cause; of a serving step its stages, and who waits for whom."""
    if not result.scenario.workload.serves:
        causes = idle_by_cause(result, actions).causes
        return {"idle": pd.DataFrame([{"cause": cause, "seconds": s} for cause, s in causes.items()])}
    spans = stage_spans(result)
    stages = [{"stage": span.segment, **asdict(span)} for span in spans]
    return {
        "stages": pd.DataFrame(stages)
        .drop(columns=["segment", "task"])
        .rename(columns={"start": "start_s", "end": "end_s"}),
        "waits": pd.DataFrame([asdict(one) for one in waits(result, spans)]),
    }


def timeline_table(result: Result) -> pd.DataFrame:
    """Every kernel sequence of every stream, one a row."""
    tasks = result.timeline.tasks
    lane = np.asarray(tasks.lane, dtype=np.int64)
    action = np.full(len(lane), -1)
    for number, one in enumerate(tasks.actions):
        action[one.first : one.last] = number
    names = pd.Categorical([sequence.name for sequence in tasks.sequence])
    return pd.DataFrame(
        {
            "rank": lane // LANES,
            "stream": pd.Categorical(np.asarray(STREAMS)[lane % LANES], categories=STREAMS),
            "kernel_sequence": names,
            "kind": pd.Categorical([sequence.kind for sequence in tasks.sequence]),
            "action": action,
            "start_s": result.timeline.start,
            "end_s": result.timeline.end,
        }
    )


def write_tables(result: Result, folder: Path) -> list[Path]:
    """Write every table into `folder` as CSV, and as Parquet where that can be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, frame in tables(result).items():
        file = folder / f"{name}.csv"
        with replacing(file) as out:
            out.write(frame.to_csv(index=False).encode("utf-8"))
        written.append(file)
        if find_spec("pyarrow") is not None:
            file = folder / f"{name}.parquet"
            with replacing(file) as out:
                frame.to_parquet(out, index=False)
            written.append(file)
    return written
