"""Context parallelism: the parts of the core make the whole, and what is sent is what each way of it has to send."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator.graph.block import Block
from simulator.graph.mixers.context_parts import prefixes, ring_steps
from simulator.graph.shapes import Shapes, shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.ops import Attention, Collective, Op, PointToPoint
from simulator.results.simulate import simulate
from simulator.spec.model import BlockKind

Array = NDArray[np.float64]
KINDS = ("ring", "all_gather", "all_to_all")


def shapes(kind: str, cp: int, *more: str) -> Shapes:
    job = ("gpus=64", "layout.tp=1", "layout.pp=1", "batch.sequence_length=8192", "batch.global_batch_size=64",
           "layout.recompute=none", *more)  # fmt: skip
    return shapes_of(load_scenario("llama-3-8b", [f"layout.cp={cp}", f"layout.cp_kind={kind}", *job]))


@cache
def dense(kind: str, cp: int, *more: str) -> Block:
    return build_blocks(shapes(kind, cp, *more))[BlockKind.DENSE]


def cores(block: Block) -> list[Op]:
    return [op for op in block.ops() if isinstance(op.work, Attention)]


def sent(ops: tuple[Op, ...]) -> float:
    """Bytes that leave a rank for context parallelism."""
    total = 0.0
    for op in ops:
        if op.cls.startswith("comm.cp") and isinstance(op.work, PointToPoint):
            total += op.count * op.work.bytes
        elif op.cls.startswith("comm.cp"):
            assert isinstance(op.work, Collective)
            total += op.count * op.work.bytes * (op.work.ranks - 1) / op.work.ranks
    return total


# ---- the parts make the whole ---------------------------------------------------------------------------------------


def attended(q: Array, k: Array, v: Array, causal: bool) -> tuple[Array, Array]:
    """Attention of (tokens, width) and its log-sum-exp; causal up to the end of the keys."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    if causal:
        scores[~np.tril(np.ones(scores.shape, dtype=bool), len(k) - len(q))] = -np.inf
    lse = np.logaddexp.reduce(scores, axis=1)
    return np.exp(scores - lse[:, None]) @ v, lse


def chunks(x: Array, rank: int, cp: int) -> Array:
    """A rank's two chunks of the sequence."""
    parts = np.split(x, 2 * cp)
    return np.concatenate((parts[rank], parts[2 * cp - 1 - rank]))


