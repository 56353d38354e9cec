"""Fit the power model of `simulator/engine/power.py` from sustained runs.

Prints the values for a profile's [gpu.power].

    python -m hardware_profiles.calibration.fit_power [h200 | h100]

Rows of `tables/<GPU>_sustained.csv` with op `duty`: a GEMM that alternates with copies or idling. At full clock (rows
that the power cap does not slow) the mean power is the time-weighted mean of the kinds of work: least squares gives the
power of GEMM, copy and idle. Rows beyond the cap give the exponent of slowdown = (demand / cap)^exponent.

Where a GPU has tables of GEMMs between other kernels under sustained load (`tables/<GPU>_fp8_mix.csv`, `_clock.csv`),
power and exponent are found there and in the duty rows instead. What a BF16 GEMM draws at full clock is known from the
duty rows; the watts of FP8 GEMMs, of those with sums outside the tensor cores (`split`), the exponent, and the share of
what memory-bound kernels draw alone that they draw between GEMMs (`between`) are those that bring the times of every
second mix closest; the other half judges them. Attention between GEMMs is found in `_clock.csv`: what it draws by
how long the GEMMs last, and how much longer than they it lasts itself.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simulator.cost.cost import Share
from simulator.cost.gemm_cost import gemm_cost
from simulator.inputs import load_hardware
from simulator.ops import Gemm
from simulator.spec.kernel_params import rested

TABLES = Path(__file__).parent / "tables"
SLOWED = 1.01
"""A GEMM slower than this against its burst is held back by power."""


def rows(gpu: str, table: str = "sustained") -> list[dict[str, str]]:
    """A table of a GPU; empty where there is none."""
    path = TABLES / f"{gpu}_{table}.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


DRAWN = {
    "unvectorized": ("mul_rows", "to_float", "cat"),
    "update": ("adamw_layers",),
    "scatter": ("index_add",),
}
"""Value of [gpu.power] -> ops of `measure_draw.py` that draw it."""
DRAW_COLUMNS = ("power_w", "energy_w")
SETTLED = 2.0
"""Runs from so long on show the power that NVML averages over a second [s]."""


def drawn(gpu: str) -> dict[str, float]:
    """Power of memory-bound kernels that draw less than most [W]: mean of NVML's readings and its energy counter."""
    table = [r for r in rows(gpu, "draw") if float(r["seconds"]) >= SETTLED]
    out = {}
    for name, ops in DRAWN.items():
        watts = [float(r[column]) for r in table if r["op"] in ops for column in DRAW_COLUMNS]
        if watts:
            out[name] = float(np.mean(watts))
    return out


class Mix(NamedTuple):
    """A GEMM between memory-bound kernels, or pauses (`idle`): which watts count, times of both at full clock, their
    power, what the GEMM took under sustained load, and the power then [s, W]."""

    precision: str
    gemm: float
    memory: float
    watts: float
    measured: float
    idle: bool = False
    power: float = 0.0

    @property
    def slowdown(self) -> float:
        """How many times as long the GEMM takes as at full clock."""
        return self.measured / self.gemm


class FullClock(NamedTuple):
    """Power of a BF16 GEMM, a copy and a pause at full clock [W]; the limit [W] (0: never met), and the exponent."""

    tensor: float
    copy: float
    idle: float
    cap: float
    exponent: float


def full_clock(rounds: Sequence[Mix], copies: float, still: float = 0.0) -> FullClock:
    """From BF16 GEMMs alone and between copies or pauses; `copies`: power of copies alone [W], `still`: of a GPU on
    which nothing runs [W] (0: not measured).

    Raises ValueError where those that the limit does not slow determine no power of the GEMM.
    """
    equations, powers, pressed = [[0.0, 1.0, 0.0]], [copies], []
    if still:
        equations.append([0.0, 0.0, 1.0])
        powers.append(still)
    for mix in rounds:
        if mix.slowdown < SLOWED:
            part = mix.gemm / (mix.gemm + mix.memory)
            equations.append([part, *((0.0, 1 - part) if mix.idle else (1 - part, 0.0))])
            powers.append(mix.power)
        else:
            pressed.append(mix)
    if np.linalg.matrix_rank(np.array(equations)) < len(equations[0]):
        raise ValueError("no GEMM between copies or pauses ran at full clock")
    tensor, copy, idle = np.linalg.lstsq(np.array(equations), np.array(powers), rcond=None)[0]
    cap = float(np.mean([mix.power for mix in pressed])) if pressed else 0.0
    exponents = []
    for mix in pressed:
        other = idle if mix.idle else copy
        demand = (mix.gemm * tensor + mix.memory * other) / (mix.gemm + mix.memory)
        if demand > cap * 1.02:
            exponents.append(log(mix.slowdown) / log(demand / cap))
    exponent = float(np.mean(exponents)) if exponents else 0.0
    return FullClock(float(tensor), float(copy), float(idle), cap, exponent)


