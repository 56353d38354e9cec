"""Measure GEMMs and attention in a long run, when the GPU has settled at the clock its power budget allows.

    python hardware_profiles/calibration/measuring/power/measure_sustained.py OUT.csv [seconds_per_row]

A training step keeps the GPU at its power limit for hours; a benchmark of twelve launches does not. Each row runs one
kernel back to back for some seconds on fresh random data and times the last half; `clock_mhz` and `power_w` are read
from the driver meanwhile. `mix` rows run the GEMMs of a transformer layer in turn, forward and backward, as training
does; their `us` is the time of one round, `flops` its work. Needs only PyTorch with CUDA.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

COLUMNS = ["op", "precision", "form", "m", "n", "k", "batch", "seq", "heads", "d_qk", "d_v", "causal"]
COLUMNS += ["backward", "flops", "us", "us_burst", "tflops", "clock_mhz", "power_w"]
SHAPES = [
    (4096, 4096, 4096), (8192, 8192, 8192), (4096, 13312, 16384), (4096, 16384, 6656), (4096, 2304, 16384),
    (4096, 24576, 1536), (4096, 7168, 16384), (4096, 7168, 2048), (8192, 5120, 5120), (16384, 4096, 4096),
]  # fmt: skip
Row = dict[str, Any]


class Sensors:
    """Mean SM clock and power while a measurement runs."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, float]] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        query = ["nvidia-smi", "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"]
        while not self.stop.is_set():
            try:
                shown = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False).stdout
                clock, power = shown.split(",")
                self.rows.append((float(clock), float(power)))
            except (ValueError, subprocess.SubprocessError):
                pass
            time.sleep(0.2)

    def __enter__(self) -> Sensors:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def means(self) -> tuple[float, float]:
        """Means of the last half."""
        rows = self.rows[len(self.rows) // 2 :] or [(0.0, 0.0)]
        return sum(r[0] for r in rows) / len(rows), sum(r[1] for r in rows) / len(rows)


def timed(fn: Callable[[], object], repeats: int) -> float:
    """Mean time of `repeats` calls [us]."""
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    for _ in range(repeats):
        fn()
    b.record()
    b.synchronize()
    return float(a.elapsed_time(b)) / repeats * 1e3


def sustained(fn: Callable[[], object], seconds: float) -> tuple[float, float, float, float]:
    """(burst, sustained) time [us], clock [MHz], power [W]."""
    time.sleep(1.0)
    for _ in range(3):
        fn()
    torch.cuda.synchronize()
    burst = timed(fn, 10)
    chunk = max(1, int(0.1e6 / burst))
    times: list[float] = []
    with Sensors() as sensors:
        end = time.time() + seconds
        while time.time() < end:
            times.append(timed(fn, chunk))
    late = times[len(times) // 2 :]
    return burst, sum(late) / len(late), *sensors.means()


def row(out: list[Row], fn: Callable[[], object], flops: float, seconds: float, **what: Any) -> None:
    """Measure one kernel and keep it."""
    try:
        burst, us, clock, power = sustained(fn, seconds)
    except Exception as error:
        print("failed", what, str(error)[:100], flush=True)
        return
    what |= {"flops": flops, "us": round(us, 3), "us_burst": round(burst, 3), "tflops": round(flops / us / 1e6, 1)}
    what |= {"clock_mhz": round(clock), "power_w": round(power)}
    print(what, flush=True)
    out.append(what)


def randn(*size: int) -> torch.Tensor:
    """Random BF16 data: zeros draw less power and run faster."""
    return torch.randn(*size, device="cuda", dtype=torch.bfloat16)


def gemms(out: list[Row], seconds: float) -> None:
    """BF16 and FP8 (row-wise scales) GEMMs."""
    for m, n, k in SHAPES:
        a, w = randn(m, k), randn(n, k)
        flops = 2.0 * m * n * k
        shape = {"op": "gemm", "form": "dense", "m": m, "n": n, "k": k}
        row(out, partial(F.linear, a, w), flops, seconds, precision="bf16", **shape)
        a8, w8 = a.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn).t()
        one = torch.ones((), device="cuda")
        scaled = partial(torch._scaled_mm, a8, w8, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        row(out, scaled, flops, seconds, precision="fp8_tensor", **shape)


def attention(out: list[Row], seconds: float) -> None:
    """cuDNN attention, forward and forward plus backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for batch, heads, seq, d_qk, d_v in ((1, 32, 8192, 128, 128), (1, 128, 4096, 192, 128)):
        q, k, v = randn(batch, heads, seq, d_qk), randn(batch, heads, seq, d_qk), randn(batch, heads, seq, d_v)
        grads = [x.requires_grad_() for x in (q, k, v)]
        g = randn(batch, heads, seq, d_v)
        flops = 2.0 * batch * heads * seq * seq * 0.5 * (d_qk + d_v)
        what = {"op": "attention", "precision": "bf16", "batch": batch, "seq": seq, "heads": heads}
        what |= {"d_qk": d_qk, "d_v": d_v}

        def ahead(q: torch.Tensor = q, k: torch.Tensor = k, v: torch.Tensor = v) -> torch.Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        def both(g: torch.Tensor = g, grads: list[torch.Tensor] = grads) -> None:
            torch.autograd.grad(ahead(*grads), grads, g)

        with torch.no_grad():
            row(out, ahead, flops, seconds, causal=1, backward=0, **what)
        row(out, both, flops * 3.5, seconds, causal=1, backward=1, **what)


def mix(out: list[Row], seconds: float) -> None:
    """One transformer layer's GEMMs, forward and backward, with memory-bound work between them."""
    t, h, inner = 4096, 8192, 28672 // 4
    x, wide = randn(t, h), randn(t, 2 * inner)
    weights = [randn(10240 // 4, h), randn(h, 8192 // 4), randn(2 * inner, h), randn(h, inner)]

    def layer() -> None:
        for w in weights:
            a = x[:, : w.shape[1]].contiguous()
            y = F.linear(a, w)
            torch.mm(y, w)
            torch.mm(y.t(), a)
        F.silu(wide).mul_(wide)

    flops = sum(3 * 2.0 * t * w.shape[0] * w.shape[1] for w in weights)
    row(out, layer, flops, seconds * 2, op="mix", precision="bf16", form="layer", m=t, k=h)


def duty(out: list[Row], seconds: float) -> None:
    """A GEMM that alternates with copies, or with idling: clock and power by the part of the time the GEMM takes.

    `m, n, k` are the GEMM's, `batch` the copies per GEMM; `us` is the GEMM's own time within the round, `us_burst`
    alone and rested. `form` copy or idle.
    """
    a, w = randn(4096, 8192), randn(8192, 8192)
    source = torch.empty(268_435_456 // 4, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    flops = 2.0 * 4096 * 8192 * 8192
    copy_us = 0.0
    for form, counts in (("copy", (0, 1, 2, 4, 8, 16)), ("idle", (1, 2, 4, 8))):
        for count in counts:

            def rounds(count: int = count, form: str = form) -> None:
                F.linear(a, w)
                for _ in range(count):
                    if form == "copy":
                        target.copy_(source)
                    else:
                        torch.cuda._sleep(300_000)

            def between(count: int = count, form: str = form) -> None:
                for _ in range(count):
                    if form == "copy":
                        target.copy_(source)
                    else:
                        torch.cuda._sleep(300_000)

            burst, us, clock, power = sustained(rounds, seconds)
            torch.cuda.synchronize()
            copy_us = timed(between, 20) if count else 0.0
            what: Row = {"op": "duty", "precision": "bf16", "form": form, "m": 4096, "n": 8192, "k": 8192}
            what |= {"batch": count, "flops": flops, "us": round(us, 2), "us_burst": round(burst, 2)}
            what |= {"seq": round(copy_us, 2), "clock_mhz": round(clock), "power_w": round(power)}
            print(what, flush=True)
            out.append(what)
    norm = randn(8192, 8192)
    for form, kernel in (
        ("copy only", partial(target.copy_, source)),
        ("norm only", partial(F.rms_norm, norm, (8192,))),
    ):
        _, us, clock, power = sustained(kernel, seconds)
        what = {"op": "duty", "form": form, "us": round(us, 2), "clock_mhz": round(clock), "power_w": round(power)}
        print(what, flush=True)
        out.append(what)


def main() -> None:
    """Run all groups and write the table."""
    path, seconds = sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 4.0
    out: list[Row] = []
    groups = (gemms, attention, mix, duty) if len(sys.argv) < 4 else (duty,)
    for group in groups:
        group(out, seconds)
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, measure_sustained.py\n")
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(out)


if __name__ == "__main__":
    main()
