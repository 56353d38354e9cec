"""Published figures next to predictions, for the terminal and as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from reports.terminal.elements import columns, note, section
from reports.views import words
from simulator.validation import Group, Outcome, Placed, Steps, Verdict, by_precision, counts, coverage, grouped, off
from simulator.validation.serving.serving_claims import Claim

SCHEMA = "foretrain.validation/1"
USES = {
    "comparison": "Only compared with",
    "calibration": "Used for calibration",
    "given": "Given to the program",
}
MEANING = {
    "comparison": "no parameter was fitted to these figures",
    "calibration": "kernel and link measurements that parameters were fitted to, held-out rows excepted",
    "given": "sizes and datasheet numbers that the program takes from the same source",
}
SECTIONS = {
    "A": "DeepSeek-V3's and V2's reports",
    "B": "DeepSeek's paper on V3's hardware (arXiv 2505.09343)",
    "C": "kernels and links as their authors measured them",
    "D": "serving",
    "E": "training runs of other teams",
    "F": "data sheets",
    "Q": "loads of serving benchmarks, replayed (asked by name: Q.inferencex*, Q.trtllm*, Q.gpustack*)",
    "K": "attention of one layer as a module, of which only the core calibrates",
    "R": "runs that people reported: do they fit",
    "S": "serving steps of engines (ix: InferenceX, tt: tt-inference-server, aic, ais: issues of ai-dynamo)",
    "T": "DeepSeek's public profile of one overlapped pair",
}
"""First letter of a figure's name -> what its section holds."""


def as_dict(
    outcomes: Sequence[Outcome], judged: Sequence[Verdict] = (), placed: Sequence[Placed] | None = None
) -> dict[str, object]:
    """The object that `--json` prints; with `placed`, which published steps lie in their intervals."""
    return _figures_dict(outcomes, judged) | ({} if placed is None else {"intervals": _intervals_dict(placed)})


def _intervals_dict(placed: Sequence[Placed]) -> dict[str, object]:
    return {
        "steps": len(placed),
        "inside": sum(one.inside for one in placed),
        "coverage": coverage(placed),
        "figures": [one.as_dict() for one in placed],
    }


def _figures_dict(outcomes: Sequence[Outcome], judged: Sequence[Verdict]) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "sections": SECTIONS,
        "figures": [one.as_dict() for one in outcomes if one.predicted is not None],
        "groups": [
            {
                "group": group.name,
                "use": group.use,
                "figures": len(group.outcomes),
                "mape": group.mape,
                "bias": group.bias,
                "worst": group.worst.figure.id,
                "worst_error": group.worst.error,
            }
            for group in grouped(outcomes)
        ],
        "steps": [
            {
                "source": one.source,
                "precision": one.precision,
                "gpu": one.gpu,
                "steps": len(one.errors),
                "bias": one.bias,
                "mape": one.mape,
                "median": one.middle,
            }
            for one in by_precision(outcomes)
        ],
        "not_computed": [
            {"id": one.figure.id, "quantity": one.figure.quantity, "reason": one.reason}
            for one in outcomes
            if one.predicted is None
        ],
        "verdicts": {
            "counts": [{"outcome": one.outcome, "runs": one.runs, "right": one.right} for one in counts(judged)],
            "runs": [one.as_dict() for one in judged],
        },
    }


def signed(error: float | None) -> str:
    """A relative error as a percentage with its sign."""
    return "" if error is None else f"{100 * error:+.1f} %"


