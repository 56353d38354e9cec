"""Mamba-1 layers (Jamba): the scan's work, what is kept, state and cache, parallelism, and what a file can say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from simulator.graph.block import Block, problems
from simulator.graph.serving.shapes import serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import block_kinds, build_blocks
from simulator.inputs import load_scenario
from simulator.inputs.architectures import Unsupported
from simulator.inputs.architectures.jamba import SHIPPED
from simulator.inputs.check import check
from simulator.memory.serving import kv_cache_bytes
from simulator.ops import Collective, Gemm, Op, Scan, Streaming
from simulator.results.simulate import simulate
from simulator.spec.mixer import BlockKind
from simulator.spec.scenario import Scenario
from simulator.validation.public_models import public_model, public_models
from workloads.reference.layers.mixers import selective

INNER, ROWS, RANK, TOKENS = 8192, 16, 256, 4096
SIZES = (
    'model.layer_types=["mamba1","mamba1","full","mamba1"]',
    f"model.mamba_inner_size={INNER}",
    f"model.mamba_dt_rank={RANK}",
    f"model.ssm_state_size={ROWS}",
)
JOB = ("model.num_hidden_layers=4", "gpus=8", "layout.tp=1", "batch.global_batch_size=8", "batch.sequence_length=4096")
KIND = BlockKind("mamba1+dense")


def training(*overrides: str) -> Scenario:
    return load_scenario("llama-3-8b", [*JOB, *SIZES, *overrides])


def serving(job: str, *overrides: str) -> Scenario:
    return load_scenario(job, [*JOB[:1], *SIZES, *overrides])


def ops_of(job: Scenario) -> dict[str, Op]:
    block: Block = build_blocks(serving_shapes(job) if job.workload.serves else shapes_of(job))[KIND]
    assert problems(block) == []
    return {op.name: op for op in block.ops()}


@pytest.mark.parametrize("recipe", ["bf16", "fp8"])
def test_a_step_runs_and_says_what_is_assumed(recipe: str) -> None:
    found = simulate(training(f"precision.recipe={recipe}", "hardware=h800"), engine="longest-path")
    assert found.metrics["step_time_s"] > 0
    scans = {one.cls: one for one in found.classes if one.cls.startswith("scan.")}
    assert set(scans) == {"scan.selective", "scan.selective.bwd"}


def test_the_scan_by_hand() -> None:
    """4,096 tokens of 8,192 channels with 16 values: steps, u, gate in; output twice out; two chunks' ends in FP32."""
    ops = ops_of(training())
    work, back = ops["mixer.scan.fwd"].work, ops["mixer.scan.bwd"].work
    assert isinstance(work, Scan)
    assert isinstance(back, Scan)
    wide, chosen, ends = 2 * TOKENS * INNER, 4 * TOKENS * ROWS, 2 * INNER * 2 * ROWS * 4
    assert (work.flops, work.values, work.ctas, work.steps) == (0.0, TOKENS * INNER * ROWS, INNER, 2)
    assert (work.read, work.written) == (3 * wide + chosen, 2 * wide + ends)
    assert (back.read, back.written) == (5 * wide + chosen + ends, 3 * wide + 2 * chosen)
    kept = sum(op.saved for name, op in ops.items() if name.startswith("mixer."))
    assert kept == 6 * wide + ends + 2 * 2 * TOKENS * (RANK + 2 * ROWS) + 3 * 4 * TOKENS


def test_work_grows_with_the_tokens_only() -> None:
    first, second = (ops_of(training(f"batch.sequence_length={n}"))["mixer.scan.fwd"].work for n in (4096, 8192))
    assert isinstance(first, Scan)
    assert isinstance(second, Scan)
    assert second.values == 2 * first.values


def test_tensor_parallel_ranks_have_their_channels_and_sum_what_chooses() -> None:
    one, two = ops_of(training()), ops_of(training("layout.tp=2"))
    for name in ("mixer.in", "mixer.select", "mixer.step", "mixer.out"):
        for kind in ("fwd", "dgrad", "wgrad"):
            assert two[f"{name}.{kind}"].flops * 2 == one[f"{name}.{kind}"].flops, name
    summed = [name for name, op in two.items() if isinstance(op.work, Collective) and "select" in name]
    assert summed == ["mixer.select.all_reduce", "mixer.select_g.all_reduce"]
    work = two["mixer.select.all_reduce"].work
    assert isinstance(work, Collective)
    assert work.bytes == TOKENS * (RANK + 2 * ROWS) * 2
    assert one["mixer.select.fwd"].work == Gemm(m=TOKENS, n=RANK + 2 * ROWS, k=INNER, precision="bf16")


def test_what_no_software_splits_is_refused_in_one_line() -> None:
    found = [p for p in check(training("layout.cp=2", "layout.cp_kind=all_gather")) if p.key == "layout.cp"]
    assert [p.suggestion for p in found] == ["use 1"]
    assert "no software splits the sequences of mamba1 layers" in found[0].message
    odd = check(training("model.mamba_inner_size=8190", "layout.tp=4"))
    assert any("channels of mamba1 layers" in p.message for p in odd)


