"""What a rank holds besides activations: parameters, gradients, optimizer states; and the traffic they cause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.dtypes import BF16
from simulator.spec.job import Job
from simulator.spec.model import BlockKind, ModelSpec
from simulator.spec.precision import Formats, HighPrecision

WEIGHT_BYTES = BF16
"""Weights of the forward pass are kept and gathered in BF16, but for the matrices of FP8 GEMMs [B]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Parameters one rank holds of a stage: `dense` are replicated over data parallelism, `experts` over its part.

    `matrices`: of the dense ones those in matrices of layers. `narrow` of the dense ones, and `narrow_experts`, are
    read by GEMMs in the job's recipe; embedding, gate and norms never are (arXiv 2412.19437, section 3.3.1).
    """

    dense: int = 0
    experts: int = 0
    matrices: int = 0
    narrow: int = 0
    narrow_experts: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(
            dense=self.dense + other.dense,
            experts=self.experts + other.experts,
            matrices=self.matrices + other.matrices,
            narrow=self.narrow + other.narrow,
            narrow_experts=self.narrow_experts + other.narrow_experts,
        )

    @property
    def total(self) -> int:
        """Both together."""
        return self.dense + self.experts

    def weight_bytes(self, formats: Formats) -> tuple[float, float]:
        """Bytes of the dense weights and of the experts as collectives gather them [B].

        Under DeepSeek's recipe the matrices are there in FP8 only, cast from the sharded FP32 masters before they are
        gathered. The report casts from the masters (figure 6) and shards them (section 3.3.1); what the gather carries
        it does not say: assumed.
        """
        saved = WEIGHT_BYTES - formats.gathered_bytes
        return (
            self.dense * WEIGHT_BYTES - self.narrow * saved,
            self.experts * WEIGHT_BYTES - self.narrow_experts * saved,
        )


def held_by_block(kind: BlockKind, model: ModelSpec, job: Job) -> Held:
    """Parameters of one block on one rank. The MTP modules share embedding and head: nothing of their own."""
    all_wide, wide = BlockKind(kind).is_bf16, job.precision.bf16
    kind, tp, layout = BlockKind(kind).base, job.layout.tp, job.layout
    vocabulary = model.vocab_size * model.hidden_size // tp
    if kind.is_layer:
        p = model.layer_parameters(kind)
        own = model.of_kind(kind)
        whole = own.replicated_weights
        split = (p.attention - whole + p.shared_expert + p.dense_ffn) // tp + whole
        parts: dict[HighPrecision, int] = {
            "recurrent" if own.mixer_of(0).is_recurrent else "attention": (
                sum(k * n for k, n in own.attention_matrices().values()) - whole
            )
            // tp
            + whole,
            "shared_experts": p.shared_expert // tp,
            "dense": p.dense_ffn // tp,
        }
        experts = p.routed_expert // (layout.ep * layout.etp)
        return Held(
            dense=split + p.norms + p.router + p.latent + p.hyper_connections + p.per_layer,
            experts=experts,
            matrices=sum(parts.values()) + p.latent,
            narrow=0 if all_wide else sum(many for part, many in parts.items() if part not in wide),
            narrow_experts=0 if all_wide or "experts" in wide else experts,
        )
    if kind == BlockKind.EMBED:
        tables = vocabulary + model.learned_positions + model.per_layer_table // tp
        return Held(dense=tables + model.per_layer_projection)
    if kind == BlockKind.HEAD:
        bias = model.vocab_size // tp if model.head_bias else 0
        own_weights = model.norm_weights + bias + model.collapse_parameters
        table = 0 if model.tie_word_embeddings else vocabulary
        return Held(dense=own_weights + table, narrow=0 if "head" in wide else table)
    projection = 2 * model.hidden_size**2  # mtp: projection and its two input norms
    return Held(
        dense=projection + 2 * model.hidden_size, matrices=projection, narrow=0 if "mtp" in wide else projection
    )


DENSE, EXPERTS = 0, 1
"""Which ranks share a matrix: those of the dense parameters, or those of the experts."""


def matrices_by_block(kind: BlockKind, model: ModelSpec, job: Job) -> list[tuple[int, int, int, int]]:
    """Matrices of one block on one rank without tensor parallelism: (rows, columns, how many, DENSE or EXPERTS)."""
    kind, h, own = kind.base, model.hidden_size, model.of_kind(kind.base)
    if kind == BlockKind.MTP:
        return [(2 * h, h, 1, DENSE)]
    if not kind.is_layer:
        return []
    found = [(k, n, 1, DENSE) for k, n in own.attention_matrices().values()]
    if model.hidden_size_per_layer_input:
        found.append((h, model.hidden_size_per_layer_input, 2, DENSE))
    if not kind.is_moe:
        return [*found, (h, own.intermediate_size, model.ffn_matrices, DENSE)]
    if model.shared_width:
        found.append((h, model.shared_width, model.ffn_matrices, DENSE))
    if model.moe_latent_size:
        found.append((h, model.moe_latent_size, 2, DENSE))
    experts = model.n_routed_experts // job.layout.ep
    return [*found, (model.expert_hidden, model.moe_intermediate_size, model.ffn_matrices * experts, EXPERTS)]


def held_by_stage(blocks: Sequence[BlockKind], model: ModelSpec, job: Job) -> Held:
    """Parameters of one stage on one rank; a head that occurs twice (MTP) is held once."""
    return sum(held_by_blocks(blocks, model, job), Held())


def held_by_blocks(blocks: Sequence[BlockKind], model: ModelSpec, job: Job) -> list[Held]:
    """What one rank holds of each block of a stage; of a head that occurs again (MTP) only the norm."""
    each = {kind: held_by_block(kind, model, job) for kind in dict.fromkeys(blocks)}
    held, heads = [], 0
    for kind in blocks:
        heads += kind == BlockKind.HEAD
        again = kind == BlockKind.HEAD and heads > 1
        held.append(Held(dense=model.norm_weights + model.collapse_parameters) if again else each[kind])
    return held
