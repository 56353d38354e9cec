"""GraphML read back is the graph that was written."""

from __future__ import annotations

from pathlib import Path

import networkx as nx
import pytest

from reports.export.graphml import write_graphml
from simulator.inputs import load_scenario
from simulator.studies.block_graph import block_graphs


def test_one_action_read_back_has_the_same_longest_path(tmp_path: Path) -> None:
    shown = block_graphs(load_scenario("tiny-dualpipe"))
    write_graphml(shown, "tiny-dualpipe", tmp_path / "pair.graphml")
    read = nx.read_graphml(tmp_path / "pair.graphml")
    assert nx.dag_longest_path_length(read, weight="seconds") == pytest.approx(shown[0].seconds, rel=1e-12)
    assert dict(read.nodes(data=True)) == dict(shown[0].graph.nodes(data=True))
    assert read.graph["job"] == "tiny-dualpipe"
    assert list(tmp_path.iterdir()) == [tmp_path / "pair.graphml"]


def test_several_actions_stay_apart(tmp_path: Path) -> None:
    shown = block_graphs(load_scenario("tiny-1f1b"))
    write_graphml(shown, "tiny-1f1b", tmp_path / "all.graphml")
    read = nx.read_graphml(tmp_path / "all.graphml")
    assert nx.number_weakly_connected_components(read) == len(shown) == 2
    assert {node.partition("/")[0] for node in read} == {"F", "B"}
    assert len(read) == sum(len(one.graph) for one in shown)


def test_the_same_graph_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_graphml(block_graphs(load_scenario("tiny-1f1b")), "tiny-1f1b", tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
