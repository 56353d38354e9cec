"""Kernel parameters as TOML text (the standard library only reads TOML)."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from typing import Any

from simulator.spec.kernel_params import Kernels

HEADER = """# Kernel parameters of one GPU; the meaning of every key is in simulator/spec/kernel_params.py.
# Written by `python -m hardware_profiles.calibration.fit_kernels`: refit rather than edit.
"""


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    if is_dataclass(value):
        return "{ " + ", ".join(f"{f.name} = {_value(getattr(value, f.name))}" for f in fields(value)) + " }"
    return repr(value)


def _table(params: Any) -> list[str]:
    """The fields of a class that differ from their defaults."""
    return [
        f"{f.name} = {_value(getattr(params, f.name))}" for f in fields(params) if getattr(params, f.name) != f.default
    ]


def kernels_toml(kernels: Kernels) -> str:
    """`kernels` as the text of a profile's kernel file."""
    lines = [HEADER]
    lines += [
        f"{key} = {_value(getattr(kernels, key))}" for key in ("name", "gap", "gap_source", "comm_traffic", "source")
    ]
    for kind in ("gemm", "attention", "stream", "fixed"):
        for cls, params in getattr(kernels, kind).items():
            lines += ["", f'[{kind}."{cls}"]', *_table(params)]
    return "\n".join(lines) + "\n"
