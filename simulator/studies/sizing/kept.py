"""What was judged, a JSON line a layout, so that sizing goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import InputError
from simulator.inputs import load_scenario
from simulator.results.result import digest, plain

if TYPE_CHECKING:
    from simulator.studies.sizing.judging import Choice, Wanted

SCHEMA = "foretrain.size/2"


class Kept:
    """Choices by layout; a file of another question is refused."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path, self._found = path, dict[tuple[str, ...], list[dict[str, Any]]]()
        resolved = plain(load_scenario(wanted.job, wanted.overrides, replayed=True))
        mark = digest({"schema": SCHEMA, "wanted": asdict(wanted), "scenario": resolved})
        if path.exists() and path.stat().st_size:
            self._read(mark)
        else:
            self._write({"schema": SCHEMA, "asked": mark})

    def _read(self, mark: str) -> None:
        try:
            first, *rest = self._path.read_text(encoding="utf-8").splitlines()
            if json.loads(first).get("asked") != mark:
                raise InputError(f"--resume: {self._path}: holds another question; give another file")
            for line in rest:
                one = json.loads(line)
                self._found[tuple(one["group"])] = one["choices"]
        except (ValueError, KeyError, TypeError, AttributeError, OSError):
            raise InputError(f"--resume: {self._path}: not a file of an earlier sizing, or damaged") from None

    def of(self, group: tuple[str, ...]) -> list[dict[str, Any]] | None:
        """What is known of a layout."""
        known = self._found.get(group)
        names = ("settings", "prefill_settings")
        return None if known is None else [one | {name: tuple(one[name]) for name in names} for one in known]

    def add(self, group: tuple[str, ...], choices: Sequence[Choice]) -> None:
        """Keep the choices of a layout."""
        self._write({"group": group, "choices": [asdict(one) for one in choices]})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"--resume: {self._path}: cannot be written: {error.strerror}") from None
