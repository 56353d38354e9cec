"""What the program knows of a schedule besides its rows: one record, defined in the file of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from simulator.errors import ScheduleError
from simulator.schedule.action import Row, Schedule

Generator: TypeAlias = Callable[[int, int, int], tuple[Row, ...]]
"""(pp, microbatches, vpp) -> a row of steps for each rank."""
Rule: TypeAlias = Callable[[str, int, int, int], Iterator[str]]
"""(name, pp, microbatches, vpp) -> the violations, one sentence each."""
ClosedForm: TypeAlias = Callable[[int, float, float, float, float], float]
"""(pp, f, i, w, pair) -> idle time of the worst rank, in the unit of the durations."""


def one_stage_a_rank(pp: int, vpp: int) -> int:
    """As many stages as ranks."""
    return pp


def two_stages_a_rank(pp: int, vpp: int) -> int:
    """Twice as many stages as ranks, as in a V."""
    return 2 * pp


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRecord:
    """A schedule by name. Calling it gives the schedule for so many ranks and microbatches.

    Parameters
    ----------
    name : what `layout.schedule` calls it.
    generate : (pp, microbatches, vpp) -> the rows; only called with numbers that break no rule.
    description : what it does, in a line without a full stop.
    source : who published it, and where.
    year : when [a]; lists are in this order.
    rules : what it asks of pp and microbatches beyond one of each, and of vpp if it has virtual stages.
    stages : (pp, vpp) -> number of stages [1] that the model is cut into.
    virtual_stages : whether a rank holds `vpp` stages; otherwise a vpp other than 1 is refused.
    mirrored : balance stages by the sum of two at the same distance from both ends, which share a rank.
    overlapped_pairs : its steps are mostly forwards and backwards overlapped, which hides the all-to-all.
    bubble : idle time by the published formula; None where there is none.
    """

    name: str
    generate: Generator
    description: str
    source: str
    year: int
    rules: tuple[Rule, ...] = ()
    stages: Callable[[int, int], int] = one_stage_a_rank
    virtual_stages: bool = False
    mirrored: bool = False
    overlapped_pairs: bool = False
    bubble: ClosedForm | None = None

    def broken(self, pp: int, microbatches: int, vpp: int = 1) -> list[str]:
        """Every rule that these numbers break, one sentence each; empty if the schedule can be built."""
        found = [
            f"{self.name} needs at least one {what}: {key} is {value}"
            for what, key, value in (("rank", "pp", pp), ("microbatch", "microbatches", microbatches))
            if value < 1
        ]
        if vpp != 1 and not self.virtual_stages:
            found.append(f"{self.name} has no virtual stages: vpp is {vpp}; set vpp to 1, or use interleaved")
        elif vpp < 1:
            found.append(f"{self.name} needs a vpp of at least 1: vpp is {vpp}")
        if min(pp, microbatches, vpp) >= 1:
            found += [text for rule in self.rules for text in rule(self.name, pp, microbatches, vpp)]
        return found

    def __call__(self, ranks: int, microbatches: int, vpp: int = 1) -> Schedule:
        """The schedule; raises ScheduleError with every rule that the numbers break."""
        broken = self.broken(ranks, microbatches, vpp)
        if broken:
            raise ScheduleError("; ".join(broken))
        return Schedule(
            name=self.name,
            stages=self.stages(ranks, vpp),
            microbatches=microbatches,
            rows=self.generate(ranks, microbatches, vpp),
        )
