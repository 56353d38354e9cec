"""The numbers that serving blocks are built from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.graph.shapes import Shapes
from simulator.ops import Gate
from simulator.routing.gate import reach
from simulator.routing.loads import BY_EXPERT, PADDING, check_routing, imbalance
from simulator.spec.mixer import Mixer
from simulator.spec.model import ModelSpec
from simulator.spec.recompute import NOTHING
from simulator.spec.scenario import Scenario
from simulator.spec.serving import REDUCED, Serving, ServingStack, contexts, expert_slots
from simulator.spec.stack import LIBRARY


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingShapes(Shapes):
    """One rank's view of one step, or of one of its two microbatches.

    `batch` [sequences] of `seq` new tokens each over `seq_kv` - `seq` cached ones.

    Parameters
    ----------
    serving : the job's `[serving]`.
    software : settings of the software that serves.
    active : local expert slots that at least one token chose; they work on `rows`.
    all_to_all : whether tokens travel to their experts.
    gathers : whether experts get the tokens of all ranks by an all-gather, and a reduce-scatter sums up what they made.
    gate : the gate as tokens choose among slots.
    lengths : keys of each sequence, where they differ [tokens].
    chunk : tokens of a prompt computed along with the sequences.
    chunk_context : tokens of that prompt that were computed before.
    drafts : shapes of the passes of the MTP module behind the main model, in order.
    """

    serving: Serving
    software: ServingStack
    active: int
    all_to_all: bool
    gathers: bool
    gate: Gate
    lengths: tuple[int, ...] = ()
    chunk: int = 0
    chunk_context: int = 0
    drafts: tuple[ServingShapes, ...] = ()

    @property
    def decodes(self) -> bool:
        """Whether the newest tokens are few, and attention reads the cache as it lies there."""
        return self.job.workload == "decode"

    @property
    def brings_own(self) -> bool:
        """Whether each rank brings tokens of its own to the experts; else all ranks of a group hold the same ones."""
        return self.all_to_all or self.gathers

    @property
    def fuses_shared(self) -> bool:
        """Whether the experts' GEMMs hold the shared expert, too."""
        alone = self.job.layout.ep == 1 and not self.serving.shared_slots
        alike = bool(self.model.shared_width) and not self.model.moe_latent_size and not self.model.branch_norms
        return "shared_expert" in self.software.fused and alike and alone

    @property
    def fuses_norms(self) -> bool:
        """Whether all-reduces add the residual and run the norm behind them; behind all-to-alls there are none."""
        wanted = {"reduce_norm", "reduce_norm_moe"} if self.model.is_moe else {"reduce_norm"}
        layout, few = self.job.layout, self.tokens <= REDUCED
        plain = self.model.norm_placement == "pre" and not self.model.parallel_block and self.model.hc_mult == 1
        plain = plain and not self.model.attn_res_block_size
        plain = plain and Mixer.HYBRID not in self.model.layer_types  # two sums stand between a reduction and the norm
        reduces = layout.tp > 1 and not layout.sp and not (self.model.is_moe and self.brings_own)
        return bool(wanted & set(self.software.fused)) and reduces and few and plain

    @property
    def newest(self) -> int:
        """Tokens that attention of decode or of prompts works on, without those of the chunk."""
        return self.batch * self.seq

    @property
    def logit_rows(self) -> int:
        """Tokens whose next one is sampled: each new one in decode, the last of each prompt in prefill."""
        return (self.newest if self.decodes else self.batch) + (1 if self.chunk else 0)


def microbatches_of(serving: Serving) -> int:
    """Microbatches that a step is cut into."""
    return 2 if serving.two_batch_overlap else 1


def slot_gate(model: ModelSpec, serving: Serving) -> Gate:
    """The gate as tokens choose among slots, equally loaded ones; groups that the slots do not divide limit nothing.

    With slots for the shared expert every token chooses one of them, too.
    """
    gate, slots = model.gate, expert_slots(model, serving)
    chosen = gate.top_k + (1 if serving.shared_slots else 0)
    if serving.shared_slots or (gate.groups and slots % gate.groups):
        return Gate(experts=slots, top_k=chosen)
    return replace(gate, experts=slots)


def serving_shapes(scenario: Scenario, *, loads: bool = True) -> ServingShapes:
    """The shapes of a serving scenario's mean rank, with those of the passes that draft.

    Without `loads` the imbalance of the experts is left out: memory does not depend on it.
    """
    serving, decodes = serving_of(scenario), scenario.job.workload == "decode"
    main = _shapes(scenario, serving.tokens + (serving.mtp_depth if decodes else 0), serving.prefill_tokens, loads)
    if not serving.mtp_depth:
        return main
    # The module first runs over what was verified, which fills its own cache; further drafts take one token each.
    again = [_shapes(scenario, 1, 0, loads)] * (serving.mtp_depth - 1) if decodes else []
    return replace(main, drafts=(main, *again))


def serving_of(scenario: Scenario) -> Serving:
    """The `[serving]` table; `simulator.inputs` refuses a serving job without."""
    assert scenario.job.serving is not None
    return scenario.job.serving


