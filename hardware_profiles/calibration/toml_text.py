"""Kernel parameters as TOML text."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from simulator.inputs.toml_text import toml_text
from simulator.spec.kernel_params import Kernels

HEADER = """# Kernel parameters of one GPU; the meaning of every key is in simulator/spec/kernel_params.py.
# Written by `python -m hardware_profiles.calibration.fit_kernels`: refit rather than edit.
"""


def _table(params: Any) -> dict[str, Any]:
    """The fields of a class that differ from their defaults."""
    values = asdict(params)
    return {f.name: values[f.name] for f in fields(params) if values[f.name] != f.default}


def kernels_toml(kernels: Kernels) -> str:
    """`kernels` as the text of a profile's kernel file."""
    values: dict[str, Any] = {
        key: getattr(kernels, key) for key in ("name", "gap", "gap_source", "comm_traffic", "source")
    }
    for kind in ("gemm", "attention", "decode", "scan", "stream", "fixed", "releases"):
        values[kind] = {cls: _table(params) for cls, params in getattr(kernels, kind).items()}
    return f"{HEADER}\n{toml_text(values)}"
