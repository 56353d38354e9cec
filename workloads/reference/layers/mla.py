"""Multi-head latent attention for training (DeepSeek-V2 section 2.1, DeepSeek-V3 equations 1 to 11)."""

import numpy as np

from workloads.reference.core import attend, attend_input_grad, core_forget, core_restore
from workloads.reference.count import Array, Run, Saved, Weights
from workloads.reference.layers.linear import Deferred, linear, linear_input_grad
from workloads.reference.layers.norm import forget, rmsnorm, rmsnorm_input_grad
from workloads.reference.layers.rope import angles, rotate, rotate_input_grad, softmax_scale

QUERIES, KEYS_VALUES = "attn.core/q", ("attn.core/k", "attn.core/v")


def mla(run: Run, p: Weights, x: Array) -> tuple[Array, Saved]:
    """Attention output [B, S, hidden] of normalised input x [B, S, hidden]."""
    saved: Saved = _down(run, p, x)
    saved |= _latent_norms(run, p, saved)
    q, (k, v) = _queries(run, p, x, saved), _keys_values(run, p, saved)
    out, lse = attend(run, q, k, v, softmax_scale(run.cfg))
    saved |= {
        "attn.core/q": q,
        "attn.core/k": k,
        "attn.core/v": v,
        "attn.core/lse": lse,
        "attn.o/x": out.reshape(*x.shape[:2], -1),
    }
    if run.cfg.is_gated:
        gate = linear(run, "attn.gate_proj", x, p["attn.gate_proj"])
        saved |= {"attn.gate/y": saved["attn.o/x"], "attn.gate/logit": gate}
        saved["attn.o/x"] = saved["attn.o/x"] * _sigmoid(gate)
    return linear(run, "attn.o", saved["attn.o/x"], p["attn.o"]), saved


def mla_forget(run: Run, saved: Saved) -> Saved:
    """What is left to keep when up-projections or norms are recomputed (DeepSeek-V3 section 3.2.3).

    Queries made from the hidden state itself (no q_lora_rank) are not projected up, and are kept.
    """
    drop = {"attn.kv_a/k_rope"}  # only the recomputation reads it
    if run.again("mla_up", "mla_up_proj"):
        drop = {*KEYS_VALUES, *([QUERIES] if run.cfg.q_lora_rank is not None else [])}
    kept = {key: array for key, array in core_forget(run, saved).items() if key not in drop}
    return forget(run, kept, {"norm.q_lora": "attn.q_b/x", "norm.kv_lora": "attn.kv_b/x"}, "mla_up_proj")


def mla_restore(run: Run, p: Weights, x: Array, saved: Saved) -> Saved:
    """Compute again what `mla_forget` dropped; `x` is the normalised input."""
    again = run.at(part="R")
    if "norm.kv_lora/rstd" not in saved:
        saved = saved | _latent_norms(again, p, saved)
    if QUERIES not in saved:
        saved = saved | {QUERIES: _queries(again, p, x, saved)}
    if KEYS_VALUES[0] not in saved:
        saved = saved | dict(zip(KEYS_VALUES, _keys_values(again, p, saved), strict=True))
    return core_restore(run, saved)


def mla_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dy: Array) -> tuple[Array, list[Deferred]]:
    """dx and the waiting weight gradients."""
    q, k, v = (saved[key] for key in (QUERIES, *KEYS_VALUES))
    out = saved["attn.gate/y" if run.cfg.is_gated else "attn.o/x"]
    dgated = linear_input_grad(run, "attn.o", dy, p["attn.o"])
    dout, dx_gate, gates = _gate_input_grad(run, p, x, saved, dgated)
    heads = (*out.shape[:2], run.cfg.num_attention_heads, -1)
    dq, dk, dv, _ = attend_input_grad(
        run, q, k, v, out.reshape(heads), saved["attn.core/lse"], dout.reshape(heads), softmax_scale(run.cfg)
    )
    dkv, dk_rope = _split_keys_grad(run, dk, dv)
    deferred = [_defer(run, "attn.o", saved["attn.o/x"], dy), _defer(run, "attn.kv_b", saved["attn.kv_b/x"], dkv)]
    dlatent = linear_input_grad(run, "attn.kv_b", dkv, p["attn.kv_b"])
    dlatent, gain = _norm_grad(run, "norm.kv_lora", p, saved, dlatent)
    dcompressed = np.concatenate([dlatent, dk_rope], axis=-1)
    dx = linear_input_grad(run, "attn.kv_a", dcompressed, p["attn.kv_a"])
    deferred += [gain, _defer(run, "attn.kv_a", x, dcompressed)]
    dx_query, more = _query_input_grad(run, p, x, saved, dq)
    return dx + dx_query + dx_gate, deferred + more + gates


def _sigmoid(x: Array) -> Array:
    out: Array = 1.0 / (1.0 + np.exp(-x))
    return out


def _gate_input_grad(
    run: Run, p: Weights, x: Array, saved: Saved, d: Array
) -> tuple[Array, Array | float, list[Deferred]]:
    """Gradients of the core's output and, through the gate (Kimi K3), of the layer's input."""
    if not run.cfg.is_gated:
        return d, 0.0, []
    share = _sigmoid(saved["attn.gate/logit"])
    dgate = d * saved["attn.gate/y"] * share * (1 - share)
    through = linear_input_grad(run, "attn.gate_proj", dgate, p["attn.gate_proj"])
    return d * share, through, [_defer(run, "attn.gate_proj", x, dgate)]


