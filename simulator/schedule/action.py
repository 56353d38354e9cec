"""A pipeline schedule as data: for every rank, the row of what it computes, in order.

The text form of a step is short enough to read a whole schedule: ``2F0`` is the forward of stage 2 for
microbatch 0, ``2B0`` its full backward, ``2I0`` and ``2W0`` the backward split into the gradient of the
inputs and that of the weights (Zero Bubble, Qi et al. 2023, section 2), ``(0F7;7B3)`` a forward and a
backward that run overlapped (DeepSeek-V3 report, section 3.2.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal["F", "B", "I", "W"]

MOST_CHUNKS = 50_000
"""Microbatches times ranks times chunks of a rank [1] beyond which no schedule is made. The published step of
DeepSeek-V3 has 1,920; so many take a minute and two gigabytes of a simulation, and more add nothing new: the steady
state repeats."""


class Action(NamedTuple):
    """One part of one stage's work on one microbatch; unique in a schedule; its rank is that of its row.

    `filled`: an I whose all-to-alls hide behind weight gradients that wait, and the W behind it, which has what is left
    of them (`simulator.schedule.pairing`).
    """

    kind: Kind
    stage: int
    microbatch: int
    filled: bool = False

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"


class Pair(NamedTuple):
    """A forward and a backward of different microbatches that start and end together, overlapped."""

    forward: Action
    backward: Action

    def __str__(self) -> str:
        return f"({self.forward};{self.backward})"


Step: TypeAlias = Action | Pair
Row: TypeAlias = tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What each rank computes, in which order; times are not part of it."""

    name: str
    """Family it belongs to, as in the registry, or any word for a schedule read from a file."""
    stages: int
    """Number of stages the model is cut into [1]."""
    microbatches: int
    """Number of microbatches in the step [1]."""
    rows: tuple[Row, ...]
    """One row of steps a rank."""

    @property
    def ranks(self) -> int:
        return len(self.rows)


def actions_of(step: Step) -> tuple[Action, ...]:
    """The one action of a lone step, or forward and backward of a pair."""
    return (step.forward, step.backward) if isinstance(step, Pair) else (step,)


def halves(step: Step) -> tuple[Action, Action]:
    """Where the forward and the backward of a step are: both parts of a pair, or twice a lone step."""
    return (step.forward, step.backward) if isinstance(step, Pair) else (step, step)


def iter_actions(schedule: Schedule) -> Iterator[tuple[int, int, Action]]:
    """Every action with its rank and its place in that rank's row."""
    for rank, row in enumerate(schedule.rows):
        for place, step in enumerate(row):
            for action in actions_of(step):
                yield rank, place, action


def rank_of(schedule: Schedule) -> dict[tuple[int, int], int]:
    """The rank on which each (stage, microbatch) is computed."""
    return {(action.stage, action.microbatch): rank for rank, _, action in iter_actions(schedule)}


def stages_on(schedule: Schedule) -> tuple[tuple[int, ...], ...]:
    """The stages whose weights each rank holds, ascending."""
    held: list[set[int]] = [set() for _ in schedule.rows]
    for rank, _, action in iter_actions(schedule):
        held[rank].add(action.stage)
    return tuple(tuple(sorted(stages)) for stages in held)
