"""Why a figure is not computed."""

from __future__ import annotations

from simulator.errors import ForetrainError


class CannotCompute(ForetrainError):
    """The figure is outside what the simulator computes, or its configuration is not known; the message says which."""
