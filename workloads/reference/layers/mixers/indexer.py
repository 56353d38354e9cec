"""The indexer of sparse attention (DeepSeek-V3.2, arXiv 2512.02556, section 2.1; DeepSeek-V4).

Narrow heads with one key score what came before; a query attends to the best, and the indexer learns what all heads
attend to among these. Scores of a query are sums over heads of a weight times relu(q k). They learn by a cross-entropy
with the attention of all heads, summed, over the chosen; inputs are detached.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.count import Array, Run

OP = "attn.index"


class Scored(NamedTuple):
    """Queries [B, S, H, d], keys [B, E, d], weights of heads [B, S, H]."""

    q: Array
    k: Array
    w: Array


def scores(run: Run, x: Scored) -> Array:
    """[B, S, E]; FLOP of all pairs, each head's score and one multiply-add for its share of the sum."""
    raw = np.einsum("bshd,bed->bshe", x.q, x.k)
    run.count(OP, "F", flops=2 * raw.size * (x.q.shape[-1] + 1), read={"q": x.q, "k": x.k}, written={"y": raw})
    out: Array = (np.maximum(raw, 0.0) * x.w[..., None]).sum(axis=2)
    return out


def best(values: Array, count: int, seen: Array) -> Array:
    """The `count` best of those that each query sees [S], by number [B, S, count]; -1 where it sees fewer."""
    masked = np.where(np.arange(values.shape[-1]) < seen[:, None], values, -np.inf)
    found = np.argsort(-masked, axis=-1, kind="stable")[..., :count]
    out: Array = np.where(found < seen[:, None], found, -1)
    return out


def _chosen(x: Array, ids: Array) -> Array:
    """Rows of x [B, E, d] by number: [B, S, K, d]."""
    out: Array = np.take_along_axis(x[:, None], np.maximum(ids, 0)[..., None], axis=2)
    return out


def loss(raw: Array, w: Array, target: Array, ids: Array) -> tuple[float, Array]:
    """Cross-entropy of the scores of the chosen with `target` [B, S, K], mean over queries, and the scores' gradient;
    `raw` [B, S, H, K] are the heads' products."""
    logits = np.where(ids < 0, -np.inf, (np.maximum(raw, 0.0) * w[..., None]).sum(axis=2))
    any_seen: Array = np.any(ids >= 0, axis=-1)
    top = np.where(any_seen, logits.max(axis=-1), 0.0)[..., None]
    e = np.exp(logits - top)
    share = e / np.maximum(e.sum(axis=-1, keepdims=True), 1e-300)
    count = max(1, int(any_seen.sum()))
    picked = np.where(ids < 0, 0.0, np.log(np.maximum(share, 1e-300)))
    return float(-(target * picked).sum() / count), np.where(any_seen[..., None], share - target, 0.0) / count


def learned(run: Run, x: Scored, target: Array, ids: Array) -> Scored:
    """Gradients of queries, keys and weights from what all heads attend to among the chosen."""
    keys = _chosen(x.k, ids)
    raw = np.einsum("bshd,bskd->bshk", x.q, keys)
    _, dscores = loss(raw, x.w, target, ids)
    draw = np.where(raw > 0, dscores[:, :, None] * x.w[..., None], 0.0)
    dk = np.zeros_like(x.k)
    for b, s in np.ndindex(ids.shape[:2]):
        np.add.at(dk[b], np.maximum(ids[b, s], 0), np.where(ids[b, s, :, None] < 0, 0.0, draw[b, s].T @ x.q[b, s]))
    run.count(OP, "I", flops=2 * raw.size * (3 * x.q.shape[-1] + 2), read={"q": x.q, "k": x.k}, written={"dk": dk})
    dw = (np.maximum(raw, 0.0) * dscores[:, :, None]).sum(axis=-1)
    return Scored(np.einsum("bshk,bskd->bshd", draw, keys), dk, dw)


def target_of(run: Run, weights: Array, width: int) -> Array:
    """What all heads attend to among the chosen, to a sum of one; `weights` [B, H, S, K], made once more for it."""
    run.count("attn.index_target", "I", flops=2 * weights.size * (width + 1), read={}, written={"y": weights})
    total = weights.sum(axis=1)
    out: Array = total / np.maximum(total.sum(axis=-1, keepdims=True), 1e-300)
    return out
