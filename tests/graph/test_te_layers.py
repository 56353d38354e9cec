"""Kernels of Megatron-Core's layers with Transformer Engine that depend on the model."""

from __future__ import annotations

from functools import lru_cache

import pytest

from simulator.engine.pricing import pricer
from simulator.graph.norm import norm_class
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Op, Streaming
from simulator.spec.model import BlockKind

TOKENS, H = 8192, 4096  # llama-3-8b, whole on one rank
ALONE = ("layout.tp=1", "layout.pp=1", "layout.recompute=none", "hardware=h200")
MULTI_HEAD = "model.num_key_value_heads=32"
LEARNED = ("model=gpt3-175b", "model.num_hidden_layers=2")


@lru_cache(maxsize=16)
def layer(*changes: str) -> dict[str, Op]:
    """The ops of a dense layer."""
    blocks = build_blocks(shapes_of(load_scenario("llama-3-8b", (*ALONE, *changes))))
    return {op.name: op for op in blocks[BlockKind.DENSE].ops()}


def copied(*changes: str) -> dict[str, float]:
    """Values of the heads that are copied, a token."""
    ops = layer(*changes)
    each = {name: op.work for name, op in ops.items() if name.endswith(".contiguous")}
    tokens = 2048 if LEARNED[0] in changes else TOKENS
    return {name.split(".")[1]: w.bytes / 4 / tokens for name, w in each.items() if isinstance(w, Streaming)}


@pytest.mark.parametrize(
    ("width", "rms", "layer_norm"),
    [
        (4096, "norm.bwd", "norm.bwd.layer"),
        (8192, "norm.bwd.wide", "norm.bwd.layer.wide"),
        (6144, "norm.bwd.general", "norm.bwd.layer"),
        (14336, "norm.bwd.general", "norm.bwd.layer.general"),
        (128, "norm.bwd.narrow", "norm.bwd.narrow"),
    ],
)
def test_norms_have_the_kernels_of_their_width(width: int, rms: str, layer_norm: str) -> None:
    """As the names of the kernels in `calibration/tables/h200_te_kernels.csv`: tuned, or general."""
    assert norm_class("bwd", width, "rms") == rms
    assert norm_class("bwd", width, "layer") == layer_norm


def test_queries_of_groups_and_rotated_models_values_are_copied() -> None:
    assert copied() == {"q": 4096, "v": 1024}  # measured: 8192 x 4096 and 8192 x 1024 (h200_te_experts.csv)
    assert copied(MULTI_HEAD) == {"v": 4096}
    assert copied("model.qk_norm=true") == {"q": 4096, "k": 1024, "v": 1024}
    assert copied(*LEARNED) == {}
    assert copied("stack=torch") == {}


def test_gradients_of_heads_that_were_not_copied_are_joined_value_by_value() -> None:
    assert layer()["attn.qkv.cat.bwd"].cls == "elem"
    assert layer(*LEARNED)["attn.qkv.cat.bwd"].cls == "cat.unvectorized"


def test_a_copy_of_heads_is_within_its_modules_call() -> None:
    """Host times of whole layers hold it already: only its launch counts."""
    from simulator.engine.host import seconds

    stack = load_scenario("llama-3-8b", ALONE).stack
    ops = layer()
    assert seconds(ops["attn.q.contiguous"], stack) == pytest.approx(stack.host_kernel)
    assert seconds(ops["dense.swiglu.fwd"], stack) == pytest.approx(stack.host_kernel + stack.host_call)


def test_a_layers_kernels_take_what_was_measured() -> None:
    """Of one 8B layer of 8192 tokens in BF16 on an H200, kernel by kernel (`workloads/facts/h200_te_layers.csv`, run 2)
    [us]; those whose instructions decide at full clock, 1.29 times faster than there."""
    price = pricer(load_scenario("llama-3-8b", ALONE), None)
    took = {name: price(op).cost.duration * 1e6 for name, op in layer().items()}
    measured = {
        "norm.attn.fwd": 39.7, "norm.ffn.bwd": 57.9, "attn.q.contiguous": 86.2, "attn.v.contiguous": 24.2,
        "attn.qkv.cat.bwd": 49.6, "dense.swiglu.fwd": 165.4, "dense.swiglu.bwd": 558.2 / 1.29,
        "rope.qk.fwd": 97.5 / 1.29,
    }  # fmt: skip
    for name, us in measured.items():
        assert took[name] == pytest.approx(us, rel=0.1), name


def test_a_sum_into_fp32_is_a_kernel_of_two_formats() -> None:
    blocks = {}
    for kept in ("fp32", "bf16"):
        shapes = shapes_of(load_scenario("llama-3-8b", (*ALONE, f"stack.optimizer.gradients={kept}")))
        blocks[kept] = {op.name: op.cls for op in build_blocks(shapes)[BlockKind.EMBED].ops()}
    assert blocks["fp32"]["embed.wgrad_add"] == "elem.mixed"
    assert blocks["bf16"]["embed.wgrad_add"] == "elem"
