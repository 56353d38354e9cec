"""`Cost`: a duration that names its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["tensor", "memory", "sm", "nvlink", "ib", "latency", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a kernel gets of the GPU: SMs granted, and the memory traffic of its neighbour [B/s]."""

    sms: int
    partner_traffic: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Time of one kernel.

    `duration` [s] excludes the gap to the next kernel; `bound_by` the resource that decides it; `terms` the parts of
    the formula with their values in the order they are explained, e.g. (("waves", 9.0), ("tile_s", 4.1e-5));
    `formula` the formula in words; `source` where the parameters come from; `calibrated` is False when the profile
    holds no class of its own for this kernel (reports say so). `nic_bytes`/`nvlink_bytes` are what it puts on each
    shared link [B]. `held`: of the SMs and the memory traffic of a collective over a whole node, the part that this one
    takes.
    """

    duration: float
    bound_by: Bound
    formula: str = ""
    terms: tuple[tuple[str, float], ...] = ()
    source: str = ""
    calibrated: bool = True
    nic_bytes: float = 0.0
    nvlink_bytes: float = 0.0
    held: float = 0.0
