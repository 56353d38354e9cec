"""Offloading to the host: what leaves the GPU, what copies cost, and that engines and quick estimate agree."""

from __future__ import annotations

import pytest

from simulator.cost.host_cost import host_cost
from simulator.engine.priced_model import offloaded_layers
from simulator.errors import InputError
from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import load_hardware, load_scenario
from simulator.inputs.check import check
from simulator.memory import memory_of, memory_of_rows
from simulator.ops import HostWork
from simulator.results.result import Result
from simulator.results.simulate import prepare, simulate, timeline_of
from simulator.spec.model import BlockKind

JOB = ["hardware=h100", "gpus=4", "layout.tp=1", "layout.pp=4", "batch.global_batch_size=4", "layout.stages=even"]
JOB += ["batch.sequence_length=4096", "batch.microbatch_size=1", "stack=megatron-core", "layout.recompute=none"]


def result(*changes: str, engine: str = "longest-path") -> Result:
    return simulate(load_scenario("llama-3-8b", [*JOB, *changes]), engine=engine)  # type: ignore[arg-type]


def test_copies_one_after_the_other_or_at_once() -> None:
    cluster = load_hardware("h100")
    host = cluster.node.host
    assert host is not None
    work = HostWork(to_host=52e9, from_host=26e9, memory=61e9)
    assert host_cost(work, cluster).duration == pytest.approx(1.0 + 0.5 + 1.0)
    together = HostWork(to_host=52e9, from_host=26e9, memory=122e9, overlapped=True)
    assert host_cost(together, cluster).duration == pytest.approx(2.0)


def test_an_offloaded_optimizer_leaves_and_is_updated_by_the_cpu() -> None:
    """Half of 12 B a parameter leaves the GPU; gradients of 4 B go there, weights of 2 B come back."""
    here, away = result(), result("offload.optimizer=0.5")
    rank = here.memory.ranks[1]
    parameters = rank.group("optimizer") / 12
    assert away.memory.ranks[1].group("optimizer") == pytest.approx(6 * parameters)
    assert away.memory.host == pytest.approx(6 * max(r.group("optimizer") for r in here.memory.ranks) / 12)
    last = here.memory.ranks[3].group("optimizer") / 12  # the last rank has the head, and ends last
    by_cpu = 0.5 * last * (4 / 52e9 + (16 + 14) / 61e9 + 2 / 52e9)
    saved = 0.5 * sum(c.seconds for c in here.classes if c.cls == "optimizer")
    longer = away.metrics["step_time_s"] - here.metrics["step_time_s"]
    assert by_cpu - 3 * saved < longer < by_cpu
    assert any(c.cls == "optimizer.host" for c in away.classes)


def test_overlap_makes_the_update_of_the_cpu_shorter() -> None:
    apart, together = (
        result("offload.optimizer=1", f"stack.host_update_overlap={how}").metrics["step_time_s"]
        for how in ("false", "true")
    )
    assert together < apart


def test_all_layers_but_the_last_are_offloaded() -> None:
    assert offloaded_layers((BlockKind.EMBED, BlockKind.DENSE, BlockKind.DENSE, BlockKind.HEAD)) == [1]
    assert offloaded_layers((BlockKind.DENSE,)) == []


def test_offloaded_activations_by_hand() -> None:
    """Rank 1 of 4 has 3 microbatches of 8 layers: of 7 layers each, all leaves but what is on its way."""
    here, away = (prepare(load_scenario("llama-3-8b", [*JOB, *more])) for more in ([], ["offload.activations=1"]))
    layer = here[0].blocks[BlockKind.DENSE].saved_bytes
    before, after = memory_of_rows(*here).ranks[1], memory_of_rows(*away).ranks[1]
    assert before.group("activations") == pytest.approx(24 * layer)
    assert 3 * layer <= after.group("activations") <= 6 * layer
    assert memory_of_rows(*away).host == pytest.approx(4 * 7 * layer)  # rank 0 has four microbatches
    timed = memory_of(*away, timeline_of(*away, "events"))
    assert timed.ranks[1].group("activations") <= 8 * layer


def test_what_cannot_hide_behind_compute_takes_time() -> None:
    fast = ["hardware.node.host.bandwidth=1e15", "offload.activations=1"]
    slow = ["hardware.node.host.bandwidth=1e9", "offload.activations=1"]
    base, hidden, exposed = result(), result(*fast), result(*slow)
    assert hidden.metrics["step_time_s"] == pytest.approx(base.metrics["step_time_s"], rel=1e-5)
    layer = base.built.blocks[BlockKind.DENSE].saved_bytes
    assert exposed.metrics["step_time_s"] > base.metrics["step_time_s"] + 4 * 7 * layer / 1e9
    for rank in exposed.ranks:
        assert sum(rank.phases.values()) == pytest.approx(exposed.metrics["step_time_s"])


@pytest.mark.parametrize("changes", [["offload.activations=0.5"], ["offload.optimizer=1", "offload.activations=1"]])
def test_engines_and_the_quick_estimate_agree(changes: list[str]) -> None:
    scenario = load_scenario("llama-3-8b", [*JOB, *changes])
    quick, events = result(*changes), result(*changes, engine="events")
    assert quick.metrics["step_time_s"] == pytest.approx(events.metrics["step_time_s"], rel=1e-3)
    found = estimate(scenario, SharedPrices(scenario, "longest-path"))
    assert found.step == pytest.approx(quick.metrics["step_time_s"], rel=0.03)
    assert found.memory == pytest.approx(quick.memory.peak, rel=0.03)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["offload.optimizer=2"], "offload.optimizer: 2.0: must be from 0 to 1"),
        (["offload.optimizer=1", "optimizer.kind=muon", "layout.tp=1"], "has nothing that the CPU updates"),
    ],
)
def test_what_cannot_be_is_refused(changes: list[str], error: str) -> None:
    try:
        found = [str(one) for one in check(load_scenario("llama-3-8b", [*JOB, *changes]))]
    except InputError as problem:
        found = [str(problem)]
    assert any(error in one for one in found), found


def test_more_than_the_host_has_does_not_fit() -> None:
    small = result("offload.optimizer=1", "hardware.node.host.memory_bytes=1e9").memory
    assert small.answer == "does not fit"
    assert result("offload.optimizer=1").memory.answer != "does not fit"