def _down(run: Run, p: Weights, x: Array) -> Saved:
    """Compress: equation 1 (keys and values, with the shared rotated key) and 6 (queries)."""
    compressed = linear(run, "attn.kv_a", x, p["attn.kv_a"])
    rank = run.cfg.kv_lora_rank
    saved = {"norm.kv_lora/x": compressed[..., :rank], "attn.kv_a/k_rope": compressed[..., rank:]}
    if run.cfg.q_lora_rank is not None:
        saved["norm.q_lora/x"] = linear(run, "attn.q_a", x, p["attn.q_a"])
    return saved


def _latent_norms(run: Run, p: Weights, saved: Saved) -> Saved:
    out: Saved = {}
    pairs = [("norm.kv_lora", "attn.kv_b")] + [("norm.q_lora", "attn.q_b")] * ("norm.q_lora/x" in saved)
    for op, consumer in pairs:
        out[f"{consumer}/x"], out[f"{op}/rstd"] = rmsnorm(run, op, saved[f"{op}/x"], p[op])
    return out


def _queries(run: Run, p: Weights, x: Array, saved: Saved) -> Array:
    """q [B, S, H, nope + rope] (equations 7 to 9)."""
    c, (b, s, _) = run.cfg, x.shape
    if c.q_lora_rank is None:
        q = linear(run, "attn.q", x, p["attn.q"])
    else:
        q = linear(run, "attn.q_b", saved["attn.q_b/x"], p["attn.q_b"])
    q = q.reshape(b, s, c.num_attention_heads, c.qk_head_dim)
    cos, sin = angles(c, s)
    nope = c.qk_nope_head_dim
    return np.concatenate([q[..., :nope], rotate(q[..., nope:], cos, sin)], axis=-1)


def _keys_values(run: Run, p: Weights, saved: Saved) -> tuple[Array, Array]:
    """k [B, S, H, nope + rope] and v [B, S, H, dv] (equations 2 to 5)."""
    c, latent = run.cfg, saved["attn.kv_b/x"]
    b, s, _ = latent.shape
    kv = linear(run, "attn.kv_b", latent, p["attn.kv_b"]).reshape(b, s, c.num_attention_heads, -1)
    cos, sin = angles(c, s)
    nope = c.qk_nope_head_dim
    k_rope = rotate(saved["attn.kv_a/k_rope"][:, :, None, :], cos, sin)
    k = np.concatenate([kv[..., :nope], np.broadcast_to(k_rope, (*kv.shape[:3], c.qk_rope_head_dim))], axis=-1)
    return k, kv[..., nope:]


def _split_keys_grad(run: Run, dk: Array, dv: Array) -> tuple[Array, Array]:
    """Gradients of kv_b's output [B, S, H (nope + dv)] and of the shared rotated key [B, S, rope]."""
    nope = run.cfg.qk_nope_head_dim
    cos, sin = angles(run.cfg, dk.shape[1])
    dk_rope = rotate_input_grad(dk[..., nope:].sum(axis=2, keepdims=True), cos, sin)[:, :, 0]
    dkv = np.concatenate([dk[..., :nope], dv], axis=-1)
    return dkv.reshape(*dk.shape[:2], -1), dk_rope


def _query_input_grad(run: Run, p: Weights, x: Array, saved: Saved, dq: Array) -> tuple[Array, list[Deferred]]:
    nope = run.cfg.qk_nope_head_dim
    cos, sin = angles(run.cfg, dq.shape[1])
    dq = np.concatenate([dq[..., :nope], rotate_input_grad(dq[..., nope:], cos, sin)], axis=-1)
    dq = dq.reshape(*dq.shape[:2], -1)
    if run.cfg.q_lora_rank is None:
        return linear_input_grad(run, "attn.q", dq, p["attn.q"]), [_defer(run, "attn.q", x, dq)]
    dlatent = linear_input_grad(run, "attn.q_b", dq, p["attn.q_b"])
    dcompressed, gain = _norm_grad(run, "norm.q_lora", p, saved, dlatent)
    dx = linear_input_grad(run, "attn.q_a", dcompressed, p["attn.q_a"])
    return dx, [_defer(run, "attn.q_b", saved["attn.q_b/x"], dq), gain, _defer(run, "attn.q_a", x, dcompressed)]


def _norm_grad(run: Run, op: str, p: Weights, saved: Saved, dy: Array) -> tuple[Array, Deferred]:
    x, rstd = saved[f"{op}/x"], saved[f"{op}/rstd"]
    gain = Deferred(kind="gain", op=op, name=op, layer=run.layer, x=x, dy=dy, extra=rstd)
    return rmsnorm_input_grad(run, op, x, rstd, p[op], dy), gain


def _defer(run: Run, op: str, x: Array, dy: Array) -> Deferred:
    return Deferred(kind="linear", op=op, name=op, layer=run.layer, x=x, dy=dy)
