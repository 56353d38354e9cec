"""Pages: one file that needs nothing, does nothing that a name injects, and works in a real browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli import foretrain
from reports.html import Shown, write_comparison, write_search, write_simulation
from reports.html.charts import ticks
from reports.html.graph_page import write_graphs
from reports.html.memory_page import thinned
from reports.html.payload import embedded
from reports.views.actions import action_list
from simulator.inputs import load_scenario
from simulator.memory import GROUPS, Curve
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.spec.scenario import Scenario
from simulator.studies.block_graph import BlockGraph, block_graphs
from simulator.studies.search import confirm, question, search
from simulator.studies.sensitivity import Bar, Knob, Tornado

EVIL = "</script><script>document.title='pwned'</script><img src=x onerror=\"document.title='pwned'\">"


@pytest.fixture(scope="module")
def result() -> Result:
    return simulate(load_scenario("tiny-dualpipe"))


@pytest.fixture(scope="module")
def big(v3: Scenario) -> Result:
    return simulate(v3)


def evil(result: Result) -> Result:
    """The same with names that try to be markup."""
    scenario = result.scenario
    gpu = replace(scenario.cluster.gpu, name=EVIL)
    scenario = replace(
        scenario, name=EVIL, model=replace(scenario.model, name=EVIL), cluster=replace(scenario.cluster, gpu=gpu)
    )
    return replace(result, scenario=scenario, warnings=[EVIL], stages=[EVIL] * len(result.stages))


class Elements(HTMLParser):
    """Counts elements, and notes addresses that would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith("#"):
                self.fetched.append(value)


def elements(file: Path) -> Elements:
    parser = Elements()
    parser.feed(file.read_text(encoding="utf-8"))
    return parser


# ---- without a browser ------------------------------------------------------------------------------------------


def test_a_page_is_one_file_that_fetches_nothing(result: Result, tmp_path: Path) -> None:
    write_simulation(result, tmp_path / "p.html")
    found = elements(tmp_path / "p.html")
    assert found.fetched == []
    assert found.counts["script"] == 2
    assert found.counts["canvas"] == 2


def test_names_stay_text(result: Result, tmp_path: Path) -> None:
    write_simulation(evil(result), tmp_path / "p.html")
    found = elements(tmp_path / "p.html")
    assert found.counts["script"] == 2
    assert "img" not in found.counts


def test_embedded_json_cannot_leave_its_element() -> None:
    text = str(embedded({"name": EVIL + "\u2028<!--"}))
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"name": EVIL + "\u2028<!--"}


