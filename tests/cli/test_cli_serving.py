"""Every verb on a job that serves: what it writes, and what of training it refuses in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import foretrain

JOB = "deepseek-v3-decode-ep128"


def run(*words: str):
    return CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(foretrain, list(words))


@pytest.mark.parametrize("job", [JOB, "deepseek-v3-prefill-ep32", "llama-3-8b-decode", "llama-3-8b-prefill"])
def test_simulate_writes_every_view(job: str, tmp_path: Path) -> None:
    names = {"--html": "p.html", "--trace": "t.json.gz", "--figures": "figures", "--export": "tables"}
    asked = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    done = run("simulate", job, *asked, "--interval", "--draws", "4", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    assert all((tmp_path / name).exists() for name in names.values())
    shown = json.loads(done.stdout)
    assert shown["interval"]["p10_s"] < shown["interval"]["p90_s"]
    assert shown["metrics"]["usd_per_million_tokens"] > 0


def test_compare_memory_graph_and_saved_results(tmp_path: Path) -> None:
    page, saved = tmp_path / "page.html", []
    for count in ("64", "128"):
        file = tmp_path / f"{count}.json"
        file.write_text(run("simulate", JOB, "--set", f"serving.sequences={count}", "--json", "--quiet").stdout)
        saved.append(str(file))
    for words in (
        ("compare", JOB, "--vary", "serving.sequences=64,128", "--figures", str(tmp_path / "figures")),
        ("memory", JOB),
        ("show", "graph", JOB),
        ("report", "compare", *saved),
    ):
        done = run(*words, "--html", str(page), "--quiet")
        assert done.exit_code == 0, done.stderr
        assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "tokens/s of each user" in run("report", "compare", *saved).stdout
    assert (tmp_path / "figures" / "pareto.svg").exists()


def test_search_ranks_and_draws_what_fits(tmp_path: Path) -> None:
    over = ("--over", "serving.sequences=32,64,128", "--over", "serving.mtp_depth=0,1")
    files = ("--figures", str(tmp_path), "--html", str(tmp_path / "s.html"), "--csv", str(tmp_path / "all.csv"))
    done = run("search", JOB, *over, *files, "--max-latency", "0.04", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["limit_s"] == 0.04
    assert shown["best"]
    assert all(one["tpot_s"] <= 0.04 for one in shown["best"])
    assert len(shown["pareto"]) > 1
    assert (tmp_path / "pareto.svg").exists()
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 7


def test_explain_moves_numbers_of_a_serving_step() -> None:
    done = run("explain", "llama-3-8b-decode", "--op", "attn.core", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    swings = json.loads(done.stdout)["sensitivity"]["swings"]
    assert any(one["path"] == "hardware.gpu.hbm_bandwidth" for one in swings)


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (("plan", JOB), "simulate says what a million tokens cost"),
        (("simulate", JOB, "--what-if", "nvlink-900"), "--set hardware.node.nvlink.bandwidth"),
        (("simulate", JOB, "--html", "x.html", "--action", "F0"), "its page shows all of it"),
        (("memory", JOB, "--measures"), "serving.kv_dtype=fp8"),
        (("memory", JOB, "--rank", "0"), "all ranks of a serving step hold the same"),
        (("search", JOB, "--over", "layout.ep=64,128", "--rank", "time"), "throughput, latency, cost, memory"),
        (("search", JOB, "--over", "workload=prefill,decode"), "search each by itself"),
        (("compare", JOB, "llama-3-8b"), "compare them apart"),
        (("validate", "--claims", "--only", "S"), "--claims stands alone"),
    ],
)
def test_what_is_of_training_only_says_what_to_use_in_one_line(words: tuple[str, ...], instead: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert instead in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_claims_as_text_and_json(tmp_path: Path) -> None:
    text = run("validate", "--claims")
    assert text.exit_code == 0, text.stderr
    assert all(len(line) <= 80 for line in text.stdout.splitlines())
    shown = json.loads(run("validate", "--claims", "--json").stdout)
    assert len(shown["claims"]) >= 15
    file = tmp_path / "claims.md"
    assert run("validate", "--claims", "--markdown", str(file), "--quiet").exit_code == 0
    assert file.read_text(encoding="utf-8").count("\n") == 2 + len(shown["claims"])
