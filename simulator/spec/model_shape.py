"""The shape of a model: its sizes, what its blocks are made of, which projections they have, and what the tokens see of
each other and leave in a cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil
from typing import Any, Literal, Self

from simulator.ops import Gate, seen_keys
from simulator.spec.mixer import BlockKind, FfnPart, Mixer, MixerShape, SelectiveState


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape(MixerShape):
    """A decoder-only transformer. Sizes are elements, not bytes.

    Names are those of config.json; where architectures differ, DeepSeek-V3's: `n_routed_experts` (0: dense) is also
    Mixtral's `num_local_experts` and Qwen's `num_experts`. `kv_lora_rank is None` means grouped-query attention, else
    multi-head latent attention. `shared_expert_intermediate_size` is the width of all shared experts together where a
    config gives that instead of `n_shared_experts`. `mlp_only_layers` are dense although their index says MoE.

    `norm_bias`: a LayerNorm has a bias and a gain (an RMSNorm never has a bias). `norm_placement`: norms stand before
    the branches (`pre`), behind them (`post`: OLMo 2, arXiv 2501.00656, section 2.1) or both. `parallel_block`: both
    branches read the layer's input and their outputs are summed (GPT-J, GPT-NeoX, arXiv 2204.06745, section 2.1);
    with `shared_norm` they read one norm of it. `qk_norm_over`: a norm of queries and one of keys for each head
    (Qwen3), or over the whole projection (OLMo 2). `partial_rotary_factor` is the part of a head that rotates,
    `nope_layers` the number of layers that rotate nothing. `head_bias`: the output head has a bias.
    """

    name: str  # the model's name
    model_type: str  # architecture, as in config.json
    vocab_size: int  # [tokens]
    hidden_size: int  # width of the residual stream [elements]
    num_hidden_layers: int  # layers, without MTP modules
    num_attention_heads: int  # query heads
    num_key_value_heads: int  # heads of keys and values
    intermediate_size: int  # width of a dense feed-forward block [elements]
    head_dim: int | None = None  # width of a head [elements]; None: hidden_size / heads
    max_position_embeddings: int = 0  # rows of the learned positions [tokens]
    # multi-head latent attention (arXiv 2405.04434, section 2.1)
    q_lora_rank: int | None = None  # width of compressed queries [elements]; None: not compressed
    kv_lora_rank: int | None = None  # width of the latent [elements]; None: grouped-query attention
    qk_nope_head_dim: int = 0  # part of a query or key head without rotation [elements]
    qk_rope_head_dim: int = 0  # part with rotation [elements]
    v_head_dim: int = 0  # width of a value head [elements]; grouped queries: 0: that of a key head
    # mixture of experts (arXiv 2412.19437, section 2.1.2)
    n_routed_experts: int = 0  # routed experts of a layer; 0: dense
    num_experts_per_tok: int = 0  # experts that the gate chooses for a token
    moe_intermediate_size: int = 0  # width of an expert [elements]
    moe_latent_norm: bool = False  # a norm of what the experts made, in that width
    moe_latent_size: int = 0  # width that tokens are projected to before their experts [elements]; 0: hidden_size
    n_shared_experts: int = 0  # experts that all tokens pass
    shared_expert_intermediate_size: int = 0  # width of all shared experts [elements], if given instead
    shared_expert_gate: bool = False  # a gate scales the shared experts' output
    first_k_dense_replace: int = 0  # leading dense layers
    moe_layer_freq: int = 1  # every so many layers is MoE
    mlp_only_layers: tuple[int, ...] = ()  # layers that are dense although their index says MoE
    n_group: int = 1  # groups of experts
    topk_group: int = 1  # groups that a token may choose from
    topk_method: Literal["noaux_tc", "group_limited_greedy", "greedy"] = "greedy"
    # multi-token prediction (arXiv 2412.19437, section 2.2)
    num_nextn_predict_layers: int = 0  # MTP modules
    # what the blocks are made of
    hidden_act: Literal["silu", "gelu", "relu", "relu2"] = "silu"  # kernels of one cost: they stream the same bytes
    gated_mlp: bool = True  # gate, up and down; otherwise up and down
    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = True
    norm_placement: Literal["pre", "post", "both"] = "pre"
    parallel_block: bool = False
    shared_norm: bool = False
    positions: Literal["rope", "learned"] = "rope"
    partial_rotary_factor: float = 1.0
    nope_layers: int = 0
    attention_bias: bool = False  # biases of query, key, value projections
    attention_out_bias: bool = False  # bias of the output projection
    mlp_bias: bool = False  # biases of the feed-forward block
    router_bias: bool = False  # a bias of the gate's logits
    swiglu_limit: float = 0.0  # bound of the inputs of the experts' activation; 0: none
    qk_norm: bool = False  # norms of query and key heads
    qk_norm_over: Literal["head", "projection"] = "head"
    head_bias: bool = False
    tie_word_embeddings: bool = False  # the head uses the embedding's matrix

    @property
    def is_mla(self) -> bool:
        """Whether attention is multi-head latent attention."""
        return self.kv_lora_rank is not None

    @property
    def is_moe(self) -> bool:
        """Whether any layer is a mixture of experts."""
        return any(kind.is_moe for kind in self.layer_kinds())

    @property
    def is_node_limited(self) -> bool:
        """Whether the gate restricts a token to `topk_group` of the `n_group` expert groups."""
        return self.n_routed_experts > 0 and 0 < self.topk_group < self.n_group

    @property
    def gate(self) -> Gate:
        """The gate of the MoE layers; DeepSeek-V2's (`group_limited_greedy`) scores a group by its best expert."""
        return Gate(
            experts=self.n_routed_experts,
            top_k=self.num_experts_per_tok,
            groups=self.n_group,
            node_limit=self.topk_group if self.is_node_limited else 0,
            scored=1 if self.topk_method == "group_limited_greedy" else 2,
        )

    @property
    def qk_head_dim(self) -> int:
        """Width of one query or key head."""
        if self.is_mla:
            return self.qk_nope_head_dim + self.qk_rope_head_dim
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def v_dim(self) -> int:
        """Width of one value head."""
        return self.v_head_dim or self.qk_head_dim

    @property
    def gate_width(self) -> int:
        """Values of the gate of an attention block's output; 0 without one."""
        if self.attention_gate == "none":
            return 0
        return self.num_attention_heads * (1 if self.attention_gate == "head" else self.v_dim)

    @property
    def shared_width(self) -> int:
        """Width of all shared experts together."""
        return self.shared_expert_intermediate_size or self.n_shared_experts * self.moe_intermediate_size

    @property
    def ffn_matrices(self) -> int:
        """Matrices of one feed-forward block: 3 gated (gate, up, down), 2 plain."""
        return 3 if self.gated_mlp else 2

    @property
    def rotated_share(self) -> float:
        """Part of the values of queries and keys that is rotated, mean over the layers."""
        return self.partial_rotary_factor * (1 - self.nope_layers / self.num_hidden_layers)

    def qk_norm_widths(self) -> tuple[int, int]:
        """Values under one norm of the queries and one of the keys; 0 without such norms."""
        if not self.qk_norm:
            return 0, 0
        if self.qk_norm_over == "head":
            return self.qk_head_dim, 0 if self.mixer_of(0).reuses else self.qk_head_dim
        return self.num_attention_heads * self.qk_head_dim, self.num_key_value_heads * self.qk_head_dim

    def mixer_of(self, layer: int) -> Mixer:
        """What mixes the tokens of `layer`; the MTP modules' layers are as most models have them: like all others, or
        with full attention where layers differ (DeepSeek-V4: with a window)."""
        if not self.layer_types:
            return Mixer.SLIDING if self.sliding_window is not None else Mixer.FULL
        if layer < len(self.layer_types):
            return self.layer_types[layer]
        if self.shared_key_value:
            return Mixer.SLIDING
        return self.layer_types[0] if len(set(self.layer_types)) == 1 else Mixer.FULL

    def layer_kind(self, layer: int) -> BlockKind:
        """Kind of `layer`, counted from 0; MTP modules follow the last layer."""
        dense = not self.n_routed_experts or layer < self.first_k_dense_replace or layer in self.mlp_only_layers
        if layer in self.mixer_only_layers:
            return BlockKind.layer(self.mixer_of(layer), "none")
        experts: FfnPart = "hash" if layer < self.num_hash_layers else "moe"
        return BlockKind.layer(self.mixer_of(layer), "dense" if dense or layer % self.moe_layer_freq else experts)

    def layer_kinds(self) -> tuple[BlockKind, ...]:
        """Kind of each layer of the main model, in order."""
        return _layer_kinds(self)

    def of_kind(self, kind: BlockKind) -> Self:
        """The model as its layers of this kind have it: all with the same mixer, and that mixer's sizes."""
        mixer = kind.mixer
        count = self.num_hidden_layers
        plain = not (self.layer_types or self.mixer_only_layers or self.num_hash_layers)
        if plain and self.sliding_window is None and mixer is Mixer.FULL:
            return self
        alone = tuple(range(count)) if kind.ffn == "none" else ()
        double = self.use_double_wide_mlp and mixer.reuses
        same = replace(
            self,
            layer_types=(mixer,) * count,
            full_rotary_factor=None,
            mixer_only_layers=alone,
            num_hash_layers=count if kind.ffn == "hash" else 0,
            use_double_wide_mlp=False,
            intermediate_size=self.intermediate_size * (2 if double else 1),
        )
        if mixer.owner is Mixer.FULL:
            return replace(same, sliding_window=None, attention_chunk_size=0, **_of_full(self))
        if mixer.compresses:
            return same
        if mixer.owner is not Mixer.SLIDING:
            chunk = self.attention_chunk_size if mixer is Mixer.CHUNKED else 0
            return replace(same, sliding_window=None, attention_chunk_size=chunk)
        return replace(same, attention_chunk_size=0, **_of_sliding(self))

    def attention_matrices(self) -> dict[str, tuple[int, int]]:
        """Projections of one attention block: name -> (inputs, outputs)."""
        mixer = self.layer_types[0] if self.layer_types else Mixer.FULL
        if mixer.is_recurrent:
            return _of_state(self)
        if mixer is Mixer.HYBRID:
            return _projections(self) | {f"state_{name}": shape for name, shape in _of_state(self).items()}
        return {} if self.layer_types and self.layer_types[0] is Mixer.NONE else _projections(self)


