"""Measure kernels at the clock that GEMMs leave, and GEMMs at the clock that other kernels leave.

    python -m hardware_profiles.calibration.measuring.power.measure_clock OUT.csv [--seconds S] [--only REGEX]

At the power limit the governor sets one clock for all kernels of some tens of milliseconds. Rows are rounds of
`measure_fp8_mix.py`: GEMMs (8192 cubed) and another kernel in turn, so many calls that the GEMM takes about the share
`gemm_share` of the time (1 and 0: alone), repeated for some seconds; `gemm_us` and `other_us` of one call are means of
the last half, `sm_mhz` the mean clock. `data`: of the GEMM's operands, normal random numbers or, heavy, normal ones
times the exponential of normal ones, as gradients are. Attention also takes turns with pauses (precision `pause`): with
enough of them the clock is at its highest, and the mean power says what attention draws there.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from hardware_profiles.calibration.measuring.kernel_spans import Call, Row, Table
from hardware_profiles.calibration.measuring.measure_fp8_mix import (
    MIXED,
    Parts,
    current,
    lasting,
    memory_kernels,
    multiplication,
    time_of,
)
from hardware_profiles.calibration.measuring.power.measure_draw import attention_cases, memory_cases, optimizer_cases
from hardware_profiles.calibration.measuring.torch_kernels import bf16

COLUMNS = [
    "precision",
    "data",
    "other",
    "gemm_share",
    "calls",
    "gemm_calls",
    "gemm_us",
    "other_us",
    "power_w",
    "sm_mhz",
]
SHARES = (0.3, 0.5, 0.8)
DRAWN = ("to_float", "mul_rows", "silu", "cat", "index_add", "add", "cross_entropy", "rms_norm")
ROUND = 4e4
"""A round lasts about so long at least where kernels are repeated [us]."""


def heavy(precision: str) -> Call:
    """The GEMM on numbers whose sizes differ by orders of magnitude, the largest of which sets the scale."""
    m, n, k = MIXED
    a, w = bf16(m, k) * torch.exp(2.0 * bf16(m, k)), bf16(n, k) * 0.02
    if precision == "bf16":
        return lambda: torch.mm(a, w.t())
    (a8, sa), (w8, sw) = current(a), current(w)
    fast = precision != "fp8_tensor_split"
    return lambda: torch._scaled_mm(a8, w8.t(), scale_a=sa, scale_b=sw, out_dtype=torch.bfloat16, use_fast_accum=fast)


def pause() -> None:
    """A kernel of one thread, while which nothing else runs."""
    torch.cuda._sleep(300_000)


def others() -> Iterator[tuple[str, Call]]:
    """Kernels that are not GEMMs."""
    kernels = memory_kernels()
    for name in ("norm", "cast_row", "cast_current"):
        yield name, kernels[name]
    yield from ((str(row["op"]), call) for row, call in memory_cases() if row["op"] in DRAWN)
    for row, call in optimizer_cases():
        if row["op"] == "adamw_layers" and row["dtype"] == "bfloat16":
            yield "adamw", call
    yield from ((f"{row['op']}_{row['seq']}", call) for row, call in attention_cases())


def rows(wanted: str) -> Iterator[tuple[Row, Parts]]:
    """What is measured, and its round."""
    calls: dict[tuple[str, str], Call] = {}
    for precision in ("bf16", "fp8_tensor", "fp8_tensor_split"):
        calls[precision, "normal"], calls[precision, "heavy"] = multiplication(precision, *MIXED), heavy(precision)
    for (precision, data), gemm in calls.items():
        yield {"precision": precision, "data": data, "gemm_share": 1.0, "gemm_calls": 10}, [("gemm", gemm)] * 10
    for name, other in others():
        if not re.search(wanted, name):
            continue
        each = time_of(other)
        many = max(1, round(ROUND / 4 / each))
        yield {"other": name, "gemm_share": 0.0, "calls": many}, [("memory", partial(repeat, other, many))]
        mixed = list(calls.items()) if name in ("norm", "cast_row") else [(("bf16", "normal"), calls["bf16", "normal"])]
        if name.startswith("attention"):
            mixed.append((("pause", ""), pause))
        for (precision, data), gemm in mixed:
            for share in SHARES:
                ratio = time_of(gemm) * (1.0 - share) / share / each
                many, gemms = (max(1, round(ratio)), 1) if ratio >= 0.7 else (1, max(1, round(1.0 / ratio)))
                what: Row = {"precision": precision, "data": data, "other": name, "gemm_share": share, "calls": many}
                parts: Parts = [("gemm", gemm)] * gemms + [("memory", partial(repeat, other, many))]
                yield what | {"gemm_calls": gemms}, parts


def repeat(call: Callable[[], Any], many: int) -> None:
    """The call, so many times."""
    for _ in range(many):
        call()


def main() -> None:
    """All rows whose other kernel --only names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    table = Table(args.out, COLUMNS)
    for what, parts in rows(args.only):
        try:
            found = lasting(parts, args.seconds)
        except Exception as error:
            print("failed", what, str(error)[:200], flush=True)
            continue
        row = what | {key: found.get(key, "") for key in ("power_w", "sm_mhz")}
        if "gemm_us" in found:
            row["gemm_us"] = round(found["gemm_us"] / what["gemm_calls"], 2)
        if "memory_us" in found:
            row["other_us"] = round(found["memory_us"] / what["calls"], 2)
        table.add([row])
        print(row, flush=True)


if __name__ == "__main__":
    main()
