"""The op graph of a program: its longest path is the program's time, and slack is what it says it is."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import pytest

from simulator.cost.cost import Cost
from simulator.engine.des import simulate
from simulator.engine.kernel_sequence import Priced, sequence_of
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel
from simulator.engine.op_graph import END, START, critical_path, op_graph, ops_in, tasks_alone
from simulator.engine.program import Program
from simulator.engine.tasks import COMPUTE, Tasks, Timeline
from simulator.inputs import load_scenario
from simulator.ops import Fixed, Op
from simulator.results.simulate import prepare
from simulator.studies.block_graph import ActionKind, program_of

ENGINES = {"events": simulate, "longest-path": longest_path}
SLOW_HOST = ("stack.host_kernel=2e-3", "stack.host_gemm=1e-3")
CASES: list[tuple[str, tuple[str, ...], str, ActionKind]] = [
    ("tiny-dualpipe", (), "moe", "pair"),
    ("tiny-dualpipe", ("routing.kind=skewed", "routing.max_over_mean=1.4"), "moe", "pair"),
    ("tiny-dualpipe", ("stack.overlapped_pair=false",), "moe", "pair"),
    ("tiny-dualpipe", SLOW_HOST, "moe", "pair"),
    ("tiny-1f1b", (), "moe", "B"),
    ("tiny-zb1p", (), "moe", "I"),
    ("tiny-zb1p", (), "dense", "W"),
    ("llama-3-8b", (), "dense", "F"),
    ("llama-3-8b", (), "head", "B"),
    ("deepseek-v3-pretrain", (), "moe", "pair"),
]


def path_seconds(graph: nx.DiGraph[str]) -> float:
    """Length of the longest path [s]."""
    return float(nx.dag_longest_path_length(graph, weight="seconds"))


def case(job: str, overrides: tuple[str, ...], kind: str, action: ActionKind) -> tuple[PricedModel, Program]:
    built, _ = prepare(load_scenario(job, overrides))
    return built, program_of(built, kind, action)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", CASES, ids=lambda which: "-".join((which[0], which[2], which[3])))
def test_the_longest_path_is_the_time_of_the_program_alone(
    which: tuple[str, tuple[str, ...], str, ActionKind], engine: str
) -> None:
    built, program = case(*which)
    timeline = ENGINES[engine](tasks_alone(built, program))
    graph = op_graph(timeline)
    assert nx.is_directed_acyclic_graph(graph)
    assert path_seconds(graph) == pytest.approx(timeline.makespan, rel=1e-12)
    on_path = sum(graph.nodes[name]["seconds"] for name in critical_path(graph))
    assert on_path + graph.nodes[critical_path(graph)[0]]["start"] == pytest.approx(timeline.makespan, rel=1e-12)


def test_every_op_of_the_program_is_a_node_of_its_own() -> None:
    built, program = case("tiny-dualpipe", (), "moe", "pair")
    nodes = ops_in(op_graph(simulate(tasks_alone(built, program))))
    ops = [priced.op for step in program.steps for priced in step.sequence.ops]
    assert sorted(node["op"] for node in nodes.values()) == sorted(op.name for op in ops)
    assert {node["stream"] for node in nodes.values()} == {"compute", "communication"}


def test_ops_come_after_all_that_they_name() -> None:
    built, program = case("tiny-1f1b", (), "moe", "B")
    graph = op_graph(simulate(tasks_alone(built, program)))
    named = [(name, p.op.name) for step in program.steps for p in step.sequence.ops for name in p.op.after]
    assert named
    assert all(nx.has_path(graph, before, after) for before, after in named)
    for before, after in named:
        if graph.nodes[before]["stream"] != graph.nodes[after]["stream"]:
            waits = [edge for edge in graph.in_edges(after) if graph.edges[edge]["kind"] == "data"]
            assert waits, after


def test_an_all_to_all_is_issued_behind_the_compute_before_it() -> None:
    """Where it does not name it as what it needs, the edge says so, and goes from compute to communication."""
    built, program = case("tiny-dualpipe", ("stack=torch",), "moe", "pair")
    graph = op_graph(simulate(tasks_alone(built, program)))
    issued = [edge for edge in graph.edges if graph.edges[edge]["kind"] == "issue"]
    assert issued
    for before, after in issued:
        assert (graph.nodes[before]["stream"], graph.nodes[after]["stream"]) == ("compute", "communication")
        assert graph.nodes[before]["end"] <= graph.nodes[after]["start"]


def test_a_collective_and_its_neighbours_wait_for_data() -> None:
    built, program = case("llama-3-8b", (), "dense", "F")
    graph = op_graph(simulate(tasks_alone(built, program)))
    across = {
        graph.edges[a, b]["kind"]
        for a, b in graph.edges
        if "stream" in graph.nodes[a]
        and "stream" in graph.nodes[b]
        and graph.nodes[a]["stream"] != graph.nodes[b]["stream"]
    }
    assert across == {"data"}


def longer(graph: nx.DiGraph[str], name: str, by: float) -> float:
    """The longest path where one op lasts longer [s]."""
    other = graph.copy()
    for edge in other.out_edges(name):
        other.edges[edge]["seconds"] += by
    return path_seconds(other)


def test_an_op_may_last_longer_by_its_slack_and_no_more() -> None:
    built, program = case("tiny-dualpipe", (), "moe", "pair")
    graph = op_graph(simulate(tasks_alone(built, program)))
    time, beyond, slacks = path_seconds(graph), 1e-5, []
    for name, data in ops_in(graph).items():
        slacks.append(data["slack"])
        assert longer(graph, name, data["slack"]) == pytest.approx(time, rel=1e-9)
        assert longer(graph, name, data["slack"] + beyond) == pytest.approx(time + beyond, rel=1e-9)
        if data["critical"]:
            assert data["slack"] == pytest.approx(0.0, abs=1e-12)
    assert max(slacks) > 1e-5


def test_the_host_is_where_the_path_begins_if_it_is_slow() -> None:
    built, program = case("tiny-dualpipe", SLOW_HOST, "moe", "pair")
    timeline = longest_path(tasks_alone(built, program))
    graph = op_graph(timeline)
    first = critical_path(graph)[0]
    assert graph.edges[START, first]["kind"] == "host"
    assert graph.edges[START, first]["seconds"] == graph.nodes[first]["start"] > 0.5 * timeline.makespan


def made_up(*names: str) -> Timeline:
    """One kernel sequence of a second each per name, one after the other on the compute stream."""
    tasks = Tasks(ranks=1)
    op = Op(name="x", cls="test", part="F", segment="test.F", work=Fixed())
    for name in names:
        one = Priced(op=replace(op, name=name), cost=Cost(duration=1.0, bound_by="fixed"), durations=(1.0,) * 4)
        tasks.add(COMPUTE, sequence_of("compute", "test.F", [one]), ())
    return longest_path(tasks)


def test_ops_of_one_name_stay_apart() -> None:
    graph = op_graph(made_up("x", "y", "x"))
    assert list(ops_in(graph)) == ["x", "y", "x#2"]
    assert critical_path(graph) == ["x", "y", "x#2"]
    assert set(graph) == {START, "x", "y", "x#2", END}
