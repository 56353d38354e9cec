"""The shape of a model, spelled as in Hugging Face's config.json.

One frozen dataclass covers the DeepSeek-V2/V3 family (MLA, experts, MTP) and dense GQA models (Llama, Qwen).
`kv_lora_rank is None` means grouped-query attention; `n_routed_experts is None` means dense layers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CSA, HCA = "compressed_sparse_attention", "heavily_compressed_attention"
BLOCKS = "minimax_m3_sparse"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The state of a recurrent layer: heads of `key_dim` x `value_dim`; keys (or b and c) are shared by heads."""

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    chunk: int
    numbers: int  # numbers of a token besides what is mixed and its gate
    norms: int  # groups of the output that are normed by themselves; 0: it is gated, and not normed
    rank: int = 0  # width of the projections before those of the gate and of a decay for each channel; 0: neither
    full_gate: bool = False  # the gate comes from the input all the same

    @property
    def keys(self) -> int:
        """Width of all queries, or of all keys."""
        return self.key_heads * self.key_dim

    @property
    def inner(self) -> int:
        """Width of the output."""
        return self.heads * self.value_dim

    @property
    def projected(self) -> int:
        """Width of the input projection."""
        return self.channels + (0 if self.rank and not self.full_gate else self.inner) + self.numbers

    @property
    def channels(self) -> int:
        """Width of what is convolved."""
        return 2 * self.keys + self.inner


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenKeys:
    """Sizes of models whose queries attend to chosen keys, or to entries of several."""

    # DeepSeek-V4: one vector is key and value of all heads, entries of several tokens, streams, experts by table
    shared_key_value: bool = False
    o_groups: int = 0  # groups of heads that are projected to `o_lora_rank` each
    o_lora_rank: int = 0
    index_n_heads: int = 0
    index_head_dim: int = 0
    index_topk: int = 0  # entries (DeepSeek-V3.2: tokens, MiniMax-M3: blocks of keys) that a query attends to
    index_block_size: int = 0  # keys of such a block
    compress_rate_csa: int = 4
    compress_rate_hca: int = 128
    hc_mult: int = 1  # streams
    num_hash_layers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RefConfig(ChosenKeys):
    """Everything the reference model needs to know about a model; sizes are elements, not bytes."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    # Multi-head latent attention, DeepSeek-V2 section 2.1
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    head_dim: int | None = None  # GQA only; hidden_size / heads when absent
    attention_bias: bool = False  # on queries, keys and values, as Qwen2 has it (GQA only)
    qk_norm: bool = False  # RMSNorm of each query and key head, as Qwen3 has it (GQA only)
    qk_norm_over: str = "head"  # or "projection": one norm over all heads, as OLMo 2 has it
    value_norm: bool = False  # a norm of each value head, without weights (Gemma 4)
    key_is_value: bool = False  # values are made of what the keys are made of
    partial_rotary_factor: float = 1.0  # part of a head that is rotated, its first elements (GQA only)
    # Layers that differ: transformers' names, one a layer; empty means full attention everywhere
    layer_types: tuple[str, ...] = ()
    sliding_window: int = 0  # keys that a query of a layer with a window sees, its own included
    attention_chunk_size: int = 0  # tokens of a chunk in layers with chunked attention
    linear_num_key_heads: int = 0  # the gated delta rule (Qwen3-Next)
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_full_rank_gate: bool = False  # its gate is projected straight from the input (Kimi K3)
    linear_gate_rank: int = 0  # Kimi Delta Attention: width before the projections of gate and decay
    mamba_num_heads: int = 0  # Mamba-2
    mamba_head_dim: int = 0
    mamba_n_groups: int = 1
    mamba_rms_norm: bool = True  # whether Mamba-2's gated output is normed
    short_conv_size: int = 0  # short convolutions: channels
    short_conv_kernel: int = 3  # and their taps
    mamba_inner_size: int = 0  # Mamba-1: channels
    mamba_dt_rank: int = 0  # width of its step sizes before their projection
    mamba_state_norms: bool = True  # whether its steps, b and c are normed
    mamba_norm_gains: bool = True  # whether these norms have weights
    ssm_state_size: int = 0
    conv_kernel: int = 4  # taps of the convolution before either
    state_chunk_size: int = 64  # tokens that either works on at once
    full_layers_rotate: bool = True  # whether layers with full attention rotate queries and keys
    attention_sinks: bool = False  # a learned logit of each head that takes part in the softmax (GQA only)
    attention_gate: str = "none"  # "element": the sigmoid of a projection scales each value of the output
    mixer_only_layers: tuple[int, ...] = ()  # layers without a feed-forward part (Nemotron-H)
    gated_mlp: bool = True  # SwiGLU; False: the square of a ReLU, and no gate
    norm_placement: str = "pre"  # norms before the branches, "post": behind them, "both"
    parallel_block: bool = False  # both branches read the layer's input
    shared_norm: bool = False  # and one norm of it
    # DeepSeekMoE, DeepSeek-V3 section 2.1.2
    n_routed_experts: int | None = None
    n_shared_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    moe_latent_norm: bool = False  # a norm of what the experts made in that width (Kimi K3)
    moe_latent_size: int = 0  # width that tokens are projected to before their experts (Nemotron 3 Super); 0: none
    shared_expert_intermediate_size: int = 0  # width of the shared experts where they are not as wide as the others
    first_k_dense_replace: int = 0
    mlp_only_layers: tuple[int, ...] = ()  # layers that are dense although others have experts
    n_group: int = 1
    topk_group: int = 1
    scoring_func: str = "sigmoid"
    topk_method: str = "noaux_tc"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    aux_loss_alpha: float = 0.0
    # Multi-token prediction, DeepSeek-V3 section 2.2
    num_nextn_predict_layers: int = 0
    mtp_loss_weight: float = 0.3  # lambda of equation 25; not a config.json key
    rope_theta: float = 10_000.0
    rope_scaling: Mapping[str, Any] | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise ValueError("model config: " + "; ".join(problems))

    @property
    def is_mla(self) -> bool:
        return self.kv_lora_rank is not None

    @property
    def is_chosen(self) -> bool:
        """Whether latent attention reads the tokens that an indexer chooses (DeepSeek-V3.2)."""
        return self.is_mla and self.index_topk > 0

    @property
    def qk_head_dim(self) -> int:
        """Width of one query head [elements]."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.v_dim

    @property
    def v_dim(self) -> int:
        """Width of one value head [elements]."""
        return self.v_head_dim if self.is_mla else self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def rope_dim(self) -> int:
        """How many elements of a query head are rotated."""
        return self.qk_rope_head_dim if self.is_mla else round(self.v_dim * self.partial_rotary_factor)

    @property
    def is_gated(self) -> bool:
        """Whether a gate scales each value of the attention output."""
        return self.attention_gate == "element"

    @property
    def up(self) -> int:
        """Halves of the first matrix of a feed-forward part: gate and up, or up alone."""
        return 2 if self.gated_mlp else 1

    @property
    def expert_hidden(self) -> int:
        """Width of a token as its experts read it."""
        return self.moe_latent_size or self.hidden_size

    @property
    def shared_width(self) -> int:
        """Width of the shared experts."""
        return self.shared_expert_intermediate_size or self.n_shared_experts * self.moe_intermediate_size

    @property
    def stream_width(self) -> int:
        """Values of a token that pass from layer to layer."""
        return self.hc_mult * self.hidden_size

    @property
    def hc_weights(self) -> int:
        """Weights that hyper-connections compute for a token before a branch."""
        return (2 + self.hc_mult) * self.hc_mult if self.hc_mult > 1 else 0

    def compress_rate(self, layer: int) -> int:
        """Tokens of an entry of this layer; 0: it has none."""
        rates = {CSA: self.compress_rate_csa, HCA: self.compress_rate_hca}
        return rates.get(self.mixer(layer), 0)

    def mixer(self, layer: int) -> str:
        """What mixes the tokens of a layer (MTP layers have full attention)."""
        return self.layer_types[layer] if 0 <= layer < len(self.layer_types) else "full_attention"

    def state(self, layer: int) -> State:
        """The state of a recurrent layer."""
        if self.mixer(layer) == "linear_attention":
            return State(
                heads=self.linear_num_value_heads,
                key_heads=self.linear_num_key_heads,
                key_dim=self.linear_key_head_dim,
                value_dim=self.linear_value_head_dim,
                chunk=self.state_chunk_size,
                numbers=self.linear_num_value_heads
                + ((2 - self.linear_full_rank_gate) * self.linear_gate_rank or self.linear_num_value_heads),
                norms=self.linear_num_value_heads,
                rank=self.linear_gate_rank,
                full_gate=self.linear_full_rank_gate,
            )
        return State(
            heads=self.mamba_num_heads,
            key_heads=self.mamba_n_groups,
            key_dim=self.ssm_state_size,
            value_dim=self.mamba_head_dim,
            chunk=self.state_chunk_size,
            numbers=self.mamba_num_heads,
            norms=self.mamba_n_groups if self.mamba_rms_norm else 0,
        )

    def has(self, half: str, layer: int) -> bool:
        """Whether a layer has this part: attention, or what stands in its place (`attn`), or a feed-forward (`ffn`)."""
        return self.mixer(layer) != "none" if half == "attn" else layer not in self.mixer_only_layers

    def is_recurrent(self, layer: int) -> bool:
        """Whether a layer passes a state on instead of attending."""
        return self.mixer(layer) in ("linear_attention", "mamba", "mamba1", "conv")

    def rotates(self, layer: int) -> bool:
        """Whether queries and keys of this layer are rotated."""
        return self.full_layers_rotate or self.mixer(layer) != "full_attention"

    def is_moe(self, layer: int) -> bool:
        """Whether the feed-forward of this layer is a mixture of experts (MTP layers follow the last one)."""
        dense = layer < self.first_k_dense_replace or layer in self.mlp_only_layers
        return self.n_routed_experts is not None and not dense

    @property
    def experts(self) -> int:
        """Routed experts of a mixture layer."""
        if self.n_routed_experts is None:
            raise ValueError("this model is dense: n_routed_experts is None")
        return self.n_routed_experts


