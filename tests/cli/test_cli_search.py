"""`foretrain search`: the ranking, files, interruption, exit codes."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from reports.verbs.search import search
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate

OVER = ["--over", "layout.schedule=1f1b,zb1p,gpipe", "--over", "layout.zero=0,1"]


def ask(*arguments):
    return CliRunner().invoke(search, ["tiny-1f1b", *OVER, "--jobs", "1", *arguments], standalone_mode=False)


def test_the_best_come_first_and_are_confirmed():
    done = ask("--top", "2", "-q")
    assert done.exit_code == 0
    assert "Best by time per token" in done.stdout
    assert "discrete-event engine" in done.stdout
    assert "6 combinations" in done.stdout


def test_json_and_csv_hold_the_same(tmp_path):
    file = tmp_path / "all.csv"
    done = ask("--json", "--top", "6", "--confirm", "0", "--csv", str(file), "-q")
    shown = json.loads(done.stdout)
    rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
    assert shown["schema"] == "foretrain.search/1"
    assert shown["complete"]
    assert len(rows) == sum(shown["counts"].values()) == 6
    steps = {row["number"]: float(row["step_time_s"]) for row in rows}
    assert {str(one["number"]): one["step_time_s"] for one in shown["best"]} == steps


def test_what_was_confirmed_has_the_numbers_of_simulate():
    """Step, MFU and price of the best are those that `simulate` gives; the fast path's stand apart."""
    over = ["--over", "layout.recompute=none,full", "--rank", "cost"]
    told = json.loads(ask("--json", "--top", "3", "--confirm", "2", *over, "-q").stdout)
    assert [one["engine"] for one in told["best"]] == ["events", "events", "fast path"]
    for one in told["best"][:2]:
        names = ("layout.schedule", "layout.zero", "layout.recompute")
        metrics = simulate(load_scenario("tiny-1f1b", [f"{name}={one[name]}" for name in names])).metrics
        assert one["step_time_s"] == metrics["step_time_s"]
        assert one["run_cost_usd"] == metrics["run_cost_usd"]
        assert one["mfu_causal"] == metrics["mfu_causal"]
        assert one["time_per_token_s"] == pytest.approx(metrics["step_time_s"] / metrics["tokens_per_step"])
        assert one["fast_path"]["step_time_s"] == pytest.approx(one["step_time_s"], rel=0.03)
    assert told["best"][0]["run_cost_usd"] <= told["best"][1]["run_cost_usd"]


def test_cost_over_hardware_takes_each_price_and_says_it():
    over = ["--over", "hardware=h800,b200", "--rank", "cost", "--confirm", "0", "--jobs", "1", "-q"]
    done = CliRunner().invoke(search, ["tiny-1f1b", *over, "--json"], standalone_mode=False)
    told = json.loads(done.stdout)
    cost = {one["hardware"]: one["run_cost_usd"] / one["step_time_s"] for one in told["best"]}
    assert cost["b200"] / cost["h800"] == pytest.approx(4.6 / 2.0)
    assert any(line.startswith("$4.60 a GPU-hour, the price of the hardware profile b200") for line in told["prices"])


def test_figures_show_what_can_run(tmp_path):
    folder = tmp_path / "figures"
    assert ask("--confirm", "0", "--figures", str(folder), "-q").exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["pareto.png", "pareto.svg"]


def test_figures_with_gpus_as_an_axis_show_the_price_too(tmp_path):
    folder = tmp_path / "figures"
    assert ask("--confirm", "0", "--over", "gpus=64,128", "--figures", str(folder), "-q").exit_code == 0
    assert "pareto-price.svg" in {path.name for path in folder.iterdir()}


def test_where_nothing_runs_there_is_nothing_to_draw(tmp_path):
    done = ask("--set", "hardware.gpu.hbm_bytes=1e9", "--figures", str(tmp_path / "none"), "-q")
    assert done.return_value == 3
    assert list((tmp_path / "none").iterdir()) == []


def test_resume_gives_the_same_bytes(tmp_path):
    file = str(tmp_path / "found.sqlite")
    first, second = (ask("--json", "--confirm", "0", "--resume", file, "-q").stdout for _ in range(2))
    assert first == second


def test_nothing_that_can_run_ends_with_three():
    done = ask("--set", "hardware.gpu.hbm_bytes=1e9", "-q")
    assert done.return_value == 3
    assert "Nothing" in done.stdout


def test_dask_needs_an_address():
    assert "--address" in str(ask("--executor", "dask").exception)


def kept_in(file: Path) -> int:
    """Combinations that the file of a search holds; 0 before it is one."""
    if not file.exists():
        return 0
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as base, suppress(sqlite3.OperationalError):
        return base.execute("SELECT COUNT(*) FROM candidate").fetchone()[0]
    return 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_keeps_what_is_done(tmp_path):
    """Interrupted as soon as its file holds the first of 400,000: nothing depends on how fast the machine is."""
    file = tmp_path / "found.sqlite"
    over = [
        "--over",
        "layout.ep=8,16,32,64",
        "--over",
        "layout.pp=8,16",
        "--over",
        "overlap.comm_sms=" + ",".join(map(str, range(10, 60))),
        "--over",
        "run.price_per_gpu_hour=" + ",".join(map(str, range(1, 1001))),
    ]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child of what ignores it ignores it, too
    command = [sys.executable, "-m", "cli", "search", "deepseek-v3-1f1b", *over, "--confirm", "0", "--jobs", "2"]
    with subprocess.Popen(
        [*command, "--resume", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        while running.poll() is None and not kept_in(file):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    signal.signal(signal.SIGINT, before)
    assert running.returncode == 130, err
    assert "interrupted" in out
    assert "Traceback" not in err
    assert f"--resume {file}" in err
    left = re.search(r"interrupted, ([\d,]+) left", " ".join(out.split()))
    assert left is not None
    assert 0 < kept_in(file) == 4 * 2 * 50 * 1000 - int(left[1].replace(",", ""))
