"""A fleet over a day: curves as files, what each hour needs, nodes that move."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reports.figures.fleet_figure import write_fleet_figure
from simulator.errors import InputError
from simulator.serving.load.lengths import scaled
from simulator.studies.sizing import Choice, Day, Wanted, over_day, read_curve
from simulator.studies.sizing.day import Hour, Load


def _hour(name: str, prefill: int, decode: int) -> Hour:
    return Hour(
        hour=name, rate=1.0, prefill=prefill, decode=decode, gpus=4 * prefill + 8 * decode, margin=0.1, metrics={}
    )


DAY = Day(
    choice=Choice(settings=()),
    hours=(_hour("0", 2, 4), _hour("8", 6, 3), _hour("16", 4, 6)),
    gpus_prefill=4,
    gpus_decode=8,
    usd_per_gpu_hour=2.0,
)


def test_gpus_of_a_day(tmp_path: Path) -> None:
    assert (DAY.peak, DAY.mean) == (64, pytest.approx((40 + 48 + 64) / 3))
    # To hour 8 16 GPUs more for prompts, 8 fewer for the rest: 8 move; to 16 8 fewer and 24 more: 8; then both shrink.
    assert DAY.moved == 8 + 8 + 0
    assert [file.name for file in write_fleet_figure(DAY, tmp_path)] == ["day.svg", "day.png"]


def test_the_shipped_curve_has_a_maximum_of_one_and_a_night() -> None:
    curve = read_curve("workday")
    assert [one.hour for one in curve] == [str(hour) for hour in range(24)]
    assert max(one.rate for one in curve) == 1.0
    assert min(one.rate for one in curve) == pytest.approx(0.34)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("hour,load\n0,1\n", "curve.csv:1: must name hour and rate"),
        ("hour,rate\n0,1\n1\n", "curve.csv:3: has 1 columns; the first line has 2"),
        ("hour,rate\n0,-1\n", "curve.csv:2: rate: '-1': must be a share"),
        ("hour,rate,input\n0,1,nan\n", "curve.csv:2: input: 'nan': must be a share"),
        ("hour,rate\n", "curve.csv: holds no hours"),
        ("hour,rate\n" + "0,1\n" * 200, "a curve has at most 168 hours"),
    ],
)
def test_what_is_no_curve_is_one_line(tmp_path: Path, text: str, error: str) -> None:
    path = tmp_path / "curve.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_curve(str(path))
    assert error in str(caught.value)
    with pytest.raises(InputError, match="is no file; `workday` is shipped"):
        read_curve(str(tmp_path / "none.csv"))


def test_lengths_are_scaled_as_they_are_written() -> None:
    assert scaled("1000", 1.2, "--day") == "1200"
    assert scaled("uniform:0.5-1.0x1000", 0.9, "--day") == "uniform:0.5-1.0x900"
    assert scaled("lengths.csv:n", 1.0, "--day") == "lengths.csv:n"
    with pytest.raises(InputError, match="lengths of a file"):
        scaled("lengths.csv:n", 1.1, "--day")


@pytest.mark.slow
def test_every_hour_has_as_few_replicas_as_hold_the_level() -> None:
    wanted = Wanted(
        job="llama-3-8b-decode",
        overrides=("stack=vllm", "model.num_hidden_layers=2"),
        targets={"ttft.p99": 0.1, "tpot.p99": 0.006},
        rate=600.0,
        input_tokens="800",
        output_tokens="50",
        count=200,
        kind="aggregated",
    )
    curve = [Load(hour="night", rate=0.2), Load(hour="day", rate=1.0), Load(hour="long", rate=1.0, input=2.0)]
    found = over_day(wanted, Choice(settings=("gpus=1",), replicas=3), curve, 2.0)
    night, day, long = found.hours
    assert night.decode < day.decode < long.decode
    assert all(hour.margin >= 0 and hour.prefill == 0 and hour.gpus == hour.decode for hour in found.hours)
    apart = replace(wanted, kind="disaggregated")
    choice = Choice(settings=("gpus=1",), prefill_settings=("gpus=1",), replicas=2, prefill_replicas=2)
    night, day, long = over_day(apart, choice, curve, 2.0).hours
    assert long.prefill > day.prefill >= night.prefill >= 1
    assert long.decode < 2 * day.decode
