"""Curves, figures and page of a replay: what they draw is what was replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import foretrain
from reports.figures.replay_figure import write_replay_figures
from reports.html import write_replay
from reports.views.replay_curves import distributions, over_time
from simulator.inputs import load_scenario
from simulator.serving.deployment import deploy
from simulator.serving.load.sources import LoadSpec
from simulator.serving.serve import Overload, Served, serve

SMALL = ("stack=vllm", "model.num_hidden_layers=2")


@pytest.fixture(scope="module")
def served() -> Served:
    deployment = deploy(load_scenario("llama-3-8b-decode", SMALL, replayed=True))
    return serve(deployment, LoadSpec(requests="chat", count=60), limits={"ttft": 0.02})


def test_distributions_pass_through_the_quantiles(served: Served) -> None:
    panel = distributions(served)
    assert panel is not None
    assert panel.curves[0].name == "time to first token"
    for curve, sketch in zip(panel.curves, (served.recorder.ttft, served.recorder.tpot), strict=False):
        assert curve.y[0] == 0.0
        assert curve.y[-1] == 100.0
        assert list(curve.x) == sorted(curve.x)
        below = max(
            y for x, y in zip(curve.x, curve.y, strict=True) if x <= 1e3 * (sketch.quantile(0.9) or 0.0) * 1.001
        )
        assert below == pytest.approx(90, abs=2)
    assert panel.limits == [("time to first token", panel.curves[0].colour, 20.0)]


def test_tokens_over_time_add_up_to_those_of_the_requests(served: Served) -> None:
    recorder = served.recorder
    tokens = over_time(served)[2]
    width = tokens.curves[0].x[1] - tokens.curves[0].x[0]
    made, computed, cached = (sum(curve.y[:-1]) * width for curve in tokens.curves)
    assert made == pytest.approx(recorder.outputs - recorder.finished_count)  # first tokens come with the prompts
    assert computed + cached == pytest.approx(recorder.inputs)
    assert cached == pytest.approx(recorder.hits)
    assert recorder.hits > 0


def test_the_page_says_what_the_replay_found(served: Served, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_replay(served, page)
    text = page.read_text(encoding="utf-8")
    ttft = (served.recorder.ttft.quantile(0.99) or 0.0) * 1e3
    assert f"99 of 100 requests wait at most {ttft:.2f} ms" in text
    assert text.count('<svg class="chart"') == 4
    assert "dashed: its limit" in text
    over = replace(served, overload=Overload(rate=20.0, capacity=7.5))
    write_replay(over, page)
    text = page.read_text(encoding="utf-8")
    assert "20 requests/s come, 7.5 are answered" in text
    assert text.count('<svg class="chart"') == 3
    assert "99 of 100" not in text


def test_figures_leave_out_latencies_in_overload_and_are_the_same_bytes(served: Served, tmp_path: Path) -> None:
    first = write_replay_figures(served, tmp_path / "a")
    assert sorted(file.name for file in first) == ["latencies.png", "latencies.svg", "over-time.png", "over-time.svg"]
    over = write_replay_figures(replace(served, overload=Overload(rate=20.0, capacity=7.5)), tmp_path / "b")
    assert [file.name for file in over] == ["over-time.svg", "over-time.png"]
    assert [file.read_bytes() for file in over] == [file.read_bytes() for file in first if file.stem == "over-time"]


def _serve(*more: str) -> tuple[int, str]:
    sets = [word for one in SMALL for word in ("--set", one)]
    words = ["serve", "llama-3-8b-decode", *sets, "--requests", "chat", "--count", "5", *more]
    run = CliRunner(env={"NO_COLOR": "1"}).invoke(foretrain, words)
    return run.exit_code, run.stderr


def test_serve_writes_page_and_trace_and_refuses_a_window_without_one(tmp_path: Path) -> None:
    files = {"--html": "p.html", "--trace": "t.json"}
    code, err = _serve(*(word for option, name in files.items() for word in (option, str(tmp_path / name))))
    assert code == 0, err
    assert all((tmp_path / name).exists() for name in files.values())
    assert _serve("--window", "0:1")[0] == 2
    code, err = _serve("--trace", str(tmp_path / "late.json"), "--window", "5000:5001")
    assert code == 2
    assert "--window: 5000 s: the replay ends after" in err
    assert not (tmp_path / "late.json").exists()
