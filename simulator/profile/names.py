"""Which kernel class a kernel of a profile belongs to, by its name, and which family of classes.

The first pattern that is found decides; each row names the library whose kernels are called so. What none of them names
is `elem` for the overlapped pair, whose copies and fills have names without information; elsewhere it has no family.
"""

from __future__ import annotations

import re
from functools import lru_cache

OTHER = "elem"

NCCL = "NCCL's src/device"
DEEPEP = "DeepEP's csrc/kernels, and DeepSeek's public training profile"
DEEPSEEK = "DeepSeek's public training profile (profile-data, 2025)"
ENGINE = "Transformer Engine's common/"
FLASH = "FlashAttention 2 and 3, PyTorch's copy of them, cuDNN's and Transformer Engine's fused attention"
BLAS = "cuBLAS and cuBLASLt 11 to 13, CUTLASS 2 and 3"
DEEPGEMM = "DeepGEMM's deep_gemm/include"
TORCH = "PyTorch's aten/src/ATen/native/cuda"
INDUCTOR = "names of PyTorch's Inductor: triton_KIND_fused_OPS_NUMBER"
CUDNN = "cuDNN 7 to 9"
LIGER = "Liger's and unsloth's Triton kernels"
SERVING = "vLLM's csrc, SGLang's sgl-kernel, FlashInfer with TensorRT-LLM's kernels"

