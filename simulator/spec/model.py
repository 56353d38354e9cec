"""The shape of a model, spelled as in Hugging Face's config.json, and what follows from it: parameters and FLOP.

Only shapes live here; `simulator.inputs.hf_config` reads config.json files of many architectures into this one form.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Literal

LayerKind = Literal["dense", "moe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameter counts by component, of a layer or of a whole model.

    `norms` are the hidden-wide norms; norms and biases inside attention count as `attention`. `router` includes the
    correction bias of the auxiliary-loss-free gate. `routed_expert` is all routed experts together. `mtp` is the
    multi-token-prediction modules without the embedding and head, which they share with the main model
    (arXiv 2412.19437, section 2.2).
    """

    embedding: int = 0
    attention: int = 0
    norms: int = 0
    router: int = 0
    routed_expert: int = 0
    shared_expert: int = 0
    dense_ffn: int = 0
    head: int = 0
    mtp: int = 0

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    @property
    def total(self) -> int:
        """All parameters but those of the MTP modules."""
        return self.total_with_mtp - self.mtp

    @property
    def total_with_mtp(self) -> int:
        """All parameters, MTP modules included."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer. Sizes are elements, not bytes.

    Names are those of config.json; where architectures differ, DeepSeek-V3's: `n_routed_experts` (0: dense) is also
    Mixtral's `num_local_experts` and Qwen's `num_experts`. `kv_lora_rank is None` means grouped-query attention, else
    multi-head latent attention. `shared_expert_intermediate_size` is the width of all shared experts together where a
    config gives that instead of `n_shared_experts`. `mlp_only_layers` are dense although their index says MoE.

    `norm_bias`: a LayerNorm has a bias beside its gain (an RMSNorm never has one). `norm_placement`: norms stand before
    the branches (`pre`), behind them (`post`: OLMo 2, arXiv 2501.00656, section 2.1) or both. `parallel_block`: both
    branches read the layer's input and their outputs are summed (GPT-J, GPT-NeoX, arXiv 2204.06745, section 2.1);
    with `shared_norm` they read one norm of it. `qk_norm_over`: a norm of queries and one of keys for each head
    (Qwen3), or over the whole projection (OLMo 2). `partial_rotary_factor` is the part of a head that rotates,
    `nope_layers` the number of layers that rotate nothing. `head_bias`: the output head has a bias.
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    head_dim: int | None = None
    max_position_embeddings: int = 0
    # multi-head latent attention (arXiv 2405.04434, section 2.1)
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    # mixture of experts (arXiv 2412.19437, section 2.1.2)
    n_routed_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    n_shared_experts: int = 0
    shared_expert_intermediate_size: int = 0
    shared_expert_gate: bool = False
    first_k_dense_replace: int = 0
    moe_layer_freq: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    n_group: int = 1
    topk_group: int = 1
    topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"] = "greedy"
    scoring_func: Literal["sigmoid", "softmax"] = "softmax"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    # multi-token prediction (arXiv 2412.19437, section 2.2)
    num_nextn_predict_layers: int = 0
    # what the blocks are made of
    hidden_act: Literal["silu", "gelu", "relu", "relu2"] = "silu"  # kernels of one cost: they stream the same bytes
    gated_mlp: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_placement: Literal["pre", "post", "both"] = "pre"
    parallel_block: bool = False
    shared_norm: bool = False
    positions: Literal["rope", "learned"] = "rope"
    partial_rotary_factor: float = 1.0
    nope_layers: int = 0
    attention_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    qk_norm_over: Literal["head", "projection"] = "head"
    head_bias: bool = False
    sliding_window: int | None = None
    tie_word_embeddings: bool = False

    @property
    def is_mla(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank is not None

    @property
    def is_moe(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return "moe" in self.layer_kinds()

    @property
    def is_node_limited(self) -> bool:
        """Whether the gate restricts a token to `topk_group` of the `n_group` expert groups."""
        return self.n_routed_experts > 0 and 0 < self.topk_group < self.n_group

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim if self.is_mla else self.v_dim

    @property
    def v_dim(self) -> int:
        """Width of one value head."""
        return self.v_head_dim if self.is_mla else self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def shared_width(self) -> int:
        """Width of all shared experts together."""
        return self.shared_expert_intermediate_size or self.n_shared_experts * self.moe_intermediate_size

    @property
    def ffn_matrices(self) -> int:
        """Matrices of one feed-forward block: 3 gated (gate, up, down), 2 plain."""
        return 3 if self.gated_mlp else 2

    @property
    def norms_per_layer(self) -> int:
        """Hidden-wide norms of one layer."""
        if self.norm_placement == "both":
            return 4
        return 1 if self.parallel_block and self.shared_norm else 2

    @property
    def norm_weights(self) -> int:
        """Parameters of one hidden-wide norm: a gain, and a bias where a LayerNorm has one."""
        return self.hidden_size * (2 if self.norm == "layer" and self.norm_bias else 1)

    @property
    def learned_positions(self) -> int:
        """Parameters of a learned embedding of positions; 0 with rotary embedding."""
        return self.max_position_embeddings * self.hidden_size if self.positions == "learned" else 0

    @property
    def rotated_share(self) -> float:
        """Part of the values of queries and keys that is rotated, mean over the layers."""
        return self.partial_rotary_factor * (1 - self.nope_layers / self.num_hidden_layers)

    def qk_norm_widths(self) -> tuple[int, int]:
        """Values under one norm of the queries and one of the keys; (0, 0) without such norms."""
        if not self.qk_norm:
            return 0, 0
        if self.qk_norm_over == "head":
            return self.v_dim, self.v_dim
        return self.num_attention_heads * self.v_dim, self.num_key_value_heads * self.v_dim

    def layer_kind(self, layer: int) -> LayerKind:
        """Kind of the feed-forward block of `layer`, counted from 0; MTP modules follow the last layer."""
        if not self.n_routed_experts or layer < self.first_k_dense_replace or layer in self.mlp_only_layers:
            return "dense"
        return "moe" if layer % self.moe_layer_freq == 0 else "dense"

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """Kind of each layer of the main model, in order."""
        return tuple(self.layer_kind(layer) for layer in range(self.num_hidden_layers))

    def attention_matrices(self) -> dict[str, tuple[int, int]]:
        """Projections of one attention block: name -> (inputs, outputs)."""
        h, heads = self.hidden_size, self.num_attention_heads
        out = {"o": (heads * self.v_dim, h)}
        if self.kv_lora_rank is None:
            kv = self.num_key_value_heads
            return {"q": (h, heads * self.v_dim), "k": (h, kv * self.v_dim), "v": (h, kv * self.v_dim)} | out
        latent = {
            "kv_a": (h, self.kv_lora_rank + self.qk_rope_head_dim),
            "kv_b": (self.kv_lora_rank, heads * (self.qk_nope_head_dim + self.v_head_dim)),
        }
        if self.q_lora_rank is None:
            return {"q": (h, heads * self.qk_head_dim)} | latent | out
        query = {"q_a": (h, self.q_lora_rank), "q_b": (self.q_lora_rank, heads * self.qk_head_dim)}
        return query | latent | out

    def layer_parameters(self, kind: LayerKind) -> Parameters:
        """Parameters of one layer."""
        common = Parameters(attention=_attention(self), norms=self.norms_per_layer * self.norm_weights)
        if kind == "dense":
            return common + Parameters(dense_ffn=_ffn(self, self.intermediate_size))
        shared = _ffn(self, self.shared_width) if self.shared_width else 0
        return common + Parameters(
            router=self.hidden_size * self.n_routed_experts
            + (self.n_routed_experts if self.topk_method == "noaux_tc" else 0),
            routed_expert=self.n_routed_experts * _ffn(self, self.moe_intermediate_size),
            shared_expert=shared + (self.hidden_size if self.shared_expert_gate else 0),
        )

    def mtp_parameters(self) -> Parameters:
        """Parameters of one multi-token-prediction module by component, embedding and head excluded (shared).

        Its projection of the two concatenated states counts as `dense_ffn`, its three norms as `norms`.
        """
        extra = Parameters(dense_ffn=2 * self.hidden_size * self.hidden_size, norms=3 * self.norm_weights)
        return self.layer_parameters(self.layer_kind(self.num_hidden_layers)) + extra

    def parameter_tree(self) -> Parameters:
        """Parameters of the whole model by component."""
        embed = self.vocab_size * self.hidden_size
        mtp = self.num_nextn_predict_layers * self.mtp_parameters().total if self.num_nextn_predict_layers else 0
        tree = Parameters(
            embedding=embed + self.learned_positions,
            norms=self.norm_weights,
            head=(0 if self.tie_word_embeddings else embed) + (self.vocab_size if self.head_bias else 0),
            mtp=mtp,
        )
        for kind in self.layer_kinds():
            tree += self.layer_parameters(kind)
        return tree

    def parameters(self) -> int:
        """All parameters without the MTP modules."""
        return self.parameter_tree().total

    def activated_parameters(self, *, embedding: bool = False) -> int:
        """Parameters that one token meets in the main model, without the MTP modules.

        The head counts (also where it shares the embedding's matrix): it multiplies; looking up a row does not. So
        counted DeepSeek-V3 activates 36.6e9, published as 37B. Some publishers count the input embedding, too: with
        `embedding` it counts, but not twice where the head shares it.
        """
        tree = self.parameter_tree()
        routed = tree.routed_expert * self.num_experts_per_tok // self.n_routed_experts if self.n_routed_experts else 0
        head = self.vocab_size * self.hidden_size + (self.vocab_size if self.head_bias else 0)
        looked_up = tree.embedding if embedding else 0
        if embedding and self.tie_word_embeddings:
            looked_up -= self.vocab_size * self.hidden_size
        layers = tree.attention + tree.norms + tree.router + tree.shared_expert + tree.dense_ffn
        return layers + routed + head + looked_up

    def flops_per_token(self, seq: int, causal: bool = True, mtp: bool = False) -> float:
        """Training FLOP per token of sequences of `seq` tokens: forward and twice that backward [FLOP].

        Matrix products only, 2 FLOP a multiply-add; recomputation does not count. `causal` counts one half of the
        square of scores, else all of it. `mtp` adds the multi-token-prediction modules, each with its own pass
        through the head.
        """
        kinds = Counter(self.layer_kinds())
        macs = sum(many * self.layer_macs_per_token(kind, seq, causal) for kind, many in kinds.items())
        macs += self.vocab_size * self.hidden_size
        if mtp:
            macs += self.num_nextn_predict_layers * self.mtp_macs_per_token(seq, causal)
        return 3 * 2.0 * macs

    def layer_macs_per_token(self, kind: LayerKind, seq: int, causal: bool = True) -> float:
        """Forward multiply-adds of one token in one layer."""
        macs = sum(k * n for k, n in self.attention_matrices().values()) + self.attention_macs_per_token(seq, causal)
        if kind == "dense":
            return macs + self.ffn_matrices * self.hidden_size * self.intermediate_size
        width = self.num_experts_per_tok * self.moe_intermediate_size + self.shared_width
        gates = self.n_routed_experts + (1 if self.shared_expert_gate else 0)
        return macs + self.hidden_size * (self.ffn_matrices * width + gates)

    def attention_macs_per_token(self, seq: int, causal: bool = True) -> float:
        """Forward multiply-adds of one token with the scores and values of `seq` tokens, mean over the sequence."""
        pairs = seq * (0.5 if causal else 1.0)
        return self.num_attention_heads * (self.qk_head_dim + self.v_dim) * pairs

    def mtp_macs_per_token(self, seq: int, causal: bool = True) -> float:
        """Forward multiply-adds of one token in one MTP module: projection, layer and head."""
        layer = self.layer_macs_per_token(self.layer_kind(self.num_hidden_layers), seq, causal)
        return layer + 2 * self.hidden_size**2 + self.vocab_size * self.hidden_size

    def kv_cache_bytes_per_token(self, width: float = 2.0) -> float:
        """Cache that one token leaves in all layers, `width` bytes a value (2: BF16) [B].

        MLA keeps the compressed latent and the shared rotary key (arXiv 2405.04434, section 2.1.4).
        """
        if self.kv_lora_rank is not None:
            return self.num_hidden_layers * (self.kv_lora_rank + self.qk_rope_head_dim) * width
        return self.num_hidden_layers * 2 * self.num_key_value_heads * self.v_dim * width


def _ffn(m: ModelSpec, width: int) -> int:
    """Parameters of one feed-forward block of `width`."""
    bias = (m.ffn_matrices - 1) * width + m.hidden_size if m.mlp_bias else 0
    return m.ffn_matrices * m.hidden_size * width + bias


def _attention(m: ModelSpec) -> int:
    """Parameters of one attention block with its inner norms and biases.

    In MLA the bias sits on the two compressions (q_a, kv_a), where it has them, and the output.
    """
    shapes = m.attention_matrices()
    count = sum(k * n for k, n in shapes.values())
    if m.kv_lora_rank is not None:
        count += m.kv_lora_rank + (m.q_lora_rank or 0)
    else:
        count += sum(m.qk_norm_widths())
    biased = ("q_a", "kv_a") if m.is_mla else ("q", "k", "v")
    if m.attention_bias:
        count += sum(shapes[name][1] for name in biased if name in shapes)
    return count + (m.hidden_size if m.attention_out_bias else 0)
