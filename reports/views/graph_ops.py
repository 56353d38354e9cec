"""The op graph of a block as figures and pages draw it: ops with their place in time, and who waits for whom."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from reports.views import words
from reports.views.ops import OpSpan
from simulator.engine.op_graph import END, START, ops_in
from simulator.studies.block_graph import BlockGraph

ACTIONS = {
    "F": "forward",
    "B": "backward",
    "I": "backward, gradients of the inputs",
    "W": "backward, gradients of the weights",
}
WAITS = {
    "data": "needs the data of",
    "issue": "is issued behind",
}
"""Kinds of edges between streams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOp:
    """One op: where it ran, whether it is critical, how much longer it could last [s], and the ops of other streams
    that it waits for, each with the kind of the wait."""

    node: str
    span: OpSpan
    critical: bool
    slack: float
    waits: tuple[tuple[str, str], ...]


def graph_ops(shown: BlockGraph) -> list[GraphOp]:
    """All ops in the order of their start."""
    found = [_op(shown, node, data) for node, data in ops_in(shown.graph).items()]
    return sorted(found, key=lambda one: (one.span.start, one.span.stream, one.span.end))


def _op(shown: BlockGraph, node: str, data: dict[str, Any]) -> GraphOp:
    last = data["segment"].rpartition(".")[2]
    direction = "N" if data["synchronises"] else last if last in ("F", "B", "W") else "B"
    span = OpSpan(
        name=data["op"],
        cls=data["cls"],
        segment=data["segment"],
        stream=data["stream"],
        direction=direction,
        start=data["start"],
        end=data["end"],
        kernels=data["kernels"],
        bound_by=data["bound_by"],
        calibrated=data["calibrated"],
        alone=data["alone"],
        flops=data["flops"],
        bytes=data["link_bytes"],
    )
    edges = {before: shown.graph.edges[before, node]["kind"] for before in shown.graph.predecessors(node)}
    waits = tuple((before, kind) for before, kind in edges.items() if kind in WAITS)
    return GraphOp(node=node, span=span, critical=data["critical"], slack=data["slack"], waits=waits)


def title_of(shown: BlockGraph) -> str:
    """`MoE layer, a forward overlapped with a backward`."""
    block = words.of_block(shown.block)
    name = block[0].upper() + block[1:]
    if shown.action != "pair":
        return f"{name}, {ACTIONS[shown.action]}"
    return f"{name}, a forward " + ("overlapped with a backward" if shown.overlapped else "and then a backward")


def path_by_class(shown: BlockGraph) -> list[tuple[str, float, int]]:
    """Kernel classes on the critical path: class, time on it [s], kernels; longest first."""
    seconds: dict[str, float] = defaultdict(float)
    kernels: dict[str, int] = defaultdict(int)
    for node in shown.path:
        data = shown.graph.nodes[node]
        seconds[data["cls"]] += data["seconds"]
        kernels[data["cls"]] += data["kernels"]
    return [(cls, seconds[cls], kernels[cls]) for cls in sorted(seconds, key=lambda cls: (-seconds[cls], cls))]


def host_seconds(shown: BlockGraph) -> float:
    """Time until the host has issued the first op of the critical path [s]."""
    return float(shown.graph.nodes[shown.path[0]]["start"])


def sentence(shown: BlockGraph) -> str:
    """How long the action takes, and which streams the critical path is made of."""
    spans = [shown.graph.nodes[node] for node in shown.path]
    compute = sum(data["seconds"] for data in spans if data["stream"] == "compute")
    other, host = shown.seconds - compute - host_seconds(shown), host_seconds(shown)
    parts = [("compute", compute), ("communication", other), ("the host's issue", host)]
    path = " and ".join(f"{words.seconds(value)} of {name}" for name, value in parts if value > 1e-9 * shown.seconds)
    moving = sum(d["seconds"] for d in ops_in(shown.graph).values() if d["stream"] == "communication")
    hidden = moving - max(0.0, other)
    rest = f" {words.seconds(hidden)} of communication overlap with it." if hidden > 1e-9 * shown.seconds else ""
    return f"It takes {words.seconds(shown.seconds)}. The critical path is {path}.{rest}"


def as_dict(shown: BlockGraph) -> dict[str, Any]:
    """For `--json`: the ops with all that is known of them, and the edges between them."""
    edges = shown.graph.edges(data=True)
    return {
        "action": shown.action,
        "seconds": shown.seconds,
        "critical_path": list(shown.path),
        "ops": [{"id": node, **data} for node, data in ops_in(shown.graph).items()],
        "edges": [
            {"from": one, "to": after, "kind": data["kind"]}
            for one, after, data in edges
            if one != START and after != END
        ],
        "host": {after: data["seconds"] for one, after, data in edges if one == START and data["kind"] == "host"},
    }
