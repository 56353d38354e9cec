"""Service levels as the command line spells them."""

from __future__ import annotations

from simulator.errors import InputError, meant

_LATE = ("ttft", "tpot", "e2e")


def parse_limits(text: str) -> dict[str, float]:
    """`ttft=2,tpot=0.05` -> limits of a request [s].

    Raises
    ------
    InputError : an unknown name, or a value that is no time.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise InputError(f"--slo: {part[:60]!r}: must be NAME=SECONDS, as in ttft=2,tpot=0.05")
        if name not in _LATE:
            hint = meant(name, _LATE, otherwise=f"use {', '.join(_LATE)}")
            raise InputError(f"--slo: {name[:60]!r}: is no latency of a request: {hint}")
        found[name] = seconds(value, name)
    return found


def seconds(text: str, name: str) -> float:
    """A limit of a service level [s]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e6:
        raise InputError(f"--slo: {name}: {text[:60]!r}: must be a time in seconds above 0, as in 0.05")
    return value
