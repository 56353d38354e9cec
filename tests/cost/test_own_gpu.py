"""`foretrain calibrate`: what is fitted to a table, what is carried over, and what a user's mistake says."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import foretrain
from hardware_profiles.calibration.own import own_gpu
from hardware_profiles.calibration.sample import TABLES
from simulator.inputs import load_hardware

H100_TABLE = TABLES / "h100_measured.csv"


@pytest.fixture(scope="module")
def found() -> own_gpu.OwnFit:
    """An H100's kernels, fitted as if all that is known were an H200."""
    return own_gpu.fit(H100_TABLE, load_hardware("h200"), "h200", "NVIDIA H100")


@pytest.mark.slow
def test_a_fit_is_nearer_on_shapes_it_did_not_see(found: own_gpu.OwnFit) -> None:
    before, after = (
        sum(values) / len(values) for values in zip(*((c.before, c.after) for c in found.classes), strict=True)
    )
    assert len(found.classes) > 15
    assert after < before / 2
    gemms = [one for one in found.classes if one.cls.startswith("gemm.") and one.held >= 10]
    assert len(gemms) > 5
    assert all(one.after < 0.08 for one in gemms)


@pytest.mark.slow
def test_every_class_is_either_fitted_or_carried_over(found: own_gpu.OwnFit) -> None:
    own = load_hardware("h200").kernels
    names = {one.cls for one in found.classes}
    assert names | set(found.carried) == {*own.gemm, *own.attention, *own.decode, *own.stream}
    assert not names & set(found.carried)
    for cls in found.carried:
        for table in ("gemm", "attention", "decode", "stream"):
            assert getattr(found.kernels, table).get(cls) == getattr(own, table).get(cls)
    assert all("NVIDIA H100" in one.params.source and not one.params.assumed for one in found.classes)


def test_times_of_the_profile_itself_leave_its_parameters_alone(tmp_path: Path) -> None:
    """Measured times that are the forecast: nothing to fit."""
    like = load_hardware("h200")
    with H100_TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    rows = [row for row in rows if row["op"] == "gemm" and row["precision"] == "bf16" and row["form"] == "dense"][:60]
    table = tmp_path / "own.csv"
    for row in rows:
        row["us"] = "1"
    write(table, rows)
    samples = own_gpu.own_table(table, "h200")
    params = like.kernels.gemm["gemm.bf16"]
    for row, one in zip(rows, own_gpu.judged(samples, "gemm.bf16", params, like.gpu), strict=True):
        row["us"] = repr(one.predicted * 1e6)
    write(table, rows)
    (fitted,) = own_gpu.fit(table, like, "h200", "x").classes
    assert fitted.kept
    assert fitted.before == fitted.after < 1e-3
    assert fitted.params == replace(params, source=fitted.params.source)


def write(table: Path, rows: list[dict[str, str]]) -> None:
    with table.open("w", newline="", encoding="utf-8") as file:
        file.write("# NVIDIA H200, driver 1\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("name", "profile"),
    [("NVIDIA H200", "h200"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-80GB", "a100"), ("Tesla T4", None)],
)
def test_the_nearest_profile_is_found_by_name(name: str, profile: str | None) -> None:
    assert own_gpu.nearest(name) == profile


def test_the_search_finds_factors() -> None:
    found = own_gpu.tuned(lambda f: sum(abs(a - b) for a, b in zip(f, (1.3, 0.8, 2.0), strict=True)))
    assert found == pytest.approx((1.3, 0.8, 2.0), rel=0.01)


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(foretrain, ["calibrate", *words])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.long
def test_a_profile_is_written_that_a_job_runs_on(tmp_path: Path) -> None:
    code, page, said = run("fit", str(H100_TABLE), "--hardware", "mine", "--like", "h200", "--out", str(tmp_path))
    written = (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert code == 0
    assert page.splitlines()[:-1] == written.splitlines()[:-1]
    assert page.endswith("classes of kernels (named in mine.md).\n")
    assert "attn.decode.mla" in written.splitlines()[-1]
    assert "mine-kernels.toml" in said
    assert "| gemm.bf16 |" in page
    assert "Carried over from h200: memory, links" in page
    profile = load_hardware(str(tmp_path / "mine.toml"))
    assert profile.kernels.gemm["gemm.bf16"] != load_hardware("h200").kernels.gemm["gemm.bf16"]
    assert "h100_measured.csv" in profile.kernels.gemm["gemm.bf16"].source


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("# Tesla T4, driver 1\nop,us\n", encoding="utf-8")
    hosts = tmp_path / "hosts.csv"
    hosts.write_text("# NVIDIA H200, driver 1\nwhat,us\nadd,4\n", encoding="utf-8")
    for words, right in (
        (("fit", str(tmp_path / "none.csv"), "--hardware", "x"), "none.csv: No such file"),
        (("fit", str(other), "--hardware", "x"), "names no GPU that is shipped (Tesla T4); give --like"),
        (("fit", str(other), "--hardware", "a/b"), "must be a name of letters"),
        (
            ("fit", str(other), "--hardware", "h100"),
            "a profile of that name is shipped; give yours another, as my-h100",
        ),
        (("fit", str(hosts), "--hardware", "x"), "no column op: must be a table of foretrain calibrate measure"),
        (("fit", str(other), "--hardware", "x", "--like", "h200"), "no class of kernels has 6 shapes"),
    ):
        code, _, said = run(*words)
        assert (code, right in said, said.count("\n")) == (2, True, 1), said


@pytest.mark.parametrize("words", [("measure", "--out", "x.csv"), ("check", "--hardware", "h200")])
def test_without_a_gpu_one_line_says_so(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, said = run(*words)
    if "sees no GPU" not in said and "not installed" not in said:
        pytest.skip("a machine with a GPU")
    assert (code, said.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler, when it is first used
def test_the_estimate_of_what_is_left_falls_to_nothing() -> None:
    pytest.importorskip("torch")
    from hardware_profiles.calibration.own import measure_own

    cases = measure_own.plan(quick=True)
    seconds = measure_own.estimate(cases)
    left = [measure_own._left(cases, name, len(cases[name])) for name in cases]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0.0
    assert sum(seconds.values()) == pytest.approx(measure_own._left(cases, "gemm", 0))
    whole = measure_own.estimate(measure_own.plan(quick=False))
    assert 10.0 < seconds["sustained"] < 40.0 < whole["sustained"]
    assert list(measure_own.plan(quick=True, power=False)) == list(measure_own.SECTIONS)
    layouts = {labels["impl"] for labels, _, _ in cases["gemm"]}
    assert {"cublas_nt", "cublas_nn", "cublas_tn", "torch"} <= layouts
    assert {labels["backward"] for labels, _, _ in cases["attention"]} == {0, 1}
