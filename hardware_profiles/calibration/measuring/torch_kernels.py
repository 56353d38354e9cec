"""Operands and kernels that the measuring scripts share: what PyTorch makes of random tensors, and what it compiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

DEVICE = "cuda"


def bf16(*shape: int) -> torch.Tensor:
    """Normal random numbers in BF16."""
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def fp8(*shape: int) -> torch.Tensor:
    """The same in FP8 (E4M3)."""
    return bf16(*shape).to(torch.float8_e4m3fn)


def ones(*shape: int) -> torch.Tensor:
    """Ones in FP32, as scales."""
    return torch.ones(*shape, device=DEVICE, dtype=torch.float32)


def norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """RMSNorm computed in FP32."""
    return F.rms_norm(x.float(), (x.shape[-1],), w.float()).to(x.dtype)


def norm_residual(x: torch.Tensor, branch: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual added, and the norm of the sum."""
    total = x + branch
    return total, norm(total, w)


def quant(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values and their scales, one per 128 values of a row."""
    blocks = x.float().unflatten(-1, (-1, 128))
    scale = blocks.abs().amax(-1, keepdim=True).clamp(1e-4) / 448.0
    return (blocks / scale).flatten(-2).to(torch.float8_e4m3fn), scale.squeeze(-1)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """SwiGLU of gate and up projection side by side."""
    a, b = x.chunk(2, -1)
    return F.silu(a) * b


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, backend: Any, *, causal: bool, backward: bool
) -> Callable[[], object]:
    """A call of PyTorch's attention by a backend, or of its backward; q, k, v of (batch, heads, tokens, width)."""
    from torch.nn.attention import sdpa_kernel

    def run() -> torch.Tensor:
        with sdpa_kernel(backend):
            shared = q.shape[1] != k.shape[1]
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=shared)

    if not backward:
        return run
    out = run()
    grad = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True)
