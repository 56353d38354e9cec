"""Search over serving layouts: ranks, the latency that was asked for, the front, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from reports.terminal.console import rendered
from reports.terminal.search_tables import as_dict, report, write_csv
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.studies.search import Store, confirm, question, search
from simulator.studies.search.candidate import RANKS

JOB = "deepseek-v3-decode-ep128"
OVER = ("serving.sequences=16,64,128,400", "serving.two_batch_overlap=true,false", "layout.ep=64,128")


@pytest.fixture(scope="module")
def asked():
    return question(JOB, (), OVER)


@pytest.fixture(scope="module")
def whole(asked):
    return search(asked, jobs=1)


def overrides(asked, one) -> list[str]:
    return [f"{a.path}={v}" for a, v in zip(asked.axes, asked.values(one.number), strict=True)]


def test_every_candidate_is_what_simulate_says(asked, whole):
    assert asked.workload == "decode"
    assert whole.counts == {"ok": 12, "invalid": 0, "too big": 4, "failed": 0}
    for one in whole.best[::4]:
        metrics = simulate(load_scenario(JOB, overrides(asked, one))).metrics
        assert one.step == pytest.approx(metrics["step_time_s"], rel=1e-9)
        assert one.rate == pytest.approx(metrics["tokens_per_s_per_gpu"], rel=1e-9)
        assert one.latency == pytest.approx(metrics["tpot_s"], rel=1e-9)
        assert one.cost == pytest.approx(metrics["usd_per_million_tokens"], rel=1e-9)
        assert one.mfu == pytest.approx(metrics["mfu"], rel=1e-9)
        assert one.memory == pytest.approx(metrics["peak_memory_bytes"])


@pytest.mark.parametrize("rank", RANKS[True])
def test_ranks(asked, rank):
    best = search(asked, rank=rank, jobs=1).best
    assert [one.by(rank) for one in best] == sorted(one.by(rank) for one in best)
    if rank == "throughput":
        assert best[0].rate == max(one.rate for one in best)


def test_only_what_is_quick_enough_is_ranked_and_the_rest_is_counted(asked, whole):
    found = search(asked, limit=0.035, jobs=1)
    assert {one.number for one in found.best} == {one.number for one in whole.best if one.latency <= 0.035}
    assert found.slow == len(whole.best) - len(found.best) > 0
    text = " ".join(rendered(*report(found, (), 1.0)).split())
    assert "at 35 ms at most" in text
    assert f"{found.slow} slower than asked" in text
    assert "as quick as was asked" in rendered(*report(search(asked, limit=0.001, jobs=1), (), 1.0))


def test_the_front_trades_throughput_against_speed(whole):
    front = whole.front
    assert [one.rate for one in front] == sorted((one.rate for one in front), reverse=True)
    assert [one.latency for one in front] == sorted((one.latency for one in front), reverse=True)
    for one in whole.best:
        assert one in front or any(kept.rate >= one.rate and kept.latency <= one.latency for kept in front)


def test_the_full_engine_confirms_it(asked, whole):
    sure = confirm(asked, whole.best[:3], jobs=1)
    assert [one.place for one in sure] == [one.guess for one in sure] == [1, 2, 3]
    assert all(abs(one.difference) < 1e-9 for one in sure)
    shown = as_dict(whole, sure)
    assert shown["workload"] == "decode"
    assert shown["best"][0]["tpot_s"] == pytest.approx(1.0 / shown["best"][0]["tokens_per_s_per_user"])
    assert shown["best"][0]["engine"] == "events"
    assert "run_cost_usd" not in json.dumps(shown)


def test_prefill_has_a_time_to_the_first_token(tmp_path: Path):
    asked = question("llama-3-8b-prefill", (), ("serving.tokens=512,1024",))
    found = search(asked, jobs=1)
    assert "TTFT [ms]" in rendered(*report(found, (), 1.0))
    with Store(asked) as store:
        store.add(found.best)
        write_csv(tmp_path / "all.csv", asked, store)
    rows = list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))
    assert float(rows[0]["ttft_s"]) == pytest.approx(float(rows[0]["step_time_s"]))


@pytest.mark.parametrize(
    ("job", "options", "line"),
    [
        (JOB, {"rank": "time"}, "--rank: time: a job that serves has throughput, latency, cost, memory"),
        ("tiny-1f1b", {"rank": "latency"}, "--rank: latency: a job that trains has time, cost, memory"),
        ("tiny-1f1b", {"limit": 1.0}, "--max-latency: only jobs that serve have one; rank by time"),
    ],
)
def test_what_has_no_meaning_is_refused(job, options, line):
    with pytest.raises(InputError) as error:
        search(question(job, (), ("gpus=8,16",)), jobs=1, **options)
    assert str(error.value) == line
