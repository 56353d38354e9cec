"""Shared experts overlapped with the all-to-alls, or alone: where their ops are, and what a step takes."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.inputs import load_scenario
from simulator.results.simulate import prepare, simulate

NO_HOST = ("hardware.node.host_pace=0",)
"""Kernels of so small a model are shorter than their issue."""
JOBS = [
    ("tiny-1f1b", ()),
    ("tiny-1f1b", ("precision.recipe=bf16", "stack=megatron-core")),
    ("tiny-1f1b", ("layout.tp=2", "stack=torch", "layout.recompute=selective", *NO_HOST)),
    ("tiny-dualpipe", ("layout.recompute=full",)),
]


def _moe(job: str, overrides: tuple[str, ...], overlap: str) -> Block:
    scenario = load_scenario(job, [*overrides, f"stack.shared_expert_overlap={overlap}"])
    return prepare(scenario)[0].blocks["moe"]


def _segments(block: Block) -> set[str]:
    return {op.segment.partition(".")[0] for op in block.ops() if op.name.startswith("shared.")}


@pytest.mark.parametrize(("job", "overrides"), JOBS)
def test_both_orders_do_the_same_work(job: str, overrides: tuple[str, ...]) -> None:
    overlapped, alone = (_moe(job, overrides, overlap) for overlap in ("true", "false"))
    assert not problems(overlapped)
    assert not problems(alone)
    assert sorted(op.name for op in overlapped.ops()) == sorted(op.name for op in alone.ops())
    assert sum(op.flops for op in overlapped.ops()) == pytest.approx(sum(op.flops for op in alone.ops()), rel=1e-12)
    assert overlapped.saved_bytes == pytest.approx(alone.saved_bytes, rel=1e-12)


def test_they_stand_with_the_experts_or_before_the_dispatch() -> None:
    assert _segments(_moe("tiny-1f1b", (), "true")) == {"mlp"}
    alone = _moe("tiny-1f1b", (), "false")
    assert _segments(alone) == {"attn"}
    names = [op.name for segment in alone.forward for op in segment.ops]
    assert names.index("shared.down.fwd") < names.index("moe.dispatch.fwd.a2a")


@pytest.mark.parametrize(("job", "overrides"), JOBS)
def test_a_step_without_the_overlap_exposes_more(job: str, overrides: tuple[str, ...]) -> None:
    overlapped, alone = (
        simulate(load_scenario(job, [*overrides, f"stack.shared_expert_overlap={overlap}"])).metrics
        for overlap in ("true", "false")
    )
    assert alone["step_time_s"] > overlapped["step_time_s"]
    assert alone["exposed_comm_s"] > overlapped["exposed_comm_s"]
