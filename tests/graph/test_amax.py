"""Reductions of the largest values of tensors under delayed scaling."""

from __future__ import annotations

import pytest

from simulator.engine.lower import lower, price_model
from simulator.engine.power import meeting_ranks
from simulator.graph.layer import dense_layer
from simulator.graph.precision.amax import with_amax
from simulator.graph.shapes import shapes_of
from simulator.inputs import load_scenario
from simulator.ops import Collective, Op
from simulator.results.simulate import schedule_of

DELAYED = ["stack=megatron-core", "precision.recipe=fp8_tensor", "precision.scaling=delayed", "hardware=h100"]
SIZES = ["gpus=64", "layout.tp=4", "layout.cp=1", "layout.pp=2", "layout.vpp=2", "layout.schedule=interleaved"]
JOB = [*DELAYED, *SIZES, "batch.global_batch_size=32", "model.num_hidden_layers=8", "layout.stages=even"]


def reductions(*changes: str) -> list[Op]:
    """All of a step, on both ranks of the pipeline."""
    scenario = load_scenario("llama-3-8b", [*JOB, *changes])
    schedule = schedule_of(scenario)
    tasks = lower(price_model(scenario, schedule.stages), schedule)
    return [one.op for part in tasks.sequence for one in part.ops if one.op.cls.startswith("comm.amax")]


@pytest.mark.parametrize(
    ("change", "ranks"),
    [
        ("gpus=64", 4 * 8),  # all that hold a stage: tp x dp
        ("stack.amax_group=tensor", 4),
        ("stack.amax_group=none", 0),
        ("precision.scaling=current", 0),  # scales are those of the tensor at hand
        ("precision.recipe=bf16", 0),
        ("stack=nemo-24", 4 * 8),
        ("stack=torch", 0),
    ],
)
def test_each_pass_over_the_layers_of_a_chunk_has_one(change: str, ranks: int) -> None:
    scenario = load_scenario("llama-3-8b", [*JOB, change])
    found = reductions(change)
    chunks, passes = 4, 2  # two stages of two chunks; forward and backward
    assert len(found) == (chunks * passes * scenario.job.microbatches if ranks else 0)
    assert {op.work.ranks for op in found if isinstance(op.work, Collective)} <= {ranks}
    assert meeting_ranks(scenario) == max(4, ranks)  # tensor parallelism meets anyway


def test_it_stands_behind_the_last_layer_and_behind_the_backward_of_the_first() -> None:
    shapes = shapes_of(load_scenario("llama-3-8b", JOB))
    layer = dense_layer(shapes)
    first, middle, last = with_amax([layer] * 3, shapes)
    names = [[op.name for part in (one.forward, one.backward) for seg in part for op in seg.ops if "amax" in op.name]
             for one in (first, middle, last)]  # fmt: skip
    behind = ["amax.join", "amax.all_reduce", "amax.update"]
    assert names == [behind, [], behind]
    assert first.forward == layer.forward == middle.forward
    assert last.backward == layer.backward == middle.backward
    four_gemms_a_layer = 3 * 4  # queries with keys and values, output, up with gate, down
    values = [op.work.bytes / 4 for seg in last.forward for op in seg.ops if isinstance(op.work, Collective)
              and op.name == "amax.all_reduce"]  # fmt: skip
    assert values == [3 * four_gemms_a_layer]  # of input, weight and output each
