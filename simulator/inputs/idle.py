"""Settings that change nothing, refused where `--set` names them, since a change is expected then.

Two kinds: settings of a stack that some jobs do not use, and numbers of a hardware profile that are only shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from simulator.errors import InputError, ScheduleError
from simulator.inputs.overrides import OPTION, Override
from simulator.inputs.problems import problem
from simulator.inputs.reading import schedule_text
from simulator.schedule.action import Schedule
from simulator.schedule.pairing import PAIRED
from simulator.spec.mixer import Mixer
from simulator.spec.precision import RECIPES
from simulator.spec.recompute import CHECKPOINTED, recomputed_modules
from simulator.spec.scenario import Scenario
from simulator.spec.stack import LIBRARY


def refuse_idle(scenario: Scenario, changes: Iterable[Override], *, replayed: bool = False) -> None:
    """Raise InputError for the first change of a setting that changes nothing in this scenario.

    `replayed`: requests are replayed, so that steps of both kinds run, one behind the other.
    """
    for change in changes:
        why = _overridden(change, scenario) or ("" if replayed else _WHY.get(change.path, _used)(scenario))
        why = why or (_in_replay(scenario, change.path) if replayed else _of_training(scenario, change.path))
        if why:
            raise problem(OPTION, change.path, change.text, f"changes nothing: {why}")


def assumed_settings(scenario: Scenario) -> tuple[str, ...]:
    """Assumed settings of the software that a lone step reads; none of the scheduler's."""
    assumed = [name for name in scenario.stack.assumed if not name.startswith("scheduler.")]
    if not scenario.workload.serves:
        return tuple(assumed)
    paths = {name: f"stack.{name}" for name in assumed}
    return tuple(
        name for name, path in paths.items() if not (_WHY.get(path, _used)(scenario) or _of_training(scenario, path))
    )


def refuse_shown_only(change: Override) -> None:
    """Raise InputError for a change of a hardware number that nothing is computed from."""
    if change.path in SHOWN_ONLY:
        raise problem(OPTION, change.path, change.text, f"changes nothing: {SHOWN_ONLY[change.path]}")


SHOWN_ONLY: Mapping[str, str] = {
    "hardware.node.host.peak": "it is only shown next to the attainable bandwidth; set hardware.node.host.bandwidth",
    "hardware.gpu.boost_clock": "the peaks are quoted at this clock; set hardware.gpu.peak.bf16 and fp8",
    "hardware.node.nic.peak": "it is only shown next to the attainable bandwidth; set hardware.node.nic.bandwidth",
    "hardware.fabric.network.kind": "messages take hardware.node.nic.latency, whatever switches they cross; set that",
    "hardware.fabric.network.base_latency": "messages take hardware.node.nic.latency; set that",
    "hardware.fabric.network.hop_latency": "messages take hardware.node.nic.latency; set that",
    "hardware.kernels.gap": "it was measured with the kernels; stack.kernel_gap stands behind them in a job",
}
"""Numbers of a hardware profile that describe it and enter no forecast of a job -> why, and what does."""


def _overridden(change: Override, scenario: Scenario) -> str:
    """Why a format of the stack's states changes nothing; empty where the job's `[optimizer]` leaves it alone."""
    table, _, key = change.rest.partition(".")
    own = {"optimizer": scenario.job.optimizer, "precision": scenario.job.precision}.get(table)
    if own is None or getattr(own, key, None) is None:
        return ""
    return f"the job says {table}.{key} itself; set that"


def _used(scenario: Scenario) -> str:
    return ""


SERVED = (
    "kernel_gap",
    "gemm_sms_reserved",
    "fused_quant",
    "dispatcher",
    "swiglu_fused",
    "rope_fused",
    "norm_fused",
    "residual_fused",
    "norm_kernels",
    "attention",
    "host_kernel",
    "host_gemm",
    "host_collective",
)
"""Settings of a stack, apart from those of serving, that a serving step depends on."""


