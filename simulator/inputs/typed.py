"""Tables to frozen dataclasses: the only place that knows pydantic, strict and closed to unknown keys.

What fits is built by `simulator.inputs.plain`. pydantic finds what does not; the words come from the field's own type,
so that every error reads alike.
"""

from __future__ import annotations

import json
import types
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from simulator.errors import InputError
from simulator.inputs.plain import Misfit, fit, hints
from simulator.inputs.problems import nearest, problem
from simulator.inputs.renamed import current_name

T = TypeVar("T")

_UNIONS = (Union, types.UnionType)
_WHOLE = 2.0**53
"""Up to here a float holds every whole number, so that one may be advised."""


def build(cls: type[T], table: dict[str, Any], source: str, prefix: str = "") -> T:
    """An instance of the dataclass `cls` from `table`, or the first error as one line naming `source` and the key."""
    table = _with_current_keys(cls, table)
    for path in _unknown(cls, table):
        raise _unknown_key(cls, table, path, source, prefix)
    value: T = _validated(cls, table, source, prefix)
    return value


def convert(hint: Any, value: Any, source: str, key: str) -> Any:
    """`value` as a field of type `hint`."""
    return _validated(hint, value, source, key)


def expected(hint: Any) -> str:
    """What a value of this type looks like, in words."""
    origin = get_origin(hint)
    if origin is Literal:
        return "must be " + _either([json.dumps(choice) for choice in get_args(hint)])
    if origin in _UNIONS:
        parts = [expected(arg).removeprefix("must be ") for arg in get_args(hint) if arg is not type(None)]
        return "must be " + " or ".join(parts)
    if origin is tuple:
        inner = [arg for arg in get_args(hint) if arg is not Ellipsis]
        return f"must be a list, each {expected(inner[0]).removeprefix('must be ')}"
    if origin is dict or is_dataclass(hint):
        return "must be a table"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return "must be " + _either([json.dumps(choice) for choice in hint])
    words = {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}
    return "must be " + words.get(hint, str(hint))


def field_names(hint: Any) -> list[str]:
    """Names below a table-like type: fields of a dataclass, also of one that a union allows; else none."""
    hint = next((form for form in get_args(hint) if is_dataclass(form)), hint) if get_origin(hint) in _UNIONS else hint
    return list(hints(hint)) if isinstance(hint, type) and is_dataclass(hint) else []


def child(hint: Any, name: str) -> Any:
    """Type of the part `name` of a dataclass (also an optional one) or dict; None where there is none."""
    if get_origin(hint) is UnionType:
        hint = next((option for option in get_args(hint) if is_dataclass(option)), hint)
    if isinstance(hint, type) and is_dataclass(hint):
        return hints(hint).get(name)
    if get_origin(hint) is dict:
        return get_args(hint)[1]
    return None


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    # The list lets one strict configuration reach plain dataclasses at every depth.
    return TypeAdapter(list[hint], config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))


def _validated(hint: Any, value: Any, source: str, key: str) -> Any:
    with suppress(Misfit):
        return fit(hint)(value)
    from pydantic import ValidationError

    try:
        # JSON is the mode in which strict still takes lists for tuples and tables for dataclasses.
        return _adapter(hint).validate_json(json.dumps([value], default=str))[0]
    except ValidationError as error:
        places = [
            (one["type"], _in_chosen_form(hint, value, one["loc"][1:])) for one in error.errors(include_url=False)
        ]
        found = [(kind, loc) for kind, loc in places if loc is not None]
        missing = [loc for kind, loc in found if kind in ("missing", "missing_argument")]
        if len(missing) == len(found):
            raise _missing(hint, missing, source, key) from None
        loc = next(loc for _, loc in found if loc not in missing)
        raise _mismatch(hint, value, loc, source, key) from None


def _in_chosen_form(hint: Any, value: Any, loc: tuple[str | int, ...]) -> tuple[str | int, ...] | None:
    """The place of an error without the names of a union's forms; None for one of a form that the value is not of.

    Where a value may be a number, a list or a table, pydantic reports what is wrong with it as each of them.
    """
    out: list[str | int] = []
    for at, part in enumerate(loc):
        forms = [form for form in get_args(hint) if form is not type(None)] if get_origin(hint) in _UNIONS else []
        if len(forms) > 1:
            chosen = next((form for form in forms if _is_form(form, value)), None)
            if chosen is None:
                return tuple(out)
            rest = _in_chosen_form(chosen, value, loc[at + 1 :])
            return None if rest is None or not _is_named(chosen, part) else (*out, *rest)
        out.append(part)
        if isinstance(value, list) and isinstance(part, int) and part < len(value):
            value, hint = value[part], next(iter(_tuple_args(hint)), None)
        elif isinstance(value, dict):
            value, hint = value.get(str(part)), child(hint, str(part))
    return tuple(out)


