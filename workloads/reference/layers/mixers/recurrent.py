"""Recurrent layers around their state: the gated delta rule (Qwen3-Next) and Mamba-2.

One projection makes what the state reads and writes, a gate of the output, and a few numbers a head; the first goes
through a short causal convolution and SiLU. The delta rule norms queries and keys to length one and repeats them for
the value heads that share them. A norm with the gate comes before the output projection: of each head, times the gate
(delta rule); of the gated output, by groups (Mamba-2, norm_before_gate false). Weights in one vector: convolution,
decay and bias of each head, and Mamba-2's skip.
"""

import numpy as np

from workloads.reference.config import RefConfig
from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers import delta, kda, ssd

EPS = 1e-6


def is_delta(run: Run) -> bool:
    """Whether this layer is of the delta rule."""
    return run.cfg.mixer(run.layer) == "linear_attention"


def recurrent(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Output [B, S, hidden] of normalised input x [B, S, hidden]."""
    r = run.cfg.state(run.layer)
    wide = [r.channels, r.projected - r.numbers]
    made, gate, numbers = np.split(linear(run, "mixer.in", x, p["mixer.in"]), wide, -1)
    if r.rank and not r.full_gate:
        gate = linear(run, "mixer.gate", numbers[..., r.heads + r.rank :], p["mixer.gate"])
    saved: Saved = {"mixer.conv/x": made, "mixer.norm/z": gate, "mixer.gates/x": numbers}
    saved |= _gates(run, p, numbers) | _mixed(run, p, made)
    out, more = _scan(run, p, saved)
    saved |= more | {"mixer.norm/x": out}
    if r.norms:
        y, saved["mixer.norm/rstd"] = _gated_norm(run.cfg, out, gate, p["norm.mixer"], is_delta(run), r.norms)
    else:
        y = out * gate * _sigmoid(gate)
    saved["mixer.out/x"] = y
    if run.ends_here:
        return x, saved
    return linear(run, "mixer.out", y, p["mixer.out"]), saved


def recurrent_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    dnormed = linear_input_grad(run, "mixer.out", dy, p["mixer.out"])
    dout, dgate, gains = _gated_input_grad(run, p, saved, dnormed)
    dmade, dnumbers, deferred = _scan_input_grad(run, p, saved, dout)
    dpre, more = _conv_input_grad(run, p, saved, dmade)
    r = run.cfg.state(run.layer)
    rank = 0 if r.full_gate else r.rank
    if rank:
        inner = saved["mixer.gates/x"][..., -rank:]
        weight = Deferred(kind="linear", op="mixer.gate", name="mixer.gate", layer=run.layer, x=inner, dy=dgate)
        dnumbers = np.concatenate([dnumbers, linear_input_grad(run, "mixer.gate", dgate, p["mixer.gate"])], axis=-1)
        dgate, deferred = dgate[..., :0], [*deferred, weight]
    dprojected = np.concatenate([dpre, dgate, dnumbers], axis=-1)
    dx = linear_input_grad(run, "mixer.in", dprojected, p["mixer.in"])
    weights = [("mixer.out", saved["mixer.out/x"], dy), ("mixer.in", x, dprojected)]
    deferred += [Deferred(kind="linear", op=op, name=op, layer=run.layer, x=a, dy=d) for op, a, d in weights]
    return dx, [*deferred, *more, *gains]


def _gated_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Array, list[Deferred]]:
    """Gradients of the output and of its gate, and the norm's gain where there is one."""
    if not run.cfg.state(run.layer).norms:
        out, z = saved["mixer.norm/x"], saved["mixer.norm/z"]
        return dy * z * _sigmoid(z), dy * out * _silu_slope(z), []
    dout, dgate, dgain = _gated_norm_input_grad(run, p, saved, dy)
    return dout, dgate, [_summed(run, "norm.mixer", dgain.reshape(-1, p["norm.mixer"].size))]


def _summed(run: Run, name: str, dy: Array) -> Deferred:
    """The gradient of a weight vector is the sum over rows of dy."""
    return Deferred(kind="bias", op="mixer.weights", name=name, layer=run.layer, x=dy, dy=dy)


def _shifted(x: Array, by: int) -> Array:
    """x [B, S, ...] as it was `by` tokens before; zeros where nothing was."""
    return np.concatenate([np.zeros_like(x[:, :by]), x[:, : x.shape[1] - by]], axis=1)


def _ahead(x: Array, by: int) -> Array:
    """The transpose of `_shifted`."""
    return np.concatenate([x[:, by:], np.zeros_like(x[:, :by])], axis=1)


def _convolved(p: Weights, x: Array) -> Array:
    taps = p["mixer.conv"].reshape(-1, x.shape[-1])
    out: Array = np.sum([_shifted(x, i) * tap for i, tap in enumerate(taps)], axis=0)
    return out + p["mixer.conv_bias"] if "mixer.conv_bias" in p else out


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out


def _silu_slope(x: Array) -> Array:
    s = _sigmoid(x)
    out: Array = s * (1 + x * (1 - s))
    return out


def _conv_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    x = saved["mixer.conv/x"]
    dpre = dy * _silu_slope(_convolved(p, x))
    taps = p["mixer.conv"].reshape(-1, x.shape[-1])
    dx: Array = np.sum([_ahead(dpre, i) * tap for i, tap in enumerate(taps)], axis=0)
    dtaps = np.concatenate([_shifted(x, i) * dpre for i in range(len(taps))], axis=-1)
    bias = [_summed(run, "mixer.conv_bias", dpre)] if "mixer.conv_bias" in p else []
    return dx, [_summed(run, "mixer.conv", dtaps), *bias]


def _gates(run: Run, p: Weights, numbers: Array) -> Saved:
    """Step size, or strength and log decay, of each token and head."""
    r = run.cfg.state(run.layer)
    heads = r.heads
    if r.rank:
        raw = linear(run, "mixer.decay", numbers[..., heads : heads + r.rank], p["mixer.decay"]) + p["mixer.dt_bias"]
        decay = -np.repeat(np.exp(p["mixer.a_log"]), r.key_dim) * np.logaddexp(0.0, raw)
        return {"mixer.gates/g": decay, "mixer.gates/beta": _sigmoid(numbers[..., :heads])}
    step = np.logaddexp(0.0, numbers[..., :heads] + p["mixer.dt_bias"])
    if is_delta(run):
        decay = -np.exp(p["mixer.a_log"]) * step
        return {"mixer.gates/g": decay, "mixer.gates/beta": _sigmoid(numbers[..., heads:])}
    return {"mixer.gates/g": step}


def _heads(x: Array, heads: int) -> Array:
    """[B, S, H d] to [B, H, S, d]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def _flat(x: Array) -> Array:
    """[B, H, S, d] to [B, S, H d]."""
    out: Array = x.transpose(0, 2, 1, 3)
    return out.reshape(*out.shape[:2], -1)


def _mixed(run: Run, p: Weights, made: Array) -> Saved:
    """What the state reads and writes: convolved; of the delta rule queries and keys of length one, repeated."""
    r = run.cfg.state(run.layer)
    convolved = _convolved(p, made)
    first, second, v = np.split(convolved * _sigmoid(convolved), [r.keys, 2 * r.keys], axis=-1)
    if not is_delta(run):
        return {"mixer.scan/c": first, "mixer.scan/b": second, "mixer.scan/x": v}
    out: Saved = {"mixer.scan/v": v}
    for name, x in (("q", first), ("k", second)):
        heads = _heads(x, r.key_heads)
        rstd = 1.0 / np.sqrt((heads * heads).sum(-1) + EPS)
        out[f"mixer.length_{name}/rstd"] = rstd
        out[f"mixer.scan/{name}"] = _flat(np.repeat(heads * rstd[..., None], r.heads // r.key_heads, axis=1))
    return out


def _scan(run: Run, p: Weights, saved: Saved) -> tuple[Array, Saved]:
    """Output [B, S, inner] of the state, and what else its backward reads."""
    r = run.cfg.state(run.layer)
    if is_delta(run):
        out, inverse = (kda.kda if r.rank else delta.delta_rule)(run, _delta_inputs(run, saved), r.chunk)
        return _flat(out), {f"mixer.solve/t{i}": one for i, one in enumerate(inverse)}
    x = _heads(saved["mixer.scan/x"], r.heads)
    out = ssd.ssd(run, _ssd_inputs(run, p, saved), r.chunk)
    return _flat(out + p["mixer.skip"][:, None, None] * x), {}


def _delta_inputs(run: Run, saved: Saved) -> delta.Inputs:
    r = run.cfg.state(run.layer)
    q, k, v = (_heads(saved[f"mixer.scan/{name}"], r.heads) for name in "qkv")
    g, beta = (saved[f"mixer.gates/{name}"].swapaxes(1, 2) for name in ("g", "beta"))
    if r.rank:
        g = _heads(saved["mixer.gates/g"], r.heads)
    return delta.Inputs(q * r.key_dim**-0.5, k, v, g, beta)


def _ssd_inputs(run: Run, p: Weights, saved: Saved) -> ssd.Inputs:
    r = run.cfg.state(run.layer)
    step = saved["mixer.gates/g"].swapaxes(1, 2)
    c, b = (_heads(saved[f"mixer.scan/{name}"], r.key_heads) for name in "cb")
    x = _heads(saved["mixer.scan/x"], r.heads) * step[..., None]
    return ssd.Inputs(c, b, x, -np.exp(p["mixer.a_log"])[:, None] * step)


def _scan_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Array, list[Deferred]]:
    """Gradients of what was convolved and of the numbers of each head, and of the heads' own weights."""
    return (_delta_input_grad if is_delta(run) else _ssd_input_grad)(run, p, saved, dy)


def _delta_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Array, list[Deferred]]:
    r = run.cfg.state(run.layer)
    chunks = sum(key.startswith("mixer.solve/") for key in saved)
    inverse = [saved[f"mixer.solve/t{i}"] for i in range(chunks)]
    back = kda.kda_input_grad if r.rank else delta.delta_rule_input_grad
    grads = back(run, _delta_inputs(run, saved), inverse, _heads(dy, r.heads), r.chunk)
    parts = []
    for name, grad in (("q", grads.q * r.key_dim**-0.5), ("k", grads.k)):
        one = grad.reshape(len(grad), r.key_heads, -1, *grad.shape[2:]).sum(axis=2)
        y = _heads(saved[f"mixer.scan/{name}"], r.heads)[:, :: r.heads // r.key_heads]
        rstd = saved[f"mixer.length_{name}/rstd"][..., None]
        parts.append(_flat(rstd * (one - y * (y * one).sum(-1, keepdims=True))))
    if r.rank:
        return np.concatenate([*parts, _flat(grads.v)], axis=-1), *_decay_input_grad(run, p, saved, grads)
    g, beta = saved["mixer.gates/g"], saved["mixer.gates/beta"]
    dg, dbeta = grads.g.swapaxes(1, 2), grads.beta.swapaxes(1, 2)
    dstep = -dg * np.exp(p["mixer.a_log"])
    dnumbers = dstep * _sigmoid(saved["mixer.gates/x"][..., : r.heads] + p["mixer.dt_bias"])
    own = [_summed(run, "mixer.a_log", dg * g), _summed(run, "mixer.dt_bias", dnumbers)]
    return (
        np.concatenate([*parts, _flat(grads.v)], axis=-1),
        np.concatenate([dnumbers, dbeta * beta * (1 - beta)], axis=-1),
        own,
    )


def _decay_input_grad(run: Run, p: Weights, saved: Saved, grads: delta.Inputs) -> tuple[Array, list[Deferred]]:
    """Gradients of a token's numbers but those of its gate, where each channel has a decay; the step follows from the
    decay that was kept."""
    r, g, beta = run.cfg.state(run.layer), saved["mixer.gates/g"], saved["mixer.gates/beta"]
    dg, dbeta = _flat(grads.g), grads.beta.swapaxes(1, 2) * beta * (1 - beta)
    rate = np.repeat(np.exp(p["mixer.a_log"]), r.key_dim)
    draw = -dg * rate * (1.0 - np.exp(g / rate))
    inner = saved["mixer.gates/x"][..., r.heads : r.heads + r.rank]
    dinner = linear_input_grad(run, "mixer.decay", draw, p["mixer.decay"])
    by_head = (dg * g).reshape(*dg.shape[:2], r.heads, -1).sum(axis=-1)
    own = [_summed(run, "mixer.a_log", by_head), _summed(run, "mixer.dt_bias", draw)]
    weight = Deferred(kind="linear", op="mixer.decay", name="mixer.decay", layer=run.layer, x=inner, dy=draw)
    return np.concatenate([dbeta, dinner], axis=-1), [weight, *own]


def _ssd_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Array, list[Deferred]]:
    r = run.cfg.state(run.layer)
    dout, x = _heads(dy, r.heads), _heads(saved["mixer.scan/x"], r.heads)
    inputs = _ssd_inputs(run, p, saved)
    grads = ssd.ssd_input_grad(run, inputs, dout, r.chunk)
    step = saved["mixer.gates/g"].swapaxes(1, 2)
    dx = grads.x * step[..., None] + p["mixer.skip"][:, None, None] * dout
    dstep = (grads.x * x).sum(-1) - grads.g * np.exp(p["mixer.a_log"])[:, None]
    dnumbers = dstep.swapaxes(1, 2) * _sigmoid(saved["mixer.gates/x"] + p["mixer.dt_bias"])
    own = [
        _summed(run, "mixer.a_log", (grads.g * inputs.g).swapaxes(1, 2)),
        _summed(run, "mixer.dt_bias", dnumbers),
        _summed(run, "mixer.skip", (dout * x).sum(-1).swapaxes(1, 2)),
    ]
    return np.concatenate([_flat(grads.c), _flat(grads.b), _flat(dx)], axis=-1), dnumbers, own


