"""What is built without pydantic is what pydantic builds, and nothing is that pydantic refuses."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ConfigDict, TypeAdapter, ValidationError

from simulator.inputs import list_names, load_hardware, load_job, load_stack, typed
from simulator.inputs.plain import Misfit, fit


class _Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    size: float = 1.0
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    name: str
    share: float = 0.5
    fits: bool = False
    colour: _Colour = _Colour.RED
    kind: Literal["a", "b"] = "a"
    part: _Part | None = None
    sizes: tuple[float, ...] = ()
    pair: tuple[int, str] | int = 0
    table: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise ValueError("nobody")


_ADAPTER = TypeAdapter(list[_Whole], config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "red", "a", "b", "nobody"]),
    st.lists(st.integers(0, 3) | st.sampled_from(["a", 0.5]), max_size=3),
    st.dictionaries(st.sampled_from(["size", "count", "other"]), st.integers(0, 3) | st.floats(0.0, 1.0), max_size=2),
)
_KEYS = ["name", "share", "fits", "colour", "kind", "part", "sizes", "pair", "table", "unknown"]


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES, max_size=4), st.booleans())
def test_what_fits_is_what_pydantic_makes_of_it(values: dict[str, Any], named: bool) -> None:
    table = {"name": "it"} | values if named else values
    built = None
    with suppress(Misfit):
        built = fit(_Whole)(table)
    if built is None:
        return
    assert repr(_ADAPTER.validate_json(json.dumps([table]))) == repr([built])


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"name": 1},
        {"name": "nobody"},
        {"name": "it", "unknown": 1},
        {"name": "it", "share": True},
        {"name": "it", "share": float("nan")},
        {"name": "it", "part": {"count": 1.0}},
        {"name": "it", "pair": [1]},
        {"name": "it", "colour": "green"},
        {"name": "it", "sizes": 1.0},
    ],
)
def test_what_pydantic_refuses_does_not_fit(table: dict[str, Any]) -> None:
    with pytest.raises(Misfit):
        fit(_Whole)(table)
    with pytest.raises(ValidationError):
        _ADAPTER.validate_json(json.dumps([table]))


def test_shipped_jobs_stacks_and_profiles_fit_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(hint: Any) -> Any:
        raise AssertionError(f"{hint} is for pydantic")

    monkeypatch.setattr(typed, "_adapter", refuse)
    for name in list_names("stack"):
        load_stack(name)
    for name in list_names("job"):
        load_job(name)
    load_hardware("h800")
