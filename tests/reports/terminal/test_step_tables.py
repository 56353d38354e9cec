"""The report of a step with numbers made up for reading, recorded; and the words it is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from reports.terminal.comparison_tables import comparison
from reports.terminal.console import rendered
from reports.terminal.step_tables import report
from reports.views import words
from reports.views.variants import Outcome, Variant
from simulator.inputs import load_scenario
from simulator.results.metrics import ClassTime, RankTimes
from simulator.results.result import Result
from simulator.results.simulate import prepare, simulate
from simulator.spec.workload import Training
from tests.serving_jobs import SERVING

STEP = 20.0


@pytest.fixture(scope="module")
def made_up() -> Result:
    """A real result of a small job with its numbers replaced: no change of a cost moves the recorded page."""
    overrides = ["layout.stages=[2,2,2,2]", "model.num_hidden_layers=8"]
    real = simulate(load_scenario("tiny-dualpipe", overrides), engine="longest-path")
    shares = (0.06, 0.10, 0.02, 0.66, 0.14, 0.02, 0.0)
    ranks = [
        RankTimes(
            rank=rank,
            phases={phase: STEP * share for phase, share in zip(Training().phases, shares, strict=True)},
            exposed_comm=1.5 + rank / 10,
            compute_busy=15.0,
        )
        for rank in range(4)
    ]
    metrics = dict.fromkeys(real.metrics, 0.25) | {
        "step_time_s": STEP,
        "tokens_per_step": 62914560.0,
        "tokens_per_day": 271.79e9,
        "tokens_per_s_per_gpu": 1536.0,
        "tflops_per_gpu_causal": 384.7,
        "tflops_per_gpu_full": 431.8,
        "mfu_causal": 0.389,
        "mfu_full": 0.4366,
        "exposed_comm_s": 1.65,
        "gpu_hours_per_trillion_tokens": 180845.0,
        "run_gpu_hours": 2676505.0,
        "run_days": 54.45,
        "run_cost_usd": 5353010.0,
        "price_per_gpu_hour_usd": 2.0,
    }
    classes = [
        ClassTime(cls=cls, seconds=5.0 / (at + 1), launches=885.0, bound_by=bound, stream=stream, calibrated=at != 2)
        for at, (cls, bound, stream) in enumerate(
            (
                ("comm.combine", "ib", "comm"),
                ("gemm.fp8", "tensor", "compute"),
                ("gemm.fp8.grouped_wgrad", "tensor", "compute"),
                ("attn.bwd", "tensor", "compute"),
                ("quant.token", "memory", "compute"),
                ("made.up", "latency", "compute"),
            )
        )
    ]
    return replace(
        real,
        metrics=metrics,
        breakdown_s=dict(ranks[0].phases),
        ranks=ranks,
        classes=classes,
        warnings=["one kernel class is made up"],
    )


def page(result: Result, *, verbose: bool = False) -> str:
    """The report as it goes into a pipe."""
    return rendered(*report(result, verbose=verbose), columns=80, colour=False)


def test_report_is_as_recorded(made_up: Result, golden: Callable[[str, str], None]) -> None:
    golden("cli/report.txt", page(made_up))


def test_report_fits_a_terminal_of_80_columns(made_up: Result) -> None:
    assert max(map(len, page(made_up, verbose=True).splitlines())) <= 80


def test_verbose_report_shows_all_classes(made_up: Result) -> None:
    assert "made.up" not in page(made_up)
    assert "made.up" in page(made_up, verbose=True)


def test_colour_adds_codes_and_changes_no_word(made_up: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = rendered(*report(made_up), columns=80, colour=True)
    assert "\x1b[" in coloured
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in bare.splitlines()] == page(made_up).splitlines()


def test_many_ranks_are_shortened_unless_asked_for(made_up: Result) -> None:
    many = replace(
        made_up,
        ranks=[replace(made_up.ranks[0], rank=rank) for rank in range(64)],
        schedule=replace(made_up.schedule, rows=made_up.schedule.rows * 16),
    )
    assert "..." in page(many)
    assert len(page(many, verbose=True).splitlines()) - len(page(many).splitlines()) > 30


def outcome(pp: str, step: float | None) -> Outcome:
    """A made-up line of a comparison."""
    variant = Variant(job="some-job", varied=(("layout.pp", pp), ("precision.recipe", "fp8")), fixed=("layout.ep=8",))
    if step is None:
        return Outcome(variant=variant, error="layout.pp: 5: does not divide\nlayout.ep: 8: nor does this")
    metrics = {
        "step_time_s": step,
        "mfu_causal": 0.4,
        "bubble_ratio": 0.1,
        "exposed_comm_s": 0.5,
        "gpu_hours_per_trillion_tokens": 180845.0,
        "run_cost_usd": 5e6,
    }
    return Outcome(variant=variant, result={"metrics": metrics, "warnings": ["a warning"], "scenario": {"job": {}}})


def test_comparison_is_as_recorded(golden: Callable[[str, str], None]) -> None:
    outcomes = [outcome("4", 20.0), outcome("5", None), outcome("8", 15.0), outcome("16", 25.0)]
    text = rendered(*comparison(outcomes, 80, verbose=True), columns=80, colour=False)
    golden("cli/comparison.txt", text)


def test_comparison_moves_long_labels_out_of_the_table() -> None:
    long = [replace(outcome(pp, 20.0), variant=Variant(job="j", varied=(("a.b", pp * 40),))) for pp in "12"]
    lines = rendered(*comparison(long, 80), columns=80, colour=False).splitlines()
    assert any(line.startswith("#1 ") and "1" * 40 in line for line in lines)
    assert any(line.startswith("#2 ") and "20.000" in line for line in lines)


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        ("gemm.fp8", "FP8 matmul"),
        ("gemm.bf16.wgrad", "BF16 matmul, weight gradients"),
        ("gemm.fp8_tensor.grouped", "FP8 matmul, routed experts"),
        ("comm.dispatch", "expert dispatch (all-to-all)"),
        ("norm.fwd.residual", "norms, forward (residual)"),
        ("attn.decode.mla@flashmla", "latent attention, decode (flashmla)"),
        ("made.up", "made.up"),
    ],
)
def test_names_of_kernel_classes(cls: str, name: str) -> None:
    assert words.of_class(cls) == name


def test_every_class_of_a_step_has_a_name() -> None:
    real = simulate(load_scenario("tiny-dualpipe"), engine="longest-path")
    assert [item.cls for item in real.classes if "." in words.of_class(item.cls)] == []


def test_every_bound_of_a_step_has_a_name() -> None:
    real = simulate(load_scenario("tiny-1f1b"), engine="longest-path")
    assert {item.bound_by for item in real.classes} <= set(words.BOUNDS)


def test_blocks_in_words() -> None:
    assert words.of_blocks(["embed", "dense", "dense", "moe"]) == "embedding + 2 dense layers + 1 MoE layer"
    assert words.of_blocks(["moe", "head", "mtp", "moe", "head"]) == "1 MoE layer + output head + 1 MTP module"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (words.large(284.46e9), "284.5 billion"),
        (words.large(163840), "163,840"),
        (words.dollars(5.353e6), "$5.353 million"),
        (words.dollars(14.17), "$14.17"),
        (words.dollars(14170.4), "$14,170"),
        (words.compact(5e6), "5.00M"),
        (words.compact(1234), "1.23k"),
        (words.seconds(0.01234), "12.34 ms"),
        (words.percent(0.0123), "1.2 %"),
        (words.ranges([0, 2, 3, 4, 9]), "0, 2-4, 9"),
        (words.unit_for(0.5).of(0.25), "250.0"),
        (words.unit_for(19.0).of(0.25), "0.250"),
    ],
)
def test_numbers_in_words(said: str, meant: str) -> None:
    assert said == meant


@pytest.mark.parametrize("job", SERVING)
def test_every_kernel_class_of_a_serving_step_has_words(job: str) -> None:
    built, _ = prepare(load_scenario(job))
    named = {op.cls: words.of_class(op.cls) for block in built.blocks.values() for op in block.ops()}
    assert {cls: name for cls, name in named.items() if "." in name or "@" in name} == {}
