"""DeepSeek-V3's measures for memory, each with what it saves: the same step forecast with that measure taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from simulator.engine.lower import Plan
from simulator.graph.shapes import Shapes
from simulator.graph.stage import build_blocks
from simulator.memory.account import memory_of_rows
from simulator.memory.assumptions import Assumptions, assumptions_for
from simulator.schedule import Schedule


class _KeepNorms(Shapes):
    """Shapes whose RMSNorm outputs are kept."""

    @property
    def recompute_norms(self) -> bool:
        """Never."""
        return False


class _KeepUpProjections(Shapes):
    """Shapes whose MLA up-projections are kept."""

    @property
    def recompute_mla_up(self) -> bool:
        """Never."""
        return False


class _KeepSwiglu(Shapes):
    """Shapes whose SwiGLU outputs are kept."""

    @property
    def recompute_swiglu(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A measure, where it is published, and the peak memory of the worst rank without it [B]; `saves` [B]."""

    name: str
    source: str
    peak_without: float
    saves: float


Change = Callable[[Plan, Assumptions], tuple[Plan, Assumptions]]


def _rebuilt(plan: Plan, shapes: Shapes) -> Plan:
    return replace(plan, shapes=shapes, blocks=build_blocks(shapes, plan.scenario.cluster.gpu.sms))


def _as(cls: type[Shapes]) -> Change:
    def change(plan: Plan, assumed: Assumptions) -> tuple[Plan, Assumptions]:
        return _rebuilt(plan, cls(**{f.name: getattr(plan.shapes, f.name) for f in fields(plan.shapes)})), assumed

    return change


def _assume(**values: float | bool) -> Change:
    def change(plan: Plan, assumed: Assumptions) -> tuple[Plan, Assumptions]:
        return plan, replace(assumed, **values)  # type: ignore[arg-type]

    return change


def _bf16_activations(plan: Plan, assumed: Assumptions) -> tuple[Plan, Assumptions]:
    return _rebuilt(plan, replace(plan.shapes, recipe="bf16")), assumed


def _all(plan: Plan, assumed: Assumptions) -> tuple[Plan, Assumptions]:
    job = replace(plan.shapes.job, layout=replace(plan.shapes.job.layout, recompute="none"))
    back = replace(assumed, ema_on_gpu=True, share_mtp=False, moment=4.0)
    return _rebuilt(plan, replace(plan.shapes, recipe="bf16", job=job)), back


_REPORT = "arXiv 2412.19437, section "
MEASURES: tuple[tuple[str, str, Change], ...] = (
    ("recompute RMSNorm", _REPORT + "3.2.3", _as(_KeepNorms)),
    ("recompute MLA up-projections", _REPORT + "3.2.3", _as(_KeepUpProjections)),
    ("recompute SwiGLU", _REPORT + "3.3.3", _as(_KeepSwiglu)),
    ("activations cached in FP8", _REPORT + "3.3.3", _bf16_activations),
    ("moments in BF16", _REPORT + "3.3.3", _assume(moment=4.0)),
    ("moving average of the weights on the CPU", _REPORT + "3.2.3", _assume(ema_on_gpu=True)),
    ("embedding and head shared with MTP", _REPORT + "3.2.3", _assume(share_mtp=False)),
    ("all of these", _REPORT + "3.2.3 and 3.3.3", _all),
)


def measures(plan: Plan, schedule: Schedule, assumed: Assumptions | None = None) -> list[Measure]:
    """What each measure saves on the worst rank; meaningful for a plan that takes them."""
    with_all = assumed or assumptions_for(plan.scenario)
    peak = memory_of_rows(plan, schedule, with_all).peak
    out = []
    for name, source, change in MEASURES:
        other = memory_of_rows(*_with(schedule, *change(plan, with_all))).peak
        out.append(Measure(name=name, source=source, peak_without=other, saves=other - peak))
    return out


def _with(schedule: Schedule, plan: Plan, assumed: Assumptions) -> tuple[Plan, Schedule, Assumptions]:
    return plan, schedule, assumed