def test_the_same_result_gives_the_same_bytes(result: Result, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_simulation(result, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.long
def test_the_full_step_is_small(big: Result, tmp_path: Path) -> None:
    write_simulation(big, tmp_path / "v3.html")
    assert (tmp_path / "v3.html").stat().st_size < 6e6


@pytest.mark.long
def test_verbs_write_pages_figures_and_tables(tmp_path: Path) -> None:
    page, figures, tables = tmp_path / "p.html", tmp_path / "figures", tmp_path / "tables"
    options = ["--html", str(page), "--figures", str(figures), "--export", str(tables)]
    assert CliRunner().invoke(foretrain, ["simulate", "tiny-1f1b", *options]).exit_code == 0
    assert "is forecast to take" in page.read_text(encoding="utf-8")
    assert (figures / "timeline.svg").is_file()
    assert (tables / "timeline.csv").is_file()


def test_compare_keeps_what_failed(tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    run = CliRunner().invoke(
        foretrain, ["compare", "tiny-dualpipe", "--vary", "layout.schedule=1f1b,dualpipe", "--vary", "layout.pp=4,3",
                    "--html", str(page)],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    text = page.read_text(encoding="utf-8")
    assert "Not possible" in text
    assert elements(page).counts["canvas"] == 2


@pytest.mark.parametrize("option", ["--html", "--figures", "--export"])
def test_a_place_that_does_not_exist_is_refused_before_anything_runs(option: str) -> None:
    run = CliRunner().invoke(foretrain, ["simulate", "tiny-1f1b", option, "/nowhere/at/all"])
    assert run.exit_code == 2
    assert f"{option}: /nowhere/at/all: there is no directory /nowhere/at" in run.output


def test_ticks_are_round_and_inside() -> None:
    assert [label for _, label in ticks(18.2, 9, "s")] == ["0 s", "5 s", "10 s", "15 s"]
    assert [label for _, label in ticks(62.0, 5, "s", start=51.0)] == ["55 s", "60 s"]
    assert [label for _, label in ticks(0.05, 5, "ms")] == ["0 ms", "10 ms", "20 ms", "30 ms", "40 ms", "50 ms"]


def test_thinning_a_curve_keeps_its_peak() -> None:
    times = [at / 1000 for at in range(5000)]
    groups = {name: [0.0] * 5000 for name in GROUPS}
    groups["activations"] = [99.0 if at == 3333 else 1.0 for at in range(5000)]
    _, columns = thinned(Curve(rank=0, times=times, groups=groups), 100)
    assert max(map(sum, columns)) == 99.0


def graph_page(file: Path, job: str = "tiny-dualpipe", name: str = EVIL) -> tuple[BlockGraph, ...]:
    shown = block_graphs(load_scenario(job))
    write_graphs(shown, name, file)
    return shown


def test_the_page_of_an_op_graph_names_every_op(tmp_path: Path) -> None:
    shown = graph_page(tmp_path / "g.html", "tiny-1f1b")
    found = elements(tmp_path / "g.html")
    text = (tmp_path / "g.html").read_text(encoding="utf-8")
    assert found.fetched == []
    assert found.counts["canvas"] == len(shown)
    assert EVIL not in text
    assert all(f"<td>{node}</td>" in text for one in shown for node in one.path)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])  # type: ignore[index]
    for graph, one in zip(data["graphs"], shown, strict=True):
        assert sum(len(lane["op"]) for lane in graph["lanes"]) == len(graph["ops"]) == len(one.graph) - 2
        assert graph["path"][0][1] == 0.0
        assert graph["path"][-1][1] == pytest.approx(one.seconds)


# ---- in a browser -----------------------------------------------------------------------------------------------


class Opened:
    """A page in the browser, with everything it complained about."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.page = browser.new_page(viewport={"width": 1200, "height": 900}, **options)
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector('html[data-ready="1"]', timeout=10_000)

    def canvas(self, name: str) -> Any:
        canvas = self.page.locator(f"#{name} canvas")
        canvas.scroll_into_view_if_needed()
        return canvas

    def view(self, name: str) -> tuple[float, float]:
        found = self.page.evaluate(
            f"(c => [c.view.from, c.view.to])(document.querySelector('#{name} canvas').timeline)"
        )
        return found[0], found[1]

    def colours(self, name: str) -> int:
        """Number of different colours on a canvas."""
        return int(
            self.page.evaluate(
                f"""(c => {{ const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data, s = new Set();
                for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]);
                return s.size; }})(document.querySelector('#{name} canvas'))"""
            )
        )


@pytest.fixture(scope="module")
def opened(browser: Any, big: Result, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    file = tmp_path_factory.mktemp("page") / "v3.html"
    base = big.metrics["step_time_s"]
    knob = Knob(path="hardware.node.nic.bandwidth", kind="hardware", value=5e10, low=4.5e10, high=5.5e10, source="test")
    swing = Bar(knob=knob, at_low=1.02 * base, at_high=0.99 * base)
    write_simulation(big, file, Tornado(base=base, engine="longest-path", swings=(swing,)))
    return Opened(browser, file)


def test_it_opens_silently(opened: Opened) -> None:
    assert opened.said == []
    assert len(opened.requests) == 1


def test_both_timelines_are_drawn(opened: Opened) -> None:
    assert opened.colours("step-timeline") > 6
    assert opened.colours("pair-timeline") > 4


def test_hovering_says_what_runs(opened: Opened, big: Result) -> None:
    canvas = opened.canvas("step-timeline")
    opened.page.keyboard.press("Escape")
    box = canvas.bounding_box()
    opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 100)
    tip = opened.page.locator("#step-timeline .tip").inner_text()
    assert "overlapped" in tip
    assert "of microbatch" in tip
    assert "stage" in tip
    assert "ms" in tip


def test_the_wheel_zooms_to_single_runs_and_the_button_goes_back(opened: Opened) -> None:
    canvas = opened.canvas("step-timeline")
    box = canvas.bounding_box()
    opened.page.mouse.move(box["x"] + 500, box["y"] + 100)
    before = opened.view("step-timeline")
    for _ in range(10):
        opened.page.mouse.wheel(0, -300)
    opened.page.wait_for_function(
        "(c => c.view.to - c.view.from < 0.3)(document.querySelector('#step-timeline canvas').timeline)"
    )
    found = set()
    for down in range(60, 240, 3):
        opened.page.mouse.move(box["x"] + 501, box["y"] + down)
        found.add(opened.page.locator("#step-timeline .tip").inner_text().split("\n")[0])
    assert {name for name in found if re.match(r"(attn|mlp)\.[FBW]", name)}
    opened.page.locator("#step-timeline button[data-do=all]").click()
    assert opened.view("step-timeline") == before


def test_dragging_pans(opened: Opened) -> None:
    canvas = opened.canvas("pair-timeline")
    opened.page.locator("#pair-timeline button[data-do=in]").click()
    before = opened.view("pair-timeline")
    box = canvas.bounding_box()
    opened.page.mouse.move(box["x"] + 600, box["y"] + 20)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 500, box["y"] + 20, steps=4)
    opened.page.mouse.up()
    after = opened.view("pair-timeline")
    assert after[0] > before[0]
    assert after[1] - after[0] == pytest.approx(before[1] - before[0])


def test_keys_move_through_boxes(opened: Opened) -> None:
    canvas = opened.canvas("step-timeline")
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        opened.page.keyboard.press(key)
    said = opened.page.locator("#step-timeline .live").text_content()
    assert "rank 1" in said
    opened.page.keyboard.press("Enter")
    start, end = opened.view("step-timeline")
    assert end - start < 1
    opened.page.keyboard.press("0")
    assert opened.view("step-timeline")[0] == 0


def test_tables_sort_and_filter(opened: Opened) -> None:
    times = "Array.from(document.querySelectorAll('#op-table tbody tr')).map(r => +r.cells[5].dataset.value)"
    heading = opened.page.locator("#op-table th button", has_text="time")
    heading.click()
    down = opened.page.evaluate(times)
    assert down == sorted(down, reverse=True)
    heading.click()
    assert opened.page.evaluate(times) == sorted(down)
    opened.page.locator("input[type=search]").fill("dispatch")
    shown = "Array.from(document.querySelectorAll('#op-table tbody tr')).filter(r => !r.hidden).length"
    assert 0 < opened.page.evaluate(shown) < len(down)
    opened.page.locator("input[type=search]").fill("gemm")  # kernel classes are found by their codes, too
    assert 0 < opened.page.evaluate(shown) < len(down)
    opened.page.locator("input[type=search]").fill("no such op")
    assert opened.page.evaluate(shown) == 0
    assert "no row has" in opened.page.locator("#ops [role=status]").inner_text()
    opened.page.locator("input[type=search]").fill("")
    assert opened.page.evaluate(shown) == len(down)


def test_the_action_to_look_into_can_be_chosen(browser: Any, tmp_path: Path) -> None:
    page = str(tmp_path / "page.html")
    said = CliRunner().invoke(foretrain, ["simulate", "tiny-1f1b", "--html", page, "--action", "9B9"])
    assert said.exit_code == 2
    assert said.stderr.startswith("foretrain: --action: '9B9': the step has no such action")
    assert CliRunner().invoke(foretrain, ["simulate", "tiny-1f1b", "--action", "2B3"]).exit_code == 2
    assert CliRunner().invoke(foretrain, ["simulate", "tiny-1f1b", "--html", page, "--action", "2B3"]).exit_code == 0
    one = Opened(browser, tmp_path / "page.html")
    assert one.page.locator("#pair h2").inner_text() == "Inside one backward: 2B3"
    assert "as asked" in one.page.locator("#pair .note").first.inner_text()
    one.page.close()


@pytest.mark.parametrize("width", [420, 1200])
def test_nothing_hangs_over_the_edge(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.set_viewport_size({"width": 1200, "height": 900})


def test_sensitivity_shows_both_ends(opened: Opened) -> None:
    text = opened.page.locator("#swings tbody").inner_text()
    assert "hardware.node.nic.bandwidth" in text
    assert "+2.00 %" in text
    assert "-1.00 %" in text


def test_dark_and_print(opened: Opened) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = opened.page.evaluate(colour)
    opened.page.locator("#theme").click()
    assert opened.page.evaluate(colour) != light
    opened.page.locator("#theme").click()
    opened.page.emulate_media(media="print")
    assert not opened.page.locator("#step-timeline .tools").is_visible()
    assert not opened.page.locator("#op-table").is_visible()  # nine of fifteen printed pages
    opened.page.emulate_media(media="screen")
    assert opened.said == []


def test_markup_in_names_does_nothing(browser: Any, result: Result, tmp_path: Path) -> None:
    write_simulation(evil(result), tmp_path / "p.html")
    one = Opened(browser, tmp_path / "p.html")
    assert one.said == []
    assert one.page.title() == f"foretrain: {EVIL}"
    assert one.page.locator("h1").inner_text() == EVIL
    canvas = one.canvas("step-timeline")
    box = canvas.bounding_box()
    one.page.mouse.move(box["x"] + 400, box["y"] + 20)
    assert one.page.locator("#step-timeline .tip img").count() == 0
    assert one.page.title() == f"foretrain: {EVIL}"
    one.page.close()


def test_runs_side_by_side_share_one_axis(browser: Any, tmp_path: Path) -> None:
    shown = []
    for schedule in ("1f1b", "dualpipe"):
        ran = simulate(load_scenario("tiny-dualpipe", [f"layout.schedule={schedule}"]))
        shown.append(Shown(title=EVIL + schedule, result=ran.as_dict(), actions=action_list(ran.timeline)))
    write_comparison(shown, tmp_path / "c.html", [(EVIL, EVIL)])
    one = Opened(browser, tmp_path / "c.html", color_scheme="dark")
    assert one.said == []
    assert one.view("steps-0") == one.view("steps-1")
    one.page.locator("#steps-0 button[data-do=in]").click()
    assert one.view("steps-0") == one.view("steps-1")
    assert one.colours("steps-0") > 4
    one.page.close()


def test_pages_of_memory_and_search(browser: Any, tmp_path: Path) -> None:
    page = tmp_path / "m.html"
    assert CliRunner().invoke(foretrain, ["memory", "tiny-1f1b", "--html", str(page)]).exit_code == 0
    asked = question("tiny-dualpipe", [], ["layout.pp=2,4", "layout.schedule=1f1b,dualpipe"])
    found = search(asked, jobs=1)
    write_search(found, confirm(asked, found.best[:1]), tmp_path / "s.html")
    for file, heading in (
        (page, "Memory of one step of tiny-1f1b"),
        (tmp_path / "s.html", "Search from tiny-dualpipe"),
    ):
        one = Opened(browser, file)
        assert one.said == []
        assert one.page.locator("h1").inner_text() == heading
        assert one.page.locator("svg.chart").count() == 1
        assert one.page.locator("header .soft").first.inner_text() == "deepseek-v3-tiny on 64 x H800 SXM 80GB"
        one.page.set_viewport_size({"width": 420, "height": 900})
        assert one.page.evaluate("document.documentElement.scrollWidth") <= 420
        one.page.close()


def test_hovering_an_op_of_a_graph_says_whether_it_is_critical(browser: Any, tmp_path: Path) -> None:
    graph_page(tmp_path / "g.html")
    one = Opened(browser, tmp_path / "g.html")
    assert one.page.title() == f"foretrain: MoE layer of {EVIL}"
    assert one.colours("graph-0") > 5
    box = one.canvas("graph-0").bounding_box()
    printed = set()
    for down in (30, 94):
        for across in range(60, 1100, 40):
            one.page.mouse.move(box["x"] + across, box["y"] + down)
            printed.add(one.page.locator("#graph-0 .tip").inner_text())
    assert any("on the critical path" in text for text in printed)
    assert any("not critical: could last" in text for text in printed)
    assert any("needs the data of: " in text for text in printed)
    one.page.set_viewport_size({"width": 420, "height": 900})
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 420
    assert one.said == []
    one.page.close()
