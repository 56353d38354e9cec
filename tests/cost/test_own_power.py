"""The power model of a GPU of one's own: found again in rows made with it, and what is said where it is not there."""

from __future__ import annotations

import csv
import random
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from cli import foretrain
from hardware_profiles.calibration.fit_power import PRECISIONS
from hardware_profiles.calibration.own import own_power
from hardware_profiles.calibration.own.own_gpu import mean_error
from hardware_profiles.calibration.own.power_rows import MEMORY, PAUSE, Case, plan
from hardware_profiles.calibration.sample import TABLES
from hardware_profiles.calibration.samples import own_table
from reports.views.calibrating.pages import forecast, profile_text, step_table
from reports.views.calibrating.power import power_lines
from simulator.errors import InputError
from simulator.inputs import load_hardware
from simulator.spec.hardware import Power

TDP = 700.0
OTHER = 70.0
"""Time of a memory-bound kernel [us]."""
TRUE = Power(
    cap_of_tdp=0.98, idle=120.0, memory=560.0, tensor=980.0, split=930.0, attention=840.0, exponent=0.6,
    update=480.0, unvectorized=450.0, scatter=350.0,
)  # fmt: skip
FULL = {"bf16": 1400.0, "fp8_tensor": 740.0, "fp8_tensor_split": 760.0}
"""Times of GEMMs at full clock [us]."""
WATTS = {"adamw_layers": TRUE.update, "mul_rows": TRUE.unvectorized, "index_add": TRUE.scatter, PAUSE: TRUE.idle}
COLUMNS = ("op", "form", "precision", "m", "n", "k", "us", "other", "share", "calls", "gemm_us", "other_us", "power_w",
           "sm_mhz", "limit_w")  # fmt: skip


def rows_of(power: Power, *, quick: bool, limit: float = TDP) -> list[dict[str, Any]]:
    """What a GPU with this power model and this limit [W] would measure."""
    cap = power.cap_of_tdp * limit
    return [row(case, power, cap) | {"op": "power", "limit_w": limit, "sm_mhz": 1900} for case in plan(quick=quick)]


def row(case: Case, power: Power, cap: float) -> dict[str, Any]:
    own = {"form": case.form, "precision": case.precision, "other": case.other}
    watts = power.split if case.precision == PRECISIONS[3] else power.tensor
    other = WATTS.get(case.other, power.memory)
    if case.form == "idle":
        return own | {"power_w": power.idle}
    if case.other.startswith("attention"):
        slow = max(1.0, power.attention / cap) ** power.exponent
        return own | {"us": 500.0, "other_us": 500.0 * slow, "calls": 20, "power_w": min(cap, power.attention)}
    if case.form == "other":
        return own | {"calls": 20, "other_us": OTHER, "power_w": other}
    full = FULL[case.precision]
    behind, calls = full * case.share / (1.0 - case.share), 1
    if case.other and case.other != PAUSE:
        calls = max(1, round(behind / OTHER))
        behind = calls * OTHER
    demand = (full * watts + behind * other) / (full + behind)
    gemm = full * max(1.0, demand / cap) ** power.exponent
    sizes = {"m": 8192, "n": 8192, "k": 8192, "us": full, "gemm_us": gemm, "power_w": min(cap, demand)}
    return own | sizes | ({"share": case.share, "calls": calls, "other_us": behind / calls} if case.other else {})


def written(table: Path, rows: list[Mapping[str, Any]]) -> Path:
    with table.open("w", newline="", encoding="utf-8") as file:
        file.write("# NVIDIA H200, driver 1\n")
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return table


def fitted(tmp_path: Path, rows: list[dict[str, Any]], like: str = "h200") -> Any:
    return own_power.fit(written(tmp_path / "own.csv", rows), load_hardware(like), like, "NVIDIA H200")


