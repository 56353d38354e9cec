"""What a search varies: axes of `path=value,value`, and the scenario of every combination, made cheaply.

An axis is read once, through the same door as `--set`, so that its errors are the same. Combinations are numbered; the
axes that change shapes and prices turn slowest, so that neighbours share what was computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from simulator.errors import InputError
from simulator.inputs import load_scenario, override_job
from simulator.spec.scenario import Scenario
from simulator.spec.workload import WORKLOADS, WorkloadName

_QUICK = (
    "layout.pp",
    "layout.vpp",
    "layout.schedule",
    "layout.stages",
    "layout.zero",
    "gpus",
    "batch.global_batch_size",
)
_COUNTING = ("batch.microbatch_size", "layout.tp", "layout.cp")
"""Axes that also change the number of microbatches, so that schedules must be rebuilt."""
_HEAVY = ("model", "hardware", "stack")


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A path that `--set` takes, and its values as written."""

    path: str
    values: tuple[str, ...]

    @property
    def heavy(self) -> bool:
        """Whether it changes model, hardware or stack, which are then loaded again."""
        return self.path.partition(".")[0] in _HEAVY


def parse_axis(text: str) -> Axis:
    """`layout.pp=4,8,16` -> its path and values; commas inside brackets belong to a value."""
    path, equals, rest = text.partition("=")
    values = tuple(value.strip() for value in _split(rest))
    if not equals or not path.strip() or not all(values):
        raise InputError(f"--over: {text!r}: must be path=value,value, as in layout.pp=4,8,16")
    if len(set(values)) < len(values):
        raise InputError(f"--over: {text!r}: a value is given twice")
    return Axis(path=path.strip(), values=values)


def _split(text: str) -> Iterator[str]:
    """Split at commas outside brackets."""
    depth, value = 0, ""
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            yield value
            value = ""
        else:
            value += letter
    yield value


def in_order(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes as they turn, the slowest first: model and hardware, then shapes, then what only orders the work."""
    paths = [axis.path for axis in axes]
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice:
        raise InputError(f"--over: {twice}: is given twice; list all its values in one option")
    return tuple(sorted(axes, key=lambda a: (not a.heavy, a.path in _QUICK, a.path not in _COUNTING, a.path)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is searched: a job with overrides, axes in turning order, the job's workload, and whether the axes were
    `chosen` here."""

    job: str
    overrides: tuple[str, ...]
    axes: tuple[Axis, ...]
    workload: WorkloadName = "training"
    chosen: bool = False

    @property
    def serves(self) -> bool:
        """Whether the job serves."""
        return WORKLOADS[self.workload].serves

    @property
    def size(self) -> int:
        """Number of combinations."""
        return prod(len(axis.values) for axis in self.axes)

    @property
    def block(self) -> int:
        """Neighbours that share shapes and prices."""
        return prod(len(axis.values) for axis in self.axes if axis.path in _QUICK)

    def values(self, number: int) -> tuple[str, ...]:
        """The values of combination `number`, by axis."""
        out: list[str] = []
        for axis in reversed(self.axes):
            number, place = divmod(number, len(axis.values))
            out.append(axis.values[place])
        return tuple(reversed(out))


def question(job: str, overrides: Sequence[str], over: Sequence[str]) -> Question:
    """The question that a command line asks; without axes those that usually matter for such a job."""
    if not over:
        from simulator.studies.search.chosen import chosen_question

        return chosen_question(job, overrides)
    axes = in_order([parse_axis(text) for text in over])
    if any(axis.path == "workload" for axis in axes):
        raise InputError("--over: workload: steps of different workloads have no common rank; search each by itself")
    workload = load_scenario(job, overrides).job.workload
    return Question(job=job, overrides=tuple(overrides), axes=axes, workload=workload)


class Scenarios:
    """Scenarios of a question by number."""

    def __init__(self, asked: Question) -> None:
        self.asked = asked
        self.base = load_scenario(asked.job, asked.overrides)
        self.typed: dict[tuple[str, str], Any] = {}
        for axis in asked.axes:
            for value in axis.values:
                text = f"{axis.path}={value}"
                try:
                    if axis.heavy:
                        load_scenario(asked.job, (*asked.overrides, text))  # a mistake shows now, not in the middle
                    else:
                        self.typed[axis.path, value] = _get(override_job(self.base.job, text), axis.path)
                except InputError as error:
                    raise InputError(f"--over: {str(error).removeprefix('--set: ')}") from None
        self.heavy: dict[tuple[str, ...], Scenario] = {}

    def of(self, number: int) -> Scenario:
        """The scenario of one combination."""
        asked, values = self.asked, self.asked.values(number)
        heavy = tuple(f"{a.path}={v}" for a, v in zip(asked.axes, values, strict=True) if a.heavy)
        scenario = self._loaded(heavy)
        job = scenario.job
        for axis, value in zip(asked.axes, values, strict=True):
            if not axis.heavy:
                job = _put(job, axis.path.split("."), self.typed[axis.path, value])
        return replace(scenario, job=job)

    def _loaded(self, heavy: tuple[str, ...]) -> Scenario:
        """The base with another model, hardware or stack; only the last few are kept."""
        if not heavy:
            return self.base
        if heavy not in self.heavy:
            while len(self.heavy) >= 8:
                del self.heavy[next(iter(self.heavy))]
            self.heavy[heavy] = load_scenario(self.asked.job, (*self.asked.overrides, *heavy))
        return self.heavy[heavy]


def _get(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = getattr(value, part)
    return value


def _put(value: Any, parts: Sequence[str], new: Any) -> Any:
    first, *rest = parts
    return replace(value, **{first: _put(getattr(value, first), rest, new) if rest else new})
