"""A step priced again is the step unrolled again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.engine.lower import lower, priced_again
from simulator.inputs import load_scenario
from simulator.results.simulate import prepare

CASES = (
    ("tiny-dualpipe",),
    ("tiny-zb1p", "stack.wgrad_fills_waits=true"),
    ("tiny-interleaved", "layout.zero=1"),
    ("tiny-1f1b", "layout.zero=3", "stack.grad_sync_overlap=true"),
    ("tiny-1f1b", "routing.kind=skewed", "routing.max_over_mean=1.3"),
    ("deepseek-v3-decode",),
)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_step_priced_again_is_the_step_unrolled_again(case: tuple[str, ...]) -> None:
    built, schedule = prepare(load_scenario(case[0], case[1:]))
    assert built.unrolled is not None
    again, anew = priced_again(built.unrolled, built), lower(replace(built, unrolled=None), schedule)
    assert again is not None
    for name in ("lane", "preds", "peer", "release", "actions"):
        assert getattr(again, name) == getattr(anew, name)
    for one, other in zip(again.sequence, anew.sequence, strict=True):
        assert (one.kind, one.name, one.cumulative, one.nic, one.nvlink, one.held, one.sensitive) == (
            other.kind,
            other.name,
            other.cumulative,
            other.nic,
            other.nvlink,
            other.held,
            other.sensitive,
        )
        assert [(part.op.cls, part.op.name, part.cost) for part in one.ops] == [
            (part.op.cls, part.op.name, part.cost) for part in other.ops
        ]


def test_a_host_that_issues_or_other_stages_take_a_step_unrolled_anew() -> None:
    built, _ = prepare(load_scenario("tiny-1f1b", ["stack=megatron-core", "precision.recipe=bf16"]))
    assert built.unrolled is not None
    assert built.unrolled.tasks.release
    assert priced_again(built.unrolled, built) is None
    built, _ = prepare(load_scenario("tiny-dualpipe"))
    assert built.unrolled is not None
    elsewhere = (*built.stages[1:], built.stages[0])
    assert priced_again(built.unrolled, replace(built, stages=elsewhere)) is None
