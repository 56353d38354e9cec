"""Bubbles of whole simulated steps against the closed forms, with uniform stages and no communication.

A model of 8 equal dense layers on 8 stages whose embedding and head cost nothing, free links and no optimizer step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from simulator.cost.cost import Cost
from simulator.engine.des import simulate
from simulator.engine.kernel_sequence import Priced
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel, lower, price_model
from simulator.inputs import load_scenario
from simulator.ops import Op
from simulator.results.metrics import rank_times
from simulator.schedule import build, closed_form_bubble, peak_in_flight
from simulator.spec.workload import Training

PP, MICROBATCHES = 8, 24
SECONDS = {"F": 1.0, "I": 1.0, "R": 0.0, "W": 1.0}


@dataclass(frozen=True, eq=False)
class Uniform:
    """Prices a dense layer as F, I and W seconds, everything else as nothing."""

    seconds: dict[str, float]

    def __call__(self, op: Op) -> Priced:
        key = {"norm.attn.fwd": "F", "dense.down.dgrad": "I", "attn.o.wgrad": "W"}.get(op.name)
        value = self.seconds[key] if key else 0.0
        return Priced(op=op, cost=Cost(duration=value, bound_by="fixed"), durations=(value,) * 4)


def uniform_plan(schedule: str, stages: int, seconds: dict[str, float]) -> PricedModel:
    scenario = load_scenario(
        "deepseek-v3-pretrain",
        [
            f"layout.pp={PP}",
            f"layout.schedule={schedule}",
            f"model.num_hidden_layers={stages}",
            f"model.first_k_dense_replace={stages}",
            "model.num_nextn_predict_layers=0",
            "layout.stages=even",
        ],
    )
    built = price_model(scenario, stages)
    kinds = ("dense",)
    return replace(built, price=Uniform(seconds), imbalance=1.0, stages=(kinds,) * stages)


def idle(schedule: str, *, vpp: int = 1, seconds: dict[str, float] | None = None) -> list[float]:
    rows = build(schedule, pp=PP, microbatches=MICROBATCHES, vpp=vpp)
    tasks = lower(uniform_plan(schedule, rows.stages, seconds or SECONDS), rows, optimizer=False)
    events, quick = simulate(tasks), longest_path(tasks)
    assert events.end == quick.end
    return [times.phases["bubble"] for times in rank_times(events, Training())]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_1f1b_idles_pp_minus_1_times_f_plus_b(schedule: str) -> None:
    assert idle(schedule) == pytest.approx([(PP - 1) * (1 + 2)] * PP)


def test_zb1p_idles_pp_minus_1_times_f_plus_b_minus_2w() -> None:
    """On the wall clock every rank idles as much; in its own span only the first does (it starts first)."""
    expected = (PP - 1) * (1 + 2 - 2)
    assert closed_form_bubble("zb1p", PP, 1.0, 1.0, 1.0) == expected
    assert idle("zb1p") == pytest.approx([expected] * PP)


@pytest.mark.parametrize("schedule", ["dualpipe", "dualpipev"])
def test_dualpipe_idles_half_as_many_stages(schedule: str) -> None:
    """(PP/2-1)(F&B + B - 3W) on the worst rank; a pair without overlap takes F + B. DualPipeV: PP counts its stages."""
    stages = 2 * PP if schedule == "dualpipev" else PP
    assert max(idle(schedule)) == pytest.approx((stages / 2 - 1) * (3 + 2 - 3))


def test_interleaving_divides_the_bubble() -> None:
    """Bubble of interleaved 1F1B is that of 1F1B divided by vpp, for the same model: stages of 1/vpp the time."""
    halves = {key: value / 2 for key, value in SECONDS.items()}
    assert idle("interleaved", vpp=2, seconds=halves) == pytest.approx([(PP - 1) * 3 / 2] * PP)


def test_peak_microbatches_in_flight() -> None:
    assert max(peak_in_flight(build("1f1b", pp=PP, microbatches=MICROBATCHES, vpp=1))) == PP
    assert max(peak_in_flight(build("dualpipe", pp=PP, microbatches=MICROBATCHES, vpp=1))) == PP + 1
    assert max(peak_in_flight(build("gpipe", pp=PP, microbatches=MICROBATCHES, vpp=1))) == MICROBATCHES


def test_phases_add_up_to_the_step() -> None:
    rows = build("dualpipe", pp=PP, microbatches=MICROBATCHES, vpp=1)
    line = simulate(lower(uniform_plan("dualpipe", PP, SECONDS), rows, optimizer=False))
    for times in rank_times(line, Training()):
        assert sum(times.phases.values()) == pytest.approx(line.makespan)