@pytest.mark.parametrize("cp", [2, 3, 4])
def test_the_steps_of_a_ring_merge_to_the_attention_over_the_whole_sequence(cp: int) -> None:
    """Every rank runs the works of the graph's steps, as many of each kind as ranks come before and after it."""
    rng, tokens, width = np.random.default_rng(1), 24 * cp, 8
    q, k, v = (rng.normal(size=(tokens, width)) for _ in range(3))
    whole = attended(q, k, v, True)[0]
    s = shapes("ring", cp, f"batch.sequence_length={tokens}", "layout.sp=false", "gpus=24")
    work = Attention(batch=1, seq_q=s.seq, seq_kv=tokens, heads=1, kv_heads=1, d_qk=width, d_v=width)
    works = {kind: one for kind, one, _, _ in ring_steps(s, work)}
    assert sum(times for _, _, times, _ in ring_steps(s, work)) == cp
    assert sum(hops for _, _, _, hops in ring_steps(s, work)) == cp - 1
    for rank in range(cp):
        mine = chunks(q, rank, cp)
        out, lse = np.zeros_like(mine), np.full(len(mine), -np.inf)
        for source in range(cp):
            kind = "own" if source == rank else "before" if source < rank else "after"
            one = works.get(kind)
            if one is None:  # two ranks: the second meets an earlier one, the first a later one
                assert (cp, kind) == (2, "after")
                one = replace(works["own"], seq_q=s.seq // 2, causal=False)
            keys, values = (chunks(x, source, cp)[: one.seq_kv] for x in (k, v))
            part, stats = attended(mine[-one.seq_q :], keys, values, one.causal)
            both = np.logaddexp(lse[-one.seq_q :], stats)
            old, new = np.exp(lse[-one.seq_q :] - both), np.exp(stats - both)
            out[-one.seq_q :] = out[-one.seq_q :] * old[:, None] + part * new[:, None]
            lse[-one.seq_q :] = both
        np.testing.assert_allclose(out, chunks(whole, rank, cp), rtol=1e-10)


def test_prefixes_are_causal_to_the_end_of_their_keys() -> None:
    rng, s = np.random.default_rng(2), shapes("all_gather", 4, "batch.sequence_length=64", "layout.sp=false")
    q, k, v = (rng.normal(size=(64, 8)) for _ in range(3))
    whole = attended(q, k, v, True)[0]
    for one in prefixes(s, Attention(batch=1, seq_q=16, seq_kv=64, heads=1, kv_heads=1, d_qk=8, d_v=8)):
        rows = slice(one.seq_kv - one.seq_q, one.seq_kv)
        assert one.cached == rows.start
        np.testing.assert_allclose(
            attended(q[rows], k[: one.seq_kv], v[: one.seq_kv], True)[0], whole[rows], rtol=1e-10
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cp", [2, 4, 8])
def test_ranks_share_the_work_of_the_whole_core(kind: str, cp: int) -> None:
    """FLOP of the parts, forward and backward, times ranks: those of one rank with the whole sequence."""
    whole = sum(op.flops for op in cores(dense("ring", 1)))
    assert cp * sum(op.flops for op in cores(dense(kind, cp))) == pytest.approx(whole, rel=1e-3)


# ---- what moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_bytes_sent(cp: int) -> None:
    """Llama 3 8B: 4096 values of queries and of outputs and 2 x 1024 of keys and values a token, BF16."""
    tokens, ahead = 8192 // cp, {}
    for kind in KINDS:
        block = dense(kind, cp)
        forward = tuple(op for segment in block.forward for op in segment.ops)
        ahead[kind] = sent(forward), sent(block.ops()) - sent(forward)
    assert ahead["ring"] == ((cp - 1) * tokens * 2048 * 2, 2 * (cp - 1) * tokens * 2048 * 2)
    assert ahead["all_gather"] == ahead["ring"]
    exchanged = tokens * (4096 + 2048 + 4096) * 2 * (cp - 1) / cp
    assert ahead["all_to_all"] == pytest.approx((exchanged, exchanged))


def test_a_ring_crosses_the_nic_where_ranks_are_on_several_nodes() -> None:
    tiers = {
        cp: {op.work.tier for op in dense("ring", cp).ops() if isinstance(op.work, PointToPoint)} for cp in (8, 16)
    }
    assert tiers == {8: {"nvlink"}, 16: {"nic"}}


def test_hops_hide_behind_the_core_until_the_link_is_slow() -> None:
    """A hop takes 0.7 ms over the NIC, a step of the core 1 ms or more; on one a hundredth as fast nothing hides it."""
    job = ["gpus=16", "layout.tp=1", "layout.pp=1", "layout.cp=16", "batch.sequence_length=131072", "layout.zero=0",
           "batch.global_batch_size=1", "model.num_hidden_layers=2", "layout.recompute=none",
           "hardware.node.host_pace=0"]  # fmt: skip
    exposed = []
    for bandwidth in (50e9, 100e9, 0.5e9):
        result = simulate(
            load_scenario("llama-3-8b", [*job, f"hardware.node.nic.bandwidth={bandwidth}"]), engine="longest-path"
        )
        exposed.append(sum(one.seconds for one in result.classes if one.cls == "comm.cp.ring"))
    assert max(exposed[:2]) < 1e-12
    moved = 2 * 3 * 15 * 8192 * 2048 * 2 / 0.5e9
    assert 0.7 * moved < exposed[2] < moved


def test_recomputed_cores_get_their_keys_again() -> None:
    for kind in KINDS:
        plain, again = dense(kind, 4), dense(kind, 4, "layout.recompute=selective")
        forward = tuple(op for segment in plain.forward for op in segment.ops)
        assert sent(again.ops()) == pytest.approx(sent(plain.ops()) + sent(forward))


def test_stacks_of_eager_modules_merge_kernel_by_kernel() -> None:
    """Transformer Engine's are compiled, whatever calls them."""
    layers = [dense("ring", 2, f"stack={stack}") for stack in ("torch-compile", "megatron-core", "torch")]
    assert [sum(op.count for op in one.ops() if ".merge" in op.name) for one in layers] == [3, 3, 10]


@pytest.mark.parametrize(
    ("changes", "key", "words"),
    [
        (("layout.cp=16",), "layout.cp", "spreads the 32 heads and 8 key-value heads of a rank over cp ranks"),
        (("layout.cp=2", "stack=megatron-lm"), "layout.cp_kind", "the attention of the stack megatron-lm is no single"),
    ],
)
def test_refused(changes: tuple[str, ...], key: str, words: str) -> None:
    job = ["gpus=64", "layout.tp=1", "layout.cp_kind=all_to_all", "precision.recipe=bf16", *changes]
    found = [p for p in check(load_scenario("llama-3-8b", job)) if p.rule == "context parallelism"]
    assert [p.key for p in found] == [key]
    assert words in found[0].message


# ---- PyTorch's own --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ring", "all_gather"])
@pytest.mark.parametrize("cp", [2, 4, 8])
def test_pytorchs_own_sends_repeated_keys_and_wide_gradients(kind: str, cp: int) -> None:
    """32 heads of keys and values instead of 8; their gradients in FP32, which go round to where they come from."""
    block, whole = dense(kind, cp, "stack=torchtitan"), dense("ring", 1)
    forward = tuple(op for segment in block.forward for op in segment.ops)
    tokens = 8192 // cp
    assert sent(forward) == (cp - 1) * tokens * 8192 * 2
    assert sent(block.ops()) - sent(forward) == (cp - 1) * tokens * 8192 * 2 + cp * tokens * 8192 * 4
    assert cp * sum(op.flops for op in cores(block)) == pytest.approx(sum(op.flops for op in cores(whole)), rel=1e-3)


def test_what_overlaps_does_so_with_a_step_of_the_core() -> None:
    """All but the way home of the last gradients; torch.compile puts all their ways behind the core."""
    for fused, hidden in ((False, ["dkv.1", "dkv.2"]), (True, [])):
        ops = dense("all_gather", 4, "stack=torchtitan", f"stack.residual_fused={str(fused).lower()}").ops()
        hops = [op for op in ops if op.cls == "comm.cp.ring"]
        behind = [op.name for op in hops if op.concurrent_with == "whole"]
        assert behind == [f"attn.core.bwd.{name}" for name in hidden]
        assert hops[-1].name == "attn.core.bwd.dkv.home"
        assert hops[-1].concurrent_with == "nothing"
    for op, after in pairwise(ops):
        if op.concurrent_with == "whole" and op.cls.startswith("comm.cp"):
            assert isinstance(after.work, Attention), op.name
