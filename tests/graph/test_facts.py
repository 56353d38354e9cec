"""Facts of ops are set where the ops are made: what engines and memory ask, for every kind of block."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.graph.block import Block
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.memory.temporary import Here, operands
from simulator.ops import Gemm, Op
from simulator.spec.model import BlockKind


def blocks(job: str, *overrides: str) -> dict[BlockKind, Block]:
    return build_blocks(shapes_of(load_scenario(job, overrides)))


def named(block: Block, name: str) -> Op:
    return next(op for op in block.ops() if op.name == name)


@pytest.mark.parametrize("overrides", [(), ("precision.recipe=bf16", "stack=megatron-core")])
def test_only_routed_experts_wait_for_the_most_loaded_rank(overrides: tuple[str, ...]) -> None:
    """Their GEMMs and casts do; weights, shared experts, attention and the gate are the same on all ranks."""
    found = blocks("deepseek-v3-pretrain", *overrides)
    moe = found[BlockKind.MOE]
    for op in moe.ops():
        routed = isinstance(op.work, Gemm) and op.work.form in ("grouped", "grouped_wgrad")
        assert op.scales_with_load or not routed, op.name
        if op.scales_with_load:
            assert op.stream == "compute"
            assert not op.reads_resident
    for name in ("shared.up_gate.fwd", "attn.o.fwd", "router.gate.fwd"):
        assert not named(moe, name).scales_with_load
    assert not any(op.scales_with_load for kind, block in found.items() if kind != BlockKind.MOE for op in block.ops())


def test_more_rows_lengthen_only_what_scales_with_load() -> None:
    """The fact against the shapes: an op whose work changes with the rows of the experts has it, and so has its own."""
    shapes = shapes_of(load_scenario("deepseek-v3-pretrain"))
    more = replace(shapes, rows=shapes.rows + 128 * shapes.local_experts)
    ops = build_blocks(shapes)[BlockKind.MOE].ops()
    changed = [a for a, b in zip(ops, build_blocks(more)[BlockKind.MOE].ops(), strict=True) if a.work != b.work]
    assert len(changed) > 15
    assert [op.name for op in changed if not op.scales_with_load] == []


def test_reading_weights_or_kept_logits_takes_no_memory_of_its_own() -> None:
    found = blocks("deepseek-v3-pretrain")
    reading = {op.name for block in found.values() for op in block.ops() if op.reads_resident}
    assert reading >= {"loss.fwd", "loss.bwd", "moe.up_gate.weight_t", "attn.o.weight_t"}
    assert named(found[BlockKind.HEAD], "loss.fwd").saves_input
    here = Here(received=0)
    assert operands(named(found[BlockKind.EMBED], "embed.wgrad"), here) == (0.0, 0.0)
    assert operands(named(found[BlockKind.EMBED], "embed.fwd"), here) != (0.0, 0.0)


def test_a_ring_holds_a_part_of_what_it_passes_on() -> None:
    found = {
        kind: blocks("llama-3-8b", "layout.cp=4", "layout.tp=1", "gpus=64", f"layout.cp_kind={kind}")[BlockKind.DENSE]
        for kind in ("ring", "all_gather")
    }
    parts = named(found["ring"], "attn.core.fwd.kv.0"), named(found["all_gather"], "attn.core.fwd.kv")
    read, gathered = (operands(op, Here(received=0))[0] for op in parts)
    assert 4 * read == gathered > 0


def test_matrices_of_joined_layers_are_distinguished() -> None:
    dense = blocks("llama-3-8b", "layout.tp=1")[BlockKind.DENSE]
    assert named(dense, "attn.qkv.fwd").matrices == (4096, 1024, 1024)
    assert named(dense, "dense.up_gate.fwd").matrices == (14336, 14336)
    assert named(dense, "dense.down.fwd").matrices == (4096,)
    moe = blocks("deepseek-v3-bf16")[BlockKind.MOE]
    assert named(moe, "router.gate.fwd").matrices == named(moe, "moe.down.fwd").matrices == ()


def test_what_leaves_a_layer_is_not_read_by_its_backward() -> None:
    dense = blocks("llama-3-8b", "stack=megatron-core")[BlockKind.DENSE]
    unread = [op.name for op in dense.ops() if not op.read_by_backward]
    assert unread == ["dense.down.fwd", "dense.residual.fwd"]
