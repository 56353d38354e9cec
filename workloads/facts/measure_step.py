"""Measure whole training steps of small Llama-shaped models on one GPU: end-to-end figures of our own to compare with.

    python workloads/facts/measure_step.py OUT.csv

Nothing is calibrated with these. Plain PyTorch, BF16 parameters, fused AdamW, FlashAttention through SDPA, gradients
accumulated over microbatches; eager and torch.compile. `step_ms` is the mean of the last steps after warm-up.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

COLUMNS = ["gpu", "mode", "hidden", "inner", "layers", "heads", "kv_heads", "vocab", "seq", "mbs", "microbatches"]
COLUMNS += ["step_ms", "tokens_per_s", "peak_gb", "clock_note"]
MODELS = {
    "8b": {"hidden": 4096, "inner": 14336, "layers": 8, "heads": 32, "kv_heads": 8, "vocab": 32000},
    "70b": {"hidden": 8192, "inner": 28672, "layers": 3, "heads": 64, "kv_heads": 8, "vocab": 32000},
    "1b": {"hidden": 2048, "inner": 8192, "layers": 12, "heads": 32, "kv_heads": 8, "vocab": 32000},
}


class Layer(nn.Module):
    """One Llama layer."""

    def __init__(self, c: dict[str, int]) -> None:
        super().__init__()
        h, self.heads, self.kv = c["hidden"], c["heads"], c["kv_heads"]
        self.d = h // self.heads
        self.qkv = nn.Linear(h, (self.heads + 2 * self.kv) * self.d, bias=False)
        self.o = nn.Linear(h, h, bias=False)
        self.up_gate = nn.Linear(h, 2 * c["inner"], bias=False)
        self.down = nn.Linear(c["inner"], h, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(h), nn.RMSNorm(h)

    def rope(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotary embedding, eager."""
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """(batch, seq, hidden) to the same."""
        b, s, h = x.shape
        q, k, v = self.qkv(self.norm_attn(x)).split([h, self.kv * self.d, self.kv * self.d], dim=-1)
        q = self.rope(q.view(b, s, self.heads, self.d).transpose(1, 2), cos, sin)
        k = self.rope(k.view(b, s, self.kv, self.d).transpose(1, 2), cos, sin)
        v = v.view(b, s, self.kv, self.d).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, s, h))
        gate, up = self.up_gate(self.norm_ffn(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    """Embedding, layers, norm, head, loss."""

    def __init__(self, c: dict[str, int]) -> None:
        super().__init__()
        self.embed = nn.Embedding(c["vocab"], c["hidden"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["layers"]))
        self.norm = nn.RMSNorm(c["hidden"])
        self.head = nn.Linear(c["hidden"], c["vocab"], bias=False)

    def forward(self, tokens: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of the next token."""
        x = self.embed(tokens[:, :-1])
        for layer in self.layers:
            x = layer(x, cos, sin)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def program(name: str, mode: str, seq: int, mbs: int, microbatches: int) -> Callable[[], None]:
    """A whole step: eager, through torch.compile (compile), or that with torchao's float8 training (fp8)."""
    c = MODELS[name]
    with torch.device("cuda"):
        model: Any = Model(c).to(torch.bfloat16)
    if mode == "fp8":
        from torchao.float8 import convert_to_float8_training  # type: ignore[import-not-found]

        convert_to_float8_training(model, module_filter_fn=lambda _, fqn: "head" not in fqn)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    run = model if mode == "eager" else torch.compile(model)
    d = c["hidden"] // c["heads"]
    angle = torch.outer(torch.arange(seq, device="cuda"), 1e4 ** (-torch.arange(0, d, 2, device="cuda") / d))
    cos, sin = angle.cos().to(torch.bfloat16), angle.sin().to(torch.bfloat16)
    tokens = torch.randint(0, c["vocab"], (mbs, seq + 1), device="cuda")

    def step() -> None:
        for _ in range(microbatches):
            run(tokens, cos, sin).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    return step


def measure(name: str, mode: str, seq: int, mbs: int, microbatches: int, seconds: float) -> dict[str, Any]:
    """Step time of one configuration in a settled state."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    c, step = MODELS[name], program(name, mode, seq, mbs, microbatches)
    for _ in range(4):
        step()
    torch.cuda.synchronize()
    times, end = [], time.time() + seconds
    while time.time() < end:
        a = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - a)
    mean = sum(times[len(times) // 2 :]) / len(times[len(times) // 2 :])
    out: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "mode": mode, **c, "seq": seq, "mbs": mbs}
    out |= {"microbatches": microbatches, "step_ms": round(mean * 1e3, 2)}
    out |= {
        "tokens_per_s": round(seq * mbs * microbatches / mean),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
    }
    return out


def main() -> None:
    """All configurations."""
    plan = [
        ("8b", 4096, 1, 2),
        ("8b", 4096, 2, 2),
        ("8b", 8192, 1, 2),
        ("70b", 4096, 1, 2),
        ("1b", 2048, 4, 2),
        ("1b", 4096, 1, 2),
    ]
    rows = []
    for mode in ("eager", "compile"):
        for name, seq, mbs, microbatches in plan:
            try:
                rows.append(measure(name, mode, seq, mbs, microbatches, 6.0))
                print(rows[-1], flush=True)
            except Exception as error:
                print("failed", name, mode, seq, mbs, str(error)[:200], flush=True)
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        file.write(f"# torch {torch.__version__}, measure_step.py\n")
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
