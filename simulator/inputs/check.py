"""Whether a job's numbers fit together: all broken rules at once, each with its numbers and what would do.

Well-formed files may still ask for the impossible: 61 heads over 8 ranks, DualPipe over 5. Nothing here looks at
time or memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import gcd, isqrt, lcm
from typing import TypeAlias, get_args

from simulator.errors import InputError, ScheduleError
from simulator.inputs import serving_check
from simulator.inputs.problems import Problem, Severity
from simulator.inputs.ranges.context_rules import context_rules
from simulator.inputs.ranges.precision_rules import precision_rules
from simulator.routing.loads import loads_problem
from simulator.schedule.action import MOST_CHUNKS
from simulator.spec.job import Module
from simulator.spec.mixer import Mixer
from simulator.spec.model import BlockKind, ModelSpec
from simulator.spec.placement import decoder_counts, is_written, placed
from simulator.spec.recompute import Modules, recomputed_modules
from simulator.spec.scenario import Scenario
from simulator.spec.stack import LIBRARY, Dispatcher
from simulator.spec.states import impossible
from simulator.spec.workload import WorkloadName
from simulator.units import GB

LEAST_USED = 0.85
"""Of a node; a job that would leave more of its GPUs idle is not advised to."""
__all__ = ["LEAST_USED", "Problem", "Rule", "Severity", "check"]

Rule: TypeAlias = Callable[[Scenario], Iterator[Problem]]


def check(scenario: Scenario) -> list[Problem]:
    """Every rule that the scenario breaks, errors first."""
    found = [problem for rule in _RULES[scenario.workload.name] for problem in rule(scenario)]
    return sorted(found, key=lambda problem: problem.severity)


def _world(s: Scenario) -> Iterator[Problem]:
    layout, gpus = s.job.layout, s.job.gpus
    replica = layout.tp * layout.cp * layout.pp
    whole = lcm(replica, s.cluster.node.gpus) if gpus > s.cluster.node.gpus else replica
    if gpus % replica:
        yield Problem(
            rule="world size",
            key="gpus",
            value=gpus,
            message=f"not a multiple of tp {layout.tp} x cp {layout.cp} x pp {layout.pp} = {replica}",
            suggestion=f"use {_multiples(gpus, whole)} GPUs",
        )
    elif gpus > s.cluster.node.gpus and gpus % s.cluster.node.gpus:
        yield Problem(
            rule="whole nodes",
            key="gpus",
            value=gpus,
            message=f"not a whole number of nodes of {s.cluster.node.gpus} GPUs",
            suggestion=f"use {_multiples(gpus, whole)} GPUs{_part_of_a_node(s, gpus)}",
        )


def _part_of_a_node(s: Scenario, ranks: int) -> str:
    """Advice to leave some GPUs of large nodes (NVL72: 8 of 72) out of the job, where `ranks` fill the rest."""
    gpus = s.cluster.node.gpus
    used = next((n for n in range(gpus, 0, -1) if ranks % n == 0), gpus)
    if not LEAST_USED <= used / gpus < 1.0:
        return ""
    return f", or set hardware.node.gpus={used} to use {used} of each node's {gpus}"


def _batch(s: Scenario) -> Iterator[Problem]:
    batch, dp = s.job.batch, s.job.dp
    share = dp * batch.microbatch_size
    if share and batch.global_batch_size % share:
        yield Problem(
            rule="microbatches",
            key="batch.global_batch_size",
            value=batch.global_batch_size,
            message=f"not a multiple of dp {dp} x microbatch_size {batch.microbatch_size} = {share} sequences",
            suggestion=f"use {_multiples(batch.global_batch_size, share)}",
        )
    elif share and _is_endless(s):
        yield Problem(
            rule="length of the step",
            key="batch.global_batch_size",
            value=batch.global_batch_size,
            message=f"makes {s.job.microbatches} microbatches in each pipeline, more than can be simulated: "
            f"{MOST_CHUNKS:,} over all ranks",
            suggestion=f"use at most {_most_microbatches(s) * share}",
        )


def _most_microbatches(s: Scenario) -> int:
    return max(1, MOST_CHUNKS // (s.job.layout.pp * s.job.layout.vpp))


def _is_endless(s: Scenario) -> bool:
    """Whether the step has more microbatches than minutes and gigabytes would do for."""
    return bool(s.job.dp) and s.job.microbatches > _most_microbatches(s)


def _schedule(s: Scenario) -> Iterator[Problem]:
    from simulator.schedule import rules

    layout, job = s.job.layout, s.job
    if _is_file(layout.schedule):
        return
    if not job.dp or job.microbatches < 1 or _is_endless(s):
        return  # the rules above report it
    try:
        broken = rules(layout.schedule, layout.pp, job.microbatches, layout.vpp)
    except ScheduleError as error:
        broken = [str(error)]
    for text in broken:
        yield Problem(rule="schedule", key="layout.schedule", value=layout.schedule, message=text)


def _stages(s: Scenario) -> Iterator[Problem]:
    from simulator.schedule import stages_of

    layout, layers = s.job.layout, s.model.num_hidden_layers
    if _is_file(layout.schedule):
        return
    try:
        stages = stages_of(layout.schedule, layout.pp, layout.vpp)
    except ScheduleError:
        return  # the rule above reports it
    if layout.decoder_first_pipeline_num_layers is not None or layout.decoder_last_pipeline_num_layers is not None:
        yield from _ranks_of_their_own(s, stages)
    elif isinstance(layout.stages, tuple):
        yield from _explicit_stages(layout.stages, stages, layers)
    elif is_written(layout.stages):
        yield from _written_stages(s, stages)
    elif stages > layers + (2 if layout.stages == "balanced" else 0):  # embedding and head may stand alone
        yield Problem(
            rule="layers on stages",
            key="layout.pp",
            value=layout.pp,
            message=f"makes {stages} stages of {layers} layers: some would be empty",
            suggestion=f"use at most {layers} stages, or list the layers of each in layout.stages",
        )


def _written_stages(s: Scenario, stages: int) -> Iterator[Problem]:
    """A layout in Megatron-Core's letters."""
    text = str(s.job.layout.stages)
    try:
        placed(text, s.model, stages)
    except InputError as error:
        message = str(error).partition(f'"{text}": ')[2]
        yield Problem(rule="layers on stages", key="layout.stages", value=text, message=message)


