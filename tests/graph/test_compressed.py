"""DeepSeek-V4: compressed attention, hyper-connections, experts by table; parameters, cache, ops, parallelism."""

from __future__ import annotations

import pytest

from simulator.dtypes import FP8_MATRIX, MXFP4
from simulator.graph.block import Block, problems
from simulator.graph.parameters import held_by_block
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_model, load_scenario
from simulator.inputs.check import check
from simulator.memory.serving import kv_cache_bytes, memory_of_serving
from simulator.ops import Attention, Collective, DecodeAttention, Gemm, Op, PointToPoint, Streaming
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind, Mixer
from simulator.spec.scenario import Scenario

PRO, FLASH = "deepseek-v4-pro", "deepseek-v4-flash"
CSA, HCA = BlockKind("csa+moe"), BlockKind("hca+moe")
SMALL = (
    f"model={FLASH}",
    "model.num_hidden_layers=4",
    'model.layer_types=["sliding","csa","hca","csa"]',
    "model.num_hash_layers=1",
)
GPUS = ("gpus=16", "layout.pp=2", "layout.ep=8", "layout.schedule=1f1b", "batch.global_batch_size=16")
LENGTH = 4096


def training(*overrides: str) -> Scenario:
    return load_scenario("deepseek-v3-1f1b", [*SMALL, *GPUS, *overrides])


def decoding(*overrides: str) -> Scenario:
    return load_scenario("deepseek-v3-decode-ep128", [*SMALL, *overrides])


def ops_of(job: Scenario, kind: BlockKind = CSA) -> dict[str, Op]:
    shapes = serving_shapes(job) if job.workload.serves else shapes_of(job)
    block: Block = build_blocks(shapes)[kind]
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


@pytest.mark.parametrize(("name", "total", "active"), [(PRO, 1.6e12, 49e9), (FLASH, 284e9, 13e9)])
def test_parameters_round_to_the_published(name: str, total: float, active: float) -> None:
    """1.6T with 49B activated, and 284B with 13B (model cards)."""
    model = load_model(name)
    unit = 1e11 if total > 1e12 else 1e9
    assert round(model.parameters() / unit) == round(total / unit)
    assert round(model.activated_parameters() / 1e9) == round(active / 1e9)


def test_layers_of_the_published_file() -> None:
    kinds = load_model(PRO).layer_kinds()
    assert [kinds.count(BlockKind(kind)) for kind in ("hca+hash", "csa+hash", "csa+moe", "hca+moe")] == [2, 1, 29, 29]
    assert load_model(PRO).layer_kind(61) == "sliding+moe"  # of the MTP module
    assert load_model(FLASH).layer_kinds()[0] == "sliding+hash"


