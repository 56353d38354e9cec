"""What a rank keeps of its parameters between steps, and in which number formats: `[optimizer]` of stacks and jobs.

A stack says all of it (`States`); a job overrides what its program does differently (`Optimizer`). `resolved` lays one
over the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimizerKind = Literal["adamw", "adam8bit", "muon", "sgd", "none"]
KeptDtype = Literal["fp32", "bf16"]
MasterDtype = Literal["fp32", "none"]
MomentDtype = Literal["fp32", "bf16", "fp8", "int8", "none"]

INT8_BLOCK = 256
"""Values of an 8-bit moment that share one FP32 scale (bitsandbytes, optim/optimizer.py: block-wise states of 256;
torchao, optim/subclass_8bit.py: block_size 256)."""

WIDTHS: dict[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0 + 4.0 / INT8_BLOCK,
    "none": 0.0,
}
"""Bytes of one value of a state [B]; FP8 moments have one scale a tensor (arXiv 2310.18313, section 2.2)."""

NARROW = ("fp8", "int8")
"""Formats that an 8-bit Adam keeps its moments in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Optimizer and number formats of one framework.

    Parameters
    ----------
    kind : adamw; adam8bit (the same with 8-bit moments); muon (matrices orthogonalised by Newton-Schulz, with one
        moment; embedding, head, norms and gate by AdamW; arXiv 2502.16982); sgd (with momentum unless `first_moment` is
        none); none (no update: forward, backward and gradient sync only).
    parameters : fp32 where the parameters are themselves FP32, sharded as ZeRO shards the optimizer, and cast to what
        the GEMMs read (PyTorch FSDP2's mixed precision); bf16 where they are kept as the GEMMs read them.
    gradients : as they are accumulated and kept.
    reduced : gradients as they are summed over ranks.
    masters : an FP32 copy of parameters that are kept in BF16, or none.
    first_moment, second_moment : the optimizer's running means.
    """

    kind: OptimizerKind
    parameters: KeptDtype
    gradients: KeptDtype
    reduced: KeptDtype
    masters: MasterDtype
    first_moment: MomentDtype
    second_moment: MomentDtype

    @property
    def gradient_bytes(self) -> float:
        """Bytes of one gradient that is kept [B]."""
        return WIDTHS[self.gradients]

    @property
    def reduced_bytes(self) -> float:
        """Bytes of one gradient on its way to other ranks [B]."""
        return WIDTHS[self.reduced]

    @property
    def master_bytes(self) -> float:
        """Bytes of the value that the update changes: the master, or the parameter where it has none [B]."""
        return WIDTHS[self.masters] or WIDTHS[self.parameters]

    @property
    def moment_bytes(self) -> float:
        """Bytes of both moments of one parameter; of Muon's matrices `first_bytes` only [B]."""
        return WIDTHS[self.first_moment] + WIDTHS[self.second_moment]

    @property
    def first_bytes(self) -> float:
        """Bytes of the first moment of one parameter [B]."""
        return WIDTHS[self.first_moment]

    @property
    def updates(self) -> bool:
        """Whether parameters change at the end of a step."""
        return self.kind != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """What a job's program does otherwise than its stack; None: as the stack. See `States` for each."""

    kind: OptimizerKind | None = None
    parameters: KeptDtype | None = None
    gradients: KeptDtype | None = None
    reduced: KeptDtype | None = None
    masters: MasterDtype | None = None
    first_moment: MomentDtype | None = None
    second_moment: MomentDtype | None = None


def resolved(own: Optimizer, stack: States) -> States:
    """The states of a job: its own where it names them, else its stack's as far as the optimizer has them.

    FP32 parameters need no masters; an 8-bit Adam keeps 8-bit moments; SGD has no second moment, no optimizer has none.
    """
    kind = own.kind or stack.kind
    parameters = own.parameters or stack.parameters
    masters: MasterDtype = "none" if parameters == "fp32" or kind == "none" else stack.masters
    first, second = _moments(kind, stack)
    return States(
        kind=kind,
        parameters=parameters,
        gradients=own.gradients or stack.gradients,
        reduced=own.reduced or stack.reduced,
        masters=own.masters or masters,
        first_moment=own.first_moment or first,
        second_moment=own.second_moment or second,
    )


def _moments(kind: OptimizerKind, stack: States) -> tuple[MomentDtype, MomentDtype]:
    """Formats of the moments of an optimizer in a stack."""
    if kind == "none":
        return "none", "none"
    if kind == "sgd":
        return stack.first_moment, "none"
    if kind == "adam8bit":
        first: MomentDtype = stack.first_moment if stack.first_moment in NARROW else "int8"
        second: MomentDtype = stack.second_moment if stack.second_moment in NARROW else "int8"
        return first, second
    return stack.first_moment, stack.second_moment


def impossible(own: Optimizer, states: States) -> tuple[str, str, str] | None:
    """Key, value and what would be right of the first state that cannot be; None where all can.

    `own` are the job's settings, `states` what they give with its stack.
    """
    kind, moments = states.kind, (states.first_moment, states.second_moment)
    if states.parameters == "fp32" and states.masters == "fp32":
        return "masters", "fp32", 'parameters in FP32 are their own masters: write "none"'
    if kind == "none" and (own.masters not in (None, "none") or own.first_moment not in (None, "none")):
        key = "masters" if own.masters not in (None, "none") else "first_moment"
        return key, str(getattr(own, key)), "without an optimizer there are no states; leave it out"
    if kind in ("sgd", "none") and own.second_moment not in (None, "none"):
        return "second_moment", str(own.second_moment), f"the optimizer {kind} has none; leave it out"
    if kind in ("adamw", "muon", "adam8bit") and "none" in moments:
        key = "first_moment" if moments[0] == "none" else "second_moment"
        return key, "none", f"{kind} needs it: fp32, bf16, fp8 or int8"
    if kind == "adam8bit" and not set(moments) <= set(NARROW):
        key = "first_moment" if moments[0] not in NARROW else "second_moment"
        return key, str(getattr(states, key)), "an 8-bit Adam keeps int8 or fp8; for wider moments use kind adamw"
    return None
