"""Sizing: the cheapest deployment that holds a service level, its margins, and what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import foretrain
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.serving.deployment import deploy
from simulator.serving.serve import serve
from simulator.serving.summary import metrics
from simulator.studies.sizing import Sizing, Wanted, size
from simulator.studies.sizing.candidates import layouts, variants
from simulator.studies.sizing.targets import margins, parse_targets

WANTED = Wanted(
    job="llama-3-8b-decode",
    overrides=("stack=vllm", "model.num_hidden_layers=2"),
    targets={"ttft.p99": 0.1, "tpot.p99": 0.006},
    rate=500.0,
    input_tokens="800",
    output_tokens="50",
    count=300,
    over=("gpus=1,2", "layout.tp=1,2", "stack.scheduler.sequences=16,64"),
    kind="aggregated",
)

ASKED = ("size", WANTED.job, "--set", "stack=vllm", "--set", "model.num_hidden_layers=2")
REST = ("--rate", "10", "--count", "100", "--over", "gpus=1", "--jobs", "1", "--kind", "aggregated")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> Sizing:
    return size(WANTED)


def test_the_best_holds_the_level_with_its_margin(found: Sizing) -> None:
    best = found.best
    assert best is not None
    assert best.margins is not None
    assert best.metrics is not None
    assert min(best.margins.values()) >= 0
    assert best.margins["ttft.p99"] == pytest.approx(1 - best.metrics["ttft_s"]["p99"] / 0.1)
    assert best.headroom == pytest.approx(best.highest_rate * best.replicas / 500 - 1)
    assert 0 < best.highest_rate <= best.capacity


def test_choices_go_from_cheap_to_dear_and_then_to_those_that_do_not_do(found: Sizing) -> None:
    able = [one for one in found.choices if not one.why]
    assert [one.usd_per_hour for one in able] == sorted(one.usd_per_hour for one in able)
    assert all(one.why for one in found.choices[len(able) :])
    price = load_scenario("llama-3-8b-decode").cluster.price_per_gpu_hour
    assert all(one.usd_per_hour == pytest.approx(one.gpus * price) for one in able)
    whys = {one.settings[:2]: one.why for one in found.choices if one.why}
    assert "not a multiple of tp 2" in whys["gpus=1", "layout.tp=2"]  # one GPU has no two tensor-parallel ranks


def test_one_replica_fewer_would_not_do(found: Sizing) -> None:
    best = found.best
    assert best is not None
    assert best.replicas > 1
    one = deploy(load_scenario(WANTED.job, (*WANTED.overrides, *best.settings), replayed=True))
    fewer = replace(one, engines=best.replicas - 1, router="least-load")
    got = metrics(serve(fewer, replace(WANTED.load(500.0), count=1200)))
    assert min(margins(got, WANTED.targets).values()) < 0.05


def test_the_sweep_ends_in_overload(found: Sizing) -> None:
    rates = [rate for rate, _ in found.sweep]
    assert rates == sorted(rates)
    assert found.sweep[0][1]["ttft_s"]["p99"] < 0.1
    assert found.sweep[-1][1]["ttft_s"]["p99"] is None


def test_a_level_that_nothing_holds_is_said_so() -> None:
    run = CliRunner().invoke(foretrain, [*ASKED, "--slo", "tpot.p99=1e-5", *REST, "-q"])
    assert run.exit_code == 3
    assert "None of these deployments holds it." in run.stdout
    text = " ".join(run.stdout.split())
    assert "llama-3-8b in BF16 on H200 SXM 141GB; scheduler: vllm" in text
    assert "taken by default: --input-tokens 1024, --output-tokens 256." in text  # the count was given
    assert "assumed of the scheduler (foretrain show stack vllm): host_step" in text
    assert "Price of a GPU-hour: $3.29, of the hardware profile h200" in text
    assert "even at" in " ".join(run.stdout.split())


def test_what_is_kept_is_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = replace(WANTED, over=("gpus=1", "stack.scheduler.sequences=32"), rate=20.0)
    file = tmp_path / "kept.jsonl"
    first = size(wanted, file=file)
    monkeypatch.setattr("simulator.studies.sizing.sizing.judge", lambda *_: pytest.fail("judged again"))
    again = size(wanted, file=file)
    assert again.choices == first.choices
    with pytest.raises(InputError, match="holds another question"):
        size(replace(wanted, rate=21.0), file=file)
    file.write_text("{}\nx")
    with pytest.raises(InputError, match=r"holds another question|damaged"):
        size(wanted, file=file)


def test_processes_judge_as_one_does() -> None:
    wanted = replace(WANTED, over=("gpus=1,2", "layout.tp=1", "stack.scheduler.sequences=32"), rate=20.0, count=100)
    assert size(wanted, jobs=2).choices == size(wanted).choices


def test_prompts_on_engines_of_their_own_where_that_is_cheaper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, limits = ("gpus=1", "stack.scheduler.sequences=64,256"), {"ttft.p99": 0.2, "tpot.p99": 0.0035}
    wanted = replace(WANTED, over=over, targets=limits, rate=300.0, input_tokens="2000", count=200, kind="both")
    file = tmp_path / "kept.jsonl"
    found = size(wanted, file=file)
    apart = [one for one in found.choices if one.prefill_replicas]
    assert apart
    alone = {one.settings: one for one in found.choices if not one.prefill_replicas}
    for one in apart:
        before, after = alone[one.prefill_settings], alone[one.settings]
        assert one.prefill_replicas >= 300 / before.as_prefill
        assert one.replicas >= 300 / after.as_decode
        assert one.gpus == one.prefill_replicas + one.replicas
        assert one.margins is not None
        assert min(one.margins.values()) >= 0
    # A step with prompts takes longer than a token may: engines that do it all hold the level at far lower rates.
    assert found.best in apart
    monkeypatch.setattr("simulator.studies.sizing.sizing.judge", lambda *_: pytest.fail("judged again"))
    monkeypatch.setattr("simulator.studies.sizing.sizing.judge_pair", lambda *_: pytest.fail("judged again"))
    assert size(wanted, file=file).choices == found.choices


def test_usual_candidates() -> None:
    dense = load_scenario("llama-3-8b-decode", ["stack=vllm"], replayed=True)
    assert layouts(dense, ())[:2] == [("gpus=1", "layout.tp=1"), ("gpus=2", "layout.tp=2")]
    assert len(variants(dense, ())) == 6
    moe = load_scenario("deepseek-v3-decode-h200", replayed=True)
    assert ("gpus=8", "layout.tp=8", "layout.etp=8", "layout.ep=1", "serving.mtp_depth=1") in layouts(moe, ())
    travels = load_scenario("deepseek-v3-decode-ep128", replayed=True)
    spread = [(f"gpus={n}", f"layout.ep={n}", "layout.etp=1") for n in (8, 16, 32, 64, 256)]
    drafted = [(*one, f"serving.mtp_depth={depth}") for one in ((), *spread) for depth in (0, 1)]
    assert layouts(travels, ()) == drafted


def test_experts_are_spread_without_being_asked() -> None:
    own = ["model=qwen3-30b-a3b", "hardware=h100", "stack=vllm", "model.num_hidden_layers=2"]
    moe = load_scenario("llama-3-8b-decode", own, replayed=True)
    tried = layouts(moe, ())
    assert ("gpus=4", "layout.tp=4", "layout.etp=4", "layout.ep=1") in tried
    assert ("gpus=4", "layout.tp=4", "layout.etp=1", "layout.ep=4") in tried
    assert ("gpus=4", "layout.tp=1", "layout.etp=1", "layout.ep=4") in tried
    ranks = {}
    for group in tried:
        one = deploy(load_scenario("llama-3-8b-decode", [*own, *group], replayed=True))
        assert one.gpus == int(group[0].partition("=")[2])
        ranks[group[1:]] = one.ranks
    assert ranks["layout.tp=1", "layout.etp=1", "layout.ep=8"] == 8  # they gather each other's tokens in every layer
    assert ranks["layout.tp=8", "layout.etp=1", "layout.ep=8"] == 1


def test_a_dask_cluster_of_two_processes_judges_as_one_does(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    over, file = ("gpus=1,2", "layout.tp=1", "stack.scheduler.sequences=32"), tmp_path / "kept.jsonl"
    wanted = replace(WANTED, over=over, rate=20.0, count=100, kind="both")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        found = size(wanted, address=cluster.scheduler_address, file=file)
        assert found.choices == size(wanted).choices
        asked = [*ASKED, "--slo", "ttft.p99=0.1,tpot.p99=0.006", *REST, "--executor", "dask", "--json", "-q"]
        run = CliRunner().invoke(foretrain, [*asked, "--address", cluster.scheduler_address])
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["best"]["gpus"] == 1
    assert size(wanted, file=file).choices == found.choices  # what a cluster judged is kept


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("ttft=2", "must be LATENCY.STATISTIC=SECONDS"),
        ("ttft.p99", "must be LATENCY.STATISTIC=SECONDS"),
        ("tfft.p99=2", "'tfft' is not known: did you mean ttft?"),
        ("ttft.p95=2", "'p95' is not known"),
        ("ttft.p99=0", "must be a time in seconds"),
    ],
)
def test_what_is_no_level_is_one_line(text: str, error: str) -> None:
    with pytest.raises(InputError, match=error):
        parse_targets(text)


def test_json_has_the_best_first() -> None:
    run = CliRunner().invoke(foretrain, [*ASKED, "--slo", "ttft.p99=1", *REST, "-q", "--json"])
    assert run.exit_code == 0
    found = json.loads(run.stdout)
    assert found["best"] == found["choices"][0]
    assert found["best"]["margins"]["ttft.p99"] > 0
