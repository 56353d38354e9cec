"""What training software does differently, as data: never a factor on a total."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Dispatcher = Literal["deepep", "hybrid_ep", "nccl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Habits of one training framework.

    `kernel_gap` [s] stands behind every kernel on the GPU. `gemm_sms_reserved`: persistent GEMMs always leave the
    communication SMs free, also when nothing communicates. `overlapped_pair`: a forward and a backward chunk run
    against each other (DualPipe). `wgrad_streams`: streams that expert weight gradients spread over.
    `fused_quant`: casts to FP8 fused with the op before. `grad_sync_overlap`, `param_gather_overlap`: gradient
    reduce-scatter / parameter all-gather run beside compute. `tp_overlap`: tensor-parallel collectives hidden behind
    the GEMM they feed. `p2p_overlap`: pipeline sends leave compute free. `dispatcher`: expert all-to-all kernels
    (DeepEP's, those of its Hybrid-EP branch, or a plain all-to-all). `shared_expert_overlap`: shared experts run while
    the all-to-all does.
    `grouped_wgrad`: expert weight gradients in one kernel. `swiglu_fused`, `rope_fused`, `norm_fused`,
    `attention_fused`: fused kernels. `attention`: whose attention kernels run, where the hardware profile tells them
    apart (fa3: FlashAttention-3, with kernels of their own before and after its backward; fa2: FlashAttention-2;
    cudnn). `selective`: what `recompute = "selective"` means (core: the attention core is recomputed; products: it and
    every second matrix product are kept, all else is recomputed). `wgrad_accumulation_fused`: weight-gradient GEMM adds
    into the main gradient. `shard_copies`: parameters sharded by ZeRO-3 are copied out of the buffer they are gathered
    into, and gradients into the one they are reduced from.
    """

    name: str
    kernel_gap: float
    gemm_sms_reserved: bool
    overlapped_pair: bool
    wgrad_streams: int
    fused_quant: bool
    grad_sync_overlap: bool
    param_gather_overlap: bool
    tp_overlap: bool
    p2p_overlap: bool
    dispatcher: Dispatcher
    shared_expert_overlap: bool
    grouped_wgrad: bool
    swiglu_fused: bool
    rope_fused: bool
    norm_fused: bool
    attention_fused: bool
    attention: Literal["fa3", "fa2", "cudnn"]
    selective: Literal["core", "products"]
    wgrad_accumulation_fused: bool
    shard_copies: bool
    dropout: bool = False
    moment_bytes: float = 4.0
    sources: dict[str, str] = field(default_factory=dict)
