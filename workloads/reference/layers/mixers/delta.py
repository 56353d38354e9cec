"""The gated delta rule in chunks (arXiv 2412.06464, section 3.3): S <- exp(g) (S - beta k (k S)) + beta k v, o = q S.

Within a chunk the corrections of all tokens are solved at once (arXiv 2406.06484): T = (I + A)^-1 with A the part
below the diagonal of beta (k k^T) decayed, U = T beta v, W = T beta k decayed; then only the state passes on.
Kept are q, k, v, both gates and T; backward makes U, W and the states again.
"""

from typing import NamedTuple

import numpy as np

from workloads.reference.band import spans
from workloads.reference.count import Array, Run


class Inputs(NamedTuple):
    """Queries and keys [B, H, S, dk], values [B, H, S, dv], log decay and strength of each token [B, H, S]."""

    q: Array
    k: Array
    v: Array
    g: Array
    beta: Array


class Decay(NamedTuple):
    """Decay since the start of the chunk [B, H, c], between tokens [B, H, c, c] (0 above the diagonal), to its end."""

    since: Array
    between: Array
    left: Array
    whole: Array


def decay_of(g: Array) -> Decay:
    """The decays of one chunk from the logs [B, H, c]."""
    total = np.cumsum(g, axis=-1)
    between = np.exp(np.minimum(total[..., :, None] - total[..., None, :], 0.0))
    last = total[..., -1:]
    return Decay(np.exp(total), np.tril(between), np.exp(last - total), np.exp(last)[..., None])


def decay_input_grad(d: Decay, since: Array, between: Array, left: Array, whole: Array) -> Array:
    """Gradient of the logs [B, H, c] from those of the four decays."""
    total = since * d.since - left * d.left
    pairs = between * d.between
    total = total + pairs.sum(axis=-1) - pairs.sum(axis=-2)
    total[..., -1] += (left * d.left).sum(axis=-1) + (whole * d.whole).sum(axis=(-1, -2))
    out: Array = np.cumsum(total[..., ::-1], axis=-1)[..., ::-1]
    return out


def pairs_of(x: Array, y: Array, run: Run | None = None, op: str = "", part: str = "") -> Array:
    """x y^T, counted."""
    out: Array = x @ y.swapaxes(-1, -2)
    return _counted(run, op, part, 2 * out.size * x.shape[-1], out)


def times(x: Array, y: Array, run: Run | None = None, op: str = "", part: str = "") -> Array:
    """x y, counted."""
    out: Array = x @ y
    return _counted(run, op, part, 2 * out.size * x.shape[-1], out)


def _counted(run: Run | None, op: str, part: str, flops: int, out: Array) -> Array:
    if run is not None:
        run.count(op, part, flops=flops, read={}, written={"y": out})
    return out


def solved(run: Run, x: Inputs, chunk: int) -> list[Array]:
    """T of every chunk [B, H, c, c]."""
    out = []
    for span in spans(x.q.shape[2], chunk):
        k, beta = x.k[:, :, span], x.beta[:, :, span, None]
        products = pairs_of(k, k, run, "mixer.kkt", "F")
        below = np.tril(beta * products * decay_of(x.g[:, :, span]).between, -1)
        out.append(np.linalg.inv(np.eye(k.shape[2]) + below))
    return out


class Chunk(NamedTuple):
    """What a chunk adds to the state, what it corrects, its new values, and the state before it."""

    decay: Decay
    w: Array
    new: Array
    state: Array


def _chunks(run: Run, x: Inputs, inverse: list[Array], chunk: int) -> list[Chunk]:
    """The chunks in order, with the state before each."""
    state = np.zeros((*x.q.shape[:2], x.q.shape[-1], x.v.shape[-1]), x.q.dtype)
    out = []
    for span, t in zip(spans(x.q.shape[2], chunk), inverse, strict=True):
        d, k, beta = decay_of(x.g[:, :, span]), x.k[:, :, span], x.beta[:, :, span, None]
        u = times(t, beta * x.v[:, :, span], run, "mixer.wu", "F")
        w = times(t, beta * d.since[..., None] * k, run, "mixer.wu", "F")
        new = u - times(w, state, run, "mixer.state", "F")
        out.append(Chunk(d, w, new, state))
        left = (d.left[..., None] * k).swapaxes(-1, -2)
        state = d.whole * state + times(left, new, run, "mixer.state", "F")
    return out


