"""Errors a user can mend. Each is one line that names file, key, value and what would be right."""

from __future__ import annotations


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
