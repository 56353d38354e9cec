"""Published loads of experts: the spreads that jobs take give back the maxima that were measured, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cli import foretrain
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.ops import Gate
from simulator.routing.placement import in_order
from simulator.routing.popularity import chosen_shares, popularity
from simulator.routing.published_loads import (
    DefaultLoads,
    PublishedLoad,
    default_loads,
    default_loads_of,
    published_loads,
)
from simulator.routing.rank_loads import rank_loads
from simulator.spec.job import Routing

LOADS = {one.id: one for one in published_loads()}
TAKEN = {one.gate: one for one in default_loads()}


def most_loaded(load: PublishedLoad, cv: float, layers: int = 48) -> float:
    """Most loaded expert or rank over the mean, mean over layers, where popularities spread by `cv`."""
    gate, ranks = Gate(experts=load.experts, top_k=load.top_k), load.ranks or load.experts
    tops = []
    for layer in range(layers):
        shares = chosen_shares(popularity(load.experts, cv, seed=1, layer=layer), gate).reshape(ranks, -1).sum(axis=1)
        tops.append(shares.max() / shares.mean())
    return float(np.mean(tops))


@pytest.mark.parametrize(
    ("name", "cv"),
    [
        ("lossfree.1b", TAKEN["bias"].cv[0]),
        ("loss.3b", TAKEN["loss"].cv[0]),
        ("loss.softmax", TAKEN["loss"].cv[1]),
        ("ultraep.qwen3", TAKEN["loss"].cv[2]),
        ("ultraep.glm47.p", 0.7),  # what replays of InferenceX take (workloads/facts/serving_replays.csv)
    ],
)
def test_spreads_are_those_that_give_the_measured_maxima(name: str, cv: float) -> None:
    assert most_loaded(LOADS[name], cv) - 1.0 == pytest.approx(LOADS[name].max_over_mean - 1.0, rel=0.06)


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_ranks_of_deepseek_v3_are_as_full_as_measured(place: float) -> None:
    """As taken and at the high end: 1.30 times the mean on 64 ranks of 4 experts, through the gate with its groups."""
    routing, gate = TAKEN["bias"].at(place), load_scenario("deepseek-v3-pretrain").model.gate
    where = in_order(256, 64)
    tops = [
        rank_loads(routing, gate, where, tokens=64 * 4096, layer=layer, microbatch=at).imbalance
        for layer in range(3, 27)
        for at in range(2)
    ]
    assert np.mean(tops) == pytest.approx(LOADS["ultraep.v3"].max_over_mean, abs=0.015)


def test_the_range_is_straight_between_its_ends() -> None:
    taken = DefaultLoads(
        gate="bias", topk_methods=("x",), cv=(0.1, 0.2, 0.4), microbatch_cv=(0.0, 0.1, 0.0), loads=(), why=""
    )
    assert taken.at(-0.5) == Routing(kind="sampled", cv=pytest.approx(0.15), microbatch_cv=0.05)
    assert taken.at(0.5) == Routing(kind="sampled", cv=pytest.approx(0.3), microbatch_cv=0.05)


def test_every_measurement_has_a_source_and_every_range_its_measurements() -> None:
    for load in LOADS.values():
        assert load.source.startswith("arXiv "), load.id
        assert load.max_over_mean >= 1.0
        assert (load.ranks > 0) == (load.per == "rank") or load.gate == "drop", load.id
    for taken in TAKEN.values():
        assert set(taken.loads) <= set(LOADS)
        assert {LOADS[name].gate for name in taken.loads} == {taken.gate}
        assert all(low <= value <= high for low, value, high in [taken.cv])


@pytest.mark.parametrize(
    ("job", "gate"),
    [("deepseek-v3-pretrain", "bias"), ("deepseek-v2-pretrain", "drop"), ("llama-3-8b", None)],
)
def test_a_model_takes_the_loads_of_gates_balanced_alike(job: str, gate: str | None) -> None:
    taken = default_loads_of(load_scenario(job).model)
    assert (taken.gate if taken else None) == gate


def test_a_job_can_ask_for_published_loads() -> None:
    routing = load_scenario("tiny-1f1b", ["routing.kind=published", "routing.seed=4"]).job.routing
    taken = TAKEN["bias"]
    loads = Routing(kind="sampled", cv=taken.cv[1], microbatch_cv=taken.microbatch_cv[1], seed=4, ranks="mean")
    assert routing == loads
    assert load_scenario("deepseek-v2-pretrain", ["routing.kind=published"]).job.routing == Routing()


@pytest.mark.parametrize(
    ("job", "more", "says"),
    [
        ("llama-3-8b", (), "routing.kind: llama-3-8b has no experts; set routing.kind=uniform"),
        ("deepseek-v3-decode", (), "routing.kind: published loads are of training; "),
        ("tiny-1f1b", ("routing.cv=0.2",), "routing.cv: published loads have spreads of their own; "),
    ],
)
def test_who_cannot_ask_is_refused_in_one_line(job: str, more: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match=says) as error:
        load_scenario(job, ["routing.kind=published", *more])
    assert "\n" not in str(error.value)


def test_the_table_shows_every_measurement() -> None:
    shown = CliRunner(env={"COLUMNS": "300"}).invoke(foretrain, ["show", "loads"])
    assert shown.exit_code == 0
    assert all(f"{load.max_over_mean:.2f}" in shown.stdout and name in shown.stdout for name, load in LOADS.items())
    written = json.loads(CliRunner().invoke(foretrain, ["show", "loads", "--json"]).stdout)
    assert [one["id"] for one in written["loads"]] == list(LOADS)
    assert [tuple(one["cv"]) for one in written["taken"]] == [one.cv for one in default_loads()]