def _of_training(scenario: Scenario, path: str) -> str:
    """Why a setting of the software changes nothing in a serving job; empty elsewhere."""
    if not scenario.workload.serves or path.startswith("stack.serving."):
        return ""
    name = path.removeprefix("stack.")
    if name not in SERVED:
        return f'a job with workload "{scenario.job.workload}" does not read it'
    if name == "attention" and scenario.job.workload == "decode":
        return "decode runs the kernels of stack.serving.decode_attention"
    serving = scenario.job.serving
    if serving is not None and serving.cuda_graphs:
        if name == "kernel_gap":
            return "the step is replayed as a CUDA graph; set stack.serving.graph_gap, or serving.cuda_graphs=false"
        if name.startswith("host_"):
            return "the step is replayed as a CUDA graph; set serving.cuda_graphs=false"
    return ""


def refuse_replayed(change: Override) -> None:
    """Raise InputError for a change of the shape of a step, where the requests decide on it."""
    if change.path in ("serving.sequences", "serving.context", "serving.tokens", "serving.cuda_graphs"):
        right = "changes nothing: requests and scheduler decide on every step"
        raise problem(OPTION, change.path, change.text, right)


def _in_replay(scenario: Scenario, path: str) -> str:
    """Why a setting of the software changes nothing in a replay."""
    name, scheduler = path.removeprefix("stack."), scenario.stack.scheduler
    if name in ("scheduler.cache_writes", "scheduler.cache_loads") and not (scheduler and scheduler.host_cache):
        return "no prefix cache goes on below HBM; set stack.scheduler.host_cache"
    if not scenario.workload.serves or name in SERVED or name.startswith(("serving.", "scheduler.")):
        return ""
    return f'a job with workload "{scenario.job.workload}" does not read it'


def _in_prefill(scenario: Scenario) -> str:
    return "" if scenario.job.workload == "decode" else "prefill runs the kernels of stack.attention"


def _without_replay(scenario: Scenario) -> str:
    serving = scenario.job.serving
    replayed = serving is not None and serving.cuda_graphs
    return "" if replayed else "the host issues the step; set stack.kernel_gap, or serving.cuda_graphs=true"


def _in_bf16(scenario: Scenario) -> str:
    return "" if scenario.job.precision.recipe == "fp8" else "profiles tell kernels apart in FP8 only"


def _without_tensor_parallelism(scenario: Scenario) -> str:
    layout = scenario.job.layout
    return "" if layout.tp > 1 and not layout.sp else "there are no all-reduces; they take layout.tp > 1 without sp"


def _without_sequence(scenario: Scenario) -> str:
    layout = scenario.job.layout
    return "" if layout.tp > 1 and layout.sp else "no collective of tensor parallelism cuts the sequence"


def _without_shared_keys(scenario: Scenario) -> str:
    model = scenario.model
    shared = model.num_key_value_heads < model.num_attention_heads
    return "" if shared else f"every query head has keys of its own in {model.name}"


def _without_heads(scenario: Scenario) -> str:
    """Why no layer projects plain queries, keys and values."""
    return f"{scenario.model.name} has latent attention" if scenario.model.is_mla else ""


def _without_biases(scenario: Scenario) -> str:
    return "" if scenario.model.attention_bias else f"queries, keys and values have no biases in {scenario.model.name}"


def _without_square(scenario: Scenario) -> str:
    model = scenario.model
    if model.hidden_act != "relu2" or model.gated_mlp:
        return f"the activation of {model.name} is not a squared ReLU without a gate"
    return "" if scenario.stack.swiglu_fused else "no activation is fused; set stack.swiglu_fused"


def _without_shards(scenario: Scenario) -> str:
    layout, stack = scenario.job.layout, scenario.stack
    if not stack.shard_copies:
        return "the software copies no shards (stack.shard_copies)"
    return "" if layout.zero >= 2 else f"gradients are not sharded (layout.zero = {layout.zero})"


