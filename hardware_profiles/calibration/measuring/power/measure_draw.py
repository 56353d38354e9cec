"""Measure what single kinds of kernels draw and how far the power limit slows them.

    python -m hardware_profiles.calibration.measuring.power.measure_draw OUT.csv [--seconds S] [--only REGEX]

Each row runs one kernel back to back for some seconds, in pieces of about 20 ms that are waited for. `us_burst` is its
time in the first piece after 0.5 s of rest, `us` in the last half; `energy_w` the mean power over the last half by the
energy counter (it moves in steps of about 0.1 s), `power_w` the median of NVML's readings (means of a second), `sm_mhz`
of the clock's. `bytes` are the least that must move, `flops` what is computed. `data`: normal random numbers (normal),
weights of standard deviation 0.02 with normal activations (model), a SwiGLU's result (swiglu). adamw: parameters,
gradients and moments of `dtype`.
"""

from __future__ import annotations

import argparse
import re
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from hardware_profiles.calibration.measuring.kernel_spans import Row, Table
from hardware_profiles.calibration.measuring.power.measure_sustained import timed
from hardware_profiles.calibration.measuring.torch_kernels import bf16, norm, swiglu

COLUMNS = ["op", "data", "m", "n", "k", "groups", "seq", "heads", "kv_heads", "d", "dtype", "bytes", "flops", "us"]
COLUMNS += ["us_burst", "energy_w", "power_w", "sm_mhz", "seconds"]
Call = Callable[[], object]
Case = tuple[Row, Call]


