"""Runs of others of which it is known whether they fitted (`workloads/facts/runs.toml`), and what is forecast of them.

End-to-end facts: compared with, never fitted to.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any, Literal

from simulator.errors import ForetrainError
from simulator.inputs import load_scenario
from simulator.memory import memory_of_rows
from simulator.memory.memory_report import Answer
from simulator.results.simulate import prepare
from simulator.validation.training_figures import DENSE

GIB = 2.0**30
Counted = Literal["allocated", "reserved", "device"]
FILE = "runs.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownRun:
    """One reported run.

    Parameters
    ----------
    id : name of the run.
    what : what ran.
    source : where it was reported.
    outcome : whether it ran.
    set : changes that make it of the job llama-3-8b.
    cannot_say : what the report says and a job cannot; empty where it says all.
    peak_GiB : the most that a GPU used [GiB]; None where the report does not say.
    counted : what that counts: what PyTorch had allocated, what its allocator had reserved, or all that the device had
        in use.
    """

    id: str
    what: str
    source: str
    outcome: Literal["ran", "out of memory"]
    set: tuple[str, ...]
    cannot_say: str = ""
    peak_GiB: float | None = None  # the key of the file
    counted: Counted = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is forecast of a run: whether it fits, and its `peak` as its report counts [GiB]; or why nothing is."""

    run: KnownRun
    answer: Answer | None = None
    peak: float | None = None
    reason: str = ""

    @property
    def counts(self) -> bool:
        """Whether the run can be said in full, and was forecast."""
        return not self.run.cannot_say and self.answer is not None

    @property
    def right(self) -> bool:
        """Whether a run that ran is said to fit (if tightly), and one that did not, not to."""
        return (self.answer == "does not fit") is (self.run.outcome == "out of memory")

    @property
    def error(self) -> float | None:
        """(forecast - reported) / reported peak."""
        known = self.run.peak_GiB
        return self.peak / known - 1.0 if known and self.peak is not None and self.counts else None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "id": self.run.id,
            "what": self.run.what,
            "outcome": self.run.outcome,
            "answer": self.answer,
            "right": self.right if self.counts else None,
            "peak_gib": self.peak,
            "reported_gib": self.run.peak_GiB,
            "counted": self.run.counted,
            "error": self.error,
            "reason": self.reason or self.run.cannot_say,
            "source": self.run.source,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """How many of `runs` with one outcome were judged, and how many of these rightly."""

    outcome: str
    runs: int
    right: int


def known_runs(only: Sequence[str] = ()) -> list[KnownRun]:
    """The runs whose names fit one of the patterns; all without patterns."""
    text = resources.files("workloads.facts").joinpath(FILE).read_text(encoding="utf-8")
    runs = [KnownRun(**table | {"set": tuple(table["set"])}) for table in tomllib.loads(text)["run"]]
    return [run for run in runs if not only or any(fnmatchcase(run.id, f"{pattern}*") for pattern in only)]


def verdicts(runs: Sequence[KnownRun], progress: Callable[[float], None] | None = None) -> list[Verdict]:
    """What is forecast of the memory of each run."""
    found = []
    for done, run in enumerate(runs, 1):
        found.append(_verdict(run))
        if progress is not None:
            progress(done / len(runs))
    return found


def _verdict(run: KnownRun) -> Verdict:
    try:
        report = memory_of_rows(*prepare(load_scenario(DENSE, run.set)))
    except ForetrainError as error:
        return Verdict(run=run, reason=str(error).splitlines()[0])
    left = {"allocated": ("context", "slack"), "reserved": ("context",), "device": ()}[run.counted]
    peak = max(rank.peak - sum(map(rank.group, left)) for rank in report.ranks)
    return Verdict(run=run, answer=report.answer, peak=peak / GIB)


def counts(found: Sequence[Verdict]) -> list[Count]:
    """Right verdicts by outcome, of the runs that count."""
    out = []
    for outcome in ("ran", "out of memory"):
        mine = [one for one in found if one.counts and one.run.outcome == outcome]
        out.append(Count(outcome=outcome, runs=len(mine), right=sum(one.right for one in mine)))
    return out