def fit(gpu: str = "h200") -> dict[str, float]:
    """Power of GEMM, copy, norm, attention and idle at full clock [W], the cap over the TDP, and the exponent."""
    only = {r["form"]: float(r["power_w"]) for r in rows(gpu) if r["op"] == "duty" and not r["k"]}
    found = full_clock(duty(gpu), only["copy only"])
    return {
        "cap_of_tdp": found.cap / load_hardware(gpu).gpu.tdp,
        "idle": found.idle,
        "memory": (found.copy + only["norm only"]) / 2,
        "tensor": found.tensor,
        "attention": attention(slowed_attention(gpu), found.cap, found.exponent),
        "exponent": found.exponent,
    }


def slowed_attention(gpu: str) -> list[float]:
    """How many times as long attention kernels last under sustained load as after rest."""
    return [float(r["us"]) / float(r["us_burst"]) for r in rows(gpu) if r["op"] == "attention"]


def attention(slow: Sequence[float], cap: float, exponent: float) -> float:
    """Power of attention kernels [W]: what brings their time from that after rest to that under sustained load."""
    return float(cap * np.mean(slow) ** (1 / exponent))


PRECISIONS = ("bf16", "fp8_tensor", "fp8_row", "fp8_tensor_split")


def mixes(gpu: str) -> tuple[list[Mix], float]:
    """The mixes of a GPU's table, and the mean power of the memory-bound kernels alone [W]."""
    cluster = load_hardware(gpu)
    kernels, share = rested(cluster.kernels), Share(sms=cluster.gpu.sms)
    table = rows(gpu, "fp8_mix")
    alone = {r["memory"]: float(r["power_w"]) for r in table if r["op"] == "alone" and not r["precision"]}
    out = []
    for r in table:
        if r["precision"] and r["op"] != "layer":
            split = r["precision"].endswith("_split")
            precision = r["precision"].removesuffix("_split")
            work = Gemm(m=int(r["m"]), n=int(r["n"]), k=int(r["k"]), precision=precision)  # type: ignore[arg-type]
            cls = f"gemm.{precision}" + (".split" if split else "")
            seconds = gemm_cost(work, cls, cluster.gpu, kernels, share).duration
            watts = alone.get(r["memory"], 0.0)
            memory, measured = float(r["memory_us"] or 0) * 1e-6, float(r["gemm_us"]) * 1e-6
            out.append(Mix(r["precision"], seconds, memory, watts, measured))
    return [*out, *at_full_clock(gpu, alone)], float(np.mean(list(alone.values())))


def at_full_clock(gpu: str, alone: dict[str, float]) -> list[Mix]:
    """The same of `tables/<GPU>_clock.csv`, where the GEMM's time at full clock was measured with them: the least."""
    table = [r for r in rows(gpu, "clock") if r["precision"] and r["data"] == "normal"]
    draws: dict[str, list[float]] = {}
    for r in rows(gpu, "draw"):
        draws.setdefault(r["op"].replace("adamw_layers", "adamw"), []).extend(float(r[c]) for c in DRAW_COLUMNS)
    watts = {"": 0.0} | {op: float(np.mean(some)) for op, some in draws.items()} | alone
    out = []
    for r in table:
        if r["other"] in watts:
            fastest = min(float(one["gemm_us"]) for one in table if one["precision"] == r["precision"])
            other = float(r["other_us"] or 0) * int(r["calls"] or 0) / int(r["gemm_calls"])
            times = (fastest * 1e-6, other * 1e-6)
            out.append(Mix(r["precision"], *times, watts[r["other"]], float(r["gemm_us"]) * 1e-6))
    return out