def _without_replicas(scenario: Scenario) -> str:
    return "" if scenario.job.dp > 1 else "there is one data-parallel rank"


def _without_zero1(scenario: Scenario) -> str:
    zero = scenario.job.layout.zero
    return "" if zero == 1 else f"only ZeRO-1 shards the update alone (layout.zero = {zero})"


def _without_stages(scenario: Scenario) -> str:
    apart = "" if scenario.stack.grad_sync_overlap else "gradients are reduced behind all compute"
    return _without_pipeline(scenario) or _without_zero1(scenario) or apart


def _without_waits(scenario: Scenario) -> str:
    waits = "" if scenario.stack.p2p_sync else "the host waits for no message; set stack.p2p_sync=true"
    return _without_pipeline(scenario) or waits or _without_issue(scenario)


def _without_adamw(scenario: Scenario) -> str:
    kind = scenario.states.kind
    return "" if kind == "adamw" else f"the optimizer is {kind}"


def _without_experts(scenario: Scenario) -> str:
    return "" if scenario.model.is_moe else f"{scenario.model.name} has no experts"


def _with_all_to_alls(scenario: Scenario) -> str:
    travels = scenario.stack.dispatcher not in LIBRARY
    own = "stack.serving.gemm says whose GEMMs run experts that tokens travel to"
    return _without_experts(scenario) or (own if travels else "")


def _without_masked(scenario: Scenario) -> str:
    decodes = scenario.job.workload == "decode"
    return _without_experts(scenario) or ("" if decodes else "only decode runs masked GEMMs")


def _without_budget(scenario: Scenario) -> str:
    software = scenario.stack.serving
    ruled = software is not None and software.kv_budget != "none"
    return "" if ruled else "the stack has no rule for its KV cache; set stack.serving.kv_budget"


def _made(scenario: Scenario) -> Schedule | None:
    """The schedule of a job; None where it breaks its rules, which is reported when the job is checked."""
    from simulator.schedule import SCHEDULES, build, parse_schedule

    layout, job = scenario.job.layout, scenario.job
    try:
        if layout.schedule in SCHEDULES:
            return build(layout.schedule, pp=layout.pp, microbatches=job.microbatches, vpp=layout.vpp)
        return parse_schedule(schedule_text(Path(layout.schedule)), source=layout.schedule)
    except (ScheduleError, InputError):
        return None


def _without_pairs(scenario: Scenario) -> str:
    """Why nothing overlaps a forward with a backward; empty where the schedule pairs them, or breaks its rules."""
    from simulator.schedule import Pair

    made, layout = _made(scenario), scenario.job.layout
    if made is None or any(isinstance(step, Pair) for row in made.rows for step in row):
        return ""
    return f"the schedule {layout.schedule} overlaps no forward with a backward; dualpipe and dualpipev do"


def _without_shared_experts(scenario: Scenario) -> str:
    model = scenario.model
    return "" if model.is_moe and model.shared_width else f"{model.name} has no shared experts"


def _without_checkpoints(scenario: Scenario) -> str:
    parts = recomputed_modules(scenario.job.layout, scenario.stack) & (CHECKPOINTED | {"layer"})
    return "" if parts else "no whole layer, feed-forward part or experts are recomputed (layout.recompute)"


def _without_lone_gradients(scenario: Scenario) -> str:
    from simulator.schedule import Pair

    schedule, made = scenario.job.layout.schedule, _made(scenario)
    lone = made is None or any(not isinstance(step, Pair) and step.kind == "W" for row in made.rows for step in row)
    return _without_experts(scenario) or ("" if lone else f"the schedule {schedule} splits no backward")


def _without_1f1b(scenario: Scenario) -> str:
    schedule = scenario.job.layout.schedule
    why = "" if schedule in PAIRED else f"the schedule {schedule} is neither {' nor '.join(PAIRED)}"
    return _without_experts(scenario) or why