def number(value: float | int | str | None) -> str:
    """A value with four significant digits, not in powers of ten where that can be read."""
    if not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def report(
    outcomes: Sequence[Outcome],
    judged: Sequence[Verdict] = (),
    placed: Sequence[Placed] | None = None,
    *,
    verbose: bool = False,
) -> list[RenderableType]:
    """Groups with their errors, every figure of few or on demand, what is not computed, and with `placed`, how many
    published steps lie in their intervals."""
    groups = grouped(outcomes)
    computed = sum(len(group.outcomes) for group in groups)
    parts: list[RenderableType] = [
        Text(f"{computed} of {len(outcomes)} published figures computed", style="bold"),
    ]
    for use, title in USES.items():
        mine = [group for group in groups if group.use == use]
        if mine:
            parts += section(title, _groups(mine), note(MEANING[use]))
    if groups:
        parts.append(note(_legend(group.name for group in groups)))
    steps = by_precision(outcomes)
    if steps:
        parts += section("Step times of others, by source and precision", _steps(steps), note(STEPS))
    for group in groups:
        if verbose or computed <= 60:
            parts += section(f"{group.name}, {USES[group.use].lower()}", _figures(group))
    if placed is not None:
        parts += section("Published steps in the 10-90 % intervals of their forecasts", *_held(placed))
    left = [one for one in outcomes if one.predicted is None]
    if left:
        parts += section(f"Not computed: {len(left)}", _reasons(left))
    if judged:
        parts += section(f"Verdicts on {len(judged)} runs of others", verdict_counts(judged), note(RUNS))
        parts += section("Runs", _runs(judged), *_remarks(judged))
    return parts


def _legend(names: Iterable[str]) -> str:
    """What the first letters of `names` mean."""
    letters = sorted({name[0] for name in names} & set(SECTIONS))
    return "; ".join(f"{letter}: {SECTIONS[letter]}" for letter in letters)


def _held(placed: Sequence[Placed]) -> list[RenderableType]:
    """How many steps intervals hold, by family and by kind of step, and on which side the others lie."""
    families, kinds = (_grouped(placed, of) for of in (lambda one: one.figure.group, lambda one: one.kind))
    return [
        _coverage(families | {"all": list(placed)}),
        Text(""),
        _coverage(kinds),
        note(_HELD),
        *([note(_missing(kinds))] if coverage(placed) < LEAST_COVERAGE else []),
    ]


def _grouped(placed: Sequence[Placed], of: Callable[[Placed], str]) -> dict[str, list[Placed]]:
    groups: dict[str, list[Placed]] = {}
    for one in placed:
        groups.setdefault(of(one), []).append(one)
    return groups


def _coverage(groups: Mapping[str, Sequence[Placed]]) -> Table:
    headers = (">steps", ">inside", ">%", ">published faster", ">slower", ">half width", ">median off")
    table = columns("", *headers, gap=1)
    for name, mine in groups.items():
        half = sum(one.high - one.low for one in mine) / (2 * len(mine)) if mine else 0.0
        row = (
            str(len(mine)),
            str(sum(one.inside for one in mine)),
            f"{100 * coverage(mine):.0f}",
            str(sum(one.published < one.low for one in mine)),
            str(sum(one.published > one.high for one in mine)),
            words.percent(half),
            signed(off(mine)),
        )
        table.add_row(name, *row, style="bold" if name == "all" else "")
    return table


_HELD = (
    "An interval of 8 in 10 that knew all errors would hold 70 to 90 % of such steps. These hold errors of kernels,"
    " links, other releases, loads, clocks, assumed numbers and settings, the loop and slow workers, each as wide as"
    " its source says. Median off: published time over the forecast's."
)


def _missing(kinds: Mapping[str, Sequence[Placed]]) -> str:
    """What intervals that hold too few lack: time that is on one side of the forecast."""
    sides = [f"{name} {signed(off(mine))}" for name, mine in kinds.items() if abs(off(mine)) >= _ONE_SIDED]
    return (
        f"These hold fewer. What is missing is on one side ({'; '.join(sides)}): time that the model does not have,"
        " most of all in FP8 and with experts (casts and scales, host launches, layouts and routing of libraries), and"
        " settings that a source leaves out."
    )


LEAST_COVERAGE = 0.7
_ONE_SIDED = 0.03  # median error of a kind of step that is named


