"""Measure what Megatron-Core runs between GEMMs: compiled activations, tokens into experts' order, split projections.

    python -m hardware_profiles.calibration.measuring.te.measure_te_experts OUT.csv [--budget SECONDS] [--only ...]

Needs megatron-core and transformer_engine with its PyTorch part. One launch at a time on a rested GPU with L2 flushed
(`kernel_spans.py`); of several kernels in a call `us` is the span, `busy_us` the sum. `rows` x `width` values are read
or, of permutations, made of `tokens`. `shapes`: static where torch.compile knew them, dynamic where it had seen another
number of rows before, as with dropless experts on several ranks. `bytes`: the least that must move.

Sections: split (queries and values of a fused projection made contiguous; gradients joined), heads (norms of query and
key heads), tokens (permute, unpermute, chunks sorted by expert, and their maps), activation (swiglu, weighted_swiglu,
bias_gelu). A random half of the sizes is `held_out`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_gelu import bias_gelu_impl
from megatron.core.fusions.fused_bias_swiglu import (
    bias_swiglu_impl,
    weighted_bias_swiglu_impl,
)
from transformer_engine.pytorch import permutation

from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Table, arguments, guarded

COLUMNS = ["op", "shapes", "backward", "tokens", "experts", "topk", "rows", "width", "bytes", "held_out", *TIMES]
TOKENS = ((8192, 2048, 128, 8), (4096, 2048, 64, 6), (16384, 2048, 128, 8), (4096, 4096, 8, 2), (8192, 6144, 8, 2),
          (4096, 7168, 256, 8), (8192, 2880, 32, 4), (2048, 5120, 16, 1))  # fmt: skip
"""Tokens, hidden size, experts, experts a token."""
ROWS = ((4096, 14336), (8192, 14336), (8192, 7168), (16384, 6144), (65536, 768), (32768, 2048), (8192, 2048))
"""Rows and inner size of activations."""
HEADS = ((8192, 32, 8), (8192, 32, 4), (4096, 24, 24), (16384, 12, 2), (8192, 16, 2), (4096, 64, 8))
"""Tokens, query heads, key heads; heads are 128 wide."""
HELD_OUT = {x for group in (TOKENS, ROWS, HEADS) for x in random.Random(3).sample(group, len(group) // 2)}
TOGETHER = 4
BF16 = torch.bfloat16
tex = permutation.tex


def case(op: str, size: tuple[int, ...], moved: float, make: Callable[[], Call], **labels: Any) -> Case:
    """A case that moves so many bytes."""
    row = {"op": op, "bytes": int(moved), "held_out": int(size in HELD_OUT), "backward": 0}
    return Case(row | labels, make, 1e-5 + moved / 1.5e12)


def values(*shape: int) -> torch.Tensor:
    """Normal random numbers that get a gradient."""
    return torch.randn(*shape, device="cuda", dtype=BF16, requires_grad=True)


def both(
    op: str, size: tuple[int, ...], moved: tuple[float, float], make: Callable[[], Any], **labels: Any
) -> list[Case]:
    """Forward and backward of what `make` returns: a function of its inputs, and them."""

    def backward() -> Call:
        fn, inputs = make()
        out = fn(*inputs)
        outs = [x for x in (out if isinstance(out, tuple) else (out,)) if x.requires_grad]
        grads = [torch.randn_like(x) for x in outs]
        wanted = [x for x in inputs if x.requires_grad]
        return lambda: torch.autograd.grad(outs, wanted, grads, retain_graph=True)

    def forward() -> Call:
        fn, inputs = make()
        return lambda: fn(*inputs)

    return [
        case(op, size, moved[0], forward, **labels),
        case(op, size, moved[1], backward, **labels | {"backward": 1}),
    ]


def chosen(tokens: int, experts: int, topk: int) -> torch.Tensor:
    """A random routing map."""
    picks = torch.rand(tokens, experts, device="cuda").topk(topk, dim=-1).indices
    return torch.zeros(tokens, experts, dtype=torch.bool, device="cuda").scatter_(1, picks, True)


def token_cases() -> list[Case]:
    """Tokens into the order of experts and back."""
    out = []
    for size in TOKENS:
        tokens, hidden, experts, topk = size
        rows = tokens * topk
        one, all_ = tokens * hidden * 2, rows * hidden * 2
        labels = {"tokens": tokens, "experts": experts, "topk": topk, "rows": rows, "width": hidden}

        def permute(size: tuple[int, ...] = size, rows: int = rows) -> Any:
            tokens, hidden, experts, topk = size
            chosen_map = chosen(tokens, experts, topk)
            probs = torch.rand(tokens, experts, device="cuda", requires_grad=True)
            fn = partial(permutation.moe_permute_with_probs, routing_map=chosen_map, num_out_tokens=rows)
            return fn, (values(tokens, hidden), probs)

        def unpermute(size: tuple[int, ...] = size, rows: int = rows) -> Any:
            tokens, hidden, experts, topk = size
            x, chosen_map = values(tokens, hidden), chosen(tokens, experts, topk)
            _, row_map = permutation.moe_permute(x, chosen_map, num_out_tokens=rows, map_type="mask")
            fn = partial(permutation.moe_unpermute, row_id_map=row_map, restore_shape=x.shape, map_type="mask")
            return fn, (values(rows, hidden),)

        def chunks(size: tuple[int, ...] = size, rows: int = rows) -> Any:
            _, hidden, experts, _ = size
            split = torch.full((experts,), rows // experts, dtype=torch.int64, device="cuda")
            order = torch.arange(experts, device="cuda").view(-1, max(1, experts // 8)).t().reshape(-1).contiguous()
            probs = torch.rand(rows, device="cuda", requires_grad=True)
            fn = partial(permutation.moe_sort_chunks_by_index_with_probs, split_sizes=split, sorted_index=order)
            return fn, (values(rows, hidden), probs)

        out += both("permute", size, (one + all_, one + all_), permute, **labels)
        out += both("unpermute", size, (one + all_, one + all_), unpermute, **labels)
        out += both("sort_chunks", size, (2 * all_, 2 * all_), chunks, **labels)
    return out


def activation_cases() -> list[Case]:
    """Megatron-Core's compiled activations, whose shapes the compiler knows or does not."""
    out = []
    for shapes in ("static", "dynamic"):
        for size in ROWS if shapes == "static" else ROWS[1::2]:
            rows, inner = size
            wide = rows * inner * 2

            def swiglu(size: tuple[int, ...] = size, weighted: bool = False, shapes: str = shapes) -> Any:
                rows, inner = size
                fn = weighted_bias_swiglu_impl if weighted else bias_swiglu_impl
                first = [rows] if shapes == "static" else [rows + 256, rows + 640, rows]
                torch._dynamo.reset()
                for many in first:  # backward is compiled with the first one, too
                    y = values(many, 2 * inner)
                    inputs = (
                        (y, None, torch.rand(many, 1, device="cuda", requires_grad=True)) if weighted else (y, None)
                    )
                    fn(*inputs).sum().backward()
                wanted = tuple(x for x in inputs if x is not None)
                return (lambda y, *rest: fn(y, None, *rest)), wanted

            labels = {"rows": rows, "width": inner, "shapes": shapes}
            out += both("swiglu", size, (3 * wide, 5 * wide), swiglu, **labels)
            out += both("weighted_swiglu", size, (3 * wide, 5 * wide), partial(swiglu, weighted=True), **labels)
    for size in ROWS[:4]:
        rows, inner = size

        def gelu(size: tuple[int, ...] = size) -> Any:
            torch._dynamo.reset()
            return bias_gelu_impl, (values(*size), values(size[1]))

        labels = {"rows": rows, "width": inner, "shapes": "static"}
        out += both("bias_gelu", size, (rows * inner * 4.0, rows * inner * 6.0), gelu, **labels)
    return out


