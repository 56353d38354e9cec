"""Hyper-connections (arXiv 2409.19606; constrained, arXiv 2512.24880): n streams [B, S, n hidden], not one residual.

A projection of all streams over their root mean square gives, for each token, weights into the branch (sigmoid), out of
it (twice a sigmoid), and from stream to stream: a matrix made doubly stochastic by Sinkhorn's rounds.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad

ROUNDS, EPS = 20, 1e-6


class Mix(NamedTuple):
    """Weights of a token: into the branch [.., n], out of it [.., n], between streams [.., n, n], and its rounds."""

    into: Array
    out: Array
    between: Array
    rounds: list[tuple[Array, Array, int]]


def streams_of(x: Array, n: int) -> Array:
    """[B, S, n hidden] as [B, S, n, hidden]."""
    return x.reshape(*x.shape[:2], n, -1)


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out


def _parts(n: int) -> list[int]:
    return [n, 2 * n]


def _mix(run: Run, branch: str, p: Weights, saved: Saved) -> Mix:
    """The weights from the projection that was kept."""
    n = run.cfg.hc_mult
    raw = saved[f"hc.{branch}.weights/logits"] * saved[f"hc.{branch}.weights/rstd"][..., None]
    a, b, c = (
        part * scale + base
        for part, scale, base in zip(
            np.split(raw, _parts(n), -1),
            p[f"hc.{branch}.scale"],
            np.split(p[f"hc.{branch}.base"], _parts(n)),
            strict=True,
        )
    )
    c = c.reshape(*c.shape[:-1], n, n)
    soft = np.exp(c - c.max(axis=-1, keepdims=True))
    soft = soft / soft.sum(axis=-1, keepdims=True)
    m, rounds = soft + EPS, [(soft, soft, 0)]
    for axis in [-2, *[-1, -2] * (ROUNDS - 1)]:
        total = m.sum(axis=axis, keepdims=True) + EPS
        m = m / total
        rounds.append((m, total, axis))
    return Mix(_sigmoid(a) + EPS, 2.0 * _sigmoid(b), m, rounds)


def project(run: Run, branch: str, p: Weights, x: Array) -> Saved:
    """What weighs the streams: the projection of all, and 1/rms."""
    logits = linear(run, f"hc.{branch}.weights", x, p[f"hc.{branch}.fn"])
    rstd = 1.0 / np.sqrt((x * x).mean(axis=-1) + run.cfg.rms_norm_eps)
    return {f"hc.{branch}.weights/x": x, f"hc.{branch}.weights/logits": logits, f"hc.{branch}.weights/rstd": rstd}


def enter(run: Run, branch: str, p: Weights, x: Array) -> tuple[Array, Saved]:
    """A branch's input [B, S, hidden]."""
    saved = project(run, branch, p, x)
    into = _mix(run, branch, p, saved).into
    return (into[..., None] * streams_of(x, run.cfg.hc_mult)).sum(axis=2), saved


def leave(run: Run, branch: str, p: Weights, saved: Saved, y: Array) -> Array:
    """The streams behind a branch that made y; y is kept."""
    mix, x = _mix(run, branch, p, saved), streams_of(saved[f"hc.{branch}.weights/x"], run.cfg.hc_mult)
    saved[f"hc.{branch}.out/y"] = y
    mixed = np.einsum("bsjk,bsjd->bskd", mix.between, x) + mix.out[..., None] * y[:, :, None]
    out: Array = mixed.reshape(*y.shape[:2], -1)
    return out


class Passed(NamedTuple):
    """Gradients behind a branch: of its output, of the streams that pass it by, and of the weights."""

    y: Array
    x: Array
    out: Array
    between: Array


def leave_input_grad(run: Run, branch: str, p: Weights, saved: Saved, dstreams: Array) -> Passed:
    """Back through `leave`."""
    n, mix = run.cfg.hc_mult, _mix(run, branch, p, saved)
    d, x, y = streams_of(dstreams, n), streams_of(saved[f"hc.{branch}.weights/x"], n), saved[f"hc.{branch}.out/y"]
    return Passed(
        (mix.out[..., None] * d).sum(axis=2),
        np.einsum("bsjk,bskd->bsjd", mix.between, d),
        (d * y[:, :, None]).sum(axis=-1),
        np.einsum("bsjd,bskd->bsjk", x, d),
    )