def _shapes(scenario: Scenario, new: int, chunk: int, loads: bool) -> ServingShapes:
    """The shapes of a pass over `new` tokens of each sequence and `chunk` of a prompt."""
    job, model, serving, software = scenario.job, scenario.model, serving_of(scenario), scenario.stack.serving
    assert software is not None
    batch = serving.sequences // microbatches_of(serving)
    tokens = batch * new + chunk
    all_to_all = model.is_moe and scenario.stack.dispatcher not in LIBRARY and job.layout.ep > 1
    gathers = model.is_moe and scenario.stack.dispatcher in LIBRARY and job.layout.ep > job.layout.tp
    gate, own = slot_gate(model, serving), all_to_all or gathers
    rows, received, active = _expert_rows(scenario, gate, tokens, all_to_all, gathers) if model.is_moe else (0, 0, 0)
    return ServingShapes(
        model=model,
        job=job,
        stack=scenario.stack,
        tokens=tokens,
        batch=batch,
        seq=new,
        seq_kv=round(serving.mean_context) + new,
        rows=rows,
        received=received,
        local_experts=gate.experts // job.layout.ep if model.is_moe else 0,
        recipe=job.precision.recipe,
        sms=scenario.cluster.gpu.sms,
        recompute=NOTHING,
        workload=scenario.workload,
        node_gpus=scenario.cluster.node.gpus,
        imbalance=_imbalance(scenario, group_tokens(scenario, tokens, own)) if model.is_moe and loads else 1.0,
        states=scenario.states,
        settings=scenario.formats,
        serving=serving,
        software=software,
        active=active,
        all_to_all=all_to_all,
        gathers=gathers,
        gate=gate,
        lengths=_lengths(serving, new),
        chunk=chunk,
        chunk_context=serving.prefill_context if chunk else 0,
    )


def _imbalance(scenario: Scenario, tokens: int) -> float:
    """Load of the most loaded rank over the mean, with the experts where their placement puts them."""
    routing, ranks, serving = scenario.job.routing, scenario.job.layout.ep, serving_of(scenario)
    copies = routing.kind == "uniform" and serving.redundant_experts > 0  # an expert with a copy has half a load
    if ranks > 1 and (copies or routing.kind in BY_EXPERT):
        check_routing(routing, ranks)
        from simulator.routing.slot_loads import mean_slot_imbalance  # NumPy takes 0.1 s to load

        return mean_slot_imbalance(scenario, tokens)
    return imbalance(scenario, tokens)


def group_tokens(scenario: Scenario, tokens: int, brings_own: bool) -> int:
    """Tokens that the ranks of an expert-parallel group route together in one step (or microbatch)."""
    layout, idle = scenario.job.layout, serving_of(scenario).idle_ranks
    if not brings_own:
        return tokens
    together = -(-tokens // layout.tp) * layout.ep
    return max(1, together * (scenario.job.dp - idle) // scenario.job.dp) if idle else together


def _lengths(serving: Serving, new: int) -> tuple[int, ...]:
    """Keys of each sequence of a microbatch, where they differ.

    Both microbatches are forecast as one: each place has the mean of two sequences that follow each other by length.
    """
    cached = contexts(serving)
    if serving.two_batch_overlap:
        ordered = sorted(cached)
        pairs = {at: (ordered[2 * at] + ordered[2 * at + 1]) // 2 for at in range(len(ordered) // 2)}
        cached = tuple(pairs[at] for at in sorted(pairs, key=lambda at: (at * 0.618033988749895) % 1.0))
    return tuple(one + new for one in cached) if len(set(cached)) > 1 else ()


def chosen_experts(tokens: float, experts: int, top_k: int) -> float:
    """Expected number of `experts` that at least one of `tokens` tokens chooses, each `top_k` at random."""
    missed: float = (1.0 - top_k / experts) ** tokens
    return experts * (1.0 - missed)


def _chosen(scenario: Scenario, gate: Gate, tokens: int) -> float:
    """Expected number of experts that some of `tokens` tokens choose, mean over layers: fewer where some are popular.

    Copies of experts are taken to be chosen as evenly as the balancer that places them makes them.
    """
    model = scenario.model
    if scenario.job.routing.kind not in BY_EXPERT or gate.experts != model.n_routed_experts:
        return chosen_experts(tokens, gate.experts, gate.top_k)
    from simulator.routing.slot_loads import mean_chosen  # NumPy takes 0.1 s to load

    return mean_chosen(scenario, tokens)


def _expert_rows(scenario: Scenario, gate: Gate, tokens: int, all_to_all: bool, gathers: bool) -> tuple[int, int, int]:
    """Rows of the mean rank's experts, the distinct tokens that it receives, and how many experts have rows.

    With all-to-alls or gathers every rank brings tokens of its own (with tensor parallelism a part of its group's);
    else all ranks hold the same ones, and each works on what goes to its experts.
    """
    job = scenario.job
    ep = job.layout.ep
    own = -(-tokens // job.layout.tp) if all_to_all else tokens
    together = group_tokens(scenario, tokens, all_to_all or gathers)
    active = max(1, round(_chosen(scenario, gate, together) / ep))
    rows = max(1, round(together * gate.top_k / ep))
    software = scenario.stack.serving
    gathered = not all_to_all and software is not None and software.experts in ("triton", "cutlass")
    if scenario.job.workload == "prefill" and job.precision.recipe == "fp8" and not gathered:
        rows += active * (PADDING - 1) // 2  # groups are padded to whole blocks of scales
    if not all_to_all:
        return rows, min(rows, together), active
    if job.workload == "decode":
        return rows, rows, active  # low-latency kernels send every copy by itself
    ranks = reach(gate, ep, min(ep, scenario.cluster.node.gpus)).ranks
    return rows, round(own * ranks), active
