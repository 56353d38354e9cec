"""Layers of short convolutions (LFM2): their ops, what is kept, cache and parallelism."""

from __future__ import annotations

import pytest

from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.architectures.lfm2 import SHIPPED
from simulator.inputs.check import check
from simulator.memory.serving import kv_cache_bytes
from simulator.ops import Op, Streaming
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario
from simulator.validation.public_models import public_model

WIDE, TOKENS = 4096, 4096
SIZES = (
    "model.num_hidden_layers=4",
    'model.layer_types=["conv","conv","full","conv"]',
    f"model.short_conv_size={WIDE}",
)
JOB = ("gpus=8", "layout.tp=1", "batch.global_batch_size=8", f"batch.sequence_length={TOKENS}")


def training(*overrides: str) -> Scenario:
    return load_scenario("llama-3-8b", [*SIZES, *JOB, *overrides])


def ops_of(job: Scenario) -> dict[str, Op]:
    shapes = serving_shapes(job) if job.workload.serves else shapes_of(job)
    block: Block = build_blocks(shapes)[BlockKind("conv+dense")]
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


@pytest.mark.parametrize("recipe", ["bf16", "fp8"])
def test_three_parts_are_projected_and_all_that_is_multiplied_is_kept(recipe: str) -> None:
    job = training(f"precision.recipe={recipe}", "hardware=h800")
    ops = ops_of(job)
    for kind in ("fwd", "dgrad", "wgrad"):
        assert ops[f"mixer.in.{kind}"].flops == 3 * ops[f"mixer.out.{kind}"].flops == 3 * 2.0 * TOKENS * WIDE * WIDE
    assert sum(op.saved for name, op in ops.items() if name.startswith("mixer.")) == 6 * TOKENS * WIDE * 2
    assert simulate(job, engine="longest-path").metrics["step_time_s"] > 0


def test_tensor_parallel_ranks_have_their_channels() -> None:
    one, two = ops_of(training()), ops_of(training("layout.tp=2"))
    for name in ("mixer.in.fwd", "mixer.out.wgrad"):
        assert one[name].flops == 2 * two[name].flops
    assert one["mixer.conv.bwd"].work.bytes == 2 * two["mixer.conv.bwd"].work.bytes  # type: ignore[union-attr]
    wrong = check(training("model.short_conv_size=4098", "layout.tp=4"))
    assert any("channels of conv layers" in problem.message for problem in wrong)


def test_sequences_are_not_split() -> None:
    found = [p for p in check(training("layout.cp=2", "layout.cp_kind=all_gather")) if p.key == "layout.cp"]
    assert "conv layers, whose convolution reads tokens of the rank before" in found[0].message


def test_a_sequence_keeps_two_tokens_of_each_channel() -> None:
    for context in (1000, 9000):
        change = (f"serving.context={context}", "serving.kv_dtype=bf16")
        job = load_scenario("llama-3-8b-decode", [*SIZES, *change])
        shapes, tp = serving_shapes(job), job.job.layout.tp
        each = 3 * WIDE * 2 * 2 / tp + 4096 / tp * (context + 1)
        assert kv_cache_bytes(job, shapes) == pytest.approx(shapes.serving.sequences * each, rel=1e-12)
        work = ops_of(job)["mixer.conv"].work
        assert isinstance(work, Streaming)
        assert work.written == shapes.batch * (WIDE * 2 * 2 + WIDE * 2) / tp


@pytest.mark.parametrize("job", ["llama-3-8b-decode", "llama-3-8b-prefill"])
def test_both_phases_run(job: str) -> None:
    assert 0 < simulate(load_scenario(job, SIZES), engine="longest-path").metrics["mfu"] < 1


def test_published_sizes() -> None:
    """1.17B, and 8.3B with 1.5B active (model cards); a dense part is 8,192 wide where the file says 12,288."""
    small, large = public_model("LFM2-1.2B"), public_model("LFM2-8B-A1B")
    assert small is not None
    assert large is not None
    assert (small.parameters(), small.intermediate_size) == (1_170_340_608, 8192)
    assert 1.5e9 < large.activated_parameters() < 1.6e9
    assert large.layer_kinds()[:4] == ("conv+dense", "conv+dense", "moe", "conv+moe")


def test_a_dense_part_as_wide_as_the_file_says() -> None:
    table = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 100, "block_auto_adjust_ff_dim": False}
    found = SHIPPED["lfm2"].finish(table | {"full_attn_idxs": [1]})
    assert (found["intermediate_size"], found["layer_types"]) == (100, ["conv", "full"])
