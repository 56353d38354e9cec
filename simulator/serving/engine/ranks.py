"""Data-parallel ranks of one engine, which run every step together since they share their experts."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def in_turn(ranks: int) -> Callable[[], int]:
    """Sequences go to one rank after the other (SGLang's round_robin, managers/data_parallel_controller.py, 2025)."""
    turn = -1

    def choose() -> int:
        nonlocal turn
        turn = (turn + 1) % ranks
        return turn

    return choose


def least_loaded(loads: Callable[[], Sequence[int]]) -> Callable[[], int]:
    """A sequence goes to the rank with the fewest, the first of equals."""

    def choose() -> int:
        found = loads()
        return found.index(min(found))

    return choose
