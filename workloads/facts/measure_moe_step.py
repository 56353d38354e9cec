"""Measure whole training steps of mixture-of-experts models in plain PyTorch: end-to-end figures of our own.

    python workloads/facts/measure_moe_step.py OUT.csv [--budget SECONDS]
    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_moe_step.py OUT.csv

Nothing is calibrated with these. BF16 parameters, gradients and AdamW states (fused), no FP32 copies; attention by
SDPA as PyTorch chooses (`attention_kernel`); softmax router in FP32, top-k, tokens put in the order of experts by a
stable argsort and index_select, `torch._grouped_mm`, SwiGLU, weighted sum by index_add (`variant` index_add) or by the
inverse order and a sum over top-k (`variant` gather); loss in FP32; gradients start from None in each step. eager, or
each layer and the head through torch.compile.

With one process there is no all-to-all (ep = 1). With N, ep = N: tokens are sent by all_to_all_single both ways,
splits read back to the host in every layer; the other parameters are replicated and their gradients all-reduced in one
call after the last microbatch. Compiled, only the parts between the all-to-alls are.

`load` balanced, skewed or crowded: a bias on the router's logits chooses the experts; popularity falls with the rank to
the power of -0.4, ranks shuffled (skewed) or in order, so that the first GPU gets most (crowded). `imbalance`: tokens
of the most loaded expert over the mean; `rank_imbalance`: of the most loaded GPU. `step_ms`: median of the last half of
the steps, each waited for; `*_ms`, `launches`: kernels of one step as the profiler sees them; `peak_gb` of every rank.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
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

Step = Callable[[], None]
SKEW = 0.4
CHOSEN = 20.0
"""What the bias adds to the logits of experts that are to be chosen."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    d: int
    experts: int
    topk: int
    inner: int
    shared: int = 0
    vocab: int = 32000


MODELS = {
    "qwen3-30b": Shape(2048, 6, 32, 4, 128, 128, 8, 768),
    "olmoe": Shape(2048, 8, 16, 16, 128, 64, 8, 1024, vocab=50304),
    "v2-lite": Shape(2048, 6, 16, 16, 128, 64, 6, 1408, shared=2816, vocab=102400),
    "mixtral": Shape(4096, 2, 32, 8, 128, 8, 2, 14336),
    "gpt-oss": Shape(2880, 6, 64, 8, 64, 32, 4, 2880),
    "phi-moe": Shape(4096, 3, 32, 8, 128, 16, 2, 6400),
    "v3-slice": Shape(7168, 2, 56, 8, 128, 16, 8, 2048, shared=2048),
}
TINY = Shape(64, 2, 4, 2, 16, 8, 2, 32, vocab=128)


def chosen_experts(load: str, tokens: int, experts: int, topk: int) -> torch.Tensor:
    """(tokens, topk) experts, the same on every rank but for a seed."""
    generator = torch.Generator().manual_seed(7 + (dist.get_rank() if dist.is_initialized() else 0))
    if load == "balanced":
        order = torch.arange(tokens * topk).view(tokens, topk) % experts
        return order[torch.randperm(tokens, generator=generator)]
    ranks = torch.arange(experts) if load == "crowded" else torch.randperm(experts, generator=generator.manual_seed(3))
    popularity = -SKEW * torch.log(1.0 + ranks)
    generator.manual_seed(8 + (dist.get_rank() if dist.is_initialized() else 0))
    noise = -torch.log(-torch.log(torch.rand(tokens, experts, generator=generator)))
    return torch.topk(popularity + noise, topk, dim=-1).indices


def rows_of(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """How many rows each expert gets; without waiting for the GPU."""
    if chosen.is_cuda:
        return torch.histc(chosen, bins=experts, min=0, max=experts).long()
    return torch.bincount(chosen, minlength=experts)


def all_to_all(rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
    """Rows to and from all ranks."""
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), received, sent)
    return out