def split_cases() -> list[Case]:
    """Queries and values out of a fused projection, each contiguous, and their gradients joined."""
    out = []
    for size in HEADS:
        tokens, heads, groups = size
        each = heads // groups
        wide = {"q": heads * 128, "v": groups * 128}

        def split(which: str, size: tuple[int, ...] = size, each: int = each) -> Call:
            tokens, _, groups = size
            parts = torch.split(values(tokens, 1, groups, (each + 2) * 128), [each * 128, 128, 128], dim=3)
            mine = parts[0].reshape(tokens, 1, -1, 128) if each == 1 else parts[0 if which == "q" else 2]
            return lambda: mine.detach().clone(memory_format=torch.contiguous_format)

        def join(size: tuple[int, ...] = size, each: int = each) -> Call:
            tokens, _, groups = size
            parts = [values(tokens, 1, groups, n * 128).detach() for n in (each, 1, 1)]
            return lambda: torch.cat(parts, dim=3)

        for which in ("q", "v"):
            moved = tokens * wide[which] * 4.0
            out.append(case(f"copy_{which}", size, moved, partial(split, which), rows=tokens, width=wide[which]))
        width = (heads + 2 * groups) * 128
        out.append(case("join", size, tokens * width * 4.0, join, rows=tokens, width=width))
    return out


def head_cases() -> list[Case]:
    """RMSNorm of heads of 128, and its backward with the sum over rows."""
    out = []
    for size in HEADS:
        rows = size[0] * size[1]

        def forward(rows: int = rows) -> Call:
            x, w = values(rows, 128).detach(), torch.ones(128, device="cuda", dtype=BF16)
            return lambda: tex.rmsnorm_fwd(x, w, 1e-5, None, None, tex.DType.kBFloat16, 0, False)

        def backward(rows: int = rows) -> Call:
            dy, x, w = (
                values(rows, 128).detach(),
                values(rows, 128).detach(),
                torch.ones(128, device="cuda", dtype=BF16),
            )
            sigma = torch.ones(rows, device="cuda")
            return lambda: tex.rmsnorm_bwd(dy, x, sigma, w, 0, False)

        out.append(case("head_norm", size, rows * 512.0, forward, rows=rows, width=128))
        out.append(case("head_norm", size, rows * 768.0, backward, rows=rows, width=128, backward=1))
    return out


SECTIONS: dict[str, Callable[[], list[Case]]] = {
    "split": split_cases,
    "heads": head_cases,
    "tokens": token_cases,
    "activation": activation_cases,
}


def run(name: str, table: Table, every: int) -> None:
    """One section, a few cases at a time: the compiler and Triton's search take long, and rows are to be on disk."""
    cases = SECTIONS[name]()[::every]
    for at in range(0, len(cases), TOGETHER):
        table.run(cases[at : at + TOGETHER])


def main() -> None:
    """Measure what was asked for."""
    asked = arguments(__doc__ or "", list(SECTIONS))
    table = Table(asked.out, COLUMNS, asked.budget)
    guarded(table, {name: partial(run, name) for name in SECTIONS}, asked.only, asked.every)


if __name__ == "__main__":
    main()
