"""`Cost`: a duration that names its reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["tensor", "memory", "instructions", "sm", "nvlink", "ib", "host", "latency", "fixed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a kernel gets of the GPU.

    Parameters
    ----------
    sms : SMs granted.
    partner_traffic : memory traffic of the concurrent communication kernel [B/s].
    """

    sms: int
    partner_traffic: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Time of one kernel.

    Parameters
    ----------
    duration : time without the gap to the next kernel [s].
    bound_by : resource that decides it.
    formula : the formula in words.
    terms : parts of the formula with their values, such as (("waves", 9.0), ("tile_s", 4.1e-5)).
    source : where the parameters come from.
    calibrated : False if the profile has no class of its own for this kernel (reports list it).
    nic_bytes, nvlink_bytes : bytes that it puts on each shared link [B].
    held : SMs and memory traffic that a collective takes, share of those of one over a whole node.
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
