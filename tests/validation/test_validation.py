"""Published figures: each is computed or has a reason, and none that is end-to-end enters a calibration."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli import foretrain
from hardware_profiles.calibration import fit_kernels
from simulator.validation import Figure, grouped, load_figures, validate
from simulator.validation.computations import rule_for
from simulator.validation.figures import END_TO_END, calibration_rows, used_by_calibration
from simulator.validation.outcome import Outcome

FIGURES = load_figures()
CALIBRATION = Path(str(resources.files("hardware_profiles").joinpath("calibration")))


def run(*args: str) -> Result:
    return CliRunner().invoke(foretrain, ["validate", *args])


def test_figures_are_many_named_once_and_sourced() -> None:
    assert len(FIGURES) > 600
    assert max(Counter(f.id for f in FIGURES).values()) == 1
    assert all(f.source for f in FIGURES)


def test_no_end_to_end_figure_is_named_in_a_calibration() -> None:
    """A step time, a throughput or a bill may never decide a parameter."""
    ends = [f.id for f in FIGURES if f.end_to_end]
    assert len(ends) > 150
    files = [path for path in CALIBRATION.rglob("*") if path.suffix in (".py", ".csv", ".toml")]
    assert len(files) > 8
    beginnings = re.compile(r"\b(?:" + "|".join(re.escape(b) for b in END_TO_END if len(b) > 2) + r")")
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert not beginnings.search(text), path
        assert not [name for name in ends if name in text], path


def test_no_end_to_end_value_stands_in_a_calibration_table() -> None:
    assert not [name for name in calibration_rows() if name.startswith(END_TO_END)]
    assert not [f.id for f in FIGURES if f.end_to_end and used_by_calibration(f)]


def test_figures_of_kernels_are_marked_as_the_fits_use_them() -> None:
    everything = fit_kernels.everything()
    fitted = {s.label for r in fit_kernels.RECIPES for s in fit_kernels.chosen(r, everything)}
    named = {row["id"] for row in calibration_rows().values() if row["table"] == "published_kernels"}
    assert {f.id for f in FIGURES if f.id in named and used_by_calibration(f)} == {
        f.id for f in FIGURES if f.id in fitted
    }


def test_every_figure_has_a_rule() -> None:
    counted = Counter(rule_for(f).pattern for f in FIGURES)
    assert counted["*"] < 20
    assert len(counted) > 40


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return validate(("A.model", "A.route", "B.k", "B.topology", "B.lat", "B.decode", "C", "F", "T"))


@pytest.fixture(scope="module")
def light(outcomes: list[Outcome]) -> list[tuple[Figure, float | None, str]]:
    return [(one.figure, one.predicted, one.use) for one in outcomes]


def test_sizes_follow_exactly(light: list[tuple[Figure, float | None, str]]) -> None:
    sizes = [
        (figure, predicted)
        for figure, predicted, _ in light
        if figure.id.startswith(("A.model", "B.kv", "B.topology")) and "cost" not in figure.id and figure.number
    ]
    assert len(sizes) > 30
    for figure, predicted in sizes:
        assert predicted == pytest.approx(figure.number, rel=0.011), figure.id


ODD = "C.hybridep.GB200.r36.sm16.dispatch_fp8"
"""Published as slower than the same all-to-all in BF16, of twice the bytes."""


def test_kernels_and_links_are_met(light: list[tuple[Figure, float | None, str]]) -> None:
    """Generous: the calibration's own report holds the tight bounds."""
    kernels = [
        (figure, predicted)
        for figure, predicted, _ in light
        if figure.section == "C" and predicted is not None and figure.number and figure.id != ODD
    ]
    assert len(kernels) > 150
    for figure, predicted in kernels:
        assert predicted == pytest.approx(figure.number, rel=0.5), figure.id


def test_no_kernel_is_left_out_by_a_mistake(outcomes: list[Outcome]) -> None:
    """What is not computed has a reason of its own, not the refusal of a question that the program itself asks."""
    reasons = [one.reason for one in outcomes if one.figure.section == "C" and one.predicted is None]
    assert not {reason for reason in reasons if ":" in reason}
    assert len(reasons) < 30