def test_a_kernel_that_the_host_held_back_is_left_out(tmp_path: Path) -> None:
    rows = rows_of(TRUE, quick=True)
    for one in rows:
        if (one["form"], one["other"]) == ("other", "norm"):
            one |= {"other_us": 2.0 * OTHER, "power_w": 380.0}
    found = fitted(tmp_path, rows)
    assert found.late == ("norm",)
    assert found.values["memory"] == pytest.approx(TRUE.memory, rel=1e-3)
    assert not found.kept
    assert "too slowly to keep the GPU busy alone: norm." in " ".join(power_lines(found, "h200"))


def test_values_that_are_nearer_already_are_kept(tmp_path: Path) -> None:
    """A GPU as the shipped one, measured badly: copies alone at two thirds of their watts."""
    known = load_hardware("h200").gpu.power
    assert known is not None
    rows = rows_of(replace(known, update=0.0), quick=True)
    for one in rows:
        if (one["form"], one["other"]) == ("other", "copy"):
            one["power_w"] *= 0.66
    found = fitted(tmp_path, rows)
    assert found.kept
    assert "The values of h200 are nearer: they are kept" in " ".join(power_lines(found, "h200"))
    text = profile_text("mine", "h200", "NVIDIA H200", Path("own.csv"), found)
    assert tomllib.loads(text) == {"extends": "h200", "kernels": "./mine-kernels.toml"}


@pytest.mark.parametrize("quick", [False, True])
def test_the_power_model_is_found_again(tmp_path: Path, quick: bool) -> None:
    found = fitted(tmp_path, rows_of(TRUE, quick=quick))
    weak = {"split", "update", "unvectorized", "scatter"} if quick else set()
    assert set(found.carried) == {"pause", "spread", "dither", "attention_lag"} | weak
    known = load_hardware("h200").gpu.power
    assert known is not None
    true = replace(TRUE, attention_mixed=TRUE.attention * known.attention_mixed / known.attention)
    for name, value in found.values.items():
        assert value == pytest.approx(getattr(true, name), rel=1e-3), name
    assert found.tdp == 0.0  # the profile's own
    assert found.slowdown["bf16"] == pytest.approx((980.0 / 686.0) ** 0.6)
    times, powers = (
        [mean_error([getattr(mix, f"{kind}_{when}") for mix in found.mixes]) for when in ("after", "before")]
        for kind in ("time", "power")
    )
    assert times[0] < 1e-4 < 5e-3 < times[1]
    assert powers[0] < 1e-4 < 5e-3 < powers[1]
    assert all("NVIDIA H200 under sustained load (own.csv)" in text for text in found.sources.values())


def test_errors_of_measuring_do_not_carry_it_away(tmp_path: Path) -> None:
    """Half a per cent of each time and reading, and kernels that draw a tenth less between GEMMs than alone."""
    rng = random.Random(4)
    rows = rows_of(TRUE, quick=False)
    for one in rows:
        if one["form"] == "other" and one["other"] in MEMORY[:-1]:  # all but copies, as on an H200
            one["power_w"] = TRUE.memory / 0.9
        for key in ("us", "gemm_us", "power_w"):
            if key in one:
                one[key] *= rng.gauss(1.0, 0.005)
    found = fitted(tmp_path, rows)
    for name, within in {"tensor": 0.05, "split": 0.05, "attention": 0.05, "memory": 0.1}.items():
        assert found.values[name] == pytest.approx(getattr(TRUE, name), rel=within), name
    assert found.values["exponent"] == pytest.approx(TRUE.exponent, abs=0.08)
    assert own_power.error_after(found.mixes) < 0.012


def test_a_gpu_that_never_meets_its_limit_draws_what_was_read(tmp_path: Path) -> None:
    found = fitted(tmp_path, rows_of(TRUE, quick=False, limit=1400.0))
    assert (found.cap, found.tdp) == (0.0, 1400.0)
    assert found.values["cap_of_tdp"] == 1.0
    assert "exponent" in found.carried
    for name in ("tensor", "split", "memory", "attention", "idle"):
        assert found.values[name] == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    assert own_power.error_after(found.mixes) < 1e-6
    text = " ".join(power_lines(found, "h200"))
    assert "does not meet its limit of 1400 W" in text
    assert "power as read: the limit is not met" in text


