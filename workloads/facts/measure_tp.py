"""Measure forward and backward of Llama-shaped layers under tensor parallelism: figures of our own to compare with.

    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_tp.py OUT.csv [--budget SECONDS]

Nothing is calibrated with these. Tensor parallelism with sequence parallelism as in Megatron (arXiv 2205.05198): the
sequence is gathered before each column-parallel GEMM and reduce-scattered after each row-parallel one. `mode`:

- compile: collectives on the compute stream, nothing overlapped; what lies between them through torch.compile.
- eager: the same, nothing compiled.
- async: GEMM and collective cut in pieces that overlap (PyTorch's asynchronous tensor parallelism:
  symm_mem::fused_all_gather_matmul and fused_matmul_reduce_scatter, copies by the copy engines over NVLink, no
  multicast), in forward and for the input gradients; the rest as in `compile`.

cuDNN attention, BF16. `step_ms` is forward and backward without an optimizer; `nccl_ms` the time of the collectives'
kernels in it, waits for the other rank included, the other `*_ms` and `launches` of all kernels by kind; `peak_gb` of
every rank.
"""

from __future__ import annotations

import os
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from step_runner import (  # type: ignore[import-not-found]  # a script next to it
    DEVICE,
    SPLIT,
    Row,
    Sensors,
    arguments,
    gpu,
    kernels,
    peaks,
    record,
    settled,
    warm,
)
from torch import nn

os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
Sizes = dict[str, int]
MODELS: dict[str, Sizes] = {
    "8b": {"hidden": 4096, "inner": 14336, "heads": 32, "kv": 8, "layers": 16},
    "70b": {"hidden": 8192, "inner": 28672, "heads": 64, "kv": 8, "layers": 8},
}
TINY = {"hidden": 64, "inner": 128, "heads": 4, "kv": 2, "layers": 2}


class Gather(torch.autograd.Function):
    """All-gather along the sequence; its gradient is reduce-scattered."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """(seq / ranks, batch, hidden) to (seq, batch, hidden)."""
        return gathered(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """The sum over ranks of this rank's part."""
        return scattered(gradient)


