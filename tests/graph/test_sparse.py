"""DeepSeek-V3.2's sparse attention: the indexer's ops, what the core attends to, the cache."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import Attention, DecodeAttention, Gemm
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario

LAYERS = 4
SPARSE = (
    f"model.num_hidden_layers={LAYERS}",
    f"model.layer_types={['sparse'] * LAYERS}".replace("'", '"'),
    "model.index_n_heads=64",
    "model.index_head_dim=128",
    "model.index_topk=2048",
)
KIND = BlockKind("sparse+moe")


def training(length: int, *overrides: str) -> Scenario:
    small = ("gpus=64", "layout.pp=1", "layout.ep=64", "layout.schedule=1f1b", "batch.global_batch_size=64")
    return load_scenario("deepseek-v3-1f1b", [*SPARSE, *small, f"batch.sequence_length={length}", *overrides])


def works(block: Block) -> dict[str, object]:
    return {op.name: op.work for op in block.ops()}


def test_each_query_attends_to_the_chosen_tokens_latents() -> None:
    block = build_blocks(shapes_of(training(16384)))[KIND]
    assert problems(block) == []
    core = works(block)["attn.core.fwd"]
    assert isinstance(core, Attention)
    assert (core.heads, core.kv_heads, core.d_qk, core.d_v, core.window) == (128, 1, 576, 512, 2048)
    assert core.flops == 2.0 * 128 * (576 + 512) * (16384 * 2048 - 2048 * 2048 / 2)


def test_the_indexer_scores_all_earlier_tokens() -> None:
    """64 heads of 128 and one sum over them, of half the square."""
    found = works(build_blocks(shapes_of(training(16384)))[KIND])
    scores = found["attn.index.fwd"]
    assert isinstance(scores, Attention)
    assert scores.flops == 2.0 * 64 * 129 * 16384 * 16384 / 2
    sizes = {
        name: (w.n, w.k) for name, w in found.items() if isinstance(w, Gemm) and ".fwd" in name and "index" in name
    }
    assert sizes == {
        "attn.index_q.fwd": (64 * 128, 1536),
        "attn.index_k.fwd": (128, 7168),
        "attn.index_w.fwd": (64, 7168),
    }


def test_parameters_of_the_indexer_by_hand() -> None:
    """Queries from their latent, one key with a LayerNorm, a weight for each head."""
    job = training(4096)
    sparse, full = (job.model.layer_parameters(kind).attention for kind in (KIND, BlockKind.MOE))
    assert sparse - full == 1536 * 64 * 128 + 7168 * 128 + 7168 * 64 + 2 * 128


def test_long_sequences_cost_less_than_attention_to_all() -> None:
    """At 131,072 tokens the core attends to 2,048; only the indexer grows with the square."""
    sparse = training(131072, "layout.recompute=full")
    blocks = build_blocks(shapes_of(sparse))
    core = works(blocks[KIND])["attn.core.fwd"]
    assert isinstance(core, Attention)
    kinds = [BlockKind("sparse+moe"), BlockKind.MOE]
    long, short = ([sparse.model.layer_macs_per_token(kind, n) for kind in kinds] for n in (131072, 1024))
    assert long[0] < long[1]
    assert short[0] > short[1]  # below 2,048 tokens the indexer only adds


def decoding(context: int) -> Scenario:
    return load_scenario("deepseek-v3-decode-ep128", [*SPARSE, f"serving.context={context}"])


@pytest.mark.parametrize(("context", "keys"), [(1000, None), (40000, 2048)])
def test_decode_reads_the_chosen_latents_and_all_keys_of_the_indexer(context: int, keys: int | None) -> None:
    job = decoding(context)
    shapes = serving_shapes(job)
    found = works(build_blocks(shapes)[KIND])
    core, index = found["attn.core"], found["attn.index"]
    assert isinstance(core, DecodeAttention)
    assert isinstance(index, DecodeAttention)
    assert core.kv_len == (keys or shapes.seq_kv)
    assert (index.kv_len, index.heads, index.kv_heads, index.d_qk) == (shapes.seq_kv, 64, 1, 128)


def test_a_long_context_decodes_faster_than_attention_to_all() -> None:
    full = load_scenario("deepseek-v3-decode-ep128", [SPARSE[0], "serving.context=60000", "serving.sequences=8"])
    sparse = load_scenario("deepseek-v3-decode-ep128", [*SPARSE, "serving.context=60000", "serving.sequences=8"])
    times = [simulate(one, engine="longest-path").metrics["step_time_s"] for one in (sparse, full)]
    assert times[0] < times[1]


def test_prompts_and_training_steps_run() -> None:
    prompt = load_scenario("deepseek-v3-prefill-ep32", list(SPARSE))
    names = set(works(build_blocks(serving_shapes(prompt))[KIND]))
    assert {"attn.index", "attn.w_uk", "attn.w_uv", "attn.core"} <= names
    assert "attn.kv_b" not in names
    for job in (prompt, training(4096)):
        assert simulate(job, engine="longest-path").metrics["step_time_s"] > 0


# ---- blocks of keys, chosen for grouped queries (MiniMax-M3) ---------------------------------------------------------

BLOCKS = (
    f"model.num_hidden_layers={LAYERS}",
    'model.layer_types=["full","blocks","blocks","blocks"]',
    "model.index_n_heads=8",
    "model.index_head_dim=128",
    "model.index_topk=16",
    "model.index_block_size=128",
)
IN_BLOCKS = BlockKind("blocks+dense")


def test_queries_attend_to_the_chosen_blocks() -> None:
    small = ("gpus=8", "layout.tp=1", "batch.global_batch_size=8", "batch.sequence_length=8192")
    job = load_scenario("llama-3-8b", [*BLOCKS, *small])
    block = build_blocks(shapes_of(job))[IN_BLOCKS]
    assert problems(block) == []
    found = works(block)
    core, scores = found["attn.core.fwd"], found["attn.index.fwd"]
    assert isinstance(core, Attention)
    assert isinstance(scores, Attention)
    assert (core.window, core.heads, core.kv_heads) == (2048, 32, 8)
    assert core.flops == 2.0 * 32 * 256 * (8192 * 2048 - 2048 * 2048 / 2)
    assert scores.flops == 2.0 * 8 * 129 * 8192 * 8192 / 2
    assert "attn.index_w.fwd" not in found
    whole = build_blocks(shapes_of(job))[BlockKind.DENSE]
    extra = sum(
        job.model.layer_parameters(kind).attention * sign for kind, sign in ((IN_BLOCKS, 1), (BlockKind.DENSE, -1))
    )
    assert extra == 4096 * 8 * 128 + 4096 * 128 + 2 * 128
    assert "attn.index.fwd" not in works(whole)
    assert simulate(job, engine="longest-path").metrics["step_time_s"] > 0


@pytest.mark.parametrize(("job", "keys"), [("llama-3-8b-decode", 2048), ("llama-3-8b-prefill", 0)])
def test_blocks_serve_and_cache_the_indexers_keys(job: str, keys: int) -> None:
    found = load_scenario(job, [*BLOCKS, *(["serving.context=8000"] if keys else [])])
    ops = works(build_blocks(serving_shapes(found))[IN_BLOCKS])
    core = ops["attn.core"]
    assert isinstance(core, DecodeAttention if keys else Attention)
    if isinstance(core, DecodeAttention):
        assert core.kv_len == keys
    assert found.model.indexed_bytes(IN_BLOCKS, 1000) == 1000 * 132
    assert simulate(found, engine="longest-path").metrics["step_time_s"] > 0
