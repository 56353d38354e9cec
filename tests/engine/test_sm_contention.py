"""Engine and cost model together reproduce the measured table of kernels concurrent with one that holds SMs.

Each kernel of `h200_sm_contention.csv` runs in the discrete-event engine, concurrent with a longer barrier (holds SMs)
or all-to-all (holds SMs and moves memory) on the other stream. No row of the table took part in a fit.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from hardware_profiles.calibration.concurrent import MOVER_RATE, contention
from hardware_profiles.calibration.sample import Sample
from simulator.cost.cost import Cost
from simulator.engine.des import simulate
from simulator.engine.kernel_sequence import Kind, Priced, sequence_of
from simulator.engine.pricing import pricer
from simulator.engine.tasks import COMM, COMPUTE, Tasks
from simulator.inputs import load_scenario
from simulator.ops import AllToAll, Fixed, Gate, Op

SMS = 132
LIMITS = {  # mean and worst error of a case
    "gemm_bf16_4096x24576x1536": (0.042, 0.1),
    "gemm_bf16_4096x1536x7168": (0.05, 0.18),
    "gemm_fp8_8192c": (0.05, 0.127),
    "attn_4096x128h": (0.03, 0.04),
    "rmsnorm_4096x7168": (0.06, 0.09),
}


def held_of(sample: Sample) -> int:
    return SMS - sample.sms


def compute_run(sample: Sample, held: int) -> tuple[Priced, float]:
    """The kernel of a row priced with a concurrent kernel of `held` SMs, as the engine gets it; and the gap after
    it."""
    scenario = load_scenario(
        "deepseek-v3-pretrain", ["hardware=h200", "stack.gemm_sms_reserved=false", f"overlap.comm_sms={held}"]
    )
    kernels = replace(scenario.cluster.kernels, comm_traffic=MOVER_RATE * held)
    scenario = replace(scenario, cluster=replace(scenario.cluster, kernels=kernels))
    all_to_all = AllToAll(
        direction="combine", tokens=1, hidden=1, bytes_per_token=1.0, ranks=64,
        gate=Gate(experts=256, top_k=8, groups=8, node_limit=4),
    )  # fmt: skip
    neighbour = Op(name="x", cls="comm.combine", part="F", segment="combine.F", work=all_to_all, stream="comm")
    op = Op(name="kernel", cls=sample.cls, part="F", segment="mlp.F", work=sample.work[0])
    return pricer(scenario, neighbour)(op), scenario.stack.kernel_gap


@cache
def in_engine(sample: Sample) -> float:
    """Time of the kernel with its concurrent neighbour [s]."""
    held = held_of(sample)
    priced, gap = compute_run(sample, max(1, held))
    tasks = Tasks(ranks=1, nic=1e9, nvlink=1e9)
    kernel = tasks.add(COMPUTE, sequence_of("compute", "kernel", [priced]), ())
    if held:
        kind: Kind = "all_to_all" if sample.traffic else "notify"
        forever = Op(name="neighbour", cls="comm.combine", part="F", segment="x", work=Fixed(), stream="comm")
        cost = Cost(duration=1.0, bound_by="fixed")
        tasks.add(COMM, sequence_of(kind, kind, [Priced(op=forever, cost=cost, durations=(1.0,) * 4)]), ())
    line = simulate(tasks)
    return line.end[kernel] - line.start[kernel] - gap


def rows(case: str, *, moves: bool | None = None) -> dict[int, Sample]:
    """Rows of a case by SMs held; those whose neighbour moves memory or not. With none held there is no neighbour."""
    mine = [s for s in contention() if s.label == case]
    return {held_of(s): s for s in mine if moves is None or not held_of(s) or (s.traffic > 0) == moves}


@pytest.mark.parametrize("case", LIMITS)
def test_the_table_is_reproduced(case: str) -> None:
    mine = [s for s in contention() if s.label == case]
    assert len(mine) == 22
    off = [abs(in_engine(s) / s.seconds - 1) for s in mine]
    mean, worst = LIMITS[case]
    assert sum(off) / len(off) <= mean
    assert max(off) <= worst


def test_attention_follows_the_sms_left() -> None:
    mine = rows("attn_4096x128h", moves=False)
    for held, row in mine.items():
        growth, measured = in_engine(row) / in_engine(mine[0]), row.seconds / mine[0].seconds
        assert growth == pytest.approx(measured, rel=0.03)
        assert growth == pytest.approx(SMS / (SMS - held), rel=0.06)  # both a little less: the last tile's tail stays


def test_an_exactly_filled_grid_jumps_at_the_first_sm_taken() -> None:
    """About as many tiles as SMs: one wave; with 4 SMs less it takes a second one, which 48 less still fit into."""
    mine = rows("gemm_bf16_4096x1536x7168", moves=False)
    for time in (in_engine, lambda row: row.seconds):
        assert time(mine[4]) > 1.4 * time(mine[0])
        assert time(mine[48]) == pytest.approx(time(mine[4]), rel=0.08)


@pytest.mark.parametrize("case", ["gemm_bf16_4096x24576x1536", "gemm_fp8_8192c"])
def test_persistent_gemms_go_in_steps(case: str) -> None:
    """Flat between counts of waves, jumping where one more begins: unlike attention, which changes with every SM."""
    for time in (in_engine, lambda row: row.seconds):
        mine = rows(case, moves=False)
        growth = [time(mine[b]) / time(mine[a]) for a, b in ((4, 8), (8, 12), (12, 16), (40, 48), (48, 64))]
        assert min(growth) < 1.01
        assert max(growth) > 1.1


def test_a_norm_hardly_notices_sms_but_does_notice_traffic() -> None:
    held, moving = rows("rmsnorm_4096x7168", moves=False), rows("rmsnorm_4096x7168", moves=True)
    for time in (in_engine, lambda row: row.seconds):
        assert time(held[64]) < 1.05 * time(held[0])
        assert time(moving[64]) > 1.3 * time(held[0])
        assert time(moving[20]) > 1.08 * time(held[20])


def test_overlap_of_half_the_time_costs_half_as_much() -> None:
    """The neighbour leaves while the kernel runs: the rest goes at full pace."""
    row = rows("attn_4096x128h", moves=False)[20]
    priced, gap = compute_run(row, 20)
    alone, held = (value - gap for value in priced.durations[:2])
    tasks = Tasks(ranks=1, nic=1e9, nvlink=1e9)
    kernel = tasks.add(COMPUTE, sequence_of("compute", "kernel", [priced]), ())
    barrier = Op(name="neighbour", cls="comm.notify", part="F", segment="x", work=Fixed(), stream="comm")
    half = priced.durations[1] / 2
    cost = Cost(duration=half, bound_by="fixed")
    tasks.add(COMM, sequence_of("notify", "notify", [Priced(op=barrier, cost=cost, durations=(half,) * 4)]), ())
    assert simulate(tasks).end[kernel] - gap == pytest.approx((alone + held) / 2, rel=1e-9)
