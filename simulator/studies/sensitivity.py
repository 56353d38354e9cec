"""How much the step time moves with each hardware number and each assumed constant: a tornado.

An assumed number is moved over the range that its source states (`ranges`), one of a data sheet by 10 % down and up,
each alone, and the step is simulated again: at the price of its distinct actions, where that gives the same
(`search.fast.alone`). The layers stay on the stages where they are: moving one for every number would add jumps that
say nothing about the number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal

from simulator.engine.pricing import kernel_class
from simulator.errors import ForetrainError
from simulator.estimate.estimate import alone
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.inputs.idle import SHOWN_ONLY, assumed_settings
from simulator.plugins import registered_by_script
from simulator.results.simulate import Engine, prepare, timeline_of
from simulator.routing.published_loads import with_equal_loads
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario
from simulator.studies.explain import explain
from simulator.studies.ranges import capped, carried, stated

SHIFT = 0.10
"""How far numbers of data sheets are moved, and assumed ones of a user's profile whose source states no range."""
PROCESSES = 2
Kind = Literal["hardware", "assumed"]
HARDWARE = (
    "gpu.peak.bf16",
    "gpu.peak.fp8",
    "gpu.sms",
    "gpu.hbm_bandwidth",
    "gpu.l2_bytes",
    "gpu.tdp",
    "node.nvlink.bandwidth",
    "node.nvlink.latency",
    "node.nic.bandwidth",
    "node.nic.latency",
)
MAIN = {"gemm": "rate", "stream": "bandwidth", "fixed": "time", "scan": "rate", "decode": "bandwidth"}
"""For an assumed kernel class, the parameter that is moved."""
NOTIFY = "hardware.fabric.notify."
UNTIMED = ("hardware.price_per_gpu_hour",)
"""Assumed numbers that no step time depends on."""
CARRIED = "no range of its own: as far as classes are off on GPUs that they were not fitted on (calibration report)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A number that is varied.

    Parameters
    ----------
    path : what `--set` takes.
    kind : whether it is varied as hardware or as assumed.
    value : its value.
    low, high : ends of its range, in its unit.
    source : where the value comes from.
    """

    path: str
    kind: Kind
    value: float
    low: float
    high: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """The step time [s] at both ends of a knob's range."""

    knob: Knob
    at_low: float
    at_high: float

    def width(self) -> float:
        """How far apart the ends are [s]."""
        return abs(self.at_high - self.at_low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tornado:
    """The unchanged step time [s], and the ranges of step time, widest first. `even`: of ranks with equal loads, where
    the job's are only seen by a mean rank."""

    base: float
    engine: Engine
    swings: tuple[Bar, ...]
    even: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "step_time_s": self.base,
            "engine": self.engine,
            "equal_loads": self.even,
            "swings": [
                {
                    "path": s.knob.path,
                    "kind": s.knob.kind,
                    "value": s.knob.value,
                    "low": s.knob.low,
                    "high": s.knob.high,
                    "step_time_low_s": s.at_low,
                    "step_time_high_s": s.at_high,
                    "low_change": s.at_low / self.base - 1.0,
                    "high_change": s.at_high / self.base - 1.0,
                    "source": s.knob.source,
                }
                for s in self.swings
            ],
        }


def knobs(scenario: Scenario) -> list[Knob]:
    """Hardware numbers that decide times, and every assumed constant that the job's ops can feel."""
    found: dict[str, Knob] = {}
    cluster = scenario.cluster
    for path in HARDWARE:
        value = _leaf(cluster, path)
        if value:
            source = cluster.sources.get(path, "")
            kind: Kind = "assumed" if source.startswith("assumed") else "hardware"
            found[path] = _knob(f"hardware.{path}", kind, value, source)
    for path in scenario.assumed_hardware:
        value = _leaf(cluster, path)
        if value and path not in found and path != "price_per_gpu_hour":
            found[path] = _knob(f"hardware.{path}", "assumed", value, cluster.sources[path])
    setting, gap = scenario.gap_setting, scenario.kernel_gap
    source = scenario.stack.sources.get(setting.removeprefix("stack."), "")
    out = [*found.values(), *_fabric(scenario), *_kernels(scenario)]
    if gap:
        out.append(_knob(setting, "assumed" if source.startswith("assumed") else "hardware", gap, source))
    if scenario.job.layout.ep > 1 and scenario.job.overlap.comm_sms:
        out.append(_knob("overlap.comm_sms", "hardware", scenario.job.overlap.comm_sms, "the job"))
    return [knob for knob in out if knob.path not in SHOWN_ONLY]


def assumed_knobs(scenario: Scenario) -> list[Knob]:
    """Assumed numbers of the hardware and of the software, and of the barrier before an all-to-all; neither links nor
    other kernel classes, whose errors are known by class. What is taken as nothing may be up to what its source says.
    """
    cluster, stack = scenario.cluster, scenario.stack
    found = [(f"hardware.{path}", _leaf(cluster, path), cluster.sources[path]) for path in scenario.assumed_hardware]
    found += [(f"stack.{name}", _leaf(stack, name), stack.sources[name]) for name in assumed_settings(scenario)]
    out = [
        _knob(path, "assumed", value, source)
        for path, value, source in found
        if value is not None and path not in UNTIMED and (value or stated(source, value))
    ]
    return out + [knob for knob in _fabric(scenario) if knob.path.startswith(NOTIFY)]


