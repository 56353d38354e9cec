"""Blocks of serving steps: well formed, and with the FLOP and bytes that can be worked out by hand."""

from __future__ import annotations

import pytest

from simulator.engine.lower import PricedModel
from simulator.graph.block import problems
from simulator.graph.serving.shapes import ServingShapes, chosen_experts
from simulator.inputs import load_scenario
from simulator.ops import AllToAll, Collective, DecodeAttention, Gemm, Op
from simulator.results.serving_metrics import model_flops
from simulator.results.simulate import prepare
from simulator.spec.model import BlockKind
from tests.serving_jobs import SERVING


def built(job: str, *overrides: str) -> PricedModel:
    return prepare(load_scenario(job, overrides))[0]


def ops(model: PricedModel, kind: BlockKind) -> list[Op]:
    return list(model.blocks[kind].ops())


@pytest.mark.parametrize("job", SERVING)
def test_blocks_are_well_formed_and_forward_only(job: str) -> None:
    for block in built(job).blocks.values():
        assert problems(block) == []
        assert block.backward == ()
        assert all(op.part == "F" and op.saved == 0.0 for op in block.ops())


@pytest.mark.parametrize("job", ["llama-3-8b-decode", "llama-3-8b-prefill", "llama-3-70b-decode"])
def test_flop_of_the_graph_are_those_of_the_model(job: str) -> None:
    model = built(job)
    scenario = model.scenario
    total = sum(model.blocks[kind].flops() for kind in model.stages[0])
    assert total * scenario.job.layout.tp == pytest.approx(model_flops(scenario), rel=2e-3)


@pytest.mark.parametrize("microbatches", [False, True])
def test_flop_of_a_decode_step_with_latent_attention(microbatches: bool) -> None:
    model = built("deepseek-v3-decode-ep128", f"serving.two_batch_overlap={str(microbatches).lower()}")
    total = sum(model.blocks[kind].flops() for kind in model.stages[0]) * (2 if microbatches else 1)
    assert total == pytest.approx(model_flops(model.scenario), rel=1e-3)


def test_absorbed_decode_attends_over_the_latents() -> None:
    model = built("deepseek-v3-decode-ep128", "serving.two_batch_overlap=false")
    core = next(op.work for op in ops(model, BlockKind.MOE) if isinstance(op.work, DecodeAttention))
    assert (core.heads, core.kv_heads, core.d_qk, core.d_v, core.kv_len) == (128, 1, 576, 512, 4097)
    assert core.kv_bytes == 128 * 4097 * 576 * 2
    assert core.kv_bytes / 128 / 4097 * 61 == 70272


def test_an_fp8_cache_halves_what_is_read() -> None:
    wide, narrow = (
        next(
            op.work
            for op in ops(built("llama-3-8b-decode", f"serving.kv_dtype={dtype}"), BlockKind.DENSE)
            if isinstance(op.work, DecodeAttention)
        )
        for dtype in ("bf16", "fp8")
    )
    assert narrow.kv_bytes == wide.kv_bytes / 2


def test_decode_travels_by_low_latency_kernels_and_prefill_by_normal_ones() -> None:
    for job, low_latency, notified in (("deepseek-v3-decode-ep128", True, 0), ("deepseek-v3-prefill-ep32", False, 2)):
        found = ops(built(job), BlockKind.MOE)
        travels = [op.work for op in found if isinstance(op.work, AllToAll)]
        assert [(t.direction, t.low_latency) for t in travels] == [("dispatch", low_latency), ("combine", low_latency)]
        assert travels[0].bytes_per_token == 7168 + 4 * 56
        assert travels[1].bytes_per_token == 2 * 7168
        assert sum(op.cls == "comm.notify" for op in found) == notified


def test_decode_runs_masked_gemms_on_the_mean_rows() -> None:
    found = ops(built("deepseek-v3-decode-ep128", "serving.two_batch_overlap=false"), BlockKind.MOE)
    up = next(op.work for op in found if op.name == "moe.up_gate")
    assert isinstance(up, Gemm)
    assert (up.form, up.groups, up.m, up.n, up.k) == ("masked", 2, 512, 4096, 7168)  # 128 x 128 x 8 / 256


def test_few_tokens_wake_few_experts() -> None:
    assert chosen_experts(1, 128, 8) == pytest.approx(8)
    assert chosen_experts(1e6, 128, 8) == pytest.approx(128)
    one = built("llama-3-8b-decode", "model=qwen3-235b-a22b", "model.num_hidden_layers=2", "serving.sequences=1")
    assert isinstance(one.shapes, ServingShapes)
    assert one.shapes.active == 8
    grouped = next(op.work for op in ops(one, BlockKind.MOE) if op.name == "moe.up_gate")
    assert isinstance(grouped, Gemm)
    assert (grouped.form, grouped.groups, grouped.m) == ("grouped", 8, 8)


def test_a_cached_prefix_is_attended_to_but_not_computed() -> None:
    fresh, cached = (
        built("llama-3-8b-prefill", "serving.tokens=2048"),
        built("llama-3-8b-prefill", "serving.tokens=2048", "serving.context=6144"),
    )
    extra = cached.blocks[BlockKind.DENSE].flops() - fresh.blocks[BlockKind.DENSE].flops()
    assert extra == 2.0 * 32 * 2048 * 6144 * (128 + 128)


def test_tensor_parallelism_adds_up_twice_a_layer() -> None:
    found = ops(built("llama-3-70b-decode"), BlockKind.DENSE)
    sums = [op.work for op in found if isinstance(op.work, Collective)]
    assert [one.kind for one in sums] == ["all_reduce", "all_reduce"]
    assert {one.bytes for one in sums} == {64 * 8192 * 2}
    scattered = ops(built("llama-3-70b-decode", "layout.sp=true"), BlockKind.DENSE)
    kinds = [op.work.kind for op in scattered if isinstance(op.work, Collective)]
    assert kinds == ["all_gather", "reduce_scatter"] * 2
