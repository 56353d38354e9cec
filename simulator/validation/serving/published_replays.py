"""Published serving benchmarks (`workloads/facts/serving_replays.csv`) by what replays of their loads make of them.
Compared with, never fitted to.

They are asked by name (`foretrain validate --only 'Q*'`), since they take minutes. Loads that end in a backlog are
finite there, too, so that what the benchmark's tool measured over all of its requests is what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

from simulator.serving.deployment import Deployment, deploy
from simulator.serving.load.sources import LoadSpec
from simulator.serving.recorder import Recorder
from simulator.serving.serve import serve
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure, table_figures
from simulator.validation.serving.published_steps import JOB, scenario_of

TABLE = "serving_replays.csv"
LOAD = ("requests", "input", "output", "count")
"""Columns that say what is asked."""
SEEDS = 3
"""Draws of arrivals over which a forecast is averaged: 500 arrivals come up to 10 % faster or slower than their rate
says, and how they came in a benchmark is not published."""


def replay_rows() -> list[Figure]:
    """The figures of the table."""
    return table_figures(TABLE, "Q")


def replayed(figure: Figure) -> float:
    """A latency [ms] or a rate [tokens/s] of the table: mean over draws."""
    c: Mapping[str, str] = figure.config
    found = [_of(figure.quantity, recorder, int(c["gpus"])) for recorder in _once(tuple(c[key] for key in KEYS))]
    return sum(found) / len(found)


def _of(quantity: str, recorder: Recorder, gpus: int) -> float:
    name, _, statistic = quantity.partition("_")
    if name == "output":
        rate = recorder.outputs / (recorder.end - recorder.begin)
        return rate / gpus if statistic == "per_gpu" else rate
    sketch = {"ttft": recorder.ttft, "tpot": recorder.tpot, "itl": recorder.itl}[name]
    seconds = sketch.mean if statistic == "mean" else sketch.quantile(0.5)
    if seconds is None:
        raise CannotCompute("no request was answered")
    return 1e3 * seconds


KEYS = (*JOB, "settings", *LOAD)
"""Columns that a replay follows from."""


@cache
def _once(asked: tuple[str, ...]) -> list[Recorder]:
    """Replays of a load; figures of one benchmark share them."""
    c = dict(zip(KEYS, asked, strict=True))
    load = LoadSpec(requests=c["requests"], input_tokens=c["input"], output_tokens=c["output"], count=int(c["count"]))
    deployment = _deployed(asked[: len(JOB) + 1])
    seeds = range(SEEDS if load.kind == "poisson" else 1)
    return [serve(deployment, replace(load, seed=seed), judged=False).recorder for seed in seeds]


@cache
def _deployed(asked: tuple[str, ...]) -> Deployment:
    """The engine of a benchmark, with the settings that its script gives it."""
    c = dict(zip((*JOB, "settings"), asked, strict=True))
    return deploy(scenario_of(c, "decode", 2, 1, tuple(c["settings"].split())))