def enter_input_grad(
    run: Run, branch: str, p: Weights, saved: Saved, dinput: Array, passed: Passed
) -> tuple[Array, list[Deferred]]:
    """Gradient of the streams before a branch."""
    n, mix = run.cfg.hc_mult, _mix(run, branch, p, saved)
    x = streams_of(saved[f"hc.{branch}.weights/x"], n)
    dinto = (x * dinput[:, :, None]).sum(axis=-1)
    slope = (mix.into - EPS) * (1.0 - mix.into + EPS)
    draws = [dinto * slope, passed.out * mix.out * (1.0 - mix.out / 2.0), _between_input_grad(mix, passed.between)]
    dx = (passed.x + mix.into[..., None] * dinput[:, :, None]).reshape(*dinput.shape[:2], -1)
    return _project_input_grad(run, branch, p, saved, draws, dx)


def _between_input_grad(mix: Mix, d: Array) -> Array:
    """Back through the rounds and the softmax."""
    for m, total, axis in reversed(mix.rounds[1:]):
        d = (d - (d * m).sum(axis=axis, keepdims=True)) / total
    soft = mix.rounds[0][0]
    d = soft * (d - (d * soft).sum(axis=-1, keepdims=True))
    out: Array = d.reshape(*d.shape[:2], -1)
    return out


def _project_input_grad(
    run: Run, branch: str, p: Weights, saved: Saved, draws: list[Array], dx: Array
) -> tuple[Array, list[Deferred]]:
    """Back through scales, bias, projection and 1/rms, added to dx."""
    op, x = f"hc.{branch}.weights", saved[f"hc.{branch}.weights/x"]
    logits, rstd = saved[f"{op}/logits"], saved[f"{op}/rstd"][..., None]
    widths = np.cumsum([part.shape[-1] for part in draws])[:-1]
    raws = np.split(logits * rstd, widths, -1)
    scales = p[f"hc.{branch}.scale"]
    draw = np.concatenate([d * scale for d, scale in zip(draws, scales, strict=True)], axis=-1)
    dscale = np.stack([(d * raw).sum(axis=-1) for d, raw in zip(draws, raws, strict=True)], axis=-1)
    dlogits = draw * rstd
    dx = dx + linear_input_grad(run, op, dlogits, p[f"hc.{branch}.fn"])
    drstd = (draw * logits).sum(axis=-1, keepdims=True)
    dx = dx - drstd * rstd**3 * x / x.shape[-1]
    sums = [("scale", dscale), ("base", np.concatenate(draws, axis=-1))]
    later = [
        Deferred(kind="bias", op=f"hc.{branch}", name=f"hc.{branch}.{name}", layer=run.layer, x=d, dy=d)
        for name, d in sums
    ]
    return dx, [Deferred(kind="linear", op=op, name=f"hc.{branch}.fn", layer=run.layer, x=x, dy=dlogits), *later]


def collapse(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """One stream of all before the output head."""
    saved = project(run, "head", p, x)
    into = _head_weights(p, saved)
    return (into[..., None] * streams_of(x, run.cfg.hc_mult)).sum(axis=2), saved


def _head_weights(p: Weights, saved: Saved) -> Array:
    raw = saved["hc.head.weights/logits"] * saved["hc.head.weights/rstd"][..., None]
    return _sigmoid(raw * p["hc.head.scale"] + p["hc.head.base"]) + EPS


def collapse_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """Gradient of the streams."""
    x = streams_of(saved["hc.head.weights/x"], run.cfg.hc_mult)
    into = _head_weights(p, saved)
    dinto = (x * dy[:, :, None]).sum(axis=-1) * (into - EPS) * (1.0 - into + EPS)
    dx = (into[..., None] * dy[:, :, None]).reshape(*dy.shape[:2], -1)
    return _project_input_grad(run, "head", p, saved, [dinto], dx)
