"""Measure the memory-bound kernels of Transformer Engine: casts, norms, rotations, optimizer, one by one.

    python -m hardware_profiles.calibration.measuring.te.measure_te_kernels OUT.csv [--budget SECONDS] [--only cast,...]

Needs transformer_engine with its PyTorch part. One launch at a time on a rested GPU with L2 flushed
(`kernel_spans.py`); of several kernels in a call `us` is the span, `busy_us` the sum. `tokens` x `width` values in BF16
are read. `recipe`: none (BF16), delayed, current (tensorwise), block1d (1x128, activations and gradients), block2d
(128x128, weights). `usage`: row (for one GEMM) or row+col (also transposed, for the backward's). `bytes`: the least
that must move. A random half of the sizes is `held_out`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformer_engine.pytorch as te
import transformer_engine_torch as tex
from transformer_engine.pytorch.tensor.float8_blockwise_tensor import (
    Float8BlockQuantizer,
)
from transformer_engine.pytorch.tensor.float8_tensor import (
    Float8CurrentScalingQuantizer,
    Float8Quantizer,
)

from hardware_profiles.calibration.measuring.kernel_spans import TIMES, Call, Case, Table, arguments, guarded

COLUMNS = ["op", "recipe", "usage", "tokens", "width", "bytes", "held_out", *TIMES]
SIZES = [(t, w) for t in (2048, 8192, 16384) for w in (2048, 4096, 6144, 8192, 14336)]
HELD_OUT = set(random.Random(20261129).sample(SIZES, len(SIZES) // 2))
RECIPES = ("none", "delayed", "current", "block1d", "block2d")
BF16 = torch.bfloat16


def quantizer(recipe: str, usage: str) -> Any:
    """Transformer Engine's for a tensor."""
    use = {"rowwise": True, "columnwise": usage == "row+col"}
    fp8 = tex.DType.kFloat8E4M3
    if recipe == "delayed":
        return Float8Quantizer(torch.ones(1, device="cuda"), torch.zeros(1, device="cuda"), fp8, **use)
    if recipe == "current":
        return Float8CurrentScalingQuantizer(fp8, device=torch.device("cuda"), **use)
    return Float8BlockQuantizer(fp8, block_scaling_dim=1 if recipe == "block1d" else 2, **use)


def case(op: str, recipe: str, usage: str, size: tuple[int, int], each: float, make: Callable[[], Call]) -> Case:
    """A case that moves so many bytes for a value."""
    moved = size[0] * size[1] * each
    labels = {"op": op, "recipe": recipe, "usage": usage, "tokens": size[0], "width": size[1], "bytes": int(moved)}
    return Case(labels | {"held_out": int(size in HELD_OUT)}, make, 1e-5 + moved / 2e12)


def values(size: tuple[int, int], dtype: torch.dtype = BF16) -> torch.Tensor:
    """Normal random numbers."""
    return torch.randn(*size, device="cuda", dtype=dtype)


def cast_cases() -> list[Case]:
    """Casts of a BF16 tensor, and with the gradient of the bias."""
    out = []
    for size in SIZES:
        for recipe in RECIPES[1:]:
            for usage, written in (("row", 1), ("row+col", 2)):

                def make(recipe: str = recipe, usage: str = usage, size: tuple[int, int] = size) -> Call:
                    x, q = values(size), quantizer(recipe, usage)
                    into = q.make_empty(size, dtype=BF16, device="cuda")
                    return lambda: tex.quantize(x, q, into)

                out.append(case("cast", recipe, usage, size, 2 + written, make))
            if recipe != "block2d":

                def bias(recipe: str = recipe, size: tuple[int, int] = size) -> Call:
                    x, q = values(size), quantizer(recipe, "row+col")
                    return lambda: tex.bgrad_quantize(x, q)

                out.append(case("cast_bias_grad", recipe, "row+col", size, 4, bias))
    return out