def test_a_lower_limit_becomes_the_profile_s(tmp_path: Path) -> None:
    found = fitted(tmp_path, rows_of(TRUE, quick=False, limit=500.0))
    assert found.tdp == 500.0
    assert found.values["cap_of_tdp"] == pytest.approx(0.98, rel=1e-3)
    text = profile_text("mine", "h200", "NVIDIA H200", Path("own.csv"), found)
    (tmp_path / "mine.toml").write_text(text.replace("./mine-kernels.toml", "h200"), encoding="utf-8")
    loaded = load_hardware(str(tmp_path / "mine.toml"))
    assert loaded.gpu.power_cap == pytest.approx(490.0, rel=1e-3)
    assert loaded.gpu.power == found.power
    assert loaded.sources["gpu.tdp"].startswith("power limit that the driver enforces")


def test_heat_is_named_where_the_limit_is_not_what_slows(tmp_path: Path) -> None:
    rows = [one | {"limit_w": 1000.0} for one in rows_of(TRUE, quick=True)]
    assert "Heat or a clock limit" in " ".join(power_lines(fitted(tmp_path, rows), "h200"))


def test_few_slowed_mixes_take_the_exponent_that_is_known(tmp_path: Path) -> None:
    rows = [one for one in rows_of(TRUE, quick=True) if one.get("share", 1.0) in (0.8, 0.75, 1.0)]
    found = fitted(tmp_path, rows)
    known = load_hardware("h200").gpu.power
    assert known is not None
    assert "exponent" in found.carried
    slow = found.slowdown["bf16"]
    assert found.values["tensor"] == pytest.approx(686.0 * slow ** (1.0 / known.exponent), rel=1e-3)


def test_a_gpu_like_one_without_a_power_model_gets_one(tmp_path: Path) -> None:
    rows = [one for one in rows_of(TRUE, quick=False, limit=400.0) if "fp8" not in one["precision"]]
    found = fitted(tmp_path, rows, "a100")
    assert found.values["exponent"] == pytest.approx(0.6, rel=1e-3)
    assert all(mix.power_before is None for mix in found.mixes)
    assert "| tensor | none | 980 |" in "\n".join(power_lines(found, "a100"))
    free = [one for one in rows if not one["other"].startswith("attention")]
    assert fitted(tmp_path, free, "a100") == "attention not measured, and a100 has no power model"


def test_without_what_the_fit_needs_it_says_so(tmp_path: Path) -> None:
    rows = rows_of(TRUE, quick=True)
    assert fitted(tmp_path, [one for one in rows if one["form"] == "idle"]) == (
        "copies alone, or BF16 GEMMs, are missing"
    )
    slow = [one for one in rows if one.get("share", 0.0) < 0.4]
    reason = fitted(tmp_path, slow)
    assert reason == "no GEMM between copies or pauses ran at full clock"
    assert power_lines(reason, "h200")[0].endswith("ran at full clock): all of it is carried over.")


def test_a_table_without_the_section_changes_nothing(tmp_path: Path) -> None:
    plain = [{"op": "gemm", "us": 1.0}]
    assert fitted(tmp_path, plain) is None
    assert power_lines(None, "h200") == []
    text = profile_text("mine", "h200", "NVIDIA H200", Path("own.csv"), None)
    assert tomllib.loads(text) == {"extends": "h200", "kernels": "./mine-kernels.toml"}
    assert "memory, power and price are those of the profile it extends" in text


