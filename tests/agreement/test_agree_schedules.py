"""Every schedule of the simulator executed by ranks that pass messages: gradients, live activations, bytes kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from both import BATCH, LENGTH, MODELS, recomputed, write_config

from simulator.engine.lower import PricedModel, price_model
from simulator.inputs import load_scenario
from simulator.memory.account import memory_of_rows
from simulator.schedule import SCHEDULES, Pair, Schedule, build, format_schedule, peak_in_flight, stages_of, stages_on
from workloads.reference.count import Counter, Run
from workloads.reference.init import Params, init_params
from workloads.reference.model import Losses, add_grads, as_tokens, loss_and_grads
from workloads.reference.parallel.pipeline import PipelineResult, run_schedule
from workloads.reference.parallel.schedules import Rows

RANKS, MICROBATCHES = 4, 8
VIRTUAL = {"interleaved": 2}


def schedule_of(name: str, ranks: int = RANKS, microbatches: int = MICROBATCHES) -> Schedule:
    return build(name, pp=ranks, microbatches=microbatches, vpp=VIRTUAL.get(name, 1))


def rows_of(schedule: Schedule) -> Rows:
    """The rows as the reference reads them: out of the simulator's text."""
    lines = [line for line in format_schedule(schedule).splitlines() if not line.startswith("#")]
    return [line.split()[1:] for line in lines]


def executed(run: Run, schedule: Schedule, length: int = 4, batch: int = 1) -> tuple[PipelineResult, list[np.ndarray]]:
    batches = [as_tokens(run.cfg, seed, batch, length) for seed in range(schedule.microbatches)]
    return run_schedule(run, init_params(run.cfg, 1), rows_of(schedule), batches), batches


def serial(run: Run, batches: list[np.ndarray]) -> tuple[Losses, Params]:
    """The same microbatches one after another through the whole model."""
    losses: Losses = {}
    grads: Params = {}
    for tokens in batches:
        found, more = loss_and_grads(run, init_params(run.cfg, 1), tokens)
        add_grads(grads, more)
        losses = {unit: losses.get(unit, 0.0) + loss for unit, loss in found.items()}
    return losses, grads


def assert_equal(got: Params, expected: Params) -> None:
    assert got.keys() == expected.keys()
    for unit, weights in expected.items():
        assert got[unit].keys() == weights.keys()
        for name, dw in weights.items():
            tiny = 1e-12 * np.abs(dw).max()
            np.testing.assert_allclose(got[unit][name], dw, rtol=1e-9, atol=tiny, err_msg=f"{unit} {name}")


@pytest.mark.parametrize("model", ["v3", "llama"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_gradients_equal_serial_ones_and_live_activations_the_analysis(name: str, model: str) -> None:
    schedule = schedule_of(name)
    cfg = replace(MODELS[model][0], num_hidden_layers=schedule.stages)
    run = Run(cfg=cfg)
    result, batches = executed(run, schedule)
    losses, grads = serial(run, batches)
    assert result.losses == pytest.approx(losses, rel=1e-12)
    assert_equal(result.grads, grads)
    assert tuple(result.peak_live) == peak_in_flight(schedule)


@pytest.mark.parametrize(
    ("name", "ranks", "microbatches"),
    [("1f1b", 2, 5), ("zb1p", 3, 7), ("zb2p", 3, 6), ("zbv", 3, 6), ("interleaved", 3, 6), ("dualpipe", 6, 12),
     ("dualpipev", 3, 7), ("gpipe", 5, 2)],
)  # fmt: skip
def test_other_sizes(name: str, ranks: int, microbatches: int) -> None:
    schedule = schedule_of(name, ranks, microbatches)
    run = Run(cfg=replace(MODELS["llama"][0], num_hidden_layers=schedule.stages))
    result, batches = executed(run, schedule)
    assert_equal(result.grads, serial(run, batches)[1])
    assert tuple(result.peak_live) == peak_in_flight(schedule)


@pytest.mark.parametrize("name", SCHEDULES)
def test_messages_cross_ranks_once_per_stage_border(name: str) -> None:
    """Each microbatch crosses every border between stages on different ranks twice: state ahead, gradient back."""
    schedule = schedule_of(name)
    result, _ = executed(Run(cfg=replace(MODELS["llama"][0], num_hidden_layers=schedule.stages)), schedule)
    held = stages_on(schedule)
    turns = sum(name in ("zbv", "dualpipev") and {s, s + 1} <= set(h) for h in held for s in range(schedule.stages - 1))
    assert sum(result.messages) == 2 * schedule.microbatches * (schedule.stages - 1 - turns)


def planned(name: str, model: str, folder: Path, policy: str) -> tuple[PricedModel, Run]:
    """The simulator's plan and the reference's run of one model, with two layers a stage and one more on the first."""
    stages, vpp = stages_of(name, RANKS, VIRTUAL.get(name, 1)), VIRTUAL.get(name, 1)
    cfg, family = replace(MODELS[model][0], num_hidden_layers=2 * stages + 1), MODELS[model][1]
    scenario = load_scenario(
        "tiny-bf16",
        [
            f"model={write_config(cfg, family, folder)}",
            *(f"gpus={RANKS}", f"layout.pp={RANKS}", f"layout.vpp={vpp}", "layout.ep=1", f"layout.schedule={name}"),
            *("layout.stages=even", f"layout.recompute={policy}", f"batch.sequence_length={LENGTH}"),
            *(f"batch.microbatch_size={BATCH}", f"batch.global_batch_size={BATCH * MICROBATCHES}"),
        ],
    )
    run = Run(cfg=cfg, counter=Counter(), recompute=recomputed("bf16", policy))
    return price_model(scenario, stages), run


@pytest.mark.parametrize("model", ["v3", "qwen3-moe"])
@pytest.mark.parametrize("policy", ["none", "deepseek"])
@pytest.mark.parametrize("name", ["gpipe", "1f1b", "interleaved"])
def test_memory_model_holds_the_bytes_that_ranks_held(name: str, policy: str, model: str, tmp_path: Path) -> None:
    """Whole backwards: activations per rank at their peak, to the byte."""
    made, run = planned(name, model, tmp_path, policy)
    result, _ = executed(run, schedule_of(name), LENGTH, BATCH)
    ranks = memory_of_rows(made, schedule_of(name)).ranks
    assert [rank.group("activations") for rank in ranks] == result.peak_kept


@pytest.mark.parametrize("name", SCHEDULES)
def test_memory_model_counts_the_layers_that_ranks_held(name: str, tmp_path: Path) -> None:
    """Two layers for each live microbatch of a middle stage; in an overlapped pair the backward's first layer is gone
    before the forward's last has begun, so there it may be one less."""
    made, run = planned(name, "v3", tmp_path, "none")
    schedule = schedule_of(name)
    result, _ = executed(run, schedule, LENGTH, BATCH)
    paired = any(isinstance(step, Pair) for row in schedule.rows for step in row)
    checked = 0
    for rank, live in zip(memory_of_rows(made, schedule).ranks, result.peak_live, strict=True):
        if any(set(made.stages[stage]) != {"moe"} for stage in rank.stages):
            continue
        alive = sum(int(item.name.split()[0]) for item in rank.items if item.group == "activations")
        assert 2 * live - paired <= alive <= 2 * live, rank
        checked += 1
    assert checked >= RANKS // 2