class Scatter(torch.autograd.Function):
    """Reduce-scatter along the sequence; its gradient is gathered."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        """(seq, batch, hidden) to (seq / ranks, batch, hidden)."""
        return scattered(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """The whole sequence."""
        return gathered(gradient)


class GatherLinear(torch.autograd.Function):
    """A column-parallel GEMM whose gathered input arrives in pieces."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(seq / ranks, batch, hidden) to (seq, batch, columns of the rank)."""
        whole, out = torch.ops.symm_mem.fused_all_gather_matmul(x, [weight.t()], 0, group())
        ctx.save_for_backward(whole, weight)
        return out[0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The input gradient is reduce-scattered in pieces."""
        whole, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        dx = torch.ops.symm_mem.fused_matmul_reduce_scatter(gradient, weight, "sum", 0, group())
        return dx, gradient.flatten(0, 1).t() @ whole.flatten(0, 1)


class LinearScatter(torch.autograd.Function):
    """A row-parallel GEMM whose output is reduce-scattered in pieces."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(seq, batch, rows of the rank) to (seq / ranks, batch, hidden)."""
        ctx.save_for_backward(x, weight)
        return torch.ops.symm_mem.fused_matmul_reduce_scatter(x, weight.t(), "sum", 0, group())

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradient arrives in pieces."""
        x, weight = ctx.saved_tensors
        whole, found = torch.ops.symm_mem.fused_all_gather_matmul(gradient.contiguous(), [weight], 0, group())
        return found[0], whole.flatten(0, 1).t() @ x.flatten(0, 1)


def group() -> str:
    """The name of the group of all ranks."""
    return str(dist.group.WORLD.group_name)


def gathered(x: torch.Tensor) -> torch.Tensor:
    """All ranks' parts of the sequence."""
    out = x.new_empty((x.shape[0] * dist.get_world_size(), *x.shape[1:]))
    dist.all_gather_into_tensor(out, x.contiguous())
    return out


def scattered(x: torch.Tensor) -> torch.Tensor:
    """This rank's part of the sum."""
    out = x.new_empty((x.shape[0] // dist.get_world_size(), *x.shape[1:]))
    dist.reduce_scatter_tensor(out, x.contiguous())
    return out


def as_it_is(part: Any) -> Any:
    """Eager."""
    return part


class Layer(nn.Module):
    """One rank's part of a Llama layer."""

    def __init__(self, c: Sizes, mode: str) -> None:
        super().__init__()
        ranks, h = dist.get_world_size(), c["hidden"]
        self.heads, self.kv, self.d, self.mode = c["heads"] // ranks, c["kv"] // ranks, h // c["heads"], mode
        self.qkv = nn.Linear(h, (self.heads + 2 * self.kv) * self.d, bias=False)
        self.o = nn.Linear(self.heads * self.d, h, bias=False)
        self.up_gate = nn.Linear(h, 2 * c["inner"] // ranks, bias=False)
        self.down = nn.Linear(c["inner"] // ranks, h, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(h), nn.RMSNorm(h)
        made = as_it_is if mode == "eager" else torch.compile
        self.before, self.between = made(self._before), made(self._between)
        self.attend, self.feed = made(self._attend), made(self._feed)
        self.core, self.act = made(self._core), made(self._act)

    def _before(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm_attn(x)

    def _core(self, parts: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        s, b, _ = parts.shape
        split = [self.heads * self.d, self.kv * self.d, self.kv * self.d]
        q, k, v = (t.view(s, b, -1, self.d).permute(1, 2, 0, 3) for t in parts.split(split, dim=-1))
        q, k = (self._rope(t, cos, sin) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return y.permute(2, 0, 1, 3).reshape(s, b, -1)

    def _attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return self.o(self._core(self.qkv(x), cos, sin))

    def _rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def _between(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + y
        return x, self.norm_ffn(x)

    def _act(self, parts: torch.Tensor) -> torch.Tensor:
        gate, up = parts.chunk(2, dim=-1)
        return F.silu(gate) * up

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self._act(self.up_gate(x)))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(seq / ranks, batch, hidden) to the same."""
        if self.mode == "async":
            y = self.core(GatherLinear.apply(self.before(x), self.qkv.weight), cos, sin)
            x, y = self.between(x, LinearScatter.apply(y, self.o.weight))
            return x + LinearScatter.apply(self.act(GatherLinear.apply(y, self.up_gate.weight)), self.down.weight)
        y = Scatter.apply(self.attend(Gather.apply(self.before(x)), cos, sin))
        x, y = self.between(x, y)
        return x + Scatter.apply(self.feed(Gather.apply(y)))


def measure(name: str, seq: int, mbs: int, mode: str) -> Row:
    """Forward and backward of one configuration in a settled state."""
    c, ranks = TINY if ARGS.tiny else MODELS[name], dist.get_world_size()
    seq = 64 if ARGS.tiny else seq
    if mode == "async":
        from torch.distributed._symmetric_memory import enable_symm_mem_for_group

        enable_symm_mem_for_group(group())
    layers = nn.ModuleList(Layer(c, mode) for _ in range(c["layers"])).to(DEVICE, torch.bfloat16)
    d = c["hidden"] // c["heads"]
    angle = torch.outer(torch.arange(seq, device=DEVICE), 5e5 ** (-torch.arange(0, d, 2, device=DEVICE) / d))
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    inputs = torch.randn(seq // ranks, mbs, c["hidden"], device=DEVICE, dtype=torch.bfloat16, requires_grad=True)

    def step() -> None:
        x = inputs
        for layer in layers:
            x = layer(x, cos, sin)
        x.backward(torch.ones_like(x))
        layers.zero_grad(set_to_none=True)

    warm(step)
    with Sensors() as sensors:
        times = settled(step, ARGS.seconds)
    out: Row = {"gpu": gpu(), "tp": ranks, "mode": mode, "model": name, "layers": c["layers"], "seq": seq, "mbs": mbs}
    out |= {"step_ms": round(median(times) * 1e3, 3), "step_ms_min": round(min(times) * 1e3, 3), "steps": len(times)}
    return out | sensors.readings() | peaks() | kernels(step)


COLUMNS = [
    *("gpu", "tp", "mode", "model", "layers", "seq", "mbs", "step_ms", "step_ms_min", "steps", "peak_gb"),
    *("reserved_gb", "gpu_ms", *SPLIT, "launches", "power_w", "sm_mhz", "attention_kernel", "took_s"),
]
PLAN = tuple(
    (name, seq, mbs, mode)
    for mode in ("eager", "async", "compile")
    for name, seq, mbs in (("8b", 8192, 1), ("70b", 4096, 1), ("8b", 4096, 1), ("70b", 8192, 1), ("8b", 8192, 2))
)

if __name__ == "__main__":
    ARGS = arguments(__doc__ or "")
    record(PLAN, measure, COLUMNS, ARGS)
