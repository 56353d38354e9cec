"""Write a rank's row as a short program that leaves the microbatch numbers out.

A rank's instructions are words: ``F0`` is the next forward of its first stage (phase 0), ``B1`` the next full
backward of its second one, ``I1`` a backward for the inputs only, which puts its weight part into a queue,
``W`` the oldest weight part in the queue, ``W0`` the oldest one of phase 0, and ``F0B1`` a forward overlapped
with a full backward. Microbatches are taken in order in each phase, so that the words are all a schedule has
to say.
"""

from collections.abc import Sequence
from itertools import count
from typing import cast

from simulator.schedule.action import Action, Kind, Pair, Row, Step


def number(words: Sequence[str], *, stages: Sequence[int], first: Sequence[int] | None = None) -> Row:
    """The row of a program.

    ``stages`` holds the stage of each phase, ``first`` the first microbatch of each phase (0 if not given).
    """
    starts = first if first is not None else [0] * len(stages)
    forwards = [count(start) for start in starts]
    backwards = [count(start) for start in starts]
    queue: list[Action] = []

    def step(word: str) -> Step:
        if word[0] == "W":
            phase_stage = stages[int(word[1])] if len(word) > 1 else None
            place = next(n for n, part in enumerate(queue) if phase_stage in (None, part.stage))
            return queue.pop(place)
        phase = int(word[1])
        if word[0] == "F":
            forward = Action("F", stages[phase], next(forwards[phase]))
            if len(word) == 2:
                return forward
            return Pair(forward, cast(Action, step(word[2:])))
        backward = Action(cast(Kind, word[0]), stages[phase], next(backwards[phase]))
        if word[0] == "I":
            queue.append(backward._replace(kind="W"))
        return backward

    return tuple(step(word) for word in words)
