"""What became of each figure, and how well whole groups are met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
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


PRECISIONS = (("mx", "MXFP8"), ("float8", "FP8"), ("fp8", "FP8"), ("fp4", "FP4"), ("bf16", "BF16"), ("fp16", "FP16"))
"""What a published precision holds -> its name; the first that is found."""


def precision_of(figure: Figure) -> str:
    """The precision of a published run; "" if it states none."""
    stated = str(figure.config.get("precision", "")).lower().partition("(")[0]
    return next((name for part, name in PRECISIONS if part in stated), "")


def time_error(one: Outcome) -> float | None:
    """Predicted over published time of a step, less 1, whatever the figure states: of a rate the inverse. None for what
    is no time of a step."""
    unit = one.figure.unit
    if one.error is None or unit in ("GB", "GiB", "B"):
        return None
    return 1.0 / (1.0 + one.error) - 1.0 if "/s" in unit else one.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Errors of step times [relative] of one source, precision and GPU."""

    source: str
    precision: str
    gpu: str
    errors: tuple[float, ...]

    @property
    def bias(self) -> float:
        """Mean error; below 0 the forecast is too fast."""
        return sum(self.errors) / len(self.errors)

    @property
    def mape(self) -> float:
        """Mean absolute error."""
        return sum(map(abs, self.errors)) / len(self.errors)

    @property
    def middle(self) -> float:
        """Median absolute error."""
        return median(map(abs, self.errors))


def by_precision(outcomes: Sequence[Outcome]) -> list[Steps]:
    """Published training steps that are only compared with, by source, precision and GPU."""
    by: dict[tuple[str, str, str], list[float]] = {}
    for one in outcomes:
        error = time_error(one) if one.figure.id.startswith("E.") and one.use == "comparison" else None
        if error is not None:
            key = (one.figure.group, precision_of(one.figure), str(one.figure.config.get("gpu", "")))
            by.setdefault(key, []).append(error)
    return [Steps(source=s, precision=p, gpu=g, errors=tuple(e)) for (s, p, g), e in sorted(by.items())]


def _errors(outcomes: Sequence[Outcome]) -> list[float]:
    return [one.error for one in outcomes if one.error is not None]


def grouped(outcomes: Sequence[Outcome]) -> list[Group]:
    """Computed figures by family and use, in the order of the figures."""
    by: dict[tuple[str, Use], list[Outcome]] = {}
    for one in outcomes:
        if one.predicted is not None:
            by.setdefault((one.figure.group, one.use), []).append(one)
    return [Group(name=name, use=use, outcomes=tuple(some)) for (name, use), some in by.items()]
