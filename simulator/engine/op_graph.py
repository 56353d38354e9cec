"""The op graph of one program, as it was simulated: a networkx graph whose longest path is the program's time.

Nodes are ops. An edge says that one op starts only when another has ended: the one before it on its stream, one of
another stream whose result it needs, or the compute that was issued before it (a dispatch or combine is issued behind
that, needed or not; see `engine.program`). `start` and `end` stand for the action's beginning and end. An edge weighs
as much as the op it leaves, one from `start` as much as the host takes to issue what it leads to, so that the longest
path from `start` to `end` is the time of the action: each op starts as soon as the last thing it waits for is over.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import networkx as nx

from simulator.engine.host import issuing, releases
from simulator.engine.kernel_sequence import ALONE, Priced
from simulator.engine.lower import PricedModel, append, is_issued
from simulator.engine.program import Program
from simulator.engine.tasks import COMM, COMPUTE, LANES, Tasks, Timeline
from simulator.ops import Notify, Wait

START, END = "start", "end"
STREAMS = {COMPUTE: "compute", COMM: "communication"}

EdgeKind = Literal["stream", "data", "issue", "host", "start", "end"]
"""Why an op waits: in order on its stream; for data of another stream; an all-to-all for the compute issued before it;
for the host; for nothing, at the start. `end`: nothing comes after it."""


def tasks_alone(built: PricedModel, program: Program) -> Tasks:
    """The tasks of a program alone on one rank, for either engine."""
    node = built.scenario.cluster.node
    tasks = Tasks(ranks=1, nic=node.nic.bandwidth, nvlink=node.nvlink.bandwidth)
    append(tasks, 0, program, (), {})
    issue = issuing(built.scenario.stack) if is_issued(built.scenario) else None
    if issue is not None:
        tasks.release.update(enumerate(releases(program, issue)[0]))
    return tasks


def op_graph(timeline: Timeline) -> nx.DiGraph[str]:
    """The op graph of a timeline of one rank's program.

    Of a node: `op`, `cls`, `part`, `segment`, `stream`, `kernels`, `bound_by`, `calibrated`, `flops` [FLOP],
    `link_bytes` [B] that it puts on links, when it
    ran (`start`, `end`, `seconds`, `alone`: with nothing concurrent [s]), whether it is on the critical path
    (`critical`), and by how much it could last longer, all else unchanged, before the action does (`slack` [s]).
    Of an edge: `kind` (`EdgeKind`), `seconds`.
    """
    graph: nx.DiGraph[str] = nx.DiGraph(seconds=timeline.makespan)
    graph.add_node(START, seconds=0.0)
    members = [_add_ops(graph, timeline, task) for task in range(len(timeline.tasks.sequence))]
    last_on: dict[int, int] = {}
    for task, names in enumerate(members):
        lane = timeline.tasks.lane[task]
        for one, following in pairwise(names):
            _edge(graph, one, following, "stream")
        for pred in timeline.tasks.preds[task]:
            _edge(graph, members[pred][-1], names[0], _why(timeline.tasks, pred, task))
        if lane in last_on:
            _edge(graph, members[last_on[lane]][-1], names[0], "stream")
        last_on[lane] = task
        release = timeline.tasks.release.get(task, 0.0)
        if release or not graph.in_degree(names[0]):
            graph.add_edge(START, names[0], kind="host" if release else "start", seconds=release)
    for name in [name for name in graph if not graph.out_degree(name)]:
        _edge(graph, name, END, "end")
    graph.nodes[END]["seconds"] = 0.0
    _mark(graph)
    return graph


def critical_path(graph: nx.DiGraph[str]) -> list[str]:
    """The ops of the longest path from `start` to `end`, in order."""
    path: list[str] = nx.dag_longest_path(graph, weight="seconds")
    return [name for name in path if name not in (START, END)]


def ops_in(graph: nx.DiGraph[str]) -> dict[str, dict[str, Any]]:
    """The nodes that are ops, with their attributes, in program order."""
    return {name: data for name, data in graph.nodes(data=True) if name not in (START, END)}


def _add_ops(graph: nx.DiGraph[str], timeline: Timeline, task: int) -> list[str]:
    """Add the ops of one task; returns their nodes."""
    tasks = timeline.tasks
    sequence, names = tasks.sequence[task], []
    stream = STREAMS[tasks.lane[task] % LANES]
    for priced, (start, end) in zip(sequence.ops, timeline.op_spans(task), strict=True):
        name = _free_name(graph, priced.op.name)
        graph.add_node(name, **_facts(priced), segment=sequence.name, stream=stream, start=start, end=end)
        graph.nodes[name]["seconds"] = end - start
        names.append(name)
    return names


def _free_name(graph: nx.DiGraph[str], name: str) -> str:
    """The name, numbered where forward and backward have an op of that name each."""
    number, free = 2, name
    while free in graph:
        number, free = number + 1, f"{name}#{number}"
    return free


def _facts(priced: Priced) -> dict[str, Any]:
    op = priced.op
    return {
        "op": op.name,
        "cls": op.cls,
        "synchronises": isinstance(op.work, (Notify, Wait)),
        "part": op.part,
        "kernels": op.count,
        "bound_by": priced.cost.bound_by,
        "calibrated": priced.cost.calibrated,
        "flops": op.flops,
        "link_bytes": priced.cost.nic_bytes + priced.cost.nvlink_bytes,
        "alone": priced.durations[ALONE],
    }


def _why(tasks: Tasks, pred: int, task: int) -> EdgeKind:
    """Why a task waits for one of another stream. A collective is between the compute kernels whose data it moves."""
    sequence = tasks.sequence[task]
    named = any(priced.op.name in sequence.ops[0].op.after for priced in tasks.sequence[pred].ops)
    issued = tasks.lane[task] % LANES == COMM and sequence.kind != "collective" and not named
    return "issue" if issued else "data"


def _edge(graph: nx.DiGraph[str], one: str, following: str, kind: EdgeKind) -> None:
    graph.add_edge(one, following, kind=kind, seconds=graph.nodes[one]["seconds"])


def _mark(graph: nx.DiGraph[str]) -> None:
    """Write down what is critical, and the slack of the rest: from the end backwards, how late each op may end."""
    for name in graph:
        graph.nodes[name].update(critical=False, slack=0.0)
    for name in (START, *critical_path(graph), END):
        graph.nodes[name]["critical"] = True
    latest = {END: graph.graph["seconds"]}
    for name in reversed(list(nx.topological_sort(graph))):
        if name in (START, END):
            continue
        latest[name] = min(latest[after] - graph.nodes[after]["seconds"] for after in graph.successors(name))
        graph.nodes[name]["slack"] = max(0.0, latest[name] - graph.nodes[name]["end"])
