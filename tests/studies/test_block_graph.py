"""Which block and which action an op graph is of."""

from __future__ import annotations

from typing import get_args

import pytest

from reports.verbs.showing.graph import _ACTIONS
from simulator.engine.lower import Programs
from simulator.errors import InputError
from simulator.inputs import load_model, load_scenario
from simulator.results.simulate import prepare
from simulator.routing.published_loads import with_equal_loads
from simulator.schedule import Pair
from simulator.spec.scenario import Scenario
from simulator.studies.block_graph import ACTIONS, ActionKind, actions_in, block_graphs, kind_of, program_of


def test_the_verb_knows_all_actions() -> None:
    assert _ACTIONS == ACTIONS == get_args(ActionKind)


def test_a_block_is_named_by_kind_by_number_or_not_at_all() -> None:
    model = load_model("deepseek-v3")
    numbers = ["0", "1", "3", "4", "61", "62", "63", "64"]
    kinds = ["embed", "dense", "dense", "moe", "moe", "head", "mtp", "moe"]
    assert [kind_of(number, model) for number in numbers] == kinds
    assert kind_of("head", model) == "head"
    assert kind_of(None, model) == "moe"
    assert kind_of(None, load_model("llama-3-8b")) == "dense"


@pytest.mark.parametrize("block", ["66", "-1", "moo", ""])
def test_a_block_that_does_not_exist_is_said(block: str) -> None:
    with pytest.raises(InputError, match=r"--block: .*embed, dense, moe, head, mtp and the numbers 0 .* to 65"):
        kind_of(block, load_model("deepseek-v3"))


@pytest.mark.parametrize(
    ("job", "actions"), [("tiny-dualpipe", ("pair",)), ("tiny-1f1b", ("F", "B")), ("tiny-zb1p", ("F", "I", "W"))]
)
def test_actions_are_those_of_the_schedule(job: str, actions: tuple[str, ...]) -> None:
    scenario = load_scenario(job)
    assert actions_in(prepare(scenario)[1]) == actions
    assert tuple(one.action for one in block_graphs(scenario)) == actions


def test_it_is_the_program_that_the_engines_run(v3: Scenario) -> None:
    """Where two stages hold one MoE layer each, the pair of a schedule is the pair of the block, with equal ranks."""
    built, schedule = prepare(with_equal_loads(v3), typical=False)
    pairs = [step for row in schedule.rows for step in row if isinstance(step, Pair)]
    one = ("moe",)
    pure = [p for p in pairs if set(built.stages[p.forward.stage]) == set(built.stages[p.backward.stage]) == set(one)]
    assert pure
    of_block, of_stage = program_of(built, "moe", "pair"), Programs(built).of(pure[0])
    assert {p.op for s in of_block.steps for p in s.sequence.ops} == {
        p.op for s in of_stage.steps for p in s.sequence.ops
    }
    layers = len(built.stages[pure[0].forward.stage])
    work = [sum(step.sequence.alone for step in program.steps) for program in (of_block, of_stage)]
    assert work[1] == pytest.approx(layers * work[0])


def test_software_that_does_not_overlap_runs_the_pair_in_sequence() -> None:
    overlapped = block_graphs(load_scenario("tiny-dualpipe"))[0]
    scenario = load_scenario("tiny-dualpipe", ["stack.overlapped_pair=false"])
    one_by_one = block_graphs(scenario)[0]
    assert (overlapped.overlapped, one_by_one.overlapped) == (True, False)
    forward, backward = block_graphs(scenario, None, ("F", "B"))
    assert one_by_one.seconds > overlapped.seconds
    assert one_by_one.seconds <= (forward.seconds + backward.seconds) * (1 + 1e-9)


def test_a_block_with_nothing_to_do_is_left_out_or_said() -> None:
    scenario = load_scenario("tiny-zb1p")
    assert "I" not in {one.action for one in block_graphs(scenario, "embed")}
    with pytest.raises(InputError, match="--action: I: nothing of a block of kind embed runs in it"):
        block_graphs(scenario, "embed", ("I",))
