"""What a replay looks like over time and over all requests: the curves that figures and the page draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.views.palette import SERIES as COLOURS
from simulator.serving.serve import Served
from simulator.serving.summary import LATENCIES, TITLES, as_dict, latencies

POINTS = 300
"""Most points of a distribution that are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line: its name, colour, and points."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """Curves over one axis.

    Parameters
    ----------
    title : what is shown.
    across, up : labels of the axes with units.
    curves : what is drawn.
    limits : values of x at which a service level ends, by the name of a curve.
    log : whether the x axis is logarithmic.
    """

    title: str
    across: str
    up: str
    curves: Sequence[Curve]
    limits: Sequence[tuple[str, str, float]] = ()
    log: bool = False


def distributions(served: Served) -> Panel | None:
    """Share of requests (of gaps, between tokens or messages) at or below each latency; None where latencies depend on
    when one stops."""
    recorder = served.recorder
    if served.overload is not None or not recorder.finished_count:
        return None
    curves, limits = [], []
    drawn = {name: sketch for name, sketch in latencies(recorder).items() if name != LATENCIES[-1] and sketch.count}
    # Gaps between tokens are those between messages, or 0 within one, which a logarithmic axis does not hold.
    drawn.pop("itl_s" if recorder.together else "message_gap_s", None)
    for (name, sketch), colour in zip(drawn.items(), COLOURS, strict=False):
        steps = sketch.steps()
        shown = steps[:: -(-len(steps) // POINTS)]
        shown = shown if shown[-1] == steps[-1] else [*shown, steps[-1]]
        before = sketch.quantile(0.0) or 1e-6
        x = [1e3 * before, *(1e3 * max(value, 1e-6) for value, _ in shown)]
        curves.append(Curve(name=TITLES[name], colour=colour, x=x, y=[0.0, *(100 * share for _, share in shown)]))
        limit = recorder.limits.get(name.removesuffix("_s"))
        if limit is not None:
            limits.append((TITLES[name], colour, 1e3 * limit))
    return Panel(
        title="How long requests take",
        across="latency [ms]",
        up="of all [%]",
        curves=curves,
        limits=limits,
        log=True,
    )


def over_time(served: Served) -> list[Panel]:
    """Queue, KV cache and tokens over the time of the replay."""
    found = as_dict(served)
    series, across = found["series"], "time [s]"
    time, blocks = series["time_s"], found["kv_cache"]["blocks"]
    time = [*time, found["metrics"]["makespan_s"]]  # each value holds up to the next time

    def panel(title: str, up: str, names: dict[str, str], factor: float = 1.0) -> Panel:
        curves = [
            Curve(name=label, colour=colour, x=time, y=[factor * value for value in (*series[name], series[name][-1])])
            for (name, label), colour in zip(names.items(), COLOURS, strict=False)
        ]
        return Panel(title=title, across=across, up=up, curves=curves)

    tokens = {
        "output_tokens": "output tokens",
        "input_tokens": "prompt tokens computed",
        "cached_tokens": "prompt tokens found cached",
    }
    return [
        panel("Requests", "requests", {"waiting": "waiting", "running": "running"}),
        panel("KV cache", "blocks in use [%]", {"kv_blocks": "in use"}, 100.0 / blocks),
        panel("Throughput", "tokens/s", tokens),
    ]