def norm_cases() -> list[Case]:
    """Norms forward, with the cast of what follows, and backward."""
    out = []
    for size in SIZES:
        for rms in (True, False):
            name = "rmsnorm" if rms else "layernorm"
            for recipe in ("none", "delayed", "current", "block1d"):
                each = 4 if recipe == "none" else 4 if recipe == "delayed" else 6

                def make(recipe: str = recipe, size: tuple[int, int] = size, rms: bool = rms) -> Call:
                    x, w = values(size), torch.ones(size[1], device="cuda", dtype=BF16)
                    q = None if recipe == "none" else quantizer(recipe, "row+col")
                    tail = (None, q, tex.DType.kBFloat16, 0, False)
                    if rms:
                        return lambda: tex.rmsnorm_fwd(x, w, 1e-5, *tail)
                    return lambda: tex.layernorm_fwd(x, w, torch.zeros_like(w), 1e-5, *tail)

                out.append(case(name, recipe, "row+col" if recipe != "none" else "", size, each, make))

            def back(size: tuple[int, int] = size, rms: bool = rms) -> Call:
                dy, x, w = values(size), values(size), torch.ones(size[1], device="cuda", dtype=BF16)
                sigma = torch.ones(size[0], device="cuda")
                if rms:
                    return lambda: tex.rmsnorm_bwd(dy, x, sigma, w, 0, False)
                mean = torch.zeros(size[0], device="cuda")
                return lambda: tex.layernorm_bwd(dy, x, mean, sigma, w, 0, False)

            out.append(case(name + "_backward", "none", "", size, 6, back))
    return out


def rope_cases() -> list[Case]:
    """Fused rotations of queries, forward and backward: `width` is heads x 128."""
    from transformer_engine.pytorch.attention.rope import (
        apply_rotary_pos_emb,
    )

    def make(size: tuple[int, int], backward: bool) -> Call:
        heads = size[1] // 128
        x = torch.randn(size[0], 1, heads, 128, device="cuda", dtype=BF16, requires_grad=True)
        freqs = torch.randn(size[0], 1, 1, 128, device="cuda")
        call = partial(apply_rotary_pos_emb, tensor_format="sbhd", fused=True)
        if not backward:
            return lambda: call(x.detach(), freqs)
        y = call(x, freqs)
        grad = torch.randn_like(y)
        return lambda: torch.autograd.grad(y, x, grad, retain_graph=True)

    return [
        case("rope" + "_backward" * back, "none", "", size, 4, partial(make, size, back))
        for size in SIZES
        for back in (False, True)
    ]


def optimizer_cases() -> list[Case]:
    """One step of its Adam with FP32 masters, moments and gradients, its gradients' norm and scaling."""
    out = []
    for many in (16 << 20, 64 << 20, 256 << 20):
        size = (many >> 12, 4096)

        def adam(size: tuple[int, int] = size) -> Call:
            weights = [torch.nn.Parameter(values((size[0] // 8, size[1]), torch.float32)) for _ in range(8)]
            for weight in weights:
                weight.grad = torch.randn_like(weight)
            optimizer = te.optimizers.FusedAdam(weights, lr=1e-5)
            step: Call = optimizer.step
            return step

        def norm(size: tuple[int, int] = size) -> Call:
            grads, flag = (
                [values((size[0] // 8, size[1]), torch.float32)] * 8,
                torch.zeros(1, dtype=torch.int, device="cuda"),
            )
            return lambda: te.optimizers.multi_tensor_applier(tex.multi_tensor_l2norm, flag, [grads], False)

        out += [case("adam", "none", "", size, 28, adam), case("grad_norm", "none", "", size, 4, norm)]
    return out


SECTIONS: dict[str, Callable[[], list[Case]]] = {
    "cast": cast_cases,
    "norm": norm_cases,
    "rope": rope_cases,
    "optimizer": optimizer_cases,
}


def run(name: str, table: Table, every: int) -> None:
    """One section."""
    table.run(SECTIONS[name]()[::every])


def main() -> None:
    """Measure what was asked for."""
    asked = arguments(__doc__ or "", list(SECTIONS))
    table = Table(asked.out, COLUMNS, asked.budget)
    guarded(table, {name: partial(run, name) for name in SECTIONS}, asked.only, asked.every)


if __name__ == "__main__":
    main()
