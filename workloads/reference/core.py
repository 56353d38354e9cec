"""Softmax attention between given queries, keys and values, the way FlashAttention does it (arXiv 2205.14135).

Only q, k, v, the output and one log-sum-exp per query are kept; backward computes the weights again, so it has five
GEMMs where forward has two. FLOPs are those of the full square: nothing is skipped above the diagonal.
"""

import numpy as np

from workloads.reference.count import Array, Run, Saved
from workloads.reference.layers.rope import softmax_scale

OP = "attn.core"
LSE = f"{OP}/lse"


def attend(run: Run, q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
    """Output [B, S, H, dv] and log-sum-exp [B, H, S] of causal attention.

    q [B, S, H, d], k [B, L, G, d], v [B, L, G, dv]; H a multiple of G (grouped queries). When S < L the queries are
    the last S positions.
    """
    qh, kh, vh = _heads(q), _heads(k, q.shape[2]), _heads(v, q.shape[2])
    logits = _logits(qh, kh, scale)
    top = logits.max(axis=-1, keepdims=True)
    lse: Array = (top + np.log(np.exp(logits - top).sum(axis=-1, keepdims=True)))[..., 0]
    out: Array = (np.exp(logits - lse[..., None]) @ vh).transpose(0, 2, 1, 3)
    run.count(
        OP,
        "F",
        flops=_square(qh, kh) * (q.shape[-1] + v.shape[-1]),
        read={"q": q, "k": k, "v": v},
        written={"y": out, "lse": lse},
    )
    return out, lse


def attend_input_grad(
    run: Run, q: Array, k: Array, v: Array, out: Array, lse: Array, dout: Array, scale: float
) -> tuple[Array, Array, Array]:
    """dq, dk, dv shaped as q, k, v (FlashAttention's algorithm 4, without tiles)."""
    qh, kh, vh = _heads(q), _heads(k, q.shape[2]), _heads(v, q.shape[2])
    oh, doh = _heads(out), _heads(dout)
    weights = np.exp(_logits(qh, kh, scale) - lse[..., None])
    dv = weights.swapaxes(-1, -2) @ doh
    dweights = doh @ vh.swapaxes(-1, -2)
    dlogits = weights * (dweights - (oh * doh).sum(axis=-1, keepdims=True)) * scale
    dq, dk = dlogits @ kh, dlogits.swapaxes(-1, -2) @ qh
    grads = dq.transpose(0, 2, 1, 3), _ungroup(dk, k.shape[2]), _ungroup(dv, v.shape[2])
    run.count(
        OP,
        "I",
        flops=_square(qh, kh) * (3 * q.shape[-1] + 2 * v.shape[-1]),
        read={"q": q, "k": k, "v": v, "y": out, "lse": lse, "dy": dout},
        written={"dq": grads[0], "dk": grads[1], "dv": grads[2]},
    )
    return grads


def core_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep when the attention core is recomputed: its output is, as the input of the next GEMM."""
    return {key: array for key, array in saved.items() if key != LSE} if run.again("core_attn") else saved


def core_restore(run: Run, saved: Saved) -> Saved:
    """Compute again what `core_forget` dropped."""
    if LSE in saved:
        return saved
    q, k, v = (saved[f"{OP}/{name}"] for name in "qkv")
    return saved | {LSE: attend(run.at(part="R"), q, k, v, softmax_scale(run.cfg))[1]}


def _logits(q: Array, k: Array, scale: float) -> Array:
    """Scaled products with the future masked [B, H, S, L]."""
    logits = (q @ k.swapaxes(-1, -2)) * scale
    s, length = logits.shape[-2:]
    future = np.arange(length)[None, :] > np.arange(length - s, length)[:, None]
    masked: Array = np.where(future, -np.inf, logits)
    return masked


def _heads(x: Array, heads: int | None = None) -> Array:
    """[B, S, G, d] to [B, H, S, d], each key/value head repeated for its group of queries."""
    x = x.transpose(0, 2, 1, 3)
    return x if heads in (None, x.shape[1]) else np.repeat(x, (heads or 1) // x.shape[1], axis=1)


def _ungroup(dx: Array, groups: int) -> Array:
    """[B, H, L, d] to [B, L, G, d], summed over the queries that shared a head."""
    b, h, length, d = dx.shape
    summed: Array = dx.reshape(b, groups, h // groups, length, d).sum(axis=2)
    return summed.transpose(0, 2, 1, 3)


def _square(q: Array, k: Array) -> int:
    """2 B H S L: FLOPs of one product over the square per element of the contracted (or produced) width."""
    return int(2 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
