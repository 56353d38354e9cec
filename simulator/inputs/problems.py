"""One line for everything that can be wrong with an input, `file: key: value: what would be right`; broken rules."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from simulator.errors import InputError, meant, printable

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


_SHOWN = 60  # characters of a key or a value that an error repeats


def problem(source: str, key: str, value: object, right: str) -> InputError:
    """The error for `value` at dotted `key` of the file (or option) `source`.

    A source that ends in a dot is the start of the key: `--set: model.`.
    """
    named = cut(printable(key))
    place = f"{source}{named}" if source.endswith(".") else f"{source}: {named}"
    return InputError(f"{place}: {shown(value)}: {right}")


def shown(value: object) -> str:
    """`value` as it would stand in a file, on one line and not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str).replace("NaN", "nan").replace("Infinity", "inf")
    return cut(printable(text))


def cut(text: str) -> str:
    """`text`, not too long for a line."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def nearest(word: str, choices: Iterable[str]) -> str:
    """`did you mean X?`, or the choices where nothing is near."""
    known = sorted(choices)
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    return meant(
        word, known, cutoff=0.5, otherwise=f"choose one of {listed}" if known else "nothing can be chosen here"
    )
