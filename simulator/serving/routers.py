"""Which of several replicas a request goes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from simulator.serving.engine.engine import Engine
from simulator.serving.request import Request

Router = Callable[[Request, Sequence[Engine]], int]
RouterName = Literal["round-robin", "least-load", "prefix-affinity"]
SPREAD = 1.5
"""How many times the mean load, plus one, a replica may have before affinity gives way to balance (assumed)."""


def router_of(name: RouterName) -> Router:
    """A router of this name, which may remember what it did."""
    if name == "round-robin":
        return _round_robin()
    return _least_load if name == "least-load" else _prefix_affinity


def _round_robin() -> Router:
    turn = -1

    def choose(_request: Request, engines: Sequence[Engine]) -> int:
        nonlocal turn
        turn = (turn + 1) % len(engines)
        return turn

    return choose


def _least_load(_request: Request, engines: Sequence[Engine]) -> int:
    """The replica with the fewest sequences, the first of equals."""
    loads = [engine.load for engine in engines]
    return loads.index(min(loads))


def _prefix_affinity(request: Request, engines: Sequence[Engine]) -> int:
    """The replica whose prefix cache holds most of the prompt, if it is not loaded far above the mean."""
    hashes, loads = request.hashes, [engine.load for engine in engines]
    bound = SPREAD * sum(loads) / len(loads) + 1
    best = (1, 0, 0)  # less of the prompt cached, load, place
    for at, load in enumerate(loads):
        if load <= bound:
            kv = engines[at].kv
            found = (-kv.matched(hashes) if hashes and kv.knows(hashes[0]) else 0, load, at)
            if found < best:
                best = found
    return best[2]
