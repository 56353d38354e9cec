"""What the program knows of a schedule besides its rows: one record, defined in the file of the schedule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from simulator.errors import ScheduleError
from simulator.schedule.action import MOST_CHUNKS, Row, Schedule
from simulator.schedule.durations import UNIFORM, Durations

Generator: TypeAlias = Callable[[int, int, int], tuple[Row, ...]]
"""(pp, microbatches, vpp) -> a row of steps for each rank."""
TimedGenerator: TypeAlias = Callable[[int, int, Durations], tuple[Row, ...]]
"""(pp, microbatches, durations) -> the same, made for these durations."""
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
    generate, timed : (pp, microbatches, vpp) -> the rows, or (pp, microbatches, durations) where they depend on how
        long actions take; one of the two. Only called with numbers that break no rule.
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
    description: str
    source: str
    year: int
    generate: Generator | None = None
    timed: TimedGenerator | None = None
    rules: tuple[Rule, ...] = ()
    stages: Callable[[int, int], int] = one_stage_a_rank
    virtual_stages: bool = False
    mirrored: bool = False
    overlapped_pairs: bool = False
    bubble: ClosedForm | None = None

    def __post_init__(self) -> None:
        if (self.generate is None) == (self.timed is None):
            raise ScheduleError(f"the record of schedule {self.name} needs either generate or timed")

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

    def __call__(self, ranks: int, microbatches: int, vpp: int = 1, *, durations: Durations = UNIFORM) -> Schedule:
        """The schedule; `durations` matter where it is made for them. Raises ScheduleError with every broken rule."""
        broken = self.broken(ranks, microbatches, vpp)
        if broken:
            raise ScheduleError("; ".join(broken))
        if microbatches * ranks * vpp > MOST_CHUNKS:
            held = f"{microbatches} microbatches on {ranks} ranks" + (f" of {vpp} chunks" if vpp > 1 else "")
            raise ScheduleError(
                f"{self.name}: {held} are more than can be simulated, for memory and time: "
                f"their product may be {MOST_CHUNKS:,}"
            )
        stages = self.stages(ranks, vpp)
        return Schedule(
            name=self.name,
            stages=stages,
            microbatches=microbatches,
            rows=self._rows(ranks, microbatches, vpp, durations),
        )

    def _rows(self, pp: int, microbatches: int, vpp: int, durations: Durations) -> tuple[Row, ...]:
        if self.timed is not None:
            return self.timed(pp, microbatches, durations)
        assert self.generate is not None  # __post_init__
        return self.generate(pp, microbatches, vpp)
