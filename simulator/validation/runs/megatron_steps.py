"""Whole steps of Megatron-Core with Transformer Engine on one H200, next to their forecasts. Only compared with.

`workloads/facts/megatron_plan.py` says what is run, `measure_megatron_steps.py` runs it.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.validation.runs.published_runs import MODELS as PUBLISHED
from simulator.validation.training_figures import Overrides, gpt, overrides_of

QUARTER = overrides_of(model__num_attention_heads=24, model__num_key_value_heads=24, model__intermediate_size=12288)
MODELS: Mapping[str, Overrides] = {
    "llama-3-8b": ("model=llama-3-8b",),
    "gpt-3-175b": PUBLISHED["gpt3_175b"],
    "gpt-3-175b tp4": (*gpt(layers=96, heads=96, hidden=12288, vocab=12800, seq=2048), "model.head_dim=128", *QUARTER),
    "nemotron-4-15b": PUBLISHED["nemotron4_15b"],
    "mixtral-8x7b": ("model=mixtral-8x7b", "routing.kind=uniform"),
    "qwen3-30b-a3b": ("model=qwen3-30b-a3b", "routing.kind=uniform"),
}
"""Models of the plan; the layers are a step's own."""
SCALING = {"delayed": "delayed", "tensorwise": "current"}
"""Megatron's --fp8-recipe as a job's `precision.scaling`."""


def overrides(row: Mapping[str, str]) -> Overrides:
    """The overrides of `llama-3-8b` that a step is forecast by: its model, Megatron-Core as the script sets it."""
    model, precision = row["model"], row["precision"]
    gpt3 = model.startswith("gpt")
    scaling = SCALING.get(precision)
    return (
        *MODELS[model],
        f"model.num_hidden_layers={row['layers']}",
        *(("model.tie_word_embeddings=false", "optimizer.gradients=bf16", "optimizer.reduced=bf16") if gpt3 else ()),
        *("hardware=h200", "gpus=1", "stack=megatron-core", "stack.loss=te", "stack.gradients_clipped=true"),
        *("layout.tp=1", "layout.pp=1", "layout.ep=1", "layout.zero=1", "layout.recompute=none"),
        *(f"batch.sequence_length={row['seq']}", f"batch.microbatch_size={row['mbs']}"),
        f"batch.global_batch_size={int(row['mbs']) * int(row['microbatches'])}",
        *(("precision.recipe=fp8_tensor", f"precision.scaling={scaling}") if scaling else ("precision.recipe=bf16",)),
    )