def _ranks_of_their_own(s: Scenario, stages: int) -> Iterator[Problem]:
    """Numbers of layers for the first and last rank, which only even stages of ranks in order have."""
    from simulator.schedule import record_of

    layout = s.job.layout
    first, last = layout.decoder_first_pipeline_num_layers, layout.decoder_last_pipeline_num_layers
    key = "decoder_first_pipeline_num_layers" if first is not None else "decoder_last_pipeline_num_layers"
    record = record_of(layout.schedule)
    message = ""
    if layout.stages != "even":
        message = "is about stages that share the rest evenly: set layout.stages=even"
    elif layout.pp == 1:
        message = "there is one rank only: leave it out"
    elif stages % layout.pp or (record is not None and record.mirrored) or layout.schedule in ("zbv", "dualpipev"):
        message = f"the schedule {layout.schedule} places stages in another order: write a layout in layout.stages"
    else:
        counts = decoder_counts(layout, s.model.num_hidden_layers, stages)
        message = counts if isinstance(counts, str) else ""
    if message:
        value = first if first is not None else last
        yield Problem(rule="layers on stages", key=f"layout.{key}", value=value, message=message)


def _explicit_stages(listed: tuple[int, ...], stages: int, layers: int) -> Iterator[Problem]:
    if len(listed) != stages:
        yield Problem(
            rule="layers on stages",
            key="layout.stages",
            value=list(listed),
            message=f"lists {len(listed)} stages, the schedule has {stages}",
            suggestion="give one number of layers per stage",
        )
    elif sum(listed) != layers:
        yield Problem(
            rule="layers on stages",
            key="layout.stages",
            value=list(listed),
            message=f"adds up to {sum(listed)} layers, the model has {layers}",
            suggestion="let them add up, MTP modules not counted",
        )


def _experts(s: Scenario) -> Iterator[Problem]:
    layout, experts = s.job.layout, s.model.n_routed_experts
    stage = layout.tp * layout.cp * s.job.dp
    if not experts:
        for key, value in (("layout.ep", layout.ep), ("layout.etp", layout.etp)):
            if value > 1:
                yield _dense_problem(key, value, s.model.name)
        return
    advice = _expert_advice(s)
    if experts % layout.ep and not s.workload.serves:  # a serving job's slots need not be as many as its experts
        yield Problem(
            rule="experts on ranks",
            key="layout.ep",
            value=layout.ep,
            message=f"does not divide the {experts} routed experts",
            suggestion=advice,
        )
    if stage % (layout.ep * layout.etp):
        yield Problem(
            rule="experts on ranks",
            key="layout.ep",
            value=layout.ep,
            message=f"x etp {layout.etp} = {layout.ep * layout.etp} does not divide the tp {layout.tp} x cp {layout.cp}"
            f" x dp {s.job.dp} = {stage} ranks of a stage",
            suggestion=advice,
        )
    wrong = loads_problem(s.job.routing, layout.ep)
    if wrong:
        yield Problem(
            rule="loads of ranks", key="routing.loads", value=f"[{len(s.job.routing.loads)} loads]", message=wrong
        )
    if s.model.moe_intermediate_size % layout.etp:
        yield _width_problem("layout.etp", layout.etp, "moe_intermediate_size", s.model.moe_intermediate_size)


