"""What a serving step works on: the `[serving]` table of a job, and what serving software does differently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KvDtype = Literal["bf16", "fp8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """One step of one attention-data-parallel rank (`tp` GPUs that share the heads).

    `sequences`: running ones (decode) or prompts (prefill). `context` [tokens]: cached of each before the step.
    `tokens` [tokens]: new ones of each. `kv_dtype`: width of the KV cache; GEMMs run in BF16. `cuda_graphs`: the
    step is replayed, so that the host's time to issue kernels does not count. `two_batch_overlap`: the sequences run as
    two microbatches, one of which computes while the other's tokens travel to and from the experts (DeepSeek-V3
    report, arXiv 2412.19437, section 3.4).
    """

    sequences: int
    context: int = 0
    tokens: int = 1
    kv_dtype: KvDtype = "bf16"
    cuda_graphs: bool = True
    two_batch_overlap: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingStack:
    """What serving software does differently.

    `decode_attention`: whose kernels decode, where the hardware profile has them apart (`kernels.decode`). `gemm`:
    whose GEMMs run, likewise. `all_reduce`: whose kernels reduce over tensor-parallel ranks, a name in
    `fabric.all_reduce` of the hardware profile, or nccl. `masked`: decode runs the experts on a fixed number of rows
    each, masked (DeepGEMM); else on rows sorted by expert. `router_fused`: scores, top-k and weights of the gate are
    one kernel.
    """

    decode_attention: Literal["fa2", "fa3", "flashmla", "flashinfer"]
    gemm: Literal["training", "library", "deepgemm"]
    all_reduce: Literal["nccl", "vllm", "sglang", "trtllm"]
    masked: bool
    router_fused: bool
