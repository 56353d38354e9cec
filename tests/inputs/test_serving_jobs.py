"""Serving jobs: their tables, and one line for each mistake."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from simulator.errors import InputError
from simulator.inputs import load_job, load_scenario
from simulator.results.simulate import simulate
from simulator.spec.serving import Serving, ServingStack

JOB = """workload = "{workload}"
model = "llama-3-8b"
hardware = "h200"
stack = "torch-serving"
gpus = 1
[layout]
tp = 1
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_what_is_left_out_has_a_default_of_the_workload(tmp_path: Path) -> None:
    decode = load_job(written(tmp_path, JOB.format(workload="decode") + "[serving]\nsequences = 3\n"))
    assert decode.serving is not None
    assert (decode.serving.tokens, decode.serving.context, decode.serving.cuda_graphs) == (1, 0, True)
    assert decode.layout.sp is False
    prefill = load_job(written(tmp_path, JOB.format(workload="prefill") + "[serving]\nsequences = 3\ntokens = 7\n"))
    assert prefill.serving is not None
    assert prefill.serving.cuda_graphs is False


@pytest.mark.parametrize(
    ("workload", "rest", "expected"),
    [
        ("decode", "", r"job.toml: serving.sequences: missing: must be an integer"),
        (
            "prefill",
            "",
            r"job.toml: missing: serving.sequences \(an integer\), serving.tokens \(an integer\)",
        ),
        ("decode", "[serving]\nsequences = 1\ncontext = [1, -2]\n", r"serving.context: -2: must be at least 0"),
        ("decode", "[serving]\nsequences = 1\ncontext = {mean = 9}\n", r"serving.context.cv: missing"),
        ("decode", "[serving]\nsequences = 1\nmtp_acceptance = 1.2\n", r"mtp_acceptance: 1.2: must be from 0 to 1"),
        ("decode", "[serving]\ncontext = 5\n", r"job.toml: serving.sequences: missing: must be an integer"),
        ("prefill", "[serving]\nsequences = 5\n", r"job.toml: serving.tokens: missing: must be an integer"),
        ("decode", "[serving]\nsequences = 0\n", r"job.toml: serving.sequences: 0: must be at least 1"),
        ("decode", "[serving]\nsequences = 1\nmtp_dept = 1\n", r"mtp_dept: 1: unknown key; did you mean mtp_depth\?"),
        ("decode", "[batch]\nsequence_length = 1\n", r'job.toml: batch: .*workload = "decode" has a table \[serving\]'),
        ("training", "[serving]\nsequences = 1\n", r'job.toml: serving: .*only jobs with workload = "prefill"'),
        ("training", "", r"job.toml: missing: batch.sequence_length \(an integer\)"),
    ],
)
def test_a_table_that_is_missing_or_of_another_workload_is_one_line(
    tmp_path: Path, workload: str, rest: str, expected: str
) -> None:
    with pytest.raises(InputError, match=expected) as error:
        load_job(written(tmp_path, JOB.format(workload=workload) + rest))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("job", "override", "expected"),
    [
        ("llama-3-8b-decode", "batch.microbatch_size=2", 'changes nothing: workload "decode" has'),
        ("llama-3-8b", "serving.sequences=2", 'changes nothing: the job has workload "training"'),
        ("llama-3-8b-decode", "workload=training", 'has the tables of workload "decode"'),
        ("deepseek-v3-decode-ep128", "model.num_nextn_predict_layers=1", "MTP runs with serving.mtp_depth"),
        ("llama-3-8b-decode", "stack.grad_sync_overlap=true", 'a job with workload "decode" does not read it'),
        ("llama-3-8b-decode", "stack.optimizer.kind=sgd", 'a job with workload "decode" does not read it'),
        ("llama-3-8b-decode", "stack.host_gemm=1e-5", "set serving.cuda_graphs=false"),
        ("llama-3-8b-decode", "stack.kernel_gap=1e-5", "set stack.serving.graph_gap, or serving.cuda_graphs=false"),
        ("llama-3-8b-prefill", "stack.serving.graph_gap=1e-5", "set stack.kernel_gap, or serving.cuda_graphs=true"),
        ("llama-3-8b-decode", "stack.serving.gemm=training", "profiles tell kernels apart in FP8 only"),
        ("llama-3-8b-decode", "stack.serving.all_reduce=vllm", "there are no all-reduces"),
        ("llama-3-8b-decode", "serving.sequence=2", "did you mean serving.sequences"),
    ],
)
def test_an_override_of_another_workload_is_refused(job: str, override: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as error:
        load_scenario(job, [override])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("job", "overrides", "expected"),
    [
        (
            "llama-3-8b-decode",
            ("serving.context=8192",),
            "serving.context: 8192: .*positions for 8192; use at most 8191",
        ),
        ("llama-3-8b-decode", ("layout.zero=3",), 'layout.zero: 3: a job with workload = "decode" has no use for it'),
        ("llama-3-8b-decode", ("run.tokens=1e10",), "run.tokens: 1e.10: .*no use for it"),
        ("llama-3-8b-decode", ("stack=torch",), "stack: torch: says nothing of serving"),
        ("llama-3-8b-decode", ("precision.recipe=fp8_tensor",), "is not modelled of serving"),
        ("llama-3-8b-decode", ("serving.two_batch_overlap=true",), "there is no all-to-all to hide"),
        (
            "llama-3-8b-decode",
            ("gpus=64", "layout.tp=64"),
            r"^llama-3-8b-decode: layout.tp: 64: is more than the 32 attention heads of llama-3-8b; use at most 32$",
        ),
        ("llama-3-70b-decode", ("gpus=3", "layout.tp=3"), "layout.tp: 3: does not divide attention heads 64"),
        ("deepseek-v3-decode-ep128", ("layout.ep=96",), "layout.ep: 96: does not divide the 256 routed experts"),
        (
            "deepseek-v3-decode-ep128",
            ("serving.sequences=127",),
            "does not divide into two equal microbatches; use 128",
        ),
        ("deepseek-v3-decode-ep128", ("layout.tp=2", "layout.ep=64"), "layout.sp: false: would dispatch every token"),
        ("deepseek-v3-decode-ep128", ("overlap.comm_sms=24",), "low-latency kernels hold no SMs"),
        ("deepseek-v3-decode-ep128", ("stack.dispatcher=nccl",), "there is no all-to-all to hide"),
        ("qwen3-235b-decode", ("layout.ep=4",), "layout.ep: 4: x etp 1 is not tp 8: without all-to-all kernels"),
        ("deepseek-v3-prefill-ep32", ("layout.etp=2",), "layout.etp: 2: is not modelled"),
        ("llama-3-8b-decode", ("serving.mtp_depth=1",), "serving.mtp_depth: 1: llama-3-8b has no MTP module; use 0"),
        ("llama-3-8b-decode", ("serving.redundant_experts=8",), "changes nothing: llama-3-8b has no experts"),
        ("llama-3-8b-decode", ("serving.context=[100, 9000]",), "serving.context: 9000: .*positions for 8192"),
        (
            "deepseek-v3-decode-ep128",
            ("serving.redundant_experts=32",),
            "layout.ep: 128: does not divide the 288 slots of 256 routed experts and 32 copies; use 96 or 144,"
            " or redundant_experts = 128",
        ),
        ("deepseek-v3-decode-ep128", ("serving.mtp_acceptance=0.9",), "changes nothing without mtp_depth above 0"),
        ("deepseek-v3-decode-ep128", ("serving.mtp_depth=2", "serving.mtp_acceptance=[0.9]"), "lists 1 of mtp_depth 2"),
        ("deepseek-v3-decode-ep128", ("serving.mtp_depth=1", "serving.tokens=2"), "with mtp_depth 1: a step verifies"),
        ("deepseek-v3-decode-ep128", ("serving.prefill_tokens=64",), "does not divide into two microbatches"),
        ("llama-3-8b-decode", ("serving.prefill_context=64",), "changes nothing without prefill_tokens"),
        ("llama-3-8b-prefill", ("serving.prefill_tokens=64",), "changes nothing without decode"),
        (
            "llama-3-8b-prefill",
            ("serving.ranks=apart",),
            "serving.ranks: apart: changes nothing in a prefill without all-to-alls: no rank waits for another",
        ),
        (
            "deepseek-v3-prefill-ep32",
            ("serving.tokens_cv=0.2",),
            'tokens_cv: 0.2: changes nothing but in a prefill with ranks = "apart"; leave it out',
        ),
        (
            "deepseek-v3-decode-ep128",
            ("serving.idle_ranks=128",),
            "leaves none of 128 data-parallel ranks; use at most",
        ),
        ("llama-3-8b-decode", ("serving.idle_ranks=1",), "changes nothing: ranks share no experts; use 0"),
        ("deepseek-v3-decode-ep128", ("serving.seed=1",), 'changes nothing without ranks = "apart"'),
        (
            "deepseek-v3-decode-ep128",
            ("serving.eplb=hierarchical",),
            "8 groups of experts do not spread evenly over 16",
        ),
        (
            "deepseek-v3-decode-ep128",
            ("serving.eplb=on", "routing.kind=skewed", "routing.max_over_mean=1.2"),
            "changes nothing: skewed routing is about ranks; use auto",
        ),
        (
            "llama-3-8b-decode",
            ("serving.kv_dtype=fp8_ds_mla",),
            "kv_dtype: fp8_ds_mla: is of latents of 512 and 64 values; llama-3-8b caches others; use fp8 or bf16",
        ),
        ("llama-3-8b-decode", ("serving.eplb=on",), "changes nothing: there is no all-to-all over ep ranks"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_do(job: str, overrides: tuple[str, ...], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        simulate(load_scenario(job, overrides))


CHANGES = [
    ("llama-3-8b-decode", "serving.sequences=65"),
    ("llama-3-8b-decode", "serving.context=2047"),
    ("llama-3-8b-decode", "serving.tokens=2"),
    ("llama-3-8b-decode", "serving.kv_dtype=fp8"),
    ("deepseek-v3-decode-ep128", "serving.expert_weights=mxfp4"),
    ("llama-3-8b-decode", "serving.cuda_graphs=false"),
    ("llama-3-8b-decode", "stack.serving.graph_gap=1e-6"),
    ("llama-3-8b-decode", "stack.serving.decode_attention=fa3"),
    ("deepseek-v3-decode-ep128", "stack.serving.gemm=training"),
    ("llama-3-70b-decode", "stack.serving.all_reduce=vllm"),
    ("llama-3-70b-decode", "layout.sp=true"),
    ("deepseek-v3-decode-ep128", "serving.two_batch_overlap=false"),
    ("deepseek-v3-decode-ep128", "stack.serving.masked=false"),
    ("deepseek-v3-decode-ep128", "stack.serving.router_fused=false"),
    ("deepseek-v3-decode-h200", "stack.serving.experts=deepgemm"),
    ("deepseek-v3-decode-h200", "stack.serving.fused=['shared_expert']"),
    ("deepseek-v3-decode-ep128", "layout.ep=64"),
    ("deepseek-v3-prefill-ep32", "overlap.comm_sms=20"),
    ("llama-3-8b-decode", "workload=prefill"),
    ("llama-3-8b-decode", "serving.context={mean=2048, cv=0.4}"),
    ("llama-3-8b-decode", "serving.context=[1024, 3072]"),
    ("llama-3-8b-decode", "serving.prefill_tokens=256"),
    ("deepseek-v3-decode-ep128", "serving.mtp_depth=1"),
    ("deepseek-v3-decode-ep128", "serving.redundant_experts=128"),
    ("deepseek-v3-decode-ep128", "serving.shared_slots=128"),
    ("deepseek-v3-decode-ep128", "serving.idle_ranks=64"),
]
"""A job and a setting that changes its step."""
ELSEWHERE = {
    "serving.mtp_acceptance": "the tokens of a step",
    "serving.prefill_context": "a step with a chunk",
    "serving.eplb": "loads that differ",
    "serving.ranks": "tests/engine/test_lockstep.py",
    "serving.seed": "tests/engine/test_lockstep.py",
    "serving.tokens_cv": "tests/engine/test_lockstep_prefill.py",
    "stack.serving.kv_budget": "tests/memory/test_kv_budget.py",
    "stack.serving.kv_share": "tests/memory/test_kv_budget.py",
}
"""Settings that act on something else than the step of one of these jobs, and where that is tested."""


def test_no_setting_is_forgotten() -> None:
    known = {f"serving.{one.name}" for one in fields(Serving)}
    known |= {f"stack.serving.{one.name}" for one in fields(ServingStack)}
    named = {override.partition("=")[0] for _, override in CHANGES} | set(ELSEWHERE)
    assert known - named == set()


@pytest.mark.parametrize(("job", "override"), CHANGES)
def test_every_setting_changes_the_step(job: str, override: str) -> None:
    before, after = (simulate(load_scenario(job, some)).metrics["step_time_s"] for some in ((), (override,)))
    assert before != after


def test_the_price_of_a_gpu_hour_counts() -> None:
    cheap, dear = (
        simulate(load_scenario("llama-3-8b-decode", [f"run.price_per_gpu_hour={price}"])).metrics
        for price in (1.0, 3.0)
    )
    assert dear["usd_per_million_tokens"] == pytest.approx(3 * cheap["usd_per_million_tokens"])
    assert cheap["usd_per_million_tokens"] == pytest.approx(1e6 / 3600 / cheap["tokens_per_s_per_gpu"])


def test_placement_counts_where_experts_differ() -> None:
    sampled = ["routing.kind=sampled", "routing.cv=0.5"]
    on, off = (
        simulate(load_scenario("deepseek-v3-decode-ep144", [*sampled, f"serving.eplb={how}"])).metrics["step_time_s"]
        for how in ("on", "off")
    )
    assert on < off


def test_settings_without_effect_on_the_step_show_elsewhere() -> None:
    drafted, surer = (
        simulate(load_scenario("deepseek-v3-decode-ep128", ["serving.mtp_depth=1", *more])).metrics
        for more in ([], ["serving.mtp_acceptance=0.95"])
    )
    assert surer["step_time_s"] == drafted["step_time_s"]
    assert surer["tpot_s"] == pytest.approx(drafted["tpot_s"] * 1.85 / 1.95)
    mixed, behind = (
        simulate(load_scenario("llama-3-8b-decode", ["serving.prefill_tokens=256", *more])).metrics["step_time_s"]
        for more in ([], ["serving.prefill_context=1024"])
    )
    assert behind > mixed
