"""Every rule of a layout: its words, its numbers, and that one message does not hide another."""

from __future__ import annotations

import re

import pytest

from simulator.errors import InputError
from simulator.inputs import list_names, load_scenario
from simulator.inputs.check import Problem, check

V3 = "deepseek-v3-pretrain"


def found_in(job: str, *overrides: str) -> list[str]:
    return [str(problem) for problem in check(load_scenario(job, overrides))]


@pytest.mark.parametrize("name", list_names("job"))
def test_shipped_jobs_are_valid(name: str) -> None:
    assert check(load_scenario(name)) == []


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            ["gpus=2040"],
            "gpus: 2040: not a multiple of tp 1 x cp 1 x pp 16 = 16; use 2032 or 2048 GPUs",
        ),
        (
            ["gpus=100", "layout.pp=2", "layout.ep=2"],
            "gpus: 100: not a whole number of nodes of 8 GPUs; use 96 or 104 GPUs",
        ),
        (
            ["batch.global_batch_size=15361"],
            "batch.global_batch_size: 15361: not a multiple of dp 128 x microbatch_size 1 = 128 sequences;"
            " use 15360 or 15488",
        ),
        (
            ["batch.global_batch_size=3072"],
            "layout.schedule: dualpipe: dualpipe needs at least 2 x pp microbatches: pp 16, 24 microbatches;"
            " 32 or more would do",
        ),
        (
            ["layout.schedule=dualpip"],
            "layout.schedule: dualpip: there is no schedule 'dualpip': did you mean dualpipe?",
        ),
        (
            ["layout.schedule=1f1b", "layout.pp=64", "layout.ep=32"],
            "layout.pp: 64: makes 64 stages of 61 layers: some would be empty; use at most 61 stages, or list the"
            " layers of each in layout.stages",
        ),
        (
            ["layout.stages=[30,31]"],
            "layout.stages: [30, 31]: lists 2 stages, the schedule has 16; give one number of layers per stage",
        ),
        (
            ["layout.pp=2", "layout.stages=[30,30]"],
            "layout.stages: [30, 30]: adds up to 60 layers, the model has 61; let them add up, MTP modules not counted",
        ),
        (
            ["layout.ep=128", "model.n_routed_experts=320"],
            "layout.ep: 128: does not divide the 320 routed experts; use 64",
        ),
        (
            ["layout.ep=256"],
            "layout.ep: 256: x etp 1 = 256 does not divide the tp 1 x cp 1 x dp 128 = 128 ranks of a stage; use 128",
        ),
        (["layout.tp=16"], "layout.tp: 16: does not divide a node of 8 GPUs; use 8"),
        (
            ["layout.tp=8", "model.num_attention_heads=60"],
            "layout.tp: 8: does not divide attention heads 60; use 6 or 10",
        ),
        (
            ["batch.sequence_length=4098", "layout.tp=4"],
            "batch.sequence_length: 4098: not a multiple of cp 1 x tp 4 = 4; use 4096 or 4100 tokens",
        ),
        (
            ["batch.sequence_length=4098", "layout.cp=2"],
            "layout.cp: 2: a causal sequence is cut into 2 x cp = 4 equal parts; 4098 tokens are not;"
            " use 4096 or 4100 tokens",
        ),
        (
            ["batch.sequence_length=200000"],
            "batch.sequence_length: 200000: deepseek-v3 has positions for 163840 tokens; use at most 163840",
        ),
        (
            ["hardware.node.gpus=6", "gpus=1536", "batch.global_batch_size=11520", "layout.ep=32"],
            "layout.ep: 32: x etp 1 = 32 neither fills nodes of 6 GPUs nor divides one;"
            " use a multiple or a divisor of 6",
        ),
        (
            ["layout.ep=128"],
            "layout.ep: 128: spreads 8 expert groups over 16 nodes: a group is split between nodes, so topk_group 4 no"
            " longer limits the nodes of a token; use 8 nodes of 8 ranks",
        ),
        (
            ["hardware.gpu.peak.fp8=0"],
            "precision.recipe: fp8: H800 SXM 80GB has no FP8 tensor cores; use bf16",
        ),
        (
            ["overlap.comm_sms=132"],
            "overlap.comm_sms: 132: leaves nothing of the 132 SMs to compute; use fewer than 132",
        ),
        (
            ["layout.pp=4", "layout.tp=3"],
            "gpus: 2048: not a multiple of tp 3 x cp 1 x pp 4 = 12; use 2040 or 2064 GPUs",
        ),
        (
            ["batch.global_batch_size=1000000000000"],
            "batch.global_batch_size: 1000000000000: makes 7812500000 microbatches in each pipeline, more than can be"
            " simulated: 50,000 over all ranks; use at most 400000",
        ),
        (
            ["routing.max_over_mean=1.3"],
            "routing.max_over_mean: 1.3: does nothing with uniform routing; set routing.kind=skewed",
        ),
        (
            ["routing.kind=skewed", "routing.cv=0.1"],
            "routing.cv: 0.1: does nothing with skewed routing; set routing.kind=sampled",
        ),
        (
            ["layout.etp=3"],
            "layout.etp: 3: does not divide moe_intermediate_size 2048; use 2 or 4",
        ),
    ],
)
def test_each_rule_in_full(overrides: list[str], problem: str) -> None:
    assert problem in found_in(V3, *overrides)


