"""Measure kernels on one rested GPU at its boost clock with PyTorch alone, and write them as a calibration table.

    python -m hardware_profiles.calibration.measuring.measure_rested OUT.csv [KINDS] [seed]

KINDS are of gemm, grouped, attention, streaming, compiled, with commas between. With a seed other than 1, other
random shapes than those of the first table.

A GPU under load sinks below its boost clock at the power limit, by how much depends on what ran before; tables of
kernels taken back to back hold a mixture. Here every launch is preceded by idling, an L2 flush and a short
spin that hides the launch (`kernel_spans.py`), and is timed by the profiler (CUPTI), like the kernels of a training
trace. What the power limit does is measured apart (`measure_sustained.py`). Data are normal random numbers: zeros draw
less power. `us` is the median span over the launches from the first kernel's start to the last one's end, `kernel`
the longest kernel's name (cuBLAS's contains its tile), `launches` how many kernels one call takes.
"""

from __future__ import annotations

import csv
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from hardware_profiles.calibration.measuring import kernel_spans, torch_kernels
from hardware_profiles.calibration.measuring.kernel_spans import Call, Events, Row
from hardware_profiles.calibration.measuring.torch_kernels import (
    DEVICE,
    bf16,
    fp8,
    norm,
    norm_residual,
    ones,
    quant,
    swiglu,
)

__all__ = ["SECTIONS", "V3", "Call", "Case", "Events", "Row", "gemm_time", "measure", "summary"]

COLUMNS = [
    *("op", "precision", "form", "impl", "m", "n", "k", "groups", "rows", "batch", "seq", "heads", "kv_heads"),
    *("d_qk", "d_v", "causal", "backward", "bytes", "us", "us_min", "launches", "kernel"),
]
NAME = 200
"""Letters kept of a kernel's name."""
Case = tuple[Row, Callable[[], Call], float]
"""Labels, a function that allocates operands and returns the call, and a guess of its time [s]."""
V3 = [
    (4096, 1536, 7168), (4096, 576, 7168), (4096, 24576, 1536), (4096, 32768, 512), (4096, 7168, 16384),
    (4096, 4096, 7168), (4096, 7168, 2048), (4096, 7168, 576), (4096, 1536, 24576), (4096, 512, 32768),
    (4096, 16384, 7168), (4096, 2048, 7168), (4096, 7168, 18432), (4096, 36864, 7168), (4096, 256, 7168),
    (4096, 129280, 7168),
]  # fmt: skip


