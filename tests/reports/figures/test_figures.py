"""Figures: colours that everyone can distinguish, and pictures that show what the result says."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cli import foretrain
from reports.figures import figures_of, write_figures
from reports.figures.curves_figure import Point, front
from reports.figures.pair_figure import layer_window, stretches
from reports.figures.style import styled
from reports.views.actions import action_list, representative
from reports.views.idle import idle_by_cause
from reports.views.ops import ops_of
from reports.views.palette import BOUNDS, DIRECTIONS, PHASES, ink_on, luminance
from simulator.inputs import load_scenario
from simulator.results.result import Result
from simulator.results.simulate import simulate

# Machado, Oliveira, Fernandes, IEEE TVCG 15(6), 2009, severity 1.0; on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: str, vision: str) -> np.ndarray:
    """CIE Lab of `#rrggbb` as somebody sees it."""
    srgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(VISION[vision] @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("colours", [PHASES, DIRECTIONS, BOUNDS], ids=["phases", "directions", "bounds"])
def test_every_two_colours_stay_apart(vision: str, colours: dict[str, str]) -> None:
    for (one, a), (other, b) in combinations(colours.items(), 2):
        assert np.linalg.norm(lab(a, vision) - lab(b, vision)) > 15, (one, other)


def test_text_on_every_colour_has_contrast() -> None:
    for colour in PHASES.values():
        low, high = sorted((luminance(colour), luminance(ink_on(colour))))
        assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.fixture(scope="module")
def paired() -> Result:
    return simulate(load_scenario("tiny-dualpipe"))


def test_the_representative_is_an_overlapped_pair_of_median_length(paired: Result) -> None:
    actions = action_list(paired.timeline)
    chosen = representative(actions)
    times = sorted(a.seconds for a in actions if a.phase == "overlapped")
    assert chosen.phase == "overlapped"
    assert chosen.seconds == times[len(times) // 2]


def test_without_pairs_a_backward_is_looked_into() -> None:
    result = simulate(load_scenario("tiny-1f1b"))
    assert representative(action_list(result.timeline)).phase == "backward"


def test_the_ops_of_an_action_fill_its_runs_and_do_not_overlap(paired: Result) -> None:
    actions = action_list(paired.timeline)
    chosen = representative(actions)
    ops = ops_of(paired.timeline, chosen)
    assert len(ops) == sum(len(paired.timeline.tasks.sequence[t].ops) for t in range(chosen.first, chosen.last))
    assert max(op.end for op in ops) == pytest.approx(chosen.seconds)
    for stream in ("compute", "communication"):
        mine = [op for op in ops if op.stream == stream]
        assert all(a.end <= b.start + 1e-12 for a, b in pairwise(mine))


def test_stretches_join_ops_of_one_segment(paired: Result) -> None:
    chosen = representative(action_list(paired.timeline))
    ops = ops_of(paired.timeline, chosen)
    joined = stretches(ops)
    assert 0 < len(joined) < len(ops)


@pytest.mark.parametrize("tp", [1, 2])
def test_one_layer_of_an_action_holds_what_a_layer_has(tp: int) -> None:
    """Also where attention waits for collectives of tensor parallelism."""
    result = simulate(load_scenario("llama-3-8b", [f"layout.tp={tp}"]))
    chosen = representative(action_list(result.timeline))
    ops = ops_of(result.timeline, chosen)
    start, end = layer_window(ops, chosen.seconds)
    assert 0 <= start < end <= chosen.seconds
    layers = sum(block == "dense" for block in result.built.stages[0])
    mine = [op for op in ops if start <= op.start < end]
    assert len([op for op in mine if op.cls.startswith("attn.bwd")]) == 1
    assert {op.segment for op in mine} >= {"attn.B", "mlp.B"}
    assert end - start == pytest.approx(chosen.seconds / layers, rel=0.15)


@pytest.mark.parametrize("job", ["tiny-dualpipe", "tiny-1f1b", "tiny-zb1p", "tiny-gpipe"])
def test_idle_causes_add_up_to_the_time_without_compute(job: str) -> None:
    result = simulate(load_scenario(job, ["routing.kind=skewed", "routing.max_over_mean=1.3"]))
    causes = idle_by_cause(result, action_list(result.timeline)).causes
    busy = sum(rank.compute_busy for rank in result.ranks) / len(result.ranks)
    assert sum(causes.values()) == pytest.approx(result.metrics["step_time_s"] - busy, rel=1e-9)
    assert all(seconds >= -1e-12 for seconds in causes.values())
    assert causes["ramp"] + causes["imbalance"] + causes["messages"] == pytest.approx(result.breakdown_s["bubble"])
    assert causes["slowest"] > 0


def test_balanced_experts_wait_for_nobody(paired: Result) -> None:
    assert idle_by_cause(paired, action_list(paired.timeline)).causes["slowest"] == 0


@pytest.mark.slow
def test_every_figure_is_written_twice_and_alike(paired: Result, tmp_path: Path) -> None:
    files = write_figures(paired, tmp_path / "one")
    assert {file.suffix for file in files} == {".svg", ".png"}
    assert {file.stem for file in files} >= {"timeline", "pair", "breakdown", "idle", "classes", "cost", "roofline"}
    again = write_figures(paired, tmp_path / "two")
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in files if file.suffix == ".png")


def test_the_timeline_holds_a_box_for_every_action(paired: Result) -> None:
    with styled():
        figure = next(figure for name, figure in figures_of(paired) if name == "timeline")
        upper = figure.axes[0]
        boxes = sum(len(collection.get_paths()) for collection in upper.collections)
    ranks = paired.timeline.tasks.ranks
    assert boxes == len(paired.timeline.tasks.actions) + ranks  # and a row of bubble under each rank


def test_the_breakdown_ends_where_the_step_ends(paired: Result) -> None:
    with styled():
        figure = next(figure for name, figure in figures_of(paired) if name == "breakdown")
        bars = figure.axes[0].patches
        assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(paired.metrics["step_time_s"])


def test_the_front_keeps_what_nothing_betters() -> None:
    points = [Point(x=x, y=y) for x, y in ((1, 9), (2, 5), (2, 7), (3, 6), (4, 1), (5, 1), (9, 0))]
    assert [(p.x, p.y) for p in front(points)] == [(1, 9), (2, 5), (4, 1), (9, 0)]


@pytest.mark.long
def test_varied_numbers_become_a_curve_and_names_do_not(tmp_path: Path) -> None:
    command = ["compare", "tiny-dualpipe", "-q", "--figures", str(tmp_path / "curve")]
    assert CliRunner().invoke(foretrain, [*command, "--vary", "overlap.comm_sms=4,8,20"]).exit_code == 0
    assert {file.name for file in (tmp_path / "curve").iterdir()} == {
        "runs.svg", "runs.png", "scaling.svg", "scaling.png",
    }  # fmt: skip
    command[-1] = str(tmp_path / "names")
    assert CliRunner().invoke(foretrain, [*command, "--vary", "layout.schedule=1f1b,zb1p"]).exit_code == 0
    assert {file.name for file in (tmp_path / "names").iterdir()} == {"runs.svg", "runs.png"}
