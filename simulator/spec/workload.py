"""What a job does with its model. Graph, lowering, metrics, memory and check read from it what differs between
workloads.

A workload is a frozen value; `Workload` is the union of them. Facts (directions that run, phases of a rank's time, what
is resident) are fields here. Code (rules, headline numbers) is in a table by workload name in each package, so that
another workload adds one entry and one module there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

Direction = Literal["F", "B", "W"]
"""F forward, B input gradients (and what is recomputed for them), W weight gradients."""

Resident = Literal["weights", "gradients", "optimizer", "kv_cache"]
"""What a rank holds of its parameters during the whole step."""

WorkloadName = Literal["training", "prefill", "decode"]
"""How a job file names its workload."""

_TRAINING_PHASES = {"F": "forward", "B": "backward", "I": "backward", "W": "weight", "pair": "overlapped"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Pre-training: one optimizer step of forward, input gradients, weight gradients and the update.

    Parameters
    ----------
    name : how a job file names it.
    directions : directions that run of every block; forward keeps activations if B is among them.
    resident : what a rank holds of its parameters; with "optimizer" a step ends with gradient sync and update.
    phase_of : phase of each kind of action (F, B, I, W, or an overlapped `pair`).
    phases : all phases in the order of reports, with `bubble` (no action runs), `optimizer` (exposed gradient sync, and
        the update) and `other` (the rest); they add up to the step time.
    serves : whether it answers requests, with a KV cache and without a pipeline; MTP modules run in training only.
    """

    name: WorkloadName = "training"
    directions: tuple[Direction, ...] = ("F", "B", "W")
    resident: frozenset[Resident] = frozenset(("weights", "gradients", "optimizer"))
    phase_of: Mapping[str, str] = field(default_factory=lambda: MappingProxyType(_TRAINING_PHASES), hash=False)
    phases: tuple[str, ...] = ("forward", "backward", "weight", "overlapped", "bubble", "optimizer", "other")
    serves: bool = False

    @property
    def updates(self) -> bool:
        """Whether a step ends with the sync of gradients and an update of the parameters."""
        return "optimizer" in self.resident

    @property
    def keeps_activations(self) -> bool:
        """Whether what forward makes is kept for a backward."""
        return "B" in self.directions


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """One forward step over the new tokens of prompts, which leaves their keys and values in the KV cache.

    Fields as those of `Training`.
    """

    name: WorkloadName = "prefill"
    directions: tuple[Direction, ...] = ("F",)
    resident: frozenset[Resident] = frozenset(("weights", "kv_cache"))
    phase_of: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({"F": "forward"}), hash=False)
    phases: tuple[str, ...] = ("forward", "bubble", "other")
    serves: bool = True

    @property
    def updates(self) -> bool:
        """No parameters are updated."""
        return False

    @property
    def keeps_activations(self) -> bool:
        """Nothing is kept for a backward."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode(Prefill):
    """One forward step over the newest tokens of running sequences, which read the whole KV cache."""

    name: WorkloadName = "decode"


Workload: TypeAlias = Training | Prefill | Decode
"""Every workload there is."""

WORKLOADS: Mapping[str, Workload] = {one.name: one for one in (Training(), Prefill(), Decode())}
"""Workloads by the name that a job file gives."""
