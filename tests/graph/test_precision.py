"""Narrow recipes: which casts run, what is kept, what is gathered, and that parts can stay in BF16."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest

from simulator.errors import InputError
from simulator.graph.parameters import held_by_block
from simulator.graph.shapes import Shapes, shapes_of
from simulator.graph.stage import block_kinds, build_blocks
from simulator.inputs import load_scenario
from simulator.memory.assumptions import Assumptions
from simulator.memory.optimizer_states import shards_of, state_items
from simulator.ops import Attention, Collective, Gemm, Op, Streaming
from simulator.results.simulate import prepare
from simulator.spec.model import BlockKind
from simulator.spec.precision import RECIPES

BY_LAYER = tuple(name for name, record in RECIPES.items() if record.by_layer)
H, FFN, TOKENS = 4096, 14336, 8192  # llama-3-8b, whole on one rank
LINEAR = ("attn.qkv", "attn.o", "dense.up_gate", "dense.down")
ALONE = ("layout.tp=1", "layout.pp=1", "layout.recompute=none")


@lru_cache(maxsize=64)
def shapes(*changes: str) -> Shapes:
    return shapes_of(load_scenario("llama-3-8b", (*ALONE, *changes)))


@lru_cache(maxsize=64)
def ops(kind: BlockKind, *changes: str) -> dict[str, Op]:
    return {op.name: op for op in build_blocks(shapes(*changes))[kind].ops()}


def recipe(name: str) -> tuple[str, ...]:
    hardware = ("hardware=b200",) if RECIPES[name].blackwell else ()  # type: ignore[index]
    return (*hardware, f"precision.recipe={name}")


def moved(op: Op) -> tuple[float, float]:
    """Bytes read and written by a memory-bound op [B]."""
    assert isinstance(op.work, Streaming)
    return op.work.read, op.work.written


@pytest.mark.parametrize("name", BY_LAYER)
def test_every_gemm_of_a_layer_runs_in_the_recipe_and_those_of_the_head_do_not(name: str) -> None:
    layer = [op for op in ops(BlockKind.DENSE, *recipe(name)).values() if isinstance(op.work, Gemm)]
    head = [op for op in ops(BlockKind.HEAD, *recipe(name)).values() if isinstance(op.work, Gemm)]
    assert {op.work.precision for op in layer} == {RECIPES[name].gemm}  # type: ignore[index, union-attr]
    assert {op.work.precision for op in head} == {"bf16"}  # type: ignore[union-attr]
    assert len(layer) == 12
    assert len(head) == 3


def test_delayed_scaling_casts_and_turns_in_one_kernel_on_hopper_only() -> None:
    hopper, blackwell = (
        ops(BlockKind.DENSE, *more, "precision.recipe=fp8_tensor") for more in ((), ("hardware=b200",))
    )
    values = TOKENS * FFN
    assert moved(hopper["dense.down.quant_x"]) == (2 * values, 2 * values)
    assert moved(blackwell["dense.down.quant_x"]) == (2 * values, values)
    assert "dense.up_gate.quant_x" not in hopper  # the norm before writes FP8
    assert moved(hopper["dense.up_gate.x_t"]) == (TOKENS * H, TOKENS * H)
    assert not [name for name in blackwell if name.endswith("_t")]


def test_current_scaling_adds_a_pass_for_each_maximum_that_no_norm_finds() -> None:
    delayed, current = (
        ops(BlockKind.DENSE, "precision.recipe=fp8_tensor", f"precision.scaling={how}")
        for how in ("delayed", "current")
    )
    added = set(current) - set(delayed)
    assert added == {
        "attn.qkv.quant_x",
        "dense.up_gate.quant_x",  # cast behind the norm, which found the maximum
        "attn.o.quant_x.amax",
        "dense.down.quant_x.amax",
        *(f"{name}.quant_g.amax" for name in LINEAR),
        *(f"{name}.quant_{which}.scale" for name in LINEAR for which in "xg"),
    }
    assert moved(current["attn.o.quant_x.amax"]) == (2 * TOKENS * H, 0.0)


def test_torchao_keeps_bf16_and_casts_activations_and_weights_at_each_use() -> None:
    sharded = ("stack=torchtitan", "layout.zero=3", "precision.recipe=fp8_tensor")
    found = ops(BlockKind.DENSE, *sharded)
    bf16 = ops(BlockKind.DENSE, "stack=torchtitan", "layout.zero=3")
    weight = H * FFN
    assert moved(found["dense.down.quant_w"]) == moved(found["dense.down.quant_w_t"]) == (2 * weight, weight)
    assert moved(found["dense.down.quant_x_t"]) == (2 * TOKENS * FFN, TOKENS * FFN)
    assert moved(found["dense.down.quant_x_t.amax"]) == (2 * TOKENS * FFN, 0.0)  # its scale is found again
    assert "dense.down.quant_w_t.amax" not in found  # torch.compile keeps the weight's
    assert "dense.down.quant_w_t.amax" in ops(BlockKind.DENSE, *sharded, "stack=torch")
    assert sum(op.saved for op in found.values()) == sum(op.saved for op in bf16.values())
    gathered = ops(BlockKind.DENSE, *sharded, "precision.weights=recipe")
    assert "dense.down.quant_w" not in gathered
    assert moved(gathered["dense.down.w_t"]) == (weight, weight)


@pytest.mark.parametrize("name", BY_LAYER)
def test_transformer_engine_keeps_inputs_in_the_recipe_and_the_cores_output_twice(name: str) -> None:
    bf16, narrow = (sum(op.saved for op in ops(BlockKind.DENSE, *more).values()) for more in ((), recipe(name)))
    value = RECIPES[name].value  # type: ignore[index]
    saved = TOKENS * (2 * H + FFN) * (2.0 - value)  # two norms, and the activation
    assert bf16 - narrow == pytest.approx(saved - TOKENS * H * value)


def test_recurrent_mixers_and_mtp_modules_stay_in_bf16_by_themselves() -> None:
    """Nemotron 3 Super: Mamba-2 apart from attention, and the layers that follow the main model's."""
    job = ("model=nemotron-3-super", "gpus=64", "layout.ep=64", "layout.tp=1", "precision.recipe=fp8_block")
    for part, mixer, wide in (("attention", "full+none", "mamba2+none"), ("recurrent", "mamba2+none", "full+none")):
        blocks = build_blocks(shapes(*job, f'precision.bf16=["head", "{part}"]'))
        for kind, precision in ((mixer, "bf16"), (wide, "fp8_block")):
            assert {op.work.precision for op in blocks[BlockKind(kind)].ops() if isinstance(op.work, Gemm)} == {
                precision
            }
    s = shapes(*job, 'precision.bf16=["head", "mtp"]')
    kinds = block_kinds(s.model, s.job.precision)
    assert [kind.is_bf16 for kind in kinds if kind.is_layer] == [False] * 88 + [True]
    assert {op.work.precision for op in build_blocks(s)[BlockKind.MTP].ops() if isinstance(op.work, Gemm)} == {"bf16"}


