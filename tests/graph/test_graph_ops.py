"""The graph of a MoE layer against every kernel of DeepSeek's public training profile."""

from __future__ import annotations

import csv
import re
from importlib.resources import files

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.layer import dense_layer, moe_layer
from simulator.graph.shapes import Shapes, shapes_of
from simulator.inputs import load_scenario
from simulator.ops import Attention, Gemm, Streaming

LEFT_OUT = {
    "misc.arange": "position index of one thread block, 1 us: fixed while training, made once",
    "router.fake_logits(profiling only)": "balances the experts in the profile; training does not run it",
}
"""Kernels of the profile that the graph has no place for, with the reason."""

SAME = {
    r"router\.small_op_(3\d|4[0-2])|router\.sigmoid|router\.group_top4": "router.scores",
    r"router\.small_op_(4[4-9]|5\d)": "router.weights",
    r"router\.small_op_6\d|router\.aux_fi": "router.balance",
    r"router\.bwd\.small_op_(0\d|1[0-4])": "router.bwd.weights",
    r"router\.bwd\.small_op_(1[5-9]|2\d)": "router.bwd.scores",
    r"router\.topk_2nd\(aux loss\)": "router.topk_2nd",
}
"""Kernels that the graph prices together."""

BYTES = 0.005  # the table is rounded to 10 kB and counts rows of four different layers