def linear_shapes(count: int, seed: int) -> list[tuple[int, int, int]]:
    """(m, n, k) of linear layers as models and tensor parallelism make them, and of random ones."""
    rng = random.Random(seed)
    out: list[tuple[int, int, int]] = []
    while len(out) < count:
        hidden, tp = rng.choice([2048, 3072, 4096, 5120, 6144, 7168, 8192, 12288, 16384]), rng.choice([1, 1, 2, 4, 8])
        tokens = rng.choice([64, 128, 256, 512, 1024, 2048, 2048, 4096, 4096, 8192, 8192, 16384])
        inner = int(hidden * rng.choice([2.6875, 3.5, 4.0]) / tp / 128) * 128
        wide = [(hidden * 3 // tp, hidden), (hidden, hidden // tp), (2 * inner, hidden), (hidden, inner)]
        n, k = rng.choice(wide)
        if rng.random() < 0.25:
            n, k = (int(128 * 2 ** rng.uniform(1, 7)) // 128 * 128 for _ in range(2))
        shape = (tokens, n // 128 * 128, k // 128 * 128)
        if min(shape) >= 64 and 2.0 * shape[0] * n * k < 6e12 and shape not in out:
            out.append(shape)
    return out


SEED = int(sys.argv[3]) if __name__ == "__main__" and len(sys.argv) > 3 else 1
SHAPES = V3 + linear_shapes(130, SEED)
WGRAD = [(n, k, m) for m, n, k in V3[:-1]] + [(n, k, m) for m, n, k in linear_shapes(60, SEED + 1) if m >= 512]


def gemm_time(m: int, n: int, k: int) -> float:
    return 3e-5 + 2.0 * m * n * k / 6e14


def dense(layout: str, m: int, n: int, k: int) -> Call:
    """Output m x n; which operands are transposed in memory: nt forward, nn input gradient, tn weight gradient."""
    if layout == "nt":
        a, b = bf16(m, k), bf16(n, k)
        return lambda: a @ b.t()
    if layout == "nn":
        a, b = bf16(m, k), bf16(k, n)
        return lambda: a @ b
    a, b = bf16(k, m), bf16(k, n)
    if layout == "tn":
        return lambda: a.t() @ b
    main = ones(m, n)
    return lambda: torch.addmm(main, a.t(), b, out_dtype=torch.float32, out=main)


def scaled(kind: str, m: int, n: int, k: int) -> Call:
    """FP8 GEMM with scales per tensor, per row, per 1x128 by 128x128 block, or 1x128 on both sides."""
    a, b = fp8(m, k), fp8(n, k)
    padded = -(-(k // 128) // 4) * 4
    scales = {
        "fp8_tensor": lambda: (ones(1).squeeze(), ones(1).squeeze()),
        "fp8_row": lambda: (ones(m, 1), ones(1, n)),
        "fp8_tensor_split": lambda: (ones(1).squeeze(), ones(1).squeeze()),
        "fp8_row_split": lambda: (ones(m, 1), ones(1, n)),
        "fp8_block": lambda: (ones(k // 128, m).t(), ones(n // 128, padded)[:, : k // 128].t()),
        "fp8_block_both": lambda: (ones(k // 128, m).t(), ones(k // 128, n)),
    }
    sa, sb = scales[kind]()
    out = torch.float32 if kind == "fp8_block_both" else torch.bfloat16
    fast = kind in ("fp8_tensor", "fp8_row")
    return lambda: torch._scaled_mm(a, b.t(), scale_a=sa, scale_b=sb, out_dtype=out, use_fast_accum=fast)


def gemm() -> Iterator[Case]:
    for m, n, k in SHAPES:
        shape: Row = {"op": "gemm", "m": m, "n": n, "k": k, "form": "dense"}
        for layout in ("nt", "nn", "tn"):
            labels = {**shape, "precision": "bf16", "impl": f"cublas_{layout}"}
            yield labels, partial(dense, layout, m, n, k), gemm_time(m, n, k)
        for kind in ("fp8_tensor", "fp8_row", "fp8_block"):
            if k % 128 or (n % 128 and kind == "fp8_block"):
                continue
            yield (
                {**shape, "precision": kind, "impl": "torch"},
                partial(scaled, kind, m, n, k),
                gemm_time(m, n, k),
            )
    for m, n, k in WGRAD:
        shape = {"op": "gemm", "m": m, "n": n, "k": k}
        yield (
            {**shape, "precision": "bf16", "form": "wgrad", "impl": "cublas"},
            partial(dense, "acc", m, n, k),
            gemm_time(m, n, k),
        )
        if k % 128 == 0 and n % 128 == 0:
            yield (
                {**shape, "precision": "fp8_block_both", "form": "wgrad_write", "impl": "torch"},
                partial(scaled, "fp8_block_both", m, n, k),
                gemm_time(m, n, k),
            )


def split() -> Iterator[Case]:
    """FP8 GEMMs that add partial sums up outside the tensor cores, as those of gradients, next to those that do not."""
    some = [*linear_shapes(26, SEED + 2), *((n, k, m) for m, n, k in linear_shapes(14, SEED + 3))]
    for m, n, k in some:
        for kind in ("fp8_tensor", "fp8_tensor_split", "fp8_row_split"):
            if min(m, n, k) >= 512 and k % 128 == 0:
                labels: Row = {
                    "op": "gemm",
                    "m": m,
                    "n": n,
                    "k": k,
                    "form": "dense",
                    "precision": kind,
                    "impl": "torch",
                }
                yield labels, partial(scaled, kind, m, n, k), gemm_time(m, n, k)


def group_rows(groups: int, total: int, skew: float) -> list[int]:
    """Tokens per group, multiples of 16, spread by `skew` (standard deviation over mean)."""
    rng = random.Random(groups * total)
    raw = [max(0.05, rng.gauss(1.0, skew)) for _ in range(groups)]
    rows = [max(16, int(total * r / sum(raw)) // 16 * 16) for r in raw]
    rows[0] += max(16 - rows[0], total - sum(rows))
    return rows


def grouped_call(kind: str, rows: list[int], n: int, k: int) -> Call:
    total, groups = sum(rows), len(rows)
    offs = torch.tensor(rows, device=DEVICE).cumsum(0).to(torch.int32)
    if kind == "grouped":
        a, b = bf16(total, k), bf16(groups, n, k)
        return lambda: torch._grouped_mm(a, b.transpose(-2, -1), offs=offs)
    if kind == "grouped_wgrad":
        a, b = bf16(total, n), bf16(total, k)
        return lambda: torch._grouped_mm(a.t(), b, offs=offs)
    x, w = fp8(total, k), fp8(groups, n, k)
    sx, sw = ones(total), ones(groups, n)
    return lambda: torch._scaled_grouped_mm(
        x, w.transpose(-2, -1), sx, sw, offs=offs, out_dtype=torch.bfloat16, use_fast_accum=True
    )


GROUPED = [(4, 32768, 4096, 7168), (4, 32768, 7168, 2048), (8, 32768, 4096, 7168), (32, 32768, 7168, 2048),
           (4, 8192, 4096, 7168), (8, 65536, 2816, 2048), (64, 32768, 2816, 2048), (8, 16384, 28672, 4096),
           (8, 16384, 4096, 14336), (2, 8192, 28672, 4096), (16, 32768, 3072, 4096), (16, 32768, 4096, 1536),
           (20, 24576, 3072, 5120), (20, 24576, 5120, 1536), (1, 8192, 4096, 7168), (128, 32768, 1536, 2048),
           (8, 4096, 4096, 7168), (32, 8192, 4096, 7168)]  # fmt: skip


def grouped_shapes(count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """(groups, rows of all, n, k) of the two GEMMs of an expert, half of them down."""
    rng = random.Random(seed)
    out: list[tuple[int, int, int, int]] = []
    while len(out) < count:
        hidden, inner = rng.choice([2048, 3072, 4096, 5120, 6144, 7168]), 256 * rng.randint(2, 32)
        groups, total = rng.choice([2, 4, 8, 8, 16, 16, 32, 64, 128]), 1024 * rng.choice([2, 4, 8, 16, 24, 32, 48, 64])
        n, k = (2 * inner, hidden) if len(out) % 2 else (hidden, inner)
        if total >= 32 * groups and 2.0 * total * n * k < 6e12:
            out.append((groups, total, n, k))
    return out


def grouped() -> Iterator[Case]:
    for groups, total, n, k in GROUPED if SEED == 1 else grouped_shapes(28, SEED):
        for skew in (0.0, 0.3):
            rows = group_rows(groups, total, skew)
            text = " ".join(map(str, rows)) if skew else ""
            guess = gemm_time(total, n, k)
            for precision, form in (("bf16", "grouped"), ("fp8_row", "grouped"), ("bf16", "grouped_wgrad")):
                shape = (
                    {"m": n, "n": k, "k": sum(rows)} if form == "grouped_wgrad" else {"m": sum(rows), "n": n, "k": k}
                )
                labels = {
                    "op": "gemm",
                    "precision": precision,
                    "form": form,
                    "impl": "torch",
                    "groups": groups,
                    **shape,
                }
                kind = "scaled" if precision == "fp8_row" else form
                yield labels | {"rows": text}, partial(grouped_call, kind, rows, n, k), guess


def attention_shapes() -> Iterator[tuple[int, int, int, int, int, int]]:
    """(batch, seq, heads, kv_heads, d_qk, d_v)."""
    if SEED != 1:
        rng = random.Random(SEED)
        for d_qk, d_v in [(64, 64), (128, 128), (128, 128), (192, 128)] * 8:
            seq, heads = (
                512 * rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 24, 32]),
                rng.choice([4, 8, 10, 16, 20, 32, 40, 64]),
            )
            kv = heads if d_qk != 128 else heads // rng.choice([1, 1, 2, heads // 2])
            yield rng.randint(1, max(1, 16384 // seq)), seq, heads, kv, d_qk, d_v
        return
    for d_qk, d_v, heads in ((64, 64, 32), (128, 128, 32), (192, 128, 32), (256, 256, 8)):
        for seq in (512, 1024, 2048, 4096, 8192, 16384):
            yield max(1, 8192 // seq), seq, heads, heads, d_qk, d_v
    yield from ((1, 4096, 128, 128, 192, 128), (1, 4096, 64, 8, 128, 128), (2, 4096, 40, 40, 128, 128))
    yield from ((1, 2048, 32, 8, 128, 128), (1, 8192, 16, 1, 128, 128), (1, 8192, 8, 1, 128, 128))
    yield from ((4, 4096, 32, 8, 128, 128), (1, 2048, 12, 12, 128, 128), (1, 32768, 8, 1, 128, 128))
    yield from ((1, 4096, 16, 16, 192, 128), (1, 8192, 128, 128, 192, 128), (1, 4096, 8, 8, 64, 64))
    yield from ((16, 1024, 16, 16, 64, 64), (8, 2048, 24, 24, 96, 96), (1, 4096, 16, 16, 96, 96))


def attention_call(backend: Any, causal: bool, backward: bool, *shape: int) -> Call:
    batch, seq, heads, kv, d_qk, d_v = shape
    q = bf16(batch, heads, seq, d_qk).requires_grad_(backward)
    k = bf16(batch, kv, seq, d_qk).requires_grad_(backward)
    v = bf16(batch, kv, seq, d_v).requires_grad_(backward)
    return torch_kernels.attention(q, k, v, backend, causal=causal, backward=backward)


def attention() -> Iterator[Case]:
    from torch.nn.attention import SDPBackend

    for shape in attention_shapes():
        batch, seq, heads, kv, d_qk, d_v = shape
        flops = 2.0 * batch * heads * seq * seq * (d_qk + d_v)
        for causal in (True, False):
            for backend, name in ((SDPBackend.CUDNN_ATTENTION, "cudnn"), (SDPBackend.FLASH_ATTENTION, "flash2")):
                if name == "flash2" and d_qk not in (64, 128):
                    continue
                for backward in (False, True):
                    labels: Row = {"op": "attention", "precision": "bf16", "impl": name, "batch": batch, "seq": seq,
                                   "heads": heads, "kv_heads": kv, "d_qk": d_qk, "d_v": d_v, "causal": int(causal),
                                   "backward": int(backward)}  # fmt: skip
                    guess = flops * (2.5 if backward else 1.0) * (0.5 if causal else 1.0) / 3e14
                    yield labels, partial(attention_call, backend, causal, backward, *shape), guess


def stream(op: str, moved: float, make: Callable[[], Call], **sizes: int) -> Case:
    return {"op": op, "bytes": int(moved), **sizes}, make, moved / 2e12


RANDOM = random.Random(SEED)
MEGABYTES: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16, 24, 32, 48, 64, 128, 256, 512, 1024)
if SEED != 1:
    MEGABYTES = tuple(0.5 * 2 ** RANDOM.uniform(0, 11) for _ in range(18))


def elementwise() -> Iterator[Case]:
    for mb in MEGABYTES:
        n = int(mb * 1e6) // 2

        def copy(n: int = n) -> Call:
            x, z = bf16(n), bf16(n)
            return lambda: z.copy_(x)  # the driver's copy kernel

        def add(n: int = n) -> Call:
            x, y, z = bf16(n), bf16(n), bf16(n)
            return lambda: torch.add(x, y, out=z)

        yield stream("copy", 4 * n, copy)
        yield stream("add", 6 * n, add)


ROWS = [(2048, 2048), (4096, 1536), (4096, 512), (4096, 4096), (4096, 7168), (8192, 8192), (4096, 16384), (32768, 2048),
        (16384, 5120), (8192, 12288)]  # fmt: skip
if SEED != 1:
    ROWS = [(1024 * RANDOM.randint(1, 24), 512 * RANDOM.randint(1, 28)) for _ in range(14)]


def rowwise() -> Iterator[Case]:
    """Norms, softmax, activations, transposes and casts over rows x columns."""

    torch._dynamo.config.recompile_limit = 64  # one kernel a shape, as in training
    compiled = {fn.__name__: torch.compile(fn, dynamic=False) for fn in (norm, quant, swiglu)}
    for rows, cols in ROWS:
        size, n = {"m": rows, "n": cols}, rows * cols

        def one(fn: Callable[..., object], rows: int = rows, cols: int = cols) -> Call:
            x = bf16(rows, cols)
            return lambda: fn(x)

        def weighted(fn: Callable[..., object], rows: int = rows, cols: int = cols) -> Call:
            x, w = bf16(rows, cols), bf16(cols)
            return lambda: fn(x, w)

        def transposed(rows: int = rows, cols: int = cols) -> Call:
            x = bf16(rows, cols)
            return lambda: x.t().contiguous()

        yield stream("rmsnorm", 4 * n, partial(weighted, lambda x, w: F.rms_norm(x, (x.shape[-1],), w)), **size)
        yield stream("layernorm", 4 * n, partial(weighted, lambda x, w: F.layer_norm(x, (x.shape[-1],), w)), **size)
        yield stream("rmsnorm_compiled", 4 * n, partial(weighted, compiled["norm"]), **size)
        yield stream("quant_token", 3 * n + n // 32, partial(one, compiled["quant"]), **size)
        yield stream("swiglu", 3 * n, partial(one, compiled["swiglu"]), **size)
        yield stream("softmax", 4 * n, partial(one, lambda x: torch.softmax(x, -1)), **size)
        yield stream("transpose", 4 * n, transposed, **size)
        yield stream("cast_fp8", 3 * n, partial(one, lambda x: x.to(torch.float8_e4m3fn)), **size)
        yield stream("gelu", 4 * n, partial(one, F.gelu), **size)


def backward_of(fn: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> Call:
    """The backward of a compiled function for given inputs."""
    leaves = [x.requires_grad_() for x in inputs]
    out = torch.compile(fn, dynamic=False)(*leaves)
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, grad, retain_graph=True)


def compiled() -> Iterator[Case]:
    """What torch.compile makes of training's norms and activations, in addition to those of `rowwise`: the residual
    added, and backward passes. Bytes are what any such kernels must move: the gradient of a norm's weight comes on
    top."""
    torch._dynamo.config.recompile_limit = 64
    for rows, cols in ROWS:
        size, n = {"m": rows, "n": cols}, rows * cols

        def residual(rows: int = rows, cols: int = cols) -> Call:
            fn, x, y, w = torch.compile(norm_residual, dynamic=False), bf16(rows, cols), bf16(rows, cols), bf16(cols)
            return lambda: fn(x, y, w)

        def norm_bwd(rows: int = rows, cols: int = cols) -> Call:
            return backward_of(norm, bf16(rows, cols), bf16(cols))

        def swiglu_bwd(rows: int = rows, cols: int = cols) -> Call:
            return backward_of(swiglu, bf16(rows, cols))

        yield stream("rmsnorm_residual_compiled", 8 * n, residual, **size)
        yield stream("rmsnorm_bwd_compiled", 6 * n, norm_bwd, **size)
        yield stream("swiglu_bwd_compiled", 5 * n, swiglu_bwd, **size)


LOGITS = [(4096, 129280), (2048, 32000), (8192, 32000), (2048, 128256), (4096, 51200), (1024, 152064)]
MILLIONS: tuple[float, ...] = (1, 4, 10, 40, 100, 250, 400)
if SEED != 1:
    VOCAB = [16000, 32000, 32768, 50304, 51200, 64128, 65536, 100352, 102400, 128256, 129280, 151936, 202048, 256000]
    LOGITS = [(1024 * RANDOM.randint(1, 8), RANDOM.choice(VOCAB) // RANDOM.choice([1, 1, 2, 8])) for _ in range(14)]
    MILLIONS = tuple(round(2 ** RANDOM.uniform(0, 9), 2) for _ in range(10))


def ends() -> Iterator[Case]:
    """Loss, embedding, optimizer."""

    def loss(rows: int, vocab: int, backward: bool) -> Call:
        logits = bf16(rows, vocab).requires_grad_(backward)
        target = torch.randint(0, vocab, (rows,), device=DEVICE)
        if not backward:
            return lambda: F.cross_entropy(logits, target)
        out = F.cross_entropy(logits, target)
        return lambda: torch.autograd.grad(out, logits, retain_graph=True)

    def embedding(rows: int, vocab: int, cols: int) -> Call:
        table, ids = bf16(vocab, cols), torch.randint(0, vocab, (rows,), device=DEVICE)
        return lambda: F.embedding(ids, table)

    def adam(count: int) -> Call:
        p = torch.randn(count, device=DEVICE, requires_grad=True)
        p.grad = torch.randn_like(p)
        step: Call = torch.optim.AdamW([p], lr=1e-4, fused=True).step
        return step

    for rows, vocab in LOGITS:
        size = {"m": rows, "n": vocab}
        yield stream("loss_fwd_eager", 2 * rows * vocab, partial(loss, rows, vocab, False), **size)
        yield stream("loss_bwd_eager", 4 * rows * vocab, partial(loss, rows, vocab, True), **size)
    for rows, vocab, cols in ((4096, 129280, 7168), (8192, 32000, 4096), (2048, 128256, 8192), (16384, 51200, 2048)):
        size = {"m": rows, "n": cols}
        yield stream("embedding", 4 * rows * cols, partial(embedding, rows, vocab, cols), **size)
    for millions in MILLIONS:
        count = int(millions * 1000000)
        yield stream("adam", 28 * count, partial(adam, count), m=count)


def streaming() -> Iterator[Case]:
    yield from elementwise()
    yield from rowwise()
    yield from ends()


def measure(cases: list[Case], summarise: Callable[[Row, list[Events]], Row] | None = None) -> list[Row]:
    """Rows of the cases that ran; `summarise` makes the row of a case's launches, else `summary`."""
    made = [kernel_spans.Case(labels, make, guess) for labels, make, guess in cases]
    return [(summarise or summary)(case.labels, runs) for case, runs in kernel_spans.launches_of(made)]


def summary(labels: Row, runs: list[Events]) -> Row:
    spans = sorted(max(e[1] for e in run) - run[0][0] for run in runs)
    longest = max(runs[0], key=lambda e: e[1] - e[0])
    name = longest[2].removeprefix("void ").replace(",", ";")[:NAME]
    us = {"us": round(statistics.median(spans), 3), "us_min": round(spans[0], 3)}
    return {**labels, **us, "launches": len(runs[0]), "kernel": name}


SECTIONS: dict[str, Callable[[], Iterator[Case]]] = {
    "gemm": gemm, "grouped": grouped, "attention": attention, "streaming": streaming, "compiled": compiled,
    "split": split,
}  # fmt: skip


def write(
    script: str,
    columns: list[str],
    sections: dict[str, Callable[[], Iterator[Case]]],
    measured: Callable[[list[Case]], list[Row]],
) -> None:
    """Measure the sections that the command line names, all without names, into its first argument: a table of CSV."""
    path, names = sys.argv[1], sys.argv[2].split(",") if len(sys.argv) > 2 else list(sections)
    torch.manual_seed(1)
    with open(path, "w", newline="") as file:
        head = f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
        file.write(f"{head}, {script}\n")
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for name in names:
            start = time.time()
            try:
                rows = measured(list(sections[name]()))
            except Exception as error:
                print(f"section {name}: {type(error).__name__} {error}", file=sys.stderr, flush=True)
                continue
            writer.writerows(rows)
            file.flush()
            print(f"{name}: {len(rows)} rows in {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    write("measure_rested.py", COLUMNS, SECTIONS, measure)