class AllToAll(torch.autograd.Function):  # type: ignore[misc,unused-ignore]
    """All-to-all whose gradient goes the other way."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        """Rows of this rank's experts."""
        ctx.splits = sent, received
        return all_to_all(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Back to where they came from."""
        sent, received = ctx.splits
        return all_to_all(gradient, received, sent), None, None


class Experts(nn.Module):  # type: ignore[misc,unused-ignore]
    """The experts of one rank: two grouped GEMMs with SwiGLU between them."""

    def __init__(self, c: Shape, ranks: int) -> None:
        super().__init__()
        if c.experts % ranks:
            raise ValueError(f"{c.experts} experts on {ranks} ranks")
        self.up = nn.Parameter(torch.empty(c.experts // ranks, 2 * c.inner, c.hidden))
        self.down = nn.Parameter(torch.empty(c.experts // ranks, c.hidden, c.inner))

    def forward(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """Rows in the order of experts; `ends` where each expert's end."""
        gate, up = torch._grouped_mm(rows, self.up.transpose(-2, -1), offs=ends).chunk(2, dim=-1)
        return torch._grouped_mm(F.silu(gate) * up, self.down.transpose(-2, -1), offs=ends)


class Moe(nn.Module):  # type: ignore[misc,unused-ignore]
    """Router, experts, shared expert."""

    def __init__(self, c: Shape, variant: str, ranks: int) -> None:
        super().__init__()
        self.c, self.variant, self.ranks = c, variant, ranks
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        self.experts = Experts(c, ranks)
        if c.shared:
            self.up, self.down = (
                nn.Linear(c.hidden, 2 * c.shared, bias=False),
                nn.Linear(c.shared, c.hidden, bias=False),
            )

    def route(self, x: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Weights, rows sorted by expert, the order and each expert's count."""
        probabilities = F.softmax(self.router(x).float() + bias, dim=-1)
        weight, chosen = torch.topk(probabilities, self.c.topk, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype).flatten()
        flat = chosen.flatten()
        order = torch.argsort(flat, stable=True)
        return weight, x.index_select(0, order // self.c.topk), order, rows_of(flat, self.c.experts)

    def merge(self, x: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """The weighted sum of every token's rows, and the shared expert."""
        if self.variant == "gather":
            back = rows.index_select(0, torch.argsort(order)).view(*x.shape[:1], self.c.topk, -1)
            y = (back * weight.view(-1, self.c.topk, 1)).sum(1)
        else:
            weighted = rows * weight.index_select(0, order).unsqueeze(1)
            y = torch.zeros_like(x).index_add(0, order // self.c.topk, weighted)
        if not self.c.shared:
            return y
        gate, up = self.up(x).chunk(2, dim=-1)
        return y + self.down(F.silu(gate) * up)

    def elsewhere(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """What experts on all ranks make of the rows."""
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts)
        by_rank = torch.stack((counts.view(self.ranks, -1).sum(1), theirs.view(self.ranks, -1).sum(1)))
        sent, received = by_rank.tolist()  # the host waits here
        got = AllToAll.apply(rows, sent, received)
        local = theirs.numel() // self.ranks
        ids = torch.arange(local, device=rows.device).repeat(self.ranks)
        order = torch.argsort(ids.repeat_interleave(theirs, output_size=sum(received)), stable=True)
        ends = theirs.view(self.ranks, -1).sum(0).cumsum(0).to(torch.int32)
        done = self.experts(got.index_select(0, order), ends)
        return AllToAll.apply(done.index_select(0, torch.argsort(order)), received, sent)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """(tokens, hidden) to the same."""
        weight, rows, order, counts = self.route(x, bias)
        here = self.ranks == 1
        rows = self.experts(rows, counts.cumsum(0).to(torch.int32)) if here else self.elsewhere(rows, counts)
        return self.merge(x, rows, weight, order)


class Layer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention and experts."""

    def __init__(self, c: Shape, variant: str, ranks: int) -> None:
        super().__init__()
        self.c = c
        self.qkv = nn.Linear(c.hidden, (c.heads + 2 * c.kv_heads) * c.d, bias=False)
        self.o = nn.Linear(c.heads * c.d, c.hidden, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(c.hidden), nn.RMSNorm(c.hidden)
        self.moe = Moe(c, variant, ranks)

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def attend(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention with its residual, and the norm of the sum."""
        b, s, _ = x.shape
        c = self.c
        split = [c.heads * c.d, c.kv_heads * c.d, c.kv_heads * c.d]
        parts = self.qkv(self.norm_attn(x)).split(split, dim=-1)
        q, k, v = (part.view(b, s, -1, c.d).transpose(1, 2) for part in parts)
        q, k = self.rope(q, cos, sin), self.rope(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.heads != c.kv_heads)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, -1))
        return x, self.norm_ffn(x)

    def forward(self, x: torch.Tensor, bias: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, seq, hidden) to the same."""
        x, y = self.attend(x, cos, sin)
        return x + self.moe(y.flatten(0, 1), bias).view_as(x)

    def compiled(self) -> None:
        """Compile the layer, or with an all-to-all what lies before, between and after."""
        if self.moe.ranks == 1:
            self.compile(dynamic=False)
            return
        self.attend = torch.compile(self.attend, dynamic=False)  # type: ignore[method-assign]
        self.moe.route = torch.compile(self.moe.route, dynamic=False)  # type: ignore[method-assign]
        self.moe.merge = torch.compile(self.moe.merge, dynamic=False)  # type: ignore[method-assign]
        self.moe.experts.compile(dynamic=True)


class Model(nn.Module):  # type: ignore[misc,unused-ignore]
    """Embedding, layers, norm, head, loss."""

    def __init__(self, c: Shape, variant: str, ranks: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c, variant, ranks) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)

    def loss(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy in FP32."""
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())

    def forward(self, tokens: torch.Tensor, bias: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """The loss of predicting each next token."""
        x = self.embed(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x, bias, cos, sin)
        return self.loss(x, tokens[:, 1:])

    def compiled(self) -> None:
        """Compile every layer and the loss."""
        for layer in self.layers:
            layer.compiled()
        self.loss = torch.compile(self.loss, dynamic=False)  # type: ignore[method-assign]


def built(c: Shape, variant: str, mode: str) -> Model:
    """A model with random weights on this rank's GPU; what is replicated is the same on all ranks."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    torch.manual_seed(1)
    with torch.device("meta"):
        model: Model = Model(c, variant, ranks).to(torch.bfloat16)
    model.to_empty(device=DEVICE)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(std=0.02)
    if mode == "compile":
        model.compiled()
    return model


def replicated_gradients(model: Model) -> None:
    """Sum the gradients of what every rank holds."""
    grads = [p.grad for name, p in model.named_parameters() if ".experts." not in name and p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat)
    for g, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        g.copy_(part.view_as(g))


def rank_imbalance(rows: torch.Tensor, ranks: int) -> float:
    """Routed tokens of the most loaded rank over the mean."""
    if ranks == 1:
        return 1.0
    whole = rows.to(DEVICE)
    dist.all_reduce(whole)
    received = whole.view(ranks, -1).sum(1).double()
    return float(received.max() / received.mean())


def program(c: Shape, variant: str, mode: str, seq: int, mbs: int, microbatches: int, chosen: torch.Tensor) -> Step:
    """A whole step of a model whose tokens go to the experts `chosen`."""
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    model = built(c, variant, mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    angle = torch.outer(torch.arange(seq, device=DEVICE), 1e4 ** (-torch.arange(0, c.d, 2, device=DEVICE) / c.d))
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    tokens = torch.randint(0, c.vocab, (mbs, seq + 1), device=DEVICE)
    bias = torch.zeros(mbs * seq, c.experts).scatter_(1, chosen, CHOSEN).to(DEVICE)

    def step() -> None:
        for _ in range(microbatches):
            model(tokens, bias, cos, sin).backward()
        if ranks > 1:
            replicated_gradients(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(name: str, mode: str, variant: str, seq: int, mbs: int, microbatches: int, load: str) -> Row:
    """Step time of one configuration in a settled state."""
    c = TINY if ARGS.tiny else MODELS[name]
    seq = min(seq, 32) if ARGS.tiny else seq
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    chosen = chosen_experts(load, mbs * seq, c.experts, c.topk)
    rows = torch.bincount(chosen.flatten(), minlength=c.experts)
    step = program(c, variant, mode, seq, mbs, microbatches, chosen)
    warm(step)
    with Sensors() as sensors:
        times = settled(step, ARGS.seconds)
    middle = median(times)
    out: Row = {"gpu": gpu(), "gpus": ranks, "ep": ranks, "mode": mode, "variant": variant, "model": name, **vars(c)}
    out |= {"seq": seq, "mbs": mbs, "microbatches": microbatches, "load": load}
    out |= {"imbalance": round(float(rows.max()) / float(rows.double().mean()), 3), "step_ms": round(middle * 1e3, 3)}
    out |= {"step_ms_min": round(min(times) * 1e3, 3), "tokens_per_s_per_gpu": round(seq * mbs * microbatches / middle)}
    out["rank_imbalance"] = round(rank_imbalance(rows, ranks), 3)
    return out | {"steps": len(times)} | sensors.readings() | peaks() | kernels(step)


COLUMNS = [
    *("gpu", "gpus", "ep", "mode", "variant", "model", "hidden", "layers", "heads", "kv_heads", "d", "experts"),
    *(
        "topk",
        "inner",
        "shared",
        "vocab",
        "seq",
        "mbs",
        "microbatches",
        "load",
        "imbalance",
        "rank_imbalance",
        "step_ms",
        "step_ms_min",
    ),
    *("tokens_per_s_per_gpu", "steps", "peak_gb", "reserved_gb", "gpu_ms", *SPLIT, "launches", "power_w", "sm_mhz"),
    *("attention_kernel", "took_s"),
]
PLAN = (
    ("qwen3-30b", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "compile", "index_add", 4096, 2, 2, "balanced"),
    ("mixtral", "eager", "index_add", 4096, 2, 1, "balanced"),
    ("v2-lite", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("v2-lite", "compile", "index_add", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "eager", "index_add", 4096, 2, 2, "skewed"),
    ("olmoe", "eager", "index_add", 2048, 4, 2, "balanced"),
    ("mixtral", "compile", "index_add", 4096, 2, 1, "balanced"),
    ("v3-slice", "eager", "index_add", 4096, 1, 2, "balanced"),
    ("v3-slice", "compile", "index_add", 4096, 1, 2, "balanced"),
    ("gpt-oss", "eager", "index_add", 4096, 2, 1, "balanced"),
    ("phi-moe", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "eager", "index_add", 512, 1, 2, "balanced"),
    ("qwen3-30b", "compile", "index_add", 512, 1, 2, "balanced"),
    ("qwen3-30b", "eager", "index_add", 4096, 1, 4, "balanced"),
    ("qwen3-30b", "eager", "index_add", 4096, 4, 1, "balanced"),
    ("qwen3-30b", "eager", "gather", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "compile", "gather", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "compile", "index_add", 4096, 2, 2, "skewed"),
    ("v2-lite", "eager", "index_add", 8192, 2, 1, "skewed"),
    ("v2-lite", "compile", "gather", 8192, 2, 1, "skewed"),
    ("mixtral", "eager", "index_add", 4096, 2, 1, "skewed"),
    ("mixtral", "compile", "gather", 4096, 1, 2, "skewed"),
    ("olmoe", "compile", "index_add", 4096, 4, 2, "balanced"),
    ("gpt-oss", "compile", "index_add", 4096, 2, 1, "skewed"),
    ("phi-moe", "compile", "index_add", 4096, 2, 2, "balanced"),
    ("v3-slice", "eager", "gather", 4096, 2, 1, "skewed"),
    ("v2-lite", "eager", "index_add", 1024, 1, 2, "balanced"),
)
DISTRIBUTED = (
    ("qwen3-30b", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "compile", "index_add", 4096, 2, 2, "balanced"),
    ("mixtral", "eager", "index_add", 4096, 2, 1, "balanced"),
    ("v2-lite", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("qwen3-30b", "eager", "index_add", 4096, 2, 2, "crowded"),
    ("v3-slice", "eager", "index_add", 4096, 1, 2, "balanced"),
    ("olmoe", "eager", "index_add", 2048, 4, 2, "balanced"),
    ("mixtral", "compile", "index_add", 4096, 2, 1, "crowded"),
    ("qwen3-30b", "eager", "index_add", 512, 1, 2, "balanced"),
    ("qwen3-30b", "eager", "gather", 4096, 2, 2, "balanced"),
    ("gpt-oss", "eager", "index_add", 4096, 2, 1, "skewed"),
    ("phi-moe", "eager", "index_add", 4096, 2, 2, "balanced"),
    ("v2-lite", "compile", "gather", 4096, 2, 2, "crowded"),
    ("v3-slice", "compile", "index_add", 4096, 2, 1, "balanced"),
    ("phi-moe", "compile", "gather", 4096, 2, 1, "crowded"),
    ("v2-lite", "eager", "index_add", 8192, 2, 1, "crowded"),
    ("qwen3-30b", "eager", "index_add", 4096, 4, 1, "balanced"),
)
"""What is measured on several GPUs."""

if __name__ == "__main__":
    ARGS = arguments(__doc__ or "")
    record(PLAN if os.environ.get("WORLD_SIZE", "1") == "1" else DISTRIBUTED, measure, COLUMNS, ARGS)
