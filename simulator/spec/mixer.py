"""What mixes the tokens of a layer, and the kinds of block that follow from that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal


class Mixer(StrEnum):
    """How a layer's tokens see each other.

    `full`: attention to all earlier tokens. `sliding`: to the last so many (Longformer, arXiv 2004.05150, section 3.1).
    `chunked`: to those of the same chunk (Llama 4). `sparse`: to those that an indexer chooses (DeepSeek-V3.2,
    arXiv 2512.02556); `blocks`: to whole blocks of keys that it chooses (MiniMax-M3). `csa` and `hca`: to the last so
    many, and to entries that each stand for several earlier tokens, to those that an indexer chooses, or to all of far
    fewer ones (DeepSeek-V4 report, section 2.3). `delta`: by a state under the gated delta rule (arXiv 2412.06464,
    Qwen3-Next); `kda`: with a decay for each channel of a key (arXiv 2510.26692, Kimi Linear). `mamba2`: by a state
    with a decay (arXiv 2405.21060, Nemotron-H). `mamba1`: by a state of each channel whose decay, and what it reads and
    writes, depend on the token (arXiv 2312.00752, Jamba). `hybrid`: full attention and Mamba-2, both of the layer's
    input, summed (arXiv 2507.22448, Falcon-H1). `conv`: by a gated convolution of a few tokens
    (LFM2, arXiv 2511.23404). `none`: not at all; such a layer is a feed-forward part alone. `reused`
    and `sliding_reused`: to the keys and values of the last layer before that is `full`, or `sliding` (Gemma 4).
    """

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"
    REUSED = "reused"
    SLIDING_REUSED = "sliding_reused"
    SPARSE = "sparse"
    BLOCKS = "blocks"
    CSA = "csa"
    HCA = "hca"
    DELTA = "delta"
    KDA = "kda"
    MAMBA2 = "mamba2"
    MAMBA1 = "mamba1"
    HYBRID = "hybrid"
    CONV = "conv"
    NONE = "none"

    @property
    def is_recurrent(self) -> bool:
        """Whether a state, or the last few tokens, pass from token to token, and nothing else does."""
        return self in (Mixer.DELTA, Mixer.KDA, Mixer.MAMBA2, Mixer.MAMBA1, Mixer.CONV)

    @property
    def reuses(self) -> bool:
        """Whether keys and values are those of an earlier layer."""
        return self in (Mixer.REUSED, Mixer.SLIDING_REUSED)

    @property
    def owner(self) -> Mixer:
        """The mixer of the layers whose keys and values such a layer attends to: its own, unless it reuses."""
        return {Mixer.REUSED: Mixer.FULL, Mixer.SLIDING_REUSED: Mixer.SLIDING}.get(self, self)

    @property
    def has_state(self) -> bool:
        """Whether a state passes from token to token."""
        return self.is_recurrent or self is Mixer.HYBRID

    @property
    def compresses(self) -> bool:
        """Whether several tokens share an entry of the cache."""
        return self in (Mixer.CSA, Mixer.HCA)

    @property
    def attends(self) -> bool:
        """Whether keys and values are kept."""
        return not self.is_recurrent and self is not Mixer.NONE


FfnPart = Literal["dense", "moe", "hash", "none"]
"""What follows attention in a layer; `hash`: experts that a table gives for each token of the vocabulary."""


class BlockKind(str):
    """What a pipeline stage is made of: the embedding, layers, output heads, and the projections of MTP modules.

    A layer is named after its parts: `moe`, `sliding+moe`, `chunked+dense`; full attention goes without saying. Kinds
    are text in every output, so they are text here. In serving `mtp` is a whole pass of the MTP module behind the main
    model, `draft` each further one. Under a narrow recipe a `-bf16` layer stays in BF16. Where whole layers are
    recomputed, a `-kept` one is not, and an `-inner` one keeps nothing, since it runs again together with the layer
    before.
    """

    __slots__ = ()
    EMBED: ClassVar[BlockKind]
    DENSE: ClassVar[BlockKind]
    MOE: ClassVar[BlockKind]
    HEAD: ClassVar[BlockKind]
    MTP: ClassVar[BlockKind]
    DRAFT: ClassVar[BlockKind]

    @staticmethod
    def layer(mixer: Mixer, ffn: FfnPart) -> BlockKind:
        """The kind of a layer with these parts."""
        return BlockKind(ffn if mixer is Mixer.FULL and ffn != "none" else f"{mixer}+{ffn}")

    @property
    def is_layer(self) -> bool:
        """Whether it is a transformer layer."""
        return self not in _ENDS

    @property
    def base(self) -> BlockKind:
        """The kind that has the same parameters."""
        return BlockKind(self.partition("-")[0])

    @property
    def in_bf16(self) -> BlockKind:
        """The same layer with all its GEMMs in BF16."""
        return BlockKind(f"{self}-bf16")

    @property
    def is_bf16(self) -> bool:
        """Whether all its GEMMs are in BF16, whatever the recipe."""
        return "-bf16" in self

    @property
    def kept(self) -> BlockKind:
        """The same layer without recomputation."""
        return BlockKind(f"{self}-kept")

    @property
    def inner(self) -> BlockKind:
        """The same layer behind another of its group."""
        return BlockKind(f"{self}-inner")

    @property
    def is_inner(self) -> bool:
        """Whether it runs again together with the layer before."""
        return self.endswith("-inner")

    @property
    def mixer(self) -> Mixer:
        """What mixes the tokens of a layer."""
        first, plus, _ = self.partition("+")
        return Mixer(first) if plus else Mixer.FULL

    @property
    def ffn(self) -> str:
        """What follows attention in a layer."""
        return self.base.rpartition("+")[2]

    @property
    def is_moe(self) -> bool:
        """Whether it is a layer with experts."""
        return self.ffn in ("moe", "hash")


BlockKind.EMBED = BlockKind("embed")
BlockKind.DENSE = BlockKind("dense")
BlockKind.MOE = BlockKind("moe")
BlockKind.HEAD = BlockKind("head")
BlockKind.MTP = BlockKind("mtp")
BlockKind.DRAFT = BlockKind("draft")
_ENDS = (BlockKind.EMBED, BlockKind.HEAD, BlockKind.MTP, BlockKind.DRAFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateShape:
    """The state of a recurrent layer: `heads` of `key_dim` x `value_dim` values, and the convolution before it.

    Queries and keys (of Mamba-2: c and b) are shared by the heads of a group. `numbers`: values of a token beyond what
    is convolved and its gate; `vectors`: weights of a head beyond the projections; `norms`: groups of the output that
    are normed by themselves (0: it is gated, and not normed), `gain` the norm's weights. `rank`: width of the
    projections before those of the gate and of a decay for each channel; 0: the gate comes from the input, and a head
    has one decay. `full_gate`: the gate comes from the input all the same (Kimi K3).
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    conv_kernel: int
    conv_bias: bool
    chunk: int
    numbers: int
    vectors: int
    norms: int
    gain: int
    is_delta: bool
    rank: int = 0
    full_gate: bool = False

    @property
    def gate_ranks(self) -> int:
        """Projections of that narrow width: of decays, and of the gate."""
        return 1 if self.full_gate else 2

    @property
    def decays(self) -> int:
        """Decays of a token, or step sizes."""
        return self.heads * self.key_dim if self.rank else self.heads

    @property
    def keys(self) -> int:
        """Width of all queries, or of all keys [elements]."""
        return self.key_heads * self.key_dim

    @property
    def inner(self) -> int:
        """Width of the output [elements]."""
        return self.heads * self.value_dim

    @property
    def channels(self) -> int:
        """Width of what is convolved [elements]."""
        return 2 * self.keys + self.inner

    @property
    def projected(self) -> int:
        """Width of the input projection [elements]."""
        return self.channels + (0 if self.rank and not self.full_gate else self.inner) + self.numbers

    @property
    def own_weights(self) -> int:
        """Parameters beyond the two projections."""
        return self.channels * (self.conv_kernel + self.conv_bias) + self.vectors * self.heads + self.gain

    @property
    def state_values(self) -> int:
        """Values of the state of a sequence, kept in FP32."""
        return self.heads * self.key_dim * self.value_dim

    @property
    def conv_values(self) -> int:
        """Values of the last tokens that the convolution still reads, kept in BF16."""
        return self.channels * (self.conv_kernel - 1)


