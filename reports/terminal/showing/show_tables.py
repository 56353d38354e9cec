"""Models, hardware, stacks, jobs and schedules for the terminal, each number with where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.views import words
from simulator.inputs import Architecture
from simulator.inputs.toml_text import toml_text
from simulator.results.metrics import action_spans
from simulator.results.result import Result
from simulator.schedule import (
    SCHEDULES,
    Schedule,
    UniformResult,
    grid_rich,
    peak_in_flight,
    record_of,
    uniform_times,
)
from simulator.spec.hardware import Cluster
from simulator.spec.job import Job
from simulator.spec.kernel_params import Kernels
from simulator.spec.mixer import Mixer
from simulator.spec.model import ModelSpec
from simulator.spec.stack import Stack
from simulator.spec.states import States
from simulator.units import si

_UNITS = {
    "bandwidth": "B/s",
    "boost_clock": "Hz",
    "bf16": "FLOP/s",
    "fp8": "FLOP/s",
    "fp32": "FLOP/s",
    "hbm_bandwidth": "B/s",
    "hbm_bytes": "B",
    "kernel_gap": "s",
    "graph_gap": "s",
    "host_kernel": "s",
    "host_call": "s",
    "host_gemm": "s",
    "host_attention": "s",
    "host_expert": "s",
    "host_parameter": "s",
    "host_collective": "s",
    "l2_bytes": "B",
    "latency": "s",
    "peak": "B/s",
    "price_per_gpu_hour": "USD",
    "tdp": "W",
}
_COMPONENTS = {
    "embedding": "embedding",
    "attention": "attention",
    "norms": "norms",
    "router": "routers",
    "latent": "projections to the experts' width",
    "routed_expert": "routed experts",
    "shared_expert": "shared experts",
    "dense_ffn": "dense feed-forward",
    "head": "output head",
    "hyper_connections": "hyper-connections",
    "per_layer": "inputs of each layer",
}


def model(spec: ModelSpec, sequence: int) -> list[RenderableType]:
    """Shape, parameters by component, and FLOP per token at a sequence length."""
    return [
        Text.assemble((spec.name, "bold"), f" ({spec.model_type})"),
        *section("Shape", _shape(spec)),
        *section("Parameters", _parameters(spec)),
        *section(f"Per token of a sequence of {sequence}", _per_token(spec, sequence)),
    ]


def _shape(spec: ModelSpec) -> RenderableType:
    kinds = spec.layer_kinds()
    counts = [f"{many} {words.of_layers(kind)}" for kind, many in Counter(kinds).items()]
    rows = [
        ("layers", f"{len(kinds)}: {' + '.join(counts)}"),
        ("hidden size", f"{spec.hidden_size:,}"),
        ("vocabulary", f"{spec.vocab_size:,}"),
        ("attention", _attention(spec)),
        *_block(spec),
    ]
    if any(kind.ffn == "dense" for kind in kinds):
        rows.append(("dense feed-forward", f"width {spec.intermediate_size:,}"))
    if spec.n_routed_experts:
        narrow = f" behind a projection to {spec.moe_latent_size:,}" if spec.moe_latent_size else ""
        rows += [
            (
                "routed experts",
                f"{spec.n_routed_experts} of width {spec.moe_intermediate_size:,}{narrow},"
                f" {spec.num_experts_per_tok} for each token",
            ),
            ("shared experts", f"width {spec.shared_width:,}" if spec.shared_width else "none"),
        ]
    if spec.is_node_limited:
        rows.append(("gate", f"experts from at most {spec.topk_group} of {spec.n_group} groups for each token"))
    if spec.num_nextn_predict_layers:
        rows.append(("multi-token prediction", f"{spec.num_nextn_predict_layers} module"))
    return _pairs(rows)


def _block(spec: ModelSpec) -> list[tuple[str, str]]:
    """What is not as in most models: where norms stand, what rotates."""
    rows = []
    if spec.parallel_block:
        norms = "one norm" if spec.shared_norm else "a norm each"
        rows.append(("block", f"attention and feed-forward part side by side, {norms}"))
    if spec.norm_placement != "pre":
        where = "behind each branch" if spec.norm_placement == "post" else "before and behind each branch"
        rows.append(("norms", where))
    if spec.qk_norm:
        over = "for each head" if spec.qk_norm_over == "head" else "over all heads"
        rows.append(("norms of queries and keys", over))
    if spec.positions == "rope" and spec.partial_rotary_factor < 1:
        rows.append(("rotary embedding", f"of {words.percent(spec.partial_rotary_factor)} of each head"))
    if spec.nope_layers:
        rows.append(("without rotary embedding", f"{spec.nope_layers} of {spec.num_hidden_layers} layers"))
    if spec.sliding_window is not None:
        rows.append(("window", f"{spec.sliding_window:,} tokens"))
    if Mixer.CHUNKED in spec.layer_types:
        rows.append(("chunks", f"{spec.attention_chunk_size:,} tokens"))
    rows += _of_shared_key(spec) + _of_reused_keys(spec)
    if spec.attention_sinks != "none":
        where = "of all heads" if spec.attention_sinks == "all" else "of heads in layers with a window"
        rows.append(("attention sinks", where))
    if spec.attention_gate != "none":
        rows.append(("gate of attention's output", f"by {spec.attention_gate}"))
    return rows


def _of_shared_key(spec: ModelSpec) -> list[tuple[str, str]]:
    """What only models have whose key is the value."""
    if not spec.shared_key_value:
        return []
    mixers = {kind.mixer for kind in spec.layer_kinds()}
    rows = [
        ("chosen entries", f"{spec.index_topk:,}, each of {spec.compress_rate_csa} tokens", Mixer.CSA in mixers),
        ("coarse entries", f"all, each of {spec.compress_rate_hca} tokens", Mixer.HCA in mixers),
        ("output projection", f"{spec.o_groups} groups of heads to {spec.o_lora_rank:,} each, then together", True),
        ("streams of the residual", f"{spec.hc_mult}", spec.hc_mult > 1),
    ]
    return [(name, value) for name, value, shown in rows if shown]


def _of_reused_keys(spec: ModelSpec) -> list[tuple[str, str]]:
    """What the layers of Gemma 4 and Kimi K3 have."""
    reuse = sum(kind.mixer.reuses for kind in spec.layer_kinds())
    double = ", with a feed-forward part of twice the width" if spec.use_double_wide_mlp else ""
    rows = [
        ("values", "made of keys in layers with full attention", spec.attention_k_eq_v),
        ("reused keys and values", f"in {reuse} of {spec.num_hidden_layers} layers{double}", reuse > 0),
        ("norms of branches", "of experts and shared experts each", spec.branch_norms),
        ("inputs of each layer", f"{spec.hidden_size_per_layer_input} values", spec.hidden_size_per_layer_input > 0),
        (
            "residual",
            f"a mean of the sums of earlier blocks of {spec.attn_res_block_size} layers, weighed before each branch",
            spec.attn_res_block_size > 0,
        ),
        ("norm of the experts' sum", f"in their width of {spec.moe_latent_size:,}", spec.moe_latent_norm),
    ]
    return [(name, value) for name, value, shown in rows if shown]


def _attention(spec: ModelSpec) -> str:
    if spec.shared_key_value:
        wide = f"one key of {spec.qk_head_dim} that is the value"
        return f"{spec.num_attention_heads} heads, {wide}; queries compressed to {spec.q_lora_rank}"
    if spec.is_mla:
        return f"latent, compressed to {spec.kv_lora_rank} + {spec.qk_rope_head_dim}; {_heads(spec)}"
    shapes = [_mixer(spec.of_kind(kind)) for kind in dict.fromkeys(spec.layer_kinds())]
    return "; or ".join(dict.fromkeys(shapes))


def _mixer(spec: ModelSpec) -> str:
    """What mixes the tokens of a model whose layers are all alike."""
    mixer = spec.mixer_of(0)
    if mixer is Mixer.NONE:
        return "none"
    if not mixer.has_state:
        return _heads(spec)
    state = spec.state
    if mixer is Mixer.CONV:
        return f"short convolution of {state.conv_kernel} tokens, {state.heads:,} channels"
    if mixer is Mixer.MAMBA1:
        return f"Mamba-1, {state.heads:,} channels with a state of {state.key_dim}"
    name = "delta rule" if state.is_delta else "Mamba-2"
    found = f"{name}, {state.heads} heads with a state of {state.key_dim} x {state.value_dim}"
    return f"{found}, next to {_heads(spec)}" if mixer.attends else found


def _heads(spec: ModelSpec) -> str:
    """Heads of a model whose layers are all alike."""
    heads = f"{spec.num_attention_heads} heads of {spec.qk_head_dim} (keys) and {spec.v_dim} (values)"
    return heads if spec.is_mla else f"grouped queries, {spec.num_key_value_heads} key-value heads; {heads}"


def _parameters(spec: ModelSpec) -> RenderableType:
    tree, total = spec.parameter_tree(), spec.parameters()
    table = columns("", ">", ">")
    for name, title in _COMPONENTS.items():
        count = getattr(tree, name)
        if count:
            table.add_row(title, f"{count:,}", words.percent(count / total))
    table.add_row("all", f"{total:,}", words.percent(1.0), style="bold")
    active = spec.activated_parameters()
    table.add_row("active for a token", f"{active:,}", words.percent(active / total))
    with_embedding = spec.activated_parameters(embedding=True)
    if with_embedding != active:
        table.add_row("and with the input embedding", f"{with_embedding:,}", words.percent(with_embedding / total))
    if tree.mtp:
        table.add_row("MTP modules, extra", f"{tree.mtp:,}", "")
    return table


def _per_token(spec: ModelSpec, sequence: int) -> RenderableType:
    rows = [
        ("training, causal attention", si(spec.flops_per_token(sequence), "FLOP")),
        ("training, full attention", si(spec.flops_per_token(sequence, causal=False), "FLOP")),
    ]
    if spec.num_nextn_predict_layers:
        rows.append(("training, causal, with MTP", si(spec.flops_per_token(sequence, mtp=True), "FLOP")))
    rows.append(("cache in BF16", si(spec.kv_cache_bytes_per_token(tokens=sequence), "B")))
    state = sum(many * spec.state_bytes(kind) for kind, many in Counter(spec.layer_kinds()).items())
    return _pairs([*rows, *([("and of a sequence, its states", si(state, "B"))] if state else [])])


def architecture(model_type: str, found: Architecture, origin: str) -> list[RenderableType]:
    """The keys that are read, each with the field of the model that it fills, what needs no key, what is ignored."""
    implied = [(key, str(value)) for key, value in found.fixed.items()]
    only = [(key, f"{' or '.join(map(str, one.values))}, else {one.otherwise}") for key, one in found.only.items()]
    about = [("models", found.title), ("from", found.source), ("kind", "MoE" if found.moe else "dense")]
    return [
        Text.assemble((model_type, "bold"), f" ({origin})"),
        *section("About", _pairs([(key, value) for key, value in about if value])),
        *section("Keys of config.json, and what they are called here", _pairs(list(found.keys.items()))),
        *(section("Implied where the file does not say otherwise", _pairs(implied)) if implied else ()),
        *(section("Allowed with these values only", _pairs(only)) if only else ()),
        *(
            section("Ignored, as well as what every type ignores", _pairs(list(found.ignored.items())))
            if found.ignored
            else ()
        ),
    ]


def architecture_dict(model_type: str, found: Architecture) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "schema": "foretrain.architecture/1",
        "model_type": model_type,
        "keys": dict(found.keys),
        "implied": dict(found.fixed),
        "only": {key: {"values": list(one.values), "otherwise": one.otherwise} for key, one in found.only.items()},
        "ignored": dict(found.ignored),
        "moe": found.moe,
        "models": found.title,
        "source": found.source,
    }


def hardware(cluster: Cluster, verbose: bool = False) -> list[RenderableType]:
    """Every number of a profile with its source."""
    leaves = {path: value for path, value in _leaves(cluster) if not path.startswith(("kernels.", "fabric."))}
    deeper = {path: value for path, value in _leaves(cluster) if path.startswith(("kernels.", "fabric."))}
    parts: list[RenderableType] = [
        Text.assemble((cluster.name, "bold"), f": nodes of {cluster.node.gpus} x {cluster.gpu.name}")
    ]
    parts += section("Values, per GPU and direction", sourced(leaves, cluster.sources))
    parts += section("Kernel classes", note(_measured(cluster.kernels)))
    if verbose:
        parts += section("Kernels and communication", _pairs([(path, _value(path, v)) for path, v in deeper.items()]))
    else:
        parts += section("Kernels and communication", note(f"{len(deeper)} parameters more: --verbose shows them"))
    return parts


def _measured(kernels: Kernels) -> str:
    """How many of the kernel classes somebody measured."""
    gemm, stream = kernels.gemm.values(), kernels.stream.values()
    attention, decode = kernels.attention.values(), kernels.decode.values()
    assumed = [p.assumed for p in gemm] + [p.assumed for p in attention] + [p.assumed for p in stream]
    assumed += [p.assumed for p in decode]
    known = assumed.count(False)
    return f"{kernels.name}: {known} of {len(assumed)} measured there or on the same SM, the others assumed"


def stack(settings: Stack) -> list[RenderableType]:
    """Every setting of a software stack with its source."""
    return [Text(settings.name, style="bold"), *section("Settings", sourced(dict(_leaves(settings)), settings.sources))]


def sourced(values: Mapping[str, Any], sources: Mapping[str, str]) -> RenderableType:
    """Values by path, each with where it comes from."""
    table = columns("", ">", "source")
    for path, value in values.items():
        source = sources.get(path, _unsourced(value))
        table.add_row(path, Text(_value(path, value), style="bold"), Text(source, style="dim"))
    return table


def _unsourced(value: Any) -> str:
    """What stands where a number of a profile has no source."""
    return "no source" if isinstance(value, (int, float)) and not isinstance(value, bool) else ""


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a dataclass that has no parts; names and sources left out."""
    if is_dataclass(value):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value) if f.name not in ("name", "sources")]
    elif isinstance(value, Mapping):
        parts = list(value.items())
    else:
        yield prefix, value
        return
    for name, part in parts:
        yield from _leaves(part, f"{prefix}.{name}" if prefix else str(name))


