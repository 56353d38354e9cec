"""`foretrain serve`: the answer in JSON and on the terminal, overload, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import foretrain
from simulator.inputs import load_scenario, settable_paths
from simulator.serving.deployment import deploy, disaggregated
from simulator.serving.load.sources import LoadSpec
from simulator.serving.serve import saturation, serve
from simulator.serving.summary import DEFINITIONS, as_dict

SMALL = ("llama-3-8b-decode", "--set", "stack=vllm", "--set", "model.num_hidden_layers=4")
LOAD = ("--requests", "poisson:20", "--input-tokens", "600", "--output-tokens", "uniform:0.5-1.0x60", "--count", "200")


def _serve(*arguments: str) -> Result:
    return CliRunner().invoke(foretrain, ["serve", *arguments])


def _json(*arguments: str) -> dict[str, Any]:
    run = _serve(*arguments, "--json", "-q")
    assert run.exit_code == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.fixture(scope="module")
def answer() -> dict[str, Any]:
    return _json(*SMALL, *LOAD)


def test_the_answer_has_every_latency_and_rate(answer: dict[str, Any]) -> None:
    m = answer["metrics"]
    for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
        row = m[name]
        assert 0 < row["p50"] <= row["p90"] <= row["p99"]
        assert row["p50"] / 3 < row["mean"] < 3 * row["p99"]
    for name in ("output_tokens_per_s_per_gpu", "total_tokens_per_s_per_gpu", "requests_per_s", "goodput_per_s"):
        assert m[name] > 0
    assert set(DEFINITIONS) <= set(m)
    assert m["goodput_per_s"] == m["requests_per_s"]


def test_rates_and_price_follow_from_each_other(answer: dict[str, Any]) -> None:
    m, asked = answer["metrics"], answer["requests"]
    assert asked["arrived"] == asked["answered"] == 200
    assert asked["input_tokens"] == 200 * 600
    assert m["requests_per_s"] == pytest.approx(200 / m["makespan_s"])
    assert m["output_tokens_per_s_per_gpu"] == pytest.approx(asked["output_tokens"] / m["makespan_s"])
    hourly = load_scenario("llama-3-8b-decode").cluster.price_per_gpu_hour
    each = hourly / 3600 / m["output_tokens_per_s_per_gpu"] * 1e6
    assert m["usd_per_million_output_tokens"] == pytest.approx(each)


def test_end_to_end_is_the_sum_of_its_parts(answer: dict[str, Any]) -> None:
    m, mean_outputs = answer["metrics"], answer["requests"]["output_tokens"] / 200
    whole = m["ttft_s"]["mean"] + m["tpot_s"]["mean"] * (mean_outputs - 1)
    assert m["e2e_s"]["mean"] == pytest.approx(whole, rel=0.03)


def test_series_add_up_to_the_tokens(answer: dict[str, Any]) -> None:
    series = answer["series"]
    width = series["time_s"][1] - series["time_s"][0]
    made = sum(series["output_tokens"]) * width
    assert made == pytest.approx(answer["requests"]["output_tokens"] - 200)  # first tokens come from prompts
    assert sum(series["input_tokens"]) * width == pytest.approx(answer["requests"]["input_tokens"])


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = (_serve(*SMALL, *LOAD, "--json", "-q").stdout for _ in range(2))
    assert first == again
    assert first != _serve(*SMALL, *LOAD, "--json", "-q", "--seed", "1").stdout


def test_a_rate_above_capacity_is_said_to_be_one() -> None:
    load = ("--requests", "poisson:4000", "--input-tokens", "2000", "--output-tokens", "100", "--count", "400")
    run = _serve(*SMALL, "--set", "stack.scheduler.sequences=16", *load, "--json")
    assert run.exit_code == 3
    found = json.loads(run.stdout)
    assert found["overload"]["rate_per_s"] == 4000
    assert found["metrics"]["ttft_s"] == dict.fromkeys(("mean", "p50", "p90", "p99"))
    assert found["metrics"]["requests_per_s"] == found["overload"]["capacity_per_s"] < 4000
    assert "the queue grows without bound" in run.stderr
    longer = _serve(*SMALL, "--set", "stack.scheduler.sequences=16", *load[:-1], "900", "--json", "-q")
    assert json.loads(longer.stdout)["overload"] == found["overload"]  # it does not depend on when one stops


def test_capacity_is_where_the_queue_begins_to_grow() -> None:
    small = list(SMALL[2::2])
    deployment = deploy(load_scenario(SMALL[0], [*small, "stack.scheduler.sequences=8"], replayed=True))
    spec = LoadSpec(requests="poisson:1", input_tokens="500", output_tokens="50")
    most = saturation(deployment, spec)
    below, above = (
        serve(
            deployment, LoadSpec(requests=f"poisson:{most * share}", input_tokens="500", output_tokens="50", count=3000)
        )
        for share in (0.8, 1.2)
    )
    assert below.overload is None
    assert above.overload is not None
    assert above.overload.capacity == pytest.approx(most)


def test_goodput_counts_requests_within_all_limits() -> None:
    found = _json(*SMALL, *LOAD, "--slo", "ttft=1e-6,tpot=10")
    assert found["metrics"]["goodput_per_s"] == 0
    found = _json(*SMALL, *LOAD, "--slo", "ttft=100,tpot=10,e2e=1000")
    assert found["metrics"]["goodput_per_s"] == found["metrics"]["requests_per_s"]


def test_records_hold_every_request(tmp_path: Path) -> None:
    path = tmp_path / "records.csv"
    found = _json(*SMALL, *LOAD, "--records", str(path))
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) == 200
    ttft = sum(float(row["first_token_s"]) - float(row["arrival_s"]) for row in rows) / 200
    assert found["metrics"]["ttft_s"]["mean"] == pytest.approx(ttft)


def test_replicas_share_the_load() -> None:
    one, two = (_json(*SMALL, *LOAD, "--replicas", count, "--router", "least-load") for count in ("1", "2"))
    assert (one["gpus"], two["gpus"]) == (1, 2)
    assert two["metrics"]["tpot_s"]["mean"] < one["metrics"]["tpot_s"]["mean"]


def test_prompts_apart_cost_gpus_and_spare_decodes_their_stalls() -> None:
    load = ("--requests", "poisson:20", "--input-tokens", "4000", "--output-tokens", "250", "--count", "100")
    together = _json(*SMALL, *load, "--replicas", "2")
    apart = _json(*SMALL, *load, "--prefill-replicas", "1", "--prefill-set", "stack.scheduler.step_tokens=4096")
    assert (apart["gpus"], apart["prefill_engines"]) == (2, 1)
    assert apart["requests"] == together["requests"]
    assert apart["metrics"]["itl_s"]["p99"] < together["metrics"]["itl_s"]["p99"]


def test_a_lost_engine_delays_and_a_slow_one_slows() -> None:
    fine, lost, slow = (
        _json(*SMALL, *LOAD, "--replicas", "2", *more) for more in ((), ("--lose-at", "3"), ("--slow", "3"))
    )
    assert lost["requests"]["answered"] == slow["requests"]["answered"] == 200
    assert lost["requests"]["preempted"] > 0
    assert lost["metrics"]["tpot_s"]["p90"] > fine["metrics"]["tpot_s"]["p90"]
    assert slow["metrics"]["tpot_s"]["p90"] > 1.5 * fine["metrics"]["tpot_s"]["p90"]


def test_the_report_prints_definitions_and_what_is_assumed() -> None:
    run = _serve(*SMALL, *LOAD)
    assert run.exit_code == 0
    text = " ".join(run.stdout.split())
    assert "time per output token" in text
    assert "(end - first token) / (output tokens - 1)" in text
    assert "assumed of the scheduler" in text
    assert "off in the mean" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("tiny-1f1b", *LOAD), "tiny-1f1b: trains"),
        ((*SMALL, *LOAD, "--lose-at", "1"), "--lose-at: there is no other engine"),
        ((*SMALL, *LOAD, "--lose-at", "2", "--prefill-replicas", "1"), "is not modelled of disaggregated"),
        ((*SMALL, *LOAD, "--hot-expert", "2"), "llama-3-8b has no experts"),
        ((*SMALL, *LOAD, "--prefill-set", "stack=sglang"), "--prefill-set belongs to --prefill-replicas"),
        ((*SMALL, *LOAD, "--set", "stack.scheduler.kv_handover=pull"), "kv_handover belongs to --prefill-replicas"),
        ((*SMALL, *LOAD, "--set", "serving.sequences=3"), 'serving.sequences: "3": changes nothing'),
        ((*SMALL, *LOAD, "--set", "stack.scheduler.block=0"), "scheduler.block: 0: must be at least 1"),
        ((*SMALL, *LOAD, "--slo", "ttft"), "--slo: 'ttft': must be NAME=SECONDS"),
        ((*SMALL, *LOAD, "--slo", "tfft=1"), "is no latency of a request: did you mean ttft?"),
        ((*SMALL, *LOAD, "--slo", "ttft=-1"), "--slo: ttft: '-1': must be a time in seconds"),
        ((*SMALL, "--requests", "poisson:1"), "--input-tokens and --output-tokens: missing"),
        ((*SMALL, "--requests", "nowhere.jsonl"), "is neither a file nor a process"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: tuple[str, ...], error: str) -> None:
    run = _serve(*arguments)
    assert run.exit_code == 2
    assert error in run.stderr
    assert run.stderr.count("\n") == 1


def test_a_model_that_leaves_no_room_is_refused() -> None:
    run = _serve("llama-3-70b-decode", "--set", "gpus=1", "--set", "layout.tp=1", "--set", "stack=vllm", *LOAD)
    assert run.exit_code == 3
    assert "does not fit" in run.stderr


TIGHT = 9000
"""Tokens in the KV cache, so that not all requests fit at once."""
_OTHERS = {
    "prefill": "first",
    "chunked": "false",
    "step_tokens": "700",
    "sequences": "2",
    "reserved_output": "1.0",
    "block": "256",
    "prefix_cache": "false",
    "host_cache": "8e7",
    "disk_cache": "1e9",
    "cache_writes": "back",
    "cache_loads": "layers",
    "captured": "[1, 64]",
    "captured_prefill": "100000",
    "host_step": "0.1",
    "host_sequence": "0.001",
    "host_overlapped": "true",
    "decided_ahead": "true",
    "stream_interval": "4",
    "kv_handover": "layers",
    "frontend": "0.1",
}


@pytest.mark.slow
def test_every_setting_of_the_scheduler_changes_a_replay(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    row = {"timestamp": 0, "input_length": 1100, "output_length": 200, "hash_ids": [1, 2, 3]}
    short = {"input_length": 100, "output_length": 300, "hash_ids": [9]}
    rows = [row | {"timestamp": n // 20} | (short if n % 3 else {}) for n in range(30)]
    past = [*range(12), *reversed(range(12))]  # which come back from HBM, then from the host's memory, then from disk
    rows += [row | {"timestamp": 60_000 + 500 * at, "hash_ids": [100 + n, 200 + n]} for at, n in enumerate(past)]
    trace.write_text("\n".join(map(json.dumps, rows)))

    def numbers(*overrides: str) -> str:
        small = ("stack=vllm", "model.num_hidden_layers=2")
        deployment = deploy(load_scenario("llama-3-8b-decode", [*small, *overrides], replayed=True))
        room = replace(deployment.room, blocks=TIGHT // deployment.scheduler.block)
        deployment = replace(deployment, room=room)
        if any("kv_handover" in one for one in overrides):
            deployment = disaggregated(deployment, deployment)
        found = as_dict(serve(deployment, LoadSpec(requests=str(trace))))
        return json.dumps([found["metrics"], found["queue"], found["kv_cache"]["mean_use"]])

    tiers, apart = ("stack.scheduler.host_cache=8e7",), ("stack.scheduler.kv_handover=pull",)
    before = {path: numbers(*path) for path in ((), tiers, apart)}
    scenario = load_scenario("llama-3-8b-decode", ["stack=vllm"], replayed=True)
    paths = [path for path in settable_paths(scenario) if path.startswith("stack.scheduler.")]
    assert sorted(path.rpartition(".")[2] for path in paths) == sorted(_OTHERS)
    same = []
    for path in paths:
        name = path.rpartition(".")[2]
        first = tiers if name in ("disk_cache", "cache_writes", "cache_loads") else ()
        first = apart if name == "kv_handover" else first
        if numbers(*first, f"{path}={_OTHERS[name]}") == before[first]:
            same.append(path)
    assert same == []
