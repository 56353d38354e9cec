"""Weights, gradients and optimizer states against arithmetic done by hand for DeepSeek-V3."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from simulator.graph.parameters import held_by_block
from simulator.inputs import load_scenario
from simulator.memory.assumptions import Assumptions
from simulator.memory.buffers import queue_bytes
from simulator.memory.memory_report import MADE
from simulator.memory.optimizer_states import copied_ends, held_by_rank, made_in_backward, shards_of, state_items
from simulator.results.simulate import prepare, simulate
from simulator.spec.model import BlockKind

HIDDEN, VOCAB = 7168, 129280
ATTENTION = 7168 * 1536 + 1536 * 24576 + 7168 * 576 + 512 * 32768 + 16384 * 7168
LATENT_NORMS = 1536 + 512
SHARED = EXPERT = 3 * 7168 * 2048
GATE = 256 * 7168 + 256
MOE = ATTENTION + LATENT_NORMS + 2 * HIDDEN + SHARED + GATE
TWO_STAGES = (("moe",) * 4, ("moe",) * 4)  # a middle rank of DualPipe holds two stages


def sizes(scenario, stages=TWO_STAGES, **assumed):
    """Bytes of every item by name."""
    given = replace(Assumptions(), **assumed)
    return {item.name: item.bytes for item in state_items(stages, scenario, shards_of(scenario, 2), given)}


def test_a_middle_rank_of_v3_by_hand():
    found = sizes(load_scenario("deepseek-v3-pretrain"))
    dense, experts = 8 * MOE, 8 * 4 * EXPERT  # 256 experts over 64 ranks: 4 each
    narrow = 8 * (ATTENTION + SHARED) + experts
    assert found["gradients, FP32"] == 4 * (dense + experts)
    assert found["weights, FP8 with scales"] == narrow * (1 + 4 / 128**2)
    assert found["weights, BF16"] == 2 * (dense + experts - narrow)
    # 2048 / 16 = 128 data-parallel ranks and two copies of each stage; 2048 / (16 x 64) = 2 hold the same experts
    shard = dense / 256 + experts / 4
    assert found["master weights, FP32"] == pytest.approx(4 * shard)
    assert found["two moments, BF16"] == pytest.approx(2 * 2 * shard)


def test_the_ends_of_v3_by_hand():
    s = load_scenario("deepseek-v3-pretrain")
    ends = (("embed", "dense"), ("moe", "head", "mtp", "moe", "head"))
    dense_layer = ATTENTION + LATENT_NORMS + 2 * HIDDEN + 3 * HIDDEN * 18432
    head = HIDDEN + VOCAB * HIDDEN
    mtp = 2 * HIDDEN**2 + 2 * HIDDEN
    held = held_by_rank(ends, s, share_mtp=True)
    assert held.dense == VOCAB * HIDDEN + dense_layer + 2 * MOE + head + mtp + HIDDEN
    assert held.experts == 2 * 4 * EXPERT


def test_sharing_the_embedding_needs_both_ends_on_one_rank():
    s = load_scenario("deepseek-v3-pretrain")
    table = VOCAB * HIDDEN
    assert copied_ends(("embed", "moe", "head", "mtp", "moe", "head"), s.model, s.job, True).dense == 0
    assert copied_ends(("moe", "head", "mtp", "moe", "head"), s.model, s.job, True).dense == table
    assert copied_ends(("embed", "moe", "head", "mtp", "moe", "head"), s.model, s.job, False).dense == 2 * table


@pytest.mark.parametrize("kind", ["embed", "head"])
def test_embedding_and_head_are_never_in_fp8(kind):
    s = load_scenario("deepseek-v3-pretrain")
    assert held_by_block(kind, s.model, s.job).matrices == 0


@pytest.mark.parametrize("sequences", [128, 15360])
def test_more_zero_never_takes_more_of_what_it_shards(sequences):
    change = [f"batch.global_batch_size={sequences}", "layout.schedule=1f1b"]
    found = [sizes(load_scenario("deepseek-v3-pretrain", [*change, f"layout.zero={zero}"])) for zero in range(4)]
    master, gradients, weights = ("master weights, FP32", "gradients, FP32", "weights, FP8 with scales")
    assert found[1][master] < found[0][master]
    assert found[1][master] == found[3][master]
    assert found[0][gradients] == found[1][gradients]
    assert found[2][gradients] < found[1][gradients]
    assert found[3][weights] < found[2][weights]


def test_zero_2_and_3_by_hand():
    """A shard of everything that is sharded, and two whole blocks: the one that computes and its neighbour."""
    s = load_scenario("deepseek-v3-pretrain", ["layout.zero=3", "layout.schedule=1f1b"])
    found = sizes(s)
    experts, matrices = 4 * EXPERT, ATTENTION + SHARED
    shard = 8 * (MOE / 256 + experts / 4)
    assert found["gradients, FP32"] == pytest.approx(4 * shard)
    assert found["gradients before they are sharded"] == 2 * 4 * (MOE + experts)
    narrow = 8 * (matrices / 256 + experts / 4)
    assert found["weights, FP8 with scales"] == pytest.approx(narrow * (1 + 4 / 128**2))
    assert found["weights, BF16"] == pytest.approx(2 * (shard - narrow))
    whole = 2 * (MOE - matrices) + (matrices + experts) * (1 + 4 / 128**2)
    assert found["gathered weights"] == pytest.approx(2 * whole)
    paired = sizes(load_scenario("deepseek-v3-pretrain", ["layout.zero=3"]))  # a forward and a backward at once
    assert paired["gathered weights"] == pytest.approx(4 * whole)


def test_a_stage_of_one_block_has_one_in_flight():
    s = load_scenario("deepseek-v3-pretrain", ["layout.zero=2", "layout.schedule=1f1b"])
    assert sizes(s, (("moe",),))["gradients before they are sharded"] == 4 * (MOE + 4 * EXPERT)


def test_per_tensor_fp8_under_zero_3_casts_what_it_has_gathered_or_gathers_fp8():
    matrices, rest = ATTENTION + SHARED + 4 * EXPERT, MOE - ATTENTION - SHARED
    for kept, gathered in (("cached", 2 * (matrices + rest)), ("recipe", (1 + 1) * matrices + 2 * rest)):
        changes = ["layout.zero=3", "precision.recipe=fp8_tensor", f"precision.weights={kept}"]
        found = sizes(load_scenario("deepseek-v3-1f1b", changes), (("moe",),))
        assert found["gathered weights"] == pytest.approx(gathered)
        assert ("weights, FP8 in one layout" in found) is (kept == "recipe")
        assert "weights, FP8 in both layouts" not in found


def test_a_bf16_run_keeps_no_fp8_weights():
    found = sizes(load_scenario("deepseek-v3-bf16"))
    assert "weights, FP8 with scales" not in found
    assert found["weights, BF16"] * 2 == found["gradients, FP32"]


def test_average_of_weights_on_the_gpu_takes_a_shard_in_fp32():
    s = load_scenario("deepseek-v3-pretrain")
    found = sizes(s, ema_on_gpu=True)
    assert found["moving average of the weights"] == found["master weights, FP32"]


DENSE = ["hardware=h200", "gpus=8", "layout.tp=1", "layout.pp=1", "layout.zero=3", "batch.global_batch_size=16"]
"""Two microbatches of each rank: the gradients of the first are held while the second runs."""
LAYER = 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 2 * 4096
STATES = ("weights", "gradients", "optimizer")


def states(*overrides):
    """Bytes a parameter of what one of 8 ranks holds all the time of a layer of Llama 3 8B, times 8."""
    s = load_scenario("llama-3-8b", [*DENSE, *overrides])
    items = state_items((("dense",),), s, shards_of(s, 1), Assumptions())
    return sum(item.bytes for item in items if item.group in STATES) * 8 / LAYER


def test_fsdp2_holds_sixteen_bytes_a_parameter():
    """FP32 parameter, gradient and two moments; BF16 weights are there only while a layer is gathered."""
    assert states("stack=torch") == pytest.approx(16)
    assert states("stack=megatron-core") == pytest.approx(18)


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({"parameters": "bf16", "gradients": "bf16", "first_moment": "bf16", "second_moment": "bf16"}, 2 + 2 + 4),
        ({"kind": "adam8bit"}, 4 + 4 + 2 * (1 + 4 / 256)),
        ({"kind": "sgd"}, 4 + 4 + 4),
        ({"kind": "sgd", "first_moment": "none"}, 4 + 4),
        ({"kind": "none"}, 4 + 4),
        ({"kind": "muon"}, 4 + 4 + 4 + 4 * 2 * 4096 / LAYER),  # two norms have a second moment
    ],
)
def test_states_are_those_of_the_job(settings, each):
    assert states("stack=torch", *(f"optimizer.{key}={value}" for key, value in settings.items())) == pytest.approx(
        each
    )


ONE = "batch.global_batch_size=8"


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_gradients_of_one_microbatch_are_made_in_backward(zero):
    """PyTorch frees them after the update; Megatron's buffer stays."""
    changes = [*DENSE, ONE, f"layout.zero={zero}", "layout.recompute=none"]
    freed = load_scenario("llama-3-8b", [*changes, "stack=torch"])
    kept = load_scenario("llama-3-8b", [*changes, "stack=torch", "stack.gradients_zeroed=true"])
    one, other = (simulate(s, engine="longest-path").memory.ranks[0] for s in (freed, kept))
    made = made_in_backward(set(prepare(freed)[0].blocks), freed, shards_of(freed, 1))
    layers = 32 * made[BlockKind.DENSE] + made[BlockKind.EMBED] + made[BlockKind.HEAD]
    assert other.group("gradients") == pytest.approx(layers)
    at_peak = sum(item.bytes for item in one.items if item.name == MADE)
    assert one.group("gradients") == at_peak < 0.1 * layers  # activations peak where the loss is
    assert other.peak - one.peak == pytest.approx(layers - at_peak, rel=0.01)


