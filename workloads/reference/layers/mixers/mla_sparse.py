"""Latent attention to chosen tokens (DeepSeek-V3.2, arXiv 2512.02556, section 2): all heads read the latents of the
tokens that the indexer chose, as one key whose first part is the value; queries are taken to the latents head by head
(W_UK), and outputs back (W_UV).

The indexer's key is a LayerNorm of a projection of the input, its queries come from the queries' latent; the end of
each head rotates.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers import indexer
from workloads.reference.layers.mixers.entries import turned
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad
from workloads.reference.layers.rope import softmax_scale

CORE = "attn.core"


def mla_sparse(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Attention output [B, S, hidden] of normalised input x [B, S, hidden]."""
    c = run.cfg
    saved: Saved = {"norm.q_lora/x": linear(run, "attn.q_a", x, p["attn.q_a"])}
    first = linear(run, "attn.kv_a", x, p["attn.kv_a"])
    saved["norm.kv_lora/x"] = first[..., : c.kv_lora_rank]
    saved[f"{CORE}/k_rope"] = turned(c, first[..., None, c.kv_lora_rank :])[:, :, 0]
    saved |= _normed(run, p, saved)
    saved |= _queries(run, p, saved) | _indexed(run, p, x, saved)
    keys, there = _keys(saved)
    logits = _logits(run, saved, keys, there)
    saved[f"{CORE}/lse"] = _log_sum(logits)
    values = keys[..., : c.kv_lora_rank]
    weights = np.exp(logits - saved[f"{CORE}/lse"][..., None])
    saved["attn.w_uv/x"] = np.einsum("bhsk,bskd->bshd", weights, values)
    _count(run, "F", logits.size, _width(run) + values.shape[-1])
    out = _per_head(run, "attn.w_uv", "F", saved["attn.w_uv/x"], p["attn.w_uv"])
    saved["attn.o/x"] = out.reshape(*x.shape[:2], -1)
    return linear(run, "attn.o", saved["attn.o/x"], p["attn.o"]), saved