def expert_degrees(s: Scenario) -> list[int]:
    """Every `layout.ep` that divides the model's experts and the ranks of a stage, ascending."""
    layout, experts = s.job.layout, s.model.n_routed_experts
    ranks = layout.tp * layout.cp * s.job.dp
    if not experts or not ranks or ranks % layout.etp or s.job.gpus % (layout.tp * layout.cp * layout.pp):
        return []
    return divisors(gcd(experts, ranks // layout.etp))


def _expert_advice(s: Scenario) -> str:
    """The degrees around the job's; none where other numbers must change first."""
    degrees, ep = expert_degrees(s), s.job.layout.ep
    if not degrees:
        return ""
    near = [max((d for d in degrees if d <= ep), default=degrees[0]), *[d for d in degrees if d > ep][:1]]
    return f"use {' or '.join(str(d) for d in near)}"


def divisors(value: int) -> list[int]:
    """All divisors, ascending."""
    small = [d for d in range(1, isqrt(value) + 1) if value % d == 0]
    return sorted({*small, *(value // d for d in small)})


def _routing(s: Scenario) -> Iterator[Problem]:
    """Numbers of a kind of routing that is not the job's."""
    routing = s.job.routing
    for key, value, kind in (
        ("max_over_mean", routing.max_over_mean if routing.max_over_mean != 1.0 else 0.0, "skewed"),
        ("hot_expert", routing.hot_expert if routing.hot_expert != 1.0 else 0.0, "hot"),
        ("cv", routing.cv, "sampled"),
        ("microbatch_cv", routing.microbatch_cv, "sampled"),
        ("seed", routing.seed, "sampled"),
        ("file", routing.file, "measured"),
    ):
        if value and routing.kind != kind:
            yield Problem(
                rule="routing",
                key=f"routing.{key}",
                value=value,
                message=f"does nothing with {routing.kind} routing",
                suggestion=f"set routing.kind={kind}",
                severity="warning",
            )


def _seen_by(s: Scenario) -> Iterator[Problem]:
    """How ranks that differ are simulated must have a use."""
    ranks, use = s.job.routing.ranks, ""
    if ranks == "auto":
        return
    if s.workload.serves:
        use = "set serving.ranks"
    elif not (s.model.is_moe and s.job.layout.ep > 1 and s.job.routing.kind != "uniform"):
        use = "set routing.kind"
    elif ranks == "mean" and (s.job.stragglers.any or s.job.stragglers.clocks == "drawn"):
        use = "leave it out: with slow GPUs ranks are simulated apart"
    if use:
        yield Problem(
            rule="routing",
            key="routing.ranks",
            value=ranks,
            message="does nothing here",
            suggestion=use,
            severity="warning",
        )


def _hot(s: Scenario) -> Iterator[Problem]:
    """Every token chooses an expert once at most."""
    routing, gate = s.job.routing, s.model.gate
    if s.model.is_moe and routing.hot_expert > gate.experts / gate.top_k:
        yield Problem(
            rule="routing",
            key="routing.hot_expert",
            value=routing.hot_expert,
            message=f"is more than all tokens: each chooses {gate.top_k} of {gate.experts} experts",
            suggestion=f"use at most {gate.experts / gate.top_k:g}",
        )


def _recorded(s: Scenario) -> Iterator[Problem]:
    """Measured routing needs its recording."""
    if s.job.routing.kind == "measured" and s.counts is None and s.model.is_moe:
        yield Problem(
            rule="routing",
            key="routing.file",
            value=s.job.routing.file,
            message="measured routing needs a recording of tokens per layer and expert",
            suggestion="name a CSV or Parquet file",
        )


def _stragglers(s: Scenario) -> Iterator[Problem]:
    """Slow GPUs must be somewhere, and settings of them must have a use."""
    slow, pp = s.job.stragglers, s.job.layout.pp
    most = s.job.layout.ep if s.model.is_moe else max(1, s.job.gpus // pp)
    if slow.gpus > most:
        yield Problem(
            rule="slow GPUs",
            key="stragglers.gpus",
            value=slow.gpus,
            message=f"is more than the {most} ranks of one group on a stage",
            suggestion=f"use at most {most}",
        )
    if slow.stage >= pp:
        yield Problem(
            rule="slow GPUs",
            key="stragglers.stage",
            value=slow.stage,
            message=f"is no pipeline rank: there are {pp}",
            suggestion=f"use 0 to {pp - 1}",
        )
    idle = (
        ("slowdown", slow.slowdown, 1.0, slow.gpus > 0, "gpus"),
        ("nic", slow.nic, 1.0, slow.gpus > 0, "gpus"),
        ("stage", slow.stage, 0, slow.gpus > 0, "gpus"),
        ("seed", slow.seed, 0, slow.jitter > 0.0 or slow.clocks == "drawn", "jitter"),
    )
    for key, value, usual, used, needs in idle:
        if value != usual and not used:
            yield Problem(
                rule="slow GPUs",
                key=f"stragglers.{key}",
                value=value,
                message=f"does nothing while stragglers.{needs} is 0",
                suggestion=f"set stragglers.{needs}",
                severity="warning",
            )
    yield from _clocks(s)


def _clocks(s: Scenario) -> Iterator[Problem]:
    """What says how many GPUs are simulated, and at which clocks, must have a use."""
    slow, power = s.job.stragglers, s.cluster.gpu.power
    if slow.clocks == "drawn" and (power is None or not power.spread):
        what = "no power model" if power is None else "gpu.power.spread = 0"
        yield Problem(
            rule="slow GPUs",
            key="stragglers.clocks",
            value=slow.clocks,
            message=f"does nothing: {s.cluster.name} has {what}",
            suggestion="use slowest",
            severity="warning",
        )
    apart = slow.any or (s.job.layout.ep > 1 and s.job.routing.kind != "uniform")
    if slow.groups == "all" and slow.clocks == "slowest" and not apart:
        yield Problem(
            rule="slow GPUs",
            key="stragglers.groups",
            value=slow.groups,
            message="does nothing while all GPUs are alike",
            suggestion="set routing.kind, stragglers.gpus, stragglers.jitter or stragglers.clocks",
            severity="warning",
        )


def _dense_problem(key: str, value: int, model: str) -> Problem:
    return Problem(rule="experts on ranks", key=key, value=value, message=f"{model} has no experts", suggestion="use 1")


def _tensor(s: Scenario) -> Iterator[Problem]:
    layout, model = s.job.layout, s.model
    tp = layout.tp
    if tp > model.num_attention_heads > 0:  # whatever else such a degree breaks follows from it
        yield Problem(
            rule="tensor parallelism",
            key="layout.tp",
            value=tp,
            message=f"is more than the {model.num_attention_heads} attention heads of {model.name}",
            suggestion=f"use at most {model.num_attention_heads}",
        )
        return
    yield from _heads(s)
    if any(kind.ffn == "dense" for kind in model.layer_kinds()) and model.intermediate_size % tp:
        yield _width_problem("layout.tp", tp, "intermediate_size", model.intermediate_size)
    if model.shared_width % tp:
        yield _width_problem("layout.tp", tp, "width of the shared experts", model.shared_width)
    gpus = s.cluster.node.gpus
    if tp > gpus or gpus % tp:
        yield Problem(
            rule="tensor parallelism inside a node",
            key="layout.tp",
            value=tp,
            message=f"does not divide a node of {gpus} GPUs",
            suggestion=f"use {_divisors(gpus, tp)}",
        )


_UNSPLIT = {
    Mixer.MAMBA1: "whose b and c come from all channels",
    Mixer.CONV: "whose convolution reads tokens of the rank before",
}
"""Recurrent layers that no software splits over context-parallel ranks, and why."""


def _state_heads(s: Scenario, kind: BlockKind) -> Iterator[Problem]:
    """Heads of a recurrent layer: on tensor-parallel ranks, and behind an all-to-all on context-parallel ones."""
    if not kind.mixer.has_state:
        return
    layout, state = s.job.layout, s.model.of_kind(kind).state
    if layout.cp > 1 and kind.mixer in _UNSPLIT:
        yield Problem(
            rule="recurrent layers",
            key="layout.cp",
            value=layout.cp,
            message=f"no software splits the sequences of {kind.mixer} layers, {_UNSPLIT[kind.mixer]}",
            suggestion="use 1",
        )
    parts = "channels" if kind.mixer in _UNSPLIT else "heads"
    if state.heads % layout.tp:
        yield _width_problem("layout.tp", layout.tp, f"{parts} of {kind.mixer} layers", state.heads)
    elif state.key_heads % layout.tp and layout.tp % state.key_heads:
        yield _width_problem("layout.tp", layout.tp, f"groups of heads of {kind.mixer} layers", state.key_heads)
    elif (state.heads // layout.tp) % layout.cp:
        heads = f"{kind.mixer} layers' heads on a tensor-parallel rank, which an all-to-all spreads"
        yield _width_problem("layout.cp", layout.cp, heads, state.heads // layout.tp)


WIDEST_HEAD = 256
"""Values of a head that FlashAttention's kernels take at most (github.com/Dao-AILab/flash-attention, README, 2025)."""


def _wide_heads(s: Scenario) -> Iterator[Problem]:
    """Heads for which the kernels that are priced have no form (Gemma 4's layers with full attention)."""
    model = s.model
    if model.is_mla or model.shared_key_value:  # kernels of their own
        return
    kinds = dict.fromkeys(kind for kind in model.layer_kinds() if kind.mixer.attends)
    wide = max((model.of_kind(kind).qk_head_dim for kind in kinds), default=0)
    if wide > WIDEST_HEAD:
        yield Problem(
            rule="attention heads",
            key="model",
            value=model.name,
            message=f"heads of {wide} values: FlashAttention's kernels take {WIDEST_HEAD}; wider ones cost as if so",
            suggestion="take the attention core's time as a lower bound",
            severity="warning",
        )


def _carried(s: Scenario) -> Iterator[Problem]:
    """What only the first stage, or an earlier layer, makes would have to travel with the residual stream."""
    model, pp = s.model, s.job.layout.pp
    reuses = any(kind.mixer.reuses for kind in model.layer_kinds())
    if pp > 1 and (reuses or model.hidden_size_per_layer_input):
        what = "reuse keys of earlier ones" if reuses else "take values of their own from the embedding"
        yield Problem(
            rule="stages",
            key="layout.pp",
            value=pp,
            message=f"layers of {model.name} {what}, which are not sent between stages here",
            suggestion="use 1, with tp or more replicas instead",
        )


def _heads(s: Scenario) -> Iterator[Problem]:
    """Heads of every kind of layer on tensor-parallel ranks."""
    tp, seen = s.job.layout.tp, set[tuple[int, int]]()
    for kind in dict.fromkeys(s.model.layer_kinds()):
        layer = s.model.of_kind(kind)
        yield from _state_heads(s, kind)
        if not kind.mixer.attends:
            continue
        heads, kv = layer.num_attention_heads, layer.num_key_value_heads
        if (heads, kv) in seen:
            continue
        seen.add((heads, kv))
        if heads % tp:
            yield _width_problem("layout.tp", tp, "attention heads", heads)
        elif layer.o_groups % tp:
            yield _width_problem("layout.tp", tp, "groups of heads that are projected together", layer.o_groups)
        elif not layer.is_mla and kv % tp and tp % kv:
            yield _width_problem("layout.tp", tp, "key-value heads", kv)


def _sequence(s: Scenario) -> Iterator[Problem]:
    layout, length = s.job.layout, s.job.batch.sequence_length
    parts = layout.cp * (layout.tp if layout.sp else 1)
    if length % parts:
        yield Problem(
            rule="sequence on ranks",
            key="batch.sequence_length",
            value=length,
            message=f"not a multiple of cp {layout.cp} x tp {layout.tp if layout.sp else 1} = {parts}",
            suggestion=f"use {_multiples(length, parts)} tokens",
        )
    if layout.cp > 1 and length % (2 * layout.cp):
        yield Problem(
            rule="sequence on ranks",
            key="layout.cp",
            value=layout.cp,
            message=f"a causal sequence is cut into 2 x cp = {2 * layout.cp} equal parts; {length} tokens are not",
            suggestion=f"use {_multiples(length, 2 * layout.cp)} tokens",
        )
    yield from _reach(s, length)
    yield from context_rules(s)


def _reach(s: Scenario, length: int) -> Iterator[Problem]:
    """What the model's attention spans."""
    longest = s.model.max_position_embeddings
    if longest and length > longest:
        yield Problem(
            rule="positions",
            key="batch.sequence_length",
            value=length,
            message=f"{s.model.name} has positions for {longest} tokens",
            suggestion=f"use at most {longest}",
            severity="error" if s.model.positions == "learned" else "warning",
        )
    for kind, reach in reaches(s.model).items():
        if reach > length:
            yield Problem(
                rule="attention window",
                key="batch.sequence_length",
                value=length,
                message=f"shorter than what {kind.mixer} layers of {s.model.name} see, {reach} tokens: it never counts",
                suggestion=f"use {reach} tokens or more",
                severity="warning",
            )
        elif s.job.layout.cp > 1 and s.job.layout.cp_kind == "ring":
            yield Problem(
                rule="attention window",
                key="layout.cp_kind",
                value=s.job.layout.cp_kind,
                message=f"rings have no kernels for a window or chunks ({kind.mixer} layers of {s.model.name})",
                suggestion="use all_gather, as Transformer Engine asks for",
            )


def reaches(model: ModelSpec) -> dict[BlockKind, int]:
    """Tokens that layers with a window or chunks see, by kind."""
    kinds = {kind: model.of_kind(kind) for kind in dict.fromkeys(model.layer_kinds())}
    found = {kind: layer.sliding_window or layer.attention_chunk_size for kind, layer in kinds.items()}
    return {kind: reach for kind, reach in found.items() if reach}


def _nodes(s: Scenario) -> Iterator[Problem]:
    """Expert parallelism over nodes, and the gate's node limit (arXiv 2412.19437, section 3.2.2)."""
    width, gpus = s.job.layout.ep * s.job.layout.etp, s.cluster.node.gpus
    if width % gpus and gpus % width:
        yield Problem(
            rule="expert parallelism over nodes",
            key="layout.ep",
            value=s.job.layout.ep,
            message=f"x etp {s.job.layout.etp} = {width} neither fills nodes of {gpus} GPUs nor divides one",
            suggestion=f"use a multiple or a divisor of {gpus}{_part_of_a_node(s, width)}",
        )
        return
    nodes = width // gpus
    if s.model.is_node_limited and nodes > 1 and s.model.n_group % nodes:
        yield Problem(
            rule="node-limited routing",
            key="layout.ep",
            value=s.job.layout.ep,
            message=f"spreads {s.model.n_group} expert groups over {nodes} nodes: a group is split between nodes, so"
            f" topk_group {s.model.topk_group} no longer limits the nodes of a token",
            suggestion=f"use {_divisors(s.model.n_group, nodes)} nodes of {gpus} ranks",
            severity="warning",
        )


def _serving_nodes(s: Scenario) -> Iterator[Problem]:
    """The same; low-latency kernels send each copy by itself, whatever the gate's limit."""
    for problem in _nodes(s):
        if s.job.workload != "decode" or problem.severity == "error":
            yield problem


def _features(s: Scenario) -> Iterator[Problem]:
    """What the GPU and the model must be able to do."""
    job, gpu = s.job, s.cluster.gpu
    yield from precision_rules(s)
    yield from _expert_overlap(s)
    if s.stack.wgrad_fills_waits and job.layout.zero >= 2:
        yield Problem(
            rule="weight gradients",
            key="stack.wgrad_fills_waits",
            value=True,
            message=f"with ZeRO-{job.layout.zero}, which reduces them after each microbatch: not modelled",
            suggestion="use layout.zero=1",
        )
    if s.stack.loss == "fused_linear" and job.layout.tp > 1:
        yield Problem(
            rule="loss",
            key="stack.loss",
            value="fused_linear",
            message=f"needs whole rows of logits, and tp {job.layout.tp} splits them",
            suggestion="use layout.tp=1, or parallel_fused",
        )
    kernels = s.stack.dispatcher
    if job.layout.ep > 1 and kernels not in LIBRARY and kernels not in s.cluster.fabric.ep:
        yield Problem(
            rule="all-to-all kernels",
            key="stack.dispatcher",
            value=kernels,
            message=f"{s.cluster.name} has no parameters of these kernels",
            suggestion="use "
            + " or ".join(name for name in get_args(Dispatcher) if name in s.cluster.fabric.ep or name in LIBRARY),
        )
    if job.overlap.comm_sms >= gpu.sms:
        yield Problem(
            rule="communication SMs",
            key="overlap.comm_sms",
            value=job.overlap.comm_sms,
            message=f"leaves nothing of the {gpu.sms} SMs to compute",
            suggestion=f"use fewer than {gpu.sms}",
        )


def _expert_overlap(s: Scenario) -> Iterator[Problem]:
    """What Megatron-Core refuses together with the overlap of all-to-alls (megatron/training/arguments.py, 2025)."""
    layout, message = s.job.layout, ""
    if not s.stack.expert_overlap or not s.model.is_moe:
        return
    if layout.schedule == "1f1b" and layout.pp > 1:
        message = "1F1B on several ranks: a backward would wait for its pair on the next rank; use interleaved"
    elif s.stack.shared_expert_overlap and s.model.shared_width:
        message = "shared experts that overlap with the same all-to-alls: set stack.shared_expert_overlap=false"
    elif "layer" in recomputed_modules(layout, s.stack):
        message = "recomputed layers, whose forward would run again inside the pair; name modules in layout.recompute"
    if message:
        yield Problem(rule="expert overlap", key="stack.expert_overlap", value=True, message=f"excludes {message}")


def _recompute(s: Scenario) -> Iterator[Problem]:
    """What the model has and can be recomputed, each once."""
    layout, asked = s.job.layout, s.job.layout.recompute
    listed: list[str] = list(asked) if isinstance(asked, tuple) else [asked]
    modules = recomputed_modules(layout, s.stack)
    for message, suggestion in (*_repeated(listed, modules), *_absent(s, modules, isinstance(asked, tuple))):
        value = listed if isinstance(asked, tuple) else asked
        yield Problem(rule="recomputation", key="layout.recompute", value=value, message=message, suggestion=suggestion)
    whole: tuple[tuple[str, str | int, str | int], ...] = (
        ("recompute_method", layout.recompute_method, "uniform"),
        ("recompute_layers", layout.recompute_layers, 1),
    )
    for key, found, usual in whole:
        if "layer" not in modules and found != usual:
            yield Problem(
                rule="recomputation",
                key=f"layout.{key}",
                value=found,
                message="is about whole layers, and none is recomputed",
                suggestion="use layout.recompute=full",
            )


def _repeated(listed: Sequence[str], modules: Modules) -> Iterator[tuple[str, str]]:
    """What a list of modules names twice: message, and what would be right."""
    if not listed:
        yield "names nothing", 'write "none"'
    if len(set(listed)) < len(listed):
        twice = next(name for name in listed if listed.count(name) > 1)
        yield f"names {twice} twice", "name it once"
    for module, part in WITHIN:
        if {module, part} <= modules:
            yield f"names {part}, which {module} contains", f"leave {part} out"
    whole = modules & {"layer", "ops"}
    if whole and len(modules) > 1:
        yield f"names other modules next to {min(whole)}, which is about all of a layer", f"use [{min(whole)}]"


def _absent(s: Scenario, modules: Modules, listed: bool) -> Iterator[tuple[str, str]]:
    """Modules that the model does not have: message, and what would be right."""
    for module, (has, what) in _recomputable(s).items():
        if module in modules and not has:
            other = "leave it out" if listed else "use none, selective or full"
            yield f"recomputes {what}, which {s.model.name} does not have", other


WITHIN: tuple[tuple[Module, Module], ...] = (
    ("norm", "layernorm"),
    ("mla_up_proj", "mla_up"),
    ("swiglu", "moe_act"),
    ("moe", "moe_act"),
    ("moe", "shared_experts"),
)
"""Modules that contain others."""


def _recomputable(s: Scenario) -> dict[Module, tuple[bool, str]]:
    """Modules that not every model has: whether this one does, and what they are in words."""
    model = s.model
    latent = (model.is_mla or model.shared_key_value, "the up-projections of latent attention")
    experts = (model.is_moe, "routed experts")
    return {
        "mla_up": latent,
        "mla_up_proj": latent,
        "moe": experts,
        "moe_act": experts,
        "shared_experts": (model.is_moe and bool(model.shared_width), "shared experts"),
        "mlp": (BlockKind.DENSE in model.layer_kinds(), "dense feed-forward layers"),
    }


def _optimizer(s: Scenario) -> Iterator[Problem]:
    """Formats of the states that exclude each other; Muon needs whole matrices."""
    layout, states = s.job.layout, s.states
    wrong = impossible(s.job.optimizer, states)
    if wrong is not None:
        key, value, message = wrong
        yield Problem(rule="optimizer states", key=f"optimizer.{key}", value=value, message=message)
    if states.kind == "muon" and layout.tp * layout.etp > 1:
        yield Problem(
            rule="optimizer states",
            key="optimizer.kind",
            value="muon",
            message=f"needs whole matrices, and tp {layout.tp} x etp {layout.etp} splits them: not modelled",
            suggestion="use layout.tp=1 and layout.etp=1, or adamw",
        )


def _replicas(s: Scenario) -> Iterator[Problem]:
    """Groups that each hold all sharded states must be of equal size, and there must be sharded states."""
    layout, job = s.job.layout, s.job
    if layout.replicas == 1:
        return
    if not layout.zero:
        yield Problem(
            rule="replicas",
            key="layout.replicas",
            value=layout.replicas,
            message="changes nothing: without ZeRO every rank holds everything",
            suggestion="use layout.zero=1, 2 or 3",
        )
    shared = {"dp x cp": job.dp * layout.cp} | ({"the experts' edp": job.edp} if s.model.is_moe else {})
    for what, ranks in shared.items():
        if ranks and ranks % layout.replicas:
            yield Problem(
                rule="replicas",
                key="layout.replicas",
                value=layout.replicas,
                message=f"does not divide {what} {ranks}",
                suggestion=f"use {_divisors(ranks, layout.replicas)}",
            )


def _offload(s: Scenario) -> Iterator[Problem]:
    """What can be kept in the host's memory, and a host that is described."""
    away = s.job.offload
    for key, share in (("optimizer", away.optimizer), ("activations", away.activations)):
        if share and s.cluster.node.host is None:
            yield Problem(
                rule="offload",
                key=f"offload.{key}",
                value=share,
                message=f"{s.cluster.name} does not describe its hosts",
                suggestion="set hardware.node.host, or offload nothing",
            )
    if away.optimizer and s.states.kind in ("none", "muon"):
        yield Problem(
            rule="offload",
            key="offload.optimizer",
            value=away.optimizer,
            message=f"the optimizer {s.states.kind} has nothing that the CPU updates",
            suggestion="use adamw, adam8bit or sgd, or offload nothing",
        )


def _memory(s: Scenario) -> Iterator[Problem]:
    """The reserve of the allocator runs from less to more, and the headroom leaves something."""
    memory, whole = s.job.memory, s.cluster.gpu.hbm_bytes
    low, high = memory.reserve
    if low > high:
        yield Problem(
            rule="reserve",
            key="memory.reserve",
            value=list(memory.reserve),
            message="the least is above the most",
            suggestion=f"use [{high:g}, {low:g}]",
        )
    if memory.headroom * whole + memory.headroom_bytes >= whole:
        yield Problem(
            rule="headroom",
            key="memory.headroom_bytes" if memory.headroom_bytes else "memory.headroom",
            value=memory.headroom_bytes or memory.headroom,
            message=f"leaves nothing of the {whole / GB:.1f} GB that CUDA reports",
            suggestion="use less",
        )


_SERVING: tuple[Rule, ...] = (
    serving_check.training_keys,
    serving_check.software,
    serving_check.cache_format,
    _world,
    _experts,
    serving_check.slots,
    serving_check.ranks,
    serving_check.experts,
    _routing,
    _seen_by,
    _hot,
    _recorded,
    _tensor,
    _carried,
    _wide_heads,
    serving_check.positions,
    serving_check.drafting,
    serving_check.microbatches,
    _serving_nodes,
    _features,
    _memory,
)
_RULES: Mapping[WorkloadName, tuple[Rule, ...]] = {
    "training": (
        _world,
        _batch,
        _schedule,
        _stages,
        _experts,
        _routing,
        _seen_by,
        _hot,
        _recorded,
        _stragglers,
        _tensor,
        _carried,
        _wide_heads,
        _sequence,
        _nodes,
        _features,
        _recompute,
        _optimizer,
        _replicas,
        _offload,
        _memory,
    ),
    "prefill": _SERVING,
    "decode": _SERVING,
}
"""Rules by workload."""


def _is_file(schedule: str) -> bool:
    """Whether `layout.schedule` names a file: those are validated when they are read."""
    return "/" in schedule or "." in schedule


def _width_problem(key: str, degree: int, what: str, width: int) -> Problem:
    return Problem(
        rule="tensor parallelism",
        key=key,
        value=degree,
        message=f"does not divide {what} {width}",
        suggestion=f"use {_divisors(width, degree)}",
    )


def _multiples(value: int, step: int) -> str:
    """The multiples of `step` around `value`: "2040 or 2056"."""
    below, above = value // step * step, (value // step + 1) * step
    return f"{below} or {above}" if below else str(above)


def _divisors(value: int, near: int) -> str:
    """The divisors of `value` around `near`: "32 or 64"."""
    below = next((d for d in range(min(near, value), 0, -1) if value % d == 0), 1)
    above = next((d for d in range(near + 1, value + 1) if value % d == 0), None)
    return f"{below} or {above}" if above else str(below)
