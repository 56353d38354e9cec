"""The figure of an op graph: a box an op, the path as long as the action, and names that fit into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.figures.graph_figure import graph_figure
from reports.figures.style import styled, write
from simulator.engine.op_graph import ops_in
from simulator.inputs import load_scenario
from simulator.studies.block_graph import BlockGraph, block_graphs


@pytest.fixture(scope="module")
def shown() -> tuple[BlockGraph, ...]:
    return block_graphs(load_scenario("tiny-1f1b"))


def test_every_op_is_a_box_and_every_wait_a_line(shown: tuple[BlockGraph, ...]) -> None:
    with styled():
        figure = graph_figure(shown, "tiny-1f1b")
        assert len(figure.axes) == len(shown)
        for axes, one in zip(figure.axes, shown, strict=True):
            *boxes, waits = axes.collections
            assert sum(len(each.get_paths()) for each in boxes) == len(ops_in(one.graph)) + 2  # and idle lanes
            across = [
                (a, b)
                for a, b, kind in one.graph.edges(data="kind")
                if kind in ("data", "issue") and one.graph.nodes[a]["stream"] != one.graph.nodes[b]["stream"]
            ]
            assert len(waits.get_paths()) == len(across) > 0


def test_the_path_runs_from_the_start_to_the_end_without_a_gap(shown: tuple[BlockGraph, ...]) -> None:
    with styled():
        figure = graph_figure(shown, "tiny-1f1b")
        for axes, one in zip(figure.axes, shown, strict=True):
            times = axes.lines[0].get_xdata()
            assert times[0] == pytest.approx(0.0)
            assert times[-1] == pytest.approx(one.seconds * 1e3)
            assert list(times[1:-1:2]) == pytest.approx(list(times[2::2]))


def test_names_stay_inside_their_boxes_and_do_not_overlap(shown: tuple[BlockGraph, ...]) -> None:
    with styled():
        figure = graph_figure(shown, "tiny-1f1b")
        figure.draw_without_rendering()
        for axes in figure.axes:
            frame = axes.get_window_extent()
            extents = [text.get_window_extent() for text in axes.texts]
            assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in extents)
            assert not any(a.overlaps(b) for at, a in enumerate(extents) for b in extents[at + 1 :])


def test_the_same_graph_gives_the_same_bytes(shown: tuple[BlockGraph, ...], tmp_path: Path) -> None:
    with styled():
        for name in ("one.svg", "two.svg"):
            write(graph_figure(shown, "tiny-1f1b"), tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
