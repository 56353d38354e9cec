"""Measure what the kernels of whole training steps take while the GPU is as warm as in training, and what they draw.

    python workloads/facts/measure_step_parts.py OUT_DIRECTORY [--only REGEX] [--seconds S]

Compared with, kernel by kernel; nothing is calibrated with `parts.csv`. Programs are those of `measure_step.py` and
`measure_moe_step.py`; `fp8` ones are `measure_step.py`'s through torchao's float8 training (tensorwise, dynamic
scales), where torchao is installed, compiled. Each runs for some seconds; then one more step is profiled without a
pause before it, so that clock and temperature are those of the steps before. `steps.csv` has a row a program:
`step_ms` the median of the last half, `span_ms` the profiled step from its first kernel to its last, `busy_ms` the sum
of its kernels, `energy_w` the mean power of the last half by the energy counter. `parts.csv` has a row a kernel name
and program: how often, and how long together. `sequence.csv` has every kernel of the step in order: when it starts
after the one before ends [us], and how long it takes [us].
"""

from __future__ import annotations

import csv
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import measure_moe_step as moe  # type: ignore[import-not-found]  # scripts next to it
import measure_step as dense  # type: ignore[import-not-found]
import step_runner as runner  # type: ignore[import-not-found]
import torch
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]
Step = Callable[[], object]
DENSE = (
    ("8b", "eager", 4096, 2, 2),
    ("8b", "compile", 4096, 2, 2),
    ("8b", "fp8", 4096, 2, 2),
    ("1b", "eager", 4096, 1, 2),
    ("1b", "compile", 4096, 1, 2),
    ("70b", "eager", 4096, 1, 2),
    ("70b", "compile", 4096, 1, 2),
    ("70b", "fp8", 4096, 1, 2),
)
MOE = (
    ("mixtral", "eager", "index_add", 4096, 2, 1, "balanced"),
    ("qwen3-30b", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "compile", "index_add", 4096, 2, 2, "balanced"),
    ("olmoe", "compile", "index_add", 4096, 4, 2, "balanced"),
    ("v2-lite", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("v2-lite", "compile", "index_add", 4096, 2, 2, "balanced"),
)


def moe_step(name: str, mode: str, variant: str, seq: int, mbs: int, microbatches: int, load: str) -> Step:
    """A step of `measure_moe_step.py`'s program."""
    c = moe.MODELS[name]
    chosen = moe.chosen_experts(load, mbs * seq, c.experts, c.topk)
    program: Step = moe.program(c, variant, mode, seq, mbs, microbatches, chosen)
    return program


class Meter:
    """Energy counter and clock of the GPU."""

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        self.nvml, self.gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)

    def joule(self) -> float:
        """Energy since the driver was loaded [J]."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu)) / 1e3

    def clock(self) -> float:
        """SM clock now [MHz]."""
        return float(self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM))

    def watt(self) -> float:
        """Power now [W]."""
        return float(self.nvml.nvmlDeviceGetPowerUsage(self.gpu)) / 1e3


def lasting(call: Step, seconds: float, meter: Meter) -> Row:
    """Time of a call [ms] repeated for some seconds, each waited for, with power and clock of the last half."""
    clocks: list[tuple[float, float]] = []
    done = threading.Event()

    def read() -> None:
        while not done.wait(0.05):
            clocks.append((meter.clock(), meter.watt()))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    times: list[float] = []
    begun = time.perf_counter()
    half: tuple[float, float] | None = None
    while time.perf_counter() - begun < seconds:
        if half is None and time.perf_counter() - begun > seconds / 2:
            half = (meter.joule(), time.perf_counter())
        a = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - a)
    joule, now = meter.joule(), time.perf_counter()
    done.set()
    thread.join()
    late = clocks[len(clocks) // 2 :] or [(0.0, 0.0)]
    energy = (joule - half[0]) / (now - half[1]) if half else 0.0
    return {
        "step_ms": round(median(times[len(times) // 2 :]) * 1e3, 3),
        "steps": len(times),
        "energy_w": round(energy),
        "power_w": round(median(w for _, w in late)),
        "sm_mhz": round(median(c for c, _ in late)),
    }


def profiled(step: Step) -> list[tuple[str, float, float]]:
    """Kernels of one step, behind two others: (name, start, length) [us]."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        step()
        torch.cuda.synchronize()
        step()
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    events = sorted(
        (e.time_range.start, e.name, e.time_range.elapsed_us()) for e in seen.events() if e.device_type == cuda
    )
    last = events[-(len(events) // 3) :]
    return [(name, float(start), float(length)) for start, name, length in last]


def write(path: str, rows: list[Row]) -> None:
    """Write a table anew."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# {runner.gpu()}, driver {runner.driver()}, torch {torch.__version__}, measure_step_parts.py\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def program(what: Row, step: Step, seconds: float, meter: Meter) -> tuple[Row, list[Row], list[Row]]:
    """A step's row, its kernels by name, and all of them in order."""
    runner.warm(step)
    whole = {**what, **lasting(step, seconds, meter)}
    kernels = profiled(step)
    whole["span_ms"] = round((kernels[-1][1] + kernels[-1][2] - kernels[0][1]) / 1e3, 3)
    whole["busy_ms"] = round(sum(k[2] for k in kernels) / 1e3, 3)
    whole["launches"] = len(kernels)
    together: dict[str, list[float]] = {}
    order: list[Row] = []
    end = kernels[0][1]
    for name, start, length in kernels:
        together.setdefault(name[:200], []).append(length)
        order.append({**what, "gap_us": round(start - end, 2), "us": round(length, 2), "kernel": name[:120]})
        end = start + length
    parts = [
        {**what, "calls": len(times), "us": round(sum(times), 1), "kernel": name}
        for name, times in sorted(together.items(), key=lambda one: -sum(one[1]))
    ]
    return whole, parts, order


def main() -> None:
    """All programs that --only names."""
    args = runner.arguments(__doc__ or "")
    os.makedirs(args.out, exist_ok=True)
    meter = Meter()
    steps: list[Row] = []
    parts: list[Row] = []
    sequence: list[Row] = []
    plan: list[tuple[str, Any, tuple[Any, ...]]] = [("dense", dense.program, one) for one in DENSE]
    plan += [("moe", moe_step, one) for one in MOE]
    last = time.time() + args.budget
    for family, build, one in plan:
        title = " ".join(map(str, (family, *one)))
        if not re.search(args.only, title) or time.time() > last:
            continue
        try:
            whole, some, order = program({"program": title}, build(*one), args.seconds, meter)
        except Exception as error:
            print("failed", title, type(error).__name__, str(error)[:500], flush=True)
            runner.release()
            continue
        runner.release()
        steps.append(whole)
        parts += some
        sequence += order
        print(whole, flush=True)
        for name, rows in (("steps", steps), ("parts", parts), ("sequence", sequence)):
            write(os.path.join(args.out, f"{name}.csv"), rows)


if __name__ == "__main__":
    main()
