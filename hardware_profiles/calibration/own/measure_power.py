"""Measure what a GPU of one's own draws, and how far its power limit slows it: a section of `foretrain calibrate
measure`.

GEMMs alone and between memory-bound kernels or pauses in several shares, those kernels and attention alone, and nothing
at all, each for a second or so under sustained load: the rounds of `measure_fp8_mix.py`, the kernels of that script and
of `measure_draw.py`. What a GEMM or an attention kernel takes after rest is timed as every other kernel's is
(`kernel_spans.py`). A row is a case: `us` of the GEMM (or the attention) after rest, `gemm_us` and `other_us` of one
call under sustained load, `calls` of the other kernel behind a GEMM, `power_w` and `sm_mhz` then, `limit_w` that the
driver enforces. A pause is a spin of one thread; its `other_us` is that at full clock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any

import torch

from hardware_profiles.calibration.measuring import kernel_spans, measure_fp8_mix
from hardware_profiles.calibration.measuring.kernel_spans import Call, Row
from hardware_profiles.calibration.measuring.measure_fp8_mix import Parts, memory_kernels, multiplication, time_of
from hardware_profiles.calibration.measuring.power import measure_draw
from hardware_profiles.calibration.measuring.power.measure_clock import repeat
from hardware_profiles.calibration.measuring.power.sensors import Sensors, meter
from hardware_profiles.calibration.own.power_rows import MEMORY, OP, PAUSE, Case

COLUMNS = ["other", "share", "calls", "gemm_us", "other_us", "power_w", "sm_mhz", "limit_w"]
"""Columns of this section only."""
SECONDS = 1.8
"""How long a case lasts [s]; its last half counts, when the clock has settled."""
AROUND = 0.6
"""What comes on top of it for each case: rest, first calls [s]."""
WARM = 3.0
"""GEMMs before the first case [s]: a cold GPU draws less."""
ALONE = 20
"""Calls of a kernel alone between two events."""
REST = 0.5
"""Behind sustained load the clock is up again after so long [s] (`h200_pauses.csv`)."""
SHAPE = measure_fp8_mix.MIXED
SPIN = 100_000
"""Cycles of the shortest pause that is timed."""


@cache
def _gemm(precision: str) -> Call:
    return multiplication(precision, *SHAPE)


@cache
def _memory() -> dict[str, Call]:
    return memory_kernels()


@cache
def _other(name: str) -> Call:
    """A kernel that is no dense GEMM."""
    if name in MEMORY:
        return _memory()[name]
    cases = {"adamw_layers": measure_draw.optimizer_cases, "attention": measure_draw.attention_cases}
    made = cases.get(name.removesuffix("_both"), measure_draw.memory_cases)
    return next(call for row, call in made() if row["op"] == name)


def _repeated(name: str, calls: int) -> Call:
    """So many calls of another kernel, in a CUDA graph where these are short: the host may need longer for each."""
    call = _other(name)
    if name in MEMORY:
        with suppress(RuntimeError):  # what cannot be captured: the fit sees whether the host held it back
            replay: Call = kernel_spans.captured([call] * calls).replay
            return replay
    return partial(repeat, call, calls)


@cache
def _rested(name: str) -> float:
    """Time of a GEMM or an attention kernel after rest [us]."""
    call = _gemm(name) if name.startswith(("bf16", "fp8")) else _other(name)
    time.sleep(REST)
    case = kernel_spans.Case({}, lambda: call, 2e-3)
    ((_, row),) = kernel_spans.measured([case])
    return float(row["us"])


def _behind(case: Case) -> tuple[Call, int, float]:
    """What runs behind the GEMM of a mix, its calls in a round, and its time at full clock where it is a pause [us]."""
    wanted = _rested(case.precision) * case.share / (1.0 - case.share)
    if case.other == PAUSE:
        time.sleep(REST)
        cycles = round(SPIN * wanted / time_of(partial(torch.cuda._sleep, SPIN)))
        pause = partial(torch.cuda._sleep, cycles)
        return pause, 1, time_of(pause)
    calls = max(1, round(wanted / time_of(_repeated(case.other, ALONE)) * ALONE))
    return _repeated(case.other, calls), calls, 0.0


def _measured(case: Case) -> Row:
    row: Row = {"op": OP, "form": case.form, "precision": case.precision, "other": case.other}
    if case.form == "idle":
        with Sensors() as sensors:
            time.sleep(SECONDS)
        return row | _state(sensors.readings())
    if case.form == "other":
        if case.other.startswith("attention"):
            row["us"] = round(_rested(case.other), 3)
        found = measure_fp8_mix.lasting([("memory", _repeated(case.other, ALONE))], SECONDS)
        return row | {"calls": ALONE, "other_us": round(found["memory_us"] / ALONE, 2)} | _state(found)
    m, n, k = SHAPE
    row |= {"m": m, "n": n, "k": k, "us": round(_rested(case.precision), 3)}
    parts: Parts = [("gemm", _gemm(case.precision))]
    if case.form == "gemm":
        found = measure_fp8_mix.lasting(parts, SECONDS)
        return row | {"gemm_us": found["gemm_us"]} | _state(found)
    behind, calls, pause = _behind(case)
    found = measure_fp8_mix.lasting([*parts, ("memory", behind)], SECONDS)
    other = pause or found["memory_us"] / calls
    row |= {"share": case.share, "calls": calls, "gemm_us": found["gemm_us"], "other_us": round(other, 2)}
    return row | _state(found)


def _state(found: dict[str, Any]) -> Row:
    """Power, of the instant where the driver shows it, and clock. Raises RuntimeError where nothing was read."""
    if "sm_mhz" not in found:
        raise RuntimeError("the driver showed no power")
    return {"power_w": found.get("power_w_instant", found["power_w"]), "sm_mhz": found["sm_mhz"]}


def measure(cases: Sequence[Case]) -> Iterator[Row]:
    """Rows of the cases that ran."""
    limit = round(meter().limit(), 1)
    for case in cases:
        try:
            yield _measured(case) | {"limit_w": limit}
        except Exception as error:
            what = " with ".join(name for name in (case.precision, case.other) if name) or "idle"
            print(f"left out {what}: {type(error).__name__} {str(error)[:200]}", file=sys.stderr, flush=True)


def warm_up() -> None:
    """GEMMs for some seconds, none of them kept."""
    measure_fp8_mix.lasting([("gemm", _gemm("bf16"))], WARM)


def free() -> None:
    """Give back what the kernels hold of the GPU's memory."""
    for held in (_gemm, _memory, _other, _rested):
        held.cache_clear()
    torch.cuda.empty_cache()
