"""DeepSeek-V4's attention (its report, section 2.3): one vector of a token is its key and its value, of all heads.

Queries attend to the last tokens, to entries of several tokens (`entries`), all or the best (`indexer`), and to a sink.
Outputs are rotated back, projected in groups of heads, and then together. One base of the rotary embedding serves all
layers here; published models have two, which changes neither FLOP nor bytes.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference import band
from workloads.reference.config import RefConfig
from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers import indexer
from workloads.reference.layers.mixers.entries import pooled, pooled_input_grad, spans_of, turned
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad

CORE = "attn.core"


class Seen(NamedTuple):
    """Keys of each query [B, S, K, d] in one row: tokens of the window, then entries; which of them there are
    [B, S, K]; and the positions of both."""

    keys: Array
    there: Array
    tokens: Array
    entries: Array


def shared_key(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Attention output [B, S, hidden] of normalised input x [B, S, hidden]."""
    c = run.cfg
    first = linear(run, "attn.qkv_a", x, p["attn.qkv_a"])
    saved: Saved = {"norm.q_lora/x": first[..., : c.q_lora_rank], "norm.kv/x": first[..., c.q_lora_rank :]}
    saved |= _normed(run, p, saved)
    saved |= _queries(run, p, saved) | _compressed(run, p, x, saved)
    seen = _seen(run, saved)
    logits = _logits(run, p, saved, seen)
    lse = _log_sum(logits, p["attn.sinks"])
    out = np.einsum("bhsk,bskd->bshd", np.exp(logits - lse[..., None]), seen.keys)
    _count(run, "F", logits.size, 2 * c.v_dim)
    saved |= {f"{CORE}/lse": lse, "attn.o_a/x": _flat(turned(c, out, back=True))}
    saved["attn.o_b/x"] = _grouped(run, "F", saved["attn.o_a/x"], p["attn.o_a"])
    return linear(run, "attn.o_b", saved["attn.o_b/x"], p["attn.o_b"]), saved


