"""Disaggregated deployments: engines for prompts and engines that go on from them, each the cheapest for its part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import ceil
from typing import Any

from simulator.errors import ForetrainError
from simulator.serving.deployment import Deployment, disaggregated
from simulator.serving.serve import serve
from simulator.serving.summary import metrics
from simulator.studies.sizing.judging import FLEET, MORE, Choice, Wanted
from simulator.studies.sizing.targets import margins

TRIED = 2
"""Layouts of each part that are tried, the cheapest first: together they may need more than each by itself."""
Pair = tuple[Choice, Choice]
"""What computes prompts, and what goes on."""


def pairs(wanted: Wanted, choices: Iterable[Choice]) -> list[Pair]:
    """The cheapest engines for prompts with the cheapest for all that follows, as far as each holds its part alone."""
    every = list(choices)

    def cheapest(rate_of: str) -> list[Choice]:
        able = [one for one in every if getattr(one, rate_of)]
        each = {one.settings: ceil(wanted.rate / getattr(one, rate_of)) * one.usd_each for one in able}
        return sorted(able, key=lambda one: (each[one.settings], -getattr(one, rate_of), one.settings))[:TRIED]

    return [(before, after) for before in cheapest("as_prefill") for after in cheapest("as_decode")]


def judge_pair(wanted: Wanted, pair: Pair) -> list[Choice]:
    """As many engines of each kind as hold the level together; the ratio follows from their rates. One choice."""
    return [_of_pair(wanted, *pair)]


def _of_pair(wanted: Wanted, before: Choice, after: Choice) -> Choice:
    choice = Choice(settings=after.settings, prefill_settings=before.settings)
    try:
        prompts, decoders = wanted.deployed(before.settings, prompts=True), wanted.deployed(after.settings)
        disaggregated(decoders, prompts)
    except ForetrainError as error:
        return replace(choice, why=str(error).splitlines()[0])
    first, then = ceil(wanted.rate / before.as_prefill), ceil(wanted.rate / after.as_decode)
    for _ in range(2 * MORE):
        found = replayed(wanted, prompts, decoders, first, then)
        left = margins(found, wanted.targets)
        if min(left.values()) >= 0:
            highest = min(first * before.as_prefill, then * after.as_decode)
            return replace(
                choice,
                replicas=then,
                prefill_replicas=first,
                gpus=first * prompts.gpus + then * decoders.gpus,
                usd_per_hour=first * before.usd_each + then * after.usd_each,
                highest_rate=highest,
                capacity=highest,
                margins=left,
                headroom=highest / wanted.rate - 1.0,
                metrics=found,
            )
        if min(left, key=lambda name: left[name]).startswith("ttft."):
            first += 1
        else:
            then += 1
    return replace(choice, why=f"{first} + {then} replicas do not hold the level together")


def replayed(wanted: Wanted, prompts: Deployment, decoders: Deployment, first: int, then: int) -> dict[str, Any]:
    """Metrics of so many engines of each kind; large fleets by a part of them with as large a part of the rate."""
    parts = ceil((first + then) / FLEET)
    few, others = ceil(first / parts), ceil(then / parts)
    share = min(few / first, others / then)
    whole = disaggregated(
        replace(decoders, engines=decoders.engines * others, router="least-load"),
        replace(prompts, engines=prompts.engines * few, router="least-load"),
    )
    asked = replace(wanted.load(wanted.rate * share), count=wanted.count * min(few + others, 4))
    return metrics(serve(whole, asked))
