"""Measure whole training steps of shapes that were drawn by lot, after their forecasts were written down.

    python workloads/facts/measure_unseen_steps.py OUT_DIRECTORY [--budget SECONDS] [--seconds S] [--only REGEX]

Compared with; nothing is calibrated with these. `unseen_plan.py` next to this script draws the cases. Programs are
plain PyTorch on one GPU, in two ways of writing: *fused* (one projection for queries, keys and values, one for gate and
up, `nn.RMSNorm`) and *separate* (a projection each, RMSNorm written out in FP32, as transformers writes Llama).
Experts: `measure_moe_step.py`'s, by grouped GEMMs, or a loop over experts whose rows are found by `torch.where`.
compile: every layer and the head through torch.compile; fp8_tensor, fp8_row: torchao's float8 training, compiled, head
in BF16. *masters*: BF16 parameters and gradients, FP32 copies that AdamW updates, copied back.

Writes `steps.csv` and `parts.csv` as `measure_step_parts.py` does.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import asdict
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import measure_moe_step as moe  # type: ignore[import-not-found]  # scripts next to it
import measure_step_parts as parts  # type: ignore[import-not-found]
import step_runner as runner  # type: ignore[import-not-found]
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from unseen_plan import Case, plan  # type: ignore[import-not-found]


class WrittenNorm(nn.Module):  # type: ignore[misc,unused-ignore]
    """RMSNorm in FP32, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


class Attention(nn.Module):  # type: ignore[misc,unused-ignore]
    """Grouped-query attention through SDPA."""

    def __init__(self, c: Case) -> None:
        super().__init__()
        self.c = c
        q, kv = c.heads * c.d, c.kv_heads * c.d
        if c.style == "fused":
            self.qkv = nn.Linear(c.hidden, q + 2 * kv, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(c.hidden, width, bias=False) for width in (q, kv, kv))
        self.o = nn.Linear(q, c.hidden, bias=False)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotary embedding."""
        a, b = x.chunk(2, dim=-1)
        if self.c.style == "separate":
            return x * torch.cat((cos, cos), -1) + torch.cat((-b, a), -1) * torch.cat((sin, sin), -1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, seq, hidden) to the same."""
        c, (b, s, _) = self.c, x.shape
        if c.style == "fused":
            parted = self.qkv(x).split([c.heads * c.d, c.kv_heads * c.d, c.kv_heads * c.d], dim=-1)
        else:
            parted = (self.q(x), self.k(x), self.v(x))
        q, k, v = (one.view(b, s, -1, c.d).transpose(1, 2) for one in parted)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=c.heads != c.kv_heads)
        return self.o(y.transpose(1, 2).reshape(b, s, -1))


class Dense(nn.Module):  # type: ignore[misc,unused-ignore]
    """SwiGLU."""

    def __init__(self, c: Case) -> None:
        super().__init__()
        if c.style == "fused":
            self.up_gate = nn.Linear(c.hidden, 2 * c.inner, bias=False)
        else:
            self.gate, self.up = (nn.Linear(c.hidden, c.inner, bias=False) for _ in range(2))
        self.down = nn.Linear(c.inner, c.hidden, bias=False)

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        """(batch, seq, hidden) to the same."""
        gate, up = self.up_gate(x).chunk(2, dim=-1) if hasattr(self, "up_gate") else (self.gate(x), self.up(x))
        return self.down(F.silu(gate) * up)


class Grouped(moe.Moe):  # type: ignore[misc,unused-ignore]
    """Experts by grouped GEMMs."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(batch, seq, hidden) to the same."""
        return super().forward(x.flatten(0, 1), bias).view_as(x)


class Loop(nn.Module):  # type: ignore[misc,unused-ignore]
    """Experts one after the other, as transformers wrote Mixtral."""

    def __init__(self, c: Case) -> None:
        super().__init__()
        self.c = c
        self.router = nn.Linear(c.hidden, c.experts, bias=False)
        self.experts = nn.ModuleList(Dense(c) for _ in range(c.experts))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """(batch, seq, hidden) to the same."""
        flat = x.flatten(0, 1)
        weight, chosen = torch.topk(F.softmax(self.router(flat).float() + bias, dim=-1), self.c.topk, dim=-1)
        weight = (weight / weight.sum(-1, keepdim=True)).to(x.dtype)
        y = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            row, place = torch.where(chosen == i)
            y = y.index_add(0, row, expert(flat[row], bias) * weight[row, place, None])
        return y.view_as(x)


