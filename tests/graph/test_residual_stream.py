"""Where norms stand and what they read: FLOP, kept bytes and ops of blocks that are not Llama's, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simulator.dtypes import BF16, FP32
from simulator.graph.block import Block, problems
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Collective, Streaming
from simulator.results.simulate import simulate
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario

PLAIN = ["layout.tp=1", "layout.recompute=none", "batch.microbatch_size=1", "batch.sequence_length=1024"]
KINDS: dict[str, dict[str, Any]] = {
    "pre": {},
    "post": {"norm_placement": "post"},
    "both": {"norm_placement": "both"},
    "parallel": {"parallel_block": True},
    "shared": {"parallel_block": True, "shared_norm": True},
    "qk head": {"qk_norm": True},
    "qk projection": {"qk_norm": True, "qk_norm_over": "projection"},
}


def scenario(kind: str, *overrides: str, **fields: Any) -> Scenario:
    found = load_scenario("llama-3-8b", [*PLAIN, *overrides])
    return replace(found, model=replace(found.model, **KINDS[kind], **fields))


def dense(kind: str, *overrides: str, **fields: Any) -> Block:
    return build_blocks(shapes_of(scenario(kind, *overrides, **fields)))["dense"]


def names(block: Block) -> list[str]:
    return [op.name for op in block.ops()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stack", ["torch", "megatron-core", "torch-compile"])
def test_blocks_are_well_formed_and_multiply_what_the_model_says(kind: str, stack: str) -> None:
    block = dense(kind, f"stack={stack}")
    assert problems(block) == []
    model = scenario(kind).model
    per_token = model.layer_macs_per_token(BlockKind.DENSE, 1024)
    assert block.flops("F") == pytest.approx(2 * 1024 * per_token, rel=1e-12)
    assert block.flops("F", "I", "W") == pytest.approx(3 * block.flops("F"), rel=0.06)  # attention recomputes scores


@pytest.mark.parametrize(
    ("kind", "forward", "backward"),
    [
        ("pre", ["norm.attn.fwd", "norm.ffn.fwd_residual"], ["norm.ffn.bwd", "norm.attn.bwd"]),
        ("post", ["norm.attn.out.fwd", "norm.dense.out.fwd"], ["norm.dense.out.bwd", "norm.attn.out.bwd"]),
        (
            "both",
            ["norm.attn.fwd", "norm.attn.out.fwd", "norm.ffn.fwd", "norm.dense.out.fwd"],
            ["norm.dense.out.bwd", "norm.ffn.bwd", "norm.attn.out.bwd", "norm.attn.bwd"],
        ),
        ("parallel", ["norm.attn.fwd", "norm.ffn.fwd"], ["norm.ffn.bwd", "norm.attn.bwd"]),
        ("shared", ["norm.attn.fwd"], ["norm.attn.bwd"]),
    ],
)
def test_norms_run_where_they_stand(kind: str, forward: list[str], backward: list[str]) -> None:
    ops = names(dense(kind, "stack=megatron-core"))
    found = [name for name in ops if name.startswith("norm.") and "residual.bwd" not in name]
    kernels = [name for name in found if name.rpartition(".")[2] in ("fwd", "fwd_residual", "bwd")]
    assert kernels == forward + backward
    assert len(forward) == scenario(kind).model.norms_per_layer


def kept(kind: str) -> float:
    return dense(kind, "stack=megatron-core").saved_bytes


def test_kept_bytes_by_hand() -> None:
    """Of a sequential block each branch keeps its norm's input and output; normed behind, its own input and output."""
    t, h = 1024, 4096
    wide, statistic = t * h * BF16, t * FP32
    assert kept("post") == kept("pre")
    assert kept("both") == kept("pre") + 2 * (wide + statistic)
    assert kept("parallel") == kept("pre") - wide  # both norms read the layer's input: kept once
    assert kept("shared") == kept("parallel") - wide - statistic


