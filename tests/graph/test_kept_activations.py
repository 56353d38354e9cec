"""What autograd and full recomputation keep of a layer, by hand."""

from __future__ import annotations

import pytest

from simulator.graph.layer import dense_layer, moe_layer
from simulator.graph.shapes import Shapes, shapes_of
from simulator.inputs import load_scenario

T, H, INNER = 4096, 4096, 14336
SMALL = ["gpus=8", "layout.pp=1", "batch.sequence_length=4096", "batch.microbatch_size=1", "batch.global_batch_size=8"]


def shapes(*overrides: str) -> Shapes:
    return shapes_of(load_scenario("llama-3-8b", [*SMALL, *overrides]))


def test_eager_swiglu_keeps_silu_of_the_gate_too() -> None:
    eager, fused = (
        dense_layer(shapes("stack=torch", "layout.tp=1", "layout.recompute=none", f"stack.swiglu_fused={fused}"))
        for fused in ("false", "true")
    )
    assert eager.saved_bytes - fused.saved_bytes == 2 * T * INNER


def test_eager_experts_keep_it_for_every_row() -> None:
    asked = ["precision.recipe=bf16", "stack=torch", "stack.permute=gather_sum", "layout.recompute=none"]
    eager, fused = (
        shapes_of(load_scenario("tiny-1f1b", [*asked, f"stack.swiglu_fused={fused}"])) for fused in ("false", "true")
    )
    inner = eager.model.moe_intermediate_size
    shared = eager.tokens * eager.model.shared_width
    found = moe_layer(eager).saved_bytes - moe_layer(fused).saved_bytes
    assert found == 2 * (eager.rows * inner + shared)


def test_eager_rows_that_are_added_by_index_are_kept() -> None:
    """Each copy of a token once more than for a gathered sum; compiled, none of either."""
    asked = ["precision.recipe=bf16", "layout.recompute=none"]
    found = {
        (stack, permute): moe_layer(
            shapes_of(load_scenario("tiny-1f1b", [*asked, f"stack={stack}", f"stack.permute={permute}"]))
        ).saved_bytes
        for stack in ("torch", "torch-compile")
        for permute in ("index_add", "gather_sum")
    }
    s = shapes_of(load_scenario("tiny-1f1b", [*asked, "stack=torch"]))
    rows = s.tokens * s.model.num_experts_per_tok
    assert found["torch", "index_add"] - found["torch", "gather_sum"] == 2 * rows * s.model.hidden_size
    assert found["torch-compile", "index_add"] == found["torch-compile", "gather_sum"]


def test_eager_attention_keeps_its_output_in_two_layouts() -> None:
    asked = ("stack=torch", "layout.tp=1", "layout.recompute=none", "stack.swiglu_fused=true")
    eager, fused = (dense_layer(shapes(*asked, f"stack.rope_fused={fused}")) for fused in ("false", "true"))
    assert eager.saved_bytes - fused.saved_bytes == 2 * T * H


@pytest.mark.parametrize(("sp", "parts"), [("true", 4), ("false", 1)])
def test_full_recomputation_keeps_a_shard_of_the_input_under_sequence_parallelism(sp: str, parts: int) -> None:
    s = shapes("stack=megatron-core", "layout.tp=4", "layout.recompute=full", f"layout.sp={sp}")
    assert dense_layer(s).saved_bytes == 2 * T * H / parts


@pytest.mark.parametrize(("regathered", "times"), [("true", 1), ("false", 4)])
def test_a_gathered_input_is_kept_whole_unless_it_is_gathered_again(regathered: str, times: int) -> None:
    changes = ("layout.tp=4", "layout.recompute=none", f"stack.tp_regather={regathered}")
    ops = dense_layer(shapes(*changes)).ops()
    norms = [op.saved for op in ops if op.name in ("norm.attn.fwd", "norm.ffn.fwd_residual")]
    assert norms == 2 * [T // 4 * (H * 2 + times * H * 2 + 4)]  # the norm's input; its output, and 1/rms