def test_eager_pytorch_casts_in_four_passes() -> None:
    found = ops(BlockKind.DENSE, "stack=torch", "layout.zero=3", "precision.recipe=fp8_tensor")
    cast, values = found["dense.down.quant_x"], TOKENS * FFN
    assert (cast.cls, cast.launches) == ("elem", 4)
    assert sum(moved(cast)) == (2 + 4 + 4 + 4 + 4 + 4 + 4 + 1) * values


def test_parts_and_layers_stay_in_bf16() -> None:
    part = ops(BlockKind.DENSE, "precision.recipe=fp8_block", 'precision.bf16=["head", "attention"]')
    precisions = {name: op.work.precision for name, op in part.items() if isinstance(op.work, Gemm)}
    assert {p for name, p in precisions.items() if name.startswith("attn")} == {"bf16"}
    assert {p for name, p in precisions.items() if name.startswith("dense")} == {"fp8_block"}
    head = ops(BlockKind.HEAD, "precision.recipe=fp8_block", "precision.bf16=[]")
    assert head["head.fwd"].work.precision == "fp8_block"  # type: ignore[union-attr]
    changes = ("precision.recipe=fp8_block", "precision.bf16_first_layers=1", "precision.bf16_last_layers=2")
    s = shapes(*changes)
    kinds = block_kinds(s.model, s.job.precision)
    assert [kind.is_bf16 for kind in kinds if kind.is_layer] == [True] + 29 * [False] + 2 * [True]
    wide, plain = build_blocks(s)[kinds[1]], build_blocks(shapes())[BlockKind.DENSE]
    assert wide.forward == plain.forward
    assert wide.backward == plain.backward
    assert held_by_block(kinds[1], s.model, s.job).narrow == 0 < held_by_block(kinds[2], s.model, s.job).narrow


