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

OVER = ["--over", "layout.schedule=1f1b,zb1p,gpipe", "--over", "layout.zero=0,1"]


def ask(*arguments):
    return CliRunner().invoke(search, ["tiny-1f1b", *OVER, "--jobs", "1", *arguments], standalone_mode=False)


def test_the_best_come_first_and_are_confirmed():
    done = ask("--top", "2", "-q")
    assert done.exit_code == 0
    assert "Best by time per token" in done.stdout
    assert "events" in done.stdout
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
    command = [sys.executable, "-m", "cli", "search", "deepseek-v3-1f1b", *over, "--confirm", "0", "--jobs", "2"]
    with subprocess.Popen(
        [*command, "--resume", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        while running.poll() is None and not kept_in(file):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert running.returncode == 130, err
    assert "interrupted" in out
    assert "Traceback" not in err
    assert f"--resume {file}" in err
    left = re.search(r"interrupted, ([\d,]+) left", " ".join(out.split()))
    assert left is not None
    assert 0 < kept_in(file) == 4 * 2 * 50 * 1000 - int(left[1].replace(",", ""))