def test_a_sequence_holds_its_state_however_long_it_is() -> None:
    model = training().model
    assert model.state_bytes(KIND) == INNER * (ROWS * 4 + 3 * 2)
    assert model.state_bytes(BlockKind("dense")) == 0.0
    for context in (1000, 9000):
        job = serving("llama-3-8b-decode", f"serving.context={context}", "serving.kv_dtype=bf16")
        shapes, tp = serving_shapes(job), job.job.layout.tp
        state = 3 * (INNER * ROWS * 4 + INNER * 3 * 2) / tp
        attended = 4096 / tp * (context + 1)
        assert kv_cache_bytes(job, shapes) == pytest.approx(shapes.serving.sequences * (state + attended), rel=1e-12)


def test_serving_scans_prompts_and_steps_states() -> None:
    ops = ops_of(serving("llama-3-8b-prefill"))
    assert isinstance(ops["mixer.scan.fwd"].work, Scan)
    assert all(op.saved == 0.0 for op in ops.values())
    job = serving("llama-3-8b-decode")
    work, shapes = ops_of(job)["mixer.token"].work, serving_shapes(job)
    assert isinstance(work, Streaming)
    kept = shapes.batch * INNER * ROWS * 4 / job.job.layout.tp
    assert kept < work.written < 1.1 * kept
    conv = ops_of(job)["mixer.conv.fwd"].work
    assert isinstance(conv, Streaming)
    assert conv.written == shapes.batch * (INNER * 6 + INNER * 2) / job.job.layout.tp
    for name in ("llama-3-8b-prefill", "llama-3-8b-decode"):
        assert 0 < simulate(serving(name), engine="longest-path").metrics["mfu"] < 1


def test_published_sizes() -> None:
    """52B with 12B active and 398B with 94B (arXiv 2408.12570, table 1); 4 of 32 layers attend, 16 have experts."""
    jamba = public_model("Jamba-v0.1")
    assert jamba is not None
    assert jamba.parameters() == 51_570_323_328
    kinds = block_kinds(jamba)[1:-1]
    counted = [kinds.count(BlockKind(kind)) for kind in ("mamba1+dense", "mamba1+moe", "dense", "moe")]
    assert counted == [12, 16, 4, 0]


@pytest.mark.parametrize(
    ("change", "right"),
    [
        ({"attn_layer_period": 0}, "must be an integer, at least 1"),
        ({"expert_layer_offset": 2}, "must be from 0 to 1: the period is 2"),
        ({"layer_types": ["mamba"]}, "one for each of 4 layers"),
        ({"n_routed_experts": None}, "missing: how many experts"),
    ],
)
def test_what_a_file_cannot_say(change: dict[str, object], right: str) -> None:
    with pytest.raises(Unsupported, match=right):
        SHIPPED["jamba"].finish({"num_hidden_layers": 4, "hidden_size": 64, "n_routed_experts": 4} | change)


def test_one_expert_is_a_dense_part() -> None:
    table = SHIPPED["jamba"].finish({"num_hidden_layers": 4, "hidden_size": 60, "n_routed_experts": 1})
    assert (table["n_routed_experts"], table["mamba_dt_rank"], table["mamba_inner_size"]) == (0, 4, 120)


def test_chunks_change_neither_outputs_nor_gradients() -> None:
    """The reference's scan in chunks of 3 and of all 8 tokens, forward and backward."""
    rng = np.random.default_rng(0)
    x = selective.Inputs(
        *(rng.standard_normal((2, 8, 5)), rng.random((2, 8, 5))),
        *(rng.standard_normal((2, 8, 3)) for _ in range(2)),
        -rng.random((5, 3)),
    )
    dy = rng.standard_normal((2, 8, 5))
    found = []
    for chunk in (3, 8):
        y, ends = selective.scan(x, np.ones(5), chunk)
        assert ends.shape == (2, 5, -(-8 // chunk), 6)
        found.append([y, *selective.scan_input_grad(x, ends, dy, chunk)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["Mamba-2.8B", "Falcon-Mamba-7B", "Mamba-Codestral-7B"])
def test_models_without_attention_train_and_serve(name: str, tmp_path: Path) -> None:
    """No layer attends, none has a feed-forward part; what a sequence holds does not grow with it."""
    public = next(one for one in public_models() if one.name == name)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(public.config), encoding="utf-8")
    own = (f"model={path}", "model.num_hidden_layers=4")
    found = load_scenario("llama-3-8b", [*own, *JOB[1:]])
    assert {kind.ffn for kind in found.model.layer_kinds()} == {"none"}
    assert simulate(found, engine="longest-path").metrics["step_time_s"] > 0
    held = []
    for context in (1000, 9000):
        job = load_scenario("llama-3-8b-decode", [*own, f"serving.context={context}"])
        held.append(kv_cache_bytes(job, serving_shapes(job)))
    assert held[0] == held[1] > 0
    for phase in ("llama-3-8b-prefill", "llama-3-8b-decode"):
        assert 0 < simulate(load_scenario(phase, own), engine="longest-path").metrics["mfu"] < 1
