"""What training software does differently, as data: never a factor on a total."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from simulator.spec.precision import PrecisionStack
from simulator.spec.scheduler import Scheduler
from simulator.spec.serving import ServingStack
from simulator.spec.states import States

Dispatcher = Literal["deepep", "deepep_v2", "hybrid_ep", "nvlink_one_sided", "nvlink_two_sided", "nccl", "allgather"]
LIBRARY: tuple[Dispatcher, ...] = ("nccl", "allgather")
"""Dispatchers that are collectives of NCCL, with no kernels of their own."""
Permute = Literal["fused", "fused_chunks", "index_add", "gather_sum", "chunks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """What programs that are written module by module run around the kernels of a layer: a part of `Stack`.

    Parameters
    ----------
    projections : queries, keys and values, and gate and up, are one GEMM (joined), or one each (separate), whose input
        gradients are then summed.
    batch_first : FlashAttention-2 works on copies that lie sequence by sequence (`simulator.graph.attention`).
    keys_repeated : keys and values are copied for every query head before the core, and their gradients summed.
    rope_complex : queries and keys are rotated as complex numbers: widened, multiplied, narrowed, by a kernel each.
    sequence_copies : tensor-parallel collectives cut the second dimension of (batch, sequence, hidden), so that a copy
        stands before or behind each that does not run in pieces.
    bias_apart : kernels of their own add the bias of queries, keys and values and sum its gradient up.
    heads_copied : queries, keys and values are copied apart before their rotation, keys and values joined again
        (`simulator.graph.tokens.heads`).
    padding_removed : tokens of padding are looked for before the attention core, taken out and put back behind it,
        there or not (`simulator.graph.tokens.padding`).
    flat_shards : what is sharded of a block is one flat parameter (PyTorch's FullyShardedDataParallel), also with
        ZeRO-2: other copies (`simulator.graph.shard`).
    loss_metrics : cross-entropies of the logits that are computed again for metrics of training, in FP32.
    ddp_buckets : BF16 gradients are copied into DistributedDataParallel's buckets and back once a step; with ZeRO-1
        lists of tensors are flattened, gradients before they are reduced, parameters around their gather
        (`simulator.engine.update`).
    clips_whole : the norm of gradients and their clipping read all that a rank has, though ZeRO-1 shards the update.
    stage_reduced : with ZeRO-1 in a pipeline, gradients of a stage are reduced behind its last backward, not block by
        block inside it (PyTorch's pipelining with FSDP2).
    p2p_headers, p2p_reads : small messages before each between stages, which say what it is; results of the GPU that
        the host, where it waits for a message, reads behind it, one after the other.
    """

    projections: Literal["joined", "separate"] = "joined"
    batch_first: bool = False
    keys_repeated: bool = False
    rope_complex: bool = False
    sequence_copies: bool = False
    bias_apart: bool = False
    heads_copied: bool = False
    padding_removed: bool = False
    flat_shards: bool = False
    loss_metrics: int = 0
    ddp_buckets: bool = False
    clips_whole: bool = False
    stage_reduced: bool = False
    p2p_headers: int = 0
    p2p_reads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack(Copies):
    """Settings of one training framework.

    Parameters
    ----------
    name : the framework's name.
    kernel_gap : time between two kernels on the GPU that the host issues one by one [s].
    gemm_sms_reserved : persistent GEMMs leave the communication SMs free even if nothing communicates.
    overlapped_pair : forward and backward chunks overlap, in schedules with pairs (DualPipe, DualPipeV).
    expert_overlap : 1F1B and interleaved run a forward together with a backward, so that the all-to-alls of one hide
        under the compute of the other (Megatron-Core, --overlap-moe-expert-parallel-comm).
    wgrad_fills_waits : weight gradients that wait run while all-to-alls of a lone input gradient are on their way.
    fused_quant : casts to FP8 are fused into the op before.
    grad_sync_overlap : gradient reduce-scatter is overlapped with compute.
    param_gather_overlap : parameter all-gather is overlapped with compute.
    tp_overlap : tensor-parallel collectives of layers run in pieces with the GEMM that they feed or drain
        (`simulator.cost.pieces`); those of embedding and head do not.
    tp_scatter : how a reduce-scatter drains its GEMM: in a ring, a piece for each rank; in a pipeline of four pieces of
        the weight; in a pipeline in BF16 and in a ring in narrower recipes (recipe).
    tp_sms_attention, tp_sms_ffn : SMs that a reduce-scatter in a pipeline holds and its GEMM leaves free (num_sm).
    tp_reduced : what partial outputs of a forward GEMM travel in when they are reduced in pieces (fp8_buf: recipe).
    tp_regather : of a gathered input only this rank's part is kept, and gathered again in backward, overlapped with
        dgrad, whose reduce-scatter overlaps with wgrad.
    tp_buffer : how a rank's own part comes into the buffer of an overlapped gather: written there by norms and casts,
        or copied (`simulator.graph.parallel`).
    amax_group : ranks that agree on the largest values of tensors under delayed scaling: all that hold a stage or parts
        of it, or those of tensor and context parallelism (`simulator.graph.precision.amax`).
    p2p_overlap, p2p_sync : pipeline sends leave compute free (chunks: of several chunks); the host waits after others.
    dispatcher : the way of tokens to their experts: kernels of DeepEP, of its Hybrid-EP branch, NCCL's all-to-all, or
        NCCL's all-gather and reduce-scatter (`simulator.graph.tokens.travel`).
    token_counts : where tokens per expert are known: on the device only; read by the host where tokens travel
        (all_to_all); always read by the host; nowhere, as each expert is filled up to a capacity (NCCL's all-to-all).
    table_gradient : what backward makes of an embedding's gradient: the rows that were looked up (rows), or the whole
        table's, zeros and all, which is then added (dense).
    expert_groups : who shares experts: neighbours behind those of one expert (own), or of data parallelism (data).
    permute, router : kernels that order tokens by expert, and of the gate (`simulator.graph.tokens`).
    shared_expert_overlap : the first GEMM of shared experts overlaps with the dispatch, the backward of their last with
        the combine's gradient; otherwise they run before the dispatch and after its gradient (`simulator.graph.moe`).
    grouped_wgrad : expert weight gradients are one kernel.
    expert_biases : biases of experts and the bound of their activation: by the kernels around them (fused), or by
        calls of PyTorch, some for each expert (eager; `simulator.graph.tokens.biases`).
    grouped_gemm : GEMMs of a rank's experts are one kernel, or one each on streams of their own; fused: one kernel,
        which in MXFP8 also computes the activation, its gradient and the casts behind them (`simulator.graph.moe`).
    block_casts : Transformer Engine's casts to MXFP8 and NVFP4: up to 2.11 a kernel before each GEMM lays scales out
        (apart), from 2.12 on MXFP8's casts do (laid_out); from 2.15 on one kernel makes both forms of NVFP4 (joined).
    swiglu_fused, rope_fused, norm_fused, attention_fused : whether one fused kernel does it.
    relu2_fused : whether one kernel squares a ReLU, if swiglu_fused; else ReLU, square and their gradients are apart.
    residual_fused : a norm adds the residual, and its backward the residual's gradient; otherwise separate kernels do.
    split_copies : a kernel of its own concatenates the gradients of queries, keys and values.
    loss : how the cross-entropy runs (`simulator.graph.loss`).
    attention : attention kernels (fa3: FlashAttention-3; fa2: FlashAttention-2; cudnn), if the profile has them apart.
    cublas, cudnn : releases whose GEMMs and attention run; measured: those that a GPU's tables were measured with.
    selective : meaning of `recompute = "selective"` (core: recompute the attention core; products: keep only it and
        every second GEMM).
    gate_weights : what the gate's weights multiply: the activation inside an expert, or its output, kept for them.
    pipeline_buffers : buffers that the pipeline receives into (ahead: for messages posted ahead; each: one for every
        microbatch of a step, in both directions).
    checkpoint_early_stop : what is recomputed ends with the last value that backward reads; otherwise a module runs to
        its end, its last GEMM and all-to-all included.
    wgrad_accumulation_fused : the weight-gradient GEMM adds into the main gradient.
    shard_copies : ZeRO-3 copies parameters out of the gather buffer, and gradients into the reduce buffer.
    gradients_zeroed : a kernel clears gradients after the update; otherwise they are freed and written anew.
    gradient_mean : where sums of gradients become means: in the collective, or before it by a kernel over all of them.
    gradient_check : the norm of a rank's gradients is taken, and the host reads each loss (twice), to stop at NaN.
    gradients_clipped : a kernel multiplies gradients by the factor that clips them, also if that is 1.
    weights_copied : weights are copied from the masters behind the update, gradients to FP32 before it, by kernels.
    mamba2 : how Mamba-2 trains (parts: a convolution that keeps its output, the state's kernels, a norm with the gate;
        joined: mamba_ssm's mamba_split_conv1d_scan_combined, as Megatron-Core calls it: the state's kernels multiply
        by the gate, the convolution runs again in backward, and more than one sequence is put before the tokens and
        back by copies).
    context : whose context parallelism runs: Transformer Engine's (te) or PyTorch's own (torch)
        (`simulator.graph.mixers.context`).
    post_validation : a rank updates and begins its next step before the norm over all stages is known, with the check
        for overflow, which follow later (arXiv 2401.10241, section 4).
    host_update_overlap : an optimizer on the CPU updates one part while others are copied, not one after the other.
    norm_kernels : kernels of norms, casts, rotations and compiled activations (training: DeepSeek's; compiled:
        torch.compile's; te: Transformer Engine's, with Megatron-Core's activations; torch: PyTorch's own, whose
        backward reads a norm's operands a second time for the weight's gradient; operators: an RMSNorm written op by op
        in FP32, each op and its gradient a kernel of PyTorch's).
    update : the optimizer's kernels (fused: one; foreach: one for each operation of AdamW); dropout : of hidden values.
    host_kernel : host time to issue a kernel [s] (`simulator.engine.host`).
    host_call : host time of the call behind an op that is no GEMM, attention or collective, besides its kernels [s].
    host_gemm, host_attention, host_collective : host time to issue a GEMM, an attention kernel, a collective [s].
    host_expert, host_expert_fp8 : host time of each expert's kernel in a module's call that launches one for each, and
        the same in FP8 with scales of tensors (0: as host_expert) [s].
    host_parameter : host time in backward of a parameter of an expert, behind the kernel of its gradient: autograd's
        node and the hook of data parallelism [s].
    host_backward : host time of a kernel in backward over that in forward.
    host_read : host time to read a result of the GPU back: from its end until the call returns [s].
    host_loss : host time between the read of a loss and the first kernel of its gradient, which the GPU waits for [s].
    host_graph : host time of a kernel that is replayed in a CUDA graph [s].
    cuda_graphs : what the host replays as CUDA graphs: nothing (none), the gate of a layer (gate), recurrent mixers
        (mamba), attention, recurrent mixers and the gate up to the dispatch (attention), every layer (layers).
    optimizer : what is kept of the parameters and in which formats, where a job does not say.
    precision : how weights and activations of narrow GEMMs are kept and scaled, where a job does not say.
    serving : settings of software that serves; None: it only trains.
    scheduler : how steps are put together from requests (`foretrain serve`); None: it says nothing of it.
    sources : source of each setting by name; an assumed one starts with "assumed".
    """

    name: str
    kernel_gap: float
    gemm_sms_reserved: bool
    overlapped_pair: bool
    expert_overlap: bool
    wgrad_fills_waits: bool
    fused_quant: bool
    grad_sync_overlap: bool
    param_gather_overlap: bool
    tp_overlap: bool
    tp_scatter: Literal["ring", "pipeline", "recipe"]
    tp_regather: bool
    p2p_overlap: Literal["always", "chunks", "never"]
    dispatcher: Dispatcher
    token_counts: Literal["device", "all_to_all", "host", "capacity"]
    permute: Permute
    router: Literal["deepseek", "torch"]
    shared_expert_overlap: bool
    grouped_wgrad: bool
    grouped_gemm: Literal["kernel", "streams", "fused"]
    swiglu_fused: bool
    rope_fused: bool
    norm_fused: bool
    residual_fused: bool
    split_copies: bool
    loss: Literal["plain", "fp32", "compiled", "parallel", "parallel_fused", "te", "chunked", "fused_linear"]
    attention_fused: bool
    attention: Literal["fa3", "fa2", "cudnn"]
    selective: Literal["core", "products"]
    gate_weights: Literal["activation", "output"]
    pipeline_buffers: Literal["ahead", "each"]
    checkpoint_early_stop: bool
    wgrad_accumulation_fused: bool
    shard_copies: bool
    gradients_zeroed: bool
    host_update_overlap: bool
    norm_kernels: Literal["training", "compiled", "te", "torch", "operators"]
    optimizer: States
    precision: PrecisionStack
    cublas: Literal["measured", "12.5"] = "measured"
    cudnn: Literal["measured", "9.2"] = "measured"
    dropout: bool = False
    expert_biases: Literal["fused", "eager"] = "fused"
    relu2_fused: bool = True
    block_casts: Literal["apart", "laid_out", "joined"] = "apart"
    table_gradient: Literal["rows", "dense"] = "rows"
    update: Literal["fused", "foreach"] = "fused"
    expert_groups: Literal["own", "data"] = "own"
    tp_buffer: Literal["written", "copied"] = "copied"
    tp_sms_attention: int = 16
    tp_sms_ffn: int = 16
    tp_reduced: Literal["bf16", "recipe"] = "bf16"
    amax_group: Literal["none", "tensor", "stage"] = "none"
    gradient_mean: Literal["collective", "before"] = "collective"
    gradient_check: bool = False
    p2p_sync: bool = False
    gradients_clipped: bool = False
    weights_copied: bool = False
    mamba2: Literal["parts", "joined"] = "parts"
    context: Literal["te", "torch"] = "te"
    post_validation: bool = False
    host_kernel: float = 0.0
    host_call: float = 0.0
    host_gemm: float = 0.0
    host_attention: float = 0.0
    host_expert: float = 0.0
    host_expert_fp8: float = 0.0
    host_parameter: float = 0.0
    host_collective: float = 0.0
    host_backward: float = 1.0
    host_read: float = 0.0
    host_loss: float = 0.0
    host_graph: float = 0.0
    cuda_graphs: Literal["none", "gate", "mamba", "attention", "layers"] = "none"
    serving: ServingStack | None = None
    scheduler: Scheduler | None = None
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def overlaps_pairs(self) -> bool:
        """Whether a forward and a backward that are paired overlap."""
        return self.overlapped_pair or self.expert_overlap

    @property
    def host_issues(self) -> bool:
        """Whether issuing takes the host any time."""
        return any((self.host_kernel, self.host_call, self.host_gemm, self.host_attention, self.host_collective))

    @property
    def assumed(self) -> tuple[str, ...]:
        """The settings that nobody measured or published."""
        return tuple(name for name, source in self.sources.items() if source.startswith("assumed"))


def releases(stack: Stack) -> tuple[str, ...]:
    """Names of the earlier releases of libraries that run (`simulator.spec.kernel_params.Release`)."""
    named = (("cublas", stack.cublas), ("cudnn", stack.cudnn))
    return tuple(f"{library}-{number}" for library, number in named if number != "measured")
