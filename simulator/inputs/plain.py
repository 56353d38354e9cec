"""Values that fit their type at once: frozen dataclasses from tables, as pydantic would build them.

pydantic takes 0.1 s to load and to learn the types, a twentieth of a whole simulation. It is asked only where something
does not fit here, and says what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Fit = Callable[[Any], Any]
"""From a value as JSON or TOML has it to one of a type; raises `Misfit`."""

EXACT = 2**53
"""Up to here a float holds every whole number."""


class Misfit(Exception):
    """A value is not plainly of its type; what of it is wrong, if anything, is for pydantic to say."""


@cache
def hints(cls: type) -> dict[str, Any]:
    """Field name -> type of a dataclass."""
    known = get_type_hints(cls)
    return {f.name: known[f.name] for f in fields(cls)}


@cache
def fit(hint: Any) -> Fit:
    """How a value becomes one of type `hint`."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _LEAVES:
        return _LEAVES[hint]
    if origin is Literal:
        return lambda value: _chosen(value, args)
    if origin in (Union, UnionType):
        return _either(args)
    if origin is tuple:
        return _tuple(args)
    if origin is dict and args[0] is str:
        inner = fit(args[1])
        return lambda value: {key: inner(each) for key, each in _of(dict, value).items()}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return lambda value: hint(_chosen(value, tuple(map(str, hint))))
    if isinstance(hint, type) and is_dataclass(hint):
        return _table(hint)
    return _unfit


def _unfit(value: Any) -> Any:
    raise Misfit


def _of(cls: type, value: Any) -> Any:
    """The value, if it is of just this class: true is no integer."""
    if type(value) is not cls:
        raise Misfit
    return value


def _float(value: Any) -> float:
    if type(value) is int and abs(value) <= EXACT:
        return float(value)
    if type(value) is not float or not isfinite(value):
        raise Misfit
    return value


_LEAVES: dict[Any, Fit] = {
    int: lambda value: _of(int, value),
    float: _float,
    bool: lambda value: _of(bool, value),
    str: lambda value: _of(str, value),
    NoneType: lambda value: _of(NoneType, value),
}


def _chosen(value: Any, choices: tuple[Any, ...]) -> Any:
    if type(value) is not str or value not in choices:
        raise Misfit
    return value


def _either(forms: tuple[Any, ...]) -> Fit:
    """One of several types; where a value fits more than one, pydantic chooses."""
    each = [fit(form) for form in forms]

    def of(value: Any) -> Any:
        found = []
        for one in each:
            try:
                found.append(one(value))
            except Misfit:
                continue
        if len(found) != 1:
            raise Misfit
        return found[0]

    return of


def _tuple(args: tuple[Any, ...]) -> Fit:
    if len(args) == 2 and args[1] is Ellipsis:
        inner = fit(args[0])
        return lambda value: tuple(map(inner, _of(list, value)))
    each = [fit(arg) for arg in args]

    def of(value: Any) -> Any:
        if len(_of(list, value)) != len(each):
            raise Misfit
        return tuple(one(part) for one, part in zip(each, value, strict=True))

    return of


def _table(cls: type) -> Fit:
    """A dataclass from a table of its fields."""
    inner = {name: fit(hint) for name, hint in hints(cls).items()}
    needed = {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING}

    def of(value: Any) -> Any:
        if not needed <= _of(dict, value).keys() <= inner.keys():
            raise Misfit
        try:
            return cls(**{name: inner[name](each) for name, each in value.items()})
        except ValueError:
            raise Misfit from None

    return of
