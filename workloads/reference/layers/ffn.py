"""SwiGLU feed-forward (arXiv 2002.05202), or a ReLU squared without a gate (arXiv 2109.08668), used by dense layers and
by shared experts: op prefix `dense` or `shared`."""

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad

AS_A_WHOLE = {"dense": "mlp", "shared": "shared_experts", "moe": "moe"}
"""The module that recomputes all of a feed-forward part."""


def activation(run: Run, u: Array) -> Array:
    """silu(gate) * up [..., f] of both halves u [..., 2 f]; without a gate relu(u)^2 [..., f]."""
    if not run.cfg.gated_mlp:
        return np.square(np.maximum(u, 0.0))
    gate, up = np.split(u, 2, axis=-1)
    out: Array = gate * _sigmoid(gate) * up
    return out


def activation_input_grad(run: Run, u: Array, da: Array) -> Array:
    """du, as wide as u."""
    if not run.cfg.gated_mlp:
        slope: Array = 2 * np.maximum(u, 0.0) * da
        return slope
    gate, up = np.split(u, 2, axis=-1)
    s = _sigmoid(gate)
    return np.concatenate([da * up * s * (1 + gate * (1 - s)), da * gate * s], axis=-1)


def ffn(run: Run, kind: str, p: Weights, x: Array) -> tuple[Array, Saved]:
    """down(activation(up_gate(x))) [..., hidden]; the activation counts as a part of reading `down`'s input."""
    u = linear(run, f"{kind}.up_gate", x, p[f"{kind}.up_gate"])
    a = activate(run, f"{kind}.down", u)
    saved = {f"{kind}.down/u": u, f"{kind}.down/x": a}
    return x if run.stops else linear(run, f"{kind}.down", a, p[f"{kind}.down"]), saved


def activate(run: Run, op: str, u: Array, g: Array | None = None) -> Array:
    """The activation before the GEMM `op`; rows are scaled by their gate weight g [rows] where there is one."""
    a = activation(run, u) if g is None else activation(run, u) * g[:, None]
    run.count(op, "F", read={"u": u} if g is None else {"u": u, "g": g}, written={"x": a})
    return a


def ffn_forget(run: Run, kind: str, saved: Saved) -> Saved:
    """What is left to keep of a feed-forward part, or of the experts, when it or its activation is recomputed."""
    if run.again(AS_A_WHOLE[kind]) and kind != "moe":
        return {key: array for key, array in saved.items() if not key.startswith(f"{kind}.down/")}
    drop = {f"{kind}.down/x"} if run.again("swiglu", *(["moe_act"] if kind == "moe" else [])) else set()
    return {key: array for key, array in saved.items() if key not in drop}


def ffn_restore(run: Run, kind: str, p: Weights, x: Array, saved: Saved) -> Saved:
    """Compute again what `ffn_forget` dropped of a feed-forward part as a whole."""
    return saved if f"{kind}.down/u" in saved else saved | ffn(run.at(part="R"), kind, p, x)[1]


def ffn_input_grad(run: Run, kind: str, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients; recomputes the activation where it was not kept."""
    up, down = f"{kind}.up_gate", f"{kind}.down"
    saved = ffn_restore(run, kind, p, x, saved)
    u = saved[f"{down}/u"]
    a = saved[f"{down}/x"] if f"{down}/x" in saved else activate(run.at(part="R"), down, u)
    da = linear_input_grad(run, down, dy, p[down])
    du = activation_input_grad(run, u, da)
    run.count(down, "I", read={"u": u, "dx": da}, written={"du": du})
    dx = linear_input_grad(run, up, du, p[up])
    return dx, [
        Deferred(kind="linear", op=down, name=down, layer=run.layer, x=a, dy=dy),
        Deferred(kind="linear", op=up, name=up, layer=run.layer, x=x, dy=du),
    ]


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out
