"""Whole steps of shapes drawn by lot on one H200, with forecasts from before they ran. Only compared with.

`workloads/facts/unseen_plan.py` draws the cases, `measure_unseen_steps.py` runs them.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.validation.runs import moe_steps

STACKS = {"eager": "torch"}
"""Stack of a mode; all others are torch-compile."""
RECIPES = {"fp8_tensor": "fp8_tensor", "fp8_row": "fp8_row"}


def overrides_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """The overrides of `llama-3-8b` that a case is forecast by."""
    model = moe_steps.model_of(row) if int(row["experts"]) else _dense(row)
    masters, separate = row["states"] == "masters", row["style"] == "separate"
    return (
        *model,
        *("hardware=h200", "gpus=1", f"stack={STACKS.get(row['mode'], 'torch-compile')}"),
        *("layout.tp=1", "layout.pp=1", "layout.ep=1", "layout.zero=0", f"layout.recompute={row['recompute']}"),
        *(f"batch.sequence_length={row['seq']}", f"batch.microbatch_size={row['mbs']}"),
        f"batch.global_batch_size={int(row['mbs']) * int(row['microbatches'])}",
        *(f"optimizer.{key}=bf16" for key in moe_steps.STATES if not (masters and key.endswith("moment"))),
        *((f"optimizer.{key}=fp32" for key in ("masters", "first_moment", "second_moment")) if masters else ()),
        *(() if masters else ("optimizer.masters=none",)),
        f"precision.recipe={RECIPES.get(row['mode'], 'bf16')}",
        *(("precision.scaling=current",) if row["mode"] == "fp8_tensor" else ()),
        *(("stack.norm_kernels=operators",) if separate and row["mode"] == "eager" else ()),
        *(("stack.projections=separate",) if separate else ()),
        *(("stack.update=foreach",) if row["adam"] == "foreach" else ()),
        *(("routing.kind=uniform",) if int(row["experts"]) else ()),
    )


def _dense(row: Mapping[str, str]) -> tuple[str, ...]:
    sizes = {
        "hidden_size": "hidden",
        "intermediate_size": "inner",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "head_dim": "d",
        "vocab_size": "vocab",
    }
    return tuple(f"model.{ours}={row[theirs]}" for ours, theirs in sizes.items())