def _is_form(form: Any, value: Any) -> bool:
    return (isinstance(value, dict) and is_dataclass(form)) or (isinstance(value, list) and get_origin(form) is tuple)


def _is_named(form: Any, part: str | int) -> bool:
    """Whether pydantic calls a form of a union so."""
    return part == getattr(form, "__name__", "") if is_dataclass(form) else str(part).startswith("tuple[")


def _missing(hint: Any, missing: list[tuple[str | int, ...]], source: str, key: str) -> InputError:
    """The error that names every missing key; of a missing table those that it must have."""
    named: list[str] = []
    for loc in missing:
        inner = hint
        for part in loc:
            inner = child(inner, str(part))
        named += _required(inner, ".".join([key, *map(str, loc)] if key else map(str, loc)))
    if len(named) == 1:
        return InputError(f"{source}: {named[0].replace(' (', ': missing: must be ', 1).removesuffix(')')}")
    return InputError(f"{source}: missing: {', '.join(named)}")


def _required(hint: Any, path: str) -> list[str]:
    """`path (what it must be)`; of a table, the same of each key that it cannot do without."""
    if isinstance(hint, type) and is_dataclass(hint):
        needed = [f for f in fields(hint) if f.default is MISSING and f.default_factory is MISSING]
        return [one for f in needed for one in _required(hints(hint)[f.name], f"{path}.{f.name}")]
    return [f"{path} ({expected(hint).removeprefix('must be ')})"]


def _mismatch(hint: Any, value: Any, loc: tuple[str | int, ...], source: str, key: str) -> InputError:
    path = [key] if key else []
    for part in loc:
        if isinstance(value, list) and isinstance(part, int) and part < len(value) and path:
            value, path[-1] = value[part], f"{path[-1]}[{part}]"
            hint = next((arg for arg in _tuple_args(hint)), hint)
            continue
        inner = child(hint, str(part))
        if inner is None or not isinstance(value, dict):
            break
        if part not in value:
            return InputError(f"{source}: {'.'.join([*path, str(part)])}: missing: {expected(inner)}")
        value, hint = value[part], inner
        path.append(str(part))
    return problem(source, ".".join(path) or "the file", value, expected(hint) + _hint(hint, value))


def _tuple_args(hint: Any) -> list[Any]:
    options = [hint, *get_args(hint)]
    return [arg for option in options if get_origin(option) is tuple for arg in get_args(option)[:1]]


def _hint(hint: Any, value: Any) -> str:
    """What to write instead, where that is plain."""
    if hint is int and isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE:
        return f"; write {int(value)}"
    if hint in (int, float) and isinstance(value, str):
        return f"; write {value} without quotes" if len(value) <= 30 and _is_number(value) else ""
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _with_current_keys(hint: Any, table: Any) -> Any:
    """The table with keys of earlier versions under the names that the type has now."""
    if not isinstance(table, dict):
        return table
    known = field_names(hint)
    names = {key: current_name(key, known) for key in table}
    return {new: _with_current_keys(child(hint, new), table[key]) for key, new in names.items()}


def _unknown(hint: Any, table: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths in `table` that the type has no field for; reported before missing ones, which they often explain."""
    if not isinstance(table, dict):
        return []
    found: list[tuple[str, ...]] = []
    for key, value in table.items():
        inner = child(hint, key)
        found += [(*path, key)] if inner is None else _unknown(inner, value, (*path, key))
    return found


def _unknown_key(cls: type, table: Any, path: tuple[str, ...], source: str, prefix: str) -> InputError:
    hint: Any = cls
    for part in path[:-1]:
        hint, table = child(hint, part), table[part]
    dotted = ".".join(([prefix] if prefix else []) + list(path))
    return problem(source, dotted, table[path[-1]], f"unknown key; {nearest(path[-1], field_names(hint))}")
