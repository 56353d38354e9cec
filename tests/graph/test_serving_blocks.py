"""Blocks of serving steps: well formed, and with the FLOP and bytes that can be worked out by hand."""

from __future__ import annotations

import pytest

from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel, lower
from simulator.engine.tasks import COMM, SYNC
from simulator.graph.block import problems
from simulator.graph.serving.shapes import ServingShapes, chosen_experts, serving_shapes
from simulator.inputs import load_scenario
from simulator.memory.serving import kv_bytes_per_token
from simulator.ops import AllToAll, Attention, Collective, DecodeAttention, Gemm, Op, Work
from simulator.results.serving_metrics import model_flops
from simulator.results.simulate import prepare
from simulator.spec.model import BlockKind
from tests.serving_jobs import SERVING


def built(job: str, *overrides: str) -> PricedModel:
    return prepare(load_scenario(job, overrides))[0]


def ops(model: PricedModel, kind: BlockKind) -> list[Op]:
    return list(model.blocks[kind].ops())


def ops_named(model: PricedModel, kind: BlockKind, name: str) -> Work:
    return next(op.work for op in ops(model, kind) if op.name == name)


DECODE = "deepseek-v3-decode-ep128"
ALONE = ("serving.two_batch_overlap=false",)


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


def test_popular_experts_leave_others_idle_in_small_batches() -> None:
    def active(*more: str) -> int:
        own = ("model=qwen3-30b-a3b", "stack=vllm", "layout.etp=1", "serving.sequences=16", *more)
        return serving_shapes(load_scenario("llama-3-8b-decode", own)).active

    hot = ("routing.kind=hot", "routing.hot_expert=16")  # which every token chooses: 1 + 127 (1 - (1 - 7/127)^16)
    assert active() == round(128 * (1 - (15 / 16) ** 16))
    assert active(*hot) == round(1 + 127 * (1 - (1 - 7 / 127) ** 16))
    spread = [active("routing.kind=sampled", f"routing.cv={cv}") for cv in (0.1, 0.7, 1.4)]
    assert active() >= spread[0] > spread[1] > spread[2] > 40
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


def test_a_step_with_drafts_verifies_them_and_runs_the_module_once_for_each() -> None:
    """Two drafts: the main model sees 3 tokens of each sequence, the module first those 3, then one."""
    plain, drafting = built(DECODE, *ALONE), built(DECODE, *ALONE, "serving.mtp_depth=2")
    assert drafting.stages[0] == (*plain.stages[0], BlockKind.MTP, BlockKind.DRAFT)
    core = {kind: ops_named(drafting, kind, "attn.core") for kind in (BlockKind.MOE, BlockKind.MTP, BlockKind.DRAFT)}
    assert [work.q_len for work in core.values() if isinstance(work, DecodeAttention)] == [3, 3, 1]
    projections = {kind: ops_named(drafting, kind, "mtp.proj") for kind in (BlockKind.MTP, BlockKind.DRAFT)}
    sizes = [(work.m, work.n, work.k) for work in projections.values() if isinstance(work, Gemm)]
    assert sizes == [(3 * 128, 7168, 2 * 7168), (128, 7168, 2 * 7168)]
    heads = [ops_named(drafting, kind, "head") for kind in (BlockKind.HEAD, BlockKind.MTP, BlockKind.DRAFT)]
    assert [work.m for work in heads if isinstance(work, Gemm)] == [3 * 128, 128, 128]
    assert "mtp.verify" in [op.name for op in ops(drafting, BlockKind.HEAD)]
    dispatched = ops_named(drafting, BlockKind.MOE, "moe.dispatch.a2a")
    assert isinstance(dispatched, AllToAll)
    assert dispatched.tokens == 3 * 128


def test_a_prefill_fills_the_cache_of_the_module() -> None:
    found = built("deepseek-v3-prefill-ep32", "serving.mtp_depth=1")
    assert found.stages[0][-1] == BlockKind.MTP
    layer, module = (ops_named(found, kind, "attn.core") for kind in (BlockKind.MOE, BlockKind.MTP))
    assert layer == module


def test_a_chunk_of_a_prompt_runs_along_with_decode() -> None:
    """GEMMs see its tokens, too; its attention is a kernel of its own, over what was cached before and itself."""
    plain = built("llama-3-8b-decode")
    mixed = built("llama-3-8b-decode", "serving.prefill_tokens=512", "serving.prefill_context=1024")
    qkv = [ops_named(model, BlockKind.DENSE, "attn.qkv") for model in (plain, mixed)]
    assert [work.m for work in qkv if isinstance(work, Gemm)] == [64, 64 + 512]
    chunk, cached = (ops_named(mixed, BlockKind.DENSE, name) for name in ("attn.chunk", "attn.chunk.cached"))
    assert isinstance(chunk, Attention)
    assert isinstance(cached, Attention)
    assert (chunk.seq_q, chunk.seq_kv, chunk.causal) == (512, 512, True)
    assert (cached.seq_q, cached.seq_kv, cached.causal) == (512, 1024, False)
    logits = ops_named(mixed, BlockKind.HEAD, "head")
    assert isinstance(logits, Gemm)
    assert logits.m == 64 + 1
    total = sum(mixed.blocks[kind].flops() for kind in mixed.stages[0])
    assert total == pytest.approx(model_flops(mixed.scenario), rel=2e-3)


