"""Training steps of MosaicML's LLM Foundry on 128 to 512 H100, early 2024: MPT models under FSDP, eager."""

from __future__ import annotations

from typing import Final

from simulator.validation.figures import Figure
from simulator.validation.training_figures import DENSE, Overrides, gpt, overrides_of, step

SIZES: Final = {"1b": (24, 16, 2048), "3b": (32, 20, 2560), "7b": (32, 32, 4096), "70b": (80, 64, 8192)}
"""Layers, heads and hidden size (scripts/train/yamls/pretrain/mpt-*.yaml)."""
VOCABULARY: Final = 50368
SHARDED: Final = {"FULL_SHARD": 3, "SHARD_GRAD_OP": 2}


def rate(figure: Figure) -> float:
    """Tokens per second and GPU."""
    one = step(DENSE, run(figure), "longest-path")
    return one.job.tokens_per_step / one.seconds / one.job.gpus


def run(figure: Figure) -> Overrides:
    """As scripts/train/benchmarking launches them: flash-attn 2.4.2, one microbatch. Gradients are reduced in FP32:
    sweep.py asks for mixed precision PURE, which submit_benchmarks.py does not hand on to `mod_parameters`, whose own
    DEFAULT then replaces that of the model's file; the published table says DEFAULT, too. Not in it: what the host does
    between steps, and that AdamW's kernels run for each parameter that a rank has a part of."""
    c = figure.config
    layers, heads, hidden = SIZES[str(c["model"])]
    gpus, batch, seq = int(c["gpus"]), int(c["mbs"]), int(c["seq"])
    return gpt(layers=layers, heads=heads, hidden=hidden, vocab=VOCABULARY, seq=seq) + overrides_of(
        hardware="h100",
        stack="llm-foundry",
        gpus=gpus,
        layout__tp=1,
        layout__pp=1,
        layout__zero=SHARDED[str(c["sharding"])],
        layout__recompute=str(c["recompute"]),
        batch__sequence_length=seq,
        batch__microbatch_size=batch,
        batch__global_batch_size=batch * gpus,
    )
