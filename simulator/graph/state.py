"""What a rank holds besides activations: parameters, gradients, optimizer states; and the traffic they cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.layout import Job
from simulator.model import LayerKind, ModelSpec

GRADIENT_BYTES = 4.0
"""Gradients are accumulated in FP32 (DeepSeek-V3 report, section 3.3.3) [B]."""
WEIGHT_BYTES = 2.0
"""Weights of the forward pass are kept and gathered in BF16 [B]."""

LAYER: dict[str, LayerKind] = {"dense": "dense", "moe": "moe"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Parameters one rank holds of a stage: `dense` are replicated over data parallelism, `experts` over its part."""

    dense: int = 0
    experts: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(dense=self.dense + other.dense, experts=self.experts + other.experts)

    @property
    def total(self) -> int:
        """Both together."""
        return self.dense + self.experts


def held_by_block(kind: str, model: ModelSpec, job: Job) -> Held:
    """Parameters of one block on one rank. The MTP modules share embedding and head: nothing of their own."""
    tp, layout = job.layout.tp, job.layout
    vocabulary = model.vocab_size * model.hidden_size // tp
    layer = LAYER.get(kind)
    if layer:
        p = model.layer_parameters(layer)
        split = (p.attention + p.shared_expert + p.dense_ffn) // tp
        return Held(dense=split + p.norms + p.router, experts=p.routed_expert // (layout.ep * layout.etp))
    if kind == "embed":
        return Held(dense=vocabulary)
    if kind == "head":
        return Held(dense=model.hidden_size + (0 if model.tie_word_embeddings else vocabulary))
    return Held(dense=2 * model.hidden_size**2 + 2 * model.hidden_size)  # mtp: projection and its two input norms


def held_by_stage(blocks: Sequence[str], model: ModelSpec, job: Job) -> Held:
    """Parameters of one stage on one rank; a head that stands twice (MTP) is held once."""
    total, heads = Held(), 0
    for kind in blocks:
        heads += kind == "head"
        again = kind == "head" and heads > 1
        total = total + (Held(dense=model.hidden_size) if again else held_by_block(kind, model, job))
    return total
