"""Kimi Delta Attention in chunks (arXiv 2510.26692, section 3): the gated delta rule with a decay of its own for each
channel of a key, S <- exp(g) S, then S <- S - beta k (k S) + beta k v, o = q S.

As the delta rule (`delta`), with the decays on queries and keys instead of between tokens: q exp(G), k exp(-G) and
k exp(G_last - G), G the sum of g since the start of the chunk. Kernels keep exponents small by cutting chunks into
parts, which changes no FLOP that is counted here.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.band import spans
from workloads.reference.count import Array, Run
from workloads.reference.layers.mixers.delta import Inputs, pairs_of, times


class Decayed(NamedTuple):
    """Queries and keys since the start of the chunk, keys from it on and to its end [B, H, c, dk], and the decays."""

    q: Array
    k: Array
    from_start: Array
    to_end: Array
    since: Array
    left: Array
    whole: Array


class Chunk(NamedTuple):
    """A chunk's decayed inputs, what it corrects, its new values, and the state before it."""

    d: Decayed
    w: Array
    new: Array
    state: Array


def decayed(x: Inputs) -> Decayed:
    """Of one chunk."""
    total = np.cumsum(x.g, axis=2)
    last = total[:, :, -1:]
    since, left = np.exp(total), np.exp(last - total)
    return Decayed(x.q * since, x.k * since, x.k / since, x.k * left, since, left, np.exp(last)[:, :, 0])


def _part(x: Inputs, span: slice) -> Inputs:
    return Inputs(*(one[:, :, span] for one in x))


def solved(run: Run, x: Inputs, chunk: int) -> list[Array]:
    """T of every chunk [B, H, c, c]."""
    out = []
    for span in spans(x.q.shape[2], chunk):
        part = _part(x, span)
        d = decayed(part)
        below = np.tril(part.beta[..., None] * pairs_of(d.k, d.from_start, run, "mixer.kkt", "F"), -1)
        out.append(np.linalg.inv(np.eye(d.k.shape[2]) + below))
    return out


def _chunks(run: Run, x: Inputs, inverse: list[Array], chunk: int) -> list[Chunk]:
    """The chunks in order, with the state before each."""
    state = np.zeros((*x.q.shape[:2], x.q.shape[-1], x.v.shape[-1]), x.q.dtype)
    out = []
    for span, t in zip(spans(x.q.shape[2], chunk), inverse, strict=True):
        part = _part(x, span)
        d, beta = decayed(part), part.beta[..., None]
        u = times(t, beta * part.v, run, "mixer.wu", "F")
        w = times(t, beta * d.k, run, "mixer.wu", "F")
        new = u - times(w, state, run, "mixer.state", "F")
        out.append(Chunk(d, w, new, state))
        state = d.whole[..., None] * state + times(d.to_end.swapaxes(-1, -2), new, run, "mixer.state", "F")
    return out


def kda(run: Run, x: Inputs, chunk: int) -> tuple[Array, list[Array]]:
    """Output [B, H, S, dv], and T of every chunk for backward; g [B, H, S, dk]."""
    inverse, out = solved(run, x, chunk), np.empty_like(x.v)
    for span, c in zip(spans(x.q.shape[2], chunk), _chunks(run, x, inverse, chunk), strict=True):
        scores = np.tril(pairs_of(c.d.q, c.d.from_start, run, "mixer.scan", "F"))
        out[:, :, span] = times(scores, c.new, run, "mixer.scan", "F")
        out[:, :, span] += times(c.d.q, c.state, run, "mixer.scan", "F")
    return out, inverse


def kda_input_grad(run: Run, x: Inputs, inverse: list[Array], dout: Array, chunk: int) -> Inputs:
    """Gradients of the inputs."""
    grads = Inputs(*(np.zeros_like(one) for one in x))
    made = _chunks(run.at(part="R"), x, inverse, chunk)
    dstate = np.zeros_like(made[0].state)
    for span, t, c in reversed(list(zip(spans(x.q.shape[2], chunk), inverse, made, strict=True))):
        found, dstate = _chunk_input_grad(run, _part(x, span), t, c, dout[:, :, span], dstate)
        for into, one in zip(grads, found, strict=True):
            into[:, :, span] = one
    return grads


def _chunk_input_grad(run: Run, x: Inputs, t: Array, c: Chunk, dy: Array, dlast: Array) -> tuple[Inputs, Array]:
    """Gradients of one chunk's inputs and of the state before it, from those of its output and of the state behind."""
    d, beta = c.d, x.beta[..., None]
    raw = np.tril(pairs_of(d.q, d.from_start, run, "mixer.dv", "I"))
    dnew = times(raw.swapaxes(-1, -2), dy, run, "mixer.dv", "I")
    dnew = dnew + times(d.to_end, dlast, run, "mixer.state", "I")
    dstate = d.whole[..., None] * dlast + times(d.q.swapaxes(-1, -2), dy, run, "mixer.state", "I")
    dstate = dstate - times(c.w.swapaxes(-1, -2), dnew, run, "mixer.state", "I")
    dscores = np.tril(pairs_of(dy, c.new, run, "mixer.scan", "I"))
    dq = pairs_of(dy, c.state, run, "mixer.scan", "I") + times(dscores, d.from_start, run, "mixer.scan", "I")
    dend = pairs_of(c.new, dlast, run, "mixer.scan", "I")
    dstart = times(dscores.swapaxes(-1, -2), d.q, run, "mixer.scan", "I")
    dw = -pairs_of(dnew, c.state, run, "mixer.scan", "I")
    dt = pairs_of(dnew, beta * x.v, run, "mixer.scan", "I") + pairs_of(dw, beta * d.k, run, "mixer.scan", "I")
    of_v = times(t.swapaxes(-1, -2), dnew, run, "mixer.scan", "I")
    of_w = times(t.swapaxes(-1, -2), dw, run, "mixer.scan", "I")
    dbelow = np.tril(-pairs_of(times(t.swapaxes(-1, -2), dt, run, "mixer.kkt", "I"), t, run, "mixer.kkt", "I"), -1)
    products = pairs_of(d.k, d.from_start, run, "mixer.kkt", "I")
    through = dbelow * beta
    dk = beta * of_w + times(through, d.from_start, run, "mixer.kkt", "I")
    dstart = dstart + times(through.swapaxes(-1, -2), d.k, run, "mixer.kkt", "I")
    dbeta = (x.v * of_v).sum(-1) + (d.k * of_w).sum(-1) + (dbelow * products).sum(-1)
    dtotal = dq * d.q - dstart * d.from_start + dk * d.k - dend * d.to_end
    dtotal[:, :, -1] += (dend * d.to_end).sum(axis=2) + d.whole * (c.state * dlast).sum(axis=-1)
    dg = np.cumsum(dtotal[:, :, ::-1], axis=2)[:, :, ::-1]
    return Inputs(dq * d.since, dk * d.since + dstart / d.since + dend * d.left, beta * of_v, dg, dbeta), dstate
