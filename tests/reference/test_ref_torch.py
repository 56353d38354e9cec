"""Forward and gradients against PyTorch's autograd, from the equations written once more; skipped without torch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from workloads.reference.config import RefConfig
from workloads.reference.count import Run
from workloads.reference.init import init_params
from workloads.reference.layers.rope import frequencies, softmax_scale
from workloads.reference.model import as_tokens, loss_and_grads
from workloads.reference.presets import tiny_gqa, tiny_v2_lite, tiny_v3

torch = pytest.importorskip("torch")
F = torch.nn.functional


def norm(c: RefConfig, x: Any, gain: Any) -> Any:
    return F.rms_norm(x, (x.shape[-1],), gain, c.rms_norm_eps)


def rope(c: RefConfig, x: Any) -> Any:
    """Rotation as a product of complex numbers; x [B, S, H, d]."""
    phase = torch.outer(torch.arange(x.shape[1], dtype=torch.float64), torch.from_numpy(frequencies(c)))
    turn = torch.polar(torch.ones_like(phase), phase)[None, :, None]
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous()) * turn).flatten(-2)


def attention(c: RefConfig, w: Any, x: Any) -> Any:
    (b, s), n = x.shape[:2], c.num_attention_heads
    if c.is_mla:
        q = norm(c, x @ w["attn.q_a"], w["norm.q_lora"]) @ w["attn.q_b"] if c.q_lora_rank else x @ w["attn.q"]
        q_nope, q_rope = q.view(b, s, n, -1).split([c.qk_nope_head_dim, c.qk_rope_head_dim], -1)
        latent, k_rope = (x @ w["attn.kv_a"]).split([c.kv_lora_rank, c.qk_rope_head_dim], -1)
        kv = (norm(c, latent, w["norm.kv_lora"]) @ w["attn.kv_b"]).view(b, s, n, -1)
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], -1)
        q = torch.cat([q_nope, rope(c, q_rope)], -1)
        k = torch.cat([k_nope, rope(c, k_rope[:, :, None]).expand(-1, -1, n, -1)], -1)
    else:
        g = c.num_key_value_heads
        q, k, v = (x @ w["attn.qkv"]).view(b, s, n + 2 * g, -1).split([n, g, g], 2)
        q, k, v = rope(c, q), rope(c, k).repeat_interleave(n // g, 2), v.repeat_interleave(n // g, 2)
    out = F.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), is_causal=True, scale=softmax_scale(c)
    )
    return out.transpose(1, 2).reshape(b, s, -1) @ w["attn.o"]


def swiglu(x: Any, up: Any, down: Any) -> Any:
    gate, value = (x @ up).chunk(2, -1)
    return (F.silu(gate) * value) @ down


def experts(c: RefConfig, w: Any, x: Any) -> Any:
    flat = x.reshape(-1, x.shape[-1])
    logits = flat @ w["router.gate"]
    scores = logits.sigmoid() if c.scoring_func == "sigmoid" else logits.softmax(-1)
    open_ = torch.ones_like(scores, dtype=torch.bool)
    if c.topk_method != "greedy":
        groups = scores.view(len(flat), c.n_group, -1)
        best = groups.topk(2, -1)[0].sum(-1).topk(c.topk_group, -1)[1]
        open_ = (
            torch.zeros(groups.shape[:2], dtype=torch.bool)
            .scatter(1, best, True)
            .repeat_interleave(c.experts // c.n_group, 1)
        )
    chosen = scores.masked_fill(~open_, -1.0).topk(c.num_experts_per_tok, -1)[1]
    weights = scores.gather(1, chosen)
    if c.norm_topk_prob:
        weights = weights / weights.sum(-1, keepdim=True)
    every = torch.stack([swiglu(flat, w["moe.up_gate"][e], w["moe.down"][e]) for e in range(c.experts)], 1)
    picked = every.gather(1, chosen[..., None].expand(-1, -1, flat.shape[-1]))
    out = (picked * weights[..., None]).sum(1) * c.routed_scaling_factor
    return out.view(x.shape) + swiglu(x, w["shared.up_gate"], w["shared.down"])


def layer(c: RefConfig, index: int, w: Any, x: Any) -> Any:
    x = x + attention(c, w, norm(c, x, w["norm.attn"]))
    y = norm(c, x, w["norm.ffn"])
    return x + (experts(c, w, y) if c.is_moe(index) else swiglu(y, w["dense.up_gate"], w["dense.down"]))


def objective(c: RefConfig, p: Any, tokens: Any) -> Any:
    s = tokens.shape[1] - 1 - c.num_nextn_predict_layers
    h = p["embed"]["embed"][tokens[:, :s]]
    for i in range(c.num_hidden_layers):
        h = layer(c, i, p[f"layers.{i}"], h)

    def loss(state: Any, gain: Any, offset: int) -> Any:
        logits = norm(c, state, gain) @ p["head"]["head"]
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, offset : offset + s].flatten())

    total = loss(h, p["head"]["norm.final"], 1)
    for k in range(c.num_nextn_predict_layers):
        w = p[f"mtp.{k}"]
        ahead = p["embed"]["embed"][tokens[:, k + 1 : k + 1 + s]]
        joined = torch.cat([norm(c, h, w["mtp.norm_h"]), norm(c, ahead, w["mtp.norm_e"])], -1)
        h = layer(c, c.num_hidden_layers + k, w, joined @ w["mtp.proj"])
        total = total + c.mtp_loss_weight / c.num_nextn_predict_layers * loss(h, w["norm.final"], k + 2)
    return total


@pytest.mark.parametrize(
    "cfg",
    [tiny_v3(), replace(tiny_v3(), num_nextn_predict_layers=2), tiny_v2_lite(), tiny_gqa()],
    ids=["v3", "v3-two-mtp", "v2-lite", "gqa"],
)
def test_loss_and_every_gradient(cfg: RefConfig) -> None:
    cfg = replace(cfg, aux_loss_alpha=0.0)
    params, tokens = init_params(cfg, 5), as_tokens(cfg, 6, 2, 8)
    losses, grads = loss_and_grads(Run(cfg=cfg), params, tokens)
    theirs = {
        unit: {name: torch.tensor(w, requires_grad=True) for name, w in weights.items()}
        for unit, weights in params.items()
    }
    total = objective(cfg, theirs, torch.from_numpy(tokens))
    total.backward()
    assert sum(losses.values()) == pytest.approx(total.item(), rel=1e-12)
    for unit, weights in grads.items():
        for name, dw in weights.items():
            np.testing.assert_allclose(
                dw, theirs[unit][name].grad.numpy(), rtol=1e-8, atol=1e-11, err_msg=f"{unit} {name}"
            )