def _without_pipeline(scenario: Scenario) -> str:
    return "" if scenario.job.layout.pp > 1 else "there is no pipeline (layout.pp = 1)"


def _without_offload(scenario: Scenario) -> str:
    return "" if scenario.job.offload.optimizer else "no optimizer is offloaded (offload.optimizer)"


def _without_later_ranks(scenario: Scenario) -> str:
    """Why no rank could begin its next step before the others are through."""
    from simulator.schedule import record_of, uniform_times

    layout, made, record = scenario.job.layout, _made(scenario), record_of(scenario.job.layout.schedule)
    if scenario.stack.param_gather_overlap and layout.zero in (1, 2):
        return "ranks gather parameters before their first forwards (stack.param_gather_overlap)"
    if made is not None and (record is None or record.timed is None):
        times = uniform_times(made, f=1.0, i=1.0, w=1.0)
        if max(times.spans) == times.makespan:
            return f"the first rank of the schedule {layout.schedule} ends last"
    return _without_pipeline(scenario)


def _without_blocks(scenario: Scenario) -> str:
    formats = scenario.formats
    known = formats.recipe in ("mxfp8", "nvfp4") and formats.kept == "recipe"
    return "" if known else "only Transformer Engine's MXFP8 and NVFP4 are cast so"


def _without_mamba2(scenario: Scenario) -> str:
    kinds = {scenario.model.mixer_of(layer) for layer in range(scenario.model.num_hidden_layers)}
    if scenario.job.serving is not None:
        return "only training calls it"
    return "" if kinds & {Mixer.MAMBA2, Mixer.HYBRID} else f"{scenario.model.name} has no Mamba-2 layers"


def _without_steps(scenario: Scenario) -> str:
    """Why the attention core runs in no steps over parts of a sequence."""
    layout = scenario.job.layout
    if layout.cp == 1:
        return "there is no context parallelism (layout.cp = 1)"
    return "with all_to_all the core is one kernel" if layout.cp_kind == "all_to_all" else ""


def _without_issue(scenario: Scenario) -> str:
    return "" if scenario.stack.host_issues else "the host issues in no time"


def _without_experts_in_mxfp8(scenario: Scenario) -> str:
    fused, recipe = scenario.stack.grouped_gemm == "fused", scenario.job.precision.recipe
    why = f"casts ride on GEMMs in MXFP8, not in {recipe}; set stack.grouped_gemm=kernel" if fused else ""
    return _without_experts(scenario) or ("" if recipe == "mxfp8" else why)


def _without_expert_kernels(scenario: Scenario) -> str:
    one = scenario.stack.grouped_gemm != "streams"
    why = "one kernel computes all experts; set stack.grouped_gemm=streams" if one else ""
    return _without_experts(scenario) or why or _without_issue(scenario)


def _without_fp8_experts(scenario: Scenario) -> str:
    narrow = scenario.formats.recipe == "fp8_tensor"
    why = "" if narrow else "no GEMM of experts has scales of tensors; set precision.recipe=fp8_tensor"
    return _without_expert_kernels(scenario) or why


def _without_expert_parameters(scenario: Scenario) -> str:
    return _without_experts(scenario) or _without_issue(scenario)


def _without_expert_biases(scenario: Scenario) -> str:
    model = scenario.model
    plain = (
        "" if model.mlp_bias or model.swiglu_limit else f"the experts of {model.name} have neither biases nor a bound"
    )
    return _without_experts(scenario) or plain


def _without_graphs(scenario: Scenario) -> str:
    why = "" if scenario.stack.cuda_graphs != "none" else "nothing is replayed; set stack.cuda_graphs"
    return _without_issue(scenario) or why


