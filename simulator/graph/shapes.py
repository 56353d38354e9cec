"""The numbers every block is built from: tokens, rows of the experts, widths, and what is recomputed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simulator.dtypes import BF16
from simulator.routing.gate import reach
from simulator.routing.loads import PADDING, imbalance, mean_rows
from simulator.routing.traffic import distinct
from simulator.spec.job import Job
from simulator.spec.model import ModelSpec
from simulator.spec.precision import Formats, HighPrecision, Recipe
from simulator.spec.recompute import Modules, recomputed_modules
from simulator.spec.scenario import Scenario
from simulator.spec.stack import Stack
from simulator.spec.states import States
from simulator.spec.workload import Workload

Norm = Literal["layer", "latent", "head", "end"]
"""Where a norm stands: before or behind a branch of a layer, before MLA's up-projections, on the heads of queries and
keys, or at the ends of the model."""
Activated = Literal["dense", "shared", "moe"]
"""Whose activation: of a dense layer, of the shared or of the routed experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """One rank's view of one microbatch.

    Parameters
    ----------
    model : the model.
    job : the job.
    stack : settings of the software.
    tokens : tokens that it computes outside attention.
    batch : sequences.
    seq : tokens of a sequence on this context-parallel rank.
    seq_kv : keys that a query attends to [tokens].
    rows : routed tokens of its local experts, padded to `PADDING` per expert under FP8.
    received : distinct tokens that a dispatch brings.
    local_experts : experts of this rank.
    imbalance : load of the most loaded rank of its expert-parallel group over the mean.
    recipe : number formats.
    sms : SMs of the GPU, which set the grids of persistent kernels.
    recompute : modules that backward recomputes.
    workload : what is done with the model.
    node_gpus : GPUs of a node.
    states : formats of gradients.
    ffn_is_moe : whether the feed-forward part has experts, whose gate reads the norm before.
    ffn_input : what is kept of a value of the norm before the feed-forward part [B].
    settings : how operands of narrow GEMMs are made and kept.
    """

    model: ModelSpec
    job: Job
    stack: Stack
    tokens: int
    batch: int
    seq: int
    seq_kv: int
    rows: int
    received: int
    local_experts: int
    recipe: Recipe
    sms: int
    recompute: Modules
    workload: Workload
    states: States
    settings: Formats
    node_gpus: int = 8
    imbalance: float = 1.0
    ffn_input: float = BF16
    ffn_is_moe: bool = False

    @property
    def fp8(self) -> bool:
        """Whether the fine-grained FP8 recipe runs, with all its casts."""
        return self.recipe == "fp8"

    @property
    def formats(self) -> Formats:
        """How operands are made and kept under the recipe that runs here."""
        return self.settings if self.settings.recipe == self.recipe else replace(self.settings, recipe=self.recipe)

    def of_part(self, part: HighPrecision) -> Shapes:
        """The same for a part of a layer, which may stay in BF16."""
        recipe: Recipe = "bf16" if part in self.job.precision.bf16 else self.settings.recipe
        return self if recipe == self.recipe else replace(self, recipe=recipe)

    def in_bf16(self) -> Shapes:
        """The same with all GEMMs in BF16."""
        return replace(self, recipe="bf16", settings=replace(self.settings, recipe="bf16"))

    def norm_again(self, where: Norm) -> bool:
        """Whether a norm runs again in backward instead of keeping what it makes."""
        if "norm" in self.recompute or (where == "layer" and "layernorm" in self.recompute):
            return True
        return where == "latent" and "mla_up_proj" in self.recompute

    @property
    def up_again(self) -> bool:
        """Whether the up-projections of latent attention run again in backward."""
        return not self.recompute.isdisjoint(("mla_up", "mla_up_proj"))

    def activation_again(self, name: Activated) -> bool:
        """Whether an activation alone runs again in backward; not where the module that it is in does as a whole."""
        if self.checkpoints(name):
            return False
        return "swiglu" in self.recompute or (name == "moe" and "moe_act" in self.recompute)

    def checkpoints(self, name: Activated) -> bool:
        """Whether the feed-forward part, the experts or the shared experts run again as a whole."""
        if name == "dense":
            return "mlp" in self.recompute
        return "moe" in self.recompute or (name == "shared" and "shared_experts" in self.recompute)

    @property
    def copies_shards(self) -> bool:
        """Sharded parameters and their gradients are copied around their collectives (see `simulator.graph.shard`)."""
        return self.stack.shard_copies and self.job.layout.zero >= (2 if self.stack.flat_shards else 3)


