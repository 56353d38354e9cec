"""The actions of a timeline, named and placed."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.engine.tasks import ActionOf, Timeline
from simulator.errors import InputError, meant
from simulator.results.metrics import action_spans
from simulator.schedule import actions_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionSpan:
    """One action of one rank.

    Parameters
    ----------
    rank : pipeline rank.
    text : as schedules spell it (`(2F7;13B3)`).
    phase : phase that it counts in.
    start, end : when it ran [s].
    first, last : its tasks are [first, last).
    microbatches : microbatches of its parts.
    stages : stages of its parts.
    """

    rank: int
    text: str
    phase: str
    start: float
    end: float
    first: int
    last: int
    microbatches: tuple[int, ...]
    stages: tuple[int, ...]

    @property
    def seconds(self) -> float:
        """Duration [s]."""
        return self.end - self.start


def action_list(timeline: Timeline) -> list[ActionSpan]:
    """All actions in the order of the tasks; the optimizer step of a rank is one of them."""
    spans = action_spans(timeline)
    return [_span(action, *span) for action, span in zip(timeline.tasks.actions, spans, strict=True)]


def _span(action: ActionOf, start: float, end: float) -> ActionSpan:
    step = action.step
    parts = () if step is None else actions_of(step)
    return ActionSpan(
        rank=action.rank,
        text="optimizer" if step is None else str(step),
        phase=action.phase,
        start=start,
        end=end,
        first=action.first,
        last=action.last,
        microbatches=tuple(part.microbatch for part in parts),
        stages=tuple(part.stage for part in parts),
    )


def representative(actions: list[ActionSpan]) -> ActionSpan:
    """The action to look into: an overlapped pair of median length, or the longest kind of action there is."""
    for phase in ("overlapped", "backward", "forward", "weight"):
        found = sorted((a for a in actions if a.phase == phase), key=lambda a: (a.seconds, a.rank, a.start))
        if found:
            return found[len(found) // 2]
    raise ValueError("a timeline without actions has nothing to look into")


def named(actions: list[ActionSpan], text: str) -> ActionSpan:
    """The action that schedules spell `text`, on the first rank that runs it.

    Raises
    ------
    InputError
        Where the step has no such action.
    """
    wanted = text.replace(" ", "")
    for action in actions:
        if action.text == wanted:
            return action
    texts = list(dict.fromkeys(action.text for action in actions))
    hint = meant(text, texts, otherwise=f"try {representative(actions).text}")
    raise InputError(f"--action: {text!r}: the step has no such action; {hint}")
