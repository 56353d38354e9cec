"""GEMMs, one function for each of forward, input gradient and weight gradient.

Weights lie as [in, out], so y = x W. What the weight gradient needs is put into a `Deferred`, a plain value that
may wait: zero-bubble schedules (arXiv 2401.10241) run it long after the input gradient.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from workloads.reference.count import Array, Run, Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferred:
    """A weight gradient not yet computed: which weight, and the two arrays it is made of."""

    kind: Literal["linear", "grouped", "gain", "bias", "rows"]
    op: str
    name: str  # key of the weight in its unit
    layer: int
    x: Array  # input; for "rows" the token ids
    dy: Array
    extra: Array | None = None  # tokens per expert ("grouped"), 1/rms ("gain")
    size: int = 0  # rows of the table ("rows")


def linear(run: Run, op: str, x: Array, w: Array) -> Array:
    """y [..., n] = x [..., k] w [k, n]."""
    if x.shape[-1] != w.shape[0]:
        raise ValueError(f"{op}: input width {x.shape[-1]} must equal the weight's {w.shape[0]} rows")
    rows = x.size // x.shape[-1]
    y = run.precision.matmul(x.reshape(rows, x.shape[-1]), w, op=op, part="F").reshape(*x.shape[:-1], w.shape[1])
    run.count(op, "F", flops=2 * rows * w.size, read={"x": x, "w": w}, written={"y": y})
    return y


def linear_input_grad(run: Run, op: str, dy: Array, w: Array) -> Array:
    """dx [..., k] = dy [..., n] w^T."""
    rows = dy.size // dy.shape[-1]
    dx = run.precision.matmul(dy.reshape(rows, dy.shape[-1]), w.T, op=op, part="I").reshape(*dy.shape[:-1], w.shape[0])
    run.count(op, "I", flops=2 * rows * w.size, read={"dy": dy, "w": w}, written={"dx": dx})
    return dx


def linear_weight_grad(run: Run, op: str, x: Array, dy: Array) -> Array:
    """dw [k, n] = x^T [k, rows] dy [rows, n]."""
    rows = x.size // x.shape[-1]
    dw = run.precision.matmul(x.reshape(rows, x.shape[-1]).T, dy.reshape(rows, dy.shape[-1]), op=op, part="W")
    run.count(op, "W", flops=2 * rows * dw.size, read={"x": x, "dy": dy}, written={"dw": dw})
    return dw


def grouped(run: Run, op: str, x: Array, w: Array, counts: Array) -> Array:
    """y [rows, n]: rows sorted by expert, the first counts[0] of them through w[0] and so on; w [experts, k, n].

    An expert without rows costs nothing and its weights are not read.
    """
    y = np.zeros((x.shape[0], w.shape[2]), x.dtype)
    for expert, rows in _segments(counts):
        y[rows] = run.precision.matmul(x[rows], w[expert], op=op, part="F")
    run.count(op, "F", flops=2 * x.size * w.shape[2], read={"x": x, "w": w[counts > 0]}, written={"y": y})
    return y


def grouped_input_grad(run: Run, op: str, dy: Array, w: Array, counts: Array) -> Array:
    """dx [rows, k] of `grouped`."""
    dx = np.zeros((dy.shape[0], w.shape[1]), dy.dtype)
    for expert, rows in _segments(counts):
        dx[rows] = run.precision.matmul(dy[rows], w[expert].T, op=op, part="I")
    run.count(op, "I", flops=2 * dy.size * w.shape[1], read={"dy": dy, "w": w[counts > 0]}, written={"dx": dx})
    return dx


def grouped_weight_grad(run: Run, op: str, x: Array, dy: Array, counts: Array) -> Array:
    """dw [experts, k, n] of `grouped`; zero for an expert without rows."""
    dw = np.zeros((len(counts), x.shape[1], dy.shape[1]), x.dtype)
    for expert, rows in _segments(counts):
        dw[expert] = run.precision.matmul(x[rows].T, dy[rows], op=op, part="W")
    run.count(op, "W", flops=2 * x.size * dy.shape[1], read={"x": x, "dy": dy}, written={"dw": dw[counts > 0]})
    return dw


def weight_grads(run: Run, deferred: list[Deferred]) -> Weights:
    """Compute the waiting weight gradients; a weight named twice gets the sum."""
    grads: Weights = {}
    for d in deferred:
        dw = _weight_grad(run.at(layer=d.layer), d)
        grads[d.name] = grads[d.name] + dw if d.name in grads else dw
    return grads


def _weight_grad(run: Run, d: Deferred) -> Array:
    if d.kind == "linear":
        return linear_weight_grad(run, d.op, d.x, d.dy)
    if d.kind == "rows":
        return _rows_weight_grad(run, d)
    if d.kind == "bias":
        return _bias_weight_grad(run, d)
    assert d.extra is not None
    if d.kind == "grouped":
        return grouped_weight_grad(run, d.op, d.x, d.dy, d.extra)
    return _gain_weight_grad(run, d.op, d.x, d.dy, d.extra)


def _gain_weight_grad(run: Run, op: str, x: Array, dy: Array, rstd: Array) -> Array:
    """Gradient of RMSNorm's gain [width]: the sum over tokens of dy times the normalised input."""
    dw: Array = (dy * x * rstd[..., None]).reshape(-1, x.shape[-1]).sum(axis=0)
    run.count(op, "W", read={"x": x, "dy": dy, "rstd": rstd}, written={"dw": dw})
    return dw


def _bias_weight_grad(run: Run, d: Deferred) -> Array:
    """Gradient of a bias [width]: the sum over tokens."""
    dw: Array = d.dy.reshape(-1, d.dy.shape[-1]).sum(axis=0)
    run.count(d.op, "W", read={"dy": d.dy}, written={"dw": dw})
    return dw


def _rows_weight_grad(run: Run, d: Deferred) -> Array:
    """Gradient of an embedding table [vocabulary, width]: each token adds to its own row."""
    dw = np.zeros((d.size, d.dy.shape[-1]), d.dy.dtype)
    np.add.at(dw, d.x.reshape(-1), d.dy.reshape(-1, d.dy.shape[-1]))
    run.count(d.op, "W", read={"tokens": d.x, "dy": d.dy}, written={"dw": dw})
    return dw


def _segments(counts: Array) -> list[tuple[int, slice]]:
    ends = np.cumsum(counts)
    return [(i, slice(int(end - n), int(end))) for i, (n, end) in enumerate(zip(counts, ends, strict=True)) if n]
