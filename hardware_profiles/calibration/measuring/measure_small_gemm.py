"""Measure the GEMMs of decoding: few rows, all weights read once; BF16 and FP8, dense and grouped.

    python -m hardware_profiles.calibration.measuring.measure_small_gemm OUT.csv \
        [--budget SECONDS] [--only gemm,grouped,bmm]

Output m x n, weights n x k. (n, k) are those of Llama 3 8B and 70B (whole and as tensor parallelism of 8 and 4 cuts
them), DeepSeek-V3's projections and experts, Qwen3 30B. `us` and `kernel`: one launch on a rested GPU with L2 flushed
(`kernel_spans.py`). `us_graph`: mean of a chain of such GEMMs in a CUDA graph whose weights rotate through more than L2
holds, as a decode step runs them: with the gap to the next kernel, operands of few rows still in L2. FP8 with fast
accumulation, scales per tensor or per row and column. Grouped: `rows` are the tokens per expert when every token
chooses experts at random without repetition (`tokens` x `topk`), m is their sum. `bmm`: MLA's absorbed GEMMs of 128
heads, `groups`.

A random half of the (n, k) is marked `held_out` = 1, with all of their m: to be compared with, not fitted.
"""

from __future__ import annotations

import random
import time
from functools import partial

import torch

from hardware_profiles.calibration.measuring.kernel_spans import (
    TIMES,
    Call,
    Case,
    Row,
    Table,
    arguments,
    guarded,
    in_graph,
)
from hardware_profiles.calibration.measuring.torch_kernels import DEVICE, bf16, fp8, ones

