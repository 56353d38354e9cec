"""A model, spelled as in Hugging Face's config.json, and what follows from its shape: parameters and FLOP.

`simulator.inputs.hf_config` reads config.json files of many architectures into this one form.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

from simulator.spec.mixer import BlockKind, Mixer
from simulator.spec.model_shape import CachedModel

__all__ = ["BlockKind", "Mixer", "ModelSpec", "Parameters"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Parameter counts by component, of a layer or of a whole model.

    Parameters
    ----------
    embedding : token embedding, and learned positions.
    attention : attention with its inner norms and biases.
    norms : norms of hidden width.
    router : gates, with the correction bias of the auxiliary-loss-free gate.
    latent : projections to the width in which routed experts work, and back.
    routed_expert : all routed experts.
    shared_expert : all shared experts.
    dense_ffn : feed-forward blocks of dense layers.
    head : output head; 0 if tied to the embedding.
    hyper_connections : what weighs streams of the residual, or earlier layers, that before the output head included.
    per_layer : projections and norms of the values of a token that enter each layer; their table is the embedding's.
    mtp : MTP modules without embedding and head, which they share (arXiv 2412.19437, section 2.2).
    """

    embedding: int = 0
    attention: int = 0
    norms: int = 0
    router: int = 0
    latent: int = 0
    routed_expert: int = 0
    shared_expert: int = 0
    dense_ffn: int = 0
    head: int = 0
    hyper_connections: int = 0
    per_layer: int = 0
    mtp: int = 0

    def __add__(self, other: Parameters) -> Parameters:
        return Parameters(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def times(self, many: int) -> Parameters:
        """Those of so many equal parts."""
        return Parameters(**{f.name: getattr(self, f.name) * many for f in fields(self)})

    @property
    def total(self) -> int:
        """All parameters but those of the MTP modules."""
        return self.total_with_mtp - self.mtp

    @property
    def total_with_mtp(self) -> int:
        """All parameters, MTP modules included."""
        return sum(getattr(self, f.name) for f in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec(CachedModel):
    """A model by its shape (the fields, see `ModelShape`) and cache (`CachedModel`), with its parameters and FLOP."""

    def layer_parameters(self, kind: BlockKind) -> Parameters:
        """Parameters of one layer."""
        alone = kind.ffn == "none" or kind.mixer is Mixer.NONE
        norms = 1 if alone else self.norms_per_layer
        common = Parameters(
            attention=_attention(self.of_kind(kind)),
            norms=norms * self.norm_weights,
            hyper_connections=norms * self.hyper_connection_parameters,
            per_layer=self.per_layer_weights,
        )
        if kind.ffn == "none":
            return common
        if not kind.is_moe:
            return common + Parameters(dense_ffn=_ffn(self, self.of_kind(kind).intermediate_size))
        shared = _ffn(self, self.shared_width) if self.shared_width else 0
        corrected = self.topk_method == "noaux_tc" and kind.ffn != "hash"
        scaled = self.branch_norms  # a factor for each expert, and the gains of the gate's norm
        numbers = corrected + self.router_bias + scaled
        return common + Parameters(
            norms=3 * self.norm_weights if self.branch_norms else 0,
            router=self.n_routed_experts * (self.hidden_size + numbers) + (self.hidden_size if scaled else 0),
            latent=_latent(self),
            routed_expert=self.n_routed_experts * _ffn(self, self.moe_intermediate_size, self.expert_hidden),
            shared_expert=shared + (self.hidden_size if self.shared_expert_gate else 0),
        )

    @property
    def hyper_connection_parameters(self) -> int:
        """Parameters of the hyper-connections around one branch: a projection of all streams, its bias, 3 scales; or of
        attention over earlier layers: a norm and a vector."""
        if self.attn_res_block_size:
            return 2 * self.hidden_size
        return self.hc_weights * (self.stream_width + 1) + 3 if self.hc_weights else 0

    @property
    def collapse_parameters(self) -> int:
        """Parameters of what makes one stream of all before an output head."""
        if self.attn_res_block_size:
            return 2 * self.hidden_size
        return self.hc_mult * (self.stream_width + 1) + 1 if self.hc_weights else 0

    def mtp_parameters(self) -> Parameters:
        """Parameters of one multi-token-prediction module by component, embedding and head excluded (shared).

        Its projection of the two concatenated states counts as `dense_ffn`, its three norms as `norms`.
        """
        extra = Parameters(
            dense_ffn=2 * self.hidden_size * self.hidden_size,
            norms=3 * self.norm_weights,
            hyper_connections=self.collapse_parameters,
        )
        return self.layer_parameters(self.layer_kind(self.num_hidden_layers)) + extra

    def parameter_tree(self) -> Parameters:
        """Parameters of the whole model by component."""
        embed = self.vocab_size * self.hidden_size
        mtp = self.num_nextn_predict_layers * self.mtp_parameters().total if self.num_nextn_predict_layers else 0
        tree = Parameters(
            embedding=embed + self.learned_positions + self.per_layer_table,
            norms=self.norm_weights,
            head=(0 if self.tie_word_embeddings else embed) + (self.vocab_size if self.head_bias else 0),
            hyper_connections=self.collapse_parameters,
            per_layer=self.per_layer_projection,
            mtp=mtp,
        )
        for kind, many in Counter(self.layer_kinds()).items():
            tree += self.layer_parameters(kind).times(many)
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
        layers = tree.attention + tree.norms + tree.router + tree.latent + tree.shared_expert + tree.dense_ffn
        layers += tree.hyper_connections + tree.per_layer
        return layers + routed + head + looked_up

    def flops_per_token(self, seq: int, causal: bool = True, mtp: bool = False) -> float:
        """Training FLOP per token of sequences of `seq` tokens: forward and twice that backward [FLOP].

        GEMMs and attention only, 2 FLOP per multiply-add, without recomputation. `causal` counts one half of the
        square of scores, else all of it. `mtp` adds the multi-token-prediction modules, each with its own pass
        through the head.
        """
        kinds = Counter(self.layer_kinds())
        macs = sum(many * self.layer_macs_per_token(kind, seq, causal) for kind, many in kinds.items())
        macs += self.vocab_size * self.hidden_size + self.collapse_macs + self.hidden_size * self.per_layer_width
        if mtp:
            macs += self.num_nextn_predict_layers * self.mtp_macs_per_token(seq, causal)
        return 3 * 2.0 * macs

    def layer_macs_per_token(self, kind: BlockKind, seq: int, causal: bool = True) -> float:
        """Forward multiply-adds of one token in one layer."""
        return self.layer_matrix_macs(kind) + self.of_kind(kind)._core_macs_per_token(seq, causal)

    def layer_matrix_macs(self, kind: BlockKind) -> float:
        """Those of them with weights."""
        layer = self.of_kind(kind)
        branches = 1 if kind.ffn == "none" or kind.mixer is Mixer.NONE else 2
        macs = branches * self.hc_weights * self.stream_width
        macs += sum(k * n for k, n in layer.attention_matrices().values())
        macs += 2 * self.hidden_size * self.hidden_size_per_layer_input
        if kind.ffn == "none":
            return macs
        if not kind.is_moe:
            return macs + self.ffn_matrices * self.hidden_size * layer.intermediate_size
        routed = self.num_experts_per_tok * self.moe_intermediate_size * self.expert_hidden
        gates = self.n_routed_experts + (1 if self.shared_expert_gate else 0)
        macs += self.ffn_matrices * (routed + self.shared_width * self.hidden_size)
        return macs + self.hidden_size * (gates + 2 * self.moe_latent_size)

    def _core_macs_per_token(self, seq: int, causal: bool) -> float:
        """Forward multiply-adds of one token with the scores and values of `seq` tokens, mean over the sequence; of a
        model whose layers are all alike (`of_kind`). Of a recurrent layer the state is read and written once each, as
        if token by token: what chunks add is not the model's."""
        mixer = self.mixer_of(0)
        state = self.state_macs() if seq and mixer.has_state else 0.0
        if not mixer.attends:
            return state
        macs = self.num_attention_heads * (self.qk_head_dim + self.v_dim) * self.keys_per_query(0, seq, causal)
        return state + macs + self.index_macs(self.scored_keys(0, seq, causal))

    def state_macs(self) -> float:
        """Forward multiply-adds of one token with the state of a layer; of a model whose layers are all alike. Those of
        Mamba-1 are no GEMM: they do not count."""
        if self.mixer_of(0) is Mixer.MAMBA1:
            return 0.0
        return (3.0 if self.state.is_delta else 2.0) * self.state.state_values

    @property
    def collapse_macs(self) -> float:
        """Multiply-adds of one token where one stream is made of all before an output head."""
        return float(self.hc_mult * self.stream_width if self.hc_weights else 0)

    def mtp_macs_per_token(self, seq: int, causal: bool = True) -> float:
        """Forward multiply-adds of one token in one MTP module: projection, layer and head."""
        layer = self.layer_macs_per_token(self.layer_kind(self.num_hidden_layers), seq, causal)
        entry = (1 + self.hc_mult) * self.hidden_size**2  # each stream, and the embedding
        return layer + entry + self.vocab_size * self.hidden_size + self.collapse_macs


def _compressor(m: ModelSpec) -> tuple[int, ...]:
    """Parameters of what compresses beyond matrices: a norm, and a bias for each place in an entry (of `csa` each for
    two entries, and once more for the indexer)."""
    mixer, d, index = m.mixer_of(0), m.qk_head_dim, m.index_head_dim
    if mixer is Mixer.HCA:
        return (d, m.compress_rate * d)
    return (d, m.compress_rate * 2 * d, index, m.compress_rate * 2 * index) if mixer is Mixer.CSA else ()


def _ffn(m: ModelSpec, width: int, hidden: int = 0) -> int:
    """Parameters of one feed-forward block of `width` between tokens of `hidden` values (0: hidden_size)."""
    hidden = hidden or m.hidden_size
    bias = (m.ffn_matrices - 1) * width + hidden if m.mlp_bias else 0
    return m.ffn_matrices * hidden * width + bias


def _latent(m: ModelSpec) -> int:
    """Parameters of the projections to the experts' width and back."""
    bias = m.moe_latent_size + m.hidden_size if m.mlp_bias else 0
    norm = m.moe_latent_size if m.moe_latent_norm else 0
    return 2 * m.hidden_size * m.moe_latent_size + bias + norm if m.moe_latent_size else 0


def _attention(m: ModelSpec) -> int:
    """Parameters of one attention block with its inner norms and biases.

    In MLA the bias sits on the two compressions (q_a, kv_a), where it has them, and the output.
    """
    if not m.mixer_of(0).attends:
        own = m.state.own_weights if m.mixer_of(0).is_recurrent else 0
        return sum(k * n for k, n in m.attention_matrices().values()) + own
    shapes = m.attention_matrices()
    count = sum(k * n for k, n in shapes.values())
    count += m.num_attention_heads if m.attention_sinks == "all" else 0
    count += m.state.own_weights if m.mixer_of(0).has_state else 0
    if m.shared_key_value:
        return count + (m.q_lora_rank or 0) + m.qk_head_dim + sum(_compressor(m))
    if m.kv_lora_rank is not None:
        count += m.kv_lora_rank + (m.q_lora_rank or 0)
        count += 2 * m.index_head_dim if m.mixer_of(0) is Mixer.SPARSE else 0  # LayerNorm of the indexer's key
    else:
        count += sum(m.qk_norm_widths())
        count += 2 * m.index_head_dim if m.mixer_of(0) is Mixer.BLOCKS else 0  # norms of the indexer's heads and key
    biased = ("q_a", "kv_a") if m.is_mla else ("q", "k", "v")
    if m.attention_bias:
        count += sum(shapes[name][1] for name in biased if name in shapes)
    return count + (m.hidden_size if m.attention_out_bias else 0)