def test_the_gradient_that_by_passes_a_branch_is_added_once() -> None:
    """By the norm's backward, or, where none stands before the branch, by a kernel of its own."""
    for kind in ("post", "shared"):
        assert [name for name in names(dense(kind)) if name.endswith((".residual.bwd", ".branches.bwd"))] != []
    post = names(dense("post", "stack=megatron-core"))
    assert {"dense.residual.bwd", "attn.residual.bwd"} <= set(post)
    assert "attn.branches.bwd" in names(dense("shared", "stack=megatron-core"))


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("pre", {"F": ["attn.x", "attn.o", "dense.x", "dense"], "I": ["dense.g", "dense.dx", "attn.o_g", "attn.dx"]}),
        ("parallel", {"F": ["attn.x", "dense.x", "dense"], "I": ["dense.g", "dense.dx", "attn.dx"]}),
        ("shared", {"F": ["attn.x", "dense"], "I": ["dense.g", "attn.dx"]}),
    ],
)
def test_branches_side_by_side_share_their_tensor_parallel_collectives(kind: str, sent: dict[str, list[str]]) -> None:
    """Both outputs are summed before one reduction, and one norm's output is gathered once: all tokens are then added,
    not this rank's part of them. What backward gathers again follows the inputs."""
    block = dense(kind, "stack=megatron-core", "layout.tp=4")
    found = [op for op in block.ops() if isinstance(op.work, Collective) and ".again." not in op.name]
    for part, names_of in sent.items():
        assert [op.name.rpartition(".")[0] for op in found if op.part == part] == names_of
    again = [op for op in block.ops() if isinstance(op.work, Collective) and ".again." in op.name]
    assert len(again) == (1 if kind == "shared" else 2)
    added = next(op.work for op in block.ops() if op.name == "attn.residual.fwd")
    assert isinstance(added, Streaming)
    assert added.written == 1024 * 4096 * BF16 / (4 if kind == "pre" else 1)


def test_a_norm_over_the_projection_is_one_row_a_token() -> None:
    model = scenario("qk head").model
    assert model.qk_norm_widths() == (128, 128)
    assert scenario("qk projection").model.qk_norm_widths() == (4096, 1024)
    head, whole = dense("qk head", "stack=megatron-core"), dense("qk projection", "stack=megatron-core")
    assert kept("qk head") - kept("qk projection") == 1024 * (32 + 8 - 2) * FP32  # a statistic a row
    work = {op.name: op.work for op in whole.ops()}
    narrow = {op.name: op.work for op in head.ops()}
    for name in ("norm.q.fwd", "norm.k.fwd"):
        one, other = work[name], narrow[name]
        assert isinstance(one, Streaming)
        assert isinstance(other, Streaming)
        assert one.read == other.read


def test_a_norm_over_all_heads_asks_the_other_ranks() -> None:
    layout = ["gpus=16", "layout.tp=2", "layout.sp=true", "batch.global_batch_size=64"]
    reduced = [name for name in names(dense("qk projection", *layout)) if name.startswith("norm.")]
    assert [name for name in reduced if name.endswith("all_reduce")] == [
        "norm.q.fwd.all_reduce",
        "norm.k.fwd.all_reduce",
        "norm.q.bwd.all_reduce",
        "norm.k.bwd.all_reduce",
    ]
    assert not any(name.endswith("all_reduce") for name in names(dense("qk head", *layout)) if "norm" in name)


@pytest.mark.parametrize(
    ("fields", "share"),
    [({"partial_rotary_factor": 0.25}, 0.25), ({"nope_layers": 8}, 0.75), ({}, 1.0)],
)
@pytest.mark.parametrize("stack", ["torch", "megatron-core"])
def test_only_what_rotates_is_moved(fields: dict[str, Any], share: float, stack: str) -> None:
    def moved(block: Block) -> float:
        works = [op.work for op in block.ops() if op.name.startswith("rope.")]
        return sum(work.read + work.written for work in works if isinstance(work, Streaming))

    assert moved(dense("pre", f"stack={stack}", **fields)) == share * moved(dense("pre", f"stack={stack}"))


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        ("pre", set()),
        ("post", {"attn.residual.fwd.again", "dense.down.fwd.again"}),
        ("both", {"attn.residual.fwd.again", "dense.down.fwd.again"}),
        ("parallel", set()),
    ],
)
def test_what_a_norm_behind_a_branch_reads_runs_again(kind: str, again: set[str]) -> None:
    """Of six matrices the last is not kept; a norm behind it reads its output, and the next branch the sum."""
    block = dense(kind, "stack=torch-compile", "layout.recompute=selective", gated_mlp=False)
    assert problems(block) == []
    assert set(names(block)) & {"attn.residual.fwd.again", "dense.down.fwd.again"} == again
    assert "dense.residual.fwd.again" not in names(block)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_run_and_differ_little_from_llamas(kind: str) -> None:
    """Of the GPU: at 1,024 tokens a microbatch more norms are launches that the GPU waits for."""
    base, found = (simulate(scenario(one, "hardware.node.host_pace=0")).metrics["step_time_s"] for one in ("pre", kind))
    assert found == pytest.approx(base, rel=0.1)
