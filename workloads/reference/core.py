"""Softmax attention between given queries, keys and values, the way FlashAttention does it (arXiv 2205.14135).

Only q, k, v, the output and one log-sum-exp per query are kept; backward computes the weights again, so it has five
GEMMs where forward has two. FLOPs are those of the full square, or of the whole band under a window or in chunks:
nothing is skipped above the diagonal. A sink is one more logit of a head, without a value (arXiv 2309.17453).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from workloads.reference import band
from workloads.reference.count import Array, Run, Saved
from workloads.reference.layers.rope import softmax_scale

OP = "attn.core"
LSE = f"{OP}/lse"


class Mask(NamedTuple):
    """Which earlier keys a query sees: the last `window`, those of its `chunk`, or all; and the sinks of heads [H]."""

    window: int = 0
    chunk: int = 0
    sinks: Array | None = None


ALL = Mask()


class Gradients(NamedTuple):
    """Gradients of queries, keys and values, shaped as they are, and of each query's use of its sink [B, S, H]."""

    q: Array
    k: Array
    v: Array
    sinks: Array


def attend(run: Run, q: Array, k: Array, v: Array, scale: float, mask: Mask = ALL) -> tuple[Array, Array]:
    """Output [B, S, H, dv] and log-sum-exp [B, H, S] of causal attention.

    q [B, S, H, d], k [B, L, G, d], v [B, L, G, dv]; H a multiple of G (grouped queries). When S < L the queries are
    the last S positions.
    """
    qh, kh, vh = _heads(q), _heads(k, q.shape[2]), _heads(v, q.shape[2])
    out, lse = np.empty((*qh.shape[:3], vh.shape[-1]), qh.dtype), np.empty(qh.shape[:3], qh.dtype)
    pairs = 0
    for rows, keys, at in _parts(qh, kh, mask):
        logits = _logits(qh[:, :, rows], kh[:, :, keys], at, scale)
        lse[:, :, rows] = _log_sum(logits, mask)
        weights = np.exp(logits - lse[:, :, rows, None])
        out[:, :, rows] = _sum_values(weights, vh[:, :, keys], at)
        pairs += logits.size
    y: Array = out.transpose(0, 2, 1, 3)
    run.count(
        OP,
        "F",
        flops=2 * pairs * (q.shape[-1] + v.shape[-1]),
        read={"q": q, "k": k, "v": v},
        written={"y": y, "lse": lse},
    )
    return y, lse


def attend_input_grad(
    run: Run, q: Array, k: Array, v: Array, out: Array, lse: Array, dout: Array, scale: float, mask: Mask = ALL
) -> Gradients:
    """Gradients of `attend` (FlashAttention's algorithm 4, without tiles)."""
    qh, kh, vh = _heads(q), _heads(k, q.shape[2]), _heads(v, q.shape[2])
    oh, doh = _heads(out), _heads(dout)
    dq, dk, dv = np.zeros_like(qh), np.zeros_like(kh), np.zeros_like(vh)
    delta = (oh * doh).sum(axis=-1)
    pairs = 0
    for rows, keys, at in _parts(qh, kh, mask):
        weights = np.exp(_logits(qh[:, :, rows], kh[:, :, keys], at, scale) - lse[:, :, rows, None])
        dweights = _products(doh[:, :, rows], vh[:, :, keys], at)
        dlogits = weights * (dweights - delta[:, :, rows, None]) * scale
        dv[:, :, keys] += _sum_queries(weights, doh[:, :, rows], at)
        dq[:, :, rows] += _sum_values(dlogits, kh[:, :, keys], at)
        dk[:, :, keys] += _sum_queries(dlogits, qh[:, :, rows], at)
        pairs += weights.size
    used = np.zeros_like(lse) if mask.sinks is None else np.exp(mask.sinks[:, None] - lse)
    grads = Gradients(
        dq.transpose(0, 2, 1, 3), _ungroup(dk, k.shape[2]), _ungroup(dv, v.shape[2]), (-used * delta).swapaxes(1, 2)
    )
    run.count(
        OP,
        "I",
        flops=2 * pairs * (3 * q.shape[-1] + 2 * v.shape[-1]),
        read={"q": q, "k": k, "v": v, "y": out, "lse": lse, "dy": dout},
        written={"dq": grads.q, "dk": grads.k, "dv": grads.v},
    )
    return grads