def table() -> list[dict[str, str]]:
    text = (files("workloads.facts") / "h800_layer_ops.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def place_of(name: str) -> str:
    for pattern, ours in SAME.items():
        if re.fullmatch(pattern, name):
            return ours
    return name


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return shapes_of(load_scenario("deepseek-v3-pretrain"))


@pytest.fixture(scope="module")
def layer(shapes: Shapes) -> Block:
    return moe_layer(shapes)


def test_every_kernel_of_the_profile_has_its_place(layer: Block) -> None:
    ours = {op.name for op in layer.ops()}
    missing = {row["op"] for row in table()} - set(LEFT_OUT)
    assert {name for name in missing if place_of(name) not in ours} == set()


def test_the_graph_invents_no_kernel(layer: Block) -> None:
    theirs = {place_of(row["op"]) for row in table()}
    assert {op.name for op in layer.ops()} - theirs == set()


def test_kernels_stand_in_the_same_order_on_their_stream(layer: Block) -> None:
    ours = [op.name for op in layer.forward[0].ops]
    theirs = [row["op"] for row in table() if row["phase"] == "attn(F)" and row["op"] in set(ours)]
    assert [name for name in ours if name in theirs] == theirs


@pytest.mark.parametrize("phase", ["mlp(B)", "mlp(W)", "mlp(F)", "attn(B)", "attn(W)"])
def test_segments_run_in_the_order_of_the_profile(layer: Block, phase: str) -> None:
    theirs = [row["op"] for row in table() if row["phase"] == phase and row["op"] not in LEFT_OUT]
    name = phase.replace("(", ".").rstrip(")")
    ours = [op.name for segment in layer.forward + layer.backward if segment.name == name for op in segment.ops]
    known = [op for op in dict.fromkeys(place_of(t) for t in theirs) if op in ours]
    assert [op for op in ours if op in known] == known
    assert len(known) == len(ours)


def test_gemm_shapes_equal_the_profile(layer: Block, shapes: Shapes) -> None:
    ops = {op.name: op for op in layer.ops()}
    for row in table():
        if not row["cls"].startswith("gemm"):
            continue
        work = ops[row["op"]].work
        assert isinstance(work, Gemm)
        shape = [float(row["M"]), float(row["N"]), float(row["K"])]
        if row["cls"] == "gemm.fp8.grouped":
            shape[0] = shapes.rows
        if row["op"].startswith("moe.") and row["cls"] == "gemm.fp8.wgrad":
            shape[2] = -(-shapes.rows // 4)
        assert sorted(shape[:2] if "wgrad" in row["cls"] else shape) == sorted(
            [work.m, work.n] if "wgrad" in row["cls"] else [work.m, work.n, work.k]
        ), row["op"]
        assert ops[row["op"]].cls in (row["cls"], f"{row['cls']}.router")
        assert ops[row["op"]].count == float(row["per_layer"])


def test_streaming_bytes_equal_the_profile(layer: Block, shapes: Shapes) -> None:
    ops = {op.name: op for op in layer.ops()}
    rows_then = {"mlp(B)": 34688, "mlp(W)": 34688, "mlp(F)": 31104}
    checked = 0
    for row in table():
        op = ops.get(row["op"])
        if op is None or not isinstance(op.work, Streaming) or not row["mbytes"]:
            continue
        if row["op"].startswith("moe.") and row["op"] not in ("moe.dispatch.fwd.quant", "moe.up_gate.weight_t"):
            # The table averages these over layers of different loads; per-row bytes are checked below.
            continue
        assert op.work.bytes / 1e6 == pytest.approx(float(row["mbytes"]), rel=BYTES, abs=0.011), row["op"]
        checked += 1
    assert checked > 70
    assert rows_then


@pytest.mark.parametrize(
    ("name", "megabytes", "rows", "received"),
    [
        # one kernel each from period 0 of the profile, with the rows and tokens of that layer
        ("moe.up_gate.dequant", 426.2, 34688, 32120),
        ("moe.permute.grad", 493.8, 34688, 32120),
        ("moe.down.scale_t_g", 15.5, 34688, 32120),
        ("moe.swiglu.fwd_bwd", 852.5, 34688, 32120),
        ("moe.swiglu.gate_w_bwd", 284.2, 34688, 32120),
        ("moe.swiglu_out.quant_t", 213.1, 34688, 32120),
        ("moe.up_gate.quant_g", 426.2, 34688, 32120),
        ("moe.up_gate.scale_t_g", 8.9, 34688, 32120),
        ("moe.unpermute.grad", 957.8, 34688, 32120),
        ("moe.down.quant_g_t", 478.9, 34688, 32120),
        ("moe.up_gate.quant_x_t", 478.9, 34688, 32120),
        ("moe.permute.fwd", 444.2, 31104, 28984),
        ("moe.swiglu.fwd_quant", 318.5, 31104, 28984),
        ("moe.unpermute.fwd", 861.4, 31104, 28984),
        ("moe.up_gate.save_fp8", 382.2, 31104, 28984),
        ("moe.down.scale_t", 4.0, 31104, 28984),
    ],
)
def test_bytes_of_expert_kernels_follow_the_rows(
    shapes: Shapes, name: str, megabytes: float, rows: int, received: int
) -> None:
    from dataclasses import replace

    block = moe_layer(replace(shapes, rows=rows, received=received))
    work = next(op.work for op in block.ops() if op.name == name)
    assert isinstance(work, Streaming)
    assert work.bytes / 1e6 == pytest.approx(megabytes, abs=0.06)


def test_attention_work_equals_the_profile(layer: Block) -> None:
    ops = {op.name: op for op in layer.ops()}
    forward = ops["attn.core.fwd"].work
    assert isinstance(forward, Attention)
    assert forward.flops == 687194767360  # the profile's table: 4096 x 4096, 128 heads, 192 + 128, causal


@pytest.mark.parametrize("recipe", ["fp8", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full", "deepseek"])
def test_blocks_pass_the_checker(recipe: str, recompute: str) -> None:
    scenario = load_scenario("deepseek-v3-pretrain", [f"precision.recipe={recipe}", f"layout.recompute={recompute}"])
    shapes = shapes_of(scenario)
    assert problems(moe_layer(shapes)) == []
    assert problems(dense_layer(shapes)) == []


def test_bf16_is_another_graph() -> None:
    bf16 = moe_layer(shapes_of(load_scenario("deepseek-v3-pretrain", ["precision.recipe=bf16"])))
    names = {op.name for op in bf16.ops()}
    assert not any("quant" in name or "scale_t" in name or "weight_t" in name for name in names)
    sends = [op.work for op in bf16.ops() if op.name == "moe.dispatch.fwd.a2a"]
    assert sends[0].bytes_per_token == 2 * 7168  # type: ignore[union-attr]
    fp8 = moe_layer(shapes_of(load_scenario("deepseek-v3-pretrain")))
    assert bf16.flops("F", "I", "W") == pytest.approx(fp8.flops("F", "I", "W"), rel=0.01)


def test_flops_of_the_graph_equal_the_closed_form() -> None:
    """Whole model, no padding of the tokens per expert: F, I and W of all blocks are the published 250 GFLOP a
    token."""
    from simulator.graph.stage import block_kinds, build_blocks

    scenario = load_scenario("deepseek-v3-pretrain", ["precision.recipe=bf16"])
    shapes = shapes_of(scenario)
    assert shapes.rows == 4096 * 8
    blocks = build_blocks(shapes)
    model = scenario.model
    kinds = block_kinds(model)
    main = kinds[: kinds.index("head") + 1]
    for kinds_used, mtp in ((main, False), (kinds, True)):
        forward = sum(blocks[kind].flops("F") for kind in kinds_used)
        weight = sum(blocks[kind].flops("W") for kind in kinds_used)
        backward = sum(blocks[kind].flops("I") for kind in kinds_used)
        # FlashAttention's backward computes the scores again: 5 GEMMs for the 4 that the convention counts.
        layers = model.num_hidden_layers + (1 if mtp else 0)
        scores = layers * 2 * 128 * 4096 * 4096 * 0.5 * 192
        causal = model.flops_per_token(4096, causal=True, mtp=mtp) * 4096
        assert forward + backward + weight - scores == pytest.approx(causal, rel=1e-12)
        assert forward == pytest.approx(causal / 3, rel=1e-12)


def test_activated_and_total_parameters() -> None:
    model = load_scenario("deepseek-v3-pretrain").model
    assert model.parameters() == 671_026_419_200
    assert model.activated_parameters() == pytest.approx(37e9, rel=0.02)
    assert model.flops_per_token(4096) == pytest.approx(250e9, rel=0.005)


def test_expert_tensor_parallelism_splits_the_work_and_adds_its_collectives() -> None:
    """Twice the ranks per expert: half the width, twice the rows; the FLOP of all ranks together stay the same."""
    base = ["precision.recipe=bf16", "layout.tp=2", "layout.pp=8", "gpus=1024"]
    flops = {}
    for etp, ep in ((1, 64), (2, 32)):
        scenario = load_scenario("deepseek-v3-pretrain", [*base, f"layout.etp={etp}", f"layout.ep={ep}"])
        block = moe_layer(shapes_of(scenario))
        assert problems(block) == []
        ops = [op for op in block.ops() if op.name.startswith("moe.")]
        assert any(op.cls.startswith("comm.etp") for op in ops) == (etp > 1)
        flops[etp] = sum(op.flops for op in ops)
    assert flops[2] == flops[1]