def _problems(c: RefConfig) -> list[str]:
    """What is wrong with a config, each with what would be right."""
    out = [
        f"{name} is {getattr(c, name)}, must be at least 1"
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        if getattr(c, name) < 1
    ]
    out += _layer_problems(c)
    if c.is_mla:
        out += [
            f"{name} is {getattr(c, name)}, MLA needs at least 1"
            for name in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
            if getattr(c, name) < 1
        ]
        out += [
            f"{name} is for grouped-query attention only" for name in ("attention_bias", "qk_norm") if getattr(c, name)
        ]
    elif c.num_attention_heads % c.num_key_value_heads:
        out.append(
            f"num_attention_heads {c.num_attention_heads} must be a multiple of "
            f"num_key_value_heads {c.num_key_value_heads}"
        )
    if c.rope_dim % 2:
        out.append(f"rotated width {c.rope_dim} must be even: rope turns pairs")
    if c.n_routed_experts is not None:
        out += _moe_problems(c, c.n_routed_experts)
    return out


MIXERS = {
    "full_attention": "",
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "linear_attention": "linear_num_value_heads",
    CSA: "index_topk",
    HCA: "compress_rate_hca",
    BLOCKS: "index_block_size",
    "mamba": "mamba_num_heads",
    "mamba1": "mamba_inner_size",
    "conv": "short_conv_size",
    "hybrid": "mamba_num_heads",
    "none": "",
}
"""Names of mixers, each with the size that it needs."""


