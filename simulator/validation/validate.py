"""Computes figures, the heavy ones on two processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from fnmatch import fnmatchcase

from simulator.errors import ForetrainError
from simulator.validation.computations import Rule, rule_for
from simulator.validation.figures import Figure, load_figures, used_by_calibration
from simulator.validation.outcome import Outcome, Use
from simulator.validation.serving.attention_modules import module_rows
from simulator.validation.serving.published_replays import replay_rows
from simulator.validation.serving.published_steps import serving_rows

PROCESSES = 2
Progress = Callable[[float], None]


def validate(
    only: Sequence[str] = (), *, processes: int = PROCESSES, progress: Progress | None = None
) -> list[Outcome]:
    """Every published figure with its prediction, in the order of the file.

    Parameters
    ----------
    only : patterns of names, as in `E.zerobubble.*`; none: all but replays of requests (Q.*), which take minutes.
    processes : how many compute whole steps at once.
    """
    replays = replay_rows() if any(one.startswith("Q") for one in only) else []
    known = [*load_figures(), *module_rows(), *serving_rows(), *replays]
    figures = [f for f in known if not only or any(_fits(f.id, pattern) for pattern in only)]
    heavy = [f for f in figures if rule_for(f).heavy]
    found = {f.id: outcome_of(f) for f in figures if not rule_for(f).heavy}
    for done, outcomes in enumerate(_computed(_batches(heavy), processes), 1):
        found |= {one.figure.id: one for one in outcomes}
        if progress is not None:
            progress(min(1.0, done / max(1, len(_batches(heavy)))))
    return [found[f.id] for f in figures]


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") or fnmatchcase(name, f"{pattern}*")


def _batches(figures: Iterable[Figure]) -> list[list[Figure]]:
    """Figures that share a simulation stay together: those of one V3 network, else each for itself."""
    by: dict[str, list[Figure]] = {}
    for figure in figures:
        shared = "v3.mpft" if figure.id.startswith("A.cost") else figure.id
        shared = f"Q.{figure.id.split('.', 2)[2]}" if figure.id.startswith("Q.") else shared
        shared = figure.id.rpartition(".")[0].replace("B.train", "v3") if figure.id.startswith("B.train") else shared
        by.setdefault(shared, []).append(figure)
    return list(by.values())


def _computed(batches: list[list[Figure]], processes: int) -> Iterable[list[Outcome]]:
    processes = min(processes, os.cpu_count() or 1, len(batches))
    if processes <= 1:
        yield from map(outcomes_of, batches)
        return
    with ProcessPoolExecutor(max_workers=processes) as pool:
        for future in as_completed([pool.submit(outcomes_of, batch) for batch in batches]):
            yield future.result()


def outcomes_of(figures: Sequence[Figure]) -> list[Outcome]:
    """Outcomes of some figures, in one process."""
    return [outcome_of(figure) for figure in figures]


def outcome_of(figure: Figure) -> Outcome:
    """The figure's prediction, or why there is none."""
    rule = rule_for(figure)
    use = use_of(figure, rule)
    try:
        predicted = rule.compute(figure)
        if figure.number is None:
            return Outcome(figure=figure, use=use, reason="the figure is text")
        return Outcome(figure=figure, use=use, predicted=predicted)
    except ForetrainError as error:
        return Outcome(figure=figure, use=use, reason=str(error).splitlines()[0])


def use_of(figure: Figure, rule: Rule) -> Use:
    """What the program does with the figure."""
    if figure.end_to_end:
        return "comparison"
    if rule.given:
        return "given"
    return "calibration" if used_by_calibration(figure) else "comparison"
