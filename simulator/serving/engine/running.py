"""What an engine runs now: one step with prompts, or decode steps whose times follow a straight line."""

from __future__ import annotations

from math import ceil, inf

from simulator.serving.engine.prompts import Chunk


class Running:
    """Times of what runs.

    Attributes
    ----------
    name : what reports call the engine.
    since, until : when it began, and when it will be over; infinity where nothing runs [s].
    ahead : decode steps in it.
    first, slope : time of the first step, and what each later one adds [s].
    chunks : parts of prompts in it.
    """

    def __init__(self) -> None:
        self.name = ""
        self.since, self.until = 0.0, inf
        self.ahead = 0
        self.first, self.slope = 0.0, 0.0
        self.chunks: list[Chunk] = []

    @property
    def works(self) -> bool:
        """Whether a step runs."""
        return bool(self.ahead or self.chunks)

    def span(self, steps: int) -> float:
        """Time of so many of the steps that are under way [s]."""
        return steps * (self.first + self.slope * (steps - 1) / 2)

    def _last_began(self) -> float:
        """When the last of the steps that are over now began [s]."""
        return self.since + self.span(self.ahead - 1) if self.ahead > 1 else self.since

    def shorten(self, now: float) -> None:
        """Let what runs end with the step that runs at `now`, so that an arrival can join the next."""
        passed = now - self.since
        steps = max(1, min(self.ahead, ceil(passed / self.first))) if self.first > 0 else 1
        while steps > 1 and self.span(steps - 1) >= passed:
            steps -= 1
        if steps < self.ahead:
            self.ahead, self.until = steps, self.since + self.span(steps)