def test_a_chunk_under_latent_attention_is_expanded() -> None:
    mixed = built(DECODE, *ALONE, "serving.prefill_tokens=256", "serving.prefill_context=512")
    expand, absorbed = (ops_named(mixed, BlockKind.MOE, name) for name in ("attn.chunk.kv_b", "attn.w_uk"))
    assert isinstance(expand, Gemm)
    assert isinstance(absorbed, Gemm)
    assert expand.m == 256 + 512
    assert absorbed.m == 128 * 128
    total = sum(mixed.blocks[kind].flops() for kind in mixed.stages[0])
    assert total == pytest.approx(model_flops(mixed.scenario), rel=2e-3)


def test_copies_of_experts_are_slots_that_tokens_choose_from() -> None:
    """The report's decode: 256 experts, 32 copies and the shared expert 32 times, one a GPU; 9 of them for a token."""
    found = built(
        DECODE, *ALONE, "gpus=320", "layout.ep=320", "serving.redundant_experts=32", "serving.shared_slots=32"
    )
    assert isinstance(found.shapes, ServingShapes)
    assert (found.shapes.local_experts, found.shapes.gate.experts, found.shapes.gate.top_k) == (1, 320, 9)
    up = ops_named(found, BlockKind.MOE, "moe.up_gate")
    assert isinstance(up, Gemm)
    assert (up.groups, up.m) == (1, 128 * 9)  # each rank brings 128 tokens and gets 9 copies of each back
    names = [op.name for op in ops(found, BlockKind.MOE)]
    assert not any(name.startswith("shared") or name == "moe.shared.sum" for name in names)


@pytest.mark.parametrize("microbatches", [False, True])
def test_lengths_of_sequences_reach_the_kernel(microbatches: bool) -> None:
    found = built(
        DECODE, "serving.context={mean=4096, cv=0.5}", f"serving.two_batch_overlap={str(microbatches).lower()}"
    )
    core = ops_named(found, BlockKind.MOE, "attn.core")
    assert isinstance(core, DecodeAttention)
    assert len(core.lengths) == (64 if microbatches else 128)
    assert core.keys == pytest.approx(core.batch * 4097, rel=0.01)
    assert max(core.lengths) > 2 * 4097


def test_low_latency_kernels_hold_sms_at_both_ends() -> None:
    found = {op.name: op for op in ops(built(DECODE), BlockKind.MOE)}
    ends = ["moe.dispatch.send", "moe.dispatch.receive", "moe.combine.send", "moe.combine.receive"]
    assert [found[name].stream for name in ends] == ["compute"] * 4
    assert found["moe.dispatch.a2a"].after == ("moe.dispatch.send",)
    assert found["moe.dispatch.receive"].after == ("moe.dispatch.a2a",)
    assert found["moe.combine.a2a"].after == ("moe.combine.send",)
    assert found["moe.combine.receive"].after == ("moe.combine.a2a",)
    assert not any(name in {op.name for op in ops(built("deepseek-v3-prefill-ep32"), BlockKind.MOE)} for name in ends)


def test_tokens_of_all_ranks_are_gathered_without_all_to_all_kernels() -> None:
    """Attention data-parallel, experts over all ranks: each rank's experts see the tokens of all eight."""
    found = built("qwen3-235b-decode", "stack=vllm", "layout.tp=1", "layout.ep=8", "serving.sequences=16")
    gathered, scattered, up = (
        ops_named(found, BlockKind.MOE, name) for name in ("moe.gather", "moe.scatter", "moe.up_gate")
    )
    assert isinstance(gathered, Collective)
    assert isinstance(scattered, Collective)
    assert isinstance(up, Gemm)
    assert (gathered.kind, gathered.bytes, gathered.ranks) == ("all_gather", 8 * 16 * 4096 * 2, 8)
    assert (scattered.kind, scattered.bytes, scattered.ranks) == ("reduce_scatter", 8 * 16 * 4096 * 2, 8)
    assert up.m == 8 * 16 * 8 // 8  # rows: tokens x 8 experts over 8 ranks


def test_collectives_of_one_microbatch_do_not_queue_behind_all_to_alls_of_the_other() -> None:
    model, schedule = prepare(load_scenario("deepseek-v3-decode"))
    tasks = lower(model, schedule)
    lanes = {
        kind: {lane for lane, one in zip(tasks.lane, tasks.sequence, strict=True) if one.kind == kind}
        for kind in ("collective", "all_to_all")
    }
    assert lanes == {"collective": {SYNC}, "all_to_all": {COMM}}
    timeline = longest_path(tasks)
    spans = [
        [(timeline.start[at], timeline.end[at]) for at, one in enumerate(tasks.sequence) if one.kind == kind]
        for kind in ("collective", "all_to_all")
    ]
    assert any(start < other < end for start, end in spans[1] for other, _ in spans[0])  # both at once