def test_gradients_are_there_when_activations_are_not():
    """With tiny activations the peak is at the end of backward, where all gradients are."""
    changes = [*DENSE, ONE, "stack=torch", "batch.sequence_length=16", "layout.zero=1"]
    s = load_scenario("llama-3-8b", changes)
    rank = simulate(s, engine="longest-path").memory.ranks[0]
    assert rank.group("gradients") == pytest.approx(4 * 8_030_261_248, rel=1e-9)


def test_whole_weights_are_kept_in_addition_to_fp32_parameters_where_they_are_not_sharded():
    assert states("stack=torch", "layout.zero=2") == pytest.approx(8 * 2 + 4 + 4 + 8)


def test_all_to_all_queues_by_hand():
    nvlink, rdma = queue_bytes(14336, 64, 20, 288, 128)
    entry = 14336 + 128 * 16 + 8
    assert nvlink == 10 * 8 * 288 * entry
    assert rdma == 2 * 10 * 8 * 128 * entry
    assert queue_bytes(14336, 8, 20, 288, 128)[1] == 0.0  # one node: nothing crosses the NIC
    assert queue_bytes(14336, 64, 0, 288, 128) == (0.0, 0.0)


def test_every_assumption_is_printed():
    lines = Assumptions().lines()
    assert "slack of the allocator 3% of activations and temporaries" in lines
    for name, value in asdict(Assumptions()).items():
        other = not value if isinstance(value, bool) else 2 * value
        assert replace(Assumptions(), **{name: other}).lines() != lines, name
