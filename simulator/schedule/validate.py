"""Check that a schedule means something: all the work, once, in an order that can run."""

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from simulator.errors import ScheduleError
from simulator.schedule.action import Action, Pair, Schedule, iter_actions
from simulator.schedule.excerpt import excerpt
from simulator.schedule.order import Output, Progress, output_of, progress


class Spot(NamedTuple):
    """Place of an action."""

    rank: int
    place: int


def validate(schedule: Schedule) -> None:
    """Raise ScheduleError, with the grid around the error, unless the schedule is complete and can run.

    Every microbatch passes every stage once, forward and backward (B, or I and W), on one rank; every action
    comes after what it needs; no two ranks wait for each other. Linear in the number of actions.
    """
    if schedule.stages < 1 or schedule.microbatches < 1 or not schedule.rows:
        raise ScheduleError(
            f"schedule {schedule.name}: stages, microbatches and ranks must be at least 1:"
            f" {schedule.stages} stages, {schedule.microbatches} microbatches, {schedule.ranks} ranks"
        )
    spots = _spots(schedule)
    _check_pairs(schedule)
    _check_complete(schedule, spots)
    _check_same_rank(schedule, spots)
    ran = progress(schedule)
    if ran.waits_for:
        raise_stuck(schedule, ran)


def _spots(schedule: Schedule) -> dict[Action, Spot]:
    """Where each action is, having checked that it exists in the model and is there only."""
    spots: dict[Action, Spot] = {}
    for rank, place, action in iter_actions(schedule):
        spot = Spot(rank, place)
        if action.kind not in ("F", "B", "I", "W"):
            _fail(schedule, f"{action} is of no known kind: use F, B, I or W", [spot])
        if not 0 <= action.stage < schedule.stages:
            _fail(schedule, f"{action}: there is no such stage among 0 to {schedule.stages - 1}", [spot])
        if not 0 <= action.microbatch < schedule.microbatches:
            last = schedule.microbatches - 1
            _fail(schedule, f"{action}: there is no such microbatch among 0 to {last}", [spot])
        if action in spots:
            places = f"at step {spots[action].place} of rank {spots[action].rank} and {place} of rank {rank}"
            _fail(schedule, f"{action} stands twice, {places}: every action runs once", [spots[action], spot])
        spots[action] = spot
    return spots


def _check_pairs(schedule: Schedule) -> None:
    for rank, row in enumerate(schedule.rows):
        for place, step in enumerate(row):
            if not isinstance(step, Pair):
                continue
            if step.forward.kind != "F" or step.backward.kind not in ("B", "I"):
                _fail(schedule, f"{step}: a pair is a forward, then a backward (B or I)", [Spot(rank, place)])
            if step.forward[1:] == step.backward[1:]:
                what = f"{step}: a backward needs its own forward, so they cannot be a pair"
                _fail(schedule, what, [Spot(rank, place)])


def _check_complete(schedule: Schedule, spots: Mapping[Action, Spot]) -> None:
    """Each stage and microbatch has F, and either B or both I and W."""
    for stage in range(schedule.stages):
        for microbatch in range(schedule.microbatches):
            forward, whole = Action("F", stage, microbatch), Action("B", stage, microbatch)
            inputs, weights = Action("I", stage, microbatch), Action("W", stage, microbatch)
            if forward not in spots:
                _missing(schedule, spots, forward, "every microbatch passes every stage forward once")
            if whole in spots:
                for part in (inputs, weights):
                    if part in spots:
                        what = f"there are both {whole} and {part}"
                        rule = "a backward is either whole (B) or in two parts (I and W)"
                        _fail(schedule, f"{what}: {rule}", [spots[whole], spots[part]])
            elif inputs not in spots:
                _missing(schedule, spots, whole, "every microbatch passes every stage backward once, B or I and W")
            elif weights not in spots:
                _missing(schedule, spots, weights, f"it completes {inputs}")


def _check_same_rank(schedule: Schedule, spots: Mapping[Action, Spot]) -> None:
    """A backward finds the activations and the weights of its forward on its own rank only."""
    for action, spot in spots.items():
        forward = action._replace(kind="F")
        if spots[forward].rank != spot.rank:
            what = f"{action} is on rank {spot.rank}, but its forward {forward} on rank {spots[forward].rank}"
            _fail(schedule, f"{what}: put them on the same rank", [spots[forward], spot])


def raise_stuck(schedule: Schedule, ran: Progress) -> NoReturn:
    """Explain which steps wait for each other in a circle."""
    made_at = {
        output: Spot(rank, place)
        for rank, place, action in iter_actions(schedule)
        if (output := output_of(action)) is not None
    }
    rank = min(ran.waits_for)
    circle: list[int] = []
    while rank not in circle:
        circle.append(rank)
        maker = made_at.get(ran.waits_for[rank])
        if maker is None:
            what = f"rank {rank} waits for {_shown(ran.waits_for[rank])}, which nobody computes"
            _fail(schedule, what, [Spot(rank, ran.reached[rank])])
        rank = maker.rank
    circle = circle[circle.index(rank) :]
    waits = [_wait(schedule, ran, rank, made_at[ran.waits_for[rank]]) for rank in circle]
    spots = [Spot(rank, ran.reached[rank]) for rank in circle]
    spots += [made_at[ran.waits_for[rank]] for rank in circle]
    _fail(schedule, f"it never ends: {'; '.join(waits)}", spots)


def _wait(schedule: Schedule, ran: Progress, rank: int, maker: Spot) -> str:
    step, output = schedule.rows[rank][ran.reached[rank]], _shown(ran.waits_for[rank])
    if maker.rank != rank:
        head = schedule.rows[maker.rank][ran.reached[maker.rank]]
        there = "" if maker.place == ran.reached[maker.rank] else f" behind {head}"
        return f"rank {rank} waits in {step} for {output}, on rank {maker.rank}{there}"
    if maker.place == ran.reached[rank]:
        return f"rank {rank} waits in {step} for {output}, which is in the same pair"
    return f"rank {rank} waits in {step} for {output}, which comes later on the same rank"


def _shown(output: Output) -> str:
    kind, stage, microbatch = output
    return f"{stage}{kind}{microbatch}" if kind == "F" else f"the backward of {stage}F{microbatch}"


def _missing(schedule: Schedule, spots: Mapping[Action, Spot], action: Action, rule: str) -> NoReturn:
    """Mark where the same stage and microbatch do stand, if they do."""
    near = [spot for other, spot in spots.items() if other[1:] == action[1:]]
    _fail(schedule, f"{action} is missing: {rule}", near)


def _fail(schedule: Schedule, what: str, spots: list[Spot]) -> NoReturn:
    marks: dict[int, set[int]] = {}
    for spot in spots:
        marks.setdefault(spot.rank, set()).add(spot.place)
    grid = excerpt(schedule, marks)
    raise ScheduleError(f"schedule {schedule.name}: {what}" + (f"\n{grid}" if grid else ""))