def mla_sparse_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep under the policy of recomputation."""
    drop = {"attn.w_uk/q", f"{CORE}/q"} if run.again("mla_up", "mla_up_proj") else set()
    drop |= {f"{CORE}/lse"} if run.again("core_attn") else set()
    kept = {key: array for key, array in saved.items() if key not in drop}
    return forget(run, kept, {"norm.q_lora": "attn.q_b/x", "norm.kv_lora": f"{CORE}/k"}, "mla_up_proj")


def mla_sparse_restore(run: Run, p: Weights, saved: Saved) -> Saved:
    """Compute again what was dropped."""
    again = run.at(part="R")
    if "norm.kv_lora/rstd" not in saved:
        saved = saved | _normed(again, p, saved)
    if "attn.w_uk/q" not in saved:
        saved = saved | _queries(again, p, saved)
    if f"{CORE}/lse" not in saved:
        logits = _logits(again, saved, *_keys(saved))
        _count(again, "F", logits.size, _width(run) + (run.cfg.kv_lora_rank or 0))
        saved = saved | {f"{CORE}/lse": _log_sum(logits)}
    return saved


def mla_sparse_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    c, rank = run.cfg, run.cfg.kv_lora_rank or 0
    dflat = linear_input_grad(run, "attn.o", dy, p["attn.o"])
    dheads = dflat.reshape(*dflat.shape[:2], c.num_attention_heads, -1)
    deferred = [
        _defer(run, "attn.o", saved["attn.o/x"], dy),
        _head_grad(run, "attn.w_uv", saved["attn.w_uv/x"], dheads),
    ]
    dout = _per_head(run, "attn.w_uv", "I", dheads, p["attn.w_uv"].swapaxes(1, 2))
    core = _core_input_grad(run, saved, dout)
    deferred += _learn(run, p, x, saved, core.weights)
    q = saved["attn.w_uk/q"]
    dnope = _per_head(run, "attn.w_uk", "I", core.q[..., :rank], p["attn.w_uk"].swapaxes(1, 2))
    deferred.append(_head_grad(run, "attn.w_uk", q[..., : c.qk_nope_head_dim], core.q[..., :rank]))
    drope = turned(c, core.q[..., rank:], back=True)
    dup = np.concatenate([dnope, drope], axis=-1).reshape(*q.shape[:2], -1)
    dlatent, gain_q = _gain(run, p, "norm.q_lora", saved, linear_input_grad(run, "attn.q_b", dup, p["attn.q_b"]))
    dkey, gain_k = _gain(run, p, "norm.kv_lora", saved, core.k[..., :rank])
    dfirst = np.concatenate([dkey, turned(c, core.k[:, :, None, rank:], back=True)[:, :, 0]], axis=-1)
    dx = linear_input_grad(run, "attn.kv_a", dfirst, p["attn.kv_a"])
    dx = dx + linear_input_grad(run, "attn.q_a", dlatent, p["attn.q_a"])
    projected = [("attn.q_b", saved["attn.q_b/x"], dup), ("attn.kv_a", x, dfirst), ("attn.q_a", x, dlatent)]
    return dx, [*deferred, gain_q, gain_k, *(_defer(run, *one) for one in projected)]


class Core(NamedTuple):
    """Gradients of queries [B, S, H, d] and keys [B, S, d] over latents, and the softmax weights [B, H, S, K]."""

    q: Array
    k: Array
    weights: Array


def _width(run: Run) -> int:
    return (run.cfg.kv_lora_rank or 0) + run.cfg.qk_rope_head_dim


def _defer(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    return Deferred(kind="linear", op=op, name=op, layer=run.layer, x=x, dy=dy)


def _count(run: Run, part: str, pairs: int, width: int) -> None:
    run.count(CORE, part, flops=2 * pairs * width, read={}, written={})


def _per_head(run: Run, op: str, part: str, x: Array, w: Array) -> Array:
    """x [B, S, H, k] by w [H, k, n]."""
    y: Array = np.einsum("bshk,hkn->bshn", x, w)
    run.count(op, part, flops=2 * x.size * w.shape[2], read={"x": x, "w": w}, written={"y": y})
    return y


def _head_grad(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    """The weight gradients of all heads as those of a grouped GEMM: rows by head."""
    a, d = (np.moveaxis(one, 2, 0).reshape(-1, one.shape[-1]) for one in (x, dy))
    counts = np.full(x.shape[2], len(a) // x.shape[2])
    return Deferred(kind="grouped", op=op, name=op, layer=run.layer, x=a, dy=d, extra=counts)


def _normed(run: Run, p: Weights, saved: Saved) -> Saved:
    out: Saved = {}
    for norm, into in (("norm.q_lora", "attn.q_b/x"), ("norm.kv_lora", f"{CORE}/k")):
        out[into], out[f"{norm}/rstd"] = rmsnorm(run, norm, saved[f"{norm}/x"], p[norm])
    return out


def _queries(run: Run, p: Weights, saved: Saved) -> Saved:
    """Queries as projected, their ends rotated, and taken to the latents."""
    c = run.cfg
    q = linear(run, "attn.q_b", saved["attn.q_b/x"], p["attn.q_b"])
    q = turned(c, q.reshape(*q.shape[:2], c.num_attention_heads, -1))
    latent = _per_head(run, "attn.w_uk", "F", q[..., : c.qk_nope_head_dim], p["attn.w_uk"])
    return {"attn.w_uk/q": q, f"{CORE}/q": latent}


def _indexed(run: Run, p: Weights, x: Array, saved: Saved) -> Saved:
    """The indexer's queries, key and weights, and the tokens it chooses for each query."""
    c = run.cfg
    q = linear(run, "attn.index_q", saved["attn.q_b/x"], p["attn.index_q"])
    out: Saved = {"attn.index/q": turned(c, q.reshape(*q.shape[:2], c.index_n_heads, -1))}
    raw = out["norm.index/x"] = linear(run, "attn.index_k", x, p["attn.index_k"])
    mean, centred = raw.mean(axis=-1), raw - raw.mean(axis=-1, keepdims=True)
    rstd = 1.0 / np.sqrt((centred * centred).mean(axis=-1) + c.rms_norm_eps)
    out |= {"norm.index/rstd": rstd, "norm.index/lse": mean}  # declared as wide as statistics are
    y = centred * rstd[..., None] * p["norm.index"] + p["attn.index_bias"]
    out["attn.index/k"] = turned(c, y[:, :, None])[:, :, 0]
    out["attn.index/w"] = linear(run, "attn.index_w", x, p["attn.index_w"])
    scored = indexer.scores(run, indexer.Scored(*(out[f"attn.index/{name}"] for name in "qkw")))
    count = min(c.index_topk, x.shape[1])
    return out | {"attn.top/order": indexer.best(scored, count, np.arange(x.shape[1]) + 1)}


