"""What training software does differently, as data: never a factor on a total."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simulator.spec.states import States

Dispatcher = Literal["deepep", "hybrid_ep", "nccl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Habits of one training framework.

    `kernel_gap` [s] stands behind every kernel on the GPU. `gemm_sms_reserved`: persistent GEMMs always leave the
    communication SMs free, also when nothing communicates. `overlapped_pair`: a forward and a backward chunk run
    against each other (of schedules with pairs: DualPipe, DualPipeV). `fused_quant`: casts to FP8 fused with the op
    before. `grad_sync_overlap`, `param_gather_overlap`: gradient reduce-scatter / parameter all-gather run beside
    compute. `tp_overlap`: tensor-parallel collectives hidden behind the GEMM they feed. `p2p_overlap`: pipeline sends
    leave compute free (chunks: only where a rank has several chunks). `dispatcher`: expert all-to-all kernels
    (DeepEP's, those of its Hybrid-EP branch, or a plain all-to-all). `shared_expert_overlap`: the first GEMM of the
    shared experts runs while the dispatch does, and the backward of their last while the gradient of the combine does;
    else they run before the dispatch, and their backward behind its gradient (`simulator.graph.moe`). `grouped_wgrad`:
    expert weight gradients in one kernel. `swiglu_fused`, `rope_fused`, `norm_fused`, `attention_fused`: fused kernels.
    `residual_fused`: a norm adds the residual that it reads, and its backward the gradient that by-passes it; else
    kernels of their own do. `split_copies`: the gradients of queries, keys and values are concatenated by a kernel of
    their own. `loss`: how the cross-entropy runs (`simulator.graph.loss`). `attention`: whose attention kernels run,
    where the hardware profile tells them apart (fa3: FlashAttention-3, with kernels of their own before and after its
    backward; fa2: FlashAttention-2; cudnn). `selective`: what `recompute = "selective"` means (core: the attention core
    is recomputed; products: it and every second matrix product are kept, all else is recomputed).
    `wgrad_accumulation_fused`: weight-gradient GEMM adds into the main gradient. `shard_copies`: parameters sharded by
    ZeRO-3 are copied out of the buffer they are gathered into, and gradients into the one they are reduced from.
    `gradients_zeroed`: a kernel clears the gradients behind the update (else they are dropped, and written anew).
    `tp_regather`: of a gathered input only this rank's part is kept; in backward it is gathered again beside the input
    gradient, whose reduce-scatter runs beside the weight gradient. `host_kernel`, `host_gemm`, `host_collective`:
    time of the host to issue a kernel, a matrix product or attention kernel, a collective [s]
    (`simulator.engine.host`). `norm_kernels`: whose norm kernels run, as `attention` (training: DeepSeek's; compiled:
    torch.compile's). `optimizer`: what is kept of the parameters, and in which formats, where a job does not say.
    """

    name: str
    kernel_gap: float
    gemm_sms_reserved: bool
    overlapped_pair: bool
    fused_quant: bool
    grad_sync_overlap: bool
    param_gather_overlap: bool
    tp_overlap: bool
    tp_regather: bool
    p2p_overlap: Literal["always", "chunks", "never"]
    dispatcher: Dispatcher
    shared_expert_overlap: bool
    grouped_wgrad: bool
    swiglu_fused: bool
    rope_fused: bool
    norm_fused: bool
    residual_fused: bool
    split_copies: bool
    loss: Literal["plain", "fp32", "compiled", "parallel", "parallel_fused", "te"]
    attention_fused: bool
    attention: Literal["fa3", "fa2", "cudnn"]
    selective: Literal["core", "products"]
    wgrad_accumulation_fused: bool
    shard_copies: bool
    gradients_zeroed: bool
    norm_kernels: Literal["training", "compiled"]
    optimizer: States
    dropout: bool = False
    host_kernel: float = 0.0
    host_gemm: float = 0.0
    host_collective: float = 0.0
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def assumed(self) -> tuple[str, ...]:
        """The habits that nobody measured or published."""
        return tuple(name for name, source in self.sources.items() if source.startswith("assumed"))
