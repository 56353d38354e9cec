"""Measure training steps of Llama 3 8B under FSDP2 on the GPUs of one node: figures of our own to compare with.

    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_fsdp.py OUT.csv

Nothing is calibrated with these. What TorchTitan does, in small (arXiv 2410.06511): one `fully_shard` per layer, FP32
parameters gathered in BF16, gradients reduced in FP32, fused AdamW, SDPA; without recomputation, with all of a layer
recomputed (`full`), or with the attention core and every second GEMM kept (`op`); eager, or each layer
through torch.compile. `step_ms` is the median of the last half of the steps, `power_w` and `sm_mhz` what the driver
says of the first GPU meanwhile; `*_ms` and `launches` are kernels of one step by kind, those of NCCL with their waits;
`peak_gb` of every rank. (`h200_fsdp.csv` and `h100_fsdp.csv` are of an older form: means, the peak of the first rank.)
"""

from __future__ import annotations

import functools
from collections import defaultdict
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
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

HIDDEN, INNER, HEADS, KV, VOCAB, SEQ = 4096, 14336, 32, 8, 128256, 8192
WIDTH = HIDDEN // HEADS
BACKENDS = {"default": None, "flash2": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}
SAVED = {
    torch.ops.aten.mm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
}


class Layer(nn.Module):
    """One Llama layer with a linear module per matrix."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = BACKENDS[backend]
        self.q, self.k, self.v = (nn.Linear(HIDDEN, n * WIDTH, bias=False) for n in (HEADS, KV, KV))
        self.o = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.gate, self.up = nn.Linear(HIDDEN, INNER, bias=False), nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, seq, hidden) to the same."""
        b, s, _ = x.shape
        y = self.norm_attn(x)
        q = self.rope(self.q(y).view(b, s, HEADS, WIDTH).transpose(1, 2), cos, sin)
        k = self.rope(self.k(y).view(b, s, KV, WIDTH).transpose(1, 2), cos, sin)
        v = self.v(y).view(b, s, KV, WIDTH).transpose(1, 2)
        k, v = (t.repeat_interleave(HEADS // KV, dim=1) for t in (k, v))
        if self.backend is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            with sdpa_kernel(self.backend):
                y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, HIDDEN))
        y = self.norm_ffn(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


def every_second() -> Any:
    """Contexts of TorchTitan's `op` policy: the outputs of SAVED are kept, of every second GEMM not."""
    count: dict[str, int] = defaultdict(int)

    def policy(ctx: Any, op: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
        mode = "again" if ctx.is_recompute else "first"
        if op == torch.ops.aten.mm.default:
            count[mode] += 1
        second = op == torch.ops.aten.mm.default and count[mode] % 2 == 0
        return CheckpointPolicy.MUST_SAVE if op in SAVED and not second else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


class Recomputed(nn.Module):
    """A layer whose activations are recomputed in backward."""

    def __init__(self, layer: nn.Module, recompute: str) -> None:
        super().__init__()
        self.layer = layer
        self.extra: dict[str, Any] = {"context_fn": every_second} if recompute == "op" else {}

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        """As the layer."""
        return checkpoint(self.layer, *args, use_reentrant=False, **self.extra)


class Model(nn.Module):
    """Embedding, layers, norm and head."""

    def __init__(self, layers: int, recompute: str, backend: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, HIDDEN)
        made = (Layer(backend) for _ in range(layers))
        self.layers = nn.ModuleList(one if recompute == "none" else Recomputed(one, recompute) for one in made)
        self.norm = nn.RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


def built(layers: int, recompute: str, backend: str, mode: str) -> nn.Module:
    """The sharded model."""
    with torch.device("meta"):
        model = Model(layers, recompute, backend)
    if mode == "compile":
        for name, layer in model.layers.named_children():
            model.layers.register_module(name, torch.compile(layer, fullgraph=True))
    shard = functools.partial(
        fully_shard, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    )
    for layer in model.layers:
        shard(layer)
    shard(model)
    model.to_empty(device=DEVICE)
    for p in model.parameters():
        nn.init.normal_(p, std=0.02)
    return model


def measure(layers: int, mbs: int, recompute: str, backend: str, mode: str) -> Row:
    """Step time of one configuration in a settled state."""
    torch.manual_seed(0)
    model = built(layers, recompute, backend, mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    angle = torch.outer(torch.arange(SEQ, device=DEVICE), 5e5 ** (-torch.arange(0, WIDTH, 2, device=DEVICE) / WIDTH))
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    tokens = torch.randint(0, VOCAB, (mbs, SEQ + 1), device=DEVICE)
    loss_of = torch.compile(cross_entropy) if mode == "compile" else cross_entropy

    def step() -> None:
        loss = loss_of(model(tokens[:, :-1], cos, sin), tokens[:, 1:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    warm(step)
    with Sensors() as sensors:
        times = settled(step, ARGS.seconds)
    middle = median(times)
    out: Row = {"gpu": gpu(), "gpus": dist.get_world_size(), "mode": mode, "recompute": recompute}
    out |= {"attention": backend, "layers": layers, "seq": SEQ, "mbs": mbs, "step_ms": round(middle * 1e3, 2)}
    out |= {"tokens_per_s_per_gpu": round(SEQ * mbs / middle), "steps": len(times)}
    return out | sensors.readings() | peaks() | kernels(step)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in FP32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


PLAN = (
    (32, 2, "op", "flash2", "compile"),
    (32, 2, "op", "default", "compile"),
    (32, 2, "full", "default", "compile"),
    (32, 1, "op", "flash2", "compile"),
    (16, 1, "none", "cudnn", "compile"),
    (32, 2, "op", "flash2", "eager"),
    (32, 2, "full", "default", "eager"),
    (16, 1, "none", "cudnn", "eager"),
)
COLUMNS = [
    *("gpu", "gpus", "mode", "recompute", "attention", "layers", "seq", "mbs", "step_ms", "tokens_per_s_per_gpu"),
    *("steps", "peak_gb", "reserved_gb", "gpu_ms", *SPLIT, "launches", "power_w", "sm_mhz", "attention_kernel"),
    "took_s",
]

if __name__ == "__main__":
    ARGS = arguments(__doc__ or "")
    record(PLAN, measure, COLUMNS, ARGS)