def shared_key_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep under the policy of recomputation."""
    drop = {f"{CORE}/q", "norm.q/rstd"} if run.again("mla_up", "mla_up_proj") else set()
    drop |= {f"{CORE}/lse"} if run.again("core_attn") else set()
    kept = {key: array for key, array in saved.items() if key not in drop}
    return forget(run, kept, {"norm.q_lora": "attn.q_b/x", "norm.kv": f"{CORE}/k"}, "mla_up_proj")


def shared_key_restore(run: Run, p: Weights, saved: Saved) -> Saved:
    """Compute again what was dropped."""
    again = run.at(part="R")
    if "norm.kv/rstd" not in saved:
        saved = saved | _normed(again, p, saved)
    if f"{CORE}/q" not in saved:
        saved = saved | _queries(again, p, saved)
    if f"{CORE}/lse" not in saved:
        logits = _logits(again, p, saved, _seen(again, saved))
        _count(again, "F", logits.size, 2 * run.cfg.v_dim)
        saved = saved | {f"{CORE}/lse": _log_sum(logits, p["attn.sinks"])}
    return saved


def shared_key_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    c = run.cfg
    dgroups = linear_input_grad(run, "attn.o_b", dy, p["attn.o_b"])
    dout = _heads(c, _grouped(run, "I", dgroups, p["attn.o_a"].swapaxes(1, 2)))
    deferred = [_defer(run, "attn.o_b", saved["attn.o_b/x"], dy), _group_grad(run, saved["attn.o_a/x"], dgroups)]
    delta = (_heads(c, saved["attn.o_a/x"]) * dout).sum(axis=-1).swapaxes(1, 2)
    seen = _seen(run, saved)
    lse, dout = saved[f"{CORE}/lse"], turned(c, dout)
    weights = np.exp(_logits(run, p, saved, seen) - lse[..., None])
    dlogits = weights * (np.einsum("bshd,bskd->bhsk", dout, seen.keys) - delta[..., None])
    dkeys = np.einsum("bhsk,bshd->bskd", weights, dout)
    dlogits_scaled = dlogits * c.v_dim**-0.5
    dq = np.einsum("bhsk,bskd->bshd", dlogits_scaled, seen.keys)
    dkeys += np.einsum("bhsk,bshd->bskd", dlogits_scaled, saved[f"{CORE}/q"])
    _count(run, "I", weights.size, 5 * c.v_dim)
    dsinks = (-np.exp(p["attn.sinks"][:, None] - lse) * delta).swapaxes(1, 2)
    deferred.append(Deferred(kind="bias", op=CORE, name="attn.sinks", layer=run.layer, x=dsinks, dy=dsinks))
    deferred += _learn(run, p, x, saved, weights[..., seen.tokens.shape[-1] :])
    dx_first, more = _first_input_grad(run, p, x, saved, dq, _to_tokens(dkeys, seen))
    dx_entries, also = _entries_input_grad(run, p, x, saved, _to_entries(dkeys, seen, saved))
    return dx_first + dx_entries, [*deferred, *more, *also]


def _flat(x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1)


def _heads(c: RefConfig, x: Array) -> Array:
    return x.reshape(*x.shape[:2], -1, c.v_dim)


def _defer(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    return Deferred(kind="linear", op=op, name=op, layer=run.layer, x=x, dy=dy)


def _count(run: Run, part: str, pairs: int, width: int) -> None:
    run.count(CORE, part, flops=2 * pairs * width, read={}, written={})


def _grouped(run: Run, part: str, x: Array, w: Array) -> Array:
    """x [B, S, g k] by w [g, k, n]: [B, S, g n]."""
    rows = x.reshape(*x.shape[:2], w.shape[0], w.shape[1])
    y = np.einsum("bsgk,gkn->bsgn", rows, w)
    run.count("attn.o_a", part, flops=2 * x.size * w.shape[2], read={"x": x, "w": w}, written={"y": y})
    return _flat(y)


def _group_grad(run: Run, x: Array, dy: Array) -> Deferred:
    """The groups' weight gradients as those of a grouped GEMM: rows by group."""
    groups = run.cfg.o_groups
    rows = [np.moveaxis(one.reshape(*one.shape[:2], groups, -1), 2, 0) for one in (x, dy)]
    a, d = (one.reshape(-1, one.shape[-1]) for one in rows)
    counts = np.full(groups, len(a) // groups)
    return Deferred(kind="grouped", op="attn.o_a", name="attn.o_a", layer=run.layer, x=a, dy=d, extra=counts)


def _normed(run: Run, p: Weights, saved: Saved) -> Saved:
    """The queries' latent, normed, and the key, normed and rotated."""
    out: Saved = {}
    out["attn.q_b/x"], out["norm.q_lora/rstd"] = rmsnorm(run, "norm.q_lora", saved["norm.q_lora/x"], p["norm.q_lora"])
    key, out["norm.kv/rstd"] = rmsnorm(run, "norm.kv", saved["norm.kv/x"], p["norm.kv"])
    return out | {f"{CORE}/k": turned(run.cfg, key[:, :, None])[:, :, 0]}


def _queries(run: Run, p: Weights, saved: Saved) -> Saved:
    """Queries of each head, divided by their root mean square and rotated."""
    q = _heads(run.cfg, linear(run, "attn.q_b", saved["attn.q_b/x"], p["attn.q_b"]))
    rstd = 1.0 / np.sqrt((q * q).mean(axis=-1) + run.cfg.rms_norm_eps)
    return {f"{CORE}/q": turned(run.cfg, q * rstd[..., None]), "norm.q/rstd": rstd}


def _makers(run: Run) -> tuple[tuple[str, str, str, int], ...]:
    """Of each kind of entry: the projection, the norm, what becomes of it, and its width."""
    c, mixer = run.cfg, run.cfg.mixer(run.layer)
    if mixer == "sliding_attention":
        return ()
    made = (("attn.compress", "norm.entry", f"{CORE}/e", c.v_dim),)
    if mixer == "heavily_compressed_attention":
        return made
    return (*made, ("attn.index_compress", "norm.index", "attn.index/k", c.index_head_dim))


def _compressed(run: Run, p: Weights, x: Array, saved: Saved) -> Saved:
    """Entries; where an indexer chooses, its entries, queries and weights, and the best for each query."""
    c, rate, out = run.cfg, run.cfg.compress_rate(run.layer), Saved()
    for op, norm, into, wide in _makers(run):
        raw = out[f"{op}.pool/x"] = linear(run, op, x, p[op])
        out[f"{norm}/x"] = pooled(spans_of(raw, p[f"{op}.bias"], rate, wide))
        y, out[f"{norm}/rstd"] = rmsnorm(run, norm, out[f"{norm}/x"], p[norm])
        out[into] = turned(c, y[:, :, None], step=rate)[:, :, 0]
    if "attn.index/k" not in out:
        return out
    q = linear(run, "attn.index_q", saved["attn.q_b/x"], p["attn.index_q"])
    out["attn.index/q"] = turned(c, q.reshape(*q.shape[:2], c.index_n_heads, -1))
    out["attn.index/w"] = linear(run, "attn.index_w", x, p["attn.index_w"])
    entries = out["attn.index/k"].shape[1]
    if entries:
        scored = indexer.scores(run, indexer.Scored(*(out[f"attn.index/{name}"] for name in "qkw")))
        seen = (np.arange(x.shape[1]) + 1) // rate
        out["attn.top/order"] = indexer.best(scored, min(c.index_topk, entries), seen)
    return out


def _seen(run: Run, saved: Saved) -> Seen:
    """What each query attends to: the last tokens, and entries of tokens that came before."""
    key, rate = saved[f"{CORE}/k"], run.cfg.compress_rate(run.layer)
    b, s, _ = key.shape
    tokens = np.broadcast_to(band.reach(s, run.cfg.sliding_window), (b, s, min(run.cfg.sliding_window, s)))
    entry = saved.get(f"{CORE}/e", key[:, :0])
    listed = np.arange(entry.shape[1])
    whole = np.where(listed < ((np.arange(s) + 1) // rate)[:, None], listed, -1) if rate else np.zeros((s, 0), int)
    entries = saved.get("attn.top/order", np.broadcast_to(whole, (b, *whole.shape)))
    picked = [
        np.take_along_axis(x[:, None], np.maximum(at, 0)[..., None], axis=2)
        for x, at in ((key, tokens), (entry, entries))
        if at.shape[-1]
    ]
    there = np.concatenate([tokens, entries], axis=-1) >= 0
    return Seen(np.concatenate(picked, axis=2), there, tokens, entries)


def _logits(run: Run, p: Weights, saved: Saved, seen: Seen) -> Array:
    """Scaled products [B, H, S, K], those with what is not there masked."""
    found = np.einsum("bshd,bskd->bhsk", saved[f"{CORE}/q"], seen.keys) * run.cfg.v_dim**-0.5
    out: Array = np.where(seen.there[:, None], found, -np.inf)
    return out


def _log_sum(logits: Array, sinks: Array) -> Array:
    """Log of the sum of exponentials [B, H, S], the sink's included."""
    top = np.maximum(logits.max(axis=-1), sinks[:, None])
    out: Array = top + np.log(np.exp(logits - top[..., None]).sum(axis=-1) + np.exp(sinks[:, None] - top))
    return out


def _scattered(dkeys: Array, at: Array, length: int) -> Array:
    """Gradients [B, S, K, d] summed into the rows [B, length, d] that they are of."""
    out = np.zeros((len(dkeys), length, dkeys.shape[-1]), dkeys.dtype)
    for b in range(len(dkeys)):
        there = at[b] >= 0
        np.add.at(out[b], at[b][there], dkeys[b][there])
    return out


def _to_tokens(dkeys: Array, seen: Seen) -> Array:
    return _scattered(dkeys[:, :, : seen.tokens.shape[-1]], seen.tokens, dkeys.shape[1])


def _to_entries(dkeys: Array, seen: Seen, saved: Saved) -> Array:
    count = saved[f"{CORE}/e"].shape[1] if f"{CORE}/e" in saved else 0
    return _scattered(dkeys[:, :, seen.tokens.shape[-1] :], seen.entries, count)


def _gain(run: Run, p: Weights, op: str, saved: Saved, dy: Array) -> tuple[Array, Deferred]:
    x, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
    gain = Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd)
    return rmsnorm_input_grad(run, op, x, rstd, p[op], dy), gain


def _first_input_grad(
    run: Run, p: Weights, x: Array, saved: Saved, dq: Array, dkey: Array
) -> tuple[Array, list[Deferred]]:
    """From the gradients of queries and keys to the input's."""
    c, q = run.cfg, turned(run.cfg, saved[f"{CORE}/q"], back=True)
    dq = turned(c, dq, back=True)
    dup = _flat(saved["norm.q/rstd"][..., None] * (dq - q * (q * dq).mean(axis=-1, keepdims=True)))
    dlatent = linear_input_grad(run, "attn.q_b", dup, p["attn.q_b"])
    dlatent, gain_q = _gain(run, p, "norm.q_lora", saved, dlatent)
    dkey, gain_k = _gain(run, p, "norm.kv", saved, turned(c, dkey[:, :, None], back=True)[:, :, 0])
    dfirst = np.concatenate([dlatent, dkey], axis=-1)
    dx = linear_input_grad(run, "attn.qkv_a", dfirst, p["attn.qkv_a"])
    up = _defer(run, "attn.q_b", saved["attn.q_b/x"], dup)
    return dx, [up, gain_q, gain_k, _defer(run, "attn.qkv_a", x, dfirst)]


def _made_input_grad(
    run: Run, p: Weights, x: Array, saved: Saved, maker: tuple[str, str, str, int], d: Array
) -> tuple[Array, list[Deferred]]:
    """From the gradient of entries to that of their projection."""
    op, norm, _, wide = maker
    rate, raw = run.cfg.compress_rate(run.layer), saved[f"{maker[0]}.pool/x"]
    d, gain = _gain(run, p, norm, saved, turned(run.cfg, d[:, :, None], step=rate, back=True)[:, :, 0])
    draw, dbias = pooled_input_grad(spans_of(raw, p[f"{op}.bias"], rate, wide), d, raw.shape[1], rate)
    bias = Deferred(kind="bias", op=f"{op}.pool", name=f"{op}.bias", layer=run.layer, x=dbias, dy=dbias)
    return draw, [gain, bias, _defer(run, op, x, draw)]


def _entries_input_grad(run: Run, p: Weights, x: Array, saved: Saved, d: Array) -> tuple[Array, list[Deferred]]:
    makers = _makers(run)
    if not makers:
        return np.zeros_like(x), []
    draw, deferred = _made_input_grad(run, p, x, saved, makers[0], d)
    return linear_input_grad(run, "attn.compress", draw, p["attn.compress"]), deferred


def _learn(run: Run, p: Weights, x: Array, saved: Saved, weights: Array) -> list[Deferred]:
    """The indexer's own gradients; what it reads is detached."""
    if "attn.top/order" not in saved:
        return []
    target = indexer.target_of(run, weights, run.cfg.v_dim)
    scored = indexer.Scored(*(saved[f"attn.index/{name}"] for name in "qkw"))
    grads = indexer.learned(run, scored, target, saved["attn.top/order"])
    dq = _flat(turned(run.cfg, grads.q, back=True))
    _, deferred = _made_input_grad(run, p, x, saved, _makers(run)[1], grads.k)
    queries = _defer(run, "attn.index_q", saved["attn.q_b/x"], dq)
    return [*deferred, queries, _defer(run, "attn.index_w", x, grads.w)]