@lru_cache(maxsize=256)
def _layer_kinds(model: ModelShape) -> tuple[BlockKind, ...]:
    """Kinds of all layers; of the last few models, for a search asks thousands of times."""
    return tuple(model.layer_kind(layer) for layer in range(model.num_hidden_layers))


def _of_state(m: ModelShape) -> dict[str, tuple[int, int]]:
    """Projections of a recurrent layer."""
    h, r = m.hidden_size, m.state
    if isinstance(r, SelectiveState):
        select = {"select": (r.inner, r.selected), "step": (r.steps, r.inner)}
        return {"in": (h, r.projected), "out": (r.inner, h)} | select
    through = {"decay": (r.rank, r.decays)} if r.rank else {}
    through |= {"gate": (r.rank, r.inner)} if r.rank and not r.full_gate else {}
    return {"in": (h, r.projected), "out": (r.inner, h)} | through


def _of_full(m: ModelShape) -> dict[str, Any]:
    """Fields of the layers with full attention that other layers do not share."""
    sinks = m.attention_sinks if m.attention_sinks == "all" else "none"
    if m.full_rotary_factor is None:
        return {"attention_sinks": sinks}
    return {"attention_sinks": sinks, "partial_rotary_factor": m.full_rotary_factor, "nope_layers": 0}


