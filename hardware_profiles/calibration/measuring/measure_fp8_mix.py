"""Measure FP8 and BF16 GEMMs under sustained load, alone and between a layer's memory-bound kernels; and the casts.

    python -m hardware_profiles.calibration.measuring.measure_fp8_mix OUT.csv \
        [--budget SECONDS] [--only casts,alone,mix,layer]

Sustained load (sections alone, mix, layer): a round of calls is repeated for some seconds on random data; `round_us`,
`gemm_us`, `memory_us` are means of the last half, the parts' times from events between them; `gemm_us_burst` the
GEMM after 0.3 s of rest, `power_w` NVML's reading late in the run, `power_w_instant` that of the instant
(`power_w_energy`: of the energy counter, which moves in steps: off by several percent), `sm_mhz` the mean clock over
the last half. mix: one GEMM, then `calls` of the memory-bound kernel `memory`, so many that these take about `share`
of the time. layer: all GEMMs of a Llama 3 8B layer on 8192 tokens, forward, input and weight gradient, with norms,
SwiGLU and their backward, and for FP8 the casts of every operand, transposed where a GEMM needs that (current
scaling; per row: scales along each GEMM's inner dimension); `flops` of a round. `memory_us` is the time of all `calls`.
precision: bf16 (torch.mm), fp8_tensor and fp8_row (torch._scaled_mm, E4M3, fast accumulation), fp8_tensor_split
(without).

Section casts goes to OUT_casts.csv: kernels that make FP8 operands, one launch at a time on a rested GPU, L2 flushed
(`kernel_spans.py`), eager and torch.compile; `bytes` are the least that must move. delayed: the scale is known;
delayed_amax: and the largest value is taken along; current: its own largest value first; row: a scale a row;
transpose: also the transposed copy, same scale; row_both: a scale a row, and of the transposed copy a scale a column.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Row, Table, arguments
from hardware_profiles.calibration.measuring.power.sensors import Sensors
from hardware_profiles.calibration.measuring.torch_kernels import bf16, norm, ones, swiglu

COLUMNS = ["op", "precision", "m", "n", "k", "memory", "calls", "share", "round_us", "gemm_us", "gemm_us_burst"]
COLUMNS += ["memory_us", "flops", "tflops", "power_w", "power_w_instant", "power_w_energy", "sm_mhz", "seconds"]
CAST_COLUMNS = ["op", "impl", "m", "n", "bytes", "held_out", *TIMES]
TOKENS = 8192
LINEAR = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
ALONE = ((8192, 28672, 4096), (8192, 4096, 14336), (8192, 6144, 4096))
MIXED = (8192, 8192, 8192)
PRECISIONS = ("bf16", "fp8_tensor", "fp8_row")
SHARES = (0.2, 0.4, 0.6)
CAST_SHAPES = ((8192, 4096), (8192, 14336), (4096, 7168), (16384, 2048), (8192, 8192))
HELD_OUT = ((4096, 7168), (8192, 14336))
LARGEST = 448.0
SECONDS = 2.2
Parts = list[tuple[str, Call]]


def amax(x: torch.Tensor) -> torch.Tensor:
    """The largest absolute value."""
    return x.abs().amax().float()


def scaled(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """FP8 values of x times the scale."""
    return (x.float() * scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def delayed_amax(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast with a known scale, and the largest value for the next one."""
    return scaled(x, scale), amax(x)


