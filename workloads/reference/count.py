"""What the model did: FLOPs, bytes moved and bytes kept, per layer, operation and part, counted while it runs.

A `Run` travels through every function. It names the layer, the arithmetic, and the counter that records each operation;
there is no global. Parts: F forward, I input gradient, W weight gradient, R recomputation in backward. Counts follow
the arrays that were really used; only the width of an element is declared (`Widths`), because NumPy computes in float64
what a GPU holds in BF16.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workloads.reference.config import RefConfig
from workloads.reference.precision import EXACT, Precision

Array = NDArray[Any]
Weights = dict[str, Array]
Saved = dict[str, Array]  # "op/tensor" -> what backward needs
RECOMPUTABLE = {
    "norm": "outputs and statistics of every RMSNorm (DeepSeek-V3 section 3.2.3)",
    "mla_up": "queries, keys and values of MLA (the same)",
    "swiglu": "outputs of SwiGLU (section 3.3.3)",
    "layernorm": "the same of the two norms of a layer",
    "mla_up_proj": "up-projections of MLA with the norms before them (Megatron-Core's name)",
    "moe_act": "outputs of the routed experts' SwiGLU (Megatron-Core's name)",
    "core_attn": "the attention core (arXiv 2205.05198, section 5)",
    "mlp": "the feed-forward part of a dense layer, as a whole",
    "moe": "gate, experts and shared experts, as a whole",
    "shared_experts": "shared experts, as a whole",
    "layer": "whole layers: only the input is kept",
    "permute": "the copies of a token for its experts: the token as it arrived is kept (DeepSeek's profile)",
}
"""What backward may compute again instead of keeping it."""
WHOLE = frozenset({"mlp", "moe", "shared_experts", "layer"})
"""Modules that run again as a whole."""
OUTSIDE = -1  # the layer of what belongs to no layer: embedding, final norm, head, loss


@dataclass(frozen=True, slots=True, kw_only=True)
class Widths:
    """Declared size of an element [B]: `op/tensor` first, then `tensor`, then the default. 0 leaves it out."""

    default: float = 2.0
    by_tensor: Mapping[str, float] = field(
        default_factory=lambda: {
            "dw": 4.0,
            "rstd": 4.0,
            "lse": 4.0,
            "logits": 4.0,
            "scores": 4.0,
            "g": 4.0,
            "ids": 8.0,
            "order": 4.0,
            "ends": 4.0,
            "tokens": 8.0,
        }
    )

    def of(self, op: str, tensor: str) -> float:
        return self.by_tensor.get(f"{op}/{tensor}", self.by_tensor.get(tensor, self.default))


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One operation's work: FLOPs (1 MAC = 2 FLOP, GEMMs only), bytes read, written, kept [B]."""

    flops: int = 0
    read: float = 0.0
    written: float = 0.0
    kept: float = 0.0

    def __add__(self, other: "Count") -> "Count":
        return Count(
            flops=self.flops + other.flops,
            read=self.read + other.read,
            written=self.written + other.written,
            kept=self.kept + other.kept,
        )


Key = tuple[int, str, str]  # (layer, op, part)


class Counter:
    """Adds up counts by (layer, op, part), and kept bytes also by tensor."""

    def __init__(self, widths: Widths | None = None) -> None:
        self.widths = widths or Widths()
        self.counts: dict[Key, Count] = {}
        self.kept: dict[tuple[int, str], float] = {}  # (layer, "op/tensor") -> bytes

    def add(self, key: Key, count: Count) -> None:
        self.counts[key] = self.counts.get(key, Count()) + count

    def size(self, op: str, tensors: Mapping[str, Array]) -> float:
        """Declared bytes of some of an operation's tensors [B]."""
        return sum(array.size * self.widths.of(op, name) for name, array in tensors.items())

    def total(self, *, op: str | None = None, part: str | None = None, layer: int | None = None) -> Count:
        """The sum over everything that matches; None matches all."""
        hits = [
            c
            for (at, name, p), c in self.counts.items()
            if op in (None, name) and part in (None, p) and layer in (None, at)
        ]
        return sum(hits, Count())


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The circumstances of one pass: model, arithmetic, counter, and where in the model we are."""

    cfg: RefConfig
    precision: Precision = EXACT
    counter: Counter | None = None
    recompute: frozenset[str] = frozenset()  # of RECOMPUTABLE
    early_stop: bool = (
        False  # what runs again as a whole ends before the last GEMM, whose output backward does not read
    )
    layer: int = OUTSIDE
    part: str = "F"
    tokens: Array | None = None  # of the microbatch [B, S], for what is looked up by token

    def __post_init__(self) -> None:
        wrong = self.recompute - set(RECOMPUTABLE)
        if wrong:
            raise ValueError(f"recompute {sorted(wrong)} unknown: use {', '.join(RECOMPUTABLE)}")

    def again(self, *modules: str) -> bool:
        """Whether one of these modules is computed again in backward."""
        return not self.recompute.isdisjoint(modules)

    @property
    def stops(self) -> bool:
        """Whether a module that runs now ends before its last GEMM."""
        return self.early_stop and self.part == "R"

    @property
    def ends_here(self) -> bool:
        """Whether a layer without a feed-forward part runs now, and ends before its last GEMM."""
        return self.stops and not self.cfg.has("ffn", self.layer)

    def whole(self) -> "Run":
        """The same for what is followed by others in its module, and so runs to its end."""
        return replace(self, early_stop=False)

    def at(self, *, layer: int | None = None, part: str | None = None) -> "Run":
        return replace(self, layer=self.layer if layer is None else layer, part=part or self.part)

    def count(
        self, op: str, part: str, *, read: Mapping[str, Array], written: Mapping[str, Array], flops: int = 0
    ) -> None:
        """Record one executed operation."""
        if self.counter is not None:
            name = self.part if part == "F" else part  # a forward function run again in backward is part R
            self.counter.add(
                (self.layer, op, name),
                Count(flops=flops, read=self.counter.size(op, read), written=self.counter.size(op, written)),
            )

    def keep(self, saved: Saved) -> None:
        """Record what is held for backward: exactly the arrays of `saved`."""
        if self.counter is None or self.part == "R":
            return
        for key, array in saved.items():
            op, tensor = key.split("/")
            size = self.counter.size(op, {tensor: array})
            self.counter.add((self.layer, op, "F"), Count(kept=size))
            self.counter.kept[self.layer, key] = self.counter.kept.get((self.layer, key), 0.0) + size


def require_finite(what: str, x: Array) -> None:
    """Stop where NaN or infinity would otherwise become a wrong choice further on."""
    if not np.isfinite(x).all():
        bad = np.argwhere(~np.isfinite(x))[0].tolist()
        raise ValueError(f"{what} is not finite at index {bad}: look for an overflow or a NaN input before it")
