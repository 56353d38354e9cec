"""Pages, figures, traces and tables of serving steps: what they say is what was simulated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from reports.export.data_frames import tables
from reports.export.trace import write_trace
from reports.figures import write_comparison_figures, write_figures
from reports.html import Shown, write_comparison, write_search, write_serving
from reports.html.serving_memory_page import serving_memory_context, write_serving_memory
from reports.html.serving_page import serving_context
from reports.views.stages import middle_layer, stage_spans, waits
from simulator.inputs import load_scenario
from simulator.memory.serving import fits_with, memory_of_serving
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.studies.search import question, search
from simulator.studies.uncertainty import interval

DECODE, PREFILL = "deepseek-v3-decode-ep128", "deepseek-v3-prefill-ep32"


@pytest.fixture(scope="module")
def decode() -> Result:
    return simulate(load_scenario(DECODE))


@pytest.fixture(scope="module", params=[DECODE, PREFILL, "llama-3-8b-decode", "llama-3-8b-prefill"])
def any_step(request: pytest.FixtureRequest) -> Result:
    return simulate(load_scenario(request.param))


def test_stages_are_the_tasks_and_cover_every_layer_twice(decode: Result) -> None:
    spans = stage_spans(decode)
    assert [span.task for span in spans] == list(range(len(decode.timeline.start)))
    for microbatch in (0, 1):
        layers = {span.block for span in spans if span.segment == "dispatch" and span.microbatch == microbatch}
        assert layers == set(range(4, 62))  # 0 is the embedding, then three dense layers
    block, start, end = middle_layer(decode, spans)
    assert 0.0 < start < end < decode.metrics["step_time_s"]
    assert decode.built.stages[0][block] == "moe"


def test_waits_add_up_to_the_idle_time_of_each_stream(any_step: Result) -> None:
    spans = stage_spans(any_step)
    found = waits(any_step, spans)
    for compute in (True, False):
        mine = [span for span in spans if span.compute == compute]
        idle = (max(s.end for s in mine) - sum(s.end - s.start for s in mine)) if mine else 0.0
        assert sum(one.seconds for one in found if one.compute == compute) == pytest.approx(idle, abs=1e-7)


def test_in_a_layer_the_second_dispatch_waits_for_the_first_microbatch(decode: Result) -> None:
    found = {(one.who, one.whom): one for one in waits(decode, stage_spans(decode)) if not one.compute}
    assert found["combine of microbatch 1", "experts of microbatch 1"].times == 58
    assert ("dispatch of microbatch 1", "sum of microbatch 0") in found


def test_what_limits_a_step_adds_up_to_it(any_step: Result) -> None:
    m = any_step.metrics
    limits = [value for key, value in m.items() if key.startswith("bound_by_")]
    assert sum(limits) == pytest.approx(m["step_time_s"], rel=1e-6)
    assert limits == sorted(limits, reverse=True)
    assert 0.0 < m["memory_bandwidth_used"] < 1.0


def test_decode_moves_at_least_its_weights_and_cache(decode: Result) -> None:
    held = decode.memory.worst
    embedding = 129280 * 7168 * 2
    assert decode.metrics["memory_bytes_moved"] > held.group("weights") - embedding + held.group("kv_cache")


def test_the_page_shows_every_op_once(any_step: Result, tmp_path: Path) -> None:
    spread = interval(any_step.scenario, draws=5)
    context = serving_context(any_step, None, spread)
    assert sum(row["share"] for row in context["limits"]) == pytest.approx(1.0, rel=1e-6)
    assert sum(row["usd"] for row in context["limits"]) == pytest.approx(any_step.metrics["usd_per_million_tokens"])
    write_serving(any_step, tmp_path / "page.html", None, spread)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    shown = sum(len(lane["op"]) for lane in data["pair"]["lanes"])
    assert shown == sum(len(sequence.ops) for sequence in any_step.timeline.tasks.sequence)
    assert "How sure it is" in text
    assert "{{" not in text


def test_the_trace_says_where_an_op_stands_and_what_it_waited_for(decode: Result, tmp_path: Path) -> None:
    write_trace(decode, tmp_path / "step.json")
    events = json.loads((tmp_path / "step.json").read_text())["traceEvents"]
    ops = [event["args"] for event in events if event.get("ph") == "X" and "layer" in event.get("args", {})]
    assert {one["microbatch"] for one in ops} == {0, 1}
    assert {"projections", "attention, gate", "dispatch", "shared experts", "experts", "combine"} <= {
        one["stage"] for one in ops
    }
    late = [one for one in ops if one.get("waited_for") == "experts of microbatch 1" and one["stage"] == "combine"]
    assert len(late) == 58
    assert all(one["waited_us"] > 0 for one in late)


def test_figures_of_a_step_and_of_a_comparison(decode: Result, tmp_path: Path) -> None:
    names = {path.name for path in write_figures(decode, tmp_path / "step")}
    assert {"timeline.svg", "limits.svg", "classes.svg", "memory.svg", "roofline.svg"} <= names
    other = simulate(load_scenario(DECODE, ["serving.sequences=64"]))
    results = [one.as_dict() for one in (decode, other)]
    made = write_comparison_figures(["128", "64"], results, {"serving.sequences": ["128", "64"]}, tmp_path / "two")
    assert {"runs.svg", "scaling.svg", "pareto.svg"} <= {path.name for path in made}
    assert "tokens/s of each user" in (tmp_path / "two" / "pareto.svg").read_text()


def test_tables_for_pandas(decode: Result) -> None:
    found = tables(decode)
    assert set(found["stages"]["microbatch"]) == {0, 1}
    assert found["waits"]["seconds"].sum() == pytest.approx(
        sum(one.seconds for one in waits(decode, stage_spans(decode)))
    )


def test_the_memory_page_counts_up_to_the_most_that_fit(tmp_path: Path) -> None:
    scenario = load_scenario(DECODE)
    rows = serving_memory_context(scenario, memory_of_serving(scenario))["rows"]
    assert [row["sequences"] for row in rows] == [8, 16, 32, 64, 128, 202]
    assert rows[-1]["remark"] == "the most that fit"
    assert rows[-2]["remark"] == "this job"
    assert fits_with(scenario, 202)
    write_serving_memory(scenario, memory_of_serving(scenario), tmp_path / "memory.html")
    assert "Sequences on a data-parallel rank" in (tmp_path / "memory.html").read_text()


def test_a_comparison_and_a_search_draw_throughput_against_speed(decode: Result, tmp_path: Path) -> None:
    shown = [Shown(title="128", result=decode.as_dict())]
    other = simulate(load_scenario(DECODE, ["serving.sequences=64"]))
    write_comparison([*shown, Shown(title="64", result=other.as_dict())], tmp_path / "compare.html")
    found = search(question(DECODE, (), ("serving.sequences=32,64,128",)), jobs=1)
    write_search(found, (), tmp_path / "search.html")
    for name in ("compare.html", "search.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Throughput against speed" in text
        assert text.count("<circle") == len(found.best) if name == "search.html" else 2


# ---- in a browser -----------------------------------------------------------------------------------------------


def test_the_timeline_opens_at_a_layer_and_says_what_an_op_is(browser: Any, decode: Result, tmp_path: Path) -> None:
    write_serving(decode, tmp_path / "page.html")
    for width in (1200, 420):
        page = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector('html[data-ready="1"]', timeout=10_000)
        view = page.evaluate("(c => [c.view.from, c.view.to])(document.querySelector('canvas').timeline)")
        assert 0.0 < view[0] < view[1] < decode.metrics["step_time_s"]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        canvas = page.locator("#pair-timeline canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        page.mouse.move(box["x"] + 0.62 * box["width"], box["y"] + 2.5 * 44)
        assert "microbatch 1" in page.locator("#pair-timeline .tip").inner_text() or width < 500
        assert said == []
        page.close()