def test_nvfp4_casts_rows_and_transformed_columns_apart() -> None:
    """Transformer Engine 2.8 to 2.14: three passes over BF16, behind a norm too, and two forms of 9/16 byte a value."""
    found, values = ops(BlockKind.DENSE, *recipe("nvfp4")), TOKENS * FFN
    form = (2 * values, (0.5 + 1 / 16) * values)
    assert moved(found["dense.down.quant_x.amax"]) == (2 * values, 0.0)
    assert moved(found["dense.down.quant_x"]) == moved(found["dense.down.quant_x_t"]) == form
    for name in LINEAR:
        for which in ("x", "g"):
            assert {f"{name}.quant_{which}{kernel}" for kernel in ("", "_t", ".amax", ".amax.clear")} <= set(found)
        assert (f"{name}.quant_x.seed" in found, f"{name}.quant_g.seed" in found) == (False, True)
    scales = found["dense.down.fwd.swizzle"]
    assert scales.count * sum(moved(scales)) == pytest.approx(2 * (values + H * FFN) / 16)
    joined = ops(BlockKind.DENSE, *recipe("nvfp4"), "stack.block_casts=joined")
    assert moved(joined["dense.down.quant_x"]) == (form[0], 2 * form[1])
    assert "dense.down.quant_x_t" not in joined


def test_mxfp8_lays_scales_out_before_each_gemm_or_as_it_casts() -> None:
    """From Transformer Engine 2.12 on only weights' scales, and those of what is gathered, wait for the GEMM."""
    apart = ops(BlockKind.DENSE, *recipe("mxfp8"))
    assert sum(op.count for name, op in apart.items() if name.endswith(".swizzle")) == 2 * 3 * len(LINEAR)
    later = (*recipe("mxfp8"), "stack.block_casts=laid_out")
    alone = {name: op for name, op in ops(BlockKind.DENSE, *later).items() if name.endswith(".swizzle")}
    assert set(alone) == {f"{name}.{which}.swizzle" for name in LINEAR for which in ("fwd", "dgrad")}
    assert moved(alone["dense.down.fwd.swizzle"]) == (H * FFN / 32, H * FFN / 32)
    shared = ops(BlockKind.DENSE, *later, "layout.tp=2", "layout.sp=true")
    gathered = {name for name in shared if name.endswith(".wgrad.swizzle")}
    assert gathered == {f"{name}.wgrad.swizzle" for name in LINEAR}


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        (("precision.recipe=fp8_tensor",), 2 + 2),
        (("precision.recipe=fp8_tensor", "hardware=b200"), 2 + 1),
        (("precision.recipe=fp8_tensor", "precision.weights=recipe"), 2),
        (("precision.recipe=fp8_tensor", "precision.weights=cast"), 2),
        (("precision.recipe=mxfp8", "hardware=b200", "precision.weights=recipe"), 2 * (1 + 1 / 32)),
        (("precision.recipe=nvfp4", "hardware=b200"), 2 + 2 * (0.5 + 1 / 16)),
    ],
)
def test_weights_are_kept_as_the_software_keeps_them(changes: tuple[str, ...], each: float) -> None:
    scenario = load_scenario("llama-3-8b", (*ALONE, *changes))
    stage = (BlockKind.DENSE,)
    items = state_items([stage], scenario, shards_of(scenario, 1), Assumptions())
    held = held_by_block(BlockKind.DENSE, scenario.model, scenario.job)
    assert held.narrow == held.matrices == 2 * H * H + 2 * H * 1024 + 3 * H * FFN
    weights = sum(item.bytes for item in items if item.group == "weights")
    assert weights == pytest.approx(each * held.narrow + 2 * (held.total - held.narrow))