def delta_rule(run: Run, x: Inputs, chunk: int) -> tuple[Array, list[Array]]:
    """Output [B, H, S, dv], and T of every chunk for backward."""
    inverse, out = solved(run, x, chunk), np.empty_like(x.v)
    for span, c in zip(spans(x.q.shape[2], chunk), _chunks(run, x, inverse, chunk), strict=True):
        q, k = x.q[:, :, span], x.k[:, :, span]
        scores = pairs_of(q, k, run, "mixer.scan", "F") * c.decay.between
        out[:, :, span] = times(scores, c.new, run, "mixer.scan", "F")
        out[:, :, span] += times(c.decay.since[..., None] * q, c.state, run, "mixer.scan", "F")
    return out, inverse


def delta_rule_input_grad(run: Run, x: Inputs, inverse: list[Array], dout: Array, chunk: int) -> Inputs:
    """Gradients of the inputs."""
    grads = Inputs(*(np.zeros_like(one) for one in x))
    made = _chunks(run.at(part="R"), x, inverse, chunk)
    dstate = np.zeros_like(made[0].state)
    for span, t, c in reversed(list(zip(spans(x.q.shape[2], chunk), inverse, made, strict=True))):
        part = Inputs(*(one[:, :, span] for one in x))
        found, dstate = _chunk_input_grad(run, part, t, c, dout[:, :, span], dstate)
        for into, one in zip(grads, found, strict=True):
            into[:, :, span] = one
    return grads


def _chunk_input_grad(run: Run, x: Inputs, t: Array, c: Chunk, dy: Array, dlast: Array) -> tuple[Inputs, Array]:
    """Gradients of one chunk's inputs and of the state before it, from those of its output and of the state behind."""
    d, beta = c.decay, x.beta[..., None]
    since, left = d.since[..., None], d.left[..., None]
    raw = pairs_of(x.q, x.k, run, "mixer.dv", "I")
    dnew = times((raw * d.between).swapaxes(-1, -2), dy, run, "mixer.dv", "I")
    dnew = dnew + times(left * x.k, dlast, run, "mixer.state", "I")
    dstate = d.whole * dlast + times((since * x.q).swapaxes(-1, -2), dy, run, "mixer.state", "I")
    dstate = dstate - times(c.w.swapaxes(-1, -2), dnew, run, "mixer.state", "I")
    dscores = np.tril(pairs_of(dy, c.new, run, "mixer.scan", "I"))
    of_q = pairs_of(dy, c.state, run, "mixer.scan", "I")
    of_k = pairs_of(c.new, dlast, run, "mixer.scan", "I")
    dq = since * of_q + times(dscores * d.between, x.k, run, "mixer.scan", "I")
    dk = left * of_k + times((dscores * d.between).swapaxes(-1, -2), x.q, run, "mixer.scan", "I")
    dw = -pairs_of(dnew, c.state, run, "mixer.scan", "I")
    dt = pairs_of(dnew, beta * x.v, run, "mixer.wu", "I") + pairs_of(dw, beta * since * x.k, run, "mixer.wu", "I")
    of_v = times(t.swapaxes(-1, -2), dnew, run, "mixer.wu", "I")
    of_w = times(t.swapaxes(-1, -2), dw, run, "mixer.wu", "I")
    dbelow = np.tril(-pairs_of(times(t.swapaxes(-1, -2), dt, run, "mixer.wu", "I"), t, run, "mixer.wu", "I"), -1)
    products = pairs_of(x.k, x.k, run, "mixer.wu", "I")
    through = dbelow * beta * d.between
    dk = dk + beta * since * of_w + times(through, x.k, run, "mixer.wu", "I")
    dk = dk + times(through.swapaxes(-1, -2), x.k, run, "mixer.wu", "I")
    dbeta = (x.v * of_v).sum(-1) + (since * x.k * of_w).sum(-1) + (dbelow * products * d.between).sum(-1)
    dg = decay_input_grad(
        d,
        since=(x.q * of_q).sum(-1) + (beta * x.k * of_w).sum(-1),
        between=dscores * raw + dbelow * beta * products,
        left=(x.k * of_k).sum(-1),
        whole=(c.state * dlast).sum(axis=(-1, -2))[..., None, None],
    )
    return Inputs(dq, dk, beta * of_v, dg, dbeta), dstate
