"""Measure whole decode and prefill steps of dense and mixture-of-experts models: end-to-end figures of our own.

    python workloads/facts/measure_decode_step.py OUT.csv [--budget SECONDS]
    python -m torch.distributed.run --nproc-per-node N workloads/facts/measure_decode_step.py OUT.csv

Nothing is calibrated with these. Plain PyTorch, BF16 weights and KV cache (contiguous, of exactly the length needed):
embedding; per layer norm, one GEMM for q, k and v, rotary embedding, the new keys and values written to the cache,
SDPA over it with grouped heads, output GEMM, norm, SwiGLU or experts (softmax router in FP32, top-k, stable
argsort, `torch._grouped_mm`, weighted sum by index_add); norm, head of the last token of each sequence, argmax.
Models are cut to `layers` of `whole_layers`, the head stays whole. In prefill a bias on the router's logits spreads
tokens over all experts at random (`active_experts`: those with a row, mean of the layers). With N processes tensor
parallelism of N: heads, inner width and vocabulary are cut, an all-reduce after attention and after the feed-forward,
logits gathered.

`phase` decode: `tokens` = 1 new token of each of `batch` sequences with `context` cached; prefill: `tokens` of each at
once, `context` cached before. `mode` eager, graph (the eager kernels in a CUDA graph), compile (all but attention and
the cache through torch.compile), compile+graph. `attention` flash: SDPA held to that backend; default: as PyTorch
chooses; `attention_kernel` is what ran. `step_ms`: steps issued one after another, mean of a run, median of the runs
of the last half; `waited_ms`: median of steps each waited for. `*_ms`, `launches`: kernels of one step by the profiler.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
    agreed,
    arguments,
    gpu,
    kernels,
    peaks,
    record,
    settled,
    wait,
    warm,
)
from torch.nn.attention import SDPBackend, sdpa_kernel

RUNS = 10
CHOSEN = 20.0
"""What a bias adds to the logits of experts that are to be chosen."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, of whose layers the first ones are measured."""

    hidden: int
    inner: int
    layers: int
    whole_layers: int
    heads: int
    kv_heads: int
    vocab: int
    experts: int = 0
    topk: int = 0
    d: int = 128


MODELS = {
    "llama-3-8b": Shape(4096, 14336, 32, 32, 32, 8, 128256),
    "llama-3-70b": Shape(8192, 28672, 20, 80, 64, 8, 128256),
    "qwen3-30b-a3b": Shape(2048, 768, 24, 48, 32, 4, 151936, experts=128, topk=8),
    "llama-3-70b-whole": Shape(8192, 28672, 80, 80, 64, 8, 128256),
    "qwen3-30b-a3b-whole": Shape(2048, 768, 48, 48, 32, 4, 151936, experts=128, topk=8),
}
TINY = {
    "llama-3-8b": Shape(64, 96, 2, 2, 4, 2, 128, d=16),
    "llama-3-70b": Shape(64, 96, 2, 4, 4, 2, 128, d=16),
    "qwen3-30b-a3b": Shape(64, 32, 2, 4, 4, 2, 128, experts=8, topk=2, d=16),
    "llama-3-70b-whole": Shape(64, 96, 4, 4, 4, 2, 128, d=16),
    "qwen3-30b-a3b-whole": Shape(64, 32, 4, 4, 4, 2, 128, experts=8, topk=2, d=16),
}


def weight(*shape: int) -> torch.Tensor:
    """Small random BF16 values."""
    return torch.empty(*shape, device=DEVICE, dtype=torch.bfloat16).normal_(std=0.02)


def ones(width: int) -> torch.Tensor:
    """A norm's weight."""
    return torch.ones(width, device=DEVICE, dtype=torch.bfloat16)