def _without_reads(scenario: Scenario) -> str:
    counts, ep = scenario.stack.token_counts, scenario.job.layout.ep
    if scenario.stack.padding_removed:
        return ""
    if scenario.model.is_moe and (counts == "host" or (counts == "all_to_all" and ep > 1)):
        return ""
    return _without_experts(scenario) or f'with stack.token_counts = "{counts}" and ep {ep} nothing is read'


def _without_loss_reads(scenario: Scenario) -> str:
    return "" if scenario.stack.gradient_check else "the host reads no loss (stack.gradient_check = false)"


def _without_travel(scenario: Scenario) -> str:
    alone = "" if scenario.job.layout.ep > 1 else "with ep 1 no token travels"
    return _without_experts(scenario) or alone


def _without_context_between(scenario: Scenario) -> str:
    alone = "" if scenario.job.layout.cp > 1 else "there is no context parallelism (layout.cp = 1)"
    return _without_travel(scenario) or alone


def _without_casts(scenario: Scenario) -> str:
    recipe = scenario.job.precision.recipe
    return "" if RECIPES[recipe].by_layer else f"no layer casts its own operands under the recipe {recipe}"


def _without_scales(scenario: Scenario) -> str:
    return "" if scenario.job.precision.recipe == "fp8_tensor" else "only the recipe fp8_tensor can scale so or so"


_WHY: Mapping[str, Callable[[Scenario], str]] = {
    "stack.host_update_overlap": _without_offload,
    "stack.gate_weights": _without_experts,
    "stack.precision.scaling": _without_scales,
    "stack.precision.weights": _without_casts,
    "stack.precision.kept": _without_casts,
    "stack.expert_overlap": _without_1f1b,
    "stack.wgrad_fills_waits": _without_lone_gradients,
    "stack.pipeline_buffers": _without_pipeline,
    "stack.post_validation": _without_later_ranks,
    "stack.sequence_copies": _without_sequence,
    "stack.keys_repeated": _without_shared_keys,
    "stack.heads_copied": _without_heads,
    "stack.padding_removed": _without_heads,
    "stack.bias_apart": _without_biases,
    "stack.relu2_fused": _without_square,
    "stack.flat_shards": _without_shards,
    "stack.ddp_buckets": _without_replicas,
    "stack.clips_whole": _without_zero1,
    "stack.stage_reduced": _without_stages,
    "stack.p2p_headers": _without_pipeline,
    "stack.p2p_reads": _without_waits,
    "stack.update": _without_adamw,
    "stack.mamba2": _without_mamba2,
    "stack.context": _without_steps,
    "stack.checkpoint_early_stop": _without_checkpoints,
    "stack.overlapped_pair": _without_pairs,
    "stack.dispatcher": _without_travel,
    "stack.token_counts": _without_experts,
    "stack.permute": _without_experts,
    "stack.expert_groups": _without_context_between,
    "stack.router": _without_experts,
    "stack.grouped_gemm": _without_experts_in_mxfp8,
    "stack.expert_biases": _without_expert_biases,
    "stack.block_casts": _without_blocks,
    "stack.host_expert": _without_expert_kernels,
    "stack.host_expert_fp8": _without_fp8_experts,
    "stack.host_parameter": _without_expert_parameters,
    "stack.host_backward": _without_issue,
    "stack.host_read": _without_reads,
    "stack.host_loss": _without_loss_reads,
    "stack.host_graph": _without_graphs,
    "stack.cuda_graphs": _without_issue,
    "hardware.node.host_pace": _without_issue,
    "stack.shared_expert_overlap": _without_shared_experts,
    "stack.serving.decode_attention": _in_prefill,
    "stack.serving.graph_gap": _without_replay,
    "stack.serving.gemm": _in_bf16,
    "stack.serving.all_reduce": _without_tensor_parallelism,
    "stack.serving.masked": _without_masked,
    "stack.serving.router_fused": _without_experts,
    "stack.serving.experts": _with_all_to_alls,
    "stack.serving.kv_share": _without_budget,
}
"""Why a setting changes nothing in a scenario; empty where it does something."""