def _groups(groups: Sequence[Group]) -> Table:
    table = columns("", ">figures", ">mean |error|", ">mean error", "worst", ">error")
    for group in groups:
        worst = group.worst.figure.id.removeprefix(f"{group.name}.")
        row = (group.name, str(len(group.outcomes)), words.percent(group.mape), signed(group.bias))
        table.add_row(*row, worst if group.mape else "", signed(group.worst.error) if group.mape else "")
    return table


STEPS = "Errors of the time of a step, also where a rate is published; below 0 the forecast is too fast."


def _steps(steps: Sequence[Steps]) -> Table:
    table = columns(*(f">{name}" if at > 2 else name for at, name in enumerate(_STEPS_HEAD)))
    for one in steps:
        table.add_row(*_steps_cells(one))
    return table


_STEPS_HEAD = ("source", "precision", "GPU", "steps", "mean error", "mean |error|", "median |error|")


def _steps_cells(one: Steps) -> tuple[str, ...]:
    errors = (signed(one.bias), words.percent(one.mape), words.percent(one.middle))
    return (one.source, one.precision, one.gpu, str(len(one.errors)), *errors)


def _figures(group: Group) -> Table:
    table = columns("", ">published", ">predicted", ">error", "unit")
    for one in group.outcomes:
        name = one.figure.id.removeprefix(f"{group.name}.")
        table.add_row(name, number(one.figure.value), number(one.predicted), signed(one.error), one.figure.unit)
    return table


def _reasons(left: Sequence[Outcome]) -> Table:
    table = columns("", ">figures", "why")
    for (group, reason), count in Counter((one.figure.group, one.reason) for one in left).items():
        table.add_row(group, str(count), reason)
    return table


def markdown(outcomes: Sequence[Outcome], judged: Sequence[Verdict] = ()) -> str:
    """A page: groups, then every figure with its source, then what is not computed."""
    groups = grouped(outcomes)
    computed = sum(len(group.outcomes) for group in groups)
    lines = [
        "# Validation",
        "",
        "Generated by `foretrain validate --markdown FILE`. Error is (predicted - published) / published.",
        f"{computed} of {len(outcomes)} published figures are computed.",
        "",
        f"First letters: {_legend(group.name for group in groups)}.",
    ]
    for use, title in USES.items():
        mine = [group for group in groups if group.use == use]
        if mine:
            lines += ["", f"## {title}", "", f"{MEANING[use].capitalize()}.", "", *_group_lines(mine)]
            if use == "comparison" and by_precision(outcomes):
                lines += ["", "### Step times of others, by source and precision", "", STEPS, ""]
                lines += [
                    *_row(*(head.replace("|", "\\|") for head in _STEPS_HEAD)),
                    *_rule("-", "-", "-", "-:", "-:", "-:", "-:"),
                ]
                lines += [line for one in by_precision(outcomes) for line in _row(*_steps_cells(one))]
            for group in mine:
                lines += ["", f"### {group.name} ({USES[use].lower()})", "", *_figure_lines(group)]
    left = [one for one in outcomes if one.predicted is None]
    lines += ["", f"## Not computed: {len(left)}", "", *_row("family", "figures", "why"), *_rule("-", "-:", "-")]
    for (name, reason), count in Counter((one.figure.group, one.reason) for one in left).items():
        lines += _row(name, str(count), reason)
    if judged:
        lines += ["", f"## Verdicts on {len(judged)} runs of others", "", RUNS, "", *_verdict_lines(judged)]
    return "\n".join(lines) + "\n"


def _group_lines(groups: Sequence[Group]) -> list[str]:
    lines = [*_row("family", "figures", "mean \\|error\\|", "mean error", "worst", "its error")]
    lines += _rule("-", "-:", "-:", "-:", "-", "-:")
    for group in groups:
        lines += _row(
            group.name,
            str(len(group.outcomes)),
            words.percent(group.mape),
            signed(group.bias),
            f"`{group.worst.figure.id}`",
            signed(group.worst.error),
        )
    return lines


