"""The page of a block's op graph: what decides its time, the lanes to zoom into, and every op."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.html.page import write
from reports.html.payload import embedded
from reports.views import words
from reports.views.graph_ops import WAITS, GraphOp, graph_ops, host_seconds, path_by_class, sentence, title_of
from reports.views.palette import DIRECTIONS
from simulator.studies.block_graph import BlockGraph

_LANES = (("comp", "compute"), ("comm", "communication"))
_LEGEND = {
    "F": "forward",
    "B": "backward for input",
    "W": "backward for weights",
    "N": "barriers, counts, waits",
}


def write_graphs(graphs: Sequence[BlockGraph], name: str, file: Path) -> None:
    """Write the page of the op graphs of one block of the job `name`."""
    block = words.of_block(graphs[0].block)
    shown = [_shown(one, number) for number, one in enumerate(graphs)]
    context = {
        "title": f"foretrain: {block} of {name}",
        "name": name,
        "block": block,
        "graphs": shown,
        "data": embedded({"steps": [], "pair": None, "graphs": [one.pop("payload") for one in shown]}),
    }
    write("graph.html", context, file)


def _shown(shown: BlockGraph, number: int) -> dict[str, Any]:
    """What the template says of one action, and what the script draws of it."""
    ops = graph_ops(shown)
    used = {one.span.direction for one in ops}
    return {
        "id": f"graph-{number}",
        "title": title_of(shown),
        "answer": sentence(shown),
        "seconds": shown.seconds,
        "legend": [(text, DIRECTIONS[key]) for key, text in _LEGEND.items() if key in used],
        "classes": path_by_class(shown),
        "host": host_seconds(shown),
        "ops": sorted(ops, key=lambda one: -one.span.seconds),
        "payload": payload(shown, ops, f"graph-{number}"),
    }


def payload(shown: BlockGraph, ops: Sequence[GraphOp], name: str) -> dict[str, Any]:
    """The graph for the element `name`: its lanes, the lines between them, and what each op is."""
    number = {one.node: at for at, one in enumerate(ops)}
    lane_of = {stream: at for at, (_, stream) in enumerate(_LANES)}
    directions = list(DIRECTIONS)

    def point(node: str, *, end: bool) -> tuple[int, float]:
        span = ops[number[node]].span
        return lane_of[span.stream], round(span.end if end else span.start, 9)

    return {
        "id": name,
        "end": shown.seconds,
        "colours": list(DIRECTIONS.values()),
        "lanes": [
            {
                "label": label,
                "start": [round(one.span.start, 9) for one in mine],
                "end": [round(one.span.end, 9) for one in mine],
                "kind": [directions.index(one.span.direction) for one in mine],
                "op": [number[one.node] for one in mine],
            }
            for label, mine in ((label, [o for o in ops if o.span.stream == stream]) for label, stream in _LANES)
        ],
        "ops": [_described(one) for one in ops],
        "waits": [[point(node, end=True), point(one.node, end=False)] for one in ops for node, _ in one.waits],
        "path": [point(node, end=end) for node in shown.path for end in (False, True)],
    }


def _described(one: GraphOp) -> dict[str, Any]:
    span = one.span
    return {
        "name": span.name,
        "what": words.of_class(span.cls),
        "bound": words.of_bound(span.bound_by),
        "segment": span.segment,
        "kernels": span.kernels,
        "alone": span.alone,
        "rate": round(span.flops / span.seconds / 1e12) if span.flops and span.seconds else 0,
        "critical": one.critical,
        "slack": one.slack,
        "waits": [f"{WAITS[kind]}: {node}" for node, kind in one.waits],
        "calibrated": span.calibrated,
    }