@pytest.mark.parametrize(
    ("at", "change", "right"),
    [
        (1, {"power_w": "x"}, "row 2: power_w: 'x': must be a number above 0"),
        (0, {"gemm_us": ""}, "row 1: gemm_us: '': must be a number above 0"),
        (0, {"limit_w": "nan"}, "row 1: limit_w: 'nan': must be a number above 0"),
        (0, {"form": "loop"}, "row 1: form: 'loop': must be one of gemm, other, mix, idle under sustained load"),
        (1, {"precision": "fp4"}, "row 2: precision: 'fp4': must be one of bf16, fp8_tensor,"),
        (2, {"other": ""}, "row 3: other: nothing: must name the kernel that runs"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, at: int, change: dict[str, str], right: str) -> None:
    rows = rows_of(TRUE, quick=True)
    rows[at] |= change
    with pytest.raises(InputError) as error:
        fitted(tmp_path, rows)
    assert right in str(error.value)
    assert "own.csv" in str(error.value)


def test_fit_writes_the_power_model_into_the_profile(tmp_path: Path) -> None:
    """The whole command: kernels of a measured table, and rows under sustained load behind them."""
    with (TABLES / "h100_measured.csv").open(encoding="utf-8") as file:
        kernels = list(csv.DictReader(line for line in file if not line.startswith("#")))
    kernels = [one for one in kernels if one["op"] == "add"]
    table = tmp_path / "mine.csv"
    columns = list(dict.fromkeys([*kernels[0], *COLUMNS]))
    with table.open("w", newline="", encoding="utf-8") as out:
        out.write("# NVIDIA H100 80GB HBM3, driver 1\n")
        writer = csv.DictWriter(out, columns, restval="")
        writer.writeheader()
        writer.writerows([*kernels, *rows_of(TRUE, quick=False)])
    words = ["calibrate", "fit", str(table), "--hardware", "mine", "--out", str(tmp_path)]
    done = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(foretrain, words)
    assert done.exit_code == 0, done.stderr
    profile = load_hardware(str(tmp_path / "mine.toml"))
    known = load_hardware("h100").gpu.power
    assert known is not None
    carried = {name: getattr(known, name) for name in ("pause", "spread", "dither", "attention_lag")}
    mixed = float(f"{TRUE.attention * known.attention_mixed / known.attention:.4g}")
    assert profile.gpu.power == replace(TRUE, attention_mixed=mixed, **carried)
    assert "measured on NVIDIA H100 80GB HBM3 under sustained load (mine.csv)" in profile.sources["gpu.power.tensor"]
    assert profile.sources["gpu.power.dither"] == load_hardware("h100").sources["gpu.power.dither"]
    page = (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert "GEMMs alone take 1.24 (BF16), 1.24 (FP8), 1.20 (FP8 with split sums) times as long as after rest." in page
    assert "| exponent | 0.5169 | 0.6 | times of GEMMs in mixes, those held out 0.0% off |" in page
    assert "| FP8 with split sums | 3 | 2.0% | 0.0% | 0.8% | 0.0% |" in page
    values = ", ".join(f"{name} {carried[name]:g}" for name in ("pause", "spread", "dither", "attention_lag"))
    assert f"Not measured, carried over from h100: {values}." in " ".join(page.split())
    assert "collectives, clocks, price" in page


def test_a_check_shows_what_the_power_model_does() -> None:
    sizes = {"hidden": 2048, "inner": 8192, "layers": 2, "heads": 32, "kv_heads": 8, "vocab": 32000}
    ran = sizes | {"mode": "eager", "seq": 2048, "mbs": 4, "microbatches": 2, "step_ms": 40.0}
    row = forecast(ran, "h200")
    cap = load_hardware("h200").gpu.power_cap
    assert 1.0 <= row["slowdown"] < 1.2
    assert 0.5 * cap < row["forecast_w"] <= cap
    shown = step_table([ran | row | {"power_w": 655.4, "sm_mhz": 1781.0}, ran | forecast(ran, "a100")], "GPU", "h200")
    first, second = (line for line in shown.splitlines() if line.startswith("| 2 layers"))
    assert first.endswith(f"| {row['slowdown']:.3f} | 655 | {row['forecast_w']:.0f} | 1781 |")
    assert second.endswith("| - | - | - | - |")


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler, when it is first used
def test_rows_as_measured_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The measuring scripts around kernels that only take the times of the model: one table, with both kinds of row."""
    pytest.importorskip("torch")
    from hardware_profiles.calibration.own import measure_own
    from hardware_profiles.calibration.own import measure_power as script

    now = Case()
    timed = script._measured

    def measured(case: Case) -> dict[str, Any]:
        nonlocal now
        now = case
        if case.form == "idle":
            return row(case, TRUE, 686.0) | {"op": "power"}
        return timed(case)

    def lasting(parts: Any, seconds: float) -> dict[str, float]:
        true = row(now, TRUE, 686.0)
        found = {"power_w": 1.0, "power_w_instant": true["power_w"], "sm_mhz": 1800.0, "gemm_us": true.get("gemm_us")}
        return found | {"memory_us": true.get("other_us", 0.0) * true.get("calls", 0)}

    def behind(case: Case) -> tuple[None, int, float]:
        true = row(case, TRUE, 686.0)
        return None, true["calls"], true["other_us"] if case.other == PAUSE else 0.0

    monkeypatch.setattr(script, "_measured", measured)
    monkeypatch.setattr(script.measure_fp8_mix, "lasting", lasting)
    monkeypatch.setattr(script, "_gemm", cache(lambda precision: None))
    monkeypatch.setattr(script, "_other", cache(lambda name: None))
    monkeypatch.setattr(script, "_repeated", lambda name, calls: None)
    monkeypatch.setattr(script, "_rested", cache(lambda name: FULL.get(name, 500.0)))
    monkeypatch.setattr(script, "_behind", behind)
    monkeypatch.setattr(script, "meter", lambda: SimpleNamespace(limit=lambda: TDP))
    kernel = {"op": "add", "bytes": 1000, "us": 2.0, "kernel": "add"}
    monkeypatch.setattr(measure_own.rested, "measure", lambda part: [kernel for _ in part])
    monkeypatch.setattr(measure_own, "header", lambda: "# NVIDIA H200, driver 1\n")
    cases: dict[str, list[Any]] = {"streaming": [None] * 30, measure_own.POWER: plan(quick=False)}
    shown: list[Any] = []
    table = tmp_path / "own.csv"
    many = measure_own.measure(cases, table, shown.append)
    assert many == sum(map(len, cases.values()))
    assert [one.left for one in shown] == sorted((one.left for one in shown), reverse=True)
    assert shown[-1].section == "sustained"
    assert shown[-1].left == 0.0
    found = own_power.fit(table, load_hardware("h200"), "h200", "NVIDIA H200")
    assert isinstance(found, own_power.OwnPower)
    assert found.values["tensor"] == pytest.approx(TRUE.tensor, rel=1e-3)
    assert {one.cls for one in own_table(table, "h200")} == {"elem"}


def test_readings_are_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from hardware_profiles.calibration.measuring.power import sensors

    mine = sensors.Sensors()
    assert mine.readings(last=1.0) == {}
    for at in range(100):
        power = 700.0 if at >= 50 else 100.0
        mine.seen.append(sensors.Reading(at / 10, 1500.0 + 10 * (at >= 80), power, power - 5.0, 70.0 * at))
    assert mine.readings() == {"power_w": 700.0, "power_w_instant": 695.0, "power_w_energy": 700.0, "sm_mhz": 1504}
    assert mine.readings(last=1.0)["sm_mhz"] == 1510
    calls: list[str] = []

    def shown(query: list[str], **_: Any) -> Any:
        calls.append(query[3])
        return SimpleNamespace(stdout="Field not valid" if "instant" in query[3] else "1980, 612.5\n")

    monkeypatch.setattr(sensors, "uuid", lambda: "0")
    monkeypatch.setattr(sensors.subprocess, "run", shown)
    read = sensors.Smi().read()
    assert (read.clock, read.power, read.instant) == (1980.0, 612.5, 0.0)
    assert calls == ["--query-gpu=clocks.sm,power.draw,power.draw.instant", "--query-gpu=clocks.sm,power.draw"]