def _grouped(x: Array, groups: int) -> Array:
    return x.reshape(*x.shape[:-1], groups, -1)


def _gated_norm(cfg: RefConfig, out: Array, z: Array, gain: Array, gate_last: bool, groups: int) -> tuple[Array, Array]:
    """The normed, gated output [B, S, inner] and 1/rms of each group."""
    gate = z * _sigmoid(z)
    x = _grouped(out if gate_last else out * gate, groups)
    rstd = 1.0 / np.sqrt((x * x).mean(-1) + cfg.rms_norm_eps)
    normed = x * rstd[..., None] * gain.reshape(-1, x.shape[-1])
    y = normed.reshape(out.shape)
    return y * gate if gate_last else y, rstd


def _gated_norm_input_grad(run: Run, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Array, Array]:
    """Gradients of the output, of its gate, and the share of each token in the gain's."""
    r, gate_last = run.cfg.state(run.layer), is_delta(run)
    out, z, rstd = saved["mixer.norm/x"], saved["mixer.norm/z"], saved["mixer.norm/rstd"][..., None]
    gate, gain = z * _sigmoid(z), p["norm.mixer"]
    x = _grouped(out if gate_last else out * gate, r.norms)
    wide = gain.reshape(-1, x.shape[-1])
    dnormed = _grouped(dy * gate if gate_last else dy, r.norms)
    dwide = dnormed * x * rstd
    g = dnormed * wide
    dx = (rstd * g - x * rstd**3 * (x * g).mean(-1, keepdims=True)).reshape(out.shape)
    if gate_last:
        dz = dy * (x * rstd * wide).reshape(out.shape) * _silu_slope(z)
        return dx, dz, dwide
    return dx * gate, dx * out * _silu_slope(z), dwide.reshape(out.shape)
