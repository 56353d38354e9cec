"""Measure whole training steps under pipeline schedules of torch.distributed.pipelining: end-to-end figures of our own.

    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_pipeline.py OUT.csv [--budget SECONDS]

Nothing is calibrated with these. Llama-shaped models, one pipeline over N GPUs; layers are spread evenly over the
stages, the first one has the embedding, the last one norm, head and loss. BF16 parameters, gradients and AdamW states
(fused), no FP32 copies; SDPA as PyTorch chooses. 1F1B has one stage a rank, Interleaved1F1B two (round and round),
ZBVZeroBubble and DualPipeV two in a V: rank 0 has the first and the last. eager, or every layer and the loss through
torch.compile (the V schedules take input and weight gradients apart, which needs eager).

`step_ms`: median of the last half of the steps, each waited for, of the first rank; `*_ms`, `launches`: kernels of one
step on the first rank as the profiler sees them, those of NCCL with their waits; `peak_gb`, `reserved_gb` of every
rank; `busy_ms` of every rank: its kernels without NCCL's.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.pipelining.schedules as torch_schedules
import torch.nn.functional as F
from step_runner import (  # type: ignore[import-not-found]  # a script next to it
    DEVICE,
    SPLIT,
    Row,
    Sensors,
    arguments,
    gathered,
    gpu,
    kernels,
    peaks,
    record,
    settled,
    warm,
)
from torch import nn
from torch.distributed.pipelining import PipelineStage

Sizes = dict[str, int]
MODELS: dict[str, Sizes] = {
    "8b": {"hidden": 4096, "inner": 14336, "heads": 32, "kv_heads": 8, "vocab": 32000},
    "70b": {"hidden": 8192, "inner": 28672, "heads": 64, "kv_heads": 8, "vocab": 32000},
    "1b": {"hidden": 2048, "inner": 8192, "heads": 32, "kv_heads": 8, "vocab": 32000},
}
TINY = {"hidden": 64, "inner": 128, "heads": 4, "kv_heads": 2, "vocab": 128}
STAGES = {"1F1B": 1, "Interleaved1F1B": 2, "ZBVZeroBubble": 2, "DualPipeV": 2}
"""Stages of a rank."""


class Layer(nn.Module):  # type: ignore[misc,unused-ignore]
    """One Llama layer; it has its own tables of rotary angles, for a stage passes on one tensor."""

    def __init__(self, c: Sizes, seq: int) -> None:
        super().__init__()
        h, self.heads, self.kv = c["hidden"], c["heads"], c["kv_heads"]
        self.d = h // self.heads
        self.qkv = nn.Linear(h, (self.heads + 2 * self.kv) * self.d, bias=False)
        self.o = nn.Linear(h, h, bias=False)
        self.up_gate, self.down = nn.Linear(h, 2 * c["inner"], bias=False), nn.Linear(c["inner"], h, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(h), nn.RMSNorm(h)
        angle = torch.outer(torch.arange(seq), 1e4 ** (-torch.arange(0, self.d, 2) / self.d))
        self.register_buffer("cos", angle.cos().to(torch.bfloat16))
        self.register_buffer("sin", angle.sin().to(torch.bfloat16))

    def rope(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary embedding."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, b * self.cos + a * self.sin), dim=-1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, seq, hidden) to the same."""
        b, s, h = x.shape
        parts = self.qkv(self.norm_attn(x)).split([h, self.kv * self.d, self.kv * self.d], dim=-1)
        q, k, v = (part.view(b, s, -1, self.d).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(self.rope(q), self.rope(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, h))
        gate, up = self.up_gate(self.norm_ffn(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Stage(nn.Module):  # type: ignore[misc,unused-ignore]
    """Some layers, with the embedding before them or the head after them."""

    def __init__(self, c: Sizes, seq: int, layers: int, first: bool, last: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(c["vocab"], c["hidden"]) if first else None
        self.layers = nn.ModuleList(Layer(c, seq) for _ in range(layers))
        self.norm = nn.RMSNorm(c["hidden"]) if last else None
        self.head = nn.Linear(c["hidden"], c["vocab"], bias=False) if last else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens or (batch, seq, hidden) to the latter or logits."""
        if self.embed is not None:
            x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return x if self.head is None or self.norm is None else self.head(self.norm(x))


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in FP32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def of_rank(schedule: str, rank: int, ranks: int) -> list[int]:
    """The stages that a rank has."""
    if STAGES[schedule] == 1:
        return [rank]
    if schedule == "Interleaved1F1B":
        return [rank, ranks + rank]
    return [rank, 2 * ranks - 1 - rank]


def built(c: Sizes, seq: int, layers: int, index: int, stages: int, mode: str) -> Stage:
    """One stage with random weights on this rank's GPU."""
    torch.manual_seed(index)
    stage: Stage = Stage(c, seq, layers // stages, index == 0, index == stages - 1).to(DEVICE, torch.bfloat16)
    if mode == "compile":
        for layer in stage.layers:
            layer.compile(dynamic=False)
    return stage


def measure(name: str, layers: int, schedule: str, mode: str, seq: int, mbs: int, microbatches: int) -> Row:
    """Step time of one configuration in a settled state."""
    c = TINY if ARGS.tiny else MODELS[name]
    seq, layers = (32, 4) if ARGS.tiny else (seq, layers)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    mine, count = of_rank(schedule, rank, ranks), ranks * STAGES[schedule]
    modules = [built(c, seq, layers, index, count, mode) for index in mine]
    optimizer = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=1e-6, fused=DEVICE == "cuda")
    stages = [PipelineStage(m, at, count, torch.device(DEVICE)) for m, at in zip(modules, mine, strict=True)]
    loss = torch.compile(loss_of, dynamic=False) if mode == "compile" else loss_of
    made: Any = getattr(torch_schedules, f"Schedule{schedule}")
    run = made(stages[0] if len(stages) == 1 else stages, microbatches, loss_fn=loss, scale_grads=False)
    tokens = torch.randint(0, c["vocab"], (mbs * microbatches, seq + 1), device=DEVICE)
    dist.broadcast(tokens, 0)
    inputs = [tokens[:, :-1].contiguous()] if 0 in mine else []
    target = {"target": tokens[:, 1:].contiguous(), "losses": []} if count - 1 in mine else {}

    def step() -> None:
        if target:
            target["losses"] = []
        run.step(*inputs, return_outputs=False, **target)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    warm(step)
    with Sensors() as sensors:
        times = settled(step, ARGS.seconds)
    middle = median(times)
    out: Row = {"gpu": gpu(), "gpus": ranks, "schedule": schedule, "mode": mode, "model": name, **c, "layers": layers}
    out |= {"seq": seq, "mbs": mbs, "microbatches": microbatches, "step_ms": round(middle * 1e3, 3)}
    out |= {"step_ms_min": round(min(times) * 1e3, 3), "steps": len(times)}
    out |= {"tokens_per_s_per_gpu": round(seq * mbs * microbatches / middle / ranks)}
    kinds = kernels(step)
    busy = gathered(float(kinds.get("gpu_ms", 0.0)) - float(kinds.get("nccl_ms", 0.0)))
    return out | sensors.readings() | peaks() | kinds | {"busy_ms": " ".join(f"{one:.3f}" for one in busy)}


COLUMNS = [
    *("gpu", "gpus", "schedule", "mode", "model", "hidden", "inner", "layers", "heads", "kv_heads", "vocab", "seq"),
    *("mbs", "microbatches", "step_ms", "step_ms_min", "tokens_per_s_per_gpu", "steps", "peak_gb", "reserved_gb"),
    *("busy_ms", "gpu_ms", *SPLIT, "launches", "power_w", "sm_mhz", "attention_kernel", "took_s"),
]
PLAN = (
    ("8b", 16, "1F1B", "eager", 4096, 1, 8),
    ("8b", 16, "Interleaved1F1B", "eager", 4096, 1, 8),
    ("8b", 16, "ZBVZeroBubble", "eager", 4096, 1, 8),
    ("8b", 16, "DualPipeV", "eager", 4096, 1, 8),
    ("8b", 16, "1F1B", "compile", 4096, 1, 8),
    ("8b", 16, "1F1B", "eager", 4096, 1, 4),
    ("8b", 16, "Interleaved1F1B", "compile", 4096, 1, 4),
    ("70b", 8, "1F1B", "eager", 4096, 1, 4),
    ("70b", 8, "ZBVZeroBubble", "eager", 4096, 1, 4),
    ("1b", 16, "DualPipeV", "eager", 4096, 1, 4),
    ("1b", 16, "Interleaved1F1B", "eager", 2048, 2, 16),
)

if __name__ == "__main__":
    ARGS = arguments(__doc__ or "")
    record(PLAN, measure, COLUMNS, ARGS)