class Readings:
    """Clock and power while something runs."""

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        self.nvml: Any = pynvml
        self.gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
        self.seen: list[tuple[float, float]] = []

    def joule(self) -> float:
        """The energy counter [J]."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu)) / 1e3

    def read(self, done: threading.Event) -> None:
        """Until `done` is set."""
        self.seen = []
        while not done.wait(0.05):
            clock = self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM)
            self.seen.append((float(clock), self.nvml.nvmlDeviceGetPowerUsage(self.gpu) / 1e3))


def lasting(call: Call, seconds: float, readings: Readings) -> Row:
    """Burst and lasting time of a call [us], power and clock."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    once = timed(call, 5)
    time.sleep(0.5)
    calls = max(1, int(20e3 / once))
    times = [timed(call, calls)]
    done = threading.Event()
    thread = threading.Thread(target=readings.read, args=(done,), daemon=True)
    thread.start()
    begun, half = time.perf_counter(), (0.0, 0.0)
    while (now := time.perf_counter()) - begun < seconds:
        if not half[1] and now - begun > seconds / 2:
            half = (readings.joule(), now)
        times.append(timed(call, calls))
    joule, now = readings.joule(), time.perf_counter()
    done.set()
    thread.join()
    late = readings.seen[len(readings.seen) // 2 :]
    return {
        "us": round(sum(times[len(times) // 2 :]) / len(times[len(times) // 2 :]), 2),
        "us_burst": round(times[0], 2),
        "energy_w": round((joule - half[0]) / (now - half[1])),
        "power_w": round(median(w for _, w in late)),
        "sm_mhz": round(median(c for c, _ in late)),
        "seconds": seconds,
    }


def gemm_cases() -> Iterator[Case]:
    """Dense GEMMs of layers, on normal random numbers and on what a model multiplies."""
    for m, n, k in (
        (8192, 8192, 8192),
        (8192, 28672, 4096),
        (8192, 6144, 4096),
        (8192, 5120, 2048),
        (8192, 32000, 2048),
    ):
        for data, std in (("normal", 1.0), ("model", 0.02)):
            x, w = bf16(m, k), bf16(n, k) * std
            yield (
                {"op": "gemm", "data": data, "m": m, "n": n, "k": k, "flops": 2.0 * m * n * k, "dtype": "bf16"},
                partial(F.linear, x, w),
            )
    x, g = bf16(8192, 4096), bf16(8192, 14336) * 1e-4
    flops = 2.0 * 8192 * 4096 * 14336
    what: Row = {"op": "wgrad", "data": "model", "m": 14336, "n": 4096, "k": 8192, "flops": flops, "dtype": "bf16"}
    yield what, partial(torch.mm, g.t(), x)
    x = F.silu(bf16(8192, 14336)) * bf16(8192, 14336)
    w = bf16(4096, 14336) * 0.02
    yield what | {"op": "gemm", "data": "swiglu", "m": 8192, "n": 4096, "k": 14336}, partial(F.linear, x, w)


def grouped_cases() -> Iterator[Case]:
    """Grouped GEMMs: experts, rows an expert, inner and outer size."""
    for groups, rows, n, k in (
        (8, 2048, 28672, 4096),
        (128, 512, 1536, 2048),
        (64, 1024, 2048, 2048),
        (16, 1024, 12800, 4096),
    ):
        x, w = bf16(groups * rows, k), bf16(groups, n, k) * 0.02
        ends = torch.arange(1, groups + 1, device="cuda", dtype=torch.int32) * rows
        flops = 2.0 * groups * rows * n * k
        what: Row = {"op": "grouped", "data": "model", "m": rows, "n": n, "k": k, "groups": groups, "flops": flops}
        yield what | {"dtype": "bf16"}, partial(torch._grouped_mm, x, w.transpose(-2, -1), offs=ends)


def attention_cases() -> Iterator[Case]:
    """Causal attention as SDPA chooses it, forward, and forward with backward."""
    for batch, seq, heads, kv in ((2, 4096, 32, 8), (1, 8192, 64, 8)):
        q, k, v = bf16(batch, heads, seq, 128), bf16(batch, kv, seq, 128), bf16(batch, kv, seq, 128)
        flops = 2.0 * batch * heads * seq * seq * 128
        what: Row = {
            "op": "attention",
            "seq": seq,
            "heads": heads,
            "kv_heads": kv,
            "d": 128,
            "m": batch,
            "dtype": "bf16",
        }
        ahead = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
        yield what | {"data": "normal", "flops": flops}, partial(ahead, q, k, v)
        grads = [x.requires_grad_() for x in (q, k, v)]
        g = bf16(batch, heads, seq, 128)

        def both(grads: list[torch.Tensor] = grads, g: torch.Tensor = g) -> None:
            torch.autograd.grad(ahead(*grads), grads, g)

        yield what | {"op": "attention_both", "data": "normal", "flops": 3.5 * flops}, both


def memory_cases() -> Iterator[Case]:
    """Memory-bound kernels of a step."""
    m, n = 65536, 2048
    x, y, w = bf16(m, n), bf16(m, n), bf16(n)
    token = torch.randperm(m, device="cuda") // 8
    base, weight = bf16(m // 8, n), bf16(m, 1)
    size: Row = {"m": m, "n": n, "dtype": "bf16", "data": "normal"}
    moved = 2.0 * m * n
    yield size | {"op": "copy", "bytes": 2 * moved}, partial(y.copy_, x)
    yield size | {"op": "add", "bytes": 3 * moved}, partial(torch.add, x, y)
    yield size | {"op": "add_", "bytes": 3 * moved}, partial(y.add_, x)
    yield size | {"op": "mul", "bytes": 3 * moved}, partial(torch.mul, x, y)
    yield size | {"op": "mul_rows", "bytes": 2 * moved}, partial(torch.mul, x, weight)
    yield size | {"op": "silu", "bytes": 2 * moved}, partial(F.silu, x)
    yield size | {"op": "to_float", "bytes": 3 * moved}, x.float
    yield size | {"op": "cat", "bytes": 2 * moved}, partial(torch.cat, (x[:, :1024], y[:, :1024]), dim=-1)
    yield size | {"op": "zero", "bytes": moved}, y.zero_
    yield (
        size | {"op": "transposed_copy", "bytes": 2 * moved},
        lambda: x.view(16, 4096, 16, 128).transpose(1, 2).contiguous(),
    )
    yield size | {"op": "index_select", "bytes": 2 * moved}, partial(base.index_select, 0, token)
    zeros = torch.zeros_like(base)
    yield size | {"op": "index_add", "bytes": moved + 2 * moved / 8}, partial(zeros.index_add, 0, token, x)
    yield size | {"op": "norm_compiled", "bytes": 2 * moved}, partial(torch.compile(norm), x, w)
    yield size | {"op": "rms_norm", "bytes": 2 * moved}, partial(F.rms_norm, x, (n,), w)
    yield size | {"op": "swiglu_compiled", "bytes": 1.5 * moved}, partial(torch.compile(swiglu), x)
    logits = bf16(8192, 32000).float()
    targets = torch.randint(0, 32000, (8192,), device="cuda")
    yield (
        {"op": "cross_entropy", "m": 8192, "n": 32000, "dtype": "fp32", "data": "normal"},
        partial(F.cross_entropy, logits, targets),
    )
    yield {"op": "sort", "m": 65536, "dtype": "int64"}, partial(torch.argsort, token, stable=True)


def optimizer_cases() -> Iterator[Case]:
    """Fused AdamW over many tensors, few large ones and one huge."""
    shapes: dict[str, list[tuple[int, ...]]] = {
        "layers": [(14336 * 2, 4096), (4096, 14336), (6144, 4096), (4096, 4096), (4096,), (4096,)] * 4,
        "experts": [(128, 1536, 2048), (128, 2048, 768)] * 2,
        "small": [(1024, 1024)] * 256,
    }
    for name, sizes in shapes.items():
        for dtype in (torch.bfloat16, torch.float32):
            some = [torch.nn.Parameter(torch.randn(*s, device="cuda", dtype=dtype)) for s in sizes]
            for p in some:
                p.grad = torch.randn_like(p) * 1e-3
            step = torch.optim.AdamW(some, lr=1e-9, fused=True).step
            count = sum(p.numel() for p in some)
            moved = 7.0 * count * some[0].element_size()
            yield (
                {"op": f"adamw_{name}", "m": count, "groups": len(some), "dtype": str(dtype)[6:], "bytes": moved},
                step,
            )


def main() -> None:
    """All cases that --only names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=1.2)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    table, readings = Table(args.out, COLUMNS), Readings()
    kinds: tuple[Callable[[], Iterator[Case]], ...]
    kinds = (optimizer_cases, gemm_cases, grouped_cases, attention_cases, memory_cases)
    for cases in kinds:
        for what, call in cases():
            if re.search(args.only, str(what["op"])):
                try:
                    row = what | lasting(call, args.seconds, readings)
                    table.add([row])
                    print(row, flush=True)
                except Exception as error:
                    print("failed", what, str(error)[:300], flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