def test_kernels_of_few_bytes_are_of_the_classes_measured_so() -> None:
    """The same ops in a step of few tokens and of many: the first are below the least size of the usual classes."""
    few = {op.name: op.cls for op in ops(built("llama-3-8b-decode", "serving.sequences=1"), BlockKind.DENSE)}
    many = {op.name: op.cls for op in ops(built("llama-3-8b-prefill"), BlockKind.DENSE)}
    changed = {(many[name], cls) for name, cls in few.items() if name in many and many[name] != cls}
    assert {("elem.unvectorized", "elem.small"), ("norm.fwd", "norm.small")} <= changed
    assert "norm.fwd" not in few.values()
    assert "norm.small" not in many.values()


R1 = ("stack=sglang", "layout.tp=8", "layout.etp=8", "layout.ep=1", "serving.sequences=4", "serving.context=1000")


def fused(*kinds: str) -> dict[str, Op]:
    model = built("deepseek-v3-decode-h200", *R1, f"stack.serving.fused={list(kinds)}")
    return {op.name: op for op in ops(model, BlockKind.MOE)}


def test_what_engines_fuse_is_one_kernel() -> None:
    """Each fusion takes the kernels away that it is made of, and nothing else."""
    apart = fused()
    gone = {
        "latent_norms": {"norm.q_lora", "norm.kv_lora"},
        "rope_write": {"attn.kv.write"},
        "reduce_norm": {"norm.attn", "norm.ffn"},
        "reduce_norm_moe": {"norm.attn", "norm.ffn"},
    }
    for kind, names in gone.items():
        assert set(apart) - set(fused(kind)) == names
    assert set(fused("latent_norms")) - set(apart) == {"norm.latents"}


def test_a_fused_shared_expert_is_one_more_group_that_every_token_chooses() -> None:
    apart, joined = fused(), fused("shared_expert")
    assert not any(name.startswith(("shared.", "moe.shared")) for name in joined)
    for name in ("moe.up_gate", "moe.down"):
        one, more = apart[name].work, joined[name].work
        assert isinstance(one, Gemm)
        assert isinstance(more, Gemm)
        assert (more.groups, more.m, more.n, more.k) == (one.groups + 1, one.m + 4, one.n, one.k)
    shared = [apart["shared.up_gate"].work, apart["shared.down"].work]
    assert sum(op.work.flops for op in joined.values() if isinstance(op.work, Gemm)) == sum(
        op.work.flops for op in apart.values() if isinstance(op.work, Gemm)
    )
    assert all(isinstance(work, Gemm) and work.m == 4 for work in shared)


def test_an_fp8_cache_is_half_as_large_and_has_kernels_of_its_own() -> None:
    """Where its kernels were measured they price it; latents in FlashMLA's format keep scales and a rotary part."""
    h200 = ("hardware=h200", "stack=trtllm")
    model, plain = (built("llama-3-70b-decode", *h200, f"serving.kv_dtype={kind}") for kind in ("fp8", "bf16"))
    core, wide = (next(op for op in ops(one, BlockKind.DENSE) if op.name == "attn.core") for one in (model, plain))
    assert (core.cls, wide.cls) == ("attn.decode.fp8@trtllm", "attn.decode@trtllm")
    assert isinstance(core.work, DecodeAttention)
    assert isinstance(wide.work, DecodeAttention)
    assert core.work.kv_bytes == wide.work.kv_bytes / 2
    assert model.price(core).cost.calibrated
    latents = load_scenario("deepseek-v3-decode-ep128", ["serving.kv_dtype=fp8_ds_mla"])
    assert kv_bytes_per_token(latents) == pytest.approx(61 * 656)


def test_norms_are_not_fused_where_nothing_is_reduced_or_much_is() -> None:
    alone = built("deepseek-v3-decode-h200", *R1, "layout.tp=1", "layout.etp=1", "layout.ep=8")
    assert "norm.attn" in {op.name for op in ops(alone, BlockKind.MOE)}
    many = built("deepseek-v3-decode-h200", *R1, "workload=prefill", "serving.tokens=1024", "serving.cuda_graphs=false")
    assert "norm.attn" in {op.name for op in ops(many, BlockKind.MOE)}  # 4 x 1024 tokens


def test_a_replayed_step_waits_for_the_gap_of_a_graph() -> None:
    """Each kernel waits for `graph_gap` where the step is replayed, for `kernel_gap` where the host issues it."""
    scenario = load_scenario("llama-3-8b-decode")
    issued = load_scenario("llama-3-8b-decode", ["serving.cuda_graphs=false"])
    assert scenario.stack.serving is not None
    assert scenario.kernel_gap == scenario.stack.serving.graph_gap < issued.kernel_gap == issued.stack.kernel_gap
