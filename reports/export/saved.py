"""Results saved with `--json`, read again: by this version or by a later one.

A file says which form it has (`schema`). Forms that older versions wrote are brought up to date by `UPGRADES`, one
step at a time; forms of the future are refused with a line that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from simulator.errors import InputError
from simulator.inputs.problems import problem
from simulator.inputs.reading import parse_json, read_text
from simulator.inputs.renamed import with_current_names
from simulator.results.result import SCHEMA

COMPARISON = "foretrain.compare/2"
"""What `compare --json` writes now."""
VARIANTS: Mapping[str, str] = {COMPARISON: "variants", "foretrain.compare/1": "runs"}
"""Form of a comparison -> key of the list of its variants."""


def _with_standard_names(result: dict[str, Any]) -> dict[str, Any]:
    """Form 1 to 2: settings of stacks, kernels and communication have the names of 0.1.0."""
    upgraded: dict[str, Any] = with_current_names(result)
    return upgraded | {"schema": "foretrain.result/2"}


UPGRADES: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"foretrain.result/1": _with_standard_names}
"""Old form of a result -> what turns it into the next one (and changes its `schema`)."""

NEEDED = {
    "scenario": dict, "metrics": dict, "breakdown_s": dict, "ranks": list, "classes": list, "stages": list,
    "warnings": list, "provenance": dict,
}  # fmt: skip
METRICS = (
    "step_time_s",
    "mfu_causal",
    "bubble_ratio",
    "exposed_comm_s",
    "gpu_hours_per_trillion_tokens",
    "run_cost_usd",
)
"""What every form of a training result has in `metrics`."""
SERVED = ("step_time_s", "mfu", "exposed_comm_s", "tokens_per_s_per_gpu", "usd_per_million_tokens")
"""What one of a serving step has there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One saved result: a title to show it under, and the object itself in today's form."""

    title: str
    result: dict[str, Any]


def read_saved(file: Path) -> list[Saved]:
    """The results in a file: one of `simulate --json`, or all that ran of `compare --json`.

    Raises InputError with one line that says what is wrong.
    """
    value = _parsed(file)
    key = VARIANTS.get(value["schema"])
    if key is not None:
        variants = value.get(key)
        if not isinstance(variants, list):
            raise InputError(f"{file}: {key}: is missing or not a list")
        return [
            Saved(title=_title(one, file.stem), result=current(one["result"], str(file)))
            for one in variants
            if isinstance(one, dict) and isinstance(one.get("result"), dict)
        ]
    result = current(value, str(file))
    return [Saved(title=file.stem, result=result)]


def _title(variant: Mapping[str, Any], fallback: str) -> str:
    settings = variant.get("set")
    varied = ", ".join(f"{path}={value}" for path, value in settings.items()) if isinstance(settings, dict) else ""
    return varied or str(variant.get("job", fallback))


def _parsed(file: Path) -> dict[str, Any]:
    value = parse_json(read_text(file, str(file), "result"), str(file))
    if not isinstance(value, dict) or not isinstance(value.get("schema"), str):
        raise InputError(f"{file}: is not a saved result: write one with foretrain simulate JOB --json > {file.name}")
    return value


def current(result: dict[str, Any], where: str) -> dict[str, Any]:
    """A result in today's form, checked for what reports need."""
    while result.get("schema") != SCHEMA:
        upgrade = UPGRADES.get(str(result.get("schema")))
        if upgrade is None:
            raise InputError(f"{where}: schema: {result.get('schema')!r}: this version reads {SCHEMA} and {COMPARISON}")
        result = upgrade(result)
    for key, kind in NEEDED.items():
        if not isinstance(result.get(key), kind):
            raise InputError(f"{where}: {key}: is missing or not a {'table' if kind is dict else 'list'}")
    _check_numbers(result, where)
    _check_parts(result, where)
    return result


def _check_numbers(result: Mapping[str, Any], where: str) -> None:
    """Raise unless metrics and the breakdown are numbers that such a step can have."""
    for name in SERVED if "usd_per_million_tokens" in result["metrics"] else METRICS:
        value = result["metrics"].get(name)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise InputError(f"{where}: metrics.{name}: is missing or not a number")
    for table in ("metrics", "breakdown_s"):
        for name, value in result[table].items():
            if value is not None and not _is_amount(value):
                raise problem(where, f"{table}.{name}", value, _AMOUNT)
    if not result["metrics"]["step_time_s"]:
        raise problem(where, "metrics.step_time_s", result["metrics"]["step_time_s"], "a step lasts longer than 0 s")
    for name, value in result["breakdown_s"].items():
        if value is None:
            raise problem(where, f"breakdown_s.{name}", value, _AMOUNT)


def _check_parts(result: Mapping[str, Any], where: str) -> None:
    """Raise unless kernel classes and inputs have the form that reports read."""
    for at, item in enumerate(result["classes"]):
        if not isinstance(item, dict) or not isinstance(item.get("cls"), str) or not _is_amount(item.get("seconds")):
            raise problem(where, f"classes[{at}]", item, "must be a table with cls, a name, and seconds, a number")
    for key in ("job", "model", "cluster", "stack"):
        if not isinstance(result["scenario"].get(key, {}), dict):
            raise problem(where, f"scenario.{key}", result["scenario"][key], "must be a table")
    for key in ("stages", "warnings"):
        for at, text in enumerate(result[key]):
            if not isinstance(text, str):
                raise problem(where, f"{key}[{at}]", text, "must be a string")


_AMOUNT = "must be a finite number that is not negative"


def _is_amount(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < inf
