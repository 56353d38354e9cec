"""Recomputation of a dense layer by hand: what is kept, what runs again."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.layer import dense_layer, moe_layer
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Gemm
from simulator.results.simulate import simulate

T, H, KV, INNER, HEADS = 4096, 4096, 1024, 14336, 32
SMALL = ["gpus=1", "layout.tp=1", "layout.pp=1", "layout.zero=0", "batch.sequence_length=4096"]
SMALL += ["batch.microbatch_size=1", "batch.global_batch_size=1"]


def layer(stack: str, recompute: str) -> Block:
    scenario = load_scenario("llama-3-8b", [*SMALL, f"stack={stack}", f"layout.recompute={recompute}"])
    return dense_layer(shapes_of(scenario))


def again(block: Block) -> dict[str, int]:
    return {op.name: op.work.n for op in block.ops() if op.part == "R" and isinstance(op.work, Gemm)}


def test_of_seven_gemms_key_output_and_up_run_again() -> None:
    block = layer("torch", "selective")
    assert again(block) == {
        "attn.qkv.fwd.again": KV,
        "attn.o.fwd.again": H,
        "dense.up_gate.fwd.again": INNER,
    }
    assert not any(op.cls == "attn.fwd" and op.part == "R" for op in block.ops())
    assert block.flops("R") == 2 * T * H * (KV + H + INNER)
    assert problems(block) == []


def test_what_the_policy_keeps_by_hand() -> None:
    """Input, query, value, the core's output and statistics, gate and down."""
    kept = T * (H + H + KV + H + INNER + H) * 2 + T * HEADS * 4
    assert layer("torch", "selective").saved_bytes == kept
    assert layer("torch", "full").saved_bytes == T * H * 2
    assert layer("torch", "full").saved_bytes < kept < layer("torch", "none").saved_bytes


def test_other_software_recomputes_the_core() -> None:
    block = layer("megatron-core", "selective")
    assert not again(block)
    assert [op.name for op in block.ops() if op.part == "R"] == ["attn.core.recompute"]


@pytest.mark.parametrize("weighted", ["activation", "output"])
def test_all_to_alls_and_grouped_gemms_of_experts(weighted: str) -> None:
    """An expert's output is computed again only where the gate weights multiply it."""
    changes = ["stack=torch", "layout.recompute=selective", f"stack.gate_weights={weighted}"]
    scenario = load_scenario("deepseek-v3-bf16", changes)
    block = moe_layer(shapes_of(scenario))
    assert problems(block) == []
    again = [op for op in block.ops() if op.part == "R"]
    assert {"moe.up_gate.fwd.again"} <= {op.name for op in again}
    assert not any(op.stream == "comm" for op in again)
    assert any(op.name.startswith("moe.down") for op in again) is (weighted == "output")


def test_each_policy_costs_time_and_saves_memory() -> None:
    several = [*SMALL, "stack=torch", "batch.global_batch_size=16"]  # gradients are held when activations peak
    found = [
        simulate(load_scenario("llama-3-8b", [*several, f"layout.recompute={name}"]))
        for name in ("none", "selective", "full")
    ]
    steps = [one.metrics["step_time_s"] for one in found]
    peaks = [one.memory.peak for one in found]
    assert steps == sorted(steps)
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(steps)) == len(set(peaks)) == 3


@pytest.mark.parametrize("hardware", ["h800", "h100", "h200"])
def test_attention_kernels_differ_where_the_profile_has_both(hardware: str) -> None:
    def step(kernels: str) -> float:
        changes = [*SMALL, f"hardware={hardware}", "stack=torch", f"stack.attention={kernels}"]
        return simulate(load_scenario("llama-3-8b", changes)).metrics["step_time_s"]

    assert step("fa2") > 1.02 * step("cudnn")


def test_an_a100_has_one_kind_of_attention_kernels() -> None:
    def step(kernels: str) -> float:
        changes = [*SMALL, "hardware=a100", "stack=torch", f"stack.attention={kernels}"]
        return simulate(load_scenario("llama-3-8b", changes)).metrics["step_time_s"]

    assert step("fa2") == step("cudnn")


def test_a_card_of_less_power_takes_longer() -> None:
    slow = simulate(load_scenario("llama-3-8b", [*SMALL, "hardware=h100-hbm2e"])).metrics["step_time_s"]
    fast = simulate(load_scenario("llama-3-8b", [*SMALL, "hardware=h100"])).metrics["step_time_s"]
    assert slow > 1.1 * fast


def test_fsdp_copies_what_it_gathers_and_reduces() -> None:
    values = 2 * H + 2 * H * H + 2 * H * KV + 3 * H * INNER

    def copies(stack: str, zero: int) -> dict[str, float]:
        changes = [*SMALL, "gpus=2", "batch.global_batch_size=4", f"stack={stack}", f"layout.zero={zero}"]
        scenario = load_scenario("llama-3-8b", changes)
        block = build_blocks(shapes_of(scenario))["dense"]
        assert problems(block) == []
        assert any(op.name.endswith(".wgrad_add") for op in block.ops()) is (stack == "torch" and zero < 3)
        return {op.name: op.work.bytes for op in block.ops() if op.name.startswith("shard.")}  # type: ignore[union-attr]

    twice, reduced = values * (2 + 2), values * (2 + 4)
    expected = {"shard.copy_out.fwd": twice, "shard.copy_out.bwd": twice, "shard.copy_in": reduced}
    assert copies("torch", 3) == expected
    assert copies("torch", 1) == copies("megatron-core", 3) == {}


def test_a_result_says_where_its_kernels_come_from_and_what_power_costs() -> None:
    def warnings_of(*changes: str) -> str:
        return "\n".join(simulate(load_scenario("llama-3-8b", [*SMALL, *changes]), engine="longest-path").warnings)

    carried = warnings_of("hardware=h100-hbm2e")
    assert "kernels were measured on H100 SXM 80GB; what differs here, and is scaled by: hbm_bandwidth, tdp" in carried
    assert "at 494 W tensor kernels last 1." in carried
    assert "were measured on" not in warnings_of("hardware=h100")
    unlimited = warnings_of("hardware=h100", "hardware.gpu.tdp=2000")
    assert "scaled by: tdp" in unlimited
    assert "tensor kernels last" not in unlimited
