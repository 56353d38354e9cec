"""How many GPUs a service needs: every candidate judged, the cheapest first, and how the best does at other rates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.serving.deployment import Deployment, deploy, disaggregated
from simulator.serving.serve import serve
from simulator.serving.summary import metrics
from simulator.studies.search.workers import dask, pool
from simulator.studies.sizing.apart import Pair, judge_pair, pairs
from simulator.studies.sizing.candidates import Group, layouts
from simulator.studies.sizing.judging import Choice, Wanted, judge
from simulator.studies.sizing.kept import Kept

SWEPT = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1)
"""Rates of the sweep of the best, over the capacity of its replicas."""
Part = TypeVar("Part")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """Choices, the cheapest first, then those that cannot do; and how the best does at other rates.

    Parameters
    ----------
    wanted : what was asked.
    choices : what was judged.
    sweep : rate [1/s] and metrics of the best deployment; those in overload have no latencies.
    """

    wanted: Wanted
    choices: tuple[Choice, ...]
    sweep: tuple[tuple[float, Mapping[str, Any]], ...]

    @property
    def best(self) -> Choice | None:
        """The cheapest that holds the level."""
        return self.choices[0] if self.choices and not self.choices[0].why else None


def size(
    wanted: Wanted,
    *,
    jobs: int = 1,
    address: str = "",
    file: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Sizing:
    """Judge every candidate.

    Parameters
    ----------
    jobs : processes.
    address : scheduler of a Dask cluster that judges instead.
    file : what is judged is kept there, and not judged again.
    progress : called with the part that is done (0 to 1).
    """
    scenario = load_scenario(wanted.job, wanted.overrides, replayed=True)
    if scenario.stack.scheduler is None or not scenario.workload.serves:
        deploy(scenario)  # says what is wrong
    groups = layouts(scenario, wanted.over)
    stage = _Stages(jobs=jobs, address=address, kept=Kept(file, wanted) if file is not None else None, done=progress)
    each = stage.judge(partial(judge, wanted), {group: group for group in groups})
    every = [choice for group in groups for choice in each[group]]
    if wanted.kind != "aggregated":
        found = stage.judge(partial(judge_pair, wanted), {_key(pair): pair for pair in pairs(wanted, every)})
        alone = every if wanted.kind == "both" else [one for one in every if one.why]
        every = [*alone, *(choice for choices in found.values() for choice in choices)]
    order = sorted(
        every, key=lambda one: (bool(one.why), one.usd_per_hour, -one.headroom, one.prefill_settings, one.settings)
    )
    best = order[0] if order and not order[0].why else None
    return Sizing(wanted=wanted, choices=tuple(order), sweep=tuple(_sweep(wanted, best)) if best else ())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stages:
    """How parts of a sizing are judged: by whom, what is kept of them, and who is shown how far it is."""

    jobs: int
    address: str
    kept: Kept | None
    done: Callable[[float], None] | None

    def judge(self, work: Callable[[Part], list[Choice]], parts: Mapping[Group, Part]) -> dict[Group, list[Choice]]:
        """The choices of every part by its name; those that a file has are not judged again."""
        found: dict[Group, list[Choice]] = {}
        for name in parts:
            if self.kept is not None and (known := self.kept.of(name)) is not None:
                found[name] = [Choice(**one) for one in known]
        left = [(name, part) for name, part in parts.items() if name not in found]
        for name, choices in _spread(partial(_named, work), left, self.jobs, self.address):
            found[name] = choices
            if self.kept is not None:
                self.kept.add(name, choices)
            if self.done is not None:
                self.done(len(found) / len(parts))
        return {name: found[name] for name in parts}


def _named(work: Callable[[Part], list[Choice]], one: tuple[Group, Part]) -> tuple[Group, list[Choice]]:
    name, part = one
    return name, work(part)


def _key(pair: Pair) -> Group:
    """The name of a pair in a file."""
    before, after = pair
    return ("prefill", *before.settings, "decode", *after.settings)


def _spread(work: Callable[[Part], Answer], parts: Sequence[Part], jobs: int, address: str) -> Iterator[Answer]:
    """Answers to all parts, as they come: of this process, of several, or of a Dask cluster."""
    if not address and (jobs == 1 or len(parts) < 2):
        yield from map(work, parts)
        return
    if not parts:
        return
    with closing(dask(work, parts, address) if address else pool(work, parts, min(jobs, len(parts)))) as answers:
        yield from answers


def deployed(wanted: Wanted, choice: Choice) -> Deployment:
    """All replicas of a choice.

    Raises
    ------
    InputError : it holds the level at none.
    """
    if choice.why:
        raise InputError(f"{', '.join(choice.settings)}: {choice.why}")
    one = wanted.deployed(choice.settings)
    whole = replace(one, engines=one.engines * choice.replicas, router="least-load")
    if not choice.prefill_replicas:
        return whole
    prompts = wanted.deployed(choice.prefill_settings, prompts=True)
    return disaggregated(
        whole, replace(prompts, engines=prompts.engines * choice.prefill_replicas, router="least-load")
    )


def _sweep(wanted: Wanted, best: Choice) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """The best deployment at other rates: one replica with its part of them, or all of a disaggregated one."""
    apart = bool(best.prefill_replicas)
    one = deployed(wanted, best if apart else replace(best, replicas=1))
    for share in SWEPT:
        rate = share * best.capacity
        yield rate * (1 if apart else best.replicas), metrics(serve(one, wanted.load(rate)))
