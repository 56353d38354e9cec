"""Memory over a step: adds up, returns to zero, agrees between timelines, and moves the right way."""

from __future__ import annotations

import json
from functools import cache

import pytest

from simulator.inputs import load_scenario
from simulator.memory import GROUPS, curve_of, measures, memory_of, memory_of_rows
from simulator.memory.deltas import Usages
from simulator.results.simulate import prepare, timeline_of
from simulator.schedule import peak_in_flight
from simulator.spec.model import BlockKind

TINY = ("dualpipe", "1f1b", "zb1p", "gpipe", "zb2p")


@cache
def prepared(job, *overrides):
    return prepare(load_scenario(job, overrides))


@cache
def rows(job, *overrides):
    return memory_of_rows(*prepared(job, *overrides))


def tiny(schedule):
    return ("tiny-dualpipe", f"layout.schedule={schedule}")


@pytest.mark.parametrize("schedule", TINY)
def test_what_a_step_takes_it_gives_back(schedule):
    built, made = prepared(*tiny(schedule))
    usages = Usages(built)
    for row in made.rows:
        by_label: dict[str, float] = {}
        for step in row:
            for change in usages.of(step).changes:
                by_label[change.label] = by_label.get(change.label, 0.0) + change.delta
        assert by_label
        assert all(abs(left) < 1.0 for left in by_label.values()), by_label


@pytest.mark.parametrize("schedule", TINY)
def test_rows_alone_give_the_peak_of_the_timeline(schedule):
    built, made = prepared(*tiny(schedule))
    timed = memory_of(built, made, timeline_of(built, made, "longest-path"))
    alone = rows(*tiny(schedule))
    assert [r.peak for r in timed.ranks] == pytest.approx([r.peak for r in alone.ranks], rel=1e-9)


def test_the_event_engine_gives_nearly_the_same_peak():
    built, made = prepared(*tiny("dualpipe"))
    timed = memory_of(built, made, timeline_of(built, made, "events"))
    assert timed.peak == pytest.approx(rows(*tiny("dualpipe")).peak, rel=0.05)


def test_items_add_up_and_name_their_group():
    for rank in rows("deepseek-v3-pretrain").ranks:
        assert rank.peak == sum(item.bytes for item in rank.items)
        assert {item.group for item in rank.items} <= set(GROUPS)
        assert sum(rank.group(name) for name in GROUPS) == pytest.approx(rank.peak)
        assert min(item.bytes for item in rank.items) >= 0.0


def test_the_curve_peaks_where_the_report_says_and_ends_empty():
    built, made = prepared(*tiny("dualpipe"))
    timeline = timeline_of(built, made, "longest-path")
    report = memory_of(built, made, timeline)
    curve = curve_of(built, made, timeline, report.worst.rank)
    totals = [sum(curve.groups[name][i] for name in GROUPS) for i in range(len(curve.times))]
    assert max(totals) == pytest.approx(report.peak, rel=1e-9)
    assert list(curve.times) == sorted(curve.times)
    assert curve.groups["activations"][-1] == 0.0
    assert curve.groups["temporary"][-1] == 0.0
    assert report.worst.at in curve.times


def test_1f1b_holds_as_many_microbatches_as_its_rule_says():
    built, made = prepared(*tiny("1f1b"))
    saved = [sum(built.blocks[kind].saved_bytes for kind in stage) for stage in built.stages]
    for rank, flying in zip(rows(*tiny("1f1b")).ranks, peak_in_flight(made), strict=True):
        assert rank.group("activations") <= flying * saved[rank.rank] * (1 + 1e-9)
        assert rank.group("activations") >= (flying - 1) * saved[rank.rank]


def test_split_backward_keeps_operands_of_weight_gradients():
    names = [item.name for rank in rows(*tiny("zb1p")).ranks for item in rank.items]
    assert any("for weight gradients" in name for name in names)
    names = [item.name for rank in rows(*tiny("1f1b")).ranks for item in rank.items]
    assert not any("for weight gradients" in name for name in names)


def test_more_recomputation_less_memory():
    kept = [
        rows("tiny-dualpipe", f"layout.recompute={how}").worst.group("activations")
        for how in ("none", "deepseek", "full")
    ]
    assert kept[0] > kept[1] > kept[2]


def test_full_recomputation_brings_a_layer_back_for_a_short_time():
    full = rows("tiny-dualpipe", "layout.recompute=full").worst.group("temporary")
    none = rows("tiny-dualpipe", "layout.recompute=none").worst.group("temporary")
    assert full > none


@pytest.mark.parametrize("more", ["batch.microbatch_size=2", "batch.sequence_length=2048", "precision.recipe=bf16"])
def test_more_of_these_takes_more_memory(more):
    assert rows("tiny-1f1b", more).peak > rows("tiny-1f1b").peak


def test_v3_fits_with_its_published_measures_and_not_without():
    built, made = prepared("deepseek-v3-pretrain")
    report = rows("deepseek-v3-pretrain")
    assert report.capacity == 84.93e9
    assert report.fits
    found = measures(built, made)
    assert all(measure.saves > 0 for measure in found)
    assert found[-1].name == "all of these"
    assert found[-1].peak_without > report.capacity
    assert found[-1].saves > max(measure.saves for measure in found[:-1])


def test_equal_ranks_of_dualpipe_mirror_each_other():
    peaks = [rank.peak for rank in rows("deepseek-v3-pretrain").ranks]
    assert peaks == pytest.approx(peaks[::-1])


def test_a_dense_model_and_virtual_stages():
    assert rows("llama-3-8b").peak > 0
    assert rows("tiny-interleaved").peak > 0
    assert rows("tiny-dualpipev").peak > 0


def test_report_as_json_is_whole():
    shown = json.loads(json.dumps(rows(*tiny("dualpipe")).as_dict()))
    assert shown["schema"] == "foretrain.memory/1"
    assert shown["peak_bytes"] == max(rank["peak_bytes"] for rank in shown["ranks"])
    assert sum(item["bytes"] for item in shown["ranks"][0]["items"]) == pytest.approx(shown["ranks"][0]["peak_bytes"])


def test_pytorchs_pipeline_has_a_buffer_for_every_microbatch() -> None:
    """Two directions, 8 microbatches of 1024 tokens of 4096 values in BF16; the first stage receives gradients only."""
    job = ["gpus=4", "layout.tp=1", "layout.pp=4", "batch.global_batch_size=8", "batch.sequence_length=1024"]
    found = memory_of_rows(*prepare(load_scenario("llama-3-8b", [*job, "stack=torch"])))
    sizes = [next(item.bytes for item in rank.items if item.name.startswith("pipeline")) for rank in found.ranks]
    message = 1024 * 4096 * 2.0
    assert sizes == [8 * message, 16 * message, 16 * message, 8 * message]


def test_experts_whose_output_is_weighted_keep_it() -> None:
    def kept(how: str) -> tuple[float, int]:
        changes = ["precision.recipe=bf16", "layout.recompute=none", f"stack.gate_weights={how}"]
        built, _ = prepare(load_scenario("tiny-1f1b", changes))
        return built.blocks[BlockKind.MOE].saved_bytes, 2 * built.shapes.rows * built.shapes.model.hidden_size

    assert kept("output")[0] - kept("activation")[0] == kept("output")[1]
