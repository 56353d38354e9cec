"""The report's suggestions for hardware, one at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.results.simulate import prepare, simulate
from simulator.studies.whatif import WHAT_IFS, apply


def step(scenario):
    return simulate(scenario, engine="longest-path").metrics["step_time_s"]


SLOW = ("straggler", "narrow-nic", "lost-rail", "late-hosts", "own-clocks")


@pytest.fixture(scope="module")
def base(v3):
    """The step time and the stages of the job as it is."""
    result = simulate(v3, engine="longest-path")
    return result.metrics["step_time_s"], prepare(v3)[0].stages


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WHAT_IFS if name not in SLOW])
def test_no_better_hardware_makes_v3_slower(v3, base, name):
    assert step(apply(v3, name)) <= base[0] * (1 + 1e-9)


@pytest.mark.parametrize("name", [name for name in SLOW if name != "own-clocks"])  # below the power limit here
def test_every_slow_part_makes_a_step_slower(name):
    tiny = load_scenario("tiny-dualpipe", ["stack.dispatcher=deepep"])
    assert step(apply(tiny, name)) > step(tiny)


@pytest.mark.parametrize("name", WHAT_IFS)
def test_each_changes_something_and_only_once(v3, name):
    changed = apply(v3, name)
    assert replace(changed, name=v3.name) != v3
    assert changed.name == f"deepseek-v3-pretrain + {name}"
    assert replace(apply(changed, name), name="") == replace(changed, name="")
    assert changed.model == v3.model


@pytest.mark.slow
@pytest.mark.parametrize("name", WHAT_IFS)
def test_layers_stay_on_their_stages(v3, base, name):
    assert prepare(apply(v3, name))[0].stages == base[1]


def test_a_coprocessor_frees_every_sm(v3):
    assert apply(v3, "coprocessor").job.overlap.comm_sms == 0


def test_nvlink_keeps_its_share_of_the_peak(v3):
    before, after = v3.cluster.node.nvlink, apply(v3, "nvlink-900").cluster.node.nvlink
    assert after.peak == 450e9
    assert after.bandwidth / after.peak == pytest.approx(before.bandwidth / before.peak)


@pytest.mark.slow
def test_bf16_runs_gain_nothing_from_fp8(v3):
    bf16 = replace(v3, job=replace(v3.job, precision=replace(v3.job.precision, recipe="bf16")))
    before = step(bf16)
    for name in ("fp8-accumulation", "fused-casts"):
        assert step(apply(bf16, name)) == pytest.approx(before)


def test_every_what_if_says_what_it_assumes_and_where_it_is_from():
    for one in WHAT_IFS.values():
        assert one.asks
        assert one.assumes
        assert one.source


def test_a_typo_names_the_nearest(v3):
    with pytest.raises(InputError, match="did you mean nvlink-900"):
        apply(v3, "nvlink900")
