"""DeepSeek-V3's measures for memory, each with what it saves: the same step forecast with that measure taken back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from simulator.engine.lower import PricedModel
from simulator.graph.shapes import Shapes
from simulator.graph.stage import build_blocks
from simulator.memory.account import memory_of_rows
from simulator.memory.assumptions import Assumptions
from simulator.schedule import Schedule
from simulator.spec.job import Module
from simulator.spec.recompute import NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A published measure that saves memory.

    Parameters
    ----------
    name : the measure.
    source : where it is published.
    peak_without : highest peak of a rank without it [B].
    saves : what it saves of that [B].
    """

    name: str
    source: str
    peak_without: float
    saves: float


Change = Callable[[PricedModel, Assumptions], tuple[PricedModel, Assumptions]]


def _rebuilt(built: PricedModel, shapes: Shapes) -> PricedModel:
    return replace(built, shapes=shapes, blocks=build_blocks(shapes))


def _keep(module: Module) -> Change:
    """The module kept from forward instead of recomputed."""

    def change(built: PricedModel, assumed: Assumptions) -> tuple[PricedModel, Assumptions]:
        return _rebuilt(built, replace(built.shapes, recompute=built.shapes.recompute - {module})), assumed

    return change


def _assume(**values: float | bool) -> Change:
    def change(built: PricedModel, assumed: Assumptions) -> tuple[PricedModel, Assumptions]:
        return built, replace(assumed, **values)  # type: ignore[arg-type]

    return change


def _bf16_activations(built: PricedModel, assumed: Assumptions) -> tuple[PricedModel, Assumptions]:
    return _rebuilt(built, built.shapes.in_bf16()), assumed


def _fp32_moments(built: PricedModel, assumed: Assumptions) -> tuple[PricedModel, Assumptions]:
    job = built.scenario.job
    wide = replace(job.optimizer, first_moment="fp32", second_moment="fp32")
    return replace(built, scenario=replace(built.scenario, job=replace(job, optimizer=wide))), assumed


def _all(built: PricedModel, assumed: Assumptions) -> tuple[PricedModel, Assumptions]:
    wide, assumed = _fp32_moments(built, assumed)
    back = replace(assumed, ema_on_gpu=True, share_mtp=False)
    return _rebuilt(wide, replace(built.shapes.in_bf16(), recompute=NOTHING)), back


_REPORT = "arXiv 2412.19437, section "
MEASURES: tuple[tuple[str, str, Change], ...] = (
    ("recompute RMSNorm", _REPORT + "3.2.3", _keep("norm")),
    ("recompute MLA up-projections", _REPORT + "3.2.3", _keep("mla_up")),
    ("recompute SwiGLU", _REPORT + "3.3.3", _keep("swiglu")),
    ("activations cached in FP8", _REPORT + "3.3.3", _bf16_activations),
    ("moments in BF16", _REPORT + "3.3.3", _fp32_moments),
    ("moving average of the weights on the CPU", _REPORT + "3.2.3", _assume(ema_on_gpu=True)),
    ("embedding and head shared with MTP", _REPORT + "3.2.3", _assume(share_mtp=False)),
    ("all of these", _REPORT + "3.2.3 and 3.3.3", _all),
)


def measures(built: PricedModel, schedule: Schedule, assumed: Assumptions | None = None) -> list[Measure]:
    """What each measure saves on the worst rank; meaningful for a plan that takes them."""
    with_all = assumed or Assumptions()
    built = replace(built, rendezvous=None)  # memory knows no waits, and a changed layer would have others
    peak = memory_of_rows(built, schedule, with_all).peak
    out = []
    for name, source, change in MEASURES:
        other = memory_of_rows(*_with(schedule, *change(built, with_all))).peak
        out.append(Measure(name=name, source=source, peak_without=other, saves=other - peak))
    return out


def _with(schedule: Schedule, built: PricedModel, assumed: Assumptions) -> tuple[PricedModel, Schedule, Assumptions]:
    return built, schedule, assumed
