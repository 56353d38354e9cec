"""`--set path=value`: one value of a frozen dataclass tree replaced, typed by its field."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from types import UnionType
from typing import Any, TypeVar, get_origin

from simulator.errors import InputError
from simulator.inputs.problems import cut, nearest, problem, shown
from simulator.inputs.reading import refuse_odd
from simulator.inputs.renamed import current_name
from simulator.inputs.typed import child, convert, field_names

T = TypeVar("T")

OPTION = "--set"
_FIXED = ("name", "sources")
_TABLES = ("serving", "scheduler")
"""Tables that may be missing; no value stands for one."""
_ROOTS = "layout, batch, precision, optimizer, memory, overlap, routing, run, model, hardware or stack"


@dataclass(frozen=True, slots=True, kw_only=True)
class Override:
    """One `path=value` as written."""

    path: str
    text: str

    @property
    def root(self) -> str:
        """First part of the path: `model`, `hardware`, `stack`, or a table or key of the job."""
        return self.path.partition(".")[0]

    @property
    def rest(self) -> str:
        """The path below `root`; empty where the path has one part."""
        return self.path.partition(".")[2]


def parse_override(text: str) -> Override:
    """`layout.pp=8` -> its path and value."""
    odd = next((c for c in text if not c.isprintable() and c != "\t"), None)
    if odd is not None:
        raise InputError(f"{OPTION}: {shown(text)}: holds {shown(odd)}; write one line of plain text for each {OPTION}")
    path, equals, value = text.partition("=")
    if not equals or not path.strip() or not value.strip():
        raise InputError(f"{OPTION}: {cut(repr(text))}: must be path=value, as in layout.pp=8")
    return Override(path=path.strip(), text=value.strip())


def typed(hint: Any, override: Override) -> Any:
    """The override's text as a value of type `hint`: TOML if it is some, else a bare string, else `none`."""
    candidates = [*_as_toml(override), override.text]
    if override.text.lower() in ("none", "null"):
        candidates.append(None)
    first: InputError | None = None
    for candidate in candidates:
        try:
            return convert(hint, candidate, OPTION, override.path)
        except InputError as error:
            first = first or error
    raise first or problem(OPTION, override.path, override.text, "cannot be read")


def replaced(value: T, override: Override, path: str, known: Iterable[str]) -> T:
    """A copy of the dataclass `value` with the part at dotted `path` replaced; `known` paths are what to suggest."""
    result: T = _replace(value, path.split("."), override, list(known))
    return result


def paths(value: Any, prefix: str = "") -> list[str]:
    """Every path that `replaced` accepts below `value`."""
    if isinstance(value, dict):
        parts: list[tuple[str, Any]] = list(value.items())
    elif is_dataclass(value):
        parts = [(f.name, getattr(value, f.name)) for f in fields(value) if f.name not in _FIXED]
        parts = [(name, part) for name, part in parts if part is not None or name not in _TABLES]
    else:
        return [prefix]
    return [path for name, part in parts for path in paths(part, f"{prefix}.{name}" if prefix else name)]


def unknown(override: Override, known: Iterable[str]) -> InputError:
    """The error for a path that leads nowhere."""
    choices = list(known)
    named = [path for path in choices if path.rpartition(".")[2] == override.path]
    advice = f"did you mean {' or '.join(named)}?" if named else nearest(override.path, choices)
    if not advice.startswith("did"):
        advice = f"choose one below {_ROOTS}, as in layout.pp"
    return problem(OPTION, override.path, override.text, f"unknown key; {advice}")


def _replace(value: Any, parts: list[str], override: Override, known: list[str]) -> Any:
    if isinstance(value, dict):
        return _replace_item(value, parts, override, known)
    name = current_name(parts[0], field_names(type(value)))
    hint = child(type(value), name)
    if hint is None or name in _FIXED:
        raise unknown(override, known)
    current = getattr(value, name)
    return replace(value, **{name: _part(current, hint, parts[1:], override, known)})


def _replace_item(value: dict[str, Any], parts: list[str], override: Override, known: list[str]) -> Any:
    """Keys of a table may hold dots themselves (`gemm.fp8`): the longest that fits wins."""
    for length in range(len(parts), 0, -1):
        key = ".".join(parts[:length])
        if key in value:
            new = _part(value[key], type(value[key]), parts[length:], override, known)
            return value | {key: new}
    raise unknown(override, known)


def _part(current: Any, hint: Any, rest: list[str], override: Override, known: list[str]) -> Any:
    is_table = is_dataclass(current) or isinstance(current, dict)
    if rest and is_table:
        return _replace(current, rest, override, known)
    if rest or (current is None and override.path.rpartition(".")[2] in _TABLES):
        raise unknown(override, known)
    if is_table and get_origin(hint) is not UnionType:
        names = list(current) if isinstance(current, dict) else field_names(type(current))
        listed = ", ".join(f"{override.path}.{name}" for name in names[:4])
        raise problem(OPTION, override.path, override.text, f"is a table; set one of its values: {listed}")
    return typed(hint, override)


def _as_toml(override: Override) -> list[Any]:
    """The value that the text is in TOML, if it is any."""
    try:
        value = tomllib.loads(f"x = {override.text}")["x"]
    except tomllib.TOMLDecodeError:
        return []
    except RecursionError:
        raise problem(OPTION, override.path, override.text, "nested too deeply") from None
    except ValueError:
        raise problem(OPTION, override.path, override.text, "a number has thousands of digits") from None
    refuse_odd(value, f"{OPTION}: {override.path}")
    return [value]