def _knob(path: str, kind: Kind, value: float, source: str, name: str = "") -> Knob:
    """A number with its range; `name` is its own in a group that shares one source."""
    ends = stated(source, value, name)
    if ends is None:
        ends = value * (1 - SHIFT), capped(path, value * (1 + SHIFT))
        if isinstance(value, int):
            ends = min(value - 1, round(ends[0])), max(value + 1, round(ends[1]))
    elif isinstance(value, int):
        ends = round(ends[0]), round(ends[1])
    return Knob(path=path, kind=kind, value=value, low=ends[0], high=ends[1], source=source)


def _leaf(value: Any, path: str) -> Any:
    """The number at a dotted path, or None."""
    for name in path.split("."):
        value = getattr(value, name, None)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _fabric(scenario: Scenario) -> Iterable[Knob]:
    """Numbers of the groups of communication parameters that nobody measured and that the job uses."""
    fabric, stack = scenario.cluster.fabric, scenario.stack
    groups: dict[str, Any] = {}
    for name, group in ((f.name, getattr(fabric, f.name)) for f in fields(fabric)):
        groups |= {f"{name}.{own}": one for own, one in group.items()} if isinstance(group, dict) else {name: group}
    used = {stack.dispatcher, stack.serving.all_reduce if stack.serving is not None else ""}
    for name, group in groups.items():
        notified = name != "notify" or scenario.job.layout.ep > 1
        if getattr(group, "assumed", False) and notified and ("." not in name or name.partition(".")[2] in used):
            for path, value in _numbers(group):
                yield _knob(f"hardware.fabric.{name}.{path}", "assumed", value, group.source, path)


def _numbers(group: Any, prefix: str = "") -> Iterable[tuple[str, float]]:
    """Dotted path and value of every number above zero in a tree of dataclasses and tables."""
    parts = group.items() if isinstance(group, dict) else [(f.name, getattr(group, f.name)) for f in fields(group)]
    for name, value in parts:
        if is_dataclass(value) or isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
            yield f"{prefix}{name}", value


def _kernels(scenario: Scenario) -> Iterable[Knob]:
    """The main parameter of each kernel class of the job that is an assumption on this hardware."""
    kernels = scenario.cluster.kernels
    ops = {one.priced.op.cls for one in explain(scenario).ops}
    used = ops | {kernel_class(cls, scenario.stack, kernels) for cls in ops}
    for table, main in MAIN.items():
        for cls, params in getattr(kernels, table).items():
            if cls in used and params.assumed:
                name = "value_rate" if table == "scan" and params.value_rate else main
                value, path = getattr(params, name), f"hardware.kernels.{table}.{cls}.{name}"
                own = stated(params.range.replace(name, f"range {name}", 1), value, name)
                low, high = own or carried(value)
                source = params.source if own else f"{params.source}; {CARRIED}"
                yield Knob(path=path, kind="assumed", value=value, low=low, high=high, source=source)


def step_time(job: str, engine: Engine, overrides: tuple[str, ...]) -> float | None:
    """The step time of a job [s]; None where a moved number is out of bounds."""
    try:
        scenario = with_equal_loads(load_scenario(job, overrides))
        if any(problem.severity == "error" for problem in check(scenario)):
            return None
        quick = alone(scenario) if engine == "longest-path" else None
        return timeline_of(*prepare(scenario), engine).step_time if quick is None else quick
    except ForetrainError:
        return None


def tornado(
    job: str,
    overrides: Sequence[str] = (),
    *,
    engine: Engine = "longest-path",
    processes: int = PROCESSES,
    progress: Callable[[float], None] | None = None,
) -> Tornado:
    """Move every knob of a job to both ends of its range."""
    scenario = load_scenario(job, tuple(overrides))
    layout = scenario.job.layout
    free = layout.stages == "balanced" and not scenario.workload.serves
    own = (*overrides, f"layout.stages={_held(scenario)}") if free else tuple(overrides)
    moved = knobs(scenario)
    cases = [own, *((*own, f"{k.path}={_text(end)}") for k in moved for end in (k.low, k.high))]
    times: list[float | None] = []
    for one in _map(partial(step_time, job, engine), cases, processes):
        times.append(one)
        if progress is not None:
            progress(len(times) / len(cases))
    base = times[0] or 0.0
    ends = [base if one is None else one for one in times[1:]]
    swings = [
        Bar(knob=knob, at_low=low, at_high=high) for knob, low, high in zip(moved, ends[::2], ends[1::2], strict=True)
    ]
    kept = [swing for swing in swings if swing.width() > 1e-9 * base]
    return Tornado(
        base=base,
        engine=engine,
        swings=tuple(sorted(kept, key=lambda s: (-s.width(), s.knob.path))),
        even=scenario.job.routing.ranks == "mean",
    )


def _held(scenario: Scenario) -> list[int]:
    """Layers of the main model on each stage, as the job places them now."""
    out = []
    for stage in prepare(scenario)[0].stages:
        main = stage[: stage.index(BlockKind.HEAD)] if BlockKind.HEAD in stage else stage
        out.append(sum(kind.is_layer for kind in main))
    return out


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _map(
    compute: Callable[[tuple[str, ...]], float | None], cases: Sequence[tuple[str, ...]], processes: int
) -> Iterable[float | None]:
    count = 1 if registered_by_script() else min(processes, os.cpu_count() or 1)
    if count <= 1:
        yield from map(compute, cases)
        return
    with ProcessPoolExecutor(max_workers=count) as pool:
        yield from pool.map(compute, cases)
