"""Grouped-query attention (arXiv 2305.13245), as Llama and Qwen have it: Qwen2 with biases, Qwen3 with normed heads."""

import numpy as np

from workloads.reference.core import attend, attend_input_grad, core_forget, core_restore
from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad
from workloads.reference.layers.rope import angles, rotate, rotate_input_grad, softmax_scale

HEADS = {"norm.q": "attn.core/q", "norm.k": "attn.core/k"}  # norm of the heads -> what becomes of its output


def gqa(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Attention output [B, S, hidden] of normalised input x [B, S, hidden]."""
    c, (b, s, _) = run.cfg, x.shape
    projected = linear(run, "attn.qkv", x, p["attn.qkv"])
    if c.attention_bias:
        projected = projected + p["attn.qkv_bias"]
    heads = projected.reshape(b, s, -1, c.v_dim)
    n, g = c.num_attention_heads, c.num_key_value_heads
    made = {"norm.q/x": heads[:, :, :n], "norm.k/x": heads[:, :, n : n + g]}
    saved = _heads(run, p, made) | {"attn.core/v": heads[:, :, n + g :]} | (made if c.qk_norm else {})
    q, k, v = (saved[f"attn.core/{name}"] for name in "qkv")
    out, lse = attend(run, q, k, v, softmax_scale(c))
    saved |= {"attn.core/lse": lse, "attn.o/x": out.reshape(b, s, -1)}
    return linear(run, "attn.o", saved["attn.o/x"], p["attn.o"]), saved


def gqa_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep when norms or the core are recomputed: of normed heads, what goes into the norm."""
    saved = core_forget(run, saved)
    return forget(run, saved, HEADS) if run.cfg.qk_norm else saved


def gqa_restore(run: Run, p: Weights, saved: Saved) -> Saved:
    """Compute again what `gqa_forget` dropped."""
    if "attn.core/q" not in saved:
        saved = saved | _heads(run.at(part="R"), p, saved)
    return core_restore(run, saved)


def gqa_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    c, (b, s, _) = run.cfg, x.shape
    out = saved["attn.o/x"]
    dout = linear_input_grad(run, "attn.o", dy, p["attn.o"]).reshape(b, s, -1, c.v_dim)
    q, k, v = (saved[f"attn.core/{name}"] for name in "qkv")
    *dqk, dv = attend_input_grad(run, q, k, v, out.reshape(dout.shape), saved["attn.core/lse"], dout, softmax_scale(c))
    cos, sin = angles(c, s)
    dheads, gains = _heads_input_grad(run, p, saved, [rotate_input_grad(d, cos, sin) for d in dqk])
    dqkv = np.concatenate([*dheads, dv], axis=2).reshape(b, s, -1)
    dx = linear_input_grad(run, "attn.qkv", dqkv, p["attn.qkv"])
    deferred = [_defer(run, "attn.o", out, dy), _defer(run, "attn.qkv", x, dqkv), *gains]
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
            x, out[f"{op}/rstd"] = rmsnorm(run, op, x, p[op])
        out[into] = rotate(x, *angles(run.cfg, x.shape[1]))
    return out


def _heads_input_grad(run: Run, p: Weights, saved: Saved, dheads: list[Array]) -> tuple[list[Array], list[Deferred]]:
    """Back through the norms of queries and keys, where there are any."""
    if not run.cfg.qk_norm:
        return dheads, []
    out, gains = [], []
    for op, dy in zip(HEADS, dheads, strict=True):
        x, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
        out.append(rmsnorm_input_grad(run, op, x, rstd, p[op], dy))
        gains.append(Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd))
    return out, gains


def _defer(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    return Deferred(kind="linear", op=op, name=op, layer=run.layer, x=x, dy=dy)
