"""Mamba-2's state-space layer in chunks (arXiv 2405.21060, section 6): S <- exp(g) S + b x, y = c S.

b and c are shared by the heads of a group. Kept are x, b, c and the decay; backward makes states and c b^T again.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.band import spans
from workloads.reference.count import Array, Run
from workloads.reference.layers.mixers.delta import Decay, _counted, decay_input_grad, decay_of


class Inputs(NamedTuple):
    """Outputs and inputs of the state [B, G, S, N], values [B, H, S, P], log decay of each token [B, H, S]."""

    c: Array
    b: Array
    x: Array
    g: Array


def _by_head(x: Array, heads: int) -> Array:
    """[B, G, ...] to [B, H, ...]."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def _by_group(x: Array, groups: int) -> Array:
    """[B, H, ...] summed over the heads of a group to [B, G, ...]."""
    out: Array = x.reshape(x.shape[0], groups, -1, *x.shape[2:]).sum(axis=2)
    return out


def _product(run: Run, op: str, part: str, x: Array, y: Array) -> Array:
    out: Array = x @ y
    return _counted(run, op, part, 2 * out.size * x.shape[-1], out)


def _states(run: Run, x: Inputs, chunk: int) -> list[tuple[Decay, Array]]:
    """The decays of each chunk and the state before it [B, H, N, P]."""
    heads = x.x.shape[1]
    state, out = np.zeros((x.x.shape[0], heads, x.b.shape[-1], x.x.shape[-1]), x.x.dtype), []
    for span in spans(x.x.shape[2], chunk):
        d, b = decay_of(x.g[:, :, span]), _by_head(x.b[:, :, span], heads)
        out.append((d, state))
        left = (d.left[..., None] * b).swapaxes(-1, -2)
        state = d.whole * state + _product(run, "mixer.state", "F", left, x.x[:, :, span])
    return out


def _scores(run: Run, x: Inputs, span: slice) -> Array:
    """c b^T of a chunk [B, G, c, c]."""
    return _product(run, "mixer.cb", "F", x.c[:, :, span], x.b[:, :, span].swapaxes(-1, -2))


def ssd(run: Run, x: Inputs, chunk: int) -> Array:
    """Output [B, H, S, P]."""
    heads, out = x.x.shape[1], np.empty_like(x.x)
    for span, (d, state) in zip(spans(x.x.shape[2], chunk), _states(run, x, chunk), strict=True):
        within = _by_head(_scores(run, x, span), heads) * d.between
        out[:, :, span] = _product(run, "mixer.scan", "F", within, x.x[:, :, span])
        c = _by_head(x.c[:, :, span], heads)
        out[:, :, span] += _product(run, "mixer.scan", "F", d.since[..., None] * c, state)
    return out


def ssd_input_grad(run: Run, x: Inputs, dout: Array, chunk: int) -> Inputs:
    """Gradients of the inputs."""
    grads = Inputs(*(np.zeros_like(one) for one in x))
    again = run.at(part="R")
    made = _states(again, x, chunk)
    dstate = np.zeros_like(made[0][1])
    for span, (d, state) in reversed(list(zip(spans(x.x.shape[2], chunk), made, strict=True))):
        scores = _scores(again, x, span)
        part = Inputs(*(one[:, :, span] for one in x))
        found, dstate = _chunk_input_grad(run, part, d, state, scores, dout[:, :, span], dstate)
        for into, one in zip(grads, found, strict=True):
            into[:, :, span] = one
    return grads


def _chunk_input_grad(
    run: Run, x: Inputs, d: Decay, state: Array, scores: Array, dy: Array, dlast: Array
) -> tuple[Inputs, Array]:
    heads, groups = x.x.shape[1], x.b.shape[1]
    b, c, within = _by_head(x.b, heads), _by_head(x.c, heads), _by_head(scores, heads)
    since, left = d.since[..., None], d.left[..., None]
    dx = _product(run, "mixer.dx", "I", (within * d.between).swapaxes(-1, -2), dy)
    dx = dx + _product(run, "mixer.dx", "I", left * b, dlast)
    dwithin = np.tril(_product(run, "mixer.dcb", "I", dy, x.x.swapaxes(-1, -2)))
    of_c = _product(run, "mixer.dc", "I", dy, state.swapaxes(-1, -2))
    of_b = _product(run, "mixer.db", "I", x.x, dlast.swapaxes(-1, -2))
    dstate = d.whole * dlast + _product(run, "mixer.dstates", "I", (since * c).swapaxes(-1, -2), dy)
    dscores = _by_group(dwithin * d.between, groups)
    dc = _by_group(since * of_c, groups) + _product(run, "mixer.cb", "I", dscores, x.b)
    db = _by_group(left * of_b, groups) + _product(run, "mixer.cb", "I", dscores.swapaxes(-1, -2), x.c)
    dg = decay_input_grad(
        d,
        since=(c * of_c).sum(-1),
        between=dwithin * within,
        left=(b * of_b).sum(-1),
        whole=(state * dlast).sum(axis=(-1, -2))[..., None, None],
    )
    return Inputs(dc, db, dx, dg), dstate