COLUMNS = ["op", "precision", "form", "impl", "m", "n", "k", "groups", "tokens", "topk", "rows", "bytes", "held_out"]
COLUMNS += [*TIMES, "us_graph"]
ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
SHAPES = [
    (6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096),  # Llama 3 8B
    (10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672),  # 70B
    (1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584), (2560, 8192), (8192, 2048), (14336, 8192), (8192, 7168),
    (2112, 7168), (1536, 7168), (576, 7168), (24576, 1536), (7168, 16384), (32768, 512), (256, 7168),  # V3
    (4096, 7168), (7168, 2048), (36864, 7168), (7168, 18432), (129280, 7168),
    (5120, 2048), (2048, 4096), (128, 2048),  # Qwen3 30B
]  # fmt: skip
EXPERTS = [
    (8, 8, 4096, 7168), (8, 8, 7168, 2048), (32, 8, 4096, 7168), (32, 8, 7168, 2048), (128, 8, 1536, 2048),
    (128, 8, 2048, 768), (8, 2, 28672, 4096), (8, 2, 4096, 14336), (64, 6, 2816, 2048), (64, 6, 2048, 1408),
]  # fmt: skip
"""Groups, top-k, n and k."""
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
BATCHED = ((128, 512, 128), (128, 128, 512), (32, 512, 128), (32, 128, 512))
"""Heads, n and k."""
ROTATED, FEWEST, MOST = 192e6, 4, 64
"""Bytes of weights that a chain in a graph goes through, and how many copies."""
SPARE = random.Random(20261128)
HELD_OUT = set(SPARE.sample(SHAPES, len(SHAPES) // 2))
HELD_OUT_EXPERTS = set(SPARE.sample(EXPERTS, len(EXPERTS) // 2))
SIZE = {"bf16": 2, "fp8_tensor": 1, "fp8_row": 1}


def multiplication(precision: str, a: torch.Tensor, w: torch.Tensor) -> Call:
    """The GEMM of a with the transpose of w."""
    if precision == "bf16":
        return lambda: torch.mm(a, w.t())
    row = precision == "fp8_row"
    sa, sb = (ones(a.shape[0], 1), ones(1, w.shape[0])) if row else (ones(1).squeeze(), ones(1).squeeze())
    return lambda: torch._scaled_mm(a, w.t(), scale_a=sa, scale_b=sb, out_dtype=torch.bfloat16, use_fast_accum=True)


def operand(precision: str, *shape: int) -> torch.Tensor:
    """Random values of that precision."""
    return bf16(*shape) if precision == "bf16" else fp8(*shape)


def one_gemm(precision: str, m: int, n: int, k: int) -> Call:
    """Operands and the call."""
    return multiplication(precision, operand(precision, m, k), operand(precision, n, k))


def seconds_of(moved: float, flops: float) -> float:
    """A rough time."""
    return 3e-6 + max(moved / 3e12, flops / 5e14)


def gemm(table: Table, every: int) -> None:
    """Dense GEMMs, all rows of one weight and precision together."""
    plan = [(precision, n, k) for n, k in SHAPES for precision in SIZE]
    for precision, n, k in plan[::every]:
        if table.over():
            print("out of time before", precision, n, k, flush=True)
            return
        cases = []
        for m in ROWS:
            moved = SIZE[precision] * (m * k + n * k) + 2 * m * n
            labels: Row = {"op": "gemm", "precision": precision, "form": "dense", "m": m, "n": n, "k": k}
            labels |= {"impl": "cublas" if precision == "bf16" else "torch", "bytes": moved}
            labels |= {"held_out": int((n, k) in HELD_OUT)}
            guess = seconds_of(moved, 2.0 * m * n * k)
            cases.append(Case(labels, partial(one_gemm, precision, m, n, k), guess))
        copies = max(FEWEST, min(MOST, int(ROTATED / (SIZE[precision] * n * k)) + 1))
        weights = [operand(precision, n, k) for _ in range(copies)]
        table.run(cases, partial(chained, weights))
        del weights
        torch.cuda.empty_cache()


def chained(weights: list[torch.Tensor], case: Case, row: Row) -> Row:
    """The row with the GEMM's time in a graph."""
    precision, a = case.labels["precision"], operand(case.labels["precision"], case.labels["m"], case.labels["k"])
    return row | {"us_graph": graph_time([multiplication(precision, a, w) for w in weights])}


def graph_time(calls: list[Call]) -> float | str:
    """Mean time in a graph, or nothing where it cannot be captured."""
    try:
        return round(in_graph(calls), 3)
    except Exception as error:
        print("no graph:", str(error)[:200], flush=True)
        return ""


def drawn(groups: int, topk: int, tokens: int) -> list[int]:
    """Tokens per expert when every token chooses `topk` of them at random."""
    rng, rows = random.Random(groups * 1000 + tokens), [0] * groups
    for _ in range(tokens):
        for one in rng.sample(range(groups), topk):
            rows[one] += 1
    return rows


def grouped_call(precision: str, rows: list[int], n: int, k: int) -> Call:
    """A grouped GEMM."""
    ends = torch.tensor(rows, device=DEVICE).cumsum(0).to(torch.int32)
    a, w = operand(precision, sum(rows), k), operand(precision, len(rows), n, k)
    if precision == "bf16":
        return lambda: torch._grouped_mm(a, w.transpose(-2, -1), offs=ends)
    sa, sw = ones(sum(rows)), ones(len(rows), n)
    return lambda: torch._scaled_grouped_mm(
        a, w.transpose(-2, -1), sa, sw, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def grouped(table: Table, every: int) -> None:
    """Grouped GEMMs."""
    cases = []
    for shape in EXPERTS:
        groups, topk, n, k = shape
        for tokens in TOKENS:
            rows = drawn(groups, topk, tokens)
            used = sum(1 for r in rows if r)
            for precision in ("bf16", "fp8_row"):
                moved = SIZE[precision] * (sum(rows) * k + used * n * k) + 2 * sum(rows) * n
                labels: Row = {"op": "gemm", "precision": precision, "form": "grouped", "impl": "torch", "n": n, "k": k}
                labels |= {"m": sum(rows), "groups": groups, "tokens": tokens, "topk": topk, "bytes": moved}
                labels |= {"rows": " ".join(map(str, rows)), "held_out": int(shape in HELD_OUT_EXPERTS)}
                guess = seconds_of(moved, 2.0 * sum(rows) * n * k)
                cases.append(Case(labels, partial(grouped_call, precision, rows, n, k), guess))
    table.run(cases[::every], grouped_chained)


def grouped_chained(case: Case, row: Row) -> Row:
    """The row with the time in a graph: weights of all experts are far more than L2 holds, so two copies do."""
    if case.labels["bytes"] < 3e7:
        return row
    rows = [int(r) for r in case.labels["rows"].split()]
    n, k, precision = case.labels["n"], case.labels["k"], case.labels["precision"]
    return row | {"us_graph": graph_time([grouped_call(precision, rows, n, k) for _ in range(2)])}


def batched_call(m: int, heads: int, n: int, k: int) -> Call:
    """A GEMM of every head: activations lie (m, heads, k) as MLA has them."""
    a, w = bf16(m, heads, k), bf16(heads, k, n)
    return lambda: torch.bmm(a.transpose(0, 1), w)


def bmm(table: Table, every: int) -> None:
    """Batched GEMMs."""
    cases = []
    for heads, n, k in BATCHED:
        for m in ROWS:
            moved = 2 * heads * (m * k + n * k + m * n)
            labels: Row = {"op": "gemm", "precision": "bf16", "form": "batched", "impl": "cublas", "m": m, "n": n}
            labels |= {"k": k, "groups": heads, "bytes": moved, "held_out": int(heads == 32)}
            cases.append(Case(labels, partial(batched_call, m, heads, n, k), seconds_of(moved, 0.0)))
    table.run(cases[::every])


def main() -> None:
    """All sections."""
    sections = {"gemm": gemm, "grouped": grouped, "bmm": bmm}
    args = arguments(__doc__ or "", list(sections))
    torch.manual_seed(1)
    began = time.time()
    guarded(Table(args.out, COLUMNS, args.budget), sections, args.only, args.every)
    print(f"{time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
