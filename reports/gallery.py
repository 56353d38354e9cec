"""Draws the pictures of the documentation: `make figures`, or `python -m reports.gallery`.

Figures of one step of DeepSeek-V3, its scaling curves, and where Chromium and playwright are installed a screenshot
of the page.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from reports.figures import write_comparison_figures, write_figures
from reports.figures.curves_figure import Swept, scaling_figure
from reports.figures.graph_figure import graph_figure
from reports.figures.style import save, styled
from reports.html import write_simulation
from reports.views.variants import run_all, variants
from simulator.inputs import load_scenario
from simulator.results.result import Result
from simulator.results.simulate import simulate
from simulator.studies.block_graph import block_graphs

JOB = "deepseek-v3-pretrain"
CURVES = {
    "gpus": ("gpus", "GPUs, same global batch", ("512", "1024", "2048", "4096", "8192")),
    "microbatches": ("batch.global_batch_size", "global batch [sequences]", ("3840", "7680", "15360", "30720")),
    "ep": ("layout.ep", "expert parallelism", ("8", "16", "32", "64", "128")),
    "bandwidth": ("hardware.node.nic.bandwidth", "NIC bandwidth [B/s]", ("25e9", "50e9", "100e9", "200e9")),
}
"""File -> (input, its label, values)."""


def draw(folder: Path) -> list[Path]:
    """Draw everything into `folder`."""
    result = simulate(load_scenario(JOB))
    files = write_figures(result, folder)
    for name, (path, label, values) in CURVES.items():
        files += curve(folder, name, path, label, values)
    files += graphs(folder)
    schedules = ("1f1b", "zb1p", "dualpipe", "dualpipev")
    ran = [o for o in run_all(variants([JOB], [("layout.schedule", list(schedules))], [])) if o.result]
    names = [o.variant.varied[0][1] for o in ran]
    found = [o.result for o in ran if o.result]
    return (
        files
        + write_comparison_figures(names, found, {"layout.schedule": names}, folder)
        + photographed(result, folder)
    )


def graphs(folder: Path) -> list[Path]:
    """The op graph of a MoE layer: overlapped with itself, and in lone actions."""
    files = []
    for name, job in (("graph", JOB), ("graph-alone", "deepseek-v3-zb1p")):
        with styled():
            files += save(graph_figure(block_graphs(load_scenario(job)), job), folder, name)
    return files


def curve(folder: Path, name: str, path: str, label: str, values: tuple[str, ...]) -> list[Path]:
    """One scaling figure by the quick engine; values that break a rule are left out."""
    outcomes = run_all(variants([JOB], [(path, list(values))], []), "longest-path")
    ran = [(float(o.variant.varied[0][1]), o.result["metrics"]) for o in outcomes if o.result]
    if not ran:
        return []
    with styled():
        line = Swept(name=JOB, values=[value for value, _ in ran], metrics=[metrics for _, metrics in ran])
        return save(scaling_figure(label, [line]), folder, f"scaling-{name}")


def photographed(result: Result, folder: Path) -> list[Path]:
    """Screenshots of the page and of its timeline zoomed in; none without a browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return []
    if chromium is None:
        return []
    files = [folder / "page.png", folder / "page-timeline.png"]
    with TemporaryDirectory() as place, sync_playwright() as started:
        file = Path(place) / "page.html"
        write_simulation(result, file)
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 1420})
        page.goto(file.as_uri())
        page.wait_for_selector('html[data-ready="1"]')
        page.screenshot(path=files[0])
        canvas = page.locator("#step-timeline canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 400, box["y"] + 200)
        for _ in range(9):
            page.mouse.wheel(0, -250)
            page.wait_for_timeout(30)
        page.mouse.move(box["x"] + 402, box["y"] + 203)
        page.locator("#step-timeline").screenshot(path=files[1])
        browser.close()
    return files


def main() -> None:
    """Draw into docs/figures of the working tree."""
    folder = Path("docs/figures")
    for file in draw(folder):
        print(file)


if __name__ == "__main__":
    main()
