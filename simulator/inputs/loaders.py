"""Loading models, hardware, stacks, jobs and whole scenarios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from simulator.errors import InputError
from simulator.inputs.files import Kind, Source, Table, find, list_names, named_in, read, read_extended
from simulator.inputs.hf_config import Reading, model_from_config, read_config, settable
from simulator.inputs.idle import refuse_idle, refuse_replayed, refuse_shown_only
from simulator.inputs.limits import CLUSTER, JOB, STACK, check_ranges
from simulator.inputs.overrides import OPTION, Override, parse_override, paths, replaced, typed, unknown
from simulator.inputs.plain import hints
from simulator.inputs.problems import problem
from simulator.inputs.ranges.parameter_limits import check_parameters
from simulator.inputs.typed import build, field_names
from simulator.inputs.workloads import refuse_changed_kind, refuse_other_workload, with_defaults
from simulator.routing.loads import moe_layers
from simulator.routing.published_loads import with_published_loads
from simulator.spec.comm_params import Fabric
from simulator.spec.hardware import Cluster, Gpu, Node
from simulator.spec.job import Job
from simulator.spec.kernel_params import Kernels
from simulator.spec.model import ModelSpec
from simulator.spec.scenario import Scenario
from simulator.spec.stack import Stack
from simulator.spec.uneven import ExpertCounts

T = TypeVar("T")

_NAMED = ("model", "hardware", "stack")
SET = "set by the user"
"""Source of a value that an override gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Profile:
    """A hardware profile as its file spells it: kernels and fabric by name."""

    name: str
    kernels: str
    fabric: str
    gpu: Gpu
    node: Node
    price_per_gpu_hour: float
    sources: dict[str, str] = field(default_factory=dict)


def load_model(name_or_path: str) -> ModelSpec:
    """The model of a shipped name, of a config.json, or of a folder that holds one."""
    return _model(name_or_path, [])


def read_model(name_or_path: str) -> Reading:
    """The model as `load_model` gives it, with what was read of its config.json and what was ignored."""
    source = find("model", name_or_path)
    return read_config(read(source), source.name, source.label)


def load_hardware(name_or_path: str, overrides: Sequence[str] = ()) -> Cluster:
    """The cluster of a shipped name or of a TOML profile, after `overrides` such as `hardware.gpu.sms=108`."""
    source = find("hardware", name_or_path)
    cluster = _cluster(source) if source.folder else _shipped_cluster(source.name)
    for change in map(parse_override, overrides):
        if change.root != "hardware" or not change.rest:
            raise unknown(change, paths(cluster, "hardware"))
        cluster = _changed_cluster(cluster, change)
    return cluster


@cache
def _shipped_cluster(name: str) -> Cluster:
    """Shipped files do not change while the program runs: each is read and checked once."""
    return _cluster(find("hardware", name))


def _cluster(source: Source) -> Cluster:
    table = {"name": source.name} | read_extended("hardware", source)
    profile = build(_Profile, table, source.label)
    kernels = _parameters("kernels", Kernels, profile.kernels, source)
    fabric = _parameters("fabric", Fabric, profile.fabric, source)
    plain = {f.name: getattr(profile, f.name) for f in fields(profile)}
    cluster = Cluster(**plain | {"kernels": kernels, "fabric": fabric})
    _check_cluster(cluster, source.label, "")
    return cluster


@lru_cache(maxsize=8)
def measured_gpu(kernels: str) -> Gpu | None:
    """The GPU that shipped kernel parameters were measured on; None for parameters of the user's own."""
    return load_hardware(kernels).gpu if kernels in list_names("hardware") else None


def load_stack(name_or_path: str) -> Stack:
    """The software stack of a shipped name or of a TOML file."""
    source = find("stack", name_or_path)
    return _stack(source) if source.folder else _shipped_stack(source.name)


@cache
def _shipped_stack(name: str) -> Stack:
    return _stack(find("stack", name))


def _stack(source: Source) -> Stack:
    stack = build(Stack, {"name": source.name} | read_extended("stack", source), source.label)
    check_ranges(stack, STACK, source.label)
    return stack


def load_job(name_or_path: str) -> Job:
    """The job of a shipped name or of a TOML file."""
    return _job(find("job", name_or_path))


def load_scenario(name_or_path: str, overrides: Sequence[str] = (), *, replayed: bool = False) -> Scenario:
    """A job with its model, hardware and stack, after `overrides` such as `layout.pp=8` or `hardware.gpu.sms=108`.

    `replayed`: it is to answer requests, which decide on its steps.
    """
    source = find("job", name_or_path)
    job, changes = _job(source), [parse_override(text) for text in overrides]
    below = {root: [c for c in changes if c.root == root and c.rest] for root in _NAMED}
    for change in changes:
        if replayed:
            refuse_replayed(change)
        if change.root not in _NAMED or not change.rest:
            job = _changed_job(job, change)
    cluster, stack = load_hardware(job.hardware), load_stack(job.stack)
    for change in below["hardware"]:
        cluster = _changed_cluster(cluster, change)
    for change in below["stack"]:
        stack = replaced(stack, change, change.rest, paths(stack, "stack"))
        stack = replace(stack, sources=stack.sources | {change.rest: SET})
    check_ranges(stack, STACK, OPTION, "stack.")
    model = _model(job.model, below["model"])
    if job.serving is not None:
        model = _served(model, job.serving.mtp_depth, below["model"])
    job = with_published_loads(job, model)
    scenario = Scenario(
        name=source.name, job=job, model=model, cluster=cluster, stack=stack, counts=_counts(job, model)
    )
    refuse_idle(scenario, below["stack"], replayed=replayed)
    return scenario