def test_fits_and_comparisons_are_distinguished(light: list[tuple[Figure, float | None, str]]) -> None:
    uses = {figure.id: use for figure, _, use in light}
    assert uses["C.deepep.v1.normal.r0224.ep16.dispatch"] == "calibration"
    assert uses["C.deepep.v1.normal.r0224.ep16.combine"] == "comparison"
    assert uses["F.h800_sxm.bf16"] == "given"
    assert uses["T.pair.span"] == "comparison"


def test_the_profile_of_v3_is_met(light: list[tuple[Figure, float | None, str]]) -> None:
    met = {
        figure.id: (predicted or 0.0) / (figure.number or 1.0)
        for figure, predicted, _ in light
        if figure.section == "T"
    }
    assert len(met) == 12
    assert met["T.pair.span"] == pytest.approx(1.0, abs=0.05)
    assert all(0.88 < ratio < 1.12 for ratio in met.values())


@pytest.mark.long
def test_a_step_of_v3_and_others_come_out_plausible() -> None:
    outcomes = validate(("B.train.mpft", "E.zerobubble.t4.1f1b.1.5b.m24", "E.simumax.b200.llama3_70b_l12_tp4*mbc4*"))
    assert all(one.predicted is not None for one in outcomes)
    assert all(one.use == "comparison" for one in outcomes)
    whole = [one for one in outcomes if "phase" not in one.figure.quantity]
    assert whole
    assert all(one.error is not None and abs(one.error) < 0.35 for one in whole)
    phases = [one.predicted or 0.0 for one in outcomes if one.figure.quantity.startswith("phase_")]
    step = next(one.predicted or 0.0 for one in outcomes if one.figure.quantity == "time_per_step")
    assert sum(phases) == pytest.approx(step, rel=0.01)


def test_measured_peaks_of_memory_are_met() -> None:
    """One of each family here; `foretrain validate` computes all 35."""
    peaks = [f for f in FIGURES if f.quantity == "peak_memory"]
    assert Counter(f.group for f in peaks) == {"E.zerobubble_mem": 16, "E.simumax_mem": 19}
    assert len({f.id for f in FIGURES}) == len(FIGURES)
    asked = ("E.zerobubble_mem.t4.zb2p.6*", "E.zerobubble_mem.t4.1f1b.1*", "E.simumax_mem.b200.deepseekv3_l4*")
    outcomes = validate(asked, processes=1)
    assert len(outcomes) == 5
    assert all(one.use == "comparison" and abs(one.error or 1.0) < 0.12 for one in outcomes)


def test_groups_sum_up_errors() -> None:
    outcomes = validate(("B.kv_per_token", "B.train_gflop_per_token", "D.step3"))
    groups = grouped(outcomes)
    assert [group.name for group in groups] == ["B.kv_per_token", "B.train_gflop_per_token"]
    errors = [one.error or 0.0 for one in groups[1].outcomes]
    assert groups[1].mape == pytest.approx(sum(map(abs, errors)) / len(errors))
    assert all(one.reason for one in outcomes if one.predicted is None)


def test_the_verb_as_text_json_and_markdown(tmp_path: Path) -> None:
    text = run("--only", "B.kv_per_token", "--only", "D.step3")
    assert text.exit_code == 0, text.stderr
    assert all(len(line) <= 80 for line in text.stdout.splitlines())
    assert "layout of the step are not published" in text.stdout
    page = tmp_path / "page.md"
    found = json.loads(run("--only", "B.kv_per_token", "--json", "--markdown", str(page)).stdout)
    assert [one["error"] for one in found["figures"]] == pytest.approx([0.0] * 3)
    assert found["groups"][0]["mape"] == pytest.approx(0.0)
    assert "| `B.kv_per_token.deepseek_v3` | 70.27 | 70.27 |" in page.read_text(encoding="utf-8")


def test_a_name_that_fits_nothing_is_said() -> None:
    result = run("--only", "no-such-figure")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