def duty(gpu: str) -> list[Mix]:
    """GEMMs between copies and pauses (of 0 W here), of the table of sustained runs."""
    table = [r for r in rows(gpu) if r["op"] == "duty"]
    copies = next(float(r["power_w"]) for r in table if r["form"] == "copy only")
    out, burst = [], next(float(r["us_burst"]) for r in table if r["us_burst"])
    for r in (r for r in table if r["k"]):
        others, idle = float(r["seq"]), r["form"] == "idle"
        measured = (float(r["us"]) - others) * 1e-6
        watts = 0.0 if idle else copies
        out.append(Mix("bf16", burst * 1e-6, others * 1e-6, watts, measured, idle, float(r["power_w"])))
    return out


def under_load(mix: Mix, watts: Mapping[str, float], exponent: float, between: float, cap: float) -> float:
    """Time of the GEMM of a mix under sustained load [s]."""
    return float(mix.gemm * max(1.0, demanded(mix, watts, between) / cap) ** exponent)


def demanded(mix: Mix, watts: Mapping[str, float], between: float) -> float:
    """Power that a mix would draw at full clock [W]; `between`: see `SlowedMixes`."""
    other = mix.watts if mix.idle else mix.watts * between
    return float((mix.gemm * watts[mix.precision] + mix.memory * other) / (mix.gemm + mix.memory))


class SlowedMixes(NamedTuple):
    """Watts of each precision's GEMMs at full clock, the exponent, and the share of what memory-bound kernels draw
    alone that they draw between GEMMs."""

    watts: dict[str, float]
    exponent: float
    between: float

    def off(self, mixes: Sequence[Mix], cap: float) -> float:
        """Mean of |log(forecast / measured)| of the GEMMs of some mixes."""
        times = [(under_load(mix, self.watts, self.exponent, self.between, cap), mix.measured) for mix in mixes]
        return float(np.mean([abs(log(forecast / measured)) for forecast, measured in times]))


def slowed_mixes(mixes: Sequence[Mix], bf16: float, cap: float, start: tuple[float, float]) -> SlowedMixes:
    """What brings the times of GEMMs in mixes closest; `bf16` [W] is known, `start`: watts and exponent to begin at."""
    others = [name for name in PRECISIONS[1:] if any(mix.precision == name for mix in mixes)]

    def of(x: Sequence[float]) -> SlowedMixes:
        *watts, exponent, between = (float(one) for one in x)
        return SlowedMixes({"bf16": bf16, **dict(zip(others, watts, strict=True))}, exponent, between)

    from scipy.optimize import minimize  # slow to load

    begin = [*(start[0] for _ in others), start[1], 1.0]
    options = {"maxiter": 8000, "maxfev": 8000, "xatol": 1e-3, "fatol": 1e-9}
    search: Any = minimize  # its stubs want NumPy types
    return of(search(lambda x: of(x).off(mixes, cap), begin, method="Nelder-Mead", options=options).x.tolist())


START = (960.0, 0.58)
"""Watts of FP8 GEMMs and exponent that the search begins at."""


def fit_mixes(gpu: str) -> tuple[dict[str, float], dict[str, float]]:
    """(values for [gpu.power], mean absolute error of the mixes fitted and of those held out)."""
    found, memory = mixes(gpu)
    base = fit(gpu)
    found += [mix._replace(watts=base["idle"]) if mix.idle else mix for mix in duty(gpu)]
    found.sort(key=lambda mix: PRECISIONS.index(mix.precision))  # so that every second one is of each precision
    cap = base["cap_of_tdp"] * load_hardware(gpu).gpu.tdp
    best = slowed_mixes(found[::2], base["tensor"], cap, START)
    tensor = float(np.mean([best.watts[name] for name in PRECISIONS[:3]]))
    values = {"split": best.watts["fp8_tensor_split"], "exponent": best.exponent, "tensor": tensor}
    slow = slowed_attention(gpu)
    values |= {"memory": memory * best.between, "attention": attention(slow, cap, best.exponent)}
    values |= {name: watts * best.between for name, watts in drawn(gpu).items()}
    errors = {"fitted": best.off(found[::2], cap), "held out": best.off(found[1::2], cap)}
    return values, {"between": best.between} | errors