@pytest.mark.parametrize(
    ("changes", "each"),
    [
        (("precision.recipe=fp8_tensor",), 2.0),
        (("precision.recipe=fp8_tensor", "precision.weights=recipe"), 1.0),
        (("precision.recipe=mxfp8", "hardware=b200", "precision.weights=recipe"), 2.0),
    ],
)
def test_what_is_gathered_of_a_weight(changes: tuple[str, ...], each: float) -> None:
    scenario = load_scenario("llama-3-8b", (*ALONE, *changes))
    held = held_by_block(BlockKind.DENSE, scenario.model, scenario.job)
    assert held.weight_bytes(scenario.formats)[0] == pytest.approx(each * held.narrow + 2 * (held.dense - held.narrow))


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (("precision.recipe=mxfp8",), "has no tensor cores for MXFP8, which came with Blackwell"),
        (("hardware=a100", "precision.recipe=fp8_block"), "has no FP8 tensor cores; use bf16"),
        (("precision.kept=bf16",), "precision.kept: bf16: changes nothing: everything is in BF16"),
        (("precision.recipe=fp8", "precision.scaling=current"), "is as DeepSeek's program has it"),
        (("precision.recipe=fp8_row", "precision.scaling=current"), "changes nothing: fp8_row scales by row"),
        (("precision.recipe=fp8_tensor", "precision.bf16_first_layers=1"), "delayed scaling has no layers in BF16"),
        (("precision.recipe=fp8_block", "precision.bf16_first_layers=33"), "more than the model's 32 layers"),
        (("precision.recipe=fp8_block", 'precision.bf16=["head", "experts"]'), "has no experts; leave it out"),
        (("precision.recipe=fp8_block", 'precision.bf16=["head", "recurrent"]'), "has no recurrent mixers"),
        (("precision.recipe=fp8_block", 'precision.bf16=["head", "mtp"]'), "has no MTP modules; leave it out"),
        (("precision.recipe=fp8_block", 'precision.bf16=["head", "head"]'), "stands there twice"),
        (
            ("precision.recipe=fp8_block", "stack.precision.scaling=current"),
            "only the recipe fp8_tensor",
        ),
        (
            ("stack=torchtitan", "layout.zero=3", "precision.recipe=fp8_row", "precision.weights=recipe"),
            "FP32 shards are not gathered in FP8 scaled by row; use cast, or fp8_tensor",
        ),
    ],
)
def test_what_cannot_be_is_one_line(changes: tuple[str, ...], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong) as error:
        prepare(load_scenario("llama-3-8b", (*ALONE, *changes)))
    assert "\n" not in str(error.value)


def test_experts_cast_their_own_operands_too() -> None:
    mixtral = ("model=mixtral-8x7b", "layout.ep=8", "gpus=8", "precision.recipe=fp8_block")
    found = ops(BlockKind.MOE, *mixtral)
    rows = shapes(*mixtral).rows
    assert moved(found["moe.up_gate.quant_x"])[0] == 2 * rows * H
    assert moved(found["moe.down.quant_g"])[0] == 2 * rows * H
    kept = ops(BlockKind.MOE, *mixtral, 'precision.bf16=["head", "experts"]')
    assert "moe.up_gate.quant_x" not in kept
    assert "attn.qkv.quant_x" in kept


def test_scales_by_row_need_casts_by_columns_that_compute_every_address() -> None:
    found = ops(BlockKind.DENSE, "stack=torchtitan", "layout.zero=3", "precision.recipe=fp8_row")
    by_columns = {name: op.work for name, op in found.items() if op.cls == "quant.column"}
    linears = ("attn.qkv", "attn.o", "dense.up_gate", "dense.down")
    assert set(by_columns) == {f"{name}.quant_{which}_t" for name in linears for which in "xgw"}
    assert all(isinstance(work, Streaming) and work.values == work.read / 2 for work in by_columns.values())


def test_gradients_scaled_by_row_are_multiplied_behind_their_gemms() -> None:
    """Every value of every input and weight gradient, by its own instructions; in eager PyTorch, of FP32 factors."""
    for stack, width in (("torchtitan", 4), ("torch", 12)):
        found = ops(BlockKind.DENSE, f"stack={stack}", "layout.zero=3", "precision.recipe=fp8_row")
        outputs = {n: op.work.m * op.work.n for n, op in found.items() if isinstance(op.work, Gemm) and "grad" in n}
        scaled = {n.removesuffix("_scale"): op for n, op in found.items() if n.endswith("grad_scale")}
        assert set(scaled) == set(outputs)
        assert all(op.cls == ("quant.rescale" if width == 4 else "elem") for op in scaled.values())
        assert {n: sum(moved(op)) / width for n, op in scaled.items()} == outputs
    per_tensor = ops(BlockKind.DENSE, "stack=torchtitan", "layout.zero=3", "precision.recipe=fp8_tensor")
    assert not [name for name in per_tensor if name.endswith("grad_scale")]


def test_maxima_of_gathered_tensors_are_those_of_all_their_ranks() -> None:
    """Transformer Engine, current scaling: inputs of column-parallel layers and gradients of row-parallel ones."""
    parts = ("layout.tp=4", "precision.recipe=fp8_tensor", "precision.scaling=current")
    for changes, shared in ((parts, 4), ((*parts, "precision.kept=bf16"), 0), ((*parts, "layout.sp=false"), 0)):
        layer = ops(BlockKind.DENSE, *changes)
        works = {name: op.work for name, op in layer.items() if name.endswith("maximum.all_reduce")}
        assert len(works) == shared
        assert all(isinstance(work, Collective) and work.ranks == 4 for work in works.values())
        if shared:
            where = ("attn.qkv.quant_x", "attn.o.quant_g", "dense.up_gate.quant_x", "dense.down.quant_g")
            assert set(works) == {f"{name}.maximum.all_reduce" for name in where}


