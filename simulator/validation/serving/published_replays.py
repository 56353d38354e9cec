"""Published serving benchmarks (`workloads/facts/serving_replays.csv`) by what replays of their loads make of them.
Compared with, never fitted to.

They are asked by name (`foretrain validate --only 'Q*'`), since they take minutes. Loads that end in a backlog are
finite there, too, so that what the benchmark's tool measured over all of its requests is what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from simulator.serving.deployment import deploy
from simulator.serving.load.sources import LoadSpec
from simulator.serving.recorder import Recorder
from simulator.serving.serve import serve
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure, table_figures
from simulator.validation.serving.published_steps import JOB, scenario_of

TABLE = "serving_replays.csv"
LOAD = ("requests", "input", "output", "count")
"""Columns that say what is asked."""


def replay_rows() -> list[Figure]:
    """The figures of the table."""
    return table_figures(TABLE, "Q")


def replayed(figure: Figure) -> float:
    """A latency [ms] or a rate [tokens/s] of the table."""
    c: Mapping[str, str] = figure.config
    recorder = _once(tuple(c[key] for key in (*JOB, *LOAD)))
    name, _, statistic = figure.quantity.partition("_")
    if name == "output":
        rate = recorder.outputs / (recorder.end - recorder.begin)
        return rate / int(c["gpus"]) if statistic == "per_gpu" else rate
    sketch = {"ttft": recorder.ttft, "tpot": recorder.tpot, "itl": recorder.itl}[name]
    seconds = sketch.mean if statistic == "mean" else sketch.quantile(0.5)
    if seconds is None:
        raise CannotCompute("no request was answered")
    return 1e3 * seconds


@cache
def _once(asked: tuple[str, ...]) -> Recorder:
    """The replay of a load; figures of one benchmark share it."""
    c = dict(zip((*JOB, *LOAD), asked, strict=True))
    deployment = deploy(scenario_of(c, "decode", 2, 1))
    load = LoadSpec(requests=c["requests"], input_tokens=c["input"], output_tokens=c["output"], count=int(c["count"]))
    return serve(deployment, load, judged=False).recorder
