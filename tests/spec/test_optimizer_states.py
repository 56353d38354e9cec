"""`[optimizer]` of a job over that of its stack, and what cannot be."""

from __future__ import annotations

import pytest

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.spec.states import WIDTHS, Optimizer, States, resolved

STACK = States(
    kind="adamw",
    parameters="bf16",
    gradients="fp32",
    reduced="fp32",
    masters="fp32",
    first_moment="fp32",
    second_moment="bf16",
)


def test_a_job_that_says_nothing_has_its_stacks_states() -> None:
    assert resolved(Optimizer(), STACK) == STACK


def test_what_a_kind_implies() -> None:
    eight = resolved(Optimizer(kind="adam8bit"), STACK)
    assert (eight.first_moment, eight.second_moment, eight.masters) == ("int8", "int8", "fp32")
    mixed = resolved(Optimizer(kind="adam8bit", first_moment="fp8"), STACK)
    assert (mixed.first_moment, mixed.second_moment) == ("fp8", "int8")
    plain = resolved(Optimizer(kind="sgd"), STACK)
    assert (plain.first_moment, plain.second_moment) == ("fp32", "none")
    none = resolved(Optimizer(kind="none"), STACK)
    assert (none.first_moment, none.second_moment, none.masters, none.updates) == ("none", "none", "none", False)


def test_fp32_parameters_are_their_own_masters() -> None:
    wide = resolved(Optimizer(parameters="fp32"), STACK)
    assert (wide.masters, wide.master_bytes) == ("none", 4.0)
    assert resolved(Optimizer(masters="none"), STACK).master_bytes == 2.0


def test_an_int8_moment_carries_its_share_of_a_scale() -> None:
    assert 256 * WIDTHS["int8"] == 256 + 4


@pytest.mark.parametrize(
    ("settings", "key", "said"),
    [
        (["parameters=fp32", "masters=fp32"], "masters", "their own masters"),
        (["kind=none", "masters=fp32"], "masters", "no states"),
        (["kind=none", "first_moment=bf16"], "first_moment", "no states"),
        (["kind=sgd", "second_moment=fp32"], "second_moment", "sgd has none"),
        (["first_moment=none"], "first_moment", "adamw needs it"),
        (["kind=muon", "second_moment=none"], "second_moment", "muon needs it"),
        (["kind=adam8bit", "second_moment=fp32"], "second_moment", "keeps int8 or fp8"),
        (["kind=muon"], "kind", "tp 2 x etp 1 splits them"),
    ],
)
def test_states_that_cannot_be_are_named(settings: list[str], key: str, said: str) -> None:
    found = check(load_scenario("llama-3-8b", ["layout.tp=2", *(f"optimizer.{one}" for one in settings)]))
    mine = [problem for problem in found if problem.rule == "optimizer states"]
    assert mine[0].key == f"optimizer.{key}"
    assert said in mine[0].message


def test_a_stacks_format_that_the_job_overrides_is_refused() -> None:
    with pytest.raises(InputError, match=r"the job says optimizer[.]gradients itself"):
        load_scenario("llama-3-8b", ["optimizer.gradients=bf16", "stack.optimizer.gradients=bf16"])
