"""What must be finished before an action can start, and the order in which a schedule runs by that alone."""

from typing import NamedTuple, TypeAlias

from simulator.schedule.action import Action, Pair, Schedule, Step

Output: TypeAlias = tuple[str, int, int]
"""("F", stage, microbatch): its activations; ("I", stage, microbatch): the gradient of its inputs."""


class Progress(NamedTuple):
    """How far a schedule gets when every rank runs its row in order."""

    order: list[tuple[int, int]]
    """(rank, place) of the steps that ran, each after all it needs."""
    reached: list[int]
    """Place at which each rank stopped; the length of its row if it finished."""
    waits_for: dict[int, Output]
    """For each rank that stopped early, the output that never came."""


def needs(action: Action, stages: int) -> tuple[Output, ...]:
    """Outputs an action waits for: its input, and for a backward also its own forward."""
    kind, stage, microbatch = action[:3]
    if kind == "F":
        return (("F", stage - 1, microbatch),) if stage else ()
    if kind == "W":
        return (("I", stage, microbatch),)
    own_forward = ("F", stage, microbatch)
    return (own_forward,) if stage == stages - 1 else (own_forward, ("I", stage + 1, microbatch))


def output_of(action: Action) -> Output | None:
    """What others can wait for once the action is done; a full backward yields the same as its input part."""
    kind, stage, microbatch = action[:3]
    if kind == "W":
        return None
    return ("F" if kind == "F" else "I", stage, microbatch)


def step_needs(step: Step, stages: int) -> tuple[Output, ...]:
    """Outputs a step waits for; a pair waits for what both its halves need."""
    if isinstance(step, Pair):
        return needs(step.forward, stages) + needs(step.backward, stages)
    return needs(step, stages)


def step_outputs(step: Step) -> tuple[Output, ...]:
    """Outputs that are there when a step ends."""
    actions = step if isinstance(step, Pair) else (step,)
    return tuple(output for action in actions if (output := output_of(action)) is not None)


def progress(schedule: Schedule) -> Progress:
    """Run the rows as far as they go, in time linear in the number of steps.

    A rank goes on until it misses something, and is taken up again when that is produced.
    """
    ran = Progress(order=[], reached=[0] * schedule.ranks, waits_for={})
    done: set[Output] = set()
    sleepers: dict[Output, list[int]] = {}
    ready = list(reversed(range(schedule.ranks)))
    while ready:
        rank = ready.pop()
        ran.waits_for.pop(rank, None)
        row = schedule.rows[rank]
        while ran.reached[rank] < len(row):
            step = row[ran.reached[rank]]
            missing = next((need for need in step_needs(step, schedule.stages) if need not in done), None)
            if missing is not None:
                sleepers.setdefault(missing, []).append(rank)
                ran.waits_for[rank] = missing
                break
            ran.order.append((rank, ran.reached[rank]))
            ran.reached[rank] += 1
            for output in step_outputs(step):
                done.add(output)
                ready.extend(sleepers.pop(output, ()))
    return ran
