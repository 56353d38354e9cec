"""Stages in Megatron-Core's words: layouts, and first and last ranks with layers of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import InputError
from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.results.simulate import prepare, simulate
from simulator.spec.placement import letters

V3 = [
    "batch.global_batch_size=16384",
    "stack=megatron-core",
    "layout.schedule=interleaved",
    "layout.vpp=2",
    "precision.recipe=bf16",
]
LLAMA = ["gpus=4", "layout.tp=1", "layout.pp=4", "batch.global_batch_size=8", "batch.sequence_length=1024"]


def stages(job: str, *changes: str) -> list[list[str]]:
    return [[str(kind) for kind in stage] for stage in prepare(load_scenario(job, changes))[0].stages]


def test_letters_repeat() -> None:
    assert letters("Et*3|(tt|)*2,m|L") == ["Ettt", "tt", "tt", "m", "L"]
    assert letters("E||t") == ["E", "", "t"]
    assert letters("(t*2|)*2L") == ["tt", "tt", "L"]


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_a_layout_of_numbers_is_those_numbers(counts: list[int]) -> None:
    text = "|".join(f"t*{many}" if many > 1 else "t" * many for many in counts)
    assert [len(stage) for stage in letters(text)] == counts


def test_deepseek_v3_as_megatron_places_it() -> None:
    found = stages("deepseek-v3-pretrain", *V3, "layout.stages=Et*3|(tt|)*29,m|L")
    assert len(found) == 32
    assert found[0] == ["embed", "dense", "dense", "dense"]
    assert found[1:30] == [["moe", "moe"]] * 29
    assert found[30:] == [["mtp", "moe"], ["head", "head"]]


def test_embedding_and_loss_on_stages_of_their_own() -> None:
    assert stages("llama-3-8b", *LLAMA, "layout.stages=E|t*16|t*16|L") == [
        ["embed"], ["dense"] * 16, ["dense"] * 16, ["head"],
    ]  # fmt: skip


def test_first_and_last_rank_by_number() -> None:
    names = ["layout.stages=even", "layout.decoder_first_pipeline_num_layers=6"]
    found = stages("llama-3-8b", *LLAMA, *names, "layout.decoder_last_pipeline_num_layers=4")
    assert [stage.count("dense") for stage in found] == [6, 11, 11, 4]
    two = [*LLAMA, *names[:1], "layout.schedule=interleaved", "layout.vpp=2"]
    found = stages("llama-3-8b", *two, "layout.decoder_first_pipeline_num_layers=2")
    assert [stage.count("dense") for stage in found] == [1, 5, 5, 5] * 2


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (["layout.stages=Et|tx"], "'x' is no part of a layout"),
        (["layout.stages=ballanced"], "is no part of a layout"),
        (["layout.stages=Et*16|t*16L"], "has 2 stages, the schedule has 4"),
        (["layout.stages=Et*16|t*8|t*7|L"], "places 31 of 32 layers (t)"),
        (["layout.stages=t*16|Et*16||L"], "places them in another order"),
        (["layout.stages=(t|)*999999"], "write at most 10000 letters"),
        (["layout.decoder_first_pipeline_num_layers=3"], "set layout.stages=even"),
        (["layout.stages=even", "layout.decoder_first_pipeline_num_layers=3"], "leaves 29 layers to 3 other ranks"),
        (["layout.stages=even", "layout.decoder_last_pipeline_num_layers=40"], "leaves -8 layers"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(changes: list[str], error: str) -> None:
    found = [str(one) for one in check(load_scenario("llama-3-8b", [*LLAMA, *changes]))]
    assert any(error in one and "\n" not in one for one in found), found
    with pytest.raises(InputError):
        prepare(load_scenario("llama-3-8b", [*LLAMA, *changes]))


def test_the_quick_estimate_places_alike() -> None:
    scenario = load_scenario("llama-3-8b", [*LLAMA, "layout.stages=E|t*16|t*16|L"])
    found, result = (
        estimate(scenario, SharedPrices(scenario, "longest-path")),
        simulate(scenario, engine="longest-path"),
    )
    assert found.step == pytest.approx(result.metrics["step_time_s"], rel=1e-9)
    assert found.memory == pytest.approx(result.memory.peak)
