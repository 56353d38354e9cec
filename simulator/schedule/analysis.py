"""What a schedule costs before anything is known of hardware: bubbles and memory with uniform stages.

The grid is read in one pass with free communication. The closed forms of the papers stand in the records of the
schedules (`simulator/schedule/generators`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from simulator.errors import ScheduleError
from simulator.schedule.action import Action, Pair, Schedule, Step, actions_of
from simulator.schedule.order import Output, progress, step_needs, step_outputs
from simulator.schedule.validate import raise_stuck

Durations: TypeAlias = float | Sequence[float]
"""Seconds, or any other unit, of an action: the same for all stages, or one number a stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformResult:
    """Times of every step; all in the unit of the durations given."""

    starts: tuple[tuple[float, ...], ...]
    """Start of each step, by rank and place."""
    ends: tuple[tuple[float, ...], ...]
    """End of each step, by rank and place."""
    makespan: float
    """From the first start on any rank, at 0, to the last end on any rank."""
    busy: tuple[float, ...]
    """Time each rank computes."""

    @property
    def spans(self) -> tuple[float, ...]:
        """Time of each rank from its first start to its last end."""
        return tuple(
            ends[-1] - starts[0] if starts else 0.0 for starts, ends in zip(self.starts, self.ends, strict=True)
        )

    @property
    def idle(self) -> tuple[float, ...]:
        """Time each rank does not compute within the makespan."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def idle_in_span(self) -> tuple[float, ...]:
        """Time each rank does not compute within its own span, as zero-bubble papers count it."""
        return tuple(span - busy for span, busy in zip(self.spans, self.busy, strict=True))

    @property
    def bubble_ratio(self) -> float:
        """Idle share of the makespan [1], mean over ranks."""
        return sum(self.idle) / (len(self.busy) * self.makespan) if self.makespan else 0.0

    @property
    def bubble_ratio_worst(self) -> float:
        """Idle share of the makespan [1] on the rank that idles most."""
        return max(self.idle) / self.makespan if self.makespan else 0.0


def uniform_times(
    schedule: Schedule, *, f: Durations, i: Durations, w: Durations, pair: Durations | None = None
) -> UniformResult:
    """Run the schedule with every step starting as soon as its rank and its inputs are there.

    A full backward takes ``i + w``; a pair takes ``pair`` (by the stage of its forward half, if a sequence),
    or the sum of its halves if not given. Communication takes no time.
    """
    forward, inputs, weights = (_per_stage(times, schedule.stages) for times in (f, i, w))
    paired = None if pair is None else _per_stage(pair, schedule.stages)

    def alone(action: Action) -> float:
        match action.kind:
            case "F":
                return forward[action.stage]
            case "I":
                return inputs[action.stage]
            case "W":
                return weights[action.stage]
            case "B":
                return inputs[action.stage] + weights[action.stage]

    def duration(step: Step) -> float:
        if isinstance(step, Pair):
            return alone(step.forward) + alone(step.backward) if paired is None else paired[step.forward.stage]
        return alone(step)

    ran = progress(schedule)
    if ran.waits_for:
        raise_stuck(schedule, ran)
    there: dict[Output, float] = {}
    starts: list[list[float]] = [[] for _ in schedule.rows]
    ends: list[list[float]] = [[] for _ in schedule.rows]
    busy = [0.0] * schedule.ranks
    for rank, place in ran.order:
        step = schedule.rows[rank][place]
        free = ends[rank][-1] if place else 0.0
        start = max(free, *(there[need] for need in step_needs(step, schedule.stages)), 0.0)
        takes = duration(step)
        starts[rank].append(start)
        ends[rank].append(start + takes)
        busy[rank] += takes
        there.update(dict.fromkeys(step_outputs(step), start + takes))
    return UniformResult(
        starts=tuple(map(tuple, starts)),
        ends=tuple(map(tuple, ends)),
        makespan=max((row[-1] for row in ends if row), default=0.0),
        busy=tuple(busy),
    )


def _per_stage(times: Durations, stages: int) -> Sequence[float]:
    if not isinstance(times, Sequence):
        return [times] * stages
    if len(times) != stages:
        raise ScheduleError(f"there are {len(times)} durations for {stages} stages: give one number, or {stages}")
    return times


def peak_in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Most microbatches of one stage [1] whose activations are alive at once, by rank.

    They live from the start of the forward to the end of what needs them last: B, or W (not I, since the
    weight part still needs the inputs of the GEMMs).
    """
    return tuple(_peak(row) for row in schedule.rows)


def _peak(row: Sequence[Step]) -> int:
    alive = peak = 0
    for step in row:
        kinds = [action.kind for action in actions_of(step)]
        alive += kinds.count("F")
        peak = max(peak, alive)
        alive -= kinds.count("B") + kinds.count("W")
    return peak
