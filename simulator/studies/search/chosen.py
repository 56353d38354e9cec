"""Axes of a search that nobody named: what usually matters for its model, hardware and GPUs, in values that divide.

Degrees of parallelism are powers of two that divide what they cut (heads, layers, experts, GPUs); a value stays only if
some combination with it breaks no rule. What does not fit into memory is found by the search itself. Where there are
too many combinations, values farthest from the job's own go first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import log2, prod

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.inputs.check import check
from simulator.schedule import SCHEDULES
from simulator.spec.scenario import Scenario
from simulator.studies.search.axes import Axis, Question, Scenarios, in_order

MOST = 2000
"""Combinations at most: some twenty seconds on two cores."""
LONG = 16384  # tokens; from here on sequences are often cut by context parallelism
MOST_EP = 128
_OLD = ("gpipe", "zb2p")
"""Schedules that others replace, or that change the optimizer. Automatic ones take long, so they are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """Values of one axis, the job's own among them, the nearest to it first."""

    path: str
    values: tuple[str, ...]


def chosen_question(job: str, overrides: Sequence[str]) -> Question:
    """The search of a job over axes that are chosen for it.

    Raises InputError where no combination keeps all rules, or there is nothing to vary.
    """
    scenario = load_scenario(job, overrides)
    axes = in_order(chosen_axes(scenario))
    asked = Question(job=job, overrides=tuple(overrides), axes=axes, workload=scenario.job.workload, chosen=True)
    if not axes:
        raise InputError(f"--over: {job}: nothing to vary was found; say what, as in --over layout.pp=4,8,16")
    return _without_useless(asked)


def chosen_axes(scenario: Scenario) -> tuple[Axis, ...]:
    """The axes to search a job over, in no particular order."""
    choices = list(_serving(scenario) if scenario.workload.serves else _training(scenario))
    while prod(len(one.values) for one in choices) > MOST:
        longest = max(range(len(choices)), key=lambda at: len(choices[at].values))
        choices[longest] = replace(choices[longest], values=choices[longest].values[:-1])
    return tuple(Axis(path=one.path, values=_ascending(one.values)) for one in choices if len(one.values) > 1)


def _ascending(values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(values, key=int)) if all(value.isdigit() for value in values) else values


def _without_useless(asked: Question) -> Question:
    """The question without values of its axes with which no combination keeps all rules."""
    scenarios, used = Scenarios(asked), [set[str]() for _ in asked.axes]
    for number in range(asked.size):
        values = asked.values(number)
        if all(value in seen for value, seen in zip(values, used, strict=True)):
            continue
        if not any(problem.severity == "error" for problem in check(scenarios.of(number))):
            for value, seen in zip(values, used, strict=True):
                seen.add(value)
    kept = [
        Axis(path=axis.path, values=tuple(value for value in axis.values if value in seen))
        for axis, seen in zip(asked.axes, used, strict=True)
    ]
    return replace(asked, axes=tuple(axis for axis in kept if axis.values) or asked.axes)


def _training(s: Scenario) -> Iterator[_Choice]:
    job, layout, model = s.job, s.job.layout, s.model
    yield _choice("layout.tp", layout.tp, _dividing(job.gpus, s.cluster.node.gpus, model.num_attention_heads))
    yield _choice("layout.pp", layout.pp, _dividing(job.gpus, model.num_hidden_layers))
    if model.is_moe:
        yield _choice("layout.ep", layout.ep, _dividing(job.gpus, MOST_EP, model.n_routed_experts))
    if job.batch.sequence_length >= LONG:
        yield _choice("layout.cp", layout.cp, _dividing(job.gpus, s.cluster.node.gpus))
    known = [one for one in SCHEDULES.values() if one.name not in _OLD and not one.virtual_stages and not one.timed]
    pairs = [one.name for one in known if one.overlapped_pairs and model.is_moe]  # they hide all-to-alls
    schedules = [*pairs, *(one.name for one in known if not one.overlapped_pairs)]
    if layout.schedule in SCHEDULES:
        yield _Choice(path="layout.schedule", values=tuple(dict.fromkeys([layout.schedule, *schedules])))
    if layout.vpp > 1:
        yield _Choice(path="layout.vpp", values=(str(layout.vpp), "1"))
    sizes = [size for size in (1, 2, 4) if job.batch.global_batch_size % size == 0]
    yield _choice("batch.microbatch_size", job.batch.microbatch_size, sizes)
    if isinstance(layout.recompute, str):
        kinds = (layout.recompute, "none", "selective", "full")
        yield _Choice(path="layout.recompute", values=tuple(dict.fromkeys(kinds)))


def _serving(s: Scenario) -> Iterator[_Choice]:
    job, layout, model = s.job, s.job.layout, s.model
    yield _choice("layout.tp", layout.tp, _dividing(job.gpus, s.cluster.node.gpus, model.num_attention_heads))
    if model.is_moe:
        yield _choice("layout.ep", layout.ep, _dividing(job.gpus, job.gpus, model.n_routed_experts))
    if job.serving is not None:
        own = job.serving.sequences
        yield _choice("serving.sequences", own, [int(own * part) for part in (0.25, 0.5, 2, 4, 8) if own * part >= 1])


def _dividing(gpus: int, most: int, cut: int = 0) -> list[int]:
    """Powers of two up to `most` that divide the GPUs, and what they cut."""
    powers = [2**n for n in range(max(1, most).bit_length())]
    return [n for n in powers if n <= most and gpus % n == 0 and cut % n == 0]


def _choice(path: str, own: int, values: list[int]) -> _Choice:
    near = sorted({own, *values}, key=lambda value: (abs(log2(value) - log2(own)), value))
    return _Choice(path=path, values=tuple(map(str, near)))
