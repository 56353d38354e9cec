"""Experts in a narrower width (Nemotron 3 Super): what is projected, what travels, who holds it, and serving."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.dtypes import BF16
from simulator.errors import InputError
from simulator.graph.block import Block, problems
from simulator.graph.parameters import held_by_block
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_model, load_scenario
from simulator.inputs.check import check
from simulator.inputs.hf_config import read_config
from simulator.ops import AllToAll, Gemm, Op
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario
from simulator.validation.public_models import public_models

MOE, H, LATENT, INNER = BlockKind("moe"), 7168, 1024, 2048
TINY = ("model.moe_latent_size=1024", "model.num_hidden_layers=4", "model.first_k_dense_replace=0")
JOB = ("gpus=8", "layout.pp=1", "layout.ep=8", "layout.schedule=1f1b", "batch.global_batch_size=8")


def training(*overrides: str) -> Scenario:
    return load_scenario("deepseek-v3-1f1b", [*TINY, *JOB, *overrides])


def ops_of(job: Scenario) -> dict[str, Op]:
    block: Block = build_blocks(serving_shapes(job) if job.workload.serves else shapes_of(job))[MOE]
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


def test_parameters_are_those_of_the_checkpoint() -> None:
    """123,611,033,088 parameters of NVIDIA-Nemotron-3-Super-120B-A12B-BF16, its MTP module's 2,942,324,736 and that
    correction biases included (headers of its safetensors); published as 120.6B, 12.7B active."""
    super_ = next(one for one in public_models() if one.name == "Nemotron-3-Super-120B-A12B")
    tree = read_config(super_.config, super_.name, "config.json").model.parameter_tree()
    assert tree.total_with_mtp == 123_611_033_088
    assert tree.mtp == 2_942_324_736 + 512


@pytest.mark.parametrize("dispatcher", ["deepep", "nccl", "allgather"])
@pytest.mark.parametrize("recipe", ["bf16", "fp8"])
def test_the_latent_travels_and_the_gate_reads_the_token(dispatcher: str, recipe: str) -> None:
    wide, narrow = (
        ops_of(training(f"stack.dispatcher={dispatcher}", f"precision.recipe={recipe}", f"model.moe_latent_size={n}"))
        for n in (0, LATENT)
    )
    for name, op in narrow.items():
        if isinstance(op.work, AllToAll):
            before = wide[name].work
            assert isinstance(before, AllToAll)
            assert op.work.hidden == LATENT
            assert op.work.bytes_per_token == pytest.approx(before.bytes_per_token * LATENT / H)
    gate, up, down = (narrow[f"{name}.fwd"].work for name in ("router.gate", "moe.up_gate", "moe.down"))
    assert isinstance(gate, Gemm)
    assert isinstance(up, Gemm)
    assert isinstance(down, Gemm)
    assert (gate.k, up.k, down.n) == (H, LATENT, LATENT)
    assert narrow["shared.up_gate.fwd"].flops == wide["shared.up_gate.fwd"].flops
    assert narrow["moe.down.dgrad"].flops * H == wide["moe.down.dgrad"].flops * LATENT


def test_both_projections_run_each_way_in_bf16() -> None:
    ops = ops_of(training("precision.recipe=fp8"))
    for name in ("moe.latent_in", "moe.latent_out"):
        for kind in ("fwd", "dgrad", "wgrad"):
            work = ops[f"{name}.{kind}"].work
            assert isinstance(work, Gemm)
            assert work.flops == 2.0 * 4096 * H * LATENT
            assert work.precision == "bf16"
    order = list(ops)
    assert order.index("moe.latent_out.dgrad") < order.index("moe.down.dgrad") < order.index("moe.latent_in.dgrad")


def test_the_sum_that_is_projected_back_is_kept_once() -> None:
    """4,096 tokens of 1,024 values in BF16, whichever op sums them up."""
    for change in ("stack.dispatcher=deepep", "stack.dispatcher=nccl", "layout.ep=1"):
        saved = {}
        for latent in (0, LATENT):
            ops = ops_of(training(change, f"model.moe_latent_size={latent}"))
            names = ("moe.combine.fwd.a2a", "moe.unpermute_local.fwd", "moe.unpermute.fwd")
            saved[latent] = sum(ops[name].saved for name in names if name in ops)
        assert saved[LATENT] - saved[0] == 4096 * LATENT * BF16


def test_every_tensor_parallel_rank_holds_both_projections() -> None:
    one, two = (training(f"layout.tp={tp}", "layout.ep=4", "precision.recipe=fp8") for tp in (1, 2))
    plain = training("layout.tp=2", "layout.ep=4", "model.moe_latent_size=0")
    projections = 2 * H * LATENT
    for job, tp in ((one, 1), (two, 2)):
        held, p = held_by_block(MOE, job.model, job.job), job.model.layer_parameters(MOE)
        assert p.latent == projections
        assert held.dense == (p.attention + p.shared_expert) // tp + p.norms + p.router + projections
    without = held_by_block(MOE, plain.model, plain.job)
    assert held_by_block(MOE, two.model, two.job).dense - without.dense == projections
    assert ops_of(two)["moe.latent_in.fwd"].flops == pytest.approx(ops_of(one)["moe.latent_in.fwd"].flops / 2)


@pytest.mark.parametrize("job", ["deepseek-v3-decode-ep128", "deepseek-v3-prefill-ep32"])
def test_serving_sends_the_latent(job: str) -> None:
    narrow, wide = (load_scenario(job, [*TINY, f"model.moe_latent_size={n}"]) for n in (LATENT, 0))
    ops, before = ops_of(narrow), ops_of(wide)
    assert ops["moe.latent_in"].flops == ops["moe.latent_out"].flops > 0
    for name in ("moe.dispatch.a2a", "moe.combine.a2a"):
        assert ops[name].work.bytes_per_token * H == before[name].work.bytes_per_token * LATENT  # type: ignore[union-attr]
    found = [simulate(one, engine="longest-path").metrics["step_time_s"] for one in (narrow, wide)]
    assert found[0] < found[1]


def test_a_latent_as_wide_as_the_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"moe_latent_size.*must be less than hidden_size 7168, or 0"):
        training("model.moe_latent_size=7168")


def test_slots_of_experts_cannot_hold_a_shared_part_of_another_width() -> None:
    job = load_scenario("deepseek-v3-decode-ep128", [*TINY, "serving.shared_slots=32"])
    assert any("reads 7168 values of a token, an expert 1024" in problem.message for problem in check(job))


def test_other_mtp_patterns_are_refused(tmp_path: Path) -> None:
    config = dict(next(one.config for one in public_models() if one.name == "Nemotron-3-Super-120B-A12B"))
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config | {"mtp_hybrid_override_pattern": "ME"}), encoding="utf-8")
    with pytest.raises(InputError, match=r"mtp_hybrid_override_pattern.*attention layer and one with experts"):
        load_model(str(path))
