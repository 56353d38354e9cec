"""Attention under context parallelism: the kernels of a mean rank, and what they take together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.cost.attention_cost import attention_cost, tiles_of
from simulator.cost.cost import Share
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_hardware, load_scenario
from simulator.ops import Attention
from simulator.spec.mixer import BlockKind

H200 = load_hardware("h200")
RING = Attention(
    batch=1, seq_q=4096, seq_kv=32768, heads=8, kv_heads=2, d_qk=128, d_v=128, ranks=8, in_ring=True
)  # fmt: skip


def seconds(work: Attention) -> float:
    cls = f"attn.{'bwd' if work.backward else 'fwd'}@library"
    return attention_cost(work, cls, H200.gpu, H200.kernels, Share(sms=132)).duration


@pytest.mark.parametrize("ranks", [2, 3, 8])
@pytest.mark.parametrize("in_ring", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_parts_have_the_flop_of_the_whole(ranks: int, in_ring: bool, backward: bool) -> None:
    work = replace(RING, seq_kv=4096 * ranks, ranks=ranks, in_ring=in_ring, backward=backward)
    whole = replace(work, ranks=1)
    found = sum(many * part.flops for many, part in work.parts)
    assert found == pytest.approx(whole.flops, rel=1e-9)


def test_kernels_of_a_ring_by_hand() -> None:
    """Eight ranks of 4,096 tokens: one causal square; seven kernels without a mask over half of either side."""
    (one, own), (early, keys), (late, queries) = RING.parts
    assert (one, early, late, RING.kernels) == (1.0, 3.5, 3.5, 8)
    assert [(p.seq_q, p.seq_kv, p.causal) for p in (own, keys, queries)] == [
        (4096, 4096, True), (4096, 2048, False), (2048, 4096, False),
    ]  # fmt: skip
    assert seconds(RING) == pytest.approx(seconds(own) + 3.5 * (seconds(keys) + seconds(queries)))


def test_gathered_keys_by_hand() -> None:
    """The fourth of eight ranks has parts 3 and 12 of 16: 2,048 queries see 8,192 and 26,624 keys."""
    gathered = replace(RING, in_ring=False)
    assert gathered.kernels == 2
    assert [(p.seq_q, p.cached, p.seq_kv) for _, p in gathered.parts] == [(2048, 6144, 8192), (2048, 24576, 26624)]
    assert all(p.causal for _, p in gathered.parts)


def test_a_window_is_one_kernel() -> None:
    assert replace(RING, window=1024).kernels == 1
    assert replace(RING, ranks=1).parts == ((1.0, replace(RING, ranks=1)),)


def test_small_chunks_cost_more_than_the_whole() -> None:
    """Each kernel has a launch and a last wave of its own, and those without a mask have no blocks that it cuts."""
    more = [seconds(replace(RING, seq_q=s, seq_kv=8 * s)) / seconds(replace(RING, seq_q=s, seq_kv=8 * s, ranks=1))
            for s in (512, 16384)]  # fmt: skip
    assert more[0] > 1.3
    assert 0.85 < more[1] < 1.05


def test_tiles_of_a_backward_are_of_keys() -> None:
    """1,024 queries of 8 heads over 8,192 keys: 64 tiles of queries forward, half of the SMs, and 512 of keys."""
    work = replace(RING, seq_q=1024, seq_kv=8192, ranks=1, causal=False)
    cost = {
        backward: dict(attention_cost(replace(work, backward=backward), f"attn.{way}@fa2", H200.gpu, H200.kernels,
                                      Share(sms=132)).terms)
        for backward, way in ((False, "fwd"), (True, "bwd"))
    }  # fmt: skip
    assert (cost[False]["tiles"], cost[False]["key_blocks"]) == (64, 64)
    assert (cost[True]["tiles"], cost[True]["key_blocks"]) == (512, 8)
    square = replace(work, seq_q=8192, causal=True, backward=True)
    assert tiles_of(square, H200.kernels.attention["attn.bwd@fa2"])[::2] == (64, 64.0)


@pytest.mark.parametrize("kind", ["ring", "all_gather"])
def test_layers_run_them(kind: str) -> None:
    job = load_scenario("llama-3-8b", ["layout.cp=4", "layout.tp=1", "gpus=64", f'layout.cp_kind="{kind}"'])
    ops = {op.name: op for op in build_blocks(shapes_of(job))[BlockKind.DENSE].ops()}
    for name in ("attn.core.fwd", "attn.core.bwd"):
        work = ops[name].work
        assert isinstance(work, Attention)
        assert (work.ranks, work.in_ring) == (4, kind == "ring")
        assert ops[name].launches == work.kernels
