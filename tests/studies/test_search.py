"""A whole search: numbering, ranking, interruption, resumption."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import product
from multiprocessing import active_children
from pathlib import Path

import pytest

from reports.terminal.console import rendered
from reports.terminal.search_tables import report, summary
from simulator.errors import ForetrainError, InputError
from simulator.inputs import load_scenario
from simulator.studies.search import Store, candidate, confirm, pareto, question, search, store, workers
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


def test_one_bad_candidate_is_a_row_with_its_error(asked, whole, monkeypatch, tmp_path):
    """A fault in judging one combination is kept next to the others, with a file too, and does not spoil the rest."""
    real = candidate.judge

    def judge(number, scenario, memo):
        if number == 7:
            raise ZeroDivisionError("float division\nby zero")
        return real(number, scenario, memo)

    monkeypatch.setattr(candidate, "judge", judge)
    file = tmp_path / "search.sqlite"
    found = search(asked, jobs=1, file=file)
    assert found.complete
    assert found.counts["failed"] == 1
    assert found.fault == "a fault of foretrain, please report it: ZeroDivisionError: float division by zero"
    assert f"1 failed ({found.fault})" in summary(found, 1.0)
    assert [one for one in found.best if one.number != 7] == [one for one in whole.best if one.number != 7]
    assert search(asked, jobs=1, file=file).counts == found.counts


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("schedule", ["zb1p", "dualpipe", "1f1b"])
def test_stages_without_layers_can_be_judged(schedule, zero):
    """Eight stages of few layers leave actions that hold nothing and take no time."""
    over = ["layout.pp=8", f"layout.schedule={schedule}", f"layout.zero={zero}", "layout.ep=8"]
    found = search(question("tiny-1f1b", (), over), jobs=1)
    assert found.counts == {"ok": 1, "too big": 0, "invalid": 0, "failed": 0}
    assert abs(confirm(found.asked, found.best, jobs=1)[0].difference) < 0.05


def run_sql(file, statement):
    with closing(sqlite3.connect(file)) as base, base:
        base.execute(statement)


def spoil(file, statement):
    search(question("tiny-1f1b", (), OVER), jobs=1, file=file)
    run_sql(file, statement)


def scramble(file):
    search(question("tiny-1f1b", (), OVER), jobs=1, file=file)
    content = bytearray(file.read_bytes())
    content[4096:4196] = b"\xff" * 100
    file.write_bytes(content)


BROKEN_FILES = {
    "no database": lambda file: file.write_text("not a database, but long enough to be looked at" * 50),
    "a loop of links": lambda file: file.symlink_to(file),
    "of a folder that is not there": lambda file: file.symlink_to(file.parent / "none" / "x.sqlite"),
    "another table": lambda file: run_sql(file, "CREATE TABLE candidate (a, b)"),
    "other rows": lambda file: spoil(file, "UPDATE candidate SET step = 'quick' WHERE status = 'ok'"),
    "numbers of no combination": lambda file: spoil(file, "UPDATE candidate SET number = number + 1000"),
    "bytes": scramble,
}


@pytest.mark.parametrize("what", BROKEN_FILES)
def test_a_file_that_cannot_be_used_is_one_line(asked, what, tmp_path):
    file = tmp_path / "search.sqlite"
    BROKEN_FILES[what](file)
    with pytest.raises(InputError, match=r"--resume: .*search\.sqlite: ") as told:
        search(asked, jobs=1, file=file)
    assert "\n" not in str(told.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_file_is_refused(asked, tmp_path):
    file = tmp_path / "search.sqlite"
    file.touch(0o400)
    with pytest.raises(InputError, match="cannot be written"):
        search(asked, jobs=1, file=file)


def test_a_file_that_another_process_holds_is_refused(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "_WAIT", 0.1)
    file = tmp_path / "search.sqlite"
    with closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match="another process holds it"):
            search(asked, jobs=1, file=file)


@pytest.mark.parametrize("freed", [True, False])
def test_a_file_that_is_locked_meanwhile_costs_no_result(asked, whole, tmp_path, monkeypatch, freed):
    """What could not be written is written as soon as it can be; else it is said how much is missing."""
    monkeypatch.setattr(store, "_WAIT", 0.1)
    monkeypatch.setattr(store, "_LAST_WAIT", 0.1)
    file = tmp_path / "search.sqlite"
    with closing(sqlite3.connect(tmp_path / "search.sqlite", isolation_level=None)) as other:

        def lock(done, size):
            if done <= 12:
                other.execute("BEGIN EXCLUSIVE") if not other.in_transaction else None
            elif freed and other.in_transaction:
                other.execute("ROLLBACK")

        found = search(asked, jobs=1, file=file, progress=lock)
    assert found == whole
    assert found.unsaved == "" if freed else "combinations that were judged are not in it" in found.unsaved
    again = search(asked, jobs=1, file=file)
    assert (again, again.judged == 0) == (whole, freed)


def exists(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_worker_keeps_what_is_done(tmp_path):
    """A process that the system kills ends the search, not its results: it goes on from its file."""
    asked = question("tiny-1f1b", (), [*OVER, "overlap.comm_sms=8,12,16,20,24,28"])
    file, seen = tmp_path / "search.sqlite", []

    def kill(done, size):
        if not seen:
            seen.append(done)
            for child in active_children():
                os.kill(child.pid, signal.SIGKILL)

    stopped = search(asked, jobs=2, file=file, progress=kill)
    assert not stopped.complete
    assert "killed" in stopped.stopped
    assert 0 < sum(stopped.counts.values()) < asked.size
    # Where two threads of Python wait for one process, one of them takes it for alive: ask the system.
    assert [child.pid for child in active_children() if exists(child.pid)] == []
    assert search(asked, jobs=1, file=file) == search(asked, jobs=1)


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
    sure = confirm(asked, whole.best[:3], jobs=1)
    assert [one.candidate for one in sure] == whole.best[:3]
    assert sorted(one.place for one in sure) == [1, 2, 3]
    assert [one.guess for one in sure] == [1, 2, 3]
    assert all(abs(one.difference) < 0.03 for one in sure)


def test_a_candidate_that_cannot_be_confirmed_costs_no_other(asked, whole, monkeypatch):
    bad, told = whole.best[1].number, []
    real = Scenarios.of
    monkeypatch.setattr(Scenarios, "of", lambda self, number: None if number == bad else real(self, number))
    sure = confirm(asked, whole.best[:3], jobs=1, failed=told.append)
    assert [one.candidate for one in sure] == [whole.best[0], whole.best[2]]
    assert len(told) == 1
    assert f"combination {bad} cannot be confirmed" in told[0]


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
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        assert search(asked, executor="dask", address=cluster.scheduler_address) == whole


def test_dask_survives_the_death_of_a_worker(asked, whole):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
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


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "x://:y", "tcp://no-such-host.invalid:8786"])
def test_a_cluster_that_is_not_there_is_one_line(asked, address, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "_PATIENCE", 1)
    with pytest.raises(ForetrainError, match=f"--address {address}: the cluster cannot be reached") as told:
        search(asked, executor="dask", address=address)
    assert "\n" not in str(told.value)


def test_a_cluster_that_dies_keeps_what_is_done(asked, whole, monkeypatch, tmp_path):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "_PATIENCE", 1)
    file = tmp_path / "search.sqlite"
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
    closed = []

    def close(done, size):
        if not closed:
            closed.append(cluster.close())

    found = search(asked, executor="dask", address=cluster.scheduler_address, progress=close, file=file)
    assert not found.complete
    assert "was lost" in found.stopped
    assert 0 < sum(found.counts.values()) < asked.size
    assert search(asked, jobs=1, file=file) == whole


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