def _of_sliding(m: ModelShape) -> dict[str, Any]:
    """Fields of the layers with a window that other layers do not share."""
    return {
        "num_attention_heads": m.sliding_num_attention_heads or m.num_attention_heads,
        "num_key_value_heads": m.sliding_num_key_value_heads or m.num_key_value_heads,
        "head_dim": m.sliding_head_dim or m.head_dim,
        "v_head_dim": m.sliding_v_head_dim or (0 if m.sliding_head_dim else m.v_head_dim),
        "attention_sinks": "none" if m.attention_sinks == "none" else "all",
        "attention_k_eq_v": False,
    }


REPLICATED = ("q_a", "kv", "compress", "index_compress", "index_q", "index_w")
"""Matrices of DeepSeek-V4's attention that every tensor-parallel rank holds: one key is all heads', and every rank
needs all entries and choices (vLLM, vllm/models/deepseek_v4/attention.py, 2026)."""


def _shared_projections(m: ModelShape) -> dict[str, tuple[int, int]]:
    """DeepSeek-V4's: queries through a latent, one key that is the value, output in groups, and what compresses."""
    h, heads, d, latent = m.hidden_size, m.num_attention_heads, m.qk_head_dim, m.q_lora_rank or 0
    found = {
        "q_a": (h, latent),
        "kv": (h, d),
        "q_b": (latent, heads * d),
        "o_a": (heads * d // m.o_groups, m.o_groups * m.o_lora_rank),
        "o_b": (m.o_groups * m.o_lora_rank, h),
    }
    if m.mixer_of(0) is Mixer.HCA:
        found["compress"] = (h, 2 * d)  # values and their weights
    if m.mixer_of(0) is Mixer.CSA:  # each for its own entry and for the next
        found["compress"] = (h, 4 * d)
        found["index_compress"] = (h, 4 * m.index_head_dim)
        found["index_q"] = (latent, m.index_n_heads * m.index_head_dim)
        found["index_w"] = (h, m.index_n_heads)
    return found


def _projections(m: ModelShape) -> dict[str, tuple[int, int]]:
    if m.shared_key_value:
        return _shared_projections(m)
    h, heads = m.hidden_size, m.num_attention_heads
    out = {"o": (heads * m.v_dim, h)}
    if m.kv_lora_rank is None:
        kv = m.num_key_value_heads
        found = {"q": (h, heads * m.qk_head_dim)} | out
        if not m.mixer_of(0).reuses:
            found |= {"k": (h, kv * m.qk_head_dim)} | ({} if m.attention_k_eq_v else {"v": (h, kv * m.v_dim)})
        if m.mixer_of(0) is Mixer.BLOCKS:
            found |= {"index_q": (h, m.index_n_heads * m.index_head_dim), "index_k": (h, m.index_head_dim)}
        return found | {"gate": (h, m.gate_width)} if m.gate_width else found
    latent = {
        "kv_a": (h, m.kv_lora_rank + m.qk_rope_head_dim),
        "kv_b": (m.kv_lora_rank, heads * (m.qk_nope_head_dim + m.v_head_dim)),
    }
    if m.layer_types and m.layer_types[0] is Mixer.SPARSE:
        latent |= {
            "index_q": (m.q_lora_rank or h, m.index_n_heads * m.index_head_dim),
            "index_k": (h, m.index_head_dim),
            "index_w": (h, m.index_n_heads),
        }
    if m.gate_width:
        latent["gate"] = (h, m.gate_width)
    if m.q_lora_rank is None:
        return {"q": (h, heads * m.qk_head_dim)} | latent | out
    query = {"q_a": (h, m.q_lora_rank), "q_b": (m.q_lora_rank, heads * m.qk_head_dim)}
    return query | latent | out


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedModel(ModelShape):
    """A model by its shape, with the keys that queries attend to and what of them is kept."""

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
    def per_layer_width(self) -> int:
        """Values of a token that enter all layers next to the residual stream."""
        return self.num_hidden_layers * self.hidden_size_per_layer_input

    @property
    def per_layer_weights(self) -> int:
        """Parameters with which those of one layer enter it: two projections and a norm."""
        wide = self.hidden_size_per_layer_input
        return (2 * wide + 1) * self.hidden_size if wide else 0

    @property
    def per_layer_table(self) -> int:
        """Parameters of the table that they come from."""
        return self.vocab_size_per_layer_input * self.per_layer_width

    @property
    def per_layer_projection(self) -> int:
        """Parameters of the projection of the embedding that is added to them, and of its norm."""
        return self.hidden_size * self.per_layer_width + self.hidden_size_per_layer_input

    @property
    def learned_positions(self) -> int:
        """Parameters of a learned embedding of positions; 0 with rotary embedding."""
        return self.max_position_embeddings * self.hidden_size if self.positions == "learned" else 0

    @property
    def expert_hidden(self) -> int:
        """Width of a token as it travels to its experts, and of what they make of it [elements]."""
        return self.moe_latent_size or self.hidden_size

    @property
    def stream_width(self) -> int:
        """Values of a token that pass from layer to layer."""
        return self.hc_mult * self.hidden_size

    @property
    def earlier_blocks(self) -> float:
        """Sums of earlier blocks of layers that a branch attends to, mean over the layers' two branches: the first
        layer of a block ends the one before at its end, so that attention there still reads it as the sum so far."""
        size, count = self.attn_res_block_size, self.num_hidden_layers
        if not size:
            return 0.0
        return sum(2 * ceil(at / size) + (at % size == 0) for at in range(count)) / (2 * count)

    @property
    def sent_width(self) -> float:
        """Values of a token that pass from stage to stage, mean over the layers: sums of earlier blocks, too."""
        return self.stream_width + self.earlier_blocks * self.hidden_size

    @property
    def replicated_weights(self) -> int:
        """Weights of an attention block that every tensor-parallel rank holds."""
        found = self.attention_matrices() if self.shared_key_value else {}
        return sum(k * n for name, (k, n) in found.items() if name in REPLICATED)

    def index_macs(self, keys: float) -> float:
        """Multiply-adds of the indexer with `keys` keys, where layers have one: narrow heads, and a sum over them."""
        has = self.mixer_of(0) in (Mixer.SPARSE, Mixer.BLOCKS, Mixer.CSA)
        return self.index_n_heads * (self.index_head_dim + 1) * keys if has else 0.0

    def scored_keys(self, first: int, last: int, causal: bool = True) -> float:
        """Keys that an indexer scores for queries from position `first` to `last`, mean."""
        rate = self.compress_rate or 1
        return seen_keys(first // rate, last // rate) if causal else float(last // rate)

    def keys_per_query(self, first: int, last: int, causal: bool = True) -> float:
        """Keys that queries from position `first` to `last` attend to, mean; of a model whose layers are all alike.

        Where layers compress, those of the window and the entries.
        """
        window, chunk, rate = self.sliding_window or 0, self.attention_chunk_size, self.compress_rate
        window = window or self.chosen_tokens
        entries, chosen = (last // rate, self.chosen_entries) if rate else (0, 0)
        if causal:
            return seen_keys(first, last, window, chunk) + (seen_keys(first // rate, entries, chosen) if rate else 0.0)
        return float(min(last, window or chunk or last) + min(entries, chosen or entries))

    @property
    def chosen_tokens(self) -> int:
        """Tokens that an indexer chooses for a query at most, where it chooses tokens or blocks of them; 0: all."""
        return {Mixer.SPARSE: self.index_topk, Mixer.BLOCKS: self.index_topk * self.index_block_size}.get(
            self.mixer_of(0), 0
        )

    @property
    def chosen_entries(self) -> int:
        """Entries of several tokens that a query attends to at most; 0: all."""
        return self.index_topk if self.mixer_of(0) is Mixer.CSA else 0

    def keys_of_newest(self, length: int) -> int:
        """Keys that the newest of `length` tokens attends to, entries of several tokens included; of a model whose
        layers are all alike: all, those of the window, or those of its chunk so far."""
        chunk, rate = self.attention_chunk_size, self.compress_rate
        if rate:
            entries = length // rate
            return min(length, self.sliding_window or length) + min(entries, self.chosen_entries or entries)
        reach = self.sliding_window or self.chosen_tokens
        return (length - 1) % chunk + 1 if chunk else min(length, reach or length)

    def cached_values(self, kind: BlockKind, tokens: int) -> int:
        """Values that a layer caches of a sequence of `tokens`: keys and values of those that later ones can see."""
        layer = self.of_kind(kind)
        if not kind.mixer.attends or kind.mixer.reuses:
            return 0
        kept = min(tokens, layer.sliding_window or layer.attention_chunk_size or tokens)
        if layer.shared_key_value:
            entries = tokens // layer.compress_rate if layer.compress_rate else 0
            return (kept + entries) * layer.qk_head_dim
        if layer.is_mla:
            return kept * ((layer.kv_lora_rank or 0) + layer.qk_rope_head_dim)
        return kept * layer.num_key_value_heads * (layer.qk_head_dim + layer.v_dim)

    def indexed_bytes(self, kind: BlockKind, tokens: int) -> float:
        """Bytes of the indexer's keys that a layer caches of a sequence of `tokens`: FP8, and an FP32 scale each [B]
        (github.com/deepseek-ai/DeepGEMM, fp8_mqa_logits; vLLM, vllm/models/deepseek_v4/compressor.py, 2026)."""
        if kind.mixer not in (Mixer.SPARSE, Mixer.BLOCKS, Mixer.CSA):
            return 0.0
        return tokens // (self.of_kind(kind).compress_rate or 1) * (self.index_head_dim + 4.0)

    def open_entry_bytes(self, kind: BlockKind) -> float:
        """Bytes that a layer holds of a sequence's newest tokens until they make an entry: values and their weights in
        FP32, of `csa` for two entries and for the indexer, too [B] (vLLM, vllm/models/deepseek_v4/compressor.py, 2026:
        CompressorStateCache)."""
        if not kind.mixer.compresses:
            return 0.0
        entries = 2 if kind.mixer is Mixer.CSA else 1
        wide = self.qk_head_dim + (self.index_head_dim if kind.mixer is Mixer.CSA else 0)
        return entries * self.of_kind(kind).compress_rate * 2 * entries * wide * 4.0

    def state_bytes(self, kind: BlockKind) -> float:
        """Bytes that a layer holds of a sequence however long it is: a state in FP32, and the last tokens that a
        convolution reads in BF16 [B]."""
        if not kind.mixer.has_state:
            return 0.0
        state = self.of_kind(kind).state
        return state.state_values * 4.0 + state.conv_values * 2.0

    def cache_bytes(self, tokens: int, width: float = 2.0) -> float:
        """Keys and values of a sequence of `tokens` in all layers, `width` bytes a value (2: BF16) [B].

        MLA keeps the compressed latent and the shared rotary key (arXiv 2405.04434, section 2.1.4). A layer with a
        window keeps no more than that, one with chunked attention at most a chunk.
        """
        kinds = Counter(self.layer_kinds())
        each = {kind: width * self.cached_values(kind, tokens) + self.indexed_bytes(kind, tokens) for kind in kinds}
        return sum(many * each[kind] for kind, many in kinds.items())

    def kv_cache_bytes_per_token(self, width: float = 2.0, tokens: int = 1) -> float:
        """Cache that one of `tokens` leaves in all layers, mean, `width` bytes a value (2: BF16) [B]."""
        return self.cache_bytes(tokens, width) / tokens