def current(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast with its own scale, and what undoes it."""
    scale = LARGEST / amax(x).clamp(1e-12)
    return scaled(x, scale), scale.reciprocal()


def by_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast with a scale for each row, and what undoes them."""
    scale = LARGEST / x.abs().amax(-1, keepdim=True).float().clamp(1e-12)
    return scaled(x, scale), scale.reciprocal()


def transposed(x: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cast with a known scale, and its transpose."""
    y = scaled(x, scale)
    return y, y.t().contiguous()


def current_transposed(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cast with its own scale, its transpose, and what undoes the scale."""
    scale = LARGEST / amax(x).clamp(1e-12)
    y = scaled(x, scale)
    return y, y.t().contiguous(), scale.reciprocal()


def row_both(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cast with a scale a row, and the transpose with a scale a column of x."""
    y, undo = by_row(x)
    scale = LARGEST / x.abs().amax(0, keepdim=True).float().clamp(1e-12)
    return y, undo, scaled(x, scale).t().contiguous(), scale.reciprocal().t()


def norm_cast(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """RMSNorm straight to FP8."""
    return scaled(norm(x, w), scale)


def swiglu_cast(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """SwiGLU straight to FP8."""
    return scaled(swiglu(x), scale)


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function through torch.compile, for one shape at a time."""
    out: Callable[..., Any] = torch.compile(fn, dynamic=False)
    return out


def cast_cases(m: int, n: int) -> list[Case]:
    """All casts of an m x n matrix."""
    each = m * n
    one: dict[str, tuple[Callable[..., Any], int]] = {
        "amax": (amax, 2 * each), "cast_current": (current, 5 * each), "cast_row": (by_row, 3 * each),
        "cast_row_both": (row_both, 6 * each), "cast_current_transpose": (current_transposed, 6 * each),
    }  # fmt: skip
    two: dict[str, tuple[Callable[..., Any], int]] = {
        "cast_delayed": (scaled, 3 * each), "cast_delayed_amax": (delayed_amax, 3 * each),
        "cast_transpose": (transposed, 4 * each), "swiglu_cast": (swiglu_cast, 5 * each),
    }  # fmt: skip

    def make(fn: Callable[..., Any], scale: bool, wide: bool) -> Call:
        x = bf16(m, 2 * n if wide else n)
        return partial(fn, x, ones(1).squeeze()) if scale else partial(fn, x)

    def normed(fn: Callable[..., Any]) -> Call:
        return partial(fn, bf16(m, n), bf16(n), ones(1).squeeze())

    def turned() -> Call:
        x = bf16(m, n).to(torch.float8_e4m3fn)
        return lambda: x.t().contiguous()

    out = []
    for impl, way in (("eager", lambda fn: fn), ("compiled", compiled)):
        for name, (fn, moved) in (one | two).items():
            made = partial(make, way(fn), name in two, name == "swiglu_cast")
            out.append(cast_case(name, impl, (m, n), moved, made))
        out.append(cast_case("norm_cast", impl, (m, n), 3 * each, partial(normed, way(norm_cast))))
    return [*out, cast_case("transpose_fp8", "eager", (m, n), 2 * each, turned)]


def cast_case(op: str, impl: str, shape: tuple[int, int], moved: int, make: Callable[[], Call]) -> Case:
    """One cast."""
    labels: Row = {"op": op, "impl": impl, "m": shape[0], "n": shape[1], "bytes": moved}
    return Case(labels | {"held_out": int(shape in HELD_OUT)}, make, 1e-5 + moved / 1e12)


def event() -> torch.cuda.Event:
    """An event that takes the time, already recorded."""
    out = torch.cuda.Event(enable_timing=True)
    out.record()
    return out


def once(parts: Parts) -> list[torch.cuda.Event]:
    """Issue a round with events between parts."""
    marks = [event()]
    for _, call in parts:
        call()
        marks.append(event())
    return marks


def split(parts: Parts, rounds: list[list[torch.cuda.Event]]) -> dict[str, float]:
    """Mean time of each kind of part, and of the round [us]."""
    out = {"round": 0.0} | dict.fromkeys((kind for kind, _ in parts), 0.0)
    for marks in rounds:
        out["round"] += marks[0].elapsed_time(marks[-1]) * 1e3 / len(rounds)
        for (kind, _), a, b in zip(parts, marks[:-1], marks[1:], strict=True):
            out[kind] += a.elapsed_time(b) * 1e3 / len(rounds)
    return out


def lasting(parts: Parts, seconds: float) -> Row:
    """Times, power and clock of rounds repeated for some seconds."""
    time.sleep(0.3)
    for _ in range(3):
        once(parts)
    torch.cuda.synchronize()
    rested = once(parts)
    torch.cuda.synchronize()
    burst = split(parts, [rested])
    many = max(1, int(5e4 / max(1.0, burst["round"])))
    found: list[dict[str, float]] = []
    with Sensors() as sensors:
        end = time.time() + seconds
        before: list[list[torch.cuda.Event]] = []
        while time.time() < end:
            rounds = [once(parts) for _ in range(many)]  # issued while the last ones run
            if before:
                before[-1][-1].synchronize()
                found.append(split(parts, before))
            before = rounds
        torch.cuda.synchronize()
        found.append(split(parts, before))
    late = found[len(found) // 2 :]
    mean = {kind: statistics.mean(f[kind] for f in late) for kind in late[0]}
    out: Row = {f"{kind}_us": round(value, 2) for kind, value in mean.items()}
    return out | {"gemm_us_burst": round(burst.get("gemm", 0.0), 2), "seconds": seconds} | sensors.readings()


def multiplication(precision: str, m: int, n: int, k: int) -> Call:
    """A GEMM of random operands."""
    a, w = bf16(m, k), bf16(n, k)
    if precision == "bf16":
        return lambda: torch.mm(a, w.t())
    a8, w8 = a.to(torch.float8_e4m3fn), w.to(torch.float8_e4m3fn)
    row = precision == "fp8_row"
    sa, sw = (ones(m, 1), ones(1, n)) if row else (ones(1).squeeze(), ones(1).squeeze())
    fast = precision != "fp8_tensor_split"
    return lambda: torch._scaled_mm(a8, w8.t(), scale_a=sa, scale_b=sw, out_dtype=torch.bfloat16, use_fast_accum=fast)


def memory_kernels() -> dict[str, Call]:
    """The memory-bound kernels of the mixes: compiled, as a layer's."""
    x, w, wide, y = bf16(TOKENS, 8192), bf16(8192), bf16(TOKENS, 28672), bf16(TOKENS, 8192)
    return {
        "norm": partial(compiled(norm), x, w),
        "swiglu": partial(compiled(swiglu), wide),
        "cast_current": partial(compiled(current), x),
        "cast_row": partial(compiled(by_row), x),
        "cast_current_transpose": partial(compiled(current_transposed), x),
        "copy": partial(y.copy_, x),
    }


def keep(table: Table, labels: Row, parts: Parts, flops: float, seconds: float = SECONDS) -> Row:
    """Measure a round and add its row."""
    if table.over():
        print("out of time before", labels, flush=True)
        return {}
    try:
        found = lasting(parts, seconds)
    except Exception as error:
        print("failed", labels, type(error).__name__, str(error)[:300], flush=True)
        return {}
    row = labels | found
    if flops:
        row |= {"flops": flops, "tflops": round(flops / found["gemm_us"] / 1e6, 1)}
    table.add([row])
    print(row, flush=True)
    return row


def alone(table: Table, every: int) -> None:
    """GEMMs and memory-bound kernels by themselves."""
    plan = [(precision, *shape) for shape in ALONE for precision in (*PRECISIONS, "fp8_tensor_split")]
    plan += [(precision, *MIXED) for precision in PRECISIONS]
    for precision, m, n, k in plan[::every]:
        labels: Row = {"op": "alone", "precision": precision, "m": m, "n": n, "k": k}
        keep(table, labels, [("gemm", multiplication(precision, m, n, k))], 2.0 * m * n * k)
    for name, call in list(memory_kernels().items())[::every]:
        keep(table, {"op": "alone", "memory": name, "calls": 20, "share": 1}, [("memory", call)] * 20, 0.0)


def time_of(call: Call) -> float:
    """Mean time in a short loop [us]."""
    for _ in range(3):
        call()
    a = event()
    for _ in range(20):
        call()
    b = event()
    b.synchronize()
    return float(a.elapsed_time(b)) / 20 * 1e3


def mix(table: Table, every: int) -> None:
    """One GEMM and some memory-bound kernels in turn."""
    kernels = memory_kernels()
    plan = [(p, name, share) for share in SHARES for p in PRECISIONS for name in ("norm", "swiglu", "cast_row")]
    m, n, k = MIXED
    calls = {p: multiplication(p, m, n, k) for p in PRECISIONS}
    for precision, name, share in plan[::every]:
        gemm_us, memory_us = time_of(calls[precision]), time_of(kernels[name])
        many = max(1, round(share / (1.0 - share) * gemm_us / memory_us))
        labels: Row = {"op": "mix", "precision": precision, "m": m, "n": n, "k": k, "memory": name}
        labels |= {"calls": many, "share": share}

        def run(call: Call = kernels[name], many: int = many) -> None:
            for _ in range(many):
                call()

        keep(table, labels, [("gemm", calls[precision]), ("memory", run)], 2.0 * m * n * k)


def gradients(fn: Callable[..., torch.Tensor], *leaves: torch.Tensor) -> Call:
    """The backward of a compiled function."""
    wanted = [x.requires_grad_() for x in leaves]
    out = compiled(fn)(*wanted)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def linear(precision: str, n: int, k: int, casts: dict[str, Callable[..., Any]]) -> Parts:
    """Forward, input gradient and weight gradient of a linear layer, with the casts they need."""
    x, w, g = bf16(TOKENS, k), bf16(n, k), bf16(TOKENS, n)
    if precision == "bf16":
        return [("gemm", lambda: x @ w.t()), ("gemm", lambda: g @ w), ("gemm", lambda: g.t() @ x)]
    cast = casts[precision]
    made = [cast(x), cast(w), cast(g)]  # values, scales; transposed values, their scales
    if precision == "fp8_tensor":
        made = [(one[0], one[2], one[1], one[2]) for one in made]
    (x8, sx, xt8, sxt), (w8, sw, wt8, swt), (g8, sg, gt8, sgt) = made

    def mm(a: torch.Tensor, sa: torch.Tensor, b: torch.Tensor, sb: torch.Tensor) -> Call:
        right = sb.reshape(1, -1).contiguous() if sb.numel() > 1 else sb
        left = sa.contiguous()
        return lambda: torch._scaled_mm(
            a, b.t(), scale_a=left, scale_b=right, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    out: Parts = [("memory", partial(cast, one)) for one in (x, w, g)]
    return [*out, ("gemm", mm(x8, sx, w8, sw)), ("gemm", mm(g8, sg, wt8, swt)), ("gemm", mm(gt8, sgt, xt8, sxt))]


def layer(table: Table, every: int) -> None:
    """A whole layer's GEMMs between its memory-bound kernels."""
    x, w, wide = bf16(TOKENS, 4096), bf16(4096), bf16(TOKENS, 28672)
    norms: Parts = [
        ("memory", partial(compiled(norm), x, w)),
        ("memory", gradients(norm, bf16(TOKENS, 4096), bf16(4096))),
    ]
    act: Parts = [("memory", partial(compiled(swiglu), wide)), ("memory", gradients(swiglu, bf16(TOKENS, 28672)))]
    casts = {"fp8_tensor": compiled(current_transposed), "fp8_row": compiled(row_both)}
    flops = sum(6.0 * TOKENS * n * k for n, k in LINEAR)
    for precision in PRECISIONS[::every]:
        parts: Parts = [*norms, *norms, *act]
        for n, k in LINEAR:
            parts += linear(precision, n, k, casts)
        labels: Row = {"op": "layer", "precision": precision, "m": TOKENS, "calls": len(parts)}
        keep(table, labels, parts, flops, 2 * SECONDS)


def main() -> None:
    """All sections."""
    sections = {"alone": alone, "mix": mix, "layer": layer}
    args = arguments(__doc__ or "", ["casts", *sections])
    torch._dynamo.config.recompile_limit = 256
    torch.manual_seed(1)
    wanted = args.only.split(",")
    began = time.time()
    if "casts" in wanted:
        table = Table(args.out.replace(".csv", "_casts.csv"), CAST_COLUMNS, args.budget)
        table.run([one for shape in CAST_SHAPES[:: args.every] for one in cast_cases(*shape)])
        print(f"== casts: {table.rows} rows in {time.time() - began:.1f} s", flush=True)
    table = Table(args.out, COLUMNS, args.budget - (time.time() - began))
    for name in (one for one in wanted if one in sections):
        start = time.time()
        try:
            sections[name](table, args.every)
        except Exception as error:
            print(f"section {name} ended early: {type(error).__name__} {str(error)[:300]}", flush=True)
        print(f"== {name}: {table.rows} rows, {time.time() - start:.1f} s", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
