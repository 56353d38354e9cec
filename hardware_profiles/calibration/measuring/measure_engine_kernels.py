"""Measure the short kernels of a decode step that engines bring themselves, written here in Triton.

    python -m hardware_profiles.calibration.measuring.measure_engine_kernels OUT.csv [--budget SECONDS] [--every N]

`us_graph`: the mean of a chain of 40 equal calls in a CUDA graph, operands as the last call left them in L2, with the
gap to the next kernel. `bytes` read and written. Operations over `m` tokens of `n` values:

- quant: FP8 with a scale for 128 values, one program for each.
- norm_residual, norm: RMSNorm of a row, with the residual added before, or alone.
- rope: rotary embedding in place, of heads of 64 values.
- write, write_fp8: rows to their places in a KV cache, in BF16 or cast to FP8.
- sum: the sum over the 8 experts of each token, weighted.
- gather: each token's row for its 8 experts.
- empty: a kernel that does nothing.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, misc"

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import triton
import triton.language as tl

from hardware_profiles.calibration.measuring.kernel_spans import Call, Table, arguments, in_graph
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, bf16

COLUMNS = ["op", "m", "n", "bytes", "us_graph"]
CHAIN, TOPK, HEAD, TILE, PART = 40, 8, 64, 128, 1024
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
WIDTHS = (7168, 1536, 2048)
PLACES = 8192
FP8_MOST = 448.0


@triton.jit
def empty_kernel(x):
    pass


@triton.jit
def quant_kernel(x, out, scales, tile: tl.constexpr, most: tl.constexpr):
    part = tl.program_id(0)
    at = part * tile + tl.arange(0, tile)
    values = tl.load(x + at).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(values)), 1e-10) / most
    tl.store(out + at, (values / scale).to(out.dtype.element_ty))
    tl.store(scales + part, scale)


@triton.jit
def norm_kernel(x, rest, weight, out, width: tl.constexpr, block: tl.constexpr, adds: tl.constexpr):
    at = tl.arange(0, block)
    inside = at < width
    begin = tl.program_id(0) * width
    values = tl.load(x + begin + at, inside, 0.0).to(tl.float32)
    if adds:
        values += tl.load(rest + begin + at, inside, 0.0).to(tl.float32)
        tl.store(rest + begin + at, values.to(tl.bfloat16), inside)
    scale = tl.rsqrt(tl.sum(values * values) / width + 1e-6)
    scaled = values * scale * tl.load(weight + at, inside, 0.0).to(tl.float32)
    tl.store(out + begin + at, scaled.to(tl.bfloat16), inside)


@triton.jit
def rope_kernel(x, angles, heads: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, 32)
    turn = angles + (row // heads) * 64
    first = tl.load(x + row * 64 + at).to(tl.float32)
    second = tl.load(x + row * 64 + 32 + at).to(tl.float32)
    cosine = tl.load(turn + at)
    sine = tl.load(turn + 32 + at)
    tl.store(x + row * 64 + at, (first * cosine - second * sine).to(tl.bfloat16))
    tl.store(x + row * 64 + 32 + at, (second * cosine + first * sine).to(tl.bfloat16))


@triton.jit
def write_kernel(x, places, cache, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0)
    at = tl.arange(0, block)
    inside = at < width
    values = tl.load(x + row * width + at, inside, 0.0)
    tl.store(cache + tl.load(places + row) * width + at, values.to(cache.dtype.element_ty), inside)


@triton.jit
def sum_kernel(x, weights, out, width: tl.constexpr, topk: tl.constexpr, part: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * part + tl.arange(0, part)
    total = tl.zeros((part,), tl.float32)
    for one in range(topk):
        total += tl.load(x + (row * topk + one) * width + at).to(tl.float32) * tl.load(weights + row * topk + one)
    tl.store(out + row * width + at, total.to(tl.bfloat16))


@triton.jit
def gather_kernel(x, places, out, width: tl.constexpr, part: tl.constexpr):
    row = tl.program_id(0)
    at = tl.program_id(1) * part + tl.arange(0, part)
    tl.store(out + row * width + at, tl.load(x + tl.load(places + row) * width + at))


def quant(m: int, n: int) -> Call:
    x, out = bf16(m, n), torch.empty(m, n, device=DEVICE, dtype=torch.float8_e4m3fn)
    scales = torch.empty(m * n // TILE, device=DEVICE)
    return lambda: quant_kernel[(m * n // TILE,)](x, out, scales, TILE, FP8_MOST, num_warps=1)


def norm(m: int, n: int, adds: bool) -> Call:
    x, rest, weight, out = bf16(m, n), bf16(m, n), bf16(n), bf16(m, n)
    block = triton.next_power_of_2(n)
    return lambda: norm_kernel[(m,)](x, rest, weight, out, n, block, adds, num_warps=8)


def rope(m: int, n: int) -> Call:
    x, angles, heads = bf16(m, n), torch.randn(m, HEAD, device=DEVICE), n // HEAD
    return lambda: rope_kernel[(m * heads,)](x, angles, heads, num_warps=1)


def write(m: int, n: int, kind: torch.dtype) -> Call:
    x, cache = bf16(m, n), torch.empty(PLACES, n, device=DEVICE, dtype=kind)
    places, block = torch.randperm(PLACES, device=DEVICE)[:m], triton.next_power_of_2(n)
    return lambda: write_kernel[(m,)](x, places, cache, n, block, num_warps=4)


def summed(m: int, n: int) -> Call:
    x, weights, out = bf16(m * TOPK, n), torch.rand(m * TOPK, device=DEVICE), bf16(m, n)
    return lambda: sum_kernel[(m, n // PART)](x, weights, out, n, TOPK, PART)


def gather(m: int, n: int) -> Call:
    x, out, places = bf16(m, n), bf16(m * TOPK, n), torch.arange(m * TOPK, device=DEVICE) // TOPK
    return lambda: gather_kernel[(m * TOPK, n // PART)](x, places, out, n, PART)


Asked = tuple[str, int, int, int, Callable[[], Call]]


def cases() -> Iterator[Asked]:
    """Operation, m, n, bytes, and what makes the call."""
    nothing = bf16(1)
    yield "empty", 1, 1, 0, lambda: lambda: empty_kernel[(1,)](nothing)
    for m in TOKENS:
        for n in WIDTHS:
            yield "quant", m, n, m * n * 3 + m * n // 32, lambda m=m, n=n: quant(m, n)
        yield "norm_residual", m, 7168, m * 7168 * 8, lambda m=m: norm(m, 7168, True)
        yield "norm", m, 2048, m * 2048 * 4, lambda m=m: norm(m, 2048, False)
        for heads in (17, 129):
            n = heads * HEAD
            yield "rope", m, n, m * n * 4, lambda m=m, n=n: rope(m, n)
        for n in (576, 2048):
            yield "write", m, n, m * n * 4, lambda m=m, n=n: write(m, n, torch.bfloat16)
            yield "write_fp8", m, n, m * n * 3, lambda m=m, n=n: write(m, n, torch.float8_e4m3fn)
        yield "sum", m, 7168, m * 7168 * 18, lambda m=m: summed(m, 7168)
        yield "gather", m, 7168, m * 7168 * 32, lambda m=m: gather(m, 7168)


def main() -> None:
    """Command line."""
    args = arguments(__doc__ or "", ["kernels"])
    table = Table(args.out, COLUMNS, args.budget)
    for op, m, n, size, make in list(cases())[:: args.every]:
        if table.over():
            break
        try:
            us = min(in_graph([make()] * CHAIN) for _ in range(3))
        except Exception as error:
            print(f"{op} {m} x {n}: {type(error).__name__} {str(error)[:200]}", flush=True)
            continue
        table.add([{"op": op, "m": m, "n": n, "bytes": size, "us_graph": round(us, 3)}])
    print(f"{table.rows} rows", flush=True)


if __name__ == "__main__":
    main()