def test_a_table_gets_a_gradient_of_all_its_rows_from_autograd() -> None:
    table, rows = 128256 // 2 * H, TOKENS * H
    split = ("layout.tp=2", "layout.pp=1")
    dense, few = (ops(BlockKind.EMBED, *split, f"stack.table_gradient={how}") for how in ("dense", "rows"))
    assert moved(dense["embed.wgrad.zero"]) == (0.0, 2.0 * table)
    assert moved(dense["embed.wgrad"]) == (4.0 * rows, 2.0 * rows)
    assert moved(dense["embed.wgrad_add"]) == (6.0 * table, 4.0 * table)  # BF16 into FP32
    assert moved(few["embed.wgrad"]) == (6.0 * rows, 4.0 * rows)
    for made in (dense, few):
        gathered = made["embed.g.all_gather"].work
        assert isinstance(gathered, Collective)
        assert gathered.bytes == 2.0 * rows


def test_biases_that_layers_do_not_add_themselves_are_summed_by_kernels() -> None:
    gpt = ("model=gpt3-175b", "layout.tp=8", "gpus=8")
    megatron, torch = ({*ops(BlockKind.DENSE, *gpt, f"stack={stack}")} for stack in ("megatron-core", "torch"))
    sums = {f"{name}.bias.bwd" for name in ("attn.o", "dense.up_gate", "dense.down")}
    assert {name for name in megatron if name.endswith("bias.bwd")} == sums
    assert {name for name in torch if name.endswith("bias.bwd")} == sums | {"attn.qkv.bias.bwd"}
    assert not [name for name in ops(BlockKind.DENSE) if "bias" in name]  # Llama has none
    norm = ops(BlockKind.DENSE, *gpt, "stack=megatron-core")["norm.attn.wgrad_acc"]
    assert norm.count == 2  # gain and bias


def test_the_attention_core_in_mxfp8_casts_what_it_reads_and_skips_no_keys_in_backward() -> None:
    narrow = (*recipe("mxfp8"), "stack=megatron-core", "model.sliding_window=1024")
    before, after = (
        ops(BlockKind("sliding+dense"), *narrow, *more, "layout.recompute=selective")
        for more in ((), ("precision.attention=recipe",))
    )
    both = 2 * RECIPES["mxfp8"].value
    for name, values in (("fwd.quant_q", H), ("fwd.quant_kv", H / 2), ("recompute.quant_q", H), ("bwd.quant_g", H)):
        assert moved(after[f"attn.core.{name}"]) == (2 * values * TOKENS, both * values * TOKENS)
    cores = [name for name, op in after.items() if isinstance(op.work, Attention)]
    assert [after[name].cls for name in cores] == ["attn.fwd.mxfp8", "attn.fwd.mxfp8", "attn.bwd.mxfp8"]
    for name in cores:
        was, now = before[name].work, after[name].work
        assert isinstance(was, Attention)
        assert now == replace(was, precision="fp8", window=0 if was.backward else 1024)
    assert set(after) - set(before) == {
        f"attn.core.{name}" for way, which in (("fwd", "q kv"), ("recompute", "q kv"), ("bwd", "g"))
        for one in which.split() for name in (f"{way}.quant_{one}", f"{way}.swizzle_{one}")
    }  # fmt: skip


def test_layers_that_stay_in_bf16_have_their_core_in_bf16() -> None:
    changes = (*recipe("mxfp8"), "stack=megatron-core", "precision.attention=recipe", "precision.bf16_first_layers=1")
    blocks = build_blocks(shapes(*changes))
    plain = [op for kind in blocks if kind.endswith("-bf16") for op in blocks[kind].ops()]
    cores = {op.cls for op in plain if isinstance(op.work, Attention)}
    assert cores == {"attn.fwd", "attn.bwd"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (("precision.recipe=fp8_tensor",), "is known of mxfp8 only, not of fp8_tensor"),
        (("precision.recipe=bf16",), "everything is in BF16"),
        (("precision.recipe=mxfp8", "layout.cp=2"), "is not known under context parallelism"),
        (("precision.recipe=mxfp8", 'precision.bf16=["head","attention"]'), "attention stays in BF16"),
        (("precision.recipe=mxfp8", "stack=torch"), "is Transformer Engine's by cuDNN"),
    ],
)
def test_an_attention_core_in_mxfp8_is_refused_where_there_is_none(changes: tuple[str, ...], why: str) -> None:
    with pytest.raises(InputError, match=rf"precision\.attention.*{why}"):
        prepare(load_scenario("llama-3-8b", (*ALONE, "hardware=b200", *changes, "precision.attention=recipe")))
