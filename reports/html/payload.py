"""What a page's scripts draw, as compact JSON: actions in full, the kernel sequences inside them packed."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from reports.views import words
from reports.views.actions import ActionSpan
from reports.views.ops import OpSpan
from reports.views.palette import COMMUNICATION, DIRECTIONS, PHASES, WAIT
from simulator.engine.kernel_sequence import KernelSequence
from simulator.engine.tasks import LANES, Timeline

MOST_SEQUENCES = 400_000
"""Beyond this many kernel sequences a page carries actions only, to stay small."""
STREAMS = (
    "compute",
    "all-to-all",
    "sends to the next stage",
    "sends to the previous stage",
    "gradient sync",
    "copies to the host",
    "copies from the host",
)

_ORDER = tuple(PHASES)
COLOURS = [*PHASES.values(), COMMUNICATION, WAIT]
_COMM, _WAIT = len(_ORDER), len(_ORDER) + 1
_DIRECTION = {"F": _ORDER.index("forward"), "B": _ORDER.index("backward"), "W": _ORDER.index("weight")}
_WHAT = {
    "compute": "compute kernels",
    "work": "kernels on the communication stream",
    "notify": "barrier and token counts (notify)",
    "all_to_all": "all-to-all",
    "send": "send to another stage",
    "collective": "collective",
}


def embedded(value: Any) -> Markup:
    """JSON that is safe inside a script element, whatever strings it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def steps_payload(
    name: str, actions: Sequence[ActionSpan], end: float, stages: Sequence[str], timeline: Timeline | None = None
) -> dict[str, Any]:
    """The timeline of one step for the element `name`; with its kernel sequences if a timeline is given."""
    tick = max(1e-7, end / 4e9)
    ranks = 1 + max((action.rank for action in actions), default=0)
    rows: list[dict[str, list[Any]]] = [{"start": [], "end": [], "phase": [], "name": []} for _ in range(ranks)]
    for action in sorted(actions, key=lambda a: (a.rank, a.start)):
        row = rows[action.rank]
        row["start"].append(round(action.start / tick))
        row["end"].append(round(action.end / tick))
        row["phase"].append(_ORDER.index(action.phase))
        row["name"].append(action.text)
    payload: dict[str, Any] = {
        "id": name,
        "end": end,
        "tick": tick,
        "phases": [words.PHASES[phase] for phase in _ORDER],
        "colours": COLOURS,
        "stages": list(stages),
        "rows": rows,
    }
    if timeline is not None and len(timeline.tasks.sequence) <= MOST_SEQUENCES:
        payload["runs"] = _runs(timeline, tick)
    return payload


def _runs(timeline: Timeline, tick: float) -> dict[str, Any]:
    """All kernel sequences in columns, by lane and time: starts, durations [ticks], and the number of their name."""
    tasks = timeline.tasks
    lane = np.asarray(tasks.lane, dtype=np.int64)
    start = np.asarray(timeline.start)
    order = np.lexsort((start, lane))
    names, index = _names(tasks.sequence)
    ticks = np.rint(start[order] / tick).astype("<u4")
    lasts = np.rint(np.asarray(timeline.end)[order] / tick).astype("<u4") - ticks
    packed = ticks.tobytes() + lasts.tobytes() + index[order].astype("<u2").tobytes()
    borders = np.searchsorted(lane[order], np.arange(tasks.ranks * LANES + 1))
    lanes = [
        [
            [kind, int(borders[rank * LANES + kind]), int(borders[rank * LANES + kind + 1])]
            for kind in range(LANES)
            if borders[rank * LANES + kind] < borders[rank * LANES + kind + 1]
        ]
        for rank in range(tasks.ranks)
    ]
    return {
        "count": len(order),
        "tick": tick,
        "packed": b64encode(gzip.compress(packed, 5, mtime=0)).decode("ascii"),
        "lanes": lanes,
        "names": names,
        "streams": STREAMS,
    }


def _names(runs: Sequence[KernelSequence]) -> tuple[list[dict[str, Any]], np.ndarray[Any, np.dtype[np.int64]]]:
    """Distinct names of kernel sequences, and for each the number of its name."""
    known: dict[tuple[str, str, int], int] = {}
    by_run: dict[int, int] = {}
    index = np.empty(len(runs), dtype=np.int64)
    for at, sequence in enumerate(runs):
        number = by_run.get(id(sequence))
        if number is None:
            number = by_run[id(sequence)] = known.setdefault(
                (sequence.name, sequence.kind, len(sequence.ops)), len(known)
            )
        index[at] = number
    names = [
        {"name": name, "what": _WHAT[kind], "ops": ops, "colour": _colour(name, kind)} for name, kind, ops in known
    ]
    return names, index


def _colour(name: str, kind: str) -> int:
    if kind == "notify":
        return _WAIT
    if kind in ("send", "collective"):
        return _COMM
    direction = _DIRECTION.get(name.rpartition(".")[2])
    return _ORDER.index("optimizer") if direction is None else direction


def pair_payload(ops: Sequence[OpSpan], action: ActionSpan) -> dict[str, Any]:
    """All ops of one action on two lanes. Equal ops share one description."""
    described: dict[tuple[Any, ...], int] = {}
    segments: dict[str, int] = {}
    directions = list(DIRECTIONS)
    lanes = []
    for label, stream in (("comp", "compute"), ("comm", "communication")):
        mine = [op for op in ops if op.stream == stream]
        lanes.append(
            {
                "label": label,
                "start": [round(op.start, 9) for op in mine],
                "end": [round(op.end, 9) for op in mine],
                "kind": [directions.index(op.direction) for op in mine],
                "op": [described.setdefault(_described(op), len(described)) for op in mine],
                "segment": [segments.setdefault(op.segment, len(segments)) for op in mine],
            }
        )
    keys = ("name", "what", "bound", "alone", "calibrated")
    return {
        "end": action.seconds,
        "colours": list(DIRECTIONS.values()),
        "lanes": lanes,
        "ops": [dict(zip(keys, values, strict=True)) for values in described],
        "segments": list(segments),
    }


def _described(op: OpSpan) -> tuple[Any, ...]:
    return op.name, words.of_class(op.cls), words.of_bound(op.bound_by), op.alone, op.calibrated


def pair_window(action: ActionSpan) -> Mapping[str, float]:
    """Where the action looked into stands in the step [s]."""
    return {"start": action.start, "end": action.end}
