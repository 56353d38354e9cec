"""Models of `measure_te_layers.py`: a few layers of a public model, as Megatron-Core builds them, on one GPU.

`tp4` is what one of four tensor-parallel ranks computes (a quarter of the heads, of the inner size and of the
vocabulary at full hidden size), without its collectives; `ep8` and `ep16` hold one rank's experts, to which as many
rows go as the rank would receive at equal loads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

LLAMA: dict[str, Any] = {
    "normalization": "RMSNorm",
    "gated_linear_unit": True,
    "activation_func": F.silu,
    "add_bias_linear": False,
    "kv_channels": 128,
}
"""Llama's layer, which the mixtures of experts have too."""
MOE: dict[str, Any] = LLAMA | {
    "moe_router_load_balancing_type": "aux_loss",
    "moe_aux_loss_coeff": 1e-3,
    "moe_router_dtype": "fp32",
    "moe_grouped_gemm": True,
    "moe_token_dispatcher_type": "alltoall",
    "moe_router_force_load_balancing": True,
    "moe_permute_fusion": True,
}
"""Dropless experts behind Megatron's all-to-all dispatcher; a random router, as its benchmarks use it."""
FP8 = ("delayed", "tensorwise", "blockwise")
"""Megatron's --fp8-recipe."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model.

    Parameters
    ----------
    layers, seq, mbs, vocab : layers, tokens of a sequence, sequences of a microbatch, vocabulary of the rank.
    config : what Megatron-Core's TransformerConfig gets.
    grads : precision of the buffer that weight gradients are added into.
    positions : Megatron-Core's --position-embedding-type.
    rotary : part of the channels of a head that is rotated.
    precisions : "bf16" or one of `FP8`.
    """

    layers: int
    seq: int
    mbs: int
    vocab: int
    config: Mapping[str, Any]
    grads: torch.dtype = torch.float32
    positions: str = "rope"
    rotary: float = 1.0
    precisions: tuple[str, ...] = ("bf16", *FP8)


def moe(hidden: int, heads: int, groups: int, experts: int, topk: int, inner: int, **more: Any) -> dict[str, Any]:
    """A mixture of experts."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_query_groups": groups}
    experts_of = {"num_moe_experts": experts, "moe_router_topk": topk, "moe_ffn_hidden_size": inner}
    return MOE | sizes | experts_of | {"ffn_hidden_size": inner} | more


def dense(hidden: int, heads: int, groups: int, inner: int, **more: Any) -> dict[str, Any]:
    """A dense model."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_query_groups": groups}
    return LLAMA | sizes | {"ffn_hidden_size": inner} | more


def squared_relu(x: torch.Tensor) -> torch.Tensor:
    """Nemotron's activation, as Megatron-Core has it."""
    from megatron.core.activations import squared_relu as theirs

    out: torch.Tensor = theirs(x)
    return out


def _gpt3() -> dict[str, Any]:
    layer = {"normalization": "LayerNorm", "gated_linear_unit": False, "activation_func": F.gelu}
    return dense(12288, 24, 24, 12288, add_bias_linear=True) | layer


def _nemotron() -> dict[str, Any]:
    layer = {"normalization": "LayerNorm", "layernorm_zero_centered_gamma": True, "gated_linear_unit": False}
    return dense(6144, 12, 2, 6144) | layer | {"activation_func": squared_relu}


def _mla() -> dict[str, Any]:
    latent = {"q_lora_rank": 1536, "kv_lora_rank": 512, "qk_head_dim": 128, "qk_pos_emb_head_dim": 64}
    shared = {"moe_shared_expert_intermediate_size": 2048, "multi_latent_attention": True, "qk_layernorm": True}
    gate = {"moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": True}
    config = moe(7168, 128, 128, 16, 8, 2048, **latent, **shared, **gate, v_head_dim=128)
    del config["num_query_groups"]
    return config


QWEN3 = moe(2048, 32, 4, 128, 8, 768, qk_layernorm=True)
GROK = moe(6144, 12, 2, 8, 2, 8192, activation_func=F.gelu)
CASES: Mapping[str, Case] = {
    "llama-3-8b": Case(layers=4, seq=8192, mbs=1, vocab=128256, config=dense(4096, 32, 8, 14336)),
    "gpt-3-175b tp4": Case(
        layers=2, seq=2048, mbs=2, vocab=12800, config=_gpt3(), positions="learned_absolute", grads=torch.bfloat16
    ),
    "qwen3-30b-a3b": Case(layers=3, seq=4096, mbs=2, vocab=151936, config=QWEN3),
    "llama-3-70b tp4": Case(layers=3, seq=8192, mbs=1, vocab=32064, config=dense(8192, 16, 2, 7168)),
    "nemotron-4-15b tp4": Case(layers=3, seq=4096, mbs=4, vocab=64000, config=_nemotron(), rotary=0.5),
    "qwen3-30b-a3b unfused": Case(
        layers=3, seq=4096, mbs=2, vocab=151936, config=QWEN3 | {"moe_permute_fusion": False}, precisions=("bf16",)
    ),
    "qwen3-30b-a3b ep8": Case(
        layers=4, seq=4096, mbs=2, vocab=151936, config=moe(2048, 32, 4, 16, 8, 768, qk_layernorm=True)
    ),
    "grok-1 tp4": Case(layers=2, seq=8192, mbs=1, vocab=32768, config=GROK, precisions=("bf16", "delayed")),
    "mixtral-8x7b": Case(
        layers=2, seq=4096, mbs=1, vocab=32000, config=moe(4096, 32, 8, 8, 2, 14336), precisions=("bf16", "delayed")
    ),
    "deepseek-v3 ep16": Case(
        layers=2, seq=4096, mbs=1, vocab=32320, config=_mla(), precisions=("bf16", "delayed", "blockwise")
    ),
}
SMALL: dict[str, Any] = {"hidden_size": 512, "num_attention_heads": 4, "ffn_hidden_size": 512, "kv_channels": 128}
"""Widths at which the host, not the GPU, decides how long a layer takes; experts keep their number."""
