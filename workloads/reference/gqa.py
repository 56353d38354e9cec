"""Grouped-query attention (arXiv 2305.13245), as Llama and Qwen have it."""

import numpy as np

from workloads.reference.core import attend, attend_input_grad
from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.linear import Deferred, linear, linear_input_grad
from workloads.reference.rope import angles, rotate, rotate_input_grad, softmax_scale


def gqa(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Attention output [B, S, hidden] of normalised input x [B, S, hidden]."""
    c, (b, s, _) = run.cfg, x.shape
    heads = linear(run, "attn.qkv", x, p["attn.qkv"]).reshape(b, s, -1, c.v_dim)
    cos, sin = angles(c, s)
    n, g = c.num_attention_heads, c.num_key_value_heads
    q, k, v = rotate(heads[:, :, :n], cos, sin), rotate(heads[:, :, n : n + g], cos, sin), heads[:, :, n + g :]
    out, lse = attend(run, q, k, v, softmax_scale(c))
    saved = {
        "attn.core/q": q,
        "attn.core/k": k,
        "attn.core/v": v,
        "attn.core/lse": lse,
        "attn.o/x": out.reshape(b, s, -1),
    }
    return linear(run, "attn.o", saved["attn.o/x"], p["attn.o"]), saved


def gqa_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    c, (b, s, _) = run.cfg, x.shape
    out = saved["attn.o/x"]
    dout = linear_input_grad(run, "attn.o", dy, p["attn.o"]).reshape(b, s, -1, c.v_dim)
    dq, dk, dv = attend_input_grad(
        run,
        saved["attn.core/q"],
        saved["attn.core/k"],
        saved["attn.core/v"],
        out.reshape(dout.shape),
        saved["attn.core/lse"],
        dout,
        softmax_scale(c),
    )
    cos, sin = angles(c, s)
    dheads = [rotate_input_grad(dq, cos, sin), rotate_input_grad(dk, cos, sin), dv]
    dqkv = np.concatenate(dheads, axis=2).reshape(b, s, -1)
    dx = linear_input_grad(run, "attn.qkv", dqkv, p["attn.qkv"])
    return dx, [
        Deferred(kind="linear", op="attn.o", name="attn.o", layer=run.layer, x=out, dy=dy),
        Deferred(kind="linear", op="attn.qkv", name="attn.qkv", layer=run.layer, x=x, dy=dqkv),
    ]
