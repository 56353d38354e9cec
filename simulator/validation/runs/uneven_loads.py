"""What uneven loads cost: published throughput over that with forced balance, next to what the quick engine says.

`python -m simulator.validation.runs.uneven_loads` prints the table. The source (arXiv 2606.04101, figure 11) does not
name its GPUs: racks of 64, BF16, Megatron-LM without a balancer. Taken are GB200 in racks of 64, microbatches of one
sequence of 4096 tokens and full recomputation; popularities are sampled so that the most loaded rank has the published
load. Nothing is fitted to these figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import load_scenario
from simulator.routing.published_loads import PublishedLoad, default_loads, published_loads
from simulator.validation.training_figures import DENSE, overrides_of

RUNS = {
    "ultraep.v3": overrides_of(model="deepseek-v3", model__num_nextn_predict_layers=0, layout__pp=4),
    "ultraep.qwen3": overrides_of(model="qwen3-235b-a22b", layout__pp=1),
}
"""Measured load -> its model and stages; all on 256 GPUs, 64 ranks a group."""

PLACES = {"ultraep.v3": 0.0, "ultraep.qwen3": 1.0}
"""Measured load -> where in the range of what jobs take it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnevenRun:
    """A measured load, and the throughput with it over that with equal loads, as forecast."""

    load: PublishedLoad
    forecast: float


def uneven_runs() -> Iterator[UnevenRun]:
    """Every published run whose layout is known."""
    for load in published_loads():
        if load.id in RUNS:
            even, uneven = (_seconds(load.id, routing) for routing in (EQUAL, _routing(load)))
            yield UnevenRun(load=load, forecast=even / uneven)


EQUAL = ("routing.kind=uniform",)


def _routing(load: PublishedLoad) -> tuple[str, ...]:
    taken = next(one for one in default_loads() if one.gate == load.gate).at(PLACES[load.id])
    return overrides_of(routing__kind="sampled", routing__cv=taken.cv, routing__microbatch_cv=taken.microbatch_cv)


def _seconds(name: str, routing: tuple[str, ...]) -> float:
    """The step time [s]."""
    run = overrides_of(
        hardware="gb200",
        hardware__node__gpus=64,
        stack="megatron-core",
        stack__dispatcher="hybrid_ep",
        gpus=256,
        layout__tp=1,
        layout__ep=64,
        layout__schedule="1f1b",
        layout__recompute="full",
        layout__zero=1,
        precision__recipe="bf16",
        overlap__comm_sms=16,
        batch__sequence_length=4096,
        batch__microbatch_size=1,
        batch__global_batch_size=5120,
    )
    scenario = load_scenario(DENSE, (*RUNS[name], *run, *routing))
    step = estimate(scenario, SharedPrices(scenario, "events")).step
    assert step is not None
    return step


def main() -> None:
    """Print the table."""
    print("| run | most loaded rank | throughput, published | forecast |\n|---|-:|-:|-:|")
    for one in uneven_runs():
        print(f"| {one.load.id} | {one.load.max_over_mean:.2f} | {one.load.throughput:.2f} | {one.forecast:.2f} |")


if __name__ == "__main__":
    main()
