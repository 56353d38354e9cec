"""Which deployments are tried: layouts of a replica, caps of the batch, sizes of chunks, drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from simulator.inputs import load_model
from simulator.spec.scenario import Scenario
from simulator.spec.serving import expert_slots
from simulator.spec.stack import LIBRARY
from simulator.studies.search.axes import Axis, parse_axis

CAPS, CHUNKS = (128, 32), (2048,)
"""Batch caps and tokens of a step that are tried next to the stack's own (assumed: usual settings of engines)."""
Group = tuple[str, ...]
"""Overrides that make one layout, whose step times all variants of it share."""


def layouts(scenario: Scenario, over: Sequence[str]) -> list[Group]:
    """Layouts of a replica as overrides: those of `over`, or tensor parallelism within a node by powers of two and, of
    models with experts, expert parallelism; with and without a drafted token where the model has a module for it."""
    axes = [axis for axis in map(parse_axis, over) if not _of_scheduler(axis)]
    if axes:
        return [tuple(_set(axes, values)) for values in product(*(axis.values for axis in axes))]
    out = list(_expert_parallel(scenario) if _by_all_to_all(scenario) else _tensor_parallel(scenario))
    drafts = load_model(scenario.job.model).num_nextn_predict_layers > 0
    return [(*group, f"serving.mtp_depth={depth}") for group in out for depth in (0, 1)] if drafts else out


def _of_scheduler(axis: Axis) -> bool:
    return axis.path.startswith("stack.scheduler.")


def _set(axes: Sequence[Axis], values: Sequence[str]) -> Iterator[str]:
    yield from (f"{axis.path}={value}" for axis, value in zip(axes, values, strict=True))


def _by_all_to_all(scenario: Scenario) -> bool:
    return scenario.model.is_moe and scenario.stack.dispatcher not in LIBRARY


def _powers(first: int, last: int) -> Iterator[int]:
    """`first`, twice as many ... up to `last`."""
    while first <= last:
        yield first
        first *= 2


def _expert_parallel(scenario: Scenario) -> Iterator[Group]:
    """Experts spread by all-to-alls: as the job has them, then over a node, two, four ... up to twice the job's ranks.

    Attention is data-parallel, as far as the job's tensor parallelism leaves it so.
    """
    layout, serving = scenario.job.layout, scenario.job.serving
    assert serving is not None
    yield ()
    slots = expert_slots(scenario.model, serving)
    for ranks in _powers(max(scenario.cluster.node.gpus, layout.tp), 2 * layout.ep):
        if ranks != layout.ep and slots % ranks == 0:
            yield (f"gpus={ranks}", f"layout.ep={ranks}", "layout.etp=1")


def _tensor_parallel(scenario: Scenario) -> Iterator[Group]:
    """Replicas of 1, 2, 4 ... GPUs of a node that share the heads. Experts are cut into as many parts, or spread over
    the GPUs; and, with attention data-parallel, spread over ranks that gather each other's tokens."""
    model = scenario.model
    for gpus in _powers(1, scenario.cluster.node.gpus):
        if model.num_attention_heads % gpus == 0:
            experts = (f"layout.etp={gpus}", "layout.ep=1") if model.is_moe else ()
            yield (f"gpus={gpus}", f"layout.tp={gpus}", *experts)
        if model.is_moe and gpus > 1 and model.n_routed_experts % gpus == 0:
            spread = ("layout.etp=1", f"layout.ep={gpus}")
            if model.num_attention_heads % gpus == 0:
                yield (f"gpus={gpus}", f"layout.tp={gpus}", *spread)
            yield (f"gpus={gpus}", "layout.tp=1", *spread)


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
