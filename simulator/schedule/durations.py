"""What a schedule made for a job is made from: how long its actions take, and how long activations live."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Times and memory of the actions of one stage, for all stages alike; all times in one unit of any size.

    Parameters
    ----------
    f, i, w : of a forward, an input gradient and a weight gradient.
    send : of a message to the neighbouring rank.
    until_w : part of a microbatch's activations that only its weight gradient frees; its input gradient frees the rest
        [1].
    """

    f: float
    i: float
    w: float
    send: float = 0.0
    until_w: float = 1.0


UNIFORM: Final = Durations(f=1.0, i=1.0, w=1.0)
"""Equal times and free communication, as the papers draw schedules."""