def _figure_lines(group: Group) -> list[str]:
    lines = [*_row("figure", "published", "predicted", "error", "unit", "source")]
    lines += _rule("-", "-:", "-:", "-:", "-", "-")
    for one in group.outcomes:
        f = one.figure
        lines += _row(f"`{f.id}`", number(f.value), number(one.predicted), signed(one.error), f.unit, f.source)
    return lines


RUNS = (
    "Counted are runs that a job can say in full. Right: a run that ran is said to fit, if tightly; one that ran out of"
    " memory, not to. Reported peaks are compared with the forecast of what the report counts: memory that PyTorch had"
    " allocated, that its allocator had reserved, or that the device had in use."
)


def verdict_counts(judged: Sequence[Verdict]) -> Table:
    """How many verdicts on runs of each outcome are right."""
    table = columns("the run", ">counted", ">right", ">wrong")
    for one in counts(judged):
        table.add_row(one.outcome, str(one.runs), str(one.right), str(one.runs - one.right))
    return table


def _cells(one: Verdict) -> tuple[str, ...]:
    """A run: its name, outcome, verdict, peaks [GiB] and error, and why it does not count or is wrong."""
    why = one.reason or one.run.cannot_say or ("" if one.right else "wrong")
    peaks = tuple(number(value) if value is not None else "" for value in (one.run.peak_GiB, one.peak))
    return one.run.id, one.run.outcome, one.answer or "", *peaks, signed(one.error), why


_RUN_HEAD = ("run", "outcome", "verdict", "reported [GiB]", "forecast [GiB]", "error", "remark")


def _runs(judged: Sequence[Verdict]) -> Table:
    table = columns("", "", "", ">reported [GiB]", ">forecast", ">error", gap=1)
    for one in judged:
        *cells, remark = _cells(one)
        table.add_row(*cells[:-1], "wrong" if remark == "wrong" else cells[-1])
    return table


def _remarks(judged: Sequence[Verdict]) -> list[RenderableType]:
    """Why a run does not count, a line each."""
    remarks = ((one.run.id, one.reason or one.run.cannot_say) for one in judged)
    return [note(f"{name}: {remark}") for name, remark in remarks if remark]


def _verdict_lines(judged: Sequence[Verdict]) -> list[str]:
    lines = [*_row("the run", "counted", "right"), *_rule("-", "-:", "-:")]
    for one in counts(judged):
        lines += _row(one.outcome, str(one.runs), str(one.right))
    lines += ["", *_row(*_RUN_HEAD, "source"), *_rule("-", "-", "-", "-:", "-:", "-:", "-", "-")]
    for verdict in judged:
        lines += _row(*_cells(verdict), verdict.run.source)
    return lines


def _row(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |"]


def _rule(*cells: str) -> list[str]:
    return [f"|{'|'.join(cell.replace('-', '---') for cell in cells)}|"]


CLAIMS_SCHEMA = "foretrain.claims/1"


def claims_dict(found: Sequence[Claim]) -> dict[str, object]:
    """The object that `validate --claims --json` prints."""
    return {"schema": CLAIMS_SCHEMA, "claims": [asdict(one) for one in found]}


def claims_report(found: Sequence[Claim]) -> list[RenderableType]:
    """Statements about serving next to what follows here."""
    table = columns("", "published", "here", "agrees")
    for one in found:
        table.add_row(one.statement, one.published, one.ours, "yes" if one.agrees else "NO")
    said = sum(one.agrees for one in found)
    title = Text(f"What DeepSeek says of serving DeepSeek-V3: {said} of {len(found)} agree", style="bold")
    remarks = [note(f"{one.statement}: {one.remark} ({one.source})") for one in found]
    return [title, Text(""), table, *section("Remarks", *remarks)]
