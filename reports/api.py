"""The Python interface: the few names that scripts and notebooks need.

from reports.api import load_scenario, simulate
print(simulate(load_scenario("deepseek-v3-pretrain")).metrics["step_time_s"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.inputs import load_hardware, load_model, load_scenario
from simulator.results.result import Result
from simulator.results.simulate import Engine, simulate

if TYPE_CHECKING:
    import pandas as pd

    from simulator.studies.search import Found

__all__ = [
    "compare",
    "load_hardware",
    "load_model",
    "load_scenario",
    "search",
    "simulate",
    "tables",
    "write_figures",
    "write_page",
]


def compare(
    job: str, vary: Mapping[str, Sequence[Any]], overrides: Sequence[str] = (), *, engine: Engine = "events"
) -> pd.DataFrame:
    """Simulate every combination of varied values: a row each, its metrics in columns, whether it `fits`, the reason
    where it cannot run.

    Parameters
    ----------
    job : name of a shipped job, or the path of one.
    vary : input -> values, as in {"layout.schedule": ["1f1b", "dualpipe"]}.
    overrides : `path=value` for all of them.
    engine : see `simulate`.

    All in this process, one after the other, so that it works in any script and notebook.
    """
    import pandas as pd

    from reports.views.variants import run, variants

    varied = [(path, [str(value) for value in values]) for path, values in vary.items()]
    rows = []
    for variant in variants([job], varied, overrides):
        outcome = run(variant, engine)
        metrics = outcome.result["metrics"] if outcome.result else {}
        rows.append(
            {
                **dict(outcome.variant.varied),
                **metrics,
                "fits": outcome.result["memory"]["fits"] if outcome.result else None,
                "error": outcome.error or "",
            }
        )
    return pd.DataFrame(rows)


def search(job: str, over: Sequence[str], overrides: Sequence[str] = (), **options: Any) -> Found:
    """The best of all combinations, by the quick engine; `over` as in ["layout.pp=4,8,16", "layout.ep=32,64"].

    `options` are those of `simulator.studies.search.ranking`. More than one of `jobs` (processes) needs a script that
    guards its entry with `if __name__ == "__main__"`.
    """
    from simulator.studies.search import question
    from simulator.studies.search import search as find

    return find(question(job, overrides, over), **{"jobs": 1, **options})


def tables(result: Result) -> dict[str, pd.DataFrame]:
    """The tables of a result by name; see `reports.export.data_frames`."""
    from reports.export.data_frames import tables as made

    return made(result)


def write_page(result: Result, file: str | Path) -> None:
    """Write the page of a result."""
    from reports.html import write_simulation

    write_simulation(result, Path(file))


def write_figures(result: Result, folder: str | Path) -> list[Path]:
    """Draw all figures of a result as SVG and PNG."""
    from reports.figures import write_figures as draw

    return draw(result, Path(folder))