def test_a_million_tokens_take_the_cache_that_is_published() -> None:
    """9.62 GiB in BF16, indexer's keys included (blog.vllm.ai, 2026-04): here those are FP8, with a scale each."""
    model, tokens = load_model(PRO), 2**20
    found = model.cache_bytes(tokens)
    in_bf16 = sum(tokens // 4 * (2 * 128 - 132) for kind in model.layer_kinds() if kind.mixer is Mixer.CSA)
    assert round((found + in_bf16) / 2**30, 2) == 9.62
    v32 = load_model("deepseek-v3.2").cache_bytes(tokens, 1.0)
    assert model.cache_bytes(tokens, 1.0) / v32 == pytest.approx(0.11, abs=0.02)  # "10 %" with keys of 4 bits


def test_flop_of_a_token_at_a_million() -> None:
    """27 % of DeepSeek-V3.2's with experts in 4 bits counted as they are multiplied (model card)."""
    flops = {}
    for name in (PRO, "deepseek-v3.2"):
        model, tokens = load_model(name), 2**20
        macs = 0.0
        for kind in model.layer_kinds():
            own = model.of_kind(kind)
            pair = 2 * 512 + 64 if own.is_mla else 2 * own.qk_head_dim
            macs += model.layer_matrix_macs(kind) + own.num_attention_heads * pair * own.keys_of_newest(tokens)
            macs += own.index_macs(tokens // (own.compress_rate or 1))
        flops[name] = macs
    assert flops[PRO] / flops["deepseek-v3.2"] == pytest.approx(0.27, abs=0.05)


def test_the_core_reads_the_window_and_the_chosen_entries() -> None:
    core = ops_of(training())["attn.core.fwd"].work
    assert isinstance(core, Attention)
    entries, chosen, window = LENGTH // 4, 512, 128
    pairs = LENGTH * window - window**2 / 2 + 4 * (entries * chosen - chosen**2 / 2)
    assert core.flops == 64 * pairs * 2 * (512 + 512)
    heavy = ops_of(training(), HCA)["attn.core.fwd"].work
    assert isinstance(heavy, Attention)
    assert heavy.flops == 64 * (LENGTH * window - window**2 / 2 + LENGTH * (LENGTH // 128) / 2) * 2 * 1024


def test_a_window_alone_costs_what_it_computes() -> None:
    core = ops_of(training(), BlockKind("sliding+hash"))["attn.core.fwd"].work
    assert isinstance(core, Attention)
    assert core.flops == 64 * (LENGTH * 128 - 128**2 / 2) * 2 * 1024
    assert "attn.compress.fwd" not in ops_of(training(), BlockKind("sliding+hash"))


def test_sequences_shorter_than_an_entry_have_none() -> None:
    short = training("batch.sequence_length=64", "layout.recompute=none")
    core = ops_of(short, HCA)["attn.core.fwd"].work
    assert isinstance(core, Attention)
    assert core.entries == 0
    assert simulate(short, engine="longest-path").metrics["step_time_s"] > 0


def test_experts_by_table_are_not_chosen() -> None:
    by_table, by_score = ops_of(training(), BlockKind("sliding+hash")), ops_of(training())
    assert "router.table" in by_table
    assert not any(name.startswith("router.top") for name in by_table)
    assert any(name.startswith("router.top") for name in by_score)
    model = training().model
    one, other = (model.layer_parameters(BlockKind(f"csa+{ffn}")).router for ffn in ("moe", "hash"))
    assert one - other == 256  # the correction bias


def test_streams_travel_between_stages() -> None:
    """Four streams of a token are sent, not one."""
    from simulator.engine.lower import message
    from simulator.results.simulate import prepare

    built, _ = prepare(training())
    work = message(built, 0, 1).ops[0].op.work
    assert isinstance(work, PointToPoint)
    assert work.bytes == LENGTH * 4 * 4096 * 2


def test_hyper_connections_by_hand() -> None:
    """Per branch (2 + n) n weights of all n streams, a bias each, and three scales; and four before the head."""
    model = load_model(FLASH)
    assert model.layer_parameters(CSA).hyper_connections == 2 * (24 * 4 * 4096 + 24 + 3)
    assert model.collapse_parameters == 4 * 4 * 4096 + 4 + 1
    work = ops_of(training())["hc.attn.weights.fwd"].work
    assert isinstance(work, Gemm)
    assert (work.m, work.n, work.k) == (LENGTH, 24, 4 * 4096)


def test_steps_run_under_every_recipe_and_policy() -> None:
    times = []
    for recipe in ("bf16", "fp8"):
        for policy in ("none", "deepseek", "full"):
            job = training(f"precision.recipe={recipe}", f"layout.recompute={policy}")
            assert check(job) == []
            times.append(simulate(job, engine="longest-path").metrics["step_time_s"])
    assert times[2] > times[1] > times[0]


def test_tensor_parallel_ranks_share_heads_and_hold_what_makes_keys() -> None:
    job = training("layout.tp=4", "layout.ep=4", "layout.sp=true")
    ops = ops_of(job)
    assert {name for name, op in ops.items() if isinstance(op.work, Collective)} >= {"attn.o.reduce_scatter"}
    q, first, compress = (ops[f"attn.{name}.fwd"].work for name in ("q_b", "qkv_a", "compress"))
    assert isinstance(q, Gemm)
    assert isinstance(first, Gemm)
    assert isinstance(compress, Gemm)
    assert (q.n, first.n, compress.n) == (64 * 512 // 4, 1024 + 512, 4 * 512)
    model = job.model
    whole, parts = (held_by_block(CSA, model, training(f"layout.tp={tp}").job).dense for tp in (1, 4))
    replicated = 4096 * (1024 + 512 + 4 * 512 + 4 * 128 + 64) + 1024 * 64 * 128
    shared = replicated + 2 * 4096 + 256 * 4097 + model.layer_parameters(CSA).hyper_connections
    assert parts == pytest.approx((whole - shared) / 4 + shared, abs=4)


def test_groups_of_heads_are_not_split() -> None:
    job = load_scenario("deepseek-v3-1f1b", [*SMALL, *GPUS, "layout.tp=8", "layout.ep=2", "model.o_groups=4"])
    assert [p.message for p in check(job) if p.key == "layout.tp"] == [
        "does not divide groups of heads that are projected together 4"
    ]


def test_context_parallel_ranks_gather_entries_and_windows_only() -> None:
    job = training("layout.cp=2", "layout.ep=4", "layout.cp_kind=all_gather")
    work = ops_of(job)["attn.kv.transfer"].work
    assert isinstance(work, Collective)
    assert work.bytes == 2 * (LENGTH // 4 * (512 + 128) + 2 * 128 * 512)
    rings = [p.message for p in check(training("layout.cp=2", "layout.ep=4")) if p.key == "layout.cp_kind"]
    assert len(rings) >= 1
    assert "rings have no kernels" in rings[0]


@pytest.mark.parametrize(("context", "csa", "hca"), [(1023, 128 + 256, 128 + 8), (40959, 128 + 512, 128 + 320)])
def test_decode_reads_the_window_and_the_entries(context: int, csa: int, hca: int) -> None:
    job = decoding(f"serving.context={context}", "serving.two_batch_overlap=false")
    for kind, keys in ((CSA, csa), (HCA, hca)):
        core = ops_of(job, kind)["attn.core"].work
        assert isinstance(core, DecodeAttention)
        assert (core.kv_len, core.kv_heads, core.d_qk, core.latent) == (keys, 1, 512, True)
    index = ops_of(job)["attn.index"].work
    assert isinstance(index, DecodeAttention)
    assert (index.kv_len, index.heads, index.kv_dtype) == ((context + 1) // 4, 64, "fp8")


def test_a_sequence_holds_its_window_its_entries_and_what_waits_for_one() -> None:
    """One layer of each kind, and one more of csa."""
    job = decoding("serving.context=8191", "serving.kv_dtype=fp8")
    shapes = serving_shapes(job)
    window = 4 * 128 * 512
    csa = 2 * (2048 * (512 + 128 + 4) + 8 * 2 * 2 * (512 + 128) * 4)
    hca = 64 * 512 + 128 * 2 * 512 * 4
    assert kv_cache_bytes(job, shapes) == 128 * (window + csa + hca)


def test_experts_in_four_bits_are_held_and_read_so() -> None:
    """Per rank two of 256 experts in four layers."""
    plain, narrow = (decoding(f"serving.expert_weights={kind}") for kind in ("recipe", "mxfp4"))
    held = [
        sum(i.bytes for i in memory_of_serving(job).ranks[0].items if i.group == "weights") for job in (plain, narrow)
    ]
    assert held[0] - held[1] == pytest.approx(4 * 2 * 3 * 4096 * 2048 * (FP8_MATRIX - MXFP4), rel=1e-9)
    works = [ops_of(job)["moe.up_gate"].work for job in (plain, narrow)]
    assert isinstance(works[1], Gemm)
    assert (works[1].weight_bytes, works[1].precision) == (MXFP4, "fp8_block")
    times = [simulate(job, engine="longest-path").metrics["step_time_s"] for job in (plain, narrow)]
    assert times[1] < times[0]
    dense = load_scenario("llama-3-8b-decode", ["serving.expert_weights=mxfp4"])
    assert [p.key for p in check(dense)] == ["serving.expert_weights"]


@pytest.mark.parametrize("job", ["deepseek-v3-decode-ep128", "deepseek-v3-prefill-ep32"])
def test_serving_runs_with_drafts_chunks_and_prompts(job: str) -> None:
    drafts = (
        ["serving.mtp_depth=2", "serving.prefill_tokens=512", "serving.two_batch_overlap=false"]
        if "decode" in job
        else []
    )
    found = load_scenario(job, [*SMALL, *drafts])
    assert check(found) == []
    names = ops_of(found)
    assert {"hc.attn.weights", "hc.ffn.out", "attn.o_a", "attn.compress.pool"} <= set(names)
    assert all(op.saved == 0.0 for op in names.values())
    result = simulate(found, engine="longest-path")
    assert 0 < result.metrics["mfu"] < 1


def test_prompts_are_causal_over_entries_too() -> None:
    job = load_scenario("deepseek-v3-prefill-ep32", [*SMALL, "serving.tokens=4096", "serving.context=4096"])
    core = ops_of(job)["attn.core"].work
    assert isinstance(core, Attention)
    assert (core.cached, core.cached_entries, core.entries, core.chosen) == (128, 1024, 2048, 512)
    moved = ops_of(job)["attn.compress.pool"].work
    assert isinstance(moved, Streaming)