def _value(path: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        unit = _UNITS.get(path.rpartition(".")[2], "")
        return words.dollars(value) if unit == "USD" else si(value, unit).rstrip()
    return str(value)


def _pairs(rows: list[tuple[str, str]]) -> RenderableType:
    table = columns("", "")
    for name, value in rows:
        table.add_row(name, Text(value, style="bold"))
    return table


def job_toml(job: Job, states: States) -> str:
    """The job with all its values, as the TOML file that would give it; `states`: those of its stack where it names
    none."""
    values = _set_values(asdict(job)) | {"optimizer": asdict(states)}
    if job.serving is not None:
        del values["batch"], values["optimizer"]  # of training jobs
    return toml_text(values)


def _set_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the values that are not set (None), for which TOML has no word."""
    return {
        name: _set_values(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def schedule(shown: Schedule, width: int, *, start: int = 0, wrap: bool = False) -> list[RenderableType]:
    """The grid, and what follows from it with equal stages."""
    times = uniform_times(shown, f=1, i=1, w=1)
    peaks = peak_in_flight(shown)
    alive = str(peaks[0]) if len(set(peaks)) == 1 else f"{', '.join(map(str, peaks))} (by rank)"
    text = (
        f"With equal stages, F = I = W and free communication, the worst rank is idle for"
        f" {words.percent(times.bubble_ratio_worst)} of the step. Microbatches in flight at most: {alive}."
    )
    record = record_of(shown.name)
    about = [] if record is None else [note(f"{record.name}: {record.description} ({record.source}).")]
    return [grid_rich(shown, width=width, start=start, wrap=wrap), *about, note(text)]


def timed_schedule(result: Result, width: int, *, start: int = 0, wrap: bool = False) -> list[RenderableType]:
    """The grid of a simulated step, with the times that its actions took."""
    times = times_of(result)
    rows = zip(times.starts, times.ends, strict=True)
    shortest = min(end - start for starts, ends in rows for start, end in zip(starts, ends, strict=True))
    text = (
        f"Simulated: {result.scenario.name}, without gradient sync and optimizer. A slot is {words.seconds(shortest)},"
        f" as long as the shortest step; the actions take {words.seconds(times.makespan)}. The worst rank is idle for"
        f" {words.percent(times.bubble_ratio_worst)} of that."
    )
    drawn = grid_rich(result.schedule, times=times, slot=shortest, width=width, start=start, wrap=wrap)
    return [drawn, note(text)]


def times_of(result: Result) -> UniformResult:
    """When the actions of each rank's row ran [s], the first at 0."""
    spans: list[list[tuple[float, float]]] = [[] for _ in result.schedule.rows]
    for action, span in zip(result.timeline.tasks.actions, action_spans(result.timeline), strict=True):
        if action.step is not None:
            spans[action.rank].append(span)
    first = min(start for row in spans for start, _ in row)
    return UniformResult(
        starts=tuple(tuple(start - first for start, _ in row) for row in spans),
        ends=tuple(tuple(end - first for _, end in row) for row in spans),
        makespan=max(end for row in spans for _, end in row) - first,
        busy=tuple(sum(end - start for start, end in row) for row in spans),
    )


def schedules_dict() -> dict[str, Any]:
    """Every schedule that a job may name, as JSON; those of installed packages are loaded for it."""
    facts = ("name", "description", "source", "year", "virtual_stages", "mirrored", "overlapped_pairs")
    listed = [
        {fact: getattr(record, fact) for fact in facts} | {"origin": SCHEDULES.origin(record.name)}
        for record in SCHEDULES.values()
    ]
    return {"schema": "foretrain.schedules/1", "schedules": listed}


def schedule_dict(shown: Schedule, times: UniformResult | None = None) -> dict[str, Any]:
    """A schedule as JSON: its rows in the text form of steps; when they ran, where that is known."""
    timed = {} if times is None else {"starts_s": times.starts, "ends_s": times.ends, "makespan_s": times.makespan}
    return {
        "schema": "foretrain.schedule/1",
        "name": shown.name,
        "stages": shown.stages,
        "microbatches": shown.microbatches,
        "rows": [[str(step) for step in row] for row in shown.rows],
        **timed,
    }
