"""What became of each figure, and how well whole groups are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from simulator.validation.figures import Figure

Use = Literal["calibration", "comparison", "given"]
"""calibration: a parameter was fitted to it. given: the program takes it as an input. comparison: neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A figure and its prediction in the same unit, or the reason why there is none."""

    figure: Figure
    use: Use
    predicted: float | None = None
    reason: str = ""

    @property
    def error(self) -> float | None:
        """(predicted - published) / published."""
        published = self.figure.number
        if self.predicted is None or not published:
            return None
        return self.predicted / published - 1.0

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "id": self.figure.id,
            "quantity": self.figure.quantity,
            "unit": self.figure.unit,
            "published": self.figure.value,
            "predicted": self.predicted,
            "error": self.error,
            "use": self.use,
            "config": self.figure.config,
            "config_complete": self.figure.config_complete,
            "source": self.figure.source,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Computed figures of one family and use, with their mean absolute and mean error."""

    name: str
    use: Use
    outcomes: tuple[Outcome, ...]

    @property
    def mape(self) -> float:
        """Mean absolute relative error."""
        errors = _errors(self.outcomes)
        return sum(map(abs, errors)) / len(errors) if errors else 0.0

    @property
    def bias(self) -> float:
        """Mean relative error."""
        errors = _errors(self.outcomes)
        return sum(errors) / len(errors) if errors else 0.0

    @property
    def worst(self) -> Outcome:
        """The figure with the largest error."""
        return max(self.outcomes, key=lambda one: abs(one.error or 0.0))


def _errors(outcomes: Sequence[Outcome]) -> list[float]:
    return [one.error for one in outcomes if one.error is not None]


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """Computed figures by family and use, in the order of the figures."""
    by: dict[tuple[str, Use], list[Outcome]] = {}
    for one in outcomes:
        if one.predicted is not None:
            by.setdefault((one.figure.group, one.use), []).append(one)
    return [Group(name=name, use=use, outcomes=tuple(some)) for (name, use), some in by.items()]
