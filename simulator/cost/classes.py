"""Which parameters price a kernel class: its own, or those of the nearest class, and then the result says so."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import Protocol, TypeVar

from simulator.errors import UncalibratedError, nearest_name

NEAREST: dict[str, tuple[str, ...]] = {
    "gemm.fp8_tensor": ("gemm.fp8_row", "gemm.fp8@cublas", "gemm.fp8"),
    "gemm.fp8_row": ("gemm.fp8_tensor", "gemm.fp8@cublas", "gemm.fp8"),
    "gemm.fp8_tensor.split": ("gemm.fp8_tensor",),
    "gemm.fp8_tensor.grouped": ("gemm.fp8_tensor",),
    "gemm.fp8_tensor.grouped.split": ("gemm.fp8_tensor.split", "gemm.fp8_tensor"),
    "gemm.fp8_tensor.grouped_wgrad": ("gemm.fp8_tensor.wgrad", "gemm.fp8_tensor"),
    "gemm.fp8_tensor.wgrad": ("gemm.fp8_tensor", "gemm.fp8_row", "gemm.fp8.wgrad"),
    "gemm.fp8_row.wgrad": ("gemm.fp8_row", "gemm.fp8_tensor", "gemm.fp8.wgrad"),
    "gemm.fp8.grouped_wgrad": ("gemm.fp8.wgrad",),
    "gemm.fp8_block": ("gemm.fp8@cublas", "gemm.fp8@library", "gemm.fp8"),
    "gemm.fp8_block.wgrad": ("gemm.fp8.wgrad@library", "gemm.fp8.wgrad"),
    "gemm.fp8_block.grouped": ("gemm.fp8.grouped@library", "gemm.fp8.grouped"),
    "gemm.fp8_block.grouped_wgrad": ("gemm.fp8.grouped_wgrad", "gemm.fp8_block.wgrad", "gemm.fp8.wgrad@library"),
    "gemm.fp8_row.grouped_wgrad": ("gemm.fp8_row.wgrad", "gemm.fp8_row"),
    "gemm.mxfp8": ("gemm.fp8_tensor", "gemm.fp8_row", "gemm.fp8@cublas", "gemm.fp8"),
    "gemm.nvfp4": ("gemm.mxfp8", "gemm.fp8_tensor", "gemm.fp8_row", "gemm.fp8@cublas", "gemm.fp8"),
    "gemm.fp8.masked": ("gemm.fp8.grouped", "gemm.fp8"),
    "gemm.bf16.masked": ("gemm.bf16.grouped", "gemm.bf16"),
    "gemm.bf16.grouped_wgrad": ("gemm.bf16.wgrad", "gemm.bf16.grouped", "gemm.bf16"),
    "gemm.bf16.grouped": ("gemm.bf16",),
    "attn.fwd.fp8": ("attn.fwd",),
    "attn.fwd.mxfp8": ("attn.fwd",),
    "attn.bwd.mxfp8": ("attn.bwd",),
    "norm.bwd": ("norm.fwd", "elem"),
    "norm.fwd": ("norm.bwd", "elem"),
    "softmax": ("softmax.wide", "loss", "norm.fwd", "elem"),
    "softmax.wide": ("softmax", "loss", "norm.fwd", "elem"),
    "softmax.long": ("softmax.wide", "softmax", "loss", "norm.fwd", "elem"),
    "loss": ("softmax", "elem"),
    "loss.bwd": ("loss", "softmax", "elem"),
    "loss.te": ("elem",),
    "loss.te.write": ("elem",),
    "copy.heads": ("elem.unvectorized", "elem"),
    "norm.sums": ("elem.norm_weight", "elem"),
    "embedding": ("permute.expand", "elem"),
    "embedding.bwd": ("embedding", "permute.expand", "elem"),
    "quant.turned": ("quant.tensor", "quant.token", "elem"),
    "quant.turned.experts": ("quant.turned", "quant.tensor", "quant.token", "elem"),
    "elem.unvectorized": ("elem",),
    "cat.unvectorized": ("elem.unvectorized", "elem"),
    "elem.small": ("elem.norm_weight", "elem"),
    "swiglu.small": ("swiglu", "elem.small", "elem"),
    "norm.small": ("norm.fwd.residual", "norm.fwd", "elem"),
    "rope.small": ("elem.small", "rope", "elem"),
    "kvcopy.small": ("elem.small", "kvcopy", "elem"),
    "permute.pad": ("permute.expand", "elem"),
    "permute.small": ("elem.small", "permute.expand", "elem"),
    "quant.small": ("norm.small@compiled", "norm.small", "quant.token", "elem"),
    "optimizer": ("elem",),
    "quant.chan_t": ("quant.token", "elem"),
    "quant.token": ("quant.chan_t", "elem"),
    "quant.tensor": ("quant.token", "elem"),
    "quant.amax": ("elem.reduce", "elem"),
    "quant.row": ("quant.tensor", "quant.token", "elem"),
    "quant.column": ("elem.unvectorized", "quant.chan_t", "quant.token", "elem"),
    "quant.block": ("quant.tensor", "quant.chan_t", "quant.token", "elem"),
    "quant.mxfp8": ("quant.tensor", "quant.token", "elem"),
    "quant.nvfp4": ("quant.tensor", "quant.token", "elem"),
    "weight_t": ("quant.chan_t", "elem"),
    "dequant": ("quant.token", "elem"),
    "swiglu": ("elem",),
    "geglu": ("swiglu", "gelu", "elem"),
    "gelu": ("swiglu", "elem"),
    "silu": ("gelu", "swiglu", "elem"),
    "reglu": ("swiglu", "geglu", "elem"),
    "relu": ("gelu", "silu", "swiglu", "elem"),
    "relu2_glu": ("reglu", "swiglu", "geglu", "elem"),
    "relu2": ("relu", "gelu", "silu", "swiglu", "elem"),
    "rope": ("elem",),
    "attn.fwd.sparse": ("attn.fwd",),
    "attn.bwd.sparse": ("attn.bwd",),
    "attn.index": ("attn.fwd",),
    "conv": ("elem",),
    "scan": ("scan.chunk",),
    "scan.selective.bwd": ("scan.selective", "scan.chunk"),
    "scan.token": ("elem",),
    "scan.pass": ("elem",),
    "scan.sums": ("elem.reduce", "elem"),
    "kvcopy": ("elem",),
    "permute.reduce": ("permute.expand", "elem"),
    "permute.expand": ("permute.reduce", "elem"),
    "permute.index_select": ("permute.expand", "elem"),
    "permute.index_add": ("permute.reduce", "elem"),
    "unpermute.index_add": ("permute.reduce", "elem"),
    "unpermute.gather_sum": ("unpermute.index_add", "permute.reduce", "elem"),
    "router.topk": ("router.scores", "elem"),
    "router.gate": ("router.scores", "elem"),
    "sort.radix": ("router.balance",),
    "sort.short": ("router.balance",),
    "sort.counts": ("router.balance",),
    "attn.bwd_aux": ("elem",),
    "router.weights": ("router.balance",),
    "router.balance": ("router.weights",),
}
"""For a class that a profile lacks, the physically nearest ones, best first."""

LAST = ("gemm.bf16", "gemm.fp8", "attn.fwd", "attn.bwd", "elem", "router.weights")
"""What is left when nothing near exists."""


SLIP = 0.93
"""Names so alike are one name misspelt: a letter of a dozen, not fwd for bwd."""


class Sourced(Protocol):
    """Parameters that know where they come from."""

    @property
    def source(self) -> str: ...

    @property
    def assumed(self) -> bool: ...


P = TypeVar("P", bound=Sourced)


def _candidates(cls: str) -> list[str]:
    base = cls.split("@", 1)[0]
    names = [base, *NEAREST.get(base, ())]
    while "." in base:
        base = base.rsplit(".", 1)[0]
        names += [base, *NEAREST.get(base, ())]
    return [*names, *LAST]


def is_known(cls: str, table: Collection[str]) -> bool:
    """Whether a profile has a kernel class, or one like it could: the name is no slip of the pen."""
    first = {name.partition(".")[0] for name in table}
    near = {*NEAREST, *(name for names in NEAREST.values() for name in names), *LAST}
    if cls in {*table, *(name for name in near if name.partition(".")[0] in first)}:
        return True
    if nearest_name(cls, table, cutoff=SLIP):
        return False
    return any(name in table for name in _candidates(cls) if name not in LAST or name == cls.partition("@")[0])


def params_for(table: Mapping[str, P], cls: str, profile: str) -> tuple[P, bool, str]:
    """Parameters of kernel class `cls`, whether they are its own and measured, and their source in words."""
    own = table.get(cls)
    if own is not None:
        return own, not own.assumed, own.source
    for name in _candidates(cls):
        near = table.get(name)
        if near is not None:
            return near, False, f"no class {cls!r} in profile {profile!r}: priced as {name!r} ({near.source})"
    raise UncalibratedError(
        f"profile {profile!r} holds no parameters near kernel class {cls!r}; it has: {sorted(table)}"
    )


def class_of(cls: str, impl: str, table: Container[str]) -> str:
    """The class of an implementation's kernel if the profile has one, else the general class.

    On an H800 `gemm.fp8` is what DeepSeek's training ran (CUTLASS, 112 SMs) and `gemm.fp8@library` DeepGEMM on all SMs.
    """
    named = f"{cls}@{impl}"
    return named if named in table else cls
