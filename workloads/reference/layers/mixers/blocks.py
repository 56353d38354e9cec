"""Attention of grouped queries to blocks of keys (MiniMax-M3; transformers, models/minimax_m3_vl).

An indexer has a narrow head for each group of queries, and one key. A block is as good as its best key for that head;
a group attends to the best blocks, its own block always among them. The indexer learns as DeepSeek-V3.2's does
(assumed: nobody published how it was trained), head by head: its scores of the chosen keys against what its group
attends to there; its input is detached.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear
from workloads.reference.layers.norm import rmsnorm, rmsnorm_input_grad
from workloads.reference.layers.rope import angles, rotate, rotate_input_grad

CORE, INDEX = "attn.core", "attn.index"
NORMS = {"norm.index_q": f"{INDEX}/q", "norm.index_k": f"{INDEX}/k"}  # norm of the indexer's heads -> its output


class Back(NamedTuple):
    """Gradients of queries, keys and values, shaped as they are, and the softmax weights [B, S, G, R, J]."""

    q: Array
    k: Array
    v: Array
    weights: Array


def indexed(run: Run, p: Weights, x: Array) -> Saved:
    """The indexer's queries [B, S, G, d] and key [B, S, 1, d], and the blocks that it chooses [B, S, G, K]."""
    c, out = run.cfg, {}
    for name, op in (("q", "norm.index_q"), ("k", "norm.index_k")):
        made = linear(run, f"{INDEX}_{name}", x, p[f"{INDEX}_{name}"]).reshape(*x.shape[:2], -1, c.index_head_dim)
        y, out[f"{op}/rstd"] = rmsnorm(run, op, made, p[op])
        out |= {f"{op}/x": made, NORMS[op]: _turned(run, y)}
    return out | {"attn.top/order": best(run, out[f"{INDEX}/q"], out[f"{INDEX}/k"])}


def best(run: Run, q: Array, k: Array) -> Array:
    """The best blocks of keys that each query sees [B, S, G, K]; -1 where it sees fewer."""
    size, length = run.cfg.index_block_size, k.shape[1]
    raw = np.einsum("bsgd,bld->bsgl", q, k[:, :, 0])
    run.count(INDEX, "F", flops=2 * raw.size * (q.shape[-1] + 1), read={"q": q, "k": k}, written={"y": raw})
    seen = np.arange(length) <= np.arange(length)[:, None]
    raw = np.where(seen[:, None], raw, -np.inf)
    short = -length % size
    padded = np.concatenate([raw, np.full((*raw.shape[:3], short), -np.inf)], axis=-1)
    blocks = padded.reshape(*raw.shape[:3], -1, size).max(axis=-1)
    own = np.arange(length) // size
    blocks[:, np.arange(length), :, own] = np.inf
    found = np.argsort(-blocks, axis=-1, kind="stable")[..., : run.cfg.index_topk]
    out: Array = np.where(np.take_along_axis(blocks, found, axis=-1) > -np.inf, found, -1)
    return out


def _tokens(run: Run, ids: Array, length: int) -> tuple[Array, Array]:
    """Keys of the chosen blocks [B, S, G, J] by number, and which of them a query sees."""
    size = run.cfg.index_block_size
    at = (np.maximum(ids, 0)[..., None] * size + np.arange(size)).reshape(*ids.shape[:3], -1)
    there = np.repeat(ids >= 0, size, axis=-1) & (at <= np.arange(length)[:, None, None])
    return np.minimum(at, length - 1), there


def _picked(x: Array, at: Array) -> Array:
    """Rows of x [B, L, G, d] by number: [B, S, G, J, d]."""
    b, g = np.arange(len(x))[:, None, None, None], np.arange(x.shape[2])[:, None]
    out: Array = x[b, at, np.broadcast_to(g, at.shape)]
    return out


def _put_back(shape: tuple[int, ...], at: Array, d: Array) -> Array:
    """The transpose of `_picked`."""
    out = np.zeros(shape, d.dtype)
    b, g = np.arange(len(at))[:, None, None, None], np.arange(at.shape[2])[:, None]
    np.add.at(out, (np.broadcast_to(b, at.shape), at, np.broadcast_to(g, at.shape)), d)
    return out


def _logits(q: Array, keys: Array, there: Array, scale: float) -> Array:
    """[B, S, G, R, J]."""
    b, s, _, d = q.shape
    raw = np.einsum("bsgrd,bsgjd->bsgrj", q.reshape(b, s, keys.shape[2], -1, d), keys) * scale
    out: Array = np.where(there[:, :, :, None], raw, -np.inf)
    return out