SELECTIVE_CHUNK = 2048
"""Tokens that Mamba-1's kernel works on at once; the states between are kept (state-spaces/mamba,
csrc/selective_scan/selective_scan_fwd_kernel.cuh, 2024)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectiveState(StateShape):
    """The state of a Mamba-1 layer: `heads` channels of `key_dim` values each (arXiv 2312.00752, section 3.4).

    `steps`: width of a token's step sizes before their projection to all channels. What is convolved, and its gate,
    come from the input; steps, b and c from what was convolved. `norms` is 1 where these three are normed (Jamba).
    """

    steps: int

    @property
    def channels(self) -> int:
        """Width of what is convolved [elements]."""
        return self.inner

    @property
    def projected(self) -> int:
        """Width of the input projection [elements]."""
        return 2 * self.inner

    @property
    def selected(self) -> int:
        """Values of a token that say how the state changes: its steps, b and c."""
        return self.steps + 2 * self.key_dim

    @property
    def own_weights(self) -> int:
        """Parameters beyond the projections: convolution, decays, bias of the steps, skip, norms."""
        return self.inner * (self.conv_kernel + self.conv_bias + self.key_dim + 2) + self.gain


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvState(StateShape):
    """What a layer of short convolutions keeps of a sequence: the last tokens that it still reads, of each channel.

    The projection makes what is convolved, a gate before, and one behind.
    """

    @property
    def channels(self) -> int:
        """Width of what is convolved [elements]."""
        return self.inner

    @property
    def projected(self) -> int:
        """Width of the input projection [elements]."""
        return 3 * self.inner


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerShape:
    """What differs between the layers of a model in how tokens are mixed.

    `layer_types` names the mixer of each layer; empty: full attention in all. The `sliding_` sizes are those of layers
    with a window where they differ from the others' (MiMo-V2-Flash: 8 key-value heads instead of 4). Where layers
    differ, `full_rotary_factor` is the part of a head that rotates in layers with full attention (Llama 4: none).

    DeepSeek-V4 (its report, sections 2.1 to 2.3): `shared_key_value`: one vector of `head_dim` is a token's key and its
    value for all heads, queries come from a latent of `q_lora_rank`. `o_groups` groups of heads are projected to
    `o_lora_rank` each before the output projection. `hc_mult` streams stand where others have one residual
    (hyper-connections). The first `num_hash_layers` MoE layers take a token's experts from a table.

    Gemma 4 (transformers, models/gemma4): `attention_k_eq_v`: layers with full attention make values of what their keys
    are made of. `value_norm`: heads of values are normed, without weights. `use_double_wide_mlp`: layers that reuse
    keys have a feed-forward part twice as wide. `branch_norms`: of a layer with experts, these have a norm before them
    and one behind, shared experts one behind, and the gate one before, whose gains and a factor for each expert are the
    gate's. `hidden_size_per_layer_input`: so many values of each token enter every layer, from a table of their own and
    from a projection of the embedding.
    """

    layer_types: tuple[Mixer, ...] = ()
    sliding_window: int | None = None  # keys that a query of a layer with a window attends to [tokens]; None: all
    attention_chunk_size: int = 0  # tokens of a chunk in layers with chunked attention
    sliding_num_attention_heads: int = 0  # query heads of layers with a window; 0: as the others
    sliding_num_key_value_heads: int = 0  # key-value heads of layers with a window; 0: as the others
    sliding_head_dim: int = 0  # width of a query and key head of layers with a window [elements]; 0: as the others
    sliding_v_head_dim: int = 0  # width of a value head of layers with a window [elements]; 0: as the others
    full_rotary_factor: float | None = None  # part of a head that rotates in full layers; None: as the others
    index_n_heads: int = 0  # heads of the indexer of sparse attention
    index_head_dim: int = 0  # width of such a head [elements]
    index_topk: int = 0  # tokens, or entries of several tokens, that the indexer chooses for a query
    index_block_size: int = 0  # tokens of a block, where the indexer chooses blocks of keys
    compress_rate_csa: int = 4  # tokens of an entry of the cache in `csa` layers
    compress_rate_hca: int = 128  # the same in `hca` layers
    mixer_only_layers: tuple[int, ...] = ()  # layers without a feed-forward part
    linear_num_key_heads: int = 0  # heads of queries and keys under the delta rule
    linear_num_value_heads: int = 0  # heads of values, each with a state
    linear_key_head_dim: int = 0  # width of a key head [elements]
    linear_value_head_dim: int = 0  # width of a value head [elements]
    linear_full_rank_gate: bool = False  # KDA's gate is projected straight from the input
    linear_gate_rank: int = 0  # width before the projections of KDA's gate and decays [elements]
    linear_conv_kernel_dim: int = 4  # taps of the convolution before the delta rule
    linear_chunk_size: int = 64  # tokens of a chunk (flash-linear-attention, fla/ops/gated_delta_rule/chunk.py)
    mamba_num_heads: int = 0  # heads of Mamba-2, each with a state
    mamba_head_dim: int = 0  # width of such a head [elements]
    mamba_n_groups: int = 1  # groups of heads that share b and c
    ssm_state_size: int = 0  # rows of a head's state
    mamba_conv_kernel: int = 4  # taps of the convolution before Mamba-2
    mamba_chunk_size: int = 256  # tokens that Mamba-2's kernels work on at once
    mamba_rms_norm: bool = True  # whether Mamba-2's gated output is normed
    mamba_inner_size: int = 0  # channels of Mamba-1, each with a state
    mamba_dt_rank: int = 0  # width of Mamba-1's step sizes before their projection [elements]
    mamba_state_norms: bool = True  # whether Mamba-1's steps, b and c are normed
    mamba_norm_gains: bool = True  # whether these norms have weights
    short_conv_size: int = 0  # channels of short convolutions
    short_conv_kernel: int = 3  # their taps
    attention_sinks: Literal["none", "all", "sliding"] = "none"  # layers whose heads each have a learned sink
    attention_gate: Literal["none", "head", "element"] = "none"  # a gate scales the core's output, by head or value
    shared_key_value: bool = False  # one vector is a token's key and its value
    o_groups: int = 0  # groups of heads with a projection of their own before the output projection
    o_lora_rank: int = 0  # width that it projects a group to [elements]
    num_hash_layers: int = 0  # first layers whose experts a table gives for each token of the vocabulary
    attention_k_eq_v: bool = False  # layers with full attention have no projection of values
    value_norm: bool = False  # a norm of value heads, without weights
    use_double_wide_mlp: bool = False  # layers that reuse keys have a feed-forward part of twice the width
    branch_norms: bool = False  # experts, shared experts and gate have norms of their own
    hidden_size_per_layer_input: int = 0  # values of a token that enter each layer [elements]; 0: none
    vocab_size_per_layer_input: int = 0  # rows of the table that they come from [tokens]
    attn_res_block_size: int = 0  # layers of a block whose sum later layers attend to; 0: a plain residual
    hc_mult: int = 1  # streams of the residual that hyper-connections mix; 1: a plain residual

    @property
    def hc_weights(self) -> int:
        """Weights that hyper-connections compute for a token before a branch: in, out, and from stream to stream."""
        return (2 + self.hc_mult) * self.hc_mult if self.hc_mult > 1 else 0

    @property
    def compress_rate(self) -> int:
        """Tokens of an entry of the cache, in the layers of a model whose layers are all alike (`of_kind`); 0: no layer
        compresses."""
        mixer = self.layer_types[0] if self.layer_types else Mixer.FULL
        return {Mixer.CSA: self.compress_rate_csa, Mixer.HCA: self.compress_rate_hca}.get(mixer, 0)

    @property
    def state(self) -> StateShape:
        """The state of the layers of a model whose layers are all alike (`of_kind`); raises ValueError without one."""
        mixer = self.layer_types[0] if self.layer_types else Mixer.FULL
        if mixer in (Mixer.DELTA, Mixer.KDA):
            heads, width = self.linear_num_value_heads, self.linear_value_head_dim
            rank = self.linear_gate_rank if mixer is Mixer.KDA else 0
            return StateShape(
                heads=heads,
                key_heads=self.linear_num_key_heads,
                key_dim=self.linear_key_head_dim,
                value_dim=width,
                conv_kernel=self.linear_conv_kernel_dim,
                conv_bias=False,
                chunk=self.linear_chunk_size,
                numbers=heads
                + (
                    (1 if self.linear_full_rank_gate else 2) * rank or heads
                ),  # strength and decay; or what gate and decays are projected from
                vectors=1 + (self.linear_key_head_dim if rank else 1),  # decay and its bias
                rank=rank,
                full_gate=self.linear_full_rank_gate and rank > 0,
                norms=heads,
                gain=width,
                is_delta=True,
            )
        if mixer is Mixer.MAMBA1:
            return self._selective
        if mixer is Mixer.CONV:
            return self._short_conv
        if mixer not in (Mixer.MAMBA2, Mixer.HYBRID):
            raise ValueError(f"{mixer} layers have no state")
        return StateShape(
            heads=self.mamba_num_heads,
            key_heads=self.mamba_n_groups,
            key_dim=self.ssm_state_size,
            value_dim=self.mamba_head_dim,
            conv_kernel=self.mamba_conv_kernel,
            conv_bias=True,
            chunk=self.mamba_chunk_size,
            numbers=self.mamba_num_heads,  # step size
            vectors=3,  # decay, bias of the step, skip
            norms=self.mamba_n_groups if self.mamba_rms_norm else 0,
            gain=self.mamba_num_heads * self.mamba_head_dim if self.mamba_rms_norm else 0,
            is_delta=False,
        )

    @property
    def _short_conv(self) -> ConvState:
        return ConvState(
            heads=self.short_conv_size,
            key_heads=1,
            key_dim=0,
            value_dim=1,
            conv_kernel=self.short_conv_kernel,
            conv_bias=False,
            chunk=1,
            numbers=0,
            vectors=0,
            norms=0,
            gain=0,
            is_delta=False,
        )

    @property
    def _selective(self) -> SelectiveState:
        steps, rows = self.mamba_dt_rank, self.ssm_state_size
        return SelectiveState(
            heads=self.mamba_inner_size,
            key_heads=1,
            key_dim=rows,
            value_dim=1,
            conv_kernel=self.mamba_conv_kernel,
            conv_bias=True,
            chunk=SELECTIVE_CHUNK,
            numbers=0,
            vectors=0,
            norms=int(self.mamba_state_norms),
            gain=steps + 2 * rows if self.mamba_state_norms and self.mamba_norm_gains else 0,
            is_delta=False,
            steps=steps,
        )
