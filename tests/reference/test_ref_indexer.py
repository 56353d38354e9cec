"""The indexer of sparse attention by itself: what it chooses, and what it learns, against finite differences."""

import numpy as np
import pytest

from workloads.reference.count import Run
from workloads.reference.layers.mixers import indexer
from workloads.reference.presets import tiny_v4

RNG = np.random.default_rng(5)
TOKENS, ENTRIES, HEADS, WIDTH, CHOSEN = 7, 5, 3, 4, 2
SEEN = (np.arange(TOKENS) + 1) // 2


def scored() -> indexer.Scored:
    return indexer.Scored(
        RNG.standard_normal((2, TOKENS, HEADS, WIDTH)),
        RNG.standard_normal((2, ENTRIES, WIDTH)),
        RNG.standard_normal((2, TOKENS, HEADS)),
    )


def test_the_best_are_of_those_that_came_before() -> None:
    values = RNG.standard_normal((2, TOKENS, ENTRIES))
    ids = indexer.best(values, CHOSEN, SEEN)
    for b, s in np.ndindex(2, TOKENS):
        found = [i for i in ids[b, s] if i >= 0]
        assert set(found) == set(np.argsort(-values[b, s, : SEEN[s]])[:CHOSEN])
        assert len(found) == min(CHOSEN, SEEN[s])


def test_what_it_learns_is_the_slope_of_its_loss() -> None:
    x, run = scored(), Run(cfg=tiny_v4())
    ids = indexer.best(indexer.scores(run, x), CHOSEN, SEEN)
    target = np.where(ids >= 0, RNG.random(ids.shape), 0.0)
    target /= np.maximum(target.sum(axis=-1, keepdims=True), 1e-300)
    grads = indexer.learned(run, x, target, ids)

    def loss(y: indexer.Scored) -> float:
        keys = np.take_along_axis(y.k[:, None], np.maximum(ids, 0)[..., None], axis=2)
        return indexer.loss(np.einsum("bshd,bskd->bshk", y.q, keys), y.w, target, ids)[0]

    for name in x._fields:
        direction = RNG.standard_normal(getattr(x, name).shape)
        ends = [loss(x._replace(**{name: getattr(x, name) + step * direction})) for step in (1e-6, -1e-6)]
        mine = float((getattr(grads, name) * direction).sum())
        assert mine == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6), name
        assert mine != 0.0
