"""The table of `compare` for the terminal: a line a variant, what differs between them first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.console import RenderableType
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.terminal.serving_tables import compared, compared_titles
from reports.views import words
from reports.views.sidebyside import fits, prices, tokens_per_second, work_differs
from reports.views.variants import WHAT_IF, Outcome, differences, what_if_change
from simulator.memory import needed

_METRICS_WIDTH = 55
"""Columns that the metrics take."""

_SPREAD_WIDTH = 18
"""Columns that an interval takes."""


def comparison(outcomes: Sequence[Outcome], width: int, *, verbose: bool = False) -> list[RenderableType]:
    """Everything that `compare` prints: the table, what its words mean, and why variants have no numbers."""
    labels = differences(outcomes)
    ran = [outcome.result for outcome in outcomes if outcome.result]
    spread, differs = any("interval" in result for result in ran), work_differs(ran)
    taken = _METRICS_WIDTH + (_SPREAD_WIDTH if spread else 0)
    taken += (0 if all(map(fits, ran)) else 5) + (9 if differs else 0)
    room = sum(max(map(len, [_short(path), *values])) + 2 for path, values in labels.items()) + taken <= width
    parts: list[RenderableType] = [heading(outcomes), Text("")]
    if not room:
        parts += [_legend(labels), Text("")]
    parts.append(_table(outcomes, labels if room else {"": [f"#{at + 1}" for at in range(len(outcomes))]}))
    legend = _SERVING_NOTE if _serves(outcomes) else (_BY_RATE if differs else _BY_STEP) + _NOTE
    parts.append(note(legend + (_SPREAD_NOTE if spread else "")))
    parts += [note(f"Prices: {'; '.join(taken_from)}.")] if (taken_from := prices(ran)) else []
    parts += [note(line) for line in _unequal(outcomes, labels)]
    parts += _by_what_if(outcomes, labels)
    parts += _asked(outcomes)
    if verbose:
        parts += section("Warnings", _warnings(outcomes))
    failed = [(at, outcome) for at, outcome in enumerate(outcomes) if outcome.error]
    memory = [(at, outcome.result.get("memory")) for at, outcome in enumerate(outcomes) if outcome.result]
    tight = [(at, needed(found)) for at, found in memory if found and not found["fits"]]
    if tight:
        parts += section("Do not fit (foretrain memory shows why)", _variant_lines(outcomes, tight, labels))
    if failed:
        reasons = [(at, line) for at, outcome in failed for line in (outcome.error or "").splitlines()]
        parts += section("Not possible", _variant_lines(outcomes, reasons, labels))
    return parts


def _by_what_if(outcomes: Sequence[Outcome], labels: Mapping[str, list[str]]) -> list[RenderableType]:
    """By how much each what-if changes the step of each variant, where there are several."""
    asked = list(dict.fromkeys(o.variant.what_if for o in outcomes if o.variant.what_if))
    bases = [at for at, o in enumerate(outcomes) if o.variant.what_if is None and o.result]
    if not asked or len(bases) < 2:
        return []
    shown = [path for path in labels if path != WHAT_IF]
    table = columns(*map(_short, shown), *(f">{name}" for name in asked))
    for at in bases:
        cells = []
        for name in asked:
            same = replace(outcomes[at].variant, what_if=name)
            found = next((o for o in outcomes if o.variant == same), None)
            change = what_if_change(outcomes, found) if found is not None else None
            cells.append(Text("-", style="dim") if change is None else _change(change, 1))
        table.add_row(*(labels[path][at] for path in shown), *cells)
    return list(section("What each what-if does to the step time", table))


def _unequal(outcomes: Sequence[Outcome], labels: Mapping[str, list[str]]) -> list[str]:
    """Of each variant whose ranks do not work alike: its stages, and by how much the busiest exceeds the mean.

    Schedules cut a model into different numbers of stages: what layers that do not divide cost is not theirs.
    """
    said = []
    for at, outcome in enumerate(outcomes):
        busy = [rank["compute_busy"] for rank in (outcome.result or {}).get("ranks", ())]
        mean = sum(busy) / len(busy) if busy else 0.0
        excess = max(busy) / mean - 1.0 if mean else 0.0
        if len(busy) > 1 and excess > words.UNEQUAL:
            name = ", ".join(values[at] for values in labels.values()) or f"#{at + 1}"
            said.append(f"{name}: {words.unequal((outcome.result or {}).get('stages', ()), excess)}")
    return [f"Unequal stages: {'; '.join(said)}."] if said else []


def heading(outcomes: Sequence[Outcome]) -> Text:
    """Of which jobs these are variants, and what all of them have in common."""
    jobs = ", ".join(dict.fromkeys(outcome.variant.job for outcome in outcomes))
    common = outcomes[0].variant.fixed
    text = Text(f"{words.counted(len(outcomes), 'variant')} of {jobs}", style="bold")
    if common:
        text.append(f"\nall with {', '.join(common)}", style="not bold")
    ran = [outcome.result for outcome in outcomes if outcome.result]
    small = sum(not fits(result) for result in ran)
    if small:
        text.append(f"\n{small} of {len(ran)} that ran DO NOT FIT into memory, and can be no answer", style="red")
    differs = work_differs(ran)
    if differs:
        by = "tokens/s and price" if _serves(outcomes) else "tokens/s and GPU-hours"
        text.append(f"\nthe work differs ({', '.join(differs)}): compare {by}", style="not bold")
    return text


_BY_STEP = "change: of the step time, against the first that ran."
_BY_RATE = "change: of tokens/s, against the first that ran, for the work of a step differs."
_NOTE = (
    " MFU: causal attention, BF16 peak. bubble: mean over ranks."
    " exposed: communication not overlapped with compute, mean over ranks. GPU-hours: per 1e12 tokens."
    " price: of the run."
)


_SPREAD_NOTE = " 8 of 10: between which times the step lies in 8 of 10 draws; variants share their errors."
_SERVING_NOTE = (
    "change: of the step time, against the first that ran. MFU: forward, causal attention, BF16 peak."
    " user: tokens/s of each user. $/1e6: price of a million tokens. GB: memory of a GPU. most: of such sequences"
    " that fit on a rank."
)


def _serves(outcomes: Sequence[Outcome]) -> bool:
    """Whether these are serving jobs."""
    return any(o.result is not None and "mfu" in o.result["metrics"] for o in outcomes)


def _short(path: str) -> str:
    """The last part of a path."""
    return path.rpartition(".")[2]


def _table(outcomes: Sequence[Outcome], labels: Mapping[str, list[str]]) -> RenderableType:
    ran = [outcome.result for outcome in outcomes if outcome.result]
    unit = words.unit_for(max((result["metrics"]["step_time_s"] for result in ran), default=1.0))
    differs, tight, serves = bool(work_differs(ran)), not all(map(fits, ran)), _serves(outcomes)
    between = [f"8 of 10 [{unit.name}]"] if any("interval" in result for result in ran) else []
    headers = [*(["fits"] if tight else []), f"step [{unit.name}]", *between, *(["tokens/s"] if differs else [])]
    cells = compared_titles(ran) if serves else ["MFU", "bubble", "exposed", "GPU-hours", "price [$]"]
    headers += ["change", *cells]
    table = columns(*map(_short, labels), *(f">{header}" for header in headers), gap=1)
    best = max((tokens_per_second(result) for result in ran if fits(result)), default=0.0)
    for at, outcome in enumerate(outcomes):
        named = [Text(values[at], style="bold") for values in labels.values()]
        if outcome.result is None:
            table.add_row(*named, Text("-", style="dim"), style="dim")
            continue
        m, able, rate = outcome.result["metrics"], fits(outcome.result), tokens_per_second(outcome.result)
        first = ran[0]["metrics"]["step_time_s"]
        change = rate / tokens_per_second(ran[0]) - 1 if differs else m["step_time_s"] / first - 1
        table.add_row(
            *named,
            *([Text("yes" if able else "NO", style="" if able else "bold red")] if tight else []),
            Text(unit.of(m["step_time_s"]), style="bold green" if able and rate == best else ""),
            *(_between(outcome.result["interval"], unit) for _ in between),
            *([words.compact(rate)] if differs else []),
            "" if outcome.result is ran[0] else _change(change, -1 if differs else 1),
            *(compared(m, cells) if serves else _training_cells(m, unit)),
        )
    return table


def _training_cells(m: Mapping[str, float], unit: words.Unit) -> tuple[str, ...]:
    """What a training step is compared by."""
    return (
        words.percent(m["mfu_causal"]),
        words.percent(m["bubble_ratio"]),
        unit.of(m["exposed_comm_s"]),
        f"{m['gpu_hours_per_trillion_tokens']:,.0f}",
        words.compact(m["run_cost_usd"]),
    )


def _between(found: Mapping[str, float], unit: words.Unit) -> str:
    """The interval of a step time."""
    return f"{unit.of(found['p10_s'])} to {unit.of(found['p90_s'])}"


def _change(change: float, less: int) -> Text:
    """Faster is green, slower is red; the sign says it again. `less`: 1 where less is better, else -1."""
    style = "green" if change * less < 0 else "red" if change * less > 0 else ""
    return Text(f"{100 * change:+.1f} %", style=style)


def _legend(labels: Mapping[str, list[str]]) -> RenderableType:
    table = columns("", *map(_short, labels))
    for at, values in enumerate(zip(*labels.values(), strict=True)):
        table.add_row(f"#{at + 1}", *values)
    return table


def _asked(outcomes: Sequence[Outcome]) -> list[RenderableType]:
    """What the what-ifs ask and assume."""
    names = list(dict.fromkeys(o.variant.what_if for o in outcomes if o.variant.what_if))
    if not names:
        return []
    from simulator.studies.whatif import WHAT_IFS

    table = columns("", "", "")
    for name in names:
        table.add_row(name, WHAT_IFS[name].asks, Text(WHAT_IFS[name].assumes, style="dim"))
    return list(section("What if, and what is assumed", table))


def _warnings(outcomes: Sequence[Outcome]) -> RenderableType:
    """Every warning once."""
    table = columns("", "")
    for text in dict.fromkeys(text for o in outcomes if o.result for text in o.result["warnings"]):
        table.add_row("-", words.of_warning(text))
    return table


def _variant_lines(
    outcomes: Sequence[Outcome], lines: Sequence[tuple[int, str]], labels: Mapping[str, list[str]]
) -> RenderableType:
    """Lines about variants, each variant named once."""
    table = columns("", "")
    named = -1
    for at, line in lines:
        name = ", ".join(values[at] for values in labels.values() if values[at]) or outcomes[at].variant.job
        table.add_row("" if at == named else name, line)
        named = at
    return table
