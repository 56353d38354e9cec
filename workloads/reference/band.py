"""Attention over some of the earlier keys only: a window, or chunks. Only the band of scores is computed, the part of
it that lies before the first key or above the diagonal included."""

import numpy as np

from workloads.reference.count import Array


def spans(length: int, chunk: int) -> list[slice]:
    """The chunks of a sequence; the last may be shorter."""
    return [slice(first, min(first + chunk, length)) for first in range(0, length, chunk)]


def reach(length: int, window: int) -> Array:
    """Positions [S, W] of the keys that each query sees, the last its own; below 0: there is none."""
    wide = min(window, length)
    out: Array = np.arange(length)[:, None] - np.arange(wide - 1, -1, -1)[None, :]
    return out


def gathered(x: Array, at: Array) -> Array:
    """Rows of x [B, H, S, d] at positions [S, W]: [B, H, S, W, d]."""
    out: Array = x[:, :, np.maximum(at, 0)]
    return out


def logits_of(q: Array, keys: Array, at: Array, scale: float) -> Array:
    """Scaled products [B, H, S, W] with gathered keys, those that do not exist masked."""
    out: Array = np.where(at < 0, -np.inf, np.einsum("bhsd,bhswd->bhsw", q, keys) * scale)
    return out


def scattered(dx: Array, at: Array) -> Array:
    """The transpose of `gathered`: [B, H, S, W, d] summed into [B, H, S, d]."""
    out = np.zeros((*dx.shape[:3], dx.shape[-1]), dx.dtype)
    for column in range(at.shape[1]):
        rows = at[:, column] >= 0
        out[:, :, at[rows, column]] += dx[:, :, rows, column]  # a key is only once in a column
    return out
