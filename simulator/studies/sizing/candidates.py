"""Which deployments are tried: layouts of a replica, caps of the batch, sizes of chunks, drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from simulator.inputs import load_model
from simulator.spec.scenario import Scenario
from simulator.spec.stack import LIBRARY
from simulator.studies.search.axes import Axis, parse_axis

CAPS, CHUNKS = (128, 32), (2048,)
"""Batch caps and tokens of a step that are tried next to the stack's own (assumed: usual settings of engines)."""
Group = tuple[str, ...]
"""Overrides that make one layout, whose step times all variants of it share."""


def layouts(scenario: Scenario, over: Sequence[str]) -> list[Group]:
    """Layouts of a replica as overrides: those of `over`, or tensor parallelism within a node by powers of two, with
    and without a drafted token where the model has a module for it."""
    axes = [axis for axis in map(parse_axis, over) if not _of_scheduler(axis)]
    if axes:
        return [tuple(_set(axes, values)) for values in product(*(axis.values for axis in axes))]
    out = list(_tensor_parallel(scenario))
    drafts = load_model(scenario.job.model).num_nextn_predict_layers > 0
    return [(*group, f"serving.mtp_depth={depth}") for group in out for depth in (0, 1)] if drafts else out


def _of_scheduler(axis: Axis) -> bool:
    return axis.path.startswith("stack.scheduler.")


def _set(axes: Sequence[Axis], values: Sequence[str]) -> Iterator[str]:
    yield from (f"{axis.path}={value}" for axis, value in zip(axes, values, strict=True))


def _tensor_parallel(scenario: Scenario) -> Iterator[Group]:
    """Replicas of 1, 2, 4 ... GPUs; a layout with all-to-alls stays as the job has it."""
    model, layout = scenario.model, scenario.job.layout
    if model.is_moe and layout.ep > 1 and scenario.stack.dispatcher not in LIBRARY:
        yield ()
        return
    tp = 1
    while tp <= scenario.cluster.node.gpus:
        if model.num_attention_heads % tp == 0:
            experts = (f"layout.etp={tp}", "layout.ep=1") if model.is_moe else ()
            yield (f"gpus={tp}", f"layout.tp={tp}", *experts)
        tp *= 2


def variants(scenario: Scenario, over: Sequence[str]) -> list[Group]:
    """Settings of the scheduler as overrides, the stack's own first."""
    axes = [axis for axis in map(parse_axis, over) if _of_scheduler(axis)]
    if axes:
        return [tuple(_set(axes, values)) for values in product(*(axis.values for axis in axes))]
    scheduler = scenario.stack.scheduler
    assert scheduler is not None
    caps: list[Group] = [(), *((f"stack.scheduler.sequences={n}",) for n in CAPS if n < scheduler.sequences)]
    chunks: list[Group] = [()]
    if scheduler.chunked:
        chunks += [(f"stack.scheduler.step_tokens={n}",) for n in CHUNKS if n < scheduler.step_tokens]
    return [cap + chunk for cap in caps for chunk in chunks]
