"""Kimi K3: attention over earlier layers, a gate of latent attention, KDA's gate from the input, experts in a narrower
width under a norm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import block_kinds, build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Gemm, Op, Streaming
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario
from simulator.validation.public_models import public_model

H = 512
SMALL = {
    **{"model_type": "kimi_linear", "vocab_size": 1024, "hidden_size": H, "intermediate_size": 768},
    **{"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_act": "situ"},
    **{"q_lora_rank": 64, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16},
    **{"num_experts": 8, "num_experts_per_token": 2, "num_shared_experts": 2, "moe_intermediate_size": 64},
    **{"first_k_dense_replace": 1, "mla_use_output_gate": True, "attn_res_block_size": 2},
    **{"routed_expert_hidden_size": 128, "latent_moe_use_norm": True},
    "linear_attn_config": {
        **{"full_attn_layers": [2, 4], "kda_layers": [1, 3], "head_dim": 32, "num_heads": 8},
        **{"short_conv_kernel_size": 4, "use_full_rank_gate": True, "gate_lower_bound": -5.0},
    },
}
JOB = ("gpus=1", "layout.tp=1", "layout.pp=1", "layout.ep=1", "batch.global_batch_size=2", "batch.sequence_length=1024")
MOE, KDA = BlockKind("moe"), BlockKind("kda+moe")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _config(tmp_path_factory.mktemp("k3"))


def _config(folder: Path, **changes: object) -> str:
    (folder / "config.json").write_text(json.dumps(SMALL | changes))
    return f"model={folder}"


def training(model: str, *changes: str) -> Scenario:
    return load_scenario("llama-3-8b", [model, *JOB, *changes])


def ops(block: Block) -> dict[str, Op]:
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


def width(op: Op) -> int:
    assert isinstance(op.work, Gemm)
    return op.work.n


def moved(op: Op) -> float:
    assert isinstance(op.work, Streaming)
    return op.work.bytes


def test_parameters_are_those_of_the_report() -> None:
    """arXiv 2607.24653, table 1: 2.8T, 104B activated."""
    model = public_model("Kimi-K3")
    assert model is not None
    assert model.parameters() == pytest.approx(2.78e12, rel=1e-3)
    assert model.activated_parameters() == pytest.approx(104e9, rel=5e-3)


def test_parameters_by_hand(small: str) -> None:
    model = training(small).model
    kda, full = model.layer_parameters(KDA), model.layer_parameters(MOE)
    inner = 8 * 32
    # queries, keys, values, gate; strength of 8 heads; decays through 32; convolutions; decay, its bias, the norm
    assert kda.attention == H * (4 * inner + 8 + 32) + 32 * inner + inner * H + 3 * inner * 4 + 8 * (1 + 32) + 32
    latent = H * 64 + 64 * 8 * 24 + H * (32 + 8) + 32 * 8 * 32 + 8 * 16 * H + 64 + 32
    assert full.attention == latent + H * 8 * 16  # and the gate of the output
    assert full.latent == 2 * H * 128 + 128
    assert full.routed_expert == 8 * 3 * 128 * 64
    assert full.hyper_connections == 2 * 2 * H  # a norm and a vector before each branch
    assert model.parameter_tree().hyper_connections == 4 * 4 * H + 2 * H


def test_flops_are_those_of_the_model(small: str) -> None:
    job = training(small)
    blocks, kinds = build_blocks(shapes_of(job)), block_kinds(job.model)
    chunks = {kind: sum(op.flops for op in blocks[kind].ops() if op.cls.startswith("scan")) for kind in kinds}
    matrices = sum(
        op.flops for kind in kinds for op in blocks[kind].ops() if op.part == "F" and isinstance(op.work, Gemm)
    )
    # attention's and the state's own multiply-adds are not GEMMs of the graph; their form is tested where it is made
    model = job.model
    expected = sum(model.layer_matrix_macs(kind) for kind in model.layer_kinds()) + model.vocab_size * H
    assert matrices / 1024 == pytest.approx(2 * expected)
    assert [kind for kind, flops in chunks.items() if flops] == [BlockKind("kda+dense"), KDA]


def test_branches_read_the_blocks_before_them(small: str) -> None:
    """Four layers in blocks of two: 0 and 1, 1 and 1, 1 and 2, 2 and 2 earlier sums, by attention and the other part;
    the sum so far is one more."""
    job = training(small)
    assert job.model.earlier_blocks == pytest.approx((0 + 1 + 1 + 1 + 1 + 2 + 2 + 2) / 8)
    blocks = build_blocks(shapes_of(job))
    for kind in (MOE, KDA):
        found = ops(blocks[kind])
        assert moved(found["res.attn.fwd"]) == 1024 * H * 2 * (1.25 + 1 + 1)
        assert found["res.ffn.fwd"].saved == 1024 * (H * 2 + 2 * 2.25 * 4)
        assert {"res.attn.bwd", "res.ffn.bwd"} <= set(found)
    assert {"res.head.fwd", "res.head.bwd"} <= set(ops(blocks[BlockKind.HEAD]))
    assert job.model.sent_width == H * (1 + 1.25)


def test_gates_come_from_the_input(small: str) -> None:
    blocks = build_blocks(shapes_of(training(small)))
    latent, kda = ops(blocks[MOE]), ops(blocks[KDA])
    assert width(latent["attn.gate_proj.fwd"]) == 8 * 16
    assert {"attn.gate.fwd", "attn.gate.bwd", "attn.gate_proj.dgrad", "attn.gate_proj.wgrad"} <= set(latent)
    assert width(kda["mixer.in.fwd"]) == 4 * 8 * 32 + 8 + 32
    assert "mixer.gate.fwd" not in kda
    assert width(kda["mixer.decay.fwd"]) == 8 * 32
    assert latent["norm.latent.fwd"].saved == 1024 * (128 * 2 + 4)
    assert "norm.latent.bwd" in latent


@pytest.mark.parametrize("job", ["llama-3-8b-decode", "llama-3-8b-prefill"])
def test_serving_adds_mixes_and_norms_in_one_kernel(job: str, small: str) -> None:
    found = load_scenario(job, [small])
    layer = ops(build_blocks(serving_shapes(found))[MOE])
    tokens = serving_shapes(found).tokens
    assert moved(layer["norm.attn"]) == tokens * H * 2 * (1.25 + 2 + 2)
    order = list(layer)
    assert order.index("attn.gate.fwd") < order.index("attn.o")
    assert order.index("norm.latent") < order.index("moe.latent_out")
    assert simulate(found, engine="longest-path").metrics["step_time_s"] > 0


def test_partial_sums_travel_once_before_the_norm(small: str) -> None:
    split = load_scenario("llama-3-8b-decode", [small, "gpus=2", "layout.tp=2", "layout.ep=2"])
    order = list(ops(build_blocks(serving_shapes(split))[MOE]))
    reduces = [name for name in order if name.startswith("moe.") and name.endswith("all_reduce")]
    assert reduces == ["moe.all_reduce"]
    assert order.index("moe.all_reduce") < order.index("norm.latent")


@pytest.mark.parametrize(
    "change",
    [("layout.recompute=full",), ("precision.recipe=fp8",), ('layout.recompute=["norm"]',), ("gpus=2", "layout.pp=2")],
)
def test_steps_run_under_every_policy(change: tuple[str, ...], small: str) -> None:
    job = training(small, *change)
    assert all(problems(block) == [] for block in build_blocks(shapes_of(job)).values())
    assert simulate(job, engine="longest-path").metrics["step_time_s"] > 0


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.norm_placement=both", "norm_placement"),
        ("model.num_nextn_predict_layers=1", "attn_res_block_size"),
        ("model.linear_gate_rank=0", "linear_gate_rank"),
    ],
)
def test_what_cannot_be_is_one_line(override: str, key: str, small: str) -> None:
    with pytest.raises(InputError, match=key) as error:
        training(small, override)
    assert "\n" not in str(error.value)