PATTERNS: tuple[tuple[str, str, str], ...] = (
    (r"nccl\w*AllReduce", "comm.all_reduce", NCCL),
    (r"nccl\w*AllGather", "comm.all_gather", NCCL),
    (r"nccl\w*ReduceScatter", "comm.reduce_scatter", NCCL),
    (r"nccl\w*SendRecv|nccl\w*AllToAll", "comm.p2p", NCCL),
    (r"nccl\w*Broadcast", "comm.broadcast", NCCL),
    (r"nccl(Dev)?Kernel|ncclSymk", "comm.other", NCCL),
    (r"userbuffers_\w+_ag\b", "comm.all_gather", ENGINE + "comm_gemm_overlap"),
    (r"userbuffers_\w+_rs(_|\b)", "comm.reduce_scatter", ENGINE + "comm_gemm_overlap"),
    (r"userbuffers_\w+_gpu_(mc|rr|rw)\b", "comm.all_reduce", ENGINE + "comm_gemm_overlap"),
    (r"kuserbuffers_|Memcpy PtoP", "comm.p2p", ENGINE + "comm_gemm_overlap; copies from GPU to GPU"),
    (r"multimem_all_reduce|one_shot_all_reduce|two_shot_all_reduce|cross_device_reduce", "comm.all_reduce", TORCH),
    (r"get_dispatch_layout", "comm.layout", DEEPEP),
    (r"(cached_notify|notify_dispatch|notify_combine)", "comm.notify", DEEPEP),
    (r"\bep::\w+::dispatch\b|deep_ep::\w+::dispatch\b|hybrid_ep::\w*dispatch", "comm.dispatch", DEEPEP),
    (r"\bep::\w+::combine\b|deep_ep::\w+::combine\b|hybrid_ep::\w*combine", "comm.combine", DEEPEP),
    (r"convolve|scudnn|winograd|fft[12]d|\bcgemm|gcgemm|[dw]grad\w*engine|implicit_gemm|im2col|fprop_implicit"
     r"|conv2d|conv_depthwise|xmma_(fprop|dgrad|wgrad)|(fprop|dgrad|wgrad)_optimized|flip_filter"
     r"|computeOffsetsKernel", "convolution", CUDNN),
    (r"(\b|_)bn_(fw|bw)|batch_?norm", "batch_norm", CUDNN),
    (r"max_pool|avg_pool|adaptive_\w*pool|upsample", "pooling", TORCH),
    (r"split_embedding|permute_pooled|fbgemm_gpu::", "embedding_tables", "FBGEMM's fbgemm_gpu/codegen"),
    (r"fp8_special_fmt|back_special_fmt", "quant.special", DEEPSEEK),
    (r"per_channel_cast_and_transpose|(?<!multi_)cast_transpose", "quant.chan_t", DEEPSEEK),
    (r"swizzle_|Hadamard|rht_gemm|nvfp4_\w*scale|Amax\w*Kernel|grouped_amax|compute_scale|multi_tensor_pad",
     "quant.token", ENGINE + "recipe, hadamard_transform, swizzle"),
    (r"swiglu|silu_and_mul|act_and_mul|SiluMul|swish|dgated_act|gated_act|moe::dev::activation", "swiglu",
     f"{ENGINE}, {SERVING}"),
    (r"per_token_cast_to_fp8|per_token_group_quant|cast_to_fp8|quantize_|cast_fp8|block_scaled_cast|amax_kernel"
     r"|scaled_fp8_quant|cvt_fp16_to_fp4", "quant.token", f"{ENGINE}, {SERVING}"),
    (r"cast_back_impl|dequant", "dequant", DEEPSEEK),
    (r"batched_transpose", "weight_t", DEEPSEEK),
    (r"cuda::utils::transpose|transpose_scale", "scale_t", DEEPSEEK),
    (r"rotary|rope_kernel|fused_(qkv_)?rope|_rope_embedding", "rope", "Megatron-Core, Transformer Engine, " + LIGER),
    (r"_copy_tensor_kernel|reshape_and_cache|AppendPagedKVCache|store_kvcache", "kvcopy", f"{DEEPSEEK}, {SERVING}"),
    (r"ln_bwd_finalize|rmsnorm_bwd_finalize", "elem", ENGINE),
    (r"ln_bwd|rmsnorm_bwd|rms_norm_backward|layer_norm_grad|RMSNormBackward|GammaBetaBackward|layer_norm_backward"
     r"|cuComputeGradInput|cuComputePartGrad", "norm.bwd", f"{ENGINE}, {TORCH}, apex"),
    (r"ln_fwd|rmsnorm|rms_norm|layer_norm|LayerNorm|RowwiseMoments|cuApplyLayerNorm", "norm.fwd",
     f"{ENGINE}, {TORCH}, apex"),
    (r"expand_to_fused|(?<!un)permute_kernel|moe_permute|sort_chunks_by_map",
     "permute.expand", f"{DEEPSEEK}, Megatron-Core"),
    (r"reduce_fused|unpermute|moe::dev::finalize|finalizeMoeRouting|moe_sum", "permute.reduce",
     f"{DEEPSEEK}, Megatron-Core, {SERVING}"),
    (r"moe::dev::routing|routingIndices|moe_align_block_size|chunk_sort_map", "permute.map.build", SERVING),
    (r"clean_and_count_expert", "permute.map.count", DEEPSEEK),
    (r"multi_cast_transpose", "quant.turned.experts", "Transformer Engine"),
    (r"multi_(un)?padding_kernel", "permute.pad", "Transformer Engine"),
    (r"get_fused_mapping|row_id_map", "permute.map.build", f"{DEEPSEEK}, Transformer Engine"),
    (r"fill_tensormaps", "tensormap", DEEPSEEK),
    (r"FlashAttnBwdPreprocess|FlashAttnBwdPostprocess|bwd_dot_do_o|bwd_convert_dq|bwd_preprocess",
     "attn.bwd_aux", FLASH),
    (r"FlashAttnBwd|flash_bwd|fmha\w*bwd|fmha\w*backward|sdpa\w*bprop|AttentionBackwardKernel|flex_attention_backward"
     r"|_attn_bwd", "attn.bwd", FLASH),
    (r"compute_attn_ws|FlashAttnFwd|flash_fwd|fmha|sdpa\w*fprop|flash_attention|AttentionKernel<|flex_attention"
     r"|\b_?attn_fwd|(Batch|Single)(Decode|Prefill)With|paged_attention|unified_attention", "attn.fwd",
     f"{FLASH}, {SERVING}"),
    (r"scaled_\w*softmax\w*backward", "softmax.bwd", "Megatron's fused softmax"),
    (r"scaled_\w*softmax", "softmax", "Megatron's fused softmax"),
    (r"m_grouped\w*fp8|fp8_m_grouped|grouped\w*fp8\w*gemm|m_grouped_fp8", "gemm.fp8.grouped", DEEPGEMM),
    (r"\bbmm_\w+_schedP|fused_moe_kernel|marlin_moe", "gemm.fp8.grouped", SERVING + ": experts of any precision"),
    (r"fp8_dptp128c_acc|wgrad_gemm|fp8\w*wgrad", "gemm.fp8.wgrad", f"{DEEPSEEK}, {DEEPGEMM}"),
    (r"fp8_ptp128c|fp8_gemm_kernel|deep_gemm\w*fp8|gemm\w*e[45]m[23]|e[45]m[23]\w*gemm|nvjet_(sm\d+_)?[qo]",
     "gemm.fp8", f"{DEEPSEEK}, {DEEPGEMM}, {BLAS}"),
    (r"m_grouped\w*bf16|grouped_gemm\w*bf16|grouped_mm|GroupProblemShape|GemmGrouped|_grouped_gemm|_matmul_ogs",
     "gemm.bf16.grouped", f"{DEEPGEMM}, {BLAS}, {TORCH}, Triton's triton_kernels"),
    (r"xmma_gemm|nvjet|cublas\w*gemm|(volta|turing|ampere|hopper)_\w*gemm|sm\d\d_\w*gemm|cutlass\w*gemm|GemmUniversal"
     r"|\bgemm|gemv|Gemv|magma_\w*gemm|s\d+gemm|triton_tem_fused\w*mm", "gemm.bf16", f"{BLAS}, {INDUCTOR}"),
    (r"splitKreduce|epilogue::impl::globalKernel", "gemm.bf16", BLAS + ": what follows a GEMM split along k"),
    (r"moe_aux_loss", "router.balance", ENGINE + "fused_router"),
    (r"radix_topk|gatherTopK|topk_gating|radixSort\w*TopK|bitonicSort|fused_topk|topk_softmax", "router.topk", TORCH),
    (r"RadixSort|cub::\w*Scan|cub::\w*Histogram|kernelHistogram", "sort", "CUB, as PyTorch uses it"),
    (r"multi_tensor_apply\w*<.*Copy", "elem", TORCH + ": _foreach_copy_, as FSDP2 gathers"),
    (r"[aA]dam[^a]|multi_tensor|LAMBFunctor|FusedOptimizer|_foreach", "optimizer", f"apex, {TORCH}"),
    (r"embedding\w*[bB]ackward|compute_grad_weight|embedding_dense_backward", "embedding.bwd", TORCH),
    (r"embedding|indexSelect", "embedding", TORCH),
    (r"element_mul_kernel|softmax\w*[bB]ackward|SoftMaxBackward|nll_loss_backward|cross_entropy\w*backward",
     "loss.bwd", f"{TORCH}, {LIGER}"),
    (r"softmax|SoftMax|cross_entropy|nll_loss", "loss", f"{TORCH}, {LIGER}"),
    (r"triton_\w*fused\w*(rsqrt|native_layer_norm)", "norm.fwd", INDUCTOR),
    (r"elementwise|reduce_kernel|CatArray|direct_copy|Memcpy|Memset|FillFunctor|index_\w*kernel|index_put|distribution"
     r"|\bdropout|tensor_kernel_scan|transpose|nchwToNhwc|nhwcToNchw|scatter_gather|vectorized_gather|arange|tril|triu"
     r"|copyKernel|bias_gelu|fused_bias|transform_bias_rescale_qkv"
     r"|\bthd_\w+_kernel|convert_\w+_kernel|cu_seqlens|zero_pad|grouped_d?bias|set_float_kernel|_mhc_|reduce_\w+_cuda",
     "elem", f"{TORCH}, cuBLAS, {CUDNN}"),
    (r"triton_(poi|red|per|for)_fused|triton__\d", "elem", INDUCTOR + "; until 2023 triton__ARGUMENTS"),
)  # fmt: skip
"""(pattern, kernel class, where such names come from)."""
_COMPILED = tuple((re.compile(pattern), cls) for pattern, cls, _ in PATTERNS)

