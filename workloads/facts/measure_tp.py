"""Measure forward and backward of Llama-shaped layers under tensor parallelism: figures of our own to compare with.

    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_tp.py OUT.csv

Nothing is calibrated with these. Tensor parallelism with sequence parallelism as in Megatron (arXiv 2205.05198): the
sequence is gathered before each column-parallel GEMM and reduce-scattered after each row-parallel one, on the
compute stream, nothing overlapped; every layer through torch.compile between its collectives; cuDNN attention, BF16.
`step_ms` is forward and backward without an optimizer, `nccl_ms` the time of the collectives' kernels in it, waits for
the other rank included, `gpu_ms` that of all kernels of the compute stream.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from measuring import record, rounds  # type: ignore[import-not-found]  # a script next to it
from torch import nn
from torch.profiler import ProfilerActivity, profile

MODELS = {
    "8b": {"hidden": 4096, "inner": 14336, "heads": 32, "kv": 8, "layers": 16},
    "70b": {"hidden": 8192, "inner": 28672, "heads": 64, "kv": 8, "layers": 8},
}
SECONDS = 5.0


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


class Layer(nn.Module):
    """One rank's part of a Llama layer; what lies between two collectives is compiled."""

    def __init__(self, c: dict[str, int]) -> None:
        super().__init__()
        ranks, h = dist.get_world_size(), c["hidden"]
        self.heads, self.kv, self.d = c["heads"] // ranks, c["kv"] // ranks, h // c["heads"]
        self.qkv = nn.Linear(h, (self.heads + 2 * self.kv) * self.d, bias=False)
        self.o = nn.Linear(self.heads * self.d, h, bias=False)
        self.up_gate = nn.Linear(h, 2 * c["inner"] // ranks, bias=False)
        self.down = nn.Linear(c["inner"] // ranks, h, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(h), nn.RMSNorm(h)
        self.attend, self.feed = torch.compile(self._attend), torch.compile(self._feed)
        self.before, self.between = torch.compile(self._before), torch.compile(self._between)

    def _before(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm_attn(x)

    def _attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        s, b, _ = x.shape
        split = [self.heads * self.d, self.kv * self.d, self.kv * self.d]
        q, k, v = (t.view(s, b, -1, self.d).permute(1, 2, 0, 3) for t in self.qkv(x).split(split, dim=-1))
        q, k = (self._rope(t, cos, sin) for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(y.permute(2, 0, 1, 3).reshape(s, b, -1))

    def _rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def _between(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + y
        return x, self.norm_ffn(x)

    def _feed(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.up_gate(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(seq / ranks, batch, hidden) to the same."""
        y = Scatter.apply(self.attend(Gather.apply(self.before(x)), cos, sin))
        x, y = self.between(x, y)
        return x + Scatter.apply(self.feed(Gather.apply(y)))


def measure(name: str, seq: int, mbs: int) -> dict[str, Any]:
    """Forward and backward of one configuration in a settled state."""
    c, ranks = MODELS[name], dist.get_world_size()
    torch.cuda.empty_cache()
    with torch.device("cuda"):
        layers = [Layer(c).to(torch.bfloat16) for _ in range(c["layers"])]
    d = c["hidden"] // c["heads"]
    angle = torch.outer(torch.arange(seq, device="cuda"), 5e5 ** (-torch.arange(0, d, 2, device="cuda") / d))
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    inputs = torch.randn(seq // ranks, mbs, c["hidden"], device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step() -> None:
        x = inputs
        for layer in layers:
            x = layer(x, cos, sin)
        x.backward(torch.ones_like(x))
        for layer in layers:
            layer.zero_grad()

    for _ in range(4):
        step()
    many = rounds(step, SECONDS)
    torch.cuda.synchronize()
    a = time.perf_counter()
    for _ in range(many):
        step()
    torch.cuda.synchronize()
    mean = (time.perf_counter() - a) / many
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    kernels = [e for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    nccl = sum(e.device_time_total for e in kernels if "ncclDevKernel" in e.name) / 1e3
    other = sum(e.device_time_total for e in kernels if "nccl" not in e.name.lower()) / 1e3
    out: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "tp": ranks, "model": name, "layers": c["layers"]}
    out |= {"seq": seq, "mbs": mbs, "step_ms": round(mean * 1e3, 2), "nccl_ms": round(nccl, 2)}
    return out | {"gpu_ms": round(nccl + other, 2)}


PLAN = (("8b", 4096, 1), ("8b", 8192, 1), ("8b", 8192, 2), ("70b", 4096, 1), ("70b", 8192, 1))

if __name__ == "__main__":
    record(PLAN, measure)
