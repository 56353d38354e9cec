"""Measure eager PyTorch's elementwise kernels for operands that are not next to each other in memory.

    python -m hardware_profiles.calibration.measuring.measure_eager OUT.csv [--only unvectorized,vectorized,optimizer]

Halves of a projection (SwiGLU), halves of heads (rotary embedding), factors that are the same in a row, transposed
copies and changes of format take PyTorch's general kernel, which computes every value's address; neighbouring values of
one format take the vectorized one. `values` are those written, `bytes` the least that must move; `*_back`: backward.
Section optimizer: fused AdamW; weigh: gate weights of rows in the order of experts, eager and compiled, forward and
backward. Times as `kernel_spans.py` takes them: a rested GPU, L2 flushed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Table, arguments
from hardware_profiles.calibration.measuring.torch_kernels import bf16

COLUMNS = ["op", "impl", "m", "n", "values", "bytes", "held_out", *TIMES]
SHAPES = ((8192, 4096), (8192, 14336), (4096, 7168), (16384, 2048), (8192, 1024), (65536, 768), (2048, 4096))
HELD_OUT = SHAPES[1::2]
HEAD = 128
SECTIONS = ("unvectorized", "vectorized", "optimizer", "weigh")
Make = Callable[[int, int], Call]


def halves(m: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both halves of what a projection gives."""
    first, second = bf16(m, 2 * n).chunk(2, -1)
    return first, second


def heads(m: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both halves of every head, heads before tokens as attention wants them, and the rotation's factor."""
    first, second = bf16(1, m, n // HEAD, HEAD).transpose(1, 2).chunk(2, -1)
    return first, second, bf16(m, HEAD // 2)


def rotated(m: int, n: int) -> Call:
    """One half times the factor."""
    first, _, factor = heads(m, n)
    return partial(torch.mul, first, factor)


def joined(m: int, n: int) -> Call:
    """The rotated halves concatenated."""
    first, second, factor = heads(m, n)
    return partial(torch.cat, (first * factor, second * factor), dim=-1)


UNVECTORIZED: dict[str, tuple[Make, float, float]] = {
    "mul_half": (lambda m, n: partial(torch.mul, bf16(m, n), halves(m, n)[1]), 1.0, 6.0),
    "silu_half": (lambda m, n: partial(F.silu, halves(m, n)[0]), 1.0, 4.0),
    "silu_half_back": (lambda m, n: partial(torch.ops.aten.silu_backward, bf16(m, n), halves(m, n)[0]), 1.0, 6.0),
    "mul_rotary": (rotated, 0.5, 2.0),
    "neg_rotary": (lambda m, n: partial(torch.neg, heads(m, n)[1]), 0.5, 2.0),
    "cat_rotary": (joined, 1.0, 4.0),
    "copy_transposed": (lambda m, n: bf16(1, n // HEAD, m, HEAD).transpose(1, 2).contiguous, 1.0, 4.0),
    "to_fp32": (lambda m, n: bf16(m, n).float, 1.0, 6.0),
    "mul_rows": (lambda m, n: partial(torch.mul, bf16(m, n), bf16(m, 1)), 1.0, 4.0),
}
"""What each op is: what makes its call, values written and bytes moved for each of m x n."""
VECTORIZED: dict[str, tuple[Make, float, float]] = {
    "add": (lambda m, n: partial(torch.add, bf16(m, n), bf16(m, n)), 1.0, 6.0),
    "mul": (lambda m, n: partial(torch.mul, bf16(m, n), bf16(m, n)), 1.0, 6.0),
    "to_bf16": (lambda m, n: partial(bf16(m, n).float().to, torch.bfloat16), 1.0, 6.0),
    "cat_halves": (lambda m, n: partial(torch.cat, (bf16(m, n // 2), bf16(m, n // 2)), dim=-1), 1.0, 4.0),
}


def elementwise(ops: dict[str, tuple[Make, float, float]]) -> list[Case]:
    """Cases of a group of ops."""
    out = []
    for op, (make, values, moved) in ops.items():
        for m, n in SHAPES:
            labels = {"op": op, "impl": "eager", "m": m, "n": n, "values": round(m * n * values)}
            labels |= {"bytes": round(m * n * moved), "held_out": int((m, n) in HELD_OUT)}
            out.append(Case(labels, partial(make, m, n)))
    return out


def adamw(sizes: list[tuple[int, ...]], dtype: torch.dtype) -> Call:
    """A step of fused AdamW."""
    some = [torch.nn.Parameter(torch.randn(*s, device="cuda", dtype=dtype)) for s in sizes]
    for p in some:
        p.grad = torch.randn_like(p) * 1e-3
    update: Call = torch.optim.AdamW(some, lr=1e-9, fused=True).step
    return update


def optimizer() -> list[Case]:
    """Fused AdamW by format and number of parameters."""
    shapes: tuple[list[tuple[int, ...]], ...] = (
        [(4096, 4096)] * 4,
        [(14336, 4096), (4096, 14336)] * 2,
        [(128, 1536, 2048)],
        [(1024, 1024)] * 128,
        [(2048, 2048)],
    )
    out = []
    for at, sizes in enumerate(shapes):
        for dtype in (torch.bfloat16, torch.float32):
            count = sum(torch.Size(s).numel() for s in sizes)
            labels = {"op": "adamw", "impl": str(dtype)[6:], "m": len(sizes), "n": count // len(sizes), "values": count}
            labels |= {"bytes": 7 * count * dtype.itemsize, "held_out": at % 2}
            out.append(Case(labels, partial(adamw, sizes, dtype)))
    return out


def weigh(rows: torch.Tensor, weight: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Rows times their gate weights."""
    return rows * weight.index_select(0, order).unsqueeze(1)


def weigh_back(
    gradient: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, order: torch.Tensor, token: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the rows and of the weights, from that of the tokens."""
    arrived = gradient.index_select(0, token)
    return arrived * weight.index_select(0, order).unsqueeze(1), (arrived * rows).sum(1)


def weighing(m: int, n: int, *, back: bool, compiled: bool) -> Call:
    """The call for m rows of n, eight a token."""
    rows, weight = bf16(m, n), bf16(m)
    order = torch.randperm(m, device="cuda")
    fn: Callable[..., object] = weigh_back if back else weigh
    fn = torch.compile(fn) if compiled else fn
    return partial(fn, bf16(m // 8, n), rows, weight, order, order // 8) if back else partial(fn, rows, weight, order)


def weights() -> list[Case]:
    """Gate weights: forward and backward, eager and compiled."""
    out = []
    for at, (m, n) in enumerate(((65536, 2048), (16384, 4096), (32768, 2048), (16384, 7168))):
        for op, back in (("weigh", False), ("weigh_back", True)):
            for impl in ("eager", "compiled"):
                labels = {"op": op, "impl": impl, "m": m, "n": n, "values": m * n, "held_out": at % 2}
                labels["bytes"] = m * n * (6 if back else 4)
                out.append(Case(labels, partial(weighing, m, n, back=back, compiled=impl == "compiled")))
    return out


def main() -> None:
    """All sections that --only names."""
    args = arguments(__doc__ or "", SECTIONS)
    table = Table(args.out, COLUMNS, args.budget)
    plans: dict[str, Callable[[], list[Case]]] = {
        "unvectorized": partial(elementwise, UNVECTORIZED),
        "vectorized": partial(elementwise, VECTORIZED),
    }
    for section in args.only.split(","):
        table.run(plans[section]()[:: args.every])


if __name__ == "__main__":
    main()
