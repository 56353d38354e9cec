"""The minimum of a function of a few numbers without its derivatives (Nelder and Mead, 1965), without SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

NEAR_X, NEAR_F = 1e-3, 1e-9
"""The search ends where no corner is farther from the best one than this, in any number and in value."""
MOST = 8000
"""Steps at most."""
FIRST = 1.05
"""Factor on one number of the start that makes each further corner."""


def minimum(loss: Callable[[Sequence[float]], float], start: Sequence[float]) -> list[float]:
    """The numbers of least loss that a search from `start` finds (none of these 0)."""
    corners = np.array(
        [list(start), *([x * FIRST if i == j else x for j, x in enumerate(start)] for i in range(len(start)))]
    )
    values = np.array([loss(list(corner)) for corner in corners])
    for _ in range(MOST):
        order = np.argsort(values, kind="stable")
        corners, values = corners[order], values[order]
        if np.abs(corners[1:] - corners[0]).max() <= NEAR_X and np.abs(values[1:] - values[0]).max() <= NEAR_F:
            break
        if (better := _moved(loss, corners, values)) is not None:
            corners[-1], values[-1] = better
            continue
        corners[1:] = corners[0] + 0.5 * (corners[1:] - corners[0])
        values[1:] = [loss(list(corner)) for corner in corners[1:]]
    return [float(x) for x in corners[int(np.argmin(values))]]


def _moved(
    loss: Callable[[Sequence[float]], float], corners: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, float] | None:
    """A better place for the worst corner, on the line through it and the middle of the others; None: shrink."""
    middle, worst = corners[:-1].mean(axis=0), corners[-1]

    def at(along: float) -> tuple[np.ndarray, float]:
        place = middle + along * (middle - worst)
        return place, loss(list(place))

    reflected = at(1.0)
    if reflected[1] < values[0]:
        expanded = at(2.0)
        return expanded if expanded[1] < reflected[1] else reflected
    if reflected[1] < values[-2]:
        return reflected
    if reflected[1] < values[-1]:
        outside = at(0.5)
        return outside if outside[1] <= reflected[1] else None
    inside = at(-0.5)
    return inside if inside[1] < values[-1] else None