def test_dense_models_have_no_experts_and_no_latent_attention() -> None:
    assert found_in(V3, "model=llama-3-8b", "layout.pp=16") == [
        "layout.ep: 64: llama-3-8b has no experts; use 1",
        "layout.recompute: deepseek: recomputes the up-projections of latent attention, which llama-3-8b does not"
        " have; use none, selective or full",
    ]


def test_all_problems_are_reported_at_once() -> None:
    rules = {problem.rule for problem in check(load_scenario(V3, ["layout.tp=3", "overlap.comm_sms=200"]))}
    assert rules >= {"world size", "microbatches", "tensor parallelism", "sequence on ranks", "communication SMs"}


def test_key_value_heads_may_be_repeated_but_not_split() -> None:
    base = ["model=qwen3-235b-a22b", "layout.recompute=none", "layout.ep=8"]
    assert found_in(V3, *base, "layout.tp=8") == []
    assert "layout.tp: 8: does not divide key-value heads 6; use 6" in found_in(
        V3, *base, "layout.tp=8", "model.num_key_value_heads=6", "model.num_attention_heads=96"
    )


def test_warnings_come_last() -> None:
    scenario = load_scenario(V3, ["batch.sequence_length=200000", "overlap.comm_sms=132"])
    assert [problem.severity for problem in check(scenario)] == ["error", "warning"]


def test_schedule_files_are_left_to_their_reader() -> None:
    assert found_in(V3, "layout.schedule=./mine.txt") == []


def test_a_problem_without_advice_ends_after_its_message() -> None:
    assert str(Problem(rule="r", key="k", value=1, message="m")) == "k: 1: m"


@pytest.mark.parametrize("ep", [3, 12, 24, 48, 96, 100])
def test_a_suggested_expert_parallelism_breaks_neither_rule(ep):
    job = ["gpus=768", "layout.pp=8", "layout.schedule=1f1b", "batch.global_batch_size=7680"]  # 96 ranks a stage
    found = check(load_scenario("deepseek-v3-pretrain", [*job, f"layout.ep={ep}"]))
    shown = {problem.suggestion for problem in found if problem.rule == "experts on ranks"}
    assert len(shown) == 1
    for number in re.findall(r"\d+", shown.pop()):
        again = check(load_scenario("deepseek-v3-pretrain", [*job, f"layout.ep={number}"]))
        assert not [problem for problem in again if problem.rule == "experts on ranks"]


@pytest.mark.parametrize("gpus", [64, 96, 120, 192])
@pytest.mark.parametrize(("tp", "etp"), [(1, 1), (2, 1), (4, 2), (8, 4), (1, 2)])
def test_a_suggested_expert_parallelism_always_divides(gpus, tp, etp):
    """Whatever ep is wrong, each that is suggested breaks no rule of experts."""
    base = ["layout.pp=4", f"gpus={gpus}", f"layout.tp={tp}", f"layout.etp={etp}"]
    seen = 0
    for ep in (3, 5, 6, 7, 12, 24, 48, 100, 256):
        for problem in check(load_scenario("tiny-1f1b", [*base, f"layout.ep={ep}"])):
            if problem.rule != "experts on ranks" or problem.key != "layout.ep" or not problem.suggestion:
                continue
            for degree in problem.suggestion.removeprefix("use ").split(" or "):
                again = check(load_scenario("tiny-1f1b", [*base, f"layout.ep={degree}"]))
                wrong = [one for one in again if one.rule == "experts on ranks" and one.key == "layout.ep"]
                assert not wrong, (ep, problem.suggestion)
                seen += 1
    assert seen or gpus % (4 * tp) or (gpus // 4) % etp


def test_latent_attention_has_no_window() -> None:
    with pytest.raises(InputError, match=r"model\.sliding_window: 1024: latent attention sees all tokens"):
        load_scenario(V3, ["model.sliding_window=1024"])
