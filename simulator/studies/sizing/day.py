"""A fleet over a day: replicas of each kind that every hour needs, nodes that change their kind, and those set free.

DeepSeek describes such a fleet (day 6 of its open-source week, github.com/deepseek-ai/open-infra-index, 2025): nodes
serve while load is high, and are withdrawn for research and training at night; 226.75 of 278 H800 nodes in the mean.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.serving.load.lengths import scaled
from simulator.serving.load.lines import lines_of
from simulator.studies.sizing.apart import replayed
from simulator.studies.sizing.judging import MORE, Choice, Wanted, fleet_metrics
from simulator.studies.sizing.targets import margins

COLUMNS = ("hour", "rate", "input", "output")
"""What a line of a curve has; the last two may be missing (1)."""
MOST_HOURS = 24 * 7
"""Longest curve [lines]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """An hour of a curve.

    Parameters
    ----------
    hour : when it begins, as the file names it.
    rate : its rate of requests, as a share of the rate of the sizing.
    input, output : lengths of prompts and answers, over those of the sizing.
    """

    hour: str
    rate: float
    input: float = 1.0
    output: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """What an hour needs.

    Parameters
    ----------
    hour : when it begins.
    rate : requests/s.
    prefill, decode : replicas for prompts (none in an aggregated deployment), and those that go on or do it all.
    gpus : GPUs of all of them.
    margin : smallest margin of the level.
    metrics : metrics of its replay.
    """

    hour: str
    rate: float
    prefill: int
    decode: int
    gpus: int
    margin: float
    metrics: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """A fleet over the hours of a curve.

    Parameters
    ----------
    choice : the deployment.
    hours : what each hour needs.
    gpus_prefill, gpus_decode : GPUs of a replica of each kind.
    usd_per_gpu_hour : price [USD/h].
    """

    choice: Choice
    hours: tuple[Hour, ...]
    gpus_prefill: int
    gpus_decode: int
    usd_per_gpu_hour: float

    @property
    def peak(self) -> int:
        """GPUs of the hour that needs most."""
        return max(one.gpus for one in self.hours)

    @property
    def mean(self) -> float:
        """GPUs in the mean of all hours."""
        return sum(one.gpus for one in self.hours) / len(self.hours)

    @property
    def moved(self) -> int:
        """GPUs that go from one kind to the other from an hour to the next, the last followed by the first."""
        total = 0
        for before, after in zip(self.hours, (*self.hours[1:], self.hours[0]), strict=True):
            prefill = (after.prefill - before.prefill) * self.gpus_prefill
            decode = (after.decode - before.decode) * self.gpus_decode
            if prefill * decode < 0:
                total += min(abs(prefill), abs(decode))
        return total


def read_curve(name: str) -> list[Load]:
    """The hours of a curve: a CSV file, or `workday`, which is shipped (made up: a third of the maximum at night).

    Raises
    ------
    InputError : it is no curve; names file and line.
    """
    path = Path(name)
    if not path.is_file() and name == "workday":
        path = Path(str(resources.files("workloads.traces") / "workday.csv"))
    if not path.is_file():
        raise InputError(f"--day: {name[:80]!r}: is no file; `workday` is shipped")
    header: list[str] = []
    found: list[Load] = []
    for number, line in lines_of(path):
        cells, where = next(csv.reader([line])), f"{path}:{number}"
        if not header:
            header = [cell.strip() for cell in cells]
            if not {"hour", "rate"} <= set(header) <= set(COLUMNS):
                raise InputError(
                    f"{where}: must name hour and rate, and may name input and output; `workday` is shipped"
                )
            continue
        if len(cells) != len(header):
            raise InputError(f"{where}: has {len(cells)} columns; the first line has {len(header)}")
        row = dict(zip(header, cells, strict=True))
        numbers = {key: _share(cell, key, where) for key, cell in row.items() if key != "hour"}
        found.append(Load(hour=row["hour"].strip()[:20], **numbers))
        if len(found) > MOST_HOURS:
            raise InputError(f"{where}: a curve has at most {MOST_HOURS} hours")
    if not found:
        raise InputError(f"{path}: holds no hours")
    return found


def _share(cell: str, key: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = -1.0
    if not 1e-3 <= value <= 1e3:
        raise InputError(f"{where}: {key}: {cell[:40]!r}: must be a share from 0.001 to 1000, 1 for the load of size")
    return value


def over_day(
    wanted: Wanted,
    choice: Choice,
    curve: Sequence[Load],
    price: float,
    progress: Callable[[float], None] | None = None,
) -> Day:
    """The replicas that hold the level in every hour, each hour replayed by itself.

    Hours begin with what those of the sizing answer for lengths as they are, and go down and up from there.
    """
    apart = bool(choice.prefill_replicas)
    one, prompts = wanted.deployed(choice.settings), None
    if apart:
        prompts = wanted.deployed(choice.prefill_settings, prompts=True)
    hours: list[Hour] = []
    for at, load in enumerate(curve):
        asked = replace(
            wanted,
            rate=wanted.rate * load.rate,
            input_tokens=scaled(wanted.input_tokens, load.input, "--day"),
            output_tokens=scaled(wanted.output_tokens, load.output, "--day"),
        )

        def tried(prefill: int, decode: int, asked: Wanted = asked) -> tuple[dict[str, Any], dict[str, float]]:
            found = replayed(asked, prompts, one, prefill, decode) if prompts else fleet_metrics(asked, one, decode)
            return found, margins(found, asked.targets)

        prefill = ceil(choice.prefill_replicas * asked.rate / wanted.rate * load.input) if apart else 0
        decode = max(1, ceil(choice.replicas * asked.rate / wanted.rate * load.output))
        hours.append(_least(load, asked.rate, prefill, decode, tried, (prompts.gpus if prompts else 0, one.gpus)))
        if progress is not None:
            progress((at + 1) / len(curve))
    return Day(
        choice=choice,
        hours=tuple(hours),
        gpus_prefill=prompts.gpus if prompts else 0,
        gpus_decode=one.gpus,
        usd_per_gpu_hour=price,
    )


def _least(
    load: Load,
    rate: float,
    prefill: int,
    decode: int,
    tried: Callable[[int, int], tuple[dict[str, Any], dict[str, float]]],
    gpus: tuple[int, int],
) -> Hour:
    """The fewest replicas of each kind that hold the level, near those given.

    Raises
    ------
    InputError : many more of them do not hold it.
    """
    found, left = tried(prefill, decode)
    for _ in range(4 * MORE):
        if min(left.values()) >= 0:
            break
        if prefill and min(left, key=lambda name: left[name]).startswith("ttft."):
            prefill += 1
        else:
            decode += 1
        found, left = tried(prefill, decode)
    else:
        raise InputError(f"--day: hour {load.hour}: {prefill} + {decode} replicas do not hold the level")
    for kind in (0, 1):
        while (prefill, decode)[kind] > 1:
            fewer = (prefill - 1, decode) if kind == 0 else (prefill, decode - 1)
            other, margin = tried(*fewer)
            if min(margin.values()) < 0:
                break
            (prefill, decode), found, left = fewer, other, margin
    return Hour(
        hour=load.hour,
        rate=rate,
        prefill=prefill,
        decode=decode,
        gpus=prefill * gpus[0] + decode * gpus[1],
        margin=min(left.values()),
        metrics=found,
    )