def attend_blocks(run: Run, q: Array, k: Array, v: Array, ids: Array, scale: float) -> tuple[Array, Array]:
    """Output [B, S, H, dv] and log-sum-exp [B, S, G, R] of queries over the chosen blocks; whole blocks are counted."""
    at, there = _tokens(run, ids, k.shape[1])
    logits = _logits(q, _picked(k, at), there, scale)
    top = logits.max(axis=-1)
    lse = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1))
    out = np.einsum("bsgrj,bsgjd->bsgrd", np.exp(logits - lse[..., None]), _picked(v, at))
    run.count(CORE, "F", flops=2 * logits.size * (q.shape[-1] + v.shape[-1]), read={}, written={})
    return out.reshape(*q.shape[:3], -1), lse


def attend_blocks_input_grad(
    run: Run, q: Array, k: Array, v: Array, out: Array, lse: Array, dout: Array, ids: Array, scale: float
) -> Back:
    """Gradients of `attend_blocks`."""
    at, there = _tokens(run, ids, k.shape[1])
    keys, values = _picked(k, at), _picked(v, at)
    weights = np.exp(_logits(q, keys, there, scale) - lse[..., None])
    split = (*lse.shape, -1)
    douts, outs, qs = (one.reshape(split) for one in (dout, out, q))
    delta = (douts * outs).sum(axis=-1)
    dlogits = weights * (np.einsum("bsgrd,bsgjd->bsgrj", douts, values) - delta[..., None]) * scale
    run.count(CORE, "I", flops=2 * weights.size * (3 * q.shape[-1] + 2 * v.shape[-1]), read={}, written={})
    return Back(
        np.einsum("bsgrj,bsgjd->bsgrd", dlogits, keys).reshape(q.shape),
        _put_back(k.shape, at, np.einsum("bsgrj,bsgrd->bsgjd", dlogits, qs)),
        _put_back(v.shape, at, np.einsum("bsgrj,bsgrd->bsgjd", weights, douts)),
        weights,
    )


def loss(run: Run, q: Array, k: Array, target: Array, ids: Array) -> tuple[float, Array]:
    """Cross-entropy of each head's scores of the chosen keys with `target` [B, S, G, J], mean over queries, and the
    scores' gradient."""
    at, there = _tokens(run, ids, k.shape[1])
    keys = _picked(np.broadcast_to(k, (*k.shape[:2], ids.shape[2], k.shape[-1])), at)
    raw = np.where(there, np.einsum("bsgd,bsgjd->bsgj", q, keys), -np.inf)
    e = np.exp(raw - raw.max(axis=-1, keepdims=True))
    share = e / e.sum(axis=-1, keepdims=True)
    count = ids.shape[0] * ids.shape[1]
    picked = np.where(there, np.log(np.maximum(share, 1e-300)), 0.0)
    return float(-(target * picked).sum() / count), np.where(there, share - target, 0.0) / count


def learned(run: Run, q: Array, k: Array, target: Array, ids: Array) -> tuple[Array, Array]:
    """Gradients of the indexer's queries and key."""
    at, _ = _tokens(run, ids, k.shape[1])
    _, d = loss(run, q, k, target, ids)
    keys = _picked(np.broadcast_to(k, (*k.shape[:2], ids.shape[2], k.shape[-1])), at)
    run.count(INDEX, "I", flops=2 * d.size * (3 * q.shape[-1] + 2), read={"q": q, "k": k}, written={"dk": k})
    by_head = _put_back((*k.shape[:2], ids.shape[2], k.shape[-1]), at, d[..., None] * q[:, :, :, None])
    return np.einsum("bsgj,bsgjd->bsgd", d, keys), by_head.sum(axis=2, keepdims=True)


def learn(run: Run, p: Weights, x: Array, saved: Saved, weights: Array, width: int) -> list[Deferred]:
    """The indexer's own weight gradients."""
    run.count("attn.index_target", "I", flops=2 * weights.size * (width + 1), read={}, written={"y": weights})
    target = weights.sum(axis=3) / weights.shape[3]
    grads = learned(run, saved[f"{INDEX}/q"], saved[f"{INDEX}/k"], target, saved["attn.top/order"])
    found = []
    for name, op, d in zip("qk", NORMS, grads, strict=True):
        made, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
        back = _turned(run, d, back=True)
        found.append(Deferred(kind="gain", op=op, name=op, layer=run.layer, x=made, dy=back, extra=rstd))
        dy = rmsnorm_input_grad(run, op, made, rstd, p[op], back).reshape(*x.shape[:2], -1)
        linear_op = f"{INDEX}_{name}"
        found.append(Deferred(kind="linear", op=linear_op, name=linear_op, layer=run.layer, x=x, dy=dy))
    return found


def _turned(run: Run, x: Array, *, back: bool = False) -> Array:
    """The first elements of each head rotated by their position, or the gradient of that."""
    wide = min(run.cfg.rope_dim, x.shape[-1])
    turn = rotate_input_grad if back else rotate
    return np.concatenate([turn(x[..., :wide], *angles(run.cfg, x.shape[1])), x[..., wide:]], axis=-1)
