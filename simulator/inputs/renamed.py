"""Names of settings that earlier versions used: files and options with them still read."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

RENAMED = {
    "host_product": "host_gemm",
    "dirty": "l2_writeback",
    "sized": "grid_from_expected_m",
    "walk": "tiles_per_cta",
    "stranded": "unusable_sms",
    "beside": "concurrent_delay",
    "uncached": "first_dispatch_factor",
    "beside_dispatch": "concurrent_dispatch_factor",
    "beside_combine": "concurrent_combine_factor",
}
"""Name of a version before 0.1.0 -> today's."""


def current_name(name: str, known: Container[str]) -> str:
    """Today's name of a field where only that is among the `known` ones; else `name` itself."""
    new = RENAMED.get(name, name)
    return new if name not in known and new in known else name


def with_current_names(value: Any) -> Any:
    """A JSON value with every old key under its new name."""
    if isinstance(value, dict):
        return {RENAMED.get(key, key): with_current_names(item) for key, item in value.items()}
    return [with_current_names(item) for item in value] if isinstance(value, list) else value
