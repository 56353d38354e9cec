"""What mixes the tokens of a layer, and the kinds of block that follow from that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Literal


class Mixer(StrEnum):
    """How a layer's tokens see each other.

    `full`: attention to all earlier tokens. `sliding`: to the last so many (Longformer, arXiv 2004.05150, section 3.1).
    `chunked`: to those of the same chunk (Llama 4).
    """

    FULL = "full"
    SLIDING = "sliding"
    CHUNKED = "chunked"


FfnPart = Literal["dense", "moe"]
"""What follows attention in a layer."""


class BlockKind(str):
    """What a pipeline stage is made of: the embedding, layers, output heads, and the projections of MTP modules.

    A layer is named after its parts: `moe`, `sliding+moe`, `chunked+dense`; full attention goes without saying. Kinds
    are text in every output, so they are text here. In serving `mtp` is a whole pass of the MTP module behind the main
    model, `draft` each further one. Where whole layers are recomputed, a `-kept` one is not, and an `-inner` one keeps
    nothing, since it runs again together with the layer before.
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
        return BlockKind(ffn if mixer is Mixer.FULL else f"{mixer}+{ffn}")

    @property
    def is_layer(self) -> bool:
        """Whether it is a transformer layer."""
        return self not in _ENDS

    @property
    def base(self) -> BlockKind:
        """The kind that has the same parameters."""
        return BlockKind(self.partition("-")[0])

    @property
    def kept(self) -> BlockKind:
        """The same layer without recomputation."""
        return BlockKind(f"{self.base}-kept")

    @property
    def inner(self) -> BlockKind:
        """The same layer behind another of its group."""
        return BlockKind(f"{self.base}-inner")

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
        return self.ffn == "moe"


BlockKind.EMBED = BlockKind("embed")
BlockKind.DENSE = BlockKind("dense")
BlockKind.MOE = BlockKind("moe")
BlockKind.HEAD = BlockKind("head")
BlockKind.MTP = BlockKind("mtp")
BlockKind.DRAFT = BlockKind("draft")
_ENDS = (BlockKind.EMBED, BlockKind.HEAD, BlockKind.MTP, BlockKind.DRAFT)


@dataclass(frozen=True, slots=True, kw_only=True)
class MixerShape:
    """What differs between the layers of a model in how tokens are mixed.

    `layer_types` names the mixer of each layer; empty: full attention in all. The `sliding_` sizes are those of layers
    with a window where they differ from the others' (MiMo-V2-Flash: 8 key-value heads instead of 4). Where layers
    differ, `full_rotary_factor` is the part of a head that rotates in layers with full attention (Llama 4: none).
    """

    layer_types: tuple[Mixer, ...] = ()
    sliding_window: int | None = None  # keys that a query of a layer with a window attends to [tokens]; None: all
    attention_chunk_size: int = 0  # tokens of a chunk in layers with chunked attention
    sliding_num_attention_heads: int = 0  # query heads of layers with a window; 0: as the others
    sliding_num_key_value_heads: int = 0  # key-value heads of layers with a window; 0: as the others
    sliding_head_dim: int = 0  # width of a query and key head of layers with a window [elements]; 0: as the others
    sliding_v_head_dim: int = 0  # width of a value head of layers with a window [elements]; 0: as the others
    full_rotary_factor: float | None = None  # part of a head that rotates in full layers; None: as the others
    attention_sinks: Literal["none", "all", "sliding"] = "none"  # layers whose heads each have a learned sink
    attention_gate: Literal["none", "head", "element"] = "none"  # a gate scales the core's output, by head or value
