"""Mamba-1 (arXiv 2312.00752, section 3; Jamba, arXiv 2403.19887): each channel has a state of its own.

h_t = exp(step_t A) h_(t-1) + step_t b_t u_t and y_t = c_t h_t + D u_t, where u is the convolved input and steps, b and
c come from it; the output is gated by SiLU of the other half of the projection. Jamba norms steps, b and c. Kept of the
states are those at the ends of chunks, with the decay up to there; backward makes the others again.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers.recurrent import _conv_input_grad, _convolved, _sigmoid, _silu_slope, _summed
from workloads.reference.layers.norm import rmsnorm, rmsnorm_input_grad

CHUNK = 2048
"""Tokens of a chunk, as in the published kernel."""
CHOSEN = ("step", "b", "c")


class Inputs(NamedTuple):
    """Of a scan: u and steps [B, S, D], b and c [B, S, N], decay rates a [D, N]."""

    u: Array
    step: Array
    b: Array
    c: Array
    a: Array


def _split(run: Run, chosen: Array) -> list[Array]:
    rank = run.cfg.mamba_dt_rank
    return list(np.split(chosen, [rank, rank + run.cfg.ssm_state_size], axis=-1))


def selective(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Output [B, S, hidden] of normalised input x [B, S, hidden]."""
    made, gate = np.split(linear(run, "mixer.in", x, p["mixer.in"]), 2, axis=-1)
    convolved = _convolved(p, made)
    saved: Saved = {"mixer.conv/x": made, "mixer.scan/z": gate, "mixer.select/x": convolved * _sigmoid(convolved)}
    saved |= _chosen(run, p, linear(run, "mixer.select", saved["mixer.select/x"], p["mixer.select"]))
    saved["mixer.scan/step"] = linear(run, "mixer.step", saved["mixer.step/x"], p["mixer.step"])
    saved["mixer.scan/y"], saved["mixer.scan/ends"] = scan(_inputs(p, saved), p["mixer.skip"], CHUNK)
    saved["mixer.out/x"] = saved["mixer.scan/y"] * gate * _sigmoid(gate)
    if run.ends_here:
        return x, saved
    return linear(run, "mixer.out", saved["mixer.out/x"], p["mixer.out"]), saved


def _chosen(run: Run, p: Weights, made: Array) -> Saved:
    """Steps, b and c of each token; where they are normed, also what goes into the norms."""
    parts = dict(zip(CHOSEN, _split(run, made), strict=True))
    saved: Saved = {}
    if run.cfg.mamba_state_norms:
        saved["mixer.norms/x"] = made
        for name, part in parts.items():
            parts[name], saved[f"norm.{name}/rstd"] = rmsnorm(run, f"norm.{name}", part, _gain(p, name, part))
    return saved | {"mixer.step/x": parts["step"], "mixer.scan/b": parts["b"], "mixer.scan/c": parts["c"]}


def _gain(p: Weights, name: str, x: Array) -> Array:
    """A norm's weights; ones where it has none (Falcon-Mamba)."""
    return p.get(f"norm.{name}", np.ones(x.shape[-1]))


def _inputs(p: Weights, saved: Saved) -> Inputs:
    step = np.logaddexp(0.0, saved["mixer.scan/step"] + p["mixer.dt_bias"])
    b, c = saved["mixer.scan/b"], saved["mixer.scan/c"]
    return Inputs(saved["mixer.select/x"], step, b, c, -np.exp(p["mixer.a_log"].reshape(-1, b.shape[-1])))


def _states(x: Inputs, first: Array, start: int, stop: int) -> Array:
    """States [B, T, D, N] of the tokens from `start` on, behind the state `first`."""
    out, state = [], first
    for t in range(start, stop):
        step = x.step[:, t, :, None]
        state = np.exp(step * x.a) * state + step * x.u[:, t, :, None] * x.b[:, t, None, :]
        out.append(state)
    return np.stack(out, axis=1)


def scan(x: Inputs, skip: Array, chunk: int) -> tuple[Array, Array]:
    """Output [B, S, D]; decays and states at the ends of chunks [B, D, chunks, 2 N]."""
    batch, length, wide = x.u.shape
    state, ends = np.zeros((batch, wide, x.a.shape[1]), x.u.dtype), []
    y = skip * x.u
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        states = _states(x, state, start, stop)
        y[:, start:stop] += (states * x.c[:, start:stop, None, :]).sum(-1)
        state = states[:, -1]
        decay = np.exp(x.step[:, :stop].sum(axis=1)[..., None] * x.a)
        ends.append(np.concatenate([decay, state], axis=-1))
    return y, np.stack(ends, axis=2)