def attention_among(gpu: str, values: Mapping[str, float]) -> dict[str, float]:
    """What attention draws between GEMMs [W], and its slowdown over theirs: of forward with backward, where rested
    attention was timed between pauses."""
    table = rows(gpu, "clock")
    rested = {r["other"]: float(r["other_us"]) for r in table if r["precision"] == "pause" and r["gemm_share"] == "0.8"}
    mixed = [r for r in table if r["precision"] == "bf16" and r["data"] == "normal" and r["other"] in rested]
    if not mixed:
        return {}
    cap = values["cap_of_tdp"] * load_hardware(gpu).gpu.tdp
    fastest = min(float(r["gemm_us"]) for r in table if r["precision"] == "bf16")
    parts, over, lags = [], [], []
    for r in mixed:
        slow, own = float(r["gemm_us"]) / fastest, rested[r["other"]]
        gemms = int(r["gemm_calls"]) * fastest
        part = int(r["calls"]) * own / (gemms + int(r["calls"]) * own)
        parts.append(part)
        over.append(cap * slow ** (1 / values["exponent"]) - (1 - part) * values["tensor"])
        if "both" in r["other"]:
            lags.append(float(r["other_us"]) / own / slow)
    watts = float(np.dot(parts, over) / np.dot(parts, parts))
    return {"attention_mixed": watts, "attention_lag": float(np.mean(lags))}


WINDOWS = (("0ms", 0.010), ("10ms", 0.010), ("20ms", 0.030), ("50ms", 0.050), ("100ms", 0.100))
"""Windows behind a pause in which GEMMs are timed, and their lengths [s]; then the clock is at its lasting level."""
LONG = 0.1
"""Pauses from here on gain GEMMs the same, however long they last [s]."""


def pauses(gpu: str, values: Mapping[str, float]) -> list[float]:
    """For each measured long pause, how long a pause [s] gains GEMMs as much time if it counts in the mean demand.

    In b seconds of GEMMs a short pause p lowers the mean demand by (tensor - idle) p / b, and so saves them
    slowdown x exponent x (1 - idle / tensor) x p.
    """
    cap = values["cap_of_tdp"] * load_hardware(gpu).gpu.tdp
    slowed = (values["tensor"] / cap) ** values["exponent"]
    saved = slowed * values["exponent"] * (1.0 - values["idle"] / values["tensor"])
    return [
        sum(length * (1.0 / float(row[f"share_{window}"]) - 1.0) for window, length in WINDOWS) / saved
        for row in rows(gpu, "pauses")
        if float(row["pause_s"]) >= LONG
    ]


def spread(gpu: str, exponent: float) -> float:
    """Standard deviation of the demand between GPUs of this type, share of its mean: of what the same GEMM takes on
    each at the limit, turned into demand by the exponent; pooled over the GEMMs. 0 where there are no two GPUs."""
    times: dict[tuple[str, ...], list[float]] = {}
    for row in rows(gpu, "gpus"):
        times.setdefault(tuple(row[key] for key in ("precision", "m", "n", "k")), []).append(log(float(row["us"])))
    groups = [mine for mine in times.values() if len(mine) > 1]
    squares = sum(float(np.var(mine)) * len(mine) for mine in groups)
    return float((squares / max(1, sum(len(mine) - 1 for mine in groups))) ** 0.5 / exponent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = sorted(table.name.removesuffix("_sustained.csv") for table in TABLES.glob("*_sustained.csv"))
    parser.add_argument("gpu", nargs="?", default="h200", choices=measured, help="the GPU that was measured")
    gpu = parser.parse_args().gpu
    values = fit(gpu) | drawn(gpu)
    errors: dict[str, float] = {}
    if rows(gpu, "fp8_mix"):
        better, errors = fit_mixes(gpu)
        values |= better
    values |= attention_among(gpu, values)
    if found := pauses(gpu, values):
        values["pause"] = float(np.mean(found))
    if between := spread(gpu, values["exponent"]):
        values["spread"] = between
    for name, value in values.items():
        print(f"{name} = {value:.4g}")
    for part, error in errors.items():
        print(f"# mixes, {part}: {error:.1%}")


if __name__ == "__main__":
    main()
