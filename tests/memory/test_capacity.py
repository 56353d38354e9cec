"""Verdicts on memory: what CUDA reports, less what stays free, against the range of the allocator's reserve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPricesMemo
from simulator.inputs import list_names, load_hardware, load_scenario
from simulator.inputs.check import check
from simulator.memory import MemoryReport, memory_of_rows
from simulator.memory.capacity import headroom, usable
from simulator.results.simulate import prepare
from simulator.spec.scenario import Scenario
from simulator.studies.feasibility import problems

JOB = "tiny-1f1b"


def report(*overrides: str) -> MemoryReport:
    return memory_of_rows(*prepare(load_scenario(JOB, overrides)))


def test_capacities_are_those_that_cuda_reports() -> None:
    """Below the size in the GPU's name taken in GiB, and for Hopper and Ampere above it taken in GB."""
    for name, size in (("h100", 80), ("h800", 80), ("a100", 80), ("h200", 141), ("h100-hbm2e", 96), ("h20", 96)):
        assert size * 1e9 < load_hardware(name).gpu.hbm_bytes < size * 2**30
    assert load_hardware("h100").gpu.hbm_bytes == pytest.approx(79.10 * 2**30, rel=1e-4)
    assert load_hardware("b200").gpu.hbm_bytes == pytest.approx(178.35 * 2**30, rel=1e-4)


@pytest.mark.parametrize("name", list_names("hardware"))
def test_every_capacity_has_a_source_of_its_own(name: str) -> None:
    source = load_hardware(name).sources["gpu.hbm_bytes"]
    assert "GiB" in source or "MiB" in source


def test_the_reserve_is_a_share_of_what_moves() -> None:
    found = report("memory.reserve=[0.02, 0.2]")
    worst = found.worst
    moving = worst.group("activations") + worst.group("temporary")
    fixed = worst.peak - worst.group("slack") - moving
    assert found.least == pytest.approx(fixed + 1.02 * moving)
    assert found.most == pytest.approx(fixed + 1.2 * moving)


@pytest.mark.parametrize(("at", "answer"), [("most", "fits"), ("peak", "tight"), ("least", "does not fit")])
def test_three_verdicts(at: str, answer: str) -> None:
    """On the edge of each: a byte more than the most fits, the mean is tight, a byte less than the least does not."""
    size = getattr(report(), at) + {"most": 1, "peak": 0, "least": -1}[at]
    found = report(f"hardware.gpu.hbm_bytes={size!r}")
    assert (found.answer, found.fits) == (answer, answer != "does not fit")
    assert found.verdict()["answer"] == answer


def test_headroom_is_left_free_as_share_and_as_bytes() -> None:
    scenario = load_scenario(JOB, ["memory.headroom=0.1", "memory.headroom_bytes=2e9"])
    whole = scenario.cluster.gpu.hbm_bytes
    assert headroom(scenario) == pytest.approx(0.1 * whole + 2e9)
    assert usable(scenario) == pytest.approx(0.9 * whole - 2e9)
    free = report().capacity - report().least
    assert report(f"memory.headroom_bytes={free - 1e6}").fits
    assert not report(f"memory.headroom_bytes={free + 1e6}").fits


def test_search_and_report_agree_on_what_fits() -> None:
    size = report().least
    for room, runs in ((1.0001, True), (0.9999, False)):
        scenario = load_scenario(JOB, [f"hardware.gpu.hbm_bytes={size * room!r}"])
        found = estimate(scenario, SharedPricesMemo().of(scenario), within=usable(scenario))
        assert (found.step is not None) is runs is memory_of_rows(*prepare(scenario)).fits
        assert found.least == pytest.approx(size)


def rules(scenario: Scenario) -> list[tuple[str, str]]:
    return [(problem.key, problem.severity) for problem in problems(scenario) if problem.rule == "memory"]


def test_check_warns_of_a_tight_job_and_refuses_one_that_does_not_fit() -> None:
    tight = load_scenario(JOB, [f"hardware.gpu.hbm_bytes={report().peak!r}"])
    assert rules(tight) == [("memory.reserve", "warning")]
    short = load_scenario(JOB, [f"hardware.gpu.hbm_bytes={0.9 * report().least!r}"])
    assert rules(short) == [("hardware.gpu.hbm_bytes", "error")]
    assert rules(load_scenario(JOB)) == []


def test_what_cannot_be_is_named() -> None:
    scenario = load_scenario(JOB)
    for change, key in (
        ({"reserve": (0.2, 0.1)}, "memory.reserve"),
        ({"headroom_bytes": 1e12}, "memory.headroom_bytes"),
        ({"headroom": 0.9, "headroom_bytes": 20e9}, "memory.headroom_bytes"),
    ):
        memory = replace(scenario.job.memory, **change)
        broken = check(replace(scenario, job=replace(scenario.job, memory=memory)))
        assert [problem.key for problem in broken] == [key]
