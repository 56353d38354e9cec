"""`show graph` and the critical path of `explain` in the terminal and as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from cli import foretrain
from reports.terminal.showing.graph_tables import MARK, lines_of
from reports.views.graph_ops import graph_ops
from simulator.inputs import load_scenario
from simulator.results.simulate import simulate
from simulator.studies.block_graph import block_graphs


def run(*args: str) -> str:
    result = CliRunner().invoke(foretrain, list(args))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_lines_hold_every_op_once_and_only_what_follows_without_a_gap() -> None:
    ops = graph_ops(block_graphs(load_scenario("tiny-dualpipe"))[0])
    lines = lines_of(ops)
    assert sorted(one.node for line in lines for one in line.ops) == sorted(one.node for one in ops)
    assert len(lines) < len(ops) / 4
    for line in lines:
        assert line.seconds == pytest.approx(sum(one.span.seconds for one in line.ops))
        assert len({one.critical for one in line.ops}) == 1


@pytest.mark.parametrize("args", [("tiny-dualpipe",), ("tiny-zb1p",), ("tiny-1f1b", "-v"), ("llama-3-8b",)])
def test_the_table_is_narrow_and_marks_the_path(args: tuple[str, ...]) -> None:
    text = run("show", "graph", *args)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert sum(MARK in line for line in text.splitlines()) > 3
    assert "The critical path is" in text


def test_json_holds_the_graph() -> None:
    shown = json.loads(run("show", "graph", "tiny-1f1b", "--json"))
    assert (shown["schema"], shown["job"], shown["block"]) == ("foretrain.graph/1", "tiny-1f1b", "moe")
    for action in shown["actions"]:
        ops = {op["id"]: op for op in action["ops"]}
        assert {edge[end] for edge in action["edges"] for end in ("from", "to")} <= set(ops)
        assert sum(ops[name]["seconds"] for name in action["critical_path"]) == pytest.approx(action["seconds"])
        assert {name for name, op in ops.items() if op["critical"]} == set(action["critical_path"])


def test_the_host_is_shown_where_it_holds_ops_back() -> None:
    slow = ("--set", "stack.host_kernel=2e-3")
    host = json.loads(run("show", "graph", "tiny-1f1b", "--json", *slow))["actions"][0]["host"]
    assert host
    assert all(seconds > 0 for seconds in host.values())
    assert "of the host's issue" in run("show", "graph", "tiny-1f1b", *slow)


def path_of(*args: str) -> dict[str, Any]:
    return dict(json.loads(run("explain", *args, "--json", "--no-sensitivity"))["critical_path"])


@pytest.mark.parametrize("engine", ["longest-path", "events"])
def test_explain_adds_the_path_up_to_the_step_of_its_engine(engine: str) -> None:
    shown = path_of("tiny-dualpipe", "--engine", engine)
    step = simulate(load_scenario("tiny-dualpipe"), engine=engine).metrics["step_time_s"]  # type: ignore[arg-type]
    assert shown["engine"] == engine
    assert shown["step_time_s"] == step
    assert sum(one["seconds"] for one in shown["classes"]) == pytest.approx(step)
    assert sum(one["share"] for one in shown["classes"]) == pytest.approx(1.0)


def test_explain_shows_the_path_and_says_when_the_host_is_on_it() -> None:
    text = run("explain", "tiny-dualpipe", "--no-sensitivity")
    assert all(len(line) <= 80 for line in text.splitlines())
    after = text.split("Critical path of the step")[1].splitlines()
    total = next(line for line in after if "all: the step time" in line)
    shares = [float(line.split(" %")[0].split()[-1]) for line in after[: after.index(total)] if " % " in line]
    assert sum(shares) == pytest.approx(100.0, abs=0.05 * len(shares))
    slow = run("explain", "tiny-dualpipe", "--no-sensitivity", "--set", "stack.host_kernel=2e-3")
    assert "the host issues kernels" in slow
