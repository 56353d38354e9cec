"""Presets of recomputation are sets of modules, and every module acts by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.graph.block import Block, problems
from simulator.graph.shapes import Shapes, shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import prepare, simulate
from simulator.spec.job import Module
from simulator.spec.model import BlockKind
from simulator.spec.recompute import DEEPSEEK, NOTHING, recomputed_modules


@pytest.mark.parametrize(
    ("preset", "selective", "modules"),
    [
        ("none", "core", set()),
        ("selective", "core", {"core_attn"}),
        ("selective", "products", {"ops"}),
        ("full", "core", {"layer"}),
        ("deepseek", "core", {"norm", "mla_up", "swiglu"}),
    ],
)
def test_presets(preset: str, selective: str, modules: set[str]) -> None:
    s = load_scenario("deepseek-v3-bf16", [f"layout.recompute={preset}", f"stack.selective={selective}"])
    assert recomputed_modules(s.job.layout, s.stack) == modules == shapes_of(s).recompute


def v3() -> Shapes:
    return replace(shapes_of(load_scenario("deepseek-v3-bf16")), recompute=NOTHING)


def moe(shapes: Shapes) -> Block:
    return build_blocks(shapes)[BlockKind.MOE]


@pytest.mark.parametrize("module", get_args(Module))
def test_each_module_keeps_less_and_runs_more(module: Module) -> None:
    kind = BlockKind.DENSE if module == "mlp" else BlockKind.MOE
    base, less = build_blocks(v3())[kind], build_blocks(replace(v3(), recompute=frozenset((module,))))[kind]
    assert problems(less) == []
    assert less.saved_bytes < base.saved_bytes
    if module not in (
        "swiglu",
        "moe_act",
    ):  # whose second output the kernel of its backward writes: no op more, but more bytes
        assert any(op.part == "R" for op in less.ops())
        assert not any(op.part == "R" for op in base.ops())


def test_what_modules_save_adds_up() -> None:
    base = moe(v3()).saved_bytes
    saved = [base - moe(replace(v3(), recompute=frozenset((module,)))).saved_bytes for module in sorted(DEEPSEEK)]
    together = base - moe(replace(v3(), recompute=DEEPSEEK)).saved_bytes
    rope = v3().tokens * 64 * 2.0  # the shared rotary key is kept where the up-projections run again
    assert together == pytest.approx(sum(saved))
    assert min(saved) > rope


def test_megatrons_names_are_parts_of_the_published_ones() -> None:
    def saved(*modules: Module) -> float:
        return moe(v3()).saved_bytes - moe(replace(v3(), recompute=frozenset(modules))).saved_bytes

    rope = v3().tokens * 64 * 2.0  # the shared rotary key is kept where the up-projections run again
    assert 0 < saved("moe_act") < saved("swiglu")
    assert saved("layernorm", "mla_up_proj") == saved("norm", "mla_up")
    assert saved("mla_up") < saved("mla_up_proj")
    assert saved("norm") == saved("layernorm") + (saved("mla_up_proj") - saved("mla_up"))
    assert saved("mla_up") > rope


def stages_with(*changes: str) -> list[list[str]]:
    built, _ = prepare(load_scenario("llama-3-8b", [*DENSE, "layout.recompute=full", *changes]))
    return [[str(kind) for kind in stage] for stage in built.stages]


DENSE = ["hardware=h100", "gpus=4", "layout.tp=1", "layout.pp=4", "batch.global_batch_size=4", "layout.stages=even"]
DENSE += ["batch.sequence_length=2048", "batch.microbatch_size=1", "stack=megatron-core"]


def test_block_recomputes_the_first_layers_of_each_stage() -> None:
    stages = stages_with("layout.recompute_method=block", "layout.recompute_layers=3")
    assert stages[1] == ["dense"] * 3 + ["dense-kept"] * 5
    assert stages[0] == ["embed", *stages[1]]
    assert stages[3] == [*stages[1], "head"]


def test_uniform_keeps_one_input_a_group() -> None:
    assert stages_with("layout.recompute_layers=3")[1] == (["dense"] + ["dense-inner"] * 2) * 2 + [
        "dense",
        "dense-inner",
    ]


def memory_with(*changes: str) -> tuple[float, float, float]:
    """Kept activations of rank 1, its temporary memory, and the step time."""
    result = simulate(load_scenario("llama-3-8b", [*DENSE, *changes]), engine="longest-path")
    rank = result.memory.ranks[1]
    return rank.group("activations"), rank.group("temporary"), result.metrics["step_time_s"]


def test_what_block_and_uniform_keep_by_hand() -> None:
    """Rank 1 of 4 has 3 microbatches in flight; an input is 2 bytes of 2048 x 4096 values."""
    unit = 2048 * 4096 * 2
    full, none = memory_with("layout.recompute=full"), memory_with("layout.recompute=none")
    assert full[0] == 3 * 8 * unit
    groups = memory_with("layout.recompute=full", "layout.recompute_layers=4")
    assert groups[0] == 3 * 2 * unit
    revived = none[0] / 24 - unit
    assert groups[1] - full[1] == pytest.approx(3 * revived + 3 * unit)
    assert groups[2] == full[2]
    half = memory_with("layout.recompute=full", "layout.recompute_method=block", "layout.recompute_layers=4")
    assert half[0] == pytest.approx((full[0] + none[0]) / 2)
    assert none[2] < half[2] < full[2]


def test_the_quick_estimate_knows_the_variants() -> None:
    changes = [*DENSE, "layout.recompute=full", "layout.recompute_method=block", "layout.recompute_layers=5"]
    scenario = load_scenario("llama-3-8b", changes)
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    result = simulate(scenario, engine="longest-path")
    assert found.memory == pytest.approx(result.memory.peak)
    assert found.step == pytest.approx(result.metrics["step_time_s"], rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (['layout.recompute=["layer", "norm"]'], "names other modules next to layer"),
        (['layout.recompute=["norm", "norm"]'], "names norm twice"),
        (['layout.recompute=["norm", "layernorm"]'], "names layernorm, which norm contains"),
        (["layout.recompute=[]"], "names nothing"),
        (['layout.recompute=["moe"]'], "recomputes routed experts, which llama-3-8b does not have"),
        (["layout.recompute_layers=2"], "layout.recompute_layers: 2: is about whole layers, and none is recomputed"),
        (["layout.recompute_method=block"], "layout.recompute_method: block: is about whole layers"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes: list[str], error: str) -> None:
    broken = [str(one) for one in check(load_scenario("llama-3-8b", [*DENSE, "layout.recompute=none", *changes]))]
    assert any(error in one for one in broken), broken