def scan_input_grad(x: Inputs, ends: Array, dy: Array, chunk: int) -> Inputs:
    """Gradients of the inputs but through the skip, and of the decay rates."""
    grads = Inputs(*(np.zeros_like(one) for one in x))
    length, rows = x.u.shape[1], x.a.shape[1]
    dstate = np.zeros_like(ends[:, :, 0, rows:])
    for at in reversed(range(ends.shape[2])):
        start, stop = at * chunk, min((at + 1) * chunk, length)
        first = ends[:, :, at - 1, rows:] if at else np.zeros_like(dstate)
        states = _states(x, first, start, stop)
        for t in reversed(range(start, stop)):
            before = states[:, t - start - 1] if t > start else first
            dstate = _token_input_grad(x, grads, t, states[:, t - start], before, dy[:, t], dstate)
    return grads


def _token_input_grad(x: Inputs, grads: Inputs, t: int, state: Array, before: Array, dy: Array, dstate: Array) -> Array:
    """Gradients of one token, written into `grads`; returns that of the state before it."""
    step, b = x.step[:, t, :, None], x.b[:, t, None, :]
    decay = np.exp(step * x.a)
    dstate = dstate + dy[..., None] * x.c[:, t, None, :]
    dlog = dstate * before * decay  # of step * a
    grads.c[:, t] = (dy[..., None] * state).sum(axis=1)
    grads.b[:, t] = (dstate * step * x.u[:, t, :, None]).sum(axis=1)
    grads.u[:, t] = (dstate * step * b).sum(-1)
    grads.step[:, t] = (dstate * b).sum(-1) * x.u[:, t] + (dlog * x.a).sum(-1)
    grads.a[...] += (dlog * step).sum(axis=0)
    out: Array = dstate * decay
    return out


def selective_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    u, z, y = saved["mixer.select/x"], saved["mixer.scan/z"], saved["mixer.scan/y"]
    dgated = linear_input_grad(run, "mixer.out", dy, p["mixer.out"])
    dscan, dz = dgated * z * _sigmoid(z), dgated * y * _silu_slope(z)
    inputs = _inputs(p, saved)
    grads = scan_input_grad(inputs, saved["mixer.scan/ends"], dscan, CHUNK)
    dstep = grads.step * _sigmoid(saved["mixer.scan/step"] + p["mixer.dt_bias"])
    chosen = {"step": linear_input_grad(run, "mixer.step", dstep, p["mixer.step"]), "b": grads.b, "c": grads.c}
    dchosen, gains = _chosen_input_grad(run, p, saved, chosen)
    du = grads.u + p["mixer.skip"] * dscan + linear_input_grad(run, "mixer.select", dchosen, p["mixer.select"])
    dmade, more = _conv_input_grad(run, p, saved, du)
    dprojected = np.concatenate([dmade, dz], axis=-1)
    later = [
        ("mixer.out", saved["mixer.out/x"], dy),
        ("mixer.step", saved["mixer.step/x"], dstep),
        ("mixer.select", u, dchosen),
        ("mixer.in", x, dprojected),
    ]
    own = [
        _summed(run, "mixer.a_log", (grads.a * inputs.a).reshape(1, -1)),
        _summed(run, "mixer.dt_bias", dstep),
        _summed(run, "mixer.skip", dscan * u),
    ]
    linears = [Deferred(kind="linear", op=op, name=op, layer=run.layer, x=a, dy=d) for op, a, d in later]
    return linear_input_grad(run, "mixer.in", dprojected, p["mixer.in"]), [*linears, *own, *more, *gains]


def _chosen_input_grad(run: Run, p: Weights, saved: Saved, grads: dict[str, Array]) -> tuple[Array, list[Deferred]]:
    """Back through the norms of steps, b and c, where there are any."""
    if not run.cfg.mamba_state_norms:
        return np.concatenate([grads[name] for name in CHOSEN], axis=-1), []
    out, gains = [], []
    for name, x in zip(CHOSEN, _split(run, saved["mixer.norms/x"]), strict=True):
        op, dy = f"norm.{name}", grads[name]
        rstd = saved[f"{op}/rstd"]
        out.append(rmsnorm_input_grad(run, op, x, rstd, _gain(p, name, x), dy))
        if op in p:
            gains.append(Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd))
    return np.concatenate(out, axis=-1), gains