def _layer_problems(c: RefConfig) -> list[str]:
    out = []
    if c.layer_types and len(c.layer_types) != c.num_hidden_layers:
        out.append(f"layer_types lists {len(c.layer_types)} layers, num_hidden_layers is {c.num_hidden_layers}")
    out += [f"layer_types: {kind!r} is not implemented" for kind in sorted(set(c.layer_types) - set(MIXERS))]
    needed = {MIXERS.get(kind, "") for kind in c.layer_types} - {""}
    out += [f"{name} is {getattr(c, name)}, must be at least 1" for name in sorted(needed) if getattr(c, name) < 1]
    lacking = [layer for layer in c.mixer_only_layers if not c.has("attn", layer)]
    out += [f"layer {layer} has no part at all" for layer in lacking]
    if (c.mixer_only_layers or "none" in c.layer_types) and (c.norm_placement != "pre" or c.parallel_block):
        out.append("layers of one part have a norm before it, and no other")
    if c.parallel_block and c.norm_placement != "pre":
        out.append("the branches of a parallel block have their norms before them")
    return out


def _moe_problems(c: RefConfig, experts: int) -> list[str]:
    out = []
    if c.moe_intermediate_size < 1:
        out.append(f"moe_intermediate_size is {c.moe_intermediate_size}, must be at least 1")
    if experts % c.n_group:
        return [*out, f"n_routed_experts {experts} must be a multiple of n_group {c.n_group}"]
    if not 1 <= c.topk_group <= c.n_group:
        out.append(f"topk_group {c.topk_group} must lie in 1..n_group = 1..{c.n_group}")
    allowed = experts // c.n_group * c.topk_group
    if not 1 <= c.num_experts_per_tok <= allowed:
        out.append(
            f"num_experts_per_tok {c.num_experts_per_tok} must lie in 1..{allowed}, the experts of "
            f"{c.topk_group} of {c.n_group} groups"
        )
    if c.scoring_func not in ("sigmoid", "softmax"):
        out.append(f"scoring_func {c.scoring_func!r} must be 'sigmoid' or 'softmax'")
    if c.topk_method not in ("noaux_tc", "group_limited_greedy", "greedy"):
        out.append(f"topk_method {c.topk_method!r} must be 'noaux_tc', 'group_limited_greedy' or 'greedy'")
    return out
