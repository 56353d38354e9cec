"""What a search found, for the terminal and as JSON and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from reports.export.files import replacing
from reports.terminal.elements import columns, note, section
from reports.views import words
from reports.views.trade import LATENCIES
from simulator.inputs import load_scenario
from simulator.studies.search import Candidate, Confirmed, Found, Question, in_confirmed_order
from simulator.studies.uncertainty import Interval
from simulator.units import GB

SCHEMA = "foretrain.search/1"
_BY = {
    "time": "time per token",
    "throughput": "throughput",
    "latency": "latency",
    "cost": "cost",
    "memory": "memory",
}
_PRICED = {False: "M$: price of the whole run.", True: "$: price of a million tokens."}
_LATENCY = {
    "training": "",
    "decode": " TPOT: time per output token; user: tokens/s of each user.",
    "prefill": " TTFT: time to the first token of prompts that need not wait.",
}
_FULL = "by the full discrete-event engine, as simulate gives them; * by the fast path only."
_EITHER = {
    False: f"{_FULL} fast: step by the fast path, the place there, and how far it is off.",
    True: f"{_FULL} off: how far the fast path is off.",
}
_EVEN = (
    " The fast path takes experts to be loaded equally, which favours large ep: where it is an axis, compare the best"
    " with fewer ranks (foretrain compare --vary layout.ep=...)."
)
_TIMED = ("step_time_s", "time_per_token_s", "mfu_causal", "run_cost_usd")
_SERVED = ("step_time_s", "tokens_per_s_per_gpu", "mfu", "usd_per_million_tokens")
_BETWEEN = " 8 of 10: between which times the step lies in 8 of 10 draws; all share their errors."
FRONT = 20
"""Members of the front that are printed; JSON holds all."""


def report(
    found: Found,
    confirmed: Sequence[Confirmed],
    seconds: float,
    intervals: Mapping[int, Interval] = MappingProxyType({}),
) -> list[RenderableType]:
    """Everything `search` prints."""
    asked = found.asked
    head = Text(f"Search from {asked.job}: {asked.size:,} combinations", style="bold")
    parts: list[RenderableType] = [head, Text(summary(found, seconds))]
    if asked.chosen:
        axes = "; ".join(f"{axis.path}={','.join(axis.values)}" for axis in asked.axes)
        parts.append(note(f"Without --over, what usually matters for such a job is varied: {axes}."))
    if not found.best:
        why = f" Most often: {found.obstacle}" if found.obstacle else ""
        nothing = "Nothing that can run is as quick as was asked." if found.slow else "Nothing that was judged can run."
        return [*parts, Text(f"{nothing}{why}")]
    prices = [note(f"Prices: {'; '.join(found.prices)}.")] if found.prices else []
    limit = f", at {words.seconds(found.limit)} at most" if found.limit is not None else ""
    title = f"Best by {_BY[found.rank]}{limit}"
    notes = (note(_notes(asked, bool(confirmed), bool(intervals))), *prices)
    parts += section(title, *ranking(asked, found.best, confirmed, intervals), *notes)
    if len(found.front) > 1:
        shown = found.front[:FRONT]
        aims = "throughput on a GPU and speed of a user" if asked.serves else "time, cost and memory"
        title = f"Pareto front of {aims}, {len(shown)} of {len(found.front)}"
        parts += section(title, *ranking(asked, shown, ()), note(_notes(asked, False, False)))
    return parts


def _notes(asked: Question, confirmed: bool, intervals: bool) -> str:
    """What the columns of a table mean."""
    timed = "tok/s/GPU, latency, MFU, $:" if asked.serves else "step, MFU, M$:"
    by = (
        f"{timed} {_EITHER[asked.serves]}" if confirmed else f"{timed.partition(',')[0].rstrip(':')}: by the fast path."
    )
    even = _EVEN if load_scenario(asked.job, asked.overrides).job.routing.ranks == "mean" else ""
    return f"{by}{even} {_PRICED[asked.serves]}{_LATENCY[asked.workload]}" + (_BETWEEN if intervals else "")


def summary(found: Found, seconds: float) -> str:
    """How many there were of what, and how fast."""
    c = found.counts
    text = f"{c['ok']:,} can run, {c['too big']:,} do not fit into memory, {c['invalid']:,} are invalid"
    if c["failed"]:
        text += f", {c['failed']:,} failed ({found.fault})"
    if found.judged:
        text += f"; {found.judged:,} judged in {seconds:.1f} s"
    if found.limit is not None:
        text += f"; {found.slow:,} slower than asked"
    left = found.asked.size - sum(c.values())
    return text + (f"; interrupted, {left:,} left" if left else "") + "."


def ranking(
    asked: Question,
    candidates: Sequence[Candidate],
    confirmed: Sequence[Confirmed],
    intervals: Mapping[int, Interval] = MappingProxyType({}),
) -> list[RenderableType]:
    """A line per candidate: the values in which they differ, and what it costs. What all share stands below."""
    sure = {one.candidate.number: one for one in confirmed}
    candidates = in_confirmed_order(candidates, confirmed)
    values = {one.number: asked.values(one.number) for one in candidates}
    differ = [at for at in range(len(asked.axes)) if len({line[at] for line in values.values()}) > 1]
    names = _short([axis.path for axis in asked.axes])
    headers = [">", *(names[at] for at in differ), *_HEADERS[asked.workload]]
    compared = [">off"] if asked.serves else [">fast [s]", ">place", ">off"]
    headers += compared if sure else []
    table = columns(*headers, *([">8 of 10 [s]"] if intervals else []), gap=1)
    for place, one in enumerate(candidates, 1):
        if one.step is None or one.memory is None or one.cost is None or one.mfu is None:
            continue
        engine = sure.get(one.number)
        star = "*" if sure and not engine else ""
        row = [str(place), *(values[one.number][at] for at in differ), *_cells(asked, engine or one, one.memory, star)]
        if engine:
            row += [
                *([] if asked.serves else [f"{one.step:.4g}", str(engine.guess)]),
                f"{100 * engine.difference:+.2f}%",
            ]
        elif sure:
            row += [""] * len(compared)
        if one.number in intervals:
            around = intervals[one.number]
            row.append(f"{around.p10_s:.4g} to {around.p90_s:.4g} (±{words.percent(around.half_width)})")
        table.add_row(*row)
    first = values[candidates[0].number] if candidates else ()
    same = [f"{axis.path}={first[at]}" for at, axis in enumerate(asked.axes) if at not in differ and first]
    said = [f"All: {', '.join(same)}."] if same else []
    return [table, *map(note, [*said, *_unequal(candidates, sure)])]


def _unequal(candidates: Sequence[Candidate], sure: Mapping[int, Confirmed]) -> list[str]:
    """Which of the confirmed have stages that do not work alike, by place; alike ones together."""
    places: dict[str, list[str]] = {}
    for place, one in enumerate(candidates, 1):
        engine = sure.get(one.number)
        if engine is not None and len(engine.stages) > 1 and engine.excess > words.UNEQUAL:
            places.setdefault(words.unequal(engine.stages, engine.excess), []).append(str(place))
    said = [f"{', '.join(at)}: {text}" for text, at in places.items()]
    return [f"Unequal stages of {'; '.join(said)}."] if said else []


_HEADERS = {
    "training": (">step [s]", ">MFU", ">GB", ">M$"),
    "decode": (">tok/s/GPU", ">TPOT [ms]", ">user", ">MFU", ">GB", ">$"),
    "prefill": (">tok/s/GPU", ">TTFT [ms]", ">MFU", ">GB", ">$"),
}


def _cells(asked: Question, one: Candidate | Confirmed, memory: float, star: str) -> list[str]:
    """What one layout reaches, under `_HEADERS`."""
    mfu, size = words.percent(one.mfu or 0.0), f"{memory / GB:.1f}"
    if not asked.serves:
        return [f"{one.step:.4g}{star}", mfu, size, f"{(one.cost or 0.0) / 1e6:.3f}"]
    latency = one.latency or 0.0
    user = [f"{1.0 / latency:.1f}"] if asked.workload == "decode" else []
    return [f"{one.rate:,.0f}{star}", f"{latency * 1e3:,.2f}", *user, mfu, size, f"{one.cost:.3f}"]


def _short(paths: Sequence[str]) -> list[str]:
    """The last part of each path, or as many as distinguish them."""
    parts = [path.split(".") for path in paths]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = [".".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def as_dict(
    found: Found, confirmed: Sequence[Confirmed], intervals: Mapping[int, Interval] = MappingProxyType({})
) -> dict[str, Any]:
    """The object that `--json` prints."""
    asked, sure = found.asked, {one.candidate.number: one for one in confirmed}

    def row_of(one: Candidate) -> dict[str, Any]:
        line = {**record(asked, one), "engine": "fast path"}
        if one.number in sure:
            engine = sure[one.number]
            keys = (*_SERVED, LATENCIES[asked.workload]) if asked.serves else _TIMED
            line["fast_path"] = {key: line[key] for key in keys} | {"place": engine.guess}
            line |= {"engine": "events", "step_time_s": engine.step, **_reached(asked, engine)}
            line["events"] = {"step_time_s": engine.step, "place": engine.place, "difference": engine.difference}
            line["events"] |= {"stages": list(engine.stages), "busiest_over_mean": 1.0 + engine.excess}
        if one.number in intervals:
            line["interval"] = intervals[one.number].as_dict()
        return line

    return {
        "schema": SCHEMA,
        "job": asked.job,
        "overrides": list(asked.overrides),
        "axes": {axis.path: list(axis.values) for axis in asked.axes},
        "axes_chosen": asked.chosen,
        "workload": asked.workload,
        "rank": found.rank,
        "limit_s": found.limit,
        "complete": found.complete,
        "counts": found.counts,
        "prices": list(found.prices),
        "best": [row_of(one) for one in in_confirmed_order(found.best, confirmed)],
        "pareto": [row_of(one) for one in found.front],
    }


def record(asked: Question, one: Candidate) -> dict[str, Any]:
    """One candidate as a flat record."""
    values = {axis.path: value for axis, value in zip(asked.axes, asked.values(one.number), strict=True)}
    return {
        "number": one.number,
        **values,
        "status": one.status,
        "step_time_s": one.step,
        **_reached(asked, one),
        "memory_bytes": one.memory,
        "why": one.why,
    }


def _reached(asked: Question, one: Candidate | Confirmed) -> dict[str, float | None]:
    """What a step of such a length comes to."""
    if not asked.serves:
        return {"time_per_token_s": one.per_token, "mfu_causal": one.mfu, "run_cost_usd": one.cost}
    reached: dict[str, float | None] = {"tokens_per_s_per_gpu": one.rate, LATENCIES[asked.workload]: one.latency}
    if asked.workload == "decode":
        reached["tokens_per_s_per_user"] = 1.0 / one.latency if one.latency else None
    return reached | {"mfu": one.mfu, "usd_per_million_tokens": one.cost}


def write_csv(file: Path, asked: Question, candidates: Iterable[Candidate]) -> int:
    """Every candidate as a line; returns their number."""
    count = 0
    with replacing(file) as binary, TextIOWrapper(binary, newline="", encoding="utf-8") as stream:
        writer: csv.DictWriter[str] | None = None
        for one in candidates:
            line = record(asked, one)
            if writer is None:
                writer = csv.DictWriter(stream, list(line))
                writer.writeheader()
            writer.writerow(line)
            count += 1
    return count
