"""Grouped-query attention (arXiv 2305.13245), as Llama and Qwen have it: Qwen2 with biases, Qwen3 with normed heads.

Layers may differ: a window or chunks (`Mask`), sinks (gpt-oss), a part of each head that is rotated, a gate on the
output (arXiv 2505.06708). Queries come first in `attn.qkv`, then keys, values, and the gate.
"""

import numpy as np

from workloads.reference.config import BLOCKS
from workloads.reference.core import LSE, Gradients, Mask, attend, attend_input_grad, core_forget
from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.mixers import blocks
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad
from workloads.reference.layers.rope import angles, rotate, rotate_input_grad, softmax_scale

HEADS = {"norm.q": "attn.core/q", "norm.k": "attn.core/k"}  # norm of the heads -> what becomes of its output
VALUES = "norm.v"  # a norm of value heads, without weights (Gemma 4)


def gqa(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Attention output [B, S, hidden] of normalised input x [B, S, hidden]."""
    c, (b, s, _) = run.cfg, x.shape
    projected = linear(run, "attn.qkv", x, p["attn.qkv"])
    if c.attention_bias:
        projected = projected + p["attn.qkv_bias"]
    heads = projected.reshape(b, s, -1, c.v_dim)
    n, g = c.num_attention_heads, c.num_key_value_heads
    made = {"norm.q/x": heads[:, :, :n], "norm.k/x": heads[:, :, n : n + g]}
    values = made["norm.k/x"] if c.key_is_value else heads[:, :, n + g : n + 2 * g]
    saved = _heads(run, p, made) | (made if c.qk_norm else {}) | _values(run, values)
    if _in_blocks(run):
        saved |= blocks.indexed(run, p, x)
    out, saved[LSE] = _core(run, p, saved)
    if c.is_gated:
        saved |= {"attn.gate/y": out, "attn.gate/logit": heads[:, :, -n:]}
        out = out * _sigmoid(saved["attn.gate/logit"])
    saved["attn.o/x"] = out.reshape(b, s, -1)
    if run.ends_here:
        return x, saved
    return linear(run, "attn.o", saved["attn.o/x"], p["attn.o"]), saved


def _values(run: Run, made: Array) -> Saved:
    """Values as the core reads them; where they are normed, with what the norm read (which keys may keep already)."""
    if not run.cfg.value_norm:
        return {"attn.core/v": made}
    y, rstd = rmsnorm(run, VALUES, made, np.ones(made.shape[-1]))
    own = {} if run.cfg.key_is_value else {f"{VALUES}/x": made}
    return own | {"attn.core/v": y, f"{VALUES}/rstd": rstd}


def _values_input_grad(run: Run, saved: Saved, d: Array) -> Array:
    """Back through the norm of values, where there is one."""
    if not run.cfg.value_norm:
        return d
    x = saved["norm.k/x" if run.cfg.key_is_value else f"{VALUES}/x"]
    return rmsnorm_input_grad(run, VALUES, x, saved[f"{VALUES}/rstd"], np.ones(x.shape[-1]), d)


def _in_blocks(run: Run) -> bool:
    """Whether queries attend to blocks of keys that an indexer chooses (MiniMax-M3)."""
    return run.cfg.mixer(run.layer) == BLOCKS


def _core(run: Run, p: Weights, saved: Saved) -> tuple[Array, Array]:
    """The core's output and log-sum-exp."""
    q, k, v = (saved[f"attn.core/{name}"] for name in "qkv")
    if _in_blocks(run):
        return blocks.attend_blocks(run, q, k, v, saved["attn.top/order"], softmax_scale(run.cfg))
    return attend(run, q, k, v, softmax_scale(run.cfg), _mask(run, p))


def _core_input_grad(
    run: Run, p: Weights, x: Array, saved: Saved, out: Array, dout: Array
) -> tuple[Gradients, list[Deferred]]:
    """The core's gradients, and the indexer's where there is one."""
    q, k, v = (saved[f"attn.core/{name}"] for name in "qkv")
    lse, scale = saved[LSE], softmax_scale(run.cfg)
    if not _in_blocks(run):
        return attend_input_grad(run, q, k, v, out, lse, dout, scale, _mask(run, p)), []
    found = blocks.attend_blocks_input_grad(run, q, k, v, out, lse, dout, saved["attn.top/order"], scale)
    learned = blocks.learn(run, p, x, saved, found.weights, q.shape[-1])
    return Gradients(found.q, found.k, found.v, np.zeros_like(lse)), learned


def _mask(run: Run, p: Weights) -> Mask:
    """What queries of this layer see."""
    kind, c = run.cfg.mixer(run.layer), run.cfg
    return Mask(
        window=c.sliding_window if kind == "sliding_attention" else 0,
        chunk=c.attention_chunk_size if kind == "chunked_attention" else 0,
        sinks=p["attn.sinks"] if c.attention_sinks else None,
    )


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out


def _gate_input_grad(run: Run, saved: Saved, dout: Array) -> tuple[Array, Array, list[Array]]:
    """The core's output, its gradient, and the gate's, where there is one."""
    if not run.cfg.is_gated:
        return saved["attn.o/x"].reshape(dout.shape), dout, []
    out, share = saved["attn.gate/y"], _sigmoid(saved["attn.gate/logit"])
    return out, dout * share, [dout * out * share * (1 - share)]


def gqa_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep when norms or the core are recomputed: of normed heads, what goes into the norm."""
    saved = core_forget(run, saved)
    normed = (HEADS if run.cfg.qk_norm else {}) | ({VALUES: "attn.core/v"} if run.cfg.value_norm else {})
    return forget(run, saved, normed) if normed else saved


def gqa_restore(run: Run, p: Weights, saved: Saved) -> Saved:
    """Compute again what `gqa_forget` dropped."""
    if "attn.core/q" not in saved:
        saved = saved | _heads(run.at(part="R"), p, saved)
    if "attn.core/v" not in saved:
        saved = saved | _values(run.at(part="R"), saved["norm.k/x" if run.cfg.key_is_value else f"{VALUES}/x"])
    return saved if LSE in saved else saved | {LSE: _core(run.at(part="R"), p, saved)[1]}


def gqa_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    c, (b, s, _) = run.cfg, x.shape
    out = saved["attn.o/x"]
    dout = linear_input_grad(run, "attn.o", dy, p["attn.o"]).reshape(b, s, -1, c.v_dim)
    core, dcore, dgate = _gate_input_grad(run, saved, dout)
    grads, learned = _core_input_grad(run, p, x, saved, core, dcore)
    dheads, gains = _heads_input_grad(run, p, saved, [_turned(run, d, back=True) for d in (grads.q, grads.k)])
    dvalues = [_values_input_grad(run, saved, grads.v)]
    if c.key_is_value:
        dheads, dvalues = [dheads[0], dheads[1] + dvalues[0]], []
    dqkv = np.concatenate([*dheads, *dvalues, *dgate], axis=2).reshape(b, s, -1)
    dx = linear_input_grad(run, "attn.qkv", dqkv, p["attn.qkv"])
    deferred = [_defer(run, "attn.o", out, dy), _defer(run, "attn.qkv", x, dqkv), *gains, *learned]
    if c.attention_sinks:
        used = grads.sinks
        deferred.append(Deferred(kind="bias", op="attn.core", name="attn.sinks", layer=run.layer, x=used, dy=used))
    if c.attention_bias:
        bias = Deferred(kind="bias", op="attn.qkv", name="attn.qkv_bias", layer=run.layer, x=dqkv, dy=dqkv)
        deferred.append(bias)
    return dx, deferred


def _heads(run: Run, p: Weights, made: Saved) -> Saved:
    """Rotated queries and keys; where heads are normed, with the statistics of that."""
    out: Saved = {}
    for op, into in HEADS.items():
        x = made[f"{op}/x"]
        if run.cfg.qk_norm:
            y, out[f"{op}/rstd"] = rmsnorm(run, op, _under_one_norm(run, x), p[op])
            x = y.reshape(x.shape)
        out[into] = _turned(run, x)
    return out


def _under_one_norm(run: Run, x: Array) -> Array:
    """Heads [B, S, H, d], or all heads of a token in one row [B, S, H d]."""
    return x.reshape(*x.shape[:2], -1) if run.cfg.qk_norm_over == "projection" else x


def _turned(run: Run, x: Array, *, back: bool = False) -> Array:
    """The first elements of each head rotated by their position, or the gradient of that."""
    wide = run.cfg.rope_dim
    if not wide or not run.cfg.rotates(run.layer):
        return x
    turn = rotate_input_grad if back else rotate
    turned = turn(x[..., :wide], *angles(run.cfg, x.shape[1]))
    return np.concatenate([turned, x[..., wide:]], axis=-1)


def _heads_input_grad(run: Run, p: Weights, saved: Saved, dheads: list[Array]) -> tuple[list[Array], list[Deferred]]:
    """Back through the norms of queries and keys, where there are any."""
    if not run.cfg.qk_norm:
        return dheads, []
    out, gains = [], []
    for op, dhead in zip(HEADS, dheads, strict=True):
        x, rstd, dy = _under_one_norm(run, saved[f"{op}/x"]), saved[f"{op}/rstd"], _under_one_norm(run, dhead)
        out.append(rmsnorm_input_grad(run, op, x, rstd, p[op], dy).reshape(dhead.shape))
        gains.append(Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd))
    return out, gains


def _defer(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    return Deferred(kind="linear", op=op, name=op, layer=run.layer, x=x, dy=dy)
