"""A whole search: numbering, ranking, interruption, resumption."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from reports.terminal.console import rendered
from reports.terminal.search_tables import report
from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.studies.search import Store, confirm, pareto, question, search
from simulator.studies.search.axes import Scenarios, parse_axis
from simulator.studies.search.candidate import Candidate, Judge, dominates
from simulator.studies.search.workers import chunks

OVER = (
    "layout.pp=2,4",
    "layout.schedule=1f1b,zb1p,dualpipe",
    "layout.recompute=deepseek,full",
    "layout.ep=8,16,3",
)


@pytest.fixture(scope="module")
def asked():
    return question("tiny-1f1b", (), OVER)


@pytest.fixture(scope="module")
def whole(asked):
    return search(asked, jobs=1)


def test_axes_that_change_shapes_turn_slowest(asked):
    assert [axis.path for axis in asked.axes] == ["layout.ep", "layout.recompute", "layout.pp", "layout.schedule"]
    assert asked.size == 36
    assert asked.block == 6
    found = [asked.values(n) for n in range(asked.size)]
    assert found == list(product(*(axis.values for axis in asked.axes)))
    assert set(found) == set(product(["8", "16", "3"], ("deepseek", "full"), "24", OVER[1][16:].split(",")))


def test_a_combination_is_the_scenario_that_set_would_make(asked):
    scenarios = Scenarios(asked)
    for number in (0, 7, 35):
        overrides = [f"{a.path}={v}" for a, v in zip(asked.axes, asked.values(number), strict=True)]
        assert scenarios.of(number) == load_scenario("tiny-1f1b", overrides)


def test_hardware_model_and_stack_can_be_varied():
    asked = question(
        "tiny-1f1b", (), ["hardware.node.nvlink.bandwidth=8e10,16e10", "stack=torch,deepseek", "layout.zero=0,1"]
    )
    scenarios = Scenarios(asked)
    for number in range(asked.size):
        overrides = [f"{a.path}={v}" for a, v in zip(asked.axes, asked.values(number), strict=True)]
        assert scenarios.of(number) == load_scenario("tiny-1f1b", overrides)


def test_commas_in_brackets_belong_to_the_value():
    assert parse_axis("layout.stages=[1,2],even").values == ("[1,2]", "even")


@pytest.mark.parametrize("text", ["layout.pp", "layout.pp=", "=4", "layout.pp=4,,8", "layout.pp=4,4"])
def test_bad_axes_are_errors(text):
    with pytest.raises(InputError, match="--over"):
        question("tiny-1f1b", (), [text])


def test_a_typo_in_an_axis_names_the_option_and_the_key():
    with pytest.raises(InputError, match=r"^--over: layout\.ppp: .*did you mean layout\.pp"):
        Scenarios(question("tiny-1f1b", (), ["layout.ppp=2,4"]))


def test_every_combination_is_judged_once(asked, whole):
    assert sum(whole.counts.values()) == asked.size
    assert whole.complete
    assert whole.counts["invalid"] >= 12  # 3 ranks do not divide the experts
    assert [one.per_token for one in whole.best] == sorted(one.per_token for one in whole.best)


def test_chunks_cover_what_is_left(asked):
    done = {0, 1, 2, 17}
    left = [number for numbers in chunks(asked, done) for number in numbers]
    assert sorted(left) == sorted(set(range(asked.size)) - done)
    assert len(left) == len(set(left))


def test_many_processes_find_the_same(asked, whole):
    assert search(asked, jobs=2) == whole


def test_resumed_after_an_interruption_it_gives_the_same(asked, whole, tmp_path):
    file = tmp_path / "search.sqlite"

    def interrupt(done, size):
        if done >= 12:
            raise KeyboardInterrupt

    stopped = search(asked, jobs=1, file=file, progress=interrupt)
    assert not stopped.complete
    assert 12 <= sum(stopped.counts.values()) < asked.size
    assert search(asked, jobs=1, file=file) == whole
    calls = []
    assert search(asked, jobs=1, file=file, progress=lambda done, size: calls.append(done)) == whole
    assert not calls  # nothing was left to do


def test_a_file_of_another_search_is_refused(asked, tmp_path):
    file = tmp_path / "search.sqlite"
    search(asked, jobs=1, file=file)
    for other in (question("tiny-1f1b", (), OVER[:2]), question("tiny-1f1b", ["layout.zero=0"], OVER)):
        with pytest.raises(InputError, match="another search"):
            search(other, jobs=1, file=file)


def test_a_file_that_is_no_database_is_refused(asked, tmp_path):
    file = tmp_path / "search.sqlite"
    file.write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(InputError, match="not a file of an earlier search"):
        search(asked, file=file)


def test_a_torn_write_leaves_whole_candidates(asked, tmp_path):
    """A process that dies in the middle of adding leaves the file as it was before."""
    file = tmp_path / "search.sqlite"
    with Store(asked, file) as store:
        store.add([Candidate(number=0, status="invalid", why="x")])
        with pytest.raises(sqlite3.Error):
            store.add([Candidate(number=1, status="ok", step=1.0), Candidate(number=2, status="ok", step=object())])
        assert store.done() == {0}


def test_the_front_holds_what_nothing_dominates(asked):
    every = Judge(Scenarios(asked))(range(asked.size))
    front = pareto(every)
    able = [one for one in every if one.status == "ok"]
    assert front
    for one in able:
        assert (one in front) == (not any(dominates(other, one) for other in able)) or any(
            (kept.per_token, kept.cost, kept.memory) == (one.per_token, one.cost, one.memory) for kept in front
        )
    assert min(able, key=lambda one: one.per_token).per_token == front[0].per_token


def test_ranked_by_memory_and_cost(asked):
    by_memory = search(asked, jobs=1, rank="memory").best
    assert [one.memory for one in by_memory] == sorted(one.memory for one in by_memory)
    assert search(asked, jobs=1, rank="cost", top=3).best[0].cost == min(one.cost for one in by_memory)


def test_confirmed_by_the_full_engine(asked, whole):
    sure = confirm(asked, whole.best[:3])
    assert [one.candidate for one in sure] == whole.best[:3]
    assert sorted(one.place for one in sure) == [1, 2, 3]
    assert all(abs(one.difference) < 0.03 for one in sure)


def test_what_is_too_big_is_said_with_its_memory():
    asked = question("tiny-1f1b", ["hardware.gpu.hbm_bytes=1.0e9"], ["layout.zero=0,1"])
    found = search(asked, jobs=1)
    assert found.counts["too big"] == 2
    assert found.best == []


def test_where_nothing_can_run_the_commonest_obstacle_is_said():
    asked = question("deepseek-v3-pretrain", ["hardware=gb200"], ["layout.ep=8,64"])
    found = search(asked, jobs=1)
    assert found.best == []
    assert found.obstacle.startswith("gpus: 2048: not a whole number of nodes of 72 GPUs")
    page = rendered(*report(found, (), 1.0), columns=300, colour=False)
    assert f"Nothing that was judged can run. Most often: {found.obstacle}" in page


def test_invalid_says_why(asked):
    judged = Judge(Scenarios(asked))(range(asked.size))
    why = {one.why for one in judged if one.status == "invalid"}
    assert any("layout.ep" in text for text in why)


def test_dask_gives_the_same_where_it_is_there(asked, whole):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert search(asked, executor="dask", address=cluster.scheduler_address) == whole


def test_dask_survives_the_death_of_a_worker(asked, whole):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        killed = []

        def kill(done, size):
            if not killed:
                with distributed.Client(cluster.scheduler_address) as client:
                    pids = client.run(os.getpid)
                    killed.append(next(iter(pids.values())))
                    os.kill(killed[0], signal.SIGKILL)

        found = search(asked, executor="dask", address=cluster.scheduler_address, progress=kill)
    assert killed
    assert found == whole


def test_without_dask_the_error_says_what_to_install(asked, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(InputError, match="pip install"):
        search(asked, executor="dask", address="tcp://localhost:1")


UNGUARDED = """
import sys
sys.path.insert(0, {root!r})
from simulator.studies.search import question, search
print(search(question("tiny-1f1b", (), ["layout.pp=2,4", "layout.ep=8,16"]), jobs=2).counts["ok"])
"""


@pytest.mark.long
@pytest.mark.parametrize("stdin", [False, True])
def test_a_script_without_a_main_guard_may_search_with_several_processes(tmp_path, stdin):
    """Workers neither run the script again nor look for a file called <stdin>."""
    code = UNGUARDED.format(root=str(Path(__file__).parents[2]))
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, "-" if stdin else str(script)]
    done = subprocess.run(command, input=code, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("4\n", "")