class Layer:
    """One rank's part of a layer."""

    def __init__(self, c: Shape, tp: int) -> None:
        if c.heads % tp or c.kv_heads % tp or c.inner % tp:
            raise ValueError(f"cannot be cut in {tp}")
        self.c, self.heads, self.kv, self.tp = c, c.heads // tp, c.kv_heads // tp, tp
        self.qkv, self.o = weight((self.heads + 2 * self.kv) * c.d, c.hidden), weight(c.hidden, self.heads * c.d)
        self.norm_attn, self.norm_ffn = ones(c.hidden), ones(c.hidden)
        groups = (c.experts,) if c.experts else ()
        self.up, self.down = weight(*groups, 2 * c.inner // tp, c.hidden), weight(*groups, c.hidden, c.inner // tp)
        self.router = weight(c.experts, c.hidden) if c.experts else None
        self.seen: list[torch.Tensor] | None = None
        self.bias: torch.Tensor | None = None

    def norm(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """RMSNorm."""
        return F.rms_norm(x, (self.c.hidden,), w, 1e-5)

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def before(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries, keys and values of the new tokens."""
        b, t, _ = x.shape
        split = [self.heads * self.c.d, self.kv * self.c.d, self.kv * self.c.d]
        parts = F.linear(self.norm(x, self.norm_attn), self.qkv).split(split, dim=-1)
        q, k, v = (part.view(b, t, -1, self.c.d).transpose(1, 2) for part in parts)
        return self.rope(q, cos, sin), self.rope(k, cos, sin), v

    def out(self, y: torch.Tensor) -> torch.Tensor:
        """The output GEMM."""
        return F.linear(y.transpose(1, 2).flatten(2), self.o)

    def dense(self, y: torch.Tensor) -> torch.Tensor:
        """SwiGLU."""
        gate, up = F.linear(y, self.up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)

    def routed(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights of the chosen experts, the order of rows by expert, tokens per expert."""
        logits = F.linear(y, self.router).float()
        probabilities = F.softmax(logits if self.bias is None else logits + self.bias, dim=-1)
        weights, chosen = torch.topk(probabilities, self.c.topk, dim=-1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(y.dtype).flatten()
        flat = chosen.flatten()
        if flat.is_cuda:
            counts = torch.histc(flat, bins=self.c.experts, min=0, max=self.c.experts)
        else:
            counts = torch.bincount(flat, minlength=self.c.experts)
        return weights, torch.argsort(flat, stable=True), counts

    def moe(self, x: torch.Tensor) -> torch.Tensor:
        """Experts."""
        y = x.flatten(0, 1)
        weights, order, counts = self.routed(y)
        if self.seen is not None:
            self.seen.append(counts)
        ends, token = counts.cumsum(0).to(torch.int32), order // self.c.topk
        rows = torch._grouped_mm(y.index_select(0, token), self.up.transpose(-2, -1), offs=ends)
        gate, up = rows.chunk(2, dim=-1)
        rows = torch._grouped_mm(F.silu(gate) * up, self.down.transpose(-2, -1), offs=ends)
        rows = rows * weights.index_select(0, order).unsqueeze(1)
        return torch.zeros_like(y).index_add_(0, token, rows).view_as(x)

    def feed(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The residual added, and the feed-forward of its norm."""
        x = x + y
        y = self.norm(x, self.norm_ffn)
        return x, self.moe(y) if self.c.experts else self.dense(y)

    def rest(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What follows attention on one GPU."""
        x, y = self.feed(x, self.out(y))
        return x + y

    def compiled(self) -> None:
        """Compile what lies between attention and the collectives."""
        for name in ("before", "out", "feed", "rest"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))


class Program:
    """A step: what it needs and how it runs."""

    def __init__(self, c: Shape, batch: int, context: int, tokens: int, attention: str) -> None:
        self.c, self.context, self.tokens = c, context, tokens
        self.tp = dist.get_world_size() if dist.is_initialized() else 1
        self.backend = SDPBackend.FLASH_ATTENTION if attention == "flash" and DEVICE == "cuda" else None
        self.layers = [Layer(c, self.tp) for _ in range(c.layers)]
        self.embed, self.head, self.norm = (
            weight(c.vocab, c.hidden),
            weight(c.vocab // self.tp, c.hidden),
            ones(c.hidden),
        )
        size = (batch, c.kv_heads // self.tp, context + tokens, c.d)
        self.caches = [(weight(*size), weight(*size)) for _ in self.layers]
        at = torch.arange(context, context + tokens, device=DEVICE)
        angle = torch.outer(at, 5e5 ** (-torch.arange(0, c.d, 2, device=DEVICE) / c.d))
        self.cos, self.sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
        self.ids = torch.randint(0, c.vocab, (batch, tokens), device=DEVICE)
        self.ends = self.last
        if c.experts and tokens > 1:
            self.spread(batch * tokens)

    def spread(self, rows: int) -> None:
        """Let random experts be chosen: with random weights the tokens of a prompt grow alike, and so do theirs."""
        for one in self.layers:
            chosen = torch.rand(rows, self.c.experts, device=DEVICE).topk(self.c.topk, dim=-1).indices
            one.bias = torch.zeros(rows, self.c.experts, device=DEVICE).scatter_(1, chosen, CHOSEN)

    def attend(self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of the new tokens to all."""
        if self.tokens > 1 and self.context and DEVICE == "cuda":  # causal from the lower right
            out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, keys, values, 0.0, True)[0]
            return out
        held: AbstractContextManager[Any] = sdpa_kernel(self.backend) if self.backend else nullcontext()
        grouped = self.c.heads != self.c.kv_heads
        with held:
            return F.scaled_dot_product_attention(q, keys, values, is_causal=self.tokens > 1, enable_gqa=grouped)

    def last(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the last token of each sequence."""
        return F.linear(F.rms_norm(x[:, -1], (self.c.hidden,), self.norm, 1e-5), self.head)

    def layer(self, one: Layer, cache: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """One layer."""
        q, k, v = one.before(x, self.cos, self.sin)
        for kept, new in zip(cache, (k, v), strict=True):
            kept[:, :, self.context :].copy_(new)
        y = self.attend(q, *cache)
        if self.tp == 1:
            return one.rest(x, y)
        y = one.out(y)
        dist.all_reduce(y)
        x, y = one.feed(x, y)
        dist.all_reduce(y)
        return x + y

    def step(self) -> torch.Tensor:
        """The next token of every sequence."""
        x = F.embedding(self.ids, self.embed)
        for one, cache in zip(self.layers, self.caches, strict=True):
            x = self.layer(one, cache, x)
        logits = self.ends(x)
        if self.tp > 1:
            parts = logits.new_empty((self.tp * logits.shape[0], logits.shape[1]))
            dist.all_gather_into_tensor(parts, logits)
            logits = parts.view(self.tp, *logits.shape).transpose(0, 1).flatten(1)
        return logits.argmax(-1)

    def compiled(self) -> None:
        """Compile all but attention and the cache."""
        for one in self.layers:
            one.compiled()
        self.ends = torch.compile(self.last, dynamic=False)

    def active(self) -> float:
        """Experts with at least one row in an eager step, mean of the layers."""
        seen: list[torch.Tensor] = []
        for one in self.layers:
            one.seen = seen
        self.step()
        for one in self.layers:
            one.seen = None
        return sum(int((counts > 0).sum()) for counts in seen) / len(seen)

    def bytes_of(self) -> Row:
        """Weights and cache of this rank [GB]."""
        kept = [t for one in self.layers for t in vars(one).values() if isinstance(t, torch.Tensor)]
        cache = sum(t.nbytes for pair in self.caches for t in pair)
        held = sum(t.nbytes for t in (*kept, self.embed, self.head))
        return {"weights_gb": round(held / 1e9, 3), "kv_gb": round(cache / 1e9, 3)}


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The step as a CUDA graph."""
    if DEVICE == "cpu":
        return step
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    replay: Callable[[], object] = graph.replay
    return replay


def streamed(step: Callable[[], object], one: float, seconds: float) -> float:
    """Time of a step [s] where each is issued without waiting for the last."""
    many = int(agreed(max(2.0, min(200.0, seconds / RUNS / one))))
    times = []
    for _ in range(RUNS):
        a = time.perf_counter()
        for _ in range(many):
            step()
        wait()
        times.append((time.perf_counter() - a) / many)
    return median(times[RUNS // 2 :])


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def measure(name: str, phase: str, mode: str, attention: str, batch: int, context: int, tokens: int) -> Row:
    """One row."""
    c = (TINY if ARGS.tiny else MODELS)[name]
    if ARGS.tiny:
        batch, context, tokens = min(batch, 4), min(context, 16), min(tokens, 8)
    torch.manual_seed(1)  # the same tokens and choices on all ranks
    program = Program(c, batch, context, tokens, attention)
    active = round(program.active(), 2) if c.experts else ""
    if "compile" in mode:
        program.compiled()
    step: Callable[[], object] = captured(program.step) if "graph" in mode else program.step
    warm(step)
    with Sensors() as sensors:
        waited = median(settled(step, ARGS.seconds / 2))
        free = streamed(step, waited, ARGS.seconds)
    out: Row = {"gpu": gpu(), "gpus": program.tp, "tp": program.tp, "model": name, **vars(c), "phase": phase}
    out |= {"mode": mode, "attention": attention, "batch": batch, "context": context, "tokens": tokens}
    out |= {"step_ms": round(free * 1e3, 4), "waited_ms": round(waited * 1e3, 4)}
    out |= {"tokens_per_s": round(batch * tokens / free), **sensors.readings(), **program.bytes_of(), **peaks()}
    return out | kernels(step) | {"active_experts": active}


COLUMNS = [
    *("gpu", "gpus", "tp", "model", "layers", "whole_layers", "hidden", "inner", "heads", "kv_heads", "d", "vocab"),
    *("experts", "topk", "phase", "mode", "attention", "batch", "context", "tokens", "step_ms", "waited_ms"),
    *("tokens_per_s", "active_experts", "weights_gb", "kv_gb", "peak_gb", "reserved_gb", "gpu_ms", *SPLIT),
    *("launches", "power_w", "sm_mhz", "attention_kernel", "took_s"),
]


def decode(name: str, mode: str, *points: tuple[int, int]) -> list[tuple[Any, ...]]:
    """Decode steps at (batch, context)."""
    return [(name, "decode", mode, "flash", batch, context, 1) for batch, context in points]


def prefill(name: str, mode: str, attention: str, *points: tuple[int, int, int]) -> list[tuple[Any, ...]]:
    """Prefill steps at (batch, context, tokens)."""
    return [(name, "prefill", mode, attention, *point) for point in points]


DENSE, LARGE, MOE, WHOLE_LARGE, WHOLE_MOE = MODELS
PLAN = [
    *decode(DENSE, "graph", (1, 512), (16, 1024), (64, 4096), (256, 1024)),
    *decode(LARGE, "graph", (1, 1024), (32, 2048), (128, 1024)),
    *decode(MOE, "graph", (1, 1024), (16, 4096), (64, 2048), (256, 1024)),
    *prefill(DENSE, "eager", "default", (1, 0, 512), (1, 0, 8192)),
    *prefill(MOE, "eager", "default", (1, 0, 4096)),
    *decode(DENSE, "eager", (1, 512), (64, 2048)),
    *decode(MOE, "eager", (1, 1024), (64, 2048)),
    *decode(DENSE, "compile+graph", (1, 4096), (64, 4096)),
    *decode(DENSE, "graph", (1, 4096), (1, 32768), (4, 2048), (8, 8192), (16, 8192), (32, 4096), (64, 512), (128, 512)),
    *decode(DENSE, "graph", (128, 2048), (256, 2048), (16, 32768), (2, 16384)),
    *decode(LARGE, "graph", (1, 16384), (8, 4096), (64, 4096), (256, 512), (256, 2048), (16, 512)),
    *decode(MOE, "graph", (1, 8192), (4, 4096), (32, 1024), (128, 2048), (256, 4096), (8, 16384)),
    *decode(LARGE, "eager", (1, 1024), (64, 2048)),
    *decode(DENSE, "eager", (16, 2048), (256, 1024)),
    *decode(MOE, "eager", (16, 2048), (256, 2048)),
    *prefill(DENSE, "eager", "default", (1, 0, 128), (1, 0, 2048), (4, 0, 2048), (8, 0, 512)),
    *prefill(DENSE, "eager", "flash", (1, 0, 8192), (1, 6144, 2048)),
    *prefill(LARGE, "eager", "default", (1, 0, 512), (1, 0, 4096), (2, 0, 4096)),
    *prefill(MOE, "eager", "default", (1, 0, 512), (4, 0, 4096), (1, 0, 16384)),
    *decode(LARGE, "compile+graph", (16, 4096), (128, 2048)),
    *decode(MOE, "compile+graph", (16, 4096), (128, 2048)),
    *prefill(DENSE, "compile", "default", (1, 0, 2048), (1, 0, 8192)),
    *prefill(MOE, "compile", "default", (1, 0, 4096)),
    *decode(DENSE, "compile+graph", (16, 1024), (256, 1024)),
    *decode(WHOLE_MOE, "graph", (1, 1024), (64, 2048)),
    *decode(WHOLE_MOE, "compile+graph", (64, 2048)),
]
CUT = [
    *decode(DENSE, "graph", (1, 512), (16, 1024), (64, 4096), (256, 1024)),
    *decode(LARGE, "graph", (1, 1024), (32, 2048), (128, 1024)),
    *decode(MOE, "graph", (1, 1024), (16, 4096), (256, 1024)),
    *prefill(DENSE, "eager", "default", (1, 0, 512), (1, 0, 8192)),
    *prefill(LARGE, "eager", "default", (1, 0, 4096)),
    *prefill(MOE, "eager", "default", (1, 0, 4096)),
    *decode(DENSE, "eager", (16, 2048)),
    *decode(MOE, "eager", (64, 2048)),
    *decode(DENSE, "compile+graph", (64, 4096)),
    *decode(WHOLE_LARGE, "graph", (1, 1024), (32, 2048), (64, 4096)),
    *prefill(WHOLE_LARGE, "eager", "default", (1, 0, 4096)),
    *decode(DENSE, "graph", (1, 8192), (256, 4096), (4, 2048), (128, 512)),
    *decode(LARGE, "graph", (256, 2048), (8, 16384)),
    *decode(MOE, "graph", (64, 2048), (4, 8192)),
    *decode(LARGE, "eager", (64, 2048)),
    *decode(LARGE, "compile+graph", (16, 4096)),
    *prefill(DENSE, "compile", "default", (1, 0, 8192)),
]
"""What is measured with tensor parallelism."""

if __name__ == "__main__":
    ARGS = arguments(__doc__ or "")
    record(PLAN if os.environ.get("WORLD_SIZE", "1") == "1" else CUT, measure, COLUMNS, ARGS)
