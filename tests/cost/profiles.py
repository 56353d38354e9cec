"""The kernel parameters of the shipped profiles, for tests."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib.resources import files

from pydantic import TypeAdapter

from simulator.spec.kernel_params import Kernels


@cache
def kernels_of(name: str) -> Kernels:
    """Parameters in `hardware_profiles/kernels/<name>.toml`."""
    text = files("hardware_profiles").joinpath("kernels", f"{name}.toml").read_text(encoding="utf-8")
    return TypeAdapter(Kernels).validate_python(tomllib.loads(text))
