"""`foretrain explain`: every op has its reason, and the tornado points the right way."""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from cli import foretrain
from reports.terminal.explain_tables import _tornado
from simulator.inputs import load_scenario
from simulator.results.simulate import prepare
from simulator.studies.explain import explain
from simulator.studies.sensitivity import Bar, Tornado, knobs, tornado

V3 = "deepseek-v3-pretrain"


def run(*args: str) -> Result:
    return CliRunner().invoke(foretrain, ["explain", *args])


def asked(*args: str) -> dict[str, Any]:
    result = run(*args, "--json", "--no-sensitivity")
    assert result.exit_code == 0, result.stderr
    return dict(json.loads(result.stdout))


def test_every_op_has_work_formula_source_and_limit() -> None:
    found = explain(load_scenario(V3))
    assert len(found.ops) > 250
    for one in found.ops:
        cost = one.priced.cost
        assert cost.formula, one.priced.op.name
        assert cost.source, one.priced.op.name
        assert one.alone > 0
        assert one.concurrent >= one.alone * 0.999


def test_blocks_are_the_sum_of_their_ops() -> None:
    found = explain(load_scenario(V3))
    assert {block.kind: block.count for block in found.blocks} == {
        "embed": 1,
        "dense": 3,
        "moe": 59,
        "head": 2,
        "mtp": 1,
    }
    for block in found.blocks:
        assert block.total == pytest.approx(sum(one.alone for one in found.ops if one.block == block.kind))


def test_numbers_of_a_formula_follow_the_job() -> None:
    half = asked(V3, "--op", "attn.core.fwd", "--set", "batch.sequence_length=2048")["ops"]
    full = asked(V3, "--op", "attn.core.fwd")["ops"]
    assert [one["op"] for one in full] == ["attn.core.fwd"] * 2
    assert full[0]["work"]["seq_q"] == 2 * half[0]["work"]["seq_q"]
    assert 2 < full[0]["alone_us"] / half[0]["alone_us"] < 4.5


@pytest.mark.parametrize("pattern", ["mlp.W", "gemm.fp8*", "attn.q_b.*", "moe/*", "comm.dispatch"])
def test_ops_are_picked_by_name_class_segment_or_block(pattern: str) -> None:
    assert 0 < len(asked(V3, "--op", pattern)["ops"]) < len(explain(load_scenario(V3)).ops)


def test_the_verb_as_text() -> None:
    text = run("tiny-1f1b", "--no-sensitivity")
    assert text.exit_code == 0, text.stderr
    assert all(len(line) <= 80 for line in text.stdout.splitlines())
    assert "Blocks" in text.stdout
    assert "Sensitivity" not in text.stdout


def test_an_op_that_does_not_exist_is_said() -> None:
    result = run(V3, "--op", "nothing.*")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def swings() -> Tornado:
    return tornado("tiny-dualpipe", processes=1)


@pytest.mark.slow
def test_better_hardware_never_slows_the_step(swings: Tornado) -> None:
    moved = {swing.knob.path: swing for swing in swings.swings}
    for path in ("hardware.gpu.peak.fp8", "hardware.gpu.hbm_bandwidth", "hardware.node.nic.bandwidth"):
        assert moved[path].at_low >= swings.base * (1 - 1e-9) >= moved[path].at_high * (1 - 1e-9), path
    gap = moved["stack.kernel_gap"]
    assert gap.at_low < swings.base < gap.at_high


@pytest.mark.slow
def test_swings_are_sorted_and_matter(swings: Tornado) -> None:
    widths = [swing.width() for swing in swings.swings]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 0
    assert swings.base > 0


@pytest.mark.slow
def test_two_processes_find_the_same() -> None:
    small = ("layout.pp=1", "batch.global_batch_size=64", "model.num_hidden_layers=2")
    one = tornado("tiny-1f1b", small, processes=1)
    two = tornado("tiny-1f1b", small, processes=2)
    assert one == two


def test_knobs_are_ten_percent_wide_or_as_the_source_says() -> None:
    scenario = load_scenario(V3)
    for knob in knobs(scenario):
        assert knob.low < knob.high
        if knob.path == "hardware.gpu.sms":
            assert (knob.low, knob.high) == (119, 145)
    paths = {knob.path: knob.kind for knob in knobs(scenario)}
    assert paths["hardware.gpu.peak.fp8"] == "hardware"
    assert paths["hardware.fabric.notify.alpha"] == "assumed"
    assert prepare(scenario)[0].imbalance >= 1.0


def test_set_takes_every_name_that_the_tornado_prints() -> None:
    moved = knobs(load_scenario(V3))
    for knob in moved:
        load_scenario(V3, [f"{knob.path}={knob.value}"])
    bars = tuple(Bar(knob=knob, at_low=1.0, at_high=2.0) for knob in moved)
    found = Tornado(base=1.5, engine="longest-path", swings=bars)
    shown = StringIO()
    Console(width=80, file=shown).print(_tornado(found, verbose=True))
    printed = {line.split()[0] for line in shown.getvalue().splitlines() if "%" in line}
    assert printed == {knob.path for knob in moved}


def test_an_op_that_is_not_there_is_answered_by_the_nearest() -> None:
    said = run(V3, "--op", "attn.core.fw", "--no-sensitivity")
    assert said.exit_code == 2
    assert said.stderr.endswith("did you mean attn.core.fwd?\n")
    assert run(V3, "--op", "zzz", "--no-sensitivity").stderr.endswith("try attn.* or gemm.*\n")