def _counts(job: Job, model: ModelSpec) -> ExpertCounts | None:
    """What was recorded of the experts, for routing that was measured."""
    if job.routing.kind != "measured" or not job.routing.file or not model.is_moe:
        return None
    from simulator.inputs.recorded.load_file import read_expert_counts

    return read_expert_counts(job.routing.file, moe_layers(model), model.n_routed_experts)


def _served(model: ModelSpec, depth: int, changes: Iterable[Override]) -> ModelSpec:
    """The model as it is served: with as many MTP modules as drafting runs."""
    for change in changes:
        if change.rest == "num_nextn_predict_layers" and not depth:
            raise problem(OPTION, change.path, change.text, "changes nothing: MTP runs with serving.mtp_depth only")
    modules = model.num_nextn_predict_layers
    if depth and not modules:
        raise InputError(f"serving.mtp_depth: {depth}: {model.name} has no MTP module; use 0")
    return replace(model, num_nextn_predict_layers=min(depth, modules))


def override_job(job: Job, text: str) -> Job:
    """A job after an override of something of its own, such as `layout.pp=8`."""
    return _changed_job(job, parse_override(text))


def settable_paths(scenario: Scenario) -> list[str]:
    """Every path that an override of this scenario may name."""
    return [
        *paths(scenario.job),
        *(f"model.{key}" for key in settable(scenario.model.model_type)),
        *paths(scenario.cluster, "hardware"),
        *paths(scenario.stack, "stack"),
    ]


def _job(source: Source) -> Job:
    job = build(Job, with_defaults(_anchored(source), source.label), source.label)
    _check_job(job, source.label)
    return job


def _anchored(source: Source) -> Table:
    """The job's table, paths in it starting from the folder of the file."""
    table = read_extended("job", source)
    if source.folder is None:
        return table
    for key in _NAMED:
        if key in table:
            table[key] = _from_folder(table[key], source.folder)
    for name, key in (("layout", "schedule"), ("routing", "file")):
        part = table.get(name)
        if isinstance(part, dict) and key in part:
            table[name] = part | {key: _from_folder(part[key], source.folder)}
    return table


def _from_folder(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not (
        "/" in value or value.endswith((".toml", ".json", ".csv", ".txt", ".parquet"))
    ):
        return value
    path = folder / value
    return str(path) if len(path.parts) > 1 else f"./{path}"  # a path stays one


def _model(name_or_path: str, changes: Iterable[Override]) -> ModelSpec:
    source = find("model", name_or_path)
    table = read(source)
    label, values = source.label, {}
    known: dict[str, str] = {}
    for change in changes:
        known = known or settable(model_from_config(table, source.name, label).model_type)
        if change.rest not in known:
            raise unknown(change, (f"model.{key}" for key in known))
        values[change.rest] = typed(hints(ModelSpec)[known[change.rest]], change)
    if values:
        label = f"{OPTION}: model."
    return model_from_config(table, source.name, label, values)


def _changed_job(job: Job, change: Override) -> Job:
    refuse_other_workload(job, change)
    changed = replaced(job, change, change.path, paths(job))
    refuse_changed_kind(job, changed)
    _check_job(changed, OPTION)
    return changed


def _check_job(job: Job, source: str) -> None:
    if job.run.tokens <= 0:
        raise problem(source, "run.tokens", job.run.tokens, "must be above 0, as in 14.8e12")
    check_ranges(job, JOB, source)


def _changed_cluster(cluster: Cluster, change: Override) -> Cluster:
    changed = replaced(cluster, change, change.rest, paths(cluster, "hardware"))
    refuse_shown_only(change)
    _check_cluster(changed, OPTION, "hardware.")
    return replace(changed, sources=changed.sources | {change.rest: SET})


def _check_cluster(cluster: Cluster, source: str, prefix: str) -> None:
    check_ranges(cluster, CLUSTER, source, prefix, skip=("kernels", "fabric"))
    check_parameters(cluster.kernels, source, f"{prefix}kernels")
    check_parameters(cluster.fabric, source, f"{prefix}fabric")
    check_parameters(cluster.gpu.power, source, f"{prefix}gpu.power")
    for name in ("nvlink", "nic"):
        link = getattr(cluster.node, name)
        if link.bandwidth > link.peak and source != OPTION:
            right = f"is above the peak {link.peak:g}; bandwidth is what can be attained"
            raise problem(source, f"{prefix}node.{name}.bandwidth", link.bandwidth, right)


def _parameters(kind: Kind, cls: type[T], name: str, profile: Source) -> T:
    """Kernel or communication parameters that a profile names."""
    source = named_in(profile, kind, name)
    table = read_extended(kind, source)
    if "name" in field_names(cls):
        table = {"name": source.name} | table
    return build(cls, table, source.label)
