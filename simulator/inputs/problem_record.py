"""A broken rule, as `check` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One broken `rule`. `key` and `value` as in the job file, `message` with the numbers, `suggestion` what would do.

    An error makes the job impossible; a warning says that the forecast leaves something out.
    """

    rule: str
    key: str
    value: object
    message: str
    suggestion: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        advice = f"; {self.suggestion}" if self.suggestion else ""
        return f"{self.key}: {self.value}: {self.message}{advice}"