def shapes_of(scenario: Scenario) -> Shapes:
    """The shapes of a scenario's ranks (the mean rank of its expert-parallel group)."""
    job, model = scenario.job, scenario.model
    rows, received = _expert_rows(scenario) if model.is_moe else (0, 0)
    return Shapes(
        model=model,
        job=job,
        stack=scenario.stack,
        tokens=job.tokens_per_rank,
        batch=job.batch.microbatch_size,
        seq=job.batch.sequence_length // job.layout.cp,
        seq_kv=job.batch.sequence_length,
        rows=rows,
        received=received,
        local_experts=model.n_routed_experts // job.layout.ep if model.is_moe else 0,
        recipe=job.precision.recipe,
        sms=scenario.cluster.gpu.sms,
        recompute=recomputed_modules(job.layout, scenario.stack),
        workload=scenario.workload,
        states=scenario.states,
        settings=scenario.formats,
        node_gpus=scenario.cluster.node.gpus,
        imbalance=imbalance(scenario, group_tokens(scenario)) if model.is_moe else 1.0,
    )


def group_tokens(scenario: Scenario) -> int:
    """Tokens that the ranks of an expert-parallel group route together in one microbatch of training."""
    layout = scenario.job.layout
    return scenario.job.tokens_per_rank // layout.tp * layout.etp * layout.ep


def _expert_rows(scenario: Scenario) -> tuple[int, int]:
    """Rows of the mean rank's experts, padded, and the distinct tokens it receives.

    Ranks that share an expert (expert tensor parallelism) each work on the tokens of all of them.
    """
    job, model = scenario.job, scenario.model
    layout = job.layout
    tokens = job.tokens_per_rank // layout.tp
    rows = mean_rows(
        ep=layout.ep,
        tokens=tokens * layout.etp,
        top_k=model.num_experts_per_tok,
        experts=model.n_routed_experts,
        padding=PADDING if job.precision.recipe == "fp8" else 1,
    )
    ranks = reach(model.gate, layout.ep, min(layout.ep, scenario.cluster.node.gpus)).ranks
    if layout.ep == 1:
        return round(rows), tokens * layout.etp
    if scenario.stack.dispatcher == "nccl":  # a plain all-to-all carries every (token, expert) copy
        return round(rows), tokens * model.num_experts_per_tok * layout.etp
    if scenario.stack.dispatcher == "allgather":  # what is gathered is chosen from: only a rank's own rows are read
        return round(rows), round(rows)
    return round(rows), round(tokens * ranks * layout.etp)


def at_load(s: Shapes, scenario: Scenario, load: float) -> Shapes:
    """The shapes of a rank whose experts have `load` times the mean tokens, in training."""
    layout, model = s.job.layout, s.model
    mean = float(s.job.tokens_per_rank // layout.tp * layout.etp * model.num_experts_per_tok)
    padded = s.rows - mean
    if scenario.stack.dispatcher == "nccl":
        received = load * s.received
    else:
        hit = reach(model.gate, layout.ep, min(layout.ep, scenario.cluster.node.gpus)).ranks / layout.ep
        received = s.received * distinct(load, hit)
    rows = max(1, round(mean * load + padded))
    return replace(s, rows=rows, received=min(round(received), rows) if load else 0)


def hit_of(scenario: Scenario) -> tuple[float, float]:
    """Probabilities that a token reaches a given rank, and a given node, of its expert-parallel group.

    0 where every copy of a token travels by itself: then bytes grow as the load does.
    """
    ep, model = scenario.job.layout.ep, scenario.model
    if scenario.stack.dispatcher == "nccl" or not model.is_moe:
        return 0.0, 0.0
    per_node = min(ep, scenario.cluster.node.gpus)
    reached = reach(model.gate, ep, per_node)
    return reached.ranks / ep, reached.nodes / max(1, ep // per_node)
