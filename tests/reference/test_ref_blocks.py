"""Attention to blocks of keys by itself: what is chosen, full attention where all blocks are, and what the indexer
learns, against finite differences."""

from dataclasses import replace

import numpy as np
import pytest

from workloads.reference.config import BLOCKS
from workloads.reference.core import attend
from workloads.reference.count import Run
from workloads.reference.layers.mixers import blocks
from workloads.reference.presets import tiny_m3

LENGTH, HEADS, WIDTH = 9, 2, 6
RNG = np.random.default_rng(5)
CFG = tiny_m3()
RUN = Run(cfg=CFG, layer=1)


def queries_and_key() -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((2, LENGTH, HEADS, WIDTH)), RNG.standard_normal((2, LENGTH, 1, WIDTH))


def test_the_best_blocks_are_those_of_the_best_keys_and_a_querys_own() -> None:
    assert CFG.mixer(1) == BLOCKS
    q, k = queries_and_key()
    ids = blocks.best(RUN, q, k)
    assert ids.shape == (2, LENGTH, HEADS, 2)
    for b, s, g in np.ndindex(ids.shape[:3]):
        own, found = s // 2, set(ids[b, s, g]) - {-1}
        scores = {block: max(q[b, s, g] @ k[b, at, 0] for at in (2 * block, 2 * block + 1)) for block in range(own)}
        wanted = {own} | ({max(scores, key=lambda block: scores[block])} if scores else set())
        assert found == wanted


def test_with_room_for_all_blocks_it_is_full_attention() -> None:
    run = Run(cfg=replace(CFG, index_topk=5), layer=1)
    q, k, v = (RNG.standard_normal((2, LENGTH, heads, 8)) for heads in (4, 2, 2))
    ids = blocks.best(run, *queries_and_key())
    out, _ = blocks.attend_blocks(run, q, k, v, ids, 0.3)
    assert out == pytest.approx(attend(run, q, k, v, 0.3)[0].reshape(out.shape))


def test_what_the_indexer_learns_is_the_slope_of_its_loss() -> None:
    q, k = queries_and_key()
    ids = blocks.best(RUN, q, k)
    there = blocks._tokens(RUN, ids, LENGTH)[1]
    target = np.where(there, RNG.random(there.shape), 0.0)
    target /= target.sum(axis=-1, keepdims=True)
    for at, mine in enumerate(blocks.learned(RUN, q, k, target, ids)):
        direction = RNG.standard_normal(mine.shape)
        ends = []
        for step in (1e-6, -1e-6):
            moved = [one + (step * direction if which == at else 0.0) for which, one in enumerate((q, k))]
            ends.append(blocks.loss(RUN, *moved, target, ids)[0])
        slope = float((mine * direction).sum())
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)
        assert slope != 0.0
