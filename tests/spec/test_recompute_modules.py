"""Presets of recomputation are sets of modules, and every module acts by itself."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.shapes import Shapes, shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.spec.model import BlockKind
from simulator.spec.recompute import DEEPSEEK, NOTHING, Module, recomputed_modules


@pytest.mark.parametrize(
    ("preset", "selective", "modules"),
    [
        ("none", "core", set()),
        ("selective", "core", {"core_attn"}),
        ("selective", "products", {"ops"}),
        ("full", "core", {"full"}),
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
    base, less = moe(v3()), moe(replace(v3(), recompute=frozenset((module,))))
    assert problems(less) == []
    assert less.saved_bytes < base.saved_bytes
    if module != "swiglu":  # whose second output the kernel of its backward writes: no op more, but more bytes
        assert any(op.part == "R" for op in less.ops())
        assert not any(op.part == "R" for op in base.ops())


def test_what_modules_save_adds_up() -> None:
    base = moe(v3()).saved_bytes
    saved = [base - moe(replace(v3(), recompute=frozenset((module,)))).saved_bytes for module in sorted(DEEPSEEK)]
    together = base - moe(replace(v3(), recompute=DEEPSEEK)).saved_bytes
    rope = v3().tokens * 64 * 2.0  # the shared rotary key is kept where the up-projections run again
    assert together == pytest.approx(sum(saved))
    assert min(saved) > rope