def _keys(saved: Saved) -> tuple[Array, Array]:
    """Keys over latents of the chosen tokens [B, S, K, d], and which of them there are."""
    key = np.concatenate([saved[f"{CORE}/k"], saved[f"{CORE}/k_rope"]], axis=-1)
    ids = saved["attn.top/order"]
    return np.take_along_axis(key[:, None], np.maximum(ids, 0)[..., None], axis=2), ids >= 0


def _logits(run: Run, saved: Saved, keys: Array, there: Array) -> Array:
    nope = run.cfg.qk_nope_head_dim
    q = np.concatenate([saved[f"{CORE}/q"], saved["attn.w_uk/q"][..., nope:]], axis=-1)
    found = np.einsum("bshd,bskd->bhsk", q, keys) * softmax_scale(run.cfg)
    out: Array = np.where(there[:, None], found, -np.inf)
    return out


def _log_sum(logits: Array) -> Array:
    top = logits.max(axis=-1, keepdims=True)
    out: Array = (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[..., 0]
    return out


def _core_input_grad(run: Run, saved: Saved, dout: Array) -> Core:
    """Back through the core."""
    rank, nope = run.cfg.kv_lora_rank or 0, run.cfg.qk_nope_head_dim
    keys, there = _keys(saved)
    weights = np.exp(_logits(run, saved, keys, there) - saved[f"{CORE}/lse"][..., None])
    delta = (saved["attn.w_uv/x"] * dout).sum(axis=-1).swapaxes(1, 2)
    dlogits = weights * (np.einsum("bshd,bskd->bhsk", dout, keys[..., :rank]) - delta[..., None])
    dlogits = dlogits * softmax_scale(run.cfg)
    q = np.concatenate([saved[f"{CORE}/q"], saved["attn.w_uk/q"][..., nope:]], axis=-1)
    dkeys = np.einsum("bhsk,bshd->bskd", dlogits, q)
    dkeys[..., :rank] += np.einsum("bhsk,bshd->bskd", weights, dout)
    _count(run, "I", weights.size, 3 * _width(run) + 2 * rank)
    ids, dk = saved["attn.top/order"], np.zeros((*keys.shape[:2], keys.shape[-1]), keys.dtype)
    for b in range(len(dk)):
        np.add.at(dk[b], ids[b][there[b]], dkeys[b][there[b]])
    return Core(np.einsum("bhsk,bskd->bshd", dlogits, keys), dk, weights)


def _gain(run: Run, p: Weights, op: str, saved: Saved, dy: Array) -> tuple[Array, Deferred]:
    x, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
    gain = Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd)
    return rmsnorm_input_grad(run, op, x, rstd, p[op], dy), gain


def _learn(run: Run, p: Weights, x: Array, saved: Saved, weights: Array) -> list[Deferred]:
    """The indexer's own gradients; what it reads is detached."""
    target = indexer.target_of(run, weights, _width(run))
    scored = indexer.Scored(*(saved[f"attn.index/{name}"] for name in "qkw"))
    grads = indexer.learned(run, scored, target, saved["attn.top/order"])
    dq = turned(run.cfg, grads.q, back=True)
    dk = turned(run.cfg, grads.k[:, :, None], back=True)[:, :, 0]
    raw, rstd = saved["norm.index/x"], saved["norm.index/rstd"][..., None]
    unit = (raw - saved["norm.index/lse"][..., None]) * rstd
    g = dk * p["norm.index"]
    draw = rstd * (g - g.mean(axis=-1, keepdims=True) - unit * (g * unit).mean(axis=-1, keepdims=True))
    own = [("norm.index", dk * unit), ("attn.index_bias", dk)]
    later = [Deferred(kind="bias", op="norm.index", name=name, layer=run.layer, x=d, dy=d) for name, d in own]
    projected = [
        ("attn.index_q", saved["attn.q_b/x"], dq.reshape(*dq.shape[:2], -1)),
        ("attn.index_k", x, draw),
        ("attn.index_w", x, grads.w),
    ]
    return [*later, *(_defer(run, *one) for one in projected)]