FAMILIES: tuple[tuple[str, str], ...] = (
    (r"comm\.(dispatch|combine|notify|layout)", r"\1"),
    (r"comm\.(?:.*\.)?all_gather", "all-gather"),
    (r"comm\.(?:.*\.)?reduce_scatter", "reduce-scatter"),
    (r"comm\.(?:.*\.)?all_reduce", "all-reduce"),
    (r"comm\.(?:.*\.)?(p2p|ring|all_to_all|counts|broadcast)", "send, receive, all-to-all"),
    (r"comm\..*", "other communication"),
    (r"gemm\..*(grouped|masked)(?!.*@streams).*", "grouped GEMM"),
    (r"gemm\.(fp8|mxfp8|nvfp4).*", "GEMM, FP8"),
    (r"gemm\..*", "GEMM"),
    (r"attn\.bwd.*", "attention backward"),
    (r"attn\..*", "attention forward"),
    (r"norm\..*", "norm"),
    (r"(quant|dequant|weight_t|scale_t|transpose)\b.*", "casts and transposes"),
    (r"(permute|unpermute|router|sort|tensormap)\b.*", "routing and permutation"),
    (r"embedding(\.bwd.*)?", "embedding"),
    (r"(loss|softmax)\b.*", "softmax and loss"),
    (r"optimizer", "optimizer"),
    (r"(conv|scan)\b.*", "recurrent mixers"),
    (r"(elem|cat|copy|swiglu|geglu|reglu|relu2_glu|relu2|relu|gelu|silu|rope|kvcopy)\b.*", "elementwise and copies"),
)
"""Classes that a kernel's name does not separate, together: (pattern of whole classes, family)."""
_FAMILIES = tuple((re.compile(pattern), family) for pattern, family in FAMILIES)


@lru_cache(maxsize=4096)
def kernel_class(name: str) -> str:
    """The class of a kernel with this name; `elem` where no pattern matches."""
    return known_class(name) or OTHER


@lru_cache(maxsize=4096)
def known_class(name: str) -> str:
    """The class of a kernel with this name; "" where no pattern matches."""
    return next((cls for pattern, cls in _COMPILED if pattern.search(name)), "")


@lru_cache(maxsize=1024)
def family(cls: str) -> str:
    """The family of a kernel class; "" for what is no kernel."""
    for pattern, name in _FAMILIES:
        found = pattern.fullmatch(cls)
        if found:
            return found.expand(name)
    return ""


def likeness(kernel: str, op: str) -> int:
    """How well a kernel of class `kernel` fits a simulated op of class `op`: 3 its own, 1 possible, 0 not at all.

    Copies, fills and sums have names without information, so they match any small op.
    """
    if op == kernel or op.startswith(f"{kernel}."):
        return 3
    if kernel == OTHER and op.partition(".")[0] in ("kvcopy", "scale_t", "router"):
        return 1 if op != "router.topk" else 0
    if kernel == "router.topk" and op.startswith("router"):
        return 1
    return 0