def core_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep when the attention core is recomputed: its output is, as the input of the next GEMM."""
    return {key: array for key, array in saved.items() if key != LSE} if run.again("core_attn") else saved


def core_restore(run: Run, saved: Saved, mask: Mask = ALL) -> Saved:
    """Compute again what `core_forget` dropped."""
    if LSE in saved:
        return saved
    q, k, v = (saved[f"{OP}/{name}"] for name in "qkv")
    return saved | {LSE: attend(run.at(part="R"), q, k, v, softmax_scale(run.cfg), mask)[1]}


def _parts(q: Array, k: Array, mask: Mask) -> Iterator[tuple[slice, slice, Array | None]]:
    """Queries and keys that are multiplied together; of a window, where each query's keys are."""
    everything = slice(None)
    if mask.chunk:
        yield from ((span, span, None) for span in band.spans(q.shape[2], mask.chunk))
    elif mask.window and mask.window < k.shape[2]:
        yield everything, everything, band.reach(q.shape[2], mask.window)
    else:
        yield everything, everything, None


def _log_sum(logits: Array, mask: Mask) -> Array:
    """Log of the sum of exponentials [B, H, S], the sink's included."""
    top = logits.max(axis=-1)
    if mask.sinks is not None:
        top = np.maximum(top, mask.sinks[:, None])
    total = np.exp(logits - top[..., None]).sum(axis=-1)
    if mask.sinks is not None:
        total = total + np.exp(mask.sinks[:, None] - top)
    out: Array = top + np.log(total)
    return out


def _logits(q: Array, k: Array, at: Array | None, scale: float) -> Array:
    """Scaled products with the future masked [B, H, S, L]; of a window only its keys [B, H, S, W]."""
    if at is not None:
        return band.logits_of(q, band.gathered(k, at), at, scale)
    logits = (q @ k.swapaxes(-1, -2)) * scale
    s, length = logits.shape[-2:]
    future = np.arange(length)[None, :] > np.arange(length - s, length)[:, None]
    masked: Array = np.where(future, -np.inf, logits)
    return masked


def _products(x: Array, keys: Array, at: Array | None) -> Array:
    """x times each of its keys or values."""
    if at is None:
        plain: Array = x @ keys.swapaxes(-1, -2)
        return plain
    out: Array = np.einsum("bhsd,bhswd->bhsw", x, band.gathered(keys, at))
    return out


def _sum_values(weights: Array, values: Array, at: Array | None) -> Array:
    """Weighted sum of what each query sees."""
    if at is None:
        plain: Array = weights @ values
        return plain
    out: Array = np.einsum("bhsw,bhswd->bhsd", weights, band.gathered(values, at))
    return out


def _sum_queries(weights: Array, x: Array, at: Array | None) -> Array:
    """Weighted sum over the queries that see a key."""
    if at is None:
        plain: Array = weights.swapaxes(-1, -2) @ x
        return plain
    return band.scattered(weights[..., None] * x[:, :, :, None, :], at)


def _heads(x: Array, heads: int | None = None) -> Array:
    """[B, S, G, d] to [B, H, S, d], each key/value head repeated for its group of queries."""
    x = x.transpose(0, 2, 1, 3)
    return x if heads in (None, x.shape[1]) else np.repeat(x, (heads or 1) // x.shape[1], axis=1)


def _ungroup(dx: Array, groups: int) -> Array:
    """[B, H, L, d] to [B, L, G, d], summed over the queries that shared a head."""
    b, h, length, d = dx.shape
    summed: Array = dx.reshape(b, groups, h // groups, length, d).sum(axis=2)
    return summed.transpose(0, 2, 1, 3)
