"""Errors a user can mend. Each is one line that names file, key, value and what would be right."""

from __future__ import annotations

from collections.abc import Iterable

LIKE = 0.6
"""Ratio of equal characters (difflib) from which a word may be meant for another."""


class ForetrainError(Exception):
    """Base of all errors caused by input; the command line prints it as one line and exits with `exit_code`."""

    exit_code = 2


class InputError(ForetrainError):
    """A file, key or value that cannot be used (exit code 2)."""


class ScheduleError(ForetrainError):
    """A pipeline schedule that breaks a rule; the message prints the grid with the place marked (exit code 2)."""


class PlanError(ForetrainError):
    """A layout that is well formed but invalid or does not fit (exit code 3)."""

    exit_code = 3


class UncalibratedError(ForetrainError):
    """A kernel class that the hardware profile has no parameters for."""


def printable(text: str) -> str:
    """`text` with everything that a terminal would not show, or would show elsewhere, escaped as in Python.

    That is control characters, marks that turn the direction of writing, and halves of characters.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def nearest_name(word: str, choices: Iterable[str], *, cutoff: float = LIKE) -> str | None:
    """The one of `choices` that `word`, whatever its case, is most like; None where none is like it by `cutoff`."""
    from difflib import get_close_matches

    spelled = {choice.lower(): choice for choice in choices}
    near = get_close_matches(word.lower(), spelled, n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def meant(word: str, choices: Iterable[str], *, cutoff: float = LIKE, otherwise: str) -> str:
    """The hint behind an unknown word: `did you mean X?`, or what to say where nothing is like it."""
    near = nearest_name(word, choices, cutoff=cutoff)
    return f"did you mean {near}?" if near else otherwise
