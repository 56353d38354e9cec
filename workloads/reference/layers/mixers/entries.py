"""Entries that stand for several tokens each (DeepSeek-V4 report, section 2.3): a weighted sum of the tokens' values,
channel by channel, normed and rotated. Where entries overlap each token has a value for the entry of its own span and
one for the next, and an entry spans twice as many tokens."""

from typing import NamedTuple

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import Array
from workloads.reference.layers.rope import angles, rotate, rotate_input_grad


class Spans(NamedTuple):
    """Values and their weights in each entry [B, E, tokens, d]."""

    values: Array
    weights: Array


def spans_of(raw: Array, bias: Array, rate: int, width: int) -> Spans:
    """From projections [B, S, 2 w] to spans; tokens beyond the last whole span wait."""
    count = raw.shape[1] // rate
    parts = raw[:, : count * rate].reshape(len(raw), count, rate, -1)
    values, logits = np.split(parts, 2, axis=-1)
    logits = logits + bias.reshape(rate, -1)
    if values.shape[-1] > width:
        values, logits = _overlapped(values, width, 0.0), _overlapped(logits, width, -np.inf)
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    return Spans(values, weights / weights.sum(axis=2, keepdims=True))


def _overlapped(x: Array, width: int, before: float) -> Array:
    """Of each span the second halves of its own tokens, and the first halves of the span before."""
    first = np.full_like(x[..., :width], before)
    first[:, 1:] = x[:, :-1, :, :width]
    out: Array = np.concatenate([first, x[..., width:]], axis=2)
    return out


def _apart(dx: Array, rate: int) -> Array:
    """The transpose of `_overlapped`."""
    first = np.zeros_like(dx[:, :, :rate])
    first[:, :-1] = dx[:, 1:, :rate]
    out: Array = np.concatenate([first, dx[:, :, rate:]], axis=-1)
    return out


def pooled(spans: Spans) -> Array:
    """The weighted sums [B, E, d]."""
    out: Array = (spans.values * spans.weights).sum(axis=2)
    return out


def pooled_input_grad(spans: Spans, d: Array, length: int, rate: int) -> tuple[Array, Array]:
    """Gradients of the projections [B, S, 2 w] and, by entry, of the weights' bias [B E, rate w]."""
    dvalues = spans.weights * d[:, :, None]
    dweights = spans.values * d[:, :, None]
    dlogits = spans.weights * (dweights - (dweights * spans.weights).sum(axis=2, keepdims=True))
    if dvalues.shape[2] > rate:
        dvalues, dlogits = _apart(dvalues, rate), _apart(dlogits, rate)
    both = np.concatenate([dvalues, dlogits], axis=-1)
    whole = both.reshape(len(d), -1, both.shape[-1])
    out = np.zeros((len(d), length, both.shape[-1]), d.dtype)
    out[:, : whole.shape[1]] = whole
    return out, dlogits.reshape(-1, dlogits.shape[2] * dlogits.shape[3])


def turned(cfg: RefConfig, x: Array, *, step: int = 1, back: bool = False) -> Array:
    """x [B, S, H, d] with the end of each head rotated by its position, every `step`-th of a sequence."""
    cos, sin = (each[::step] for each in angles(cfg, x.shape[1] * step))
    turn = rotate_input_grad if back else rotate
    return np.concatenate([x[..., : -cfg.rope_dim], turn(x[..., -cfg.rope_dim :], cos, sin)], axis=-1)
