"""Training steps of nanotron 0.5 on H100: its best configurations by model and nodes, and its tensor-parallel sweep."""

from __future__ import annotations

from typing import Any, Final

from simulator.validation.figures import Figure
from simulator.validation.training_figures import DENSE, Overrides, overrides_of, step

SIZES: Final = {
    "1.34B": (16, 2048, 32, 8192),
    "3.57B": (28, 3072, 32, 8192),
    "8.86B": (32, 4096, 32, 14336),
    "80B": (80, 8192, 64, 28672),
}
"""Layers, hidden size, heads and width of the feed-forward part (scripts/scaling_benchmarks.py); every head has keys
and values of its own, and embeddings are tied below a width of 10,000."""
VOCABULARY, LENGTH = 131072, 4096


def rate(figure: Figure) -> float:
    """TFLOP/s per GPU, with attention counted in full (src/nanotron/models/llama.py, get_flops), or tokens per second
    and GPU."""
    one = step(DENSE, run(figure), "longest-path")
    tokens = one.job.tokens_per_step / one.seconds / one.job.gpus
    if figure.unit == "tokens/s/GPU":
        return tokens
    layers, hidden, _, inner = SIZES[str(figure.config["model"])]
    layer = 4 * hidden**2 + 3 * hidden * inner + 2 * LENGTH * hidden
    return 6.0 * (layers * layer + hidden * VOCABULARY) * tokens / 1e12


def run(figure: Figure) -> Overrides:
    """Nothing is recomputed; 1F1B. Its cluster's nodes are AWS's (p5, EFA),
    taken as free of other jobs, which it was not: the medians of its own measurements of gathers of 1 GiB on 8 to 32
    nodes are 0.1 to 0.3 times what such nodes reach."""
    c = figure.config
    layers, hidden, heads, inner = SIZES[str(c["model"])]
    dp, tp, pp = (int(c[key]) for key in ("dp", "tp", "pp"))
    values: dict[str, Any] = {
        "model": "llama-2-7b",
        "model__num_hidden_layers": layers,
        "model__hidden_size": hidden,
        "model__num_attention_heads": heads,
        "model__num_key_value_heads": heads,
        "model__intermediate_size": inner,
        "model__vocab_size": VOCABULARY,
        "model__tie_word_embeddings": inner < 10_000,
        "hardware": "h100-efa",
        "stack": "nanotron",
        "gpus": dp * tp * pp,
        "layout__tp": tp,
        "layout__pp": pp,
        "layout__zero": int(c["zero"]),
        "layout__recompute": "none",
        "layout__schedule": "1f1b",
        "layout__stages": stages(layers, hidden, inner, pp) if pp > 1 else "balanced",
        "batch__sequence_length": LENGTH,
        "batch__microbatch_size": int(c["mbs"]),
        "batch__global_batch_size": int(c["mbs"]) * int(c["microbatches"]) * dp,
    }
    return overrides_of(**values)


def stages(layers: int, hidden: int, inner: int, ranks: int) -> list[int]:
    """Layers of each stage: blocks are dealt out until the FLOP of all so far, a layer's and the head's matrices,
    exceed the rank's share, so that the block that exceeds it is still this rank's (src/nanotron/models/base.py,
    build_model, and models/llama.py, get_block_compute_costs)."""
    layer, head = 4 * hidden**2 + 3 * inner * hidden, VOCABULARY * hidden
    total, out, done = layers * layer + head, [0] * ranks, 0
    at = 0
    for _ in range(layers):
        out[at] += 1
        done += layer
        at += done * ranks > total * (at + 1)
    return out
