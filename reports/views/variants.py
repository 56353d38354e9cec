"""Several variants of jobs, simulated side by side: every combination of varied values, on all cores.

A variant that breaks a rule keeps its place, with its reason.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import product, repeat
from multiprocessing import get_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from reports.views.sidebyside import work_differs
from simulator.errors import ForetrainError, InputError
from simulator.plugins import registered_by_script

if TYPE_CHECKING:
    from reports.views.actions import ActionSpan
    from simulator.results.result import Result

SCHEMA = "foretrain.compare/2"
Engine = Literal["events", "longest-path"]

AS_IS = "as it is"
"""Of a variant without what-if."""
WHAT_IF = "what-if"
"""The column that says which."""

_WORTH_A_PROCESS = 0.5
"""Runs that take longer are spread over processes, each of which takes about as long to start [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A job, what is `varied` from one variant to the next, the `fixed` overrides under it, and the name of a
    `what_if` on top. `apart`: ranks that differ are simulated apart, since another variant's are."""

    job: str
    varied: tuple[tuple[str, str], ...] = ()
    fixed: tuple[str, ...] = ()
    what_if: str | None = None
    apart: bool = False

    @property
    def overrides(self) -> list[str]:
        """All overrides, the varied ones last."""
        return [*self.fixed, *(f"{path}={value}" for path, value in self.varied)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A variant with its result (the object of `simulate --json`), or the reason why there is none; its actions where
    they were asked for."""

    variant: Variant
    result: dict[str, Any] | None = None
    error: str | None = None
    actions: tuple[ActionSpan, ...] = ()


def parse_vary(text: str) -> tuple[str, list[str]]:
    """`layout.pp=8,16` -> its path and values. Commas inside brackets and quotes belong to a value."""
    path, equals, values = text.partition("=")
    listed = [value.strip() for value in _split(values)]
    if not equals or not path.strip() or not all(listed):
        raise InputError(f"--vary: {text!r}: must be path=value,value, as in layout.schedule=1f1b,dualpipe")
    doubles = [value for value in listed if listed.count(value) > 1]
    if doubles:
        raise InputError(f"--vary: {text!r}: {doubles[0]} is given twice")
    return path.strip(), listed


def _split(text: str) -> Iterator[str]:
    depth, quoted, start = 0, False, 0
    for at, letter in enumerate(text):
        quoted ^= letter == '"'
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and not depth and not quoted:
            yield text[start:at]
            start = at + 1
    yield text[start:]


def variants(
    jobs: Sequence[str],
    varied: Iterable[tuple[str, list[str]]],
    fixed: Sequence[str],
    what_ifs: Sequence[str] = (),
) -> list[Variant]:
    """Every job with every combination of the varied values; the last path varies fastest. Behind each stands what
    every what-if alone makes of it."""
    from simulator.studies.whatif import differs_by_rank

    choices, apart = list(varied), differs_by_rank(what_ifs)
    paths = [path for path, _ in choices]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"--vary: {path}: is varied twice; list all its values once")
    return [
        Variant(
            job=job, varied=tuple(zip(paths, values, strict=True)), fixed=tuple(fixed), what_if=what_if, apart=apart
        )
        for job in jobs
        for values in product(*(values for _, values in choices))
        for what_if in (None, *dict.fromkeys(what_ifs))
    ]


def check_inputs(jobs: Sequence[str], varied: Iterable[tuple[str, list[str]]], fixed: Sequence[str]) -> None:
    """Raise for a job that cannot be read or a varied path that leads nowhere: no value would do."""
    from simulator.inputs import load_scenario, settable_paths

    choices = list(varied)
    for job in jobs:
        known = set(settable_paths(load_scenario(job, fixed)))
        for path, values in choices:
            if path not in known:
                _require(job, [*fixed, f"{path}={values[0]}"])


def _require(job: str, overrides: Sequence[str]) -> None:
    from simulator.inputs import load_scenario

    try:
        load_scenario(job, overrides)
    except InputError as error:
        raise InputError(str(error).replace("--set:", "--vary:", 1)) from None


def run(variant: Variant, engine: Engine, draw: bool = False, spread: tuple[int, int] | None = None) -> Outcome:
    """Simulate one variant; an error that the user can mend becomes part of the outcome. `draw`: keep its actions;
    `spread`: draws and seed of the interval to add to its result."""
    from simulator.inputs import load_scenario
    from simulator.routing.published_loads import with_ranks_apart
    from simulator.studies.whatif import simulate

    name = ""
    try:
        scenario = load_scenario(variant.job, variant.overrides)
        name = scenario.name
        if variant.apart:
            scenario = with_ranks_apart(scenario)
        result = simulate(scenario, [variant.what_if] if variant.what_if else [], engine=engine)
    except ForetrainError as error:
        return Outcome(variant=variant, error=_reason(str(error), name))
    said = result.as_dict() | (_interval(result, *spread) if spread is not None else {})
    if not draw:
        return Outcome(variant=variant, result=said)
    from reports.views.actions import action_list

    return Outcome(variant=variant, result=said, actions=tuple(action_list(result.timeline)))


def _interval(result: Result, draws: int, seed: int) -> dict[str, Any]:
    """The interval of a result's step time, as an entry of its JSON."""
    from simulator.studies.uncertainty import interval

    found = interval(result.scenario, draws=draws, seed=seed)
    return {"interval": found.scaled_to(result.metrics["step_time_s"]).as_dict()}


def _reason(error: str, job: str) -> str:
    """An error without the job's name before each line: it is shown with the variant."""
    lines = (line.removeprefix(f"{job}: ").replace("--set:", "--vary:", 1) for line in error.splitlines())
    return "\n".join(lines)


def run_all(
    chosen: Sequence[Variant],
    engine: Engine = "events",
    progress: Callable[[float], None] | None = None,
    *,
    draw: bool = False,
    spread: tuple[int, int] | None = None,
) -> list[Outcome]:
    """Simulate all variants, in their order. `draw`: keep their actions; `spread`: draws and seed of their intervals.

    The first that runs shows how long one takes: quick ones follow in this process, others on all cores (unless a
    script registered a schedule or an architecture, which other processes do not have).
    """
    outcomes: list[Outcome] = []
    took = 0.0
    while len(outcomes) < len(chosen) and took < _WORTH_A_PROCESS:
        began = monotonic()
        outcomes.append(run(chosen[len(outcomes)], engine, draw, spread))
        took = monotonic() - began
        _show_progress(progress, len(outcomes), len(chosen))
    rest = chosen[len(outcomes) :]
    if len(rest) <= 1 or registered_by_script():
        for variant in rest:
            outcomes.append(run(variant, engine, draw, spread))
            _show_progress(progress, len(outcomes), len(chosen))
        return outcomes
    with _pool(len(rest)) as pool:
        for outcome in pool.map(run, rest, repeat(engine), repeat(draw), repeat(spread)):
            outcomes.append(outcome)
            _show_progress(progress, len(outcomes), len(chosen))
    return outcomes


def _pool(tasks: int) -> ProcessPoolExecutor:
    """Fresh processes (forking a program with threads is not safe), which Ctrl-C ends without a word."""
    return ProcessPoolExecutor(
        max_workers=min(tasks, os.cpu_count() or 1),
        mp_context=get_context("spawn"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )


def _show_progress(progress: Callable[[float], None] | None, done: int, of: int) -> None:
    if progress is not None:
        progress(done / of)


def as_dict(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The object that `compare --json` prints."""
    variants = [
        {
            "job": o.variant.job,
            "set": dict(_settings(o.variant)),
            "what_if": o.variant.what_if,
            "what_if_change": what_if_change(outcomes, o),
            "result": o.result,
            "error": o.error,
        }
        for o in outcomes
    ]
    ran = [o.result for o in outcomes if o.result]
    return {"schema": SCHEMA, "work_differs": work_differs(ran), "variants": variants}


def what_if_change(outcomes: Sequence[Outcome], outcome: Outcome) -> float | None:
    """By how much a what-if changes the step time of the same variant as it is; None where either is missing."""
    if outcome.variant.what_if is None or outcome.result is None:
        return None
    as_it_is = replace(outcome.variant, what_if=None)
    base = next((other.result for other in outcomes if other.variant == as_it_is), None)
    return outcome.result["metrics"]["step_time_s"] / base["metrics"]["step_time_s"] - 1.0 if base else None


def _settings(variant: Variant) -> Iterator[tuple[str, str]]:
    """Path and value of every override."""
    for text in variant.overrides:
        path, _, value = text.partition("=")
        yield path.strip(), value.strip()


def differences(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """What the variants differ in, by column: varied paths, what-ifs, and with several jobs, job and differing job
    values."""
    found: dict[str, list[str]] = {}
    jobs = [outcome.variant.job for outcome in outcomes]
    if len(set(jobs)) > 1:
        found["job"] = jobs
    for at, (path, _) in enumerate(outcomes[0].variant.varied):
        found[path] = [outcome.variant.varied[at][1] for outcome in outcomes]
    if any(outcome.variant.what_if for outcome in outcomes):
        found[WHAT_IF] = [outcome.variant.what_if or AS_IS for outcome in outcomes]
    if len(set(jobs)) > 1:
        found |= {path: values for path, values in _job_values(outcomes).items() if path not in found}
    return found


def _job_values(outcomes: Sequence[Outcome]) -> dict[str, list[str]]:
    """Values of the jobs that differ between those that ran."""
    jobs = [dict(_leaves(o.result["scenario"]["job"])) if o.result else {} for o in outcomes]
    paths = dict.fromkeys(path for job in jobs for path in job)
    columns = {path: [str(job.get(path, "")) for job in jobs] for path in paths}
    ran = [bool(job) for job in jobs]
    return {
        path: values
        for path, values in columns.items()
        if len({value for value, counts in zip(values, ran, strict=True) if counts}) > 1
    }


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value