class Layer(nn.Module):  # type: ignore[misc,unused-ignore]
    """Attention and feed-forward part."""

    def __init__(self, c: Case) -> None:
        super().__init__()
        norm = nn.RMSNorm if c.style == "fused" else WrittenNorm
        self.norm_attn, self.norm_ffn, self.attn = norm(c.hidden), norm(c.hidden), Attention(c)
        self.ffn = Dense(c) if not c.experts else Loop(c) if c.loop else Grouped(c, "index_add", 1)

    def forward(self, x: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(batch, seq, hidden) to the same."""
        x = x + self.attn(self.norm_attn(x), cos, sin)
        return x + self.ffn(self.norm_ffn(x), bias)


class Model(nn.Module):  # type: ignore[misc,unused-ignore]
    """Embedding, layers, norm, head, loss."""

    def __init__(self, c: Case) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.hidden) if c.style == "fused" else WrittenNorm(c.hidden)
        self.head = nn.Linear(c.hidden, c.vocab, bias=False)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in FP32."""
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())

    def forward(self, tokens: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The loss of predicting each next token."""
        x = self.embed(tokens[:, :-1])
        for layer in self.layers:
            if self.c.recompute == "full":
                x = checkpoint(layer, x, bias, cos, sin, use_reentrant=False)
            else:
                x = layer(x, bias, cos, sin)
        return self.loss(x, tokens[:, 1:])


def built(c: Case) -> Model:
    """A model with random weights, compiled where the case says so."""
    torch.manual_seed(1)
    with torch.device("meta"):
        model: Model = Model(c).to(torch.bfloat16)
    model.to_empty(device=runner.DEVICE)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(std=0.02)
    if c.mode.startswith("fp8"):
        from torchao.float8 import (  # type: ignore[import-not-found]
            Float8LinearConfig,
            convert_to_float8_training,
        )

        config = Float8LinearConfig.from_recipe_name({"fp8_tensor": "tensorwise", "fp8_row": "rowwise"}[c.mode])
        chosen = lambda _, name: "head" not in name and "router" not in name  # noqa: E731
        convert_to_float8_training(model, config=config, module_filter_fn=chosen)
    if c.mode != "eager":
        for layer in model.layers:
            layer.compile(dynamic=False)
        model.loss = torch.compile(model.loss, dynamic=False)  # type: ignore[method-assign]
    return model


class Update:
    """AdamW on the parameters, or on FP32 copies of them."""

    def __init__(self, c: Case, model: Model) -> None:
        self.kept = list(model.parameters())
        self.masters = [p.detach().float() for p in self.kept] if c.states == "masters" else []
        self.adam = torch.optim.AdamW(self.masters or self.kept, lr=1e-6, fused=c.adam == "fused", foreach=None)

    def step(self) -> None:
        """Update and forget the gradients."""
        for master, p in zip(self.masters, self.kept, strict=bool(self.masters)) if self.masters else ():
            master.grad = p.grad.float()
        self.adam.step()
        if self.masters:
            torch._foreach_copy_([p.data for p in self.kept], self.masters)
        for p in (*self.kept, *self.masters):
            p.grad = None


def program(c: Case) -> parts.Step:
    """A whole step."""
    model = built(c)
    update = Update(c, model)
    angle = torch.outer(
        torch.arange(c.seq, device=runner.DEVICE), 1e4 ** (-torch.arange(0, c.d, 2).to(runner.DEVICE) / c.d)
    )
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    tokens = torch.randint(0, c.vocab, (c.mbs, c.seq + 1), device=runner.DEVICE)
    bias = torch.zeros(1)
    if c.experts:
        chosen = moe.chosen_experts(c.load, c.mbs * c.seq, c.experts, c.topk)
        bias = torch.zeros(c.mbs * c.seq, c.experts).scatter_(1, chosen, moe.CHOSEN)
    bias = bias.to(runner.DEVICE)

    def step() -> None:
        for _ in range(c.microbatches):
            model(tokens, bias, cos, sin).backward()
        update.step()

    return step


def main() -> None:
    """All cases of the plan that --only names."""
    args = runner.arguments(__doc__ or "")
    os.makedirs(args.out, exist_ok=True)
    if args.tiny:
        for case in (one.tiny() for one in plan() if re.search(args.only, one.name)):
            program(case)()
            print("ran", case.name, flush=True)
        return
    torch._dynamo.config.recompile_limit = 32
    meter, last = parts.Meter(), time.time() + args.budget
    steps: list[dict[str, Any]] = []
    kernels: list[dict[str, Any]] = []
    for case in (one for one in plan() if re.search(args.only, one.name)):
        began = time.time()
        if began > last:
            print("out of time before", case.name, flush=True)
            break
        try:
            whole, some, _ = parts.program({"program": case.name}, program(case), args.seconds, meter)
        except Exception as error:
            print("failed", case.name, type(error).__name__, str(error)[:400], flush=True)
            runner.release()
            continue
        whole |= {"peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2), **asdict(case)}
        runner.release()
        steps.append(whole | {"took_s": round(time.time() - began, 1)})
        kernels += some
        print({key: steps[-1][key] for key in ("program", "step_ms", "busy_ms", "sm_mhz", "took_s")}, flush=True)
        parts.write(os.path.join(args.out, "steps.csv"), steps)
        parts.write(os.path.join(args.out, "parts.csv"), kernels)


if __name__ == "__main__":
    main()
