"""Which kernel class a kernel of a profile belongs to, by its name.

The first pattern that is found decides. Names are those of DeepSeek's public training profile
(`deepseek-ai/profile-data`), of DeepGEMM, DeepEP, FlashAttention, cuBLAS, cuDNN, CUTLASS, Transformer Engine, NCCL and
PyTorch; what none of them names is `elem`.
"""

from __future__ import annotations

import re
from functools import lru_cache

OTHER = "elem"

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"ncclDevKernel_AllReduce|ncclKernel_AllReduce", "comm.all_reduce"),
    (r"nccl\w*AllGather", "comm.all_gather"),
    (r"nccl\w*ReduceScatter", "comm.reduce_scatter"),
    (r"nccl\w*SendRecv|nccl\w*AllToAll", "comm.p2p"),
    (r"nccl\w*Broadcast", "comm.broadcast"),
    (r"get_dispatch_layout", "comm.layout"),
    (r"(cached_notify|notify_dispatch|notify_combine)", "comm.notify"),
    (r"\bep::\w+::dispatch\b|deep_ep::\w+::dispatch\b", "comm.dispatch"),
    (r"\bep::\w+::combine\b|deep_ep::\w+::combine\b", "comm.combine"),
    (r"fp8_special_fmt|back_special_fmt", "quant.special"),
    (r"per_channel_cast_and_transpose", "quant.chan_t"),
    (r"swiglu|silu_and_mul|SiluMul|swish", "swiglu"),
    (r"per_token_cast_to_fp8|per_token_group_quant|cast_to_fp8|quantize_", "quant.token"),
    (r"cast_back_impl|dequant", "dequant"),
    (r"batched_transpose", "weight_t"),
    (r"cuda::utils::transpose|transpose_scale", "scale_t"),
    (r"rotary|rope_kernel|fused_rope", "rope"),
    (r"_copy_tensor_kernel", "kvcopy"),
    (r"ln_bwd_finalize|rmsnorm_bwd_finalize", "elem"),
    (r"ln_bwd|rmsnorm_bwd|layer_norm_grad|RMSNormBackward", "norm.bwd"),
    (r"ln_fwd|rmsnorm|rms_norm|layer_norm|LayerNorm", "norm.fwd"),
    (r"expand_to_fused|permute_kernel|moe_permute", "permute.expand"),
    (r"reduce_fused|unpermute", "permute.reduce"),
    (r"clean_and_count_expert", "permute.map.count"),
    (r"get_fused_mapping", "permute.map.build"),
    (r"fill_tensormaps", "tensormap"),
    (r"FlashAttnBwdPreprocess|FlashAttnBwdPostprocess|bwd_dot_do_o|bwd_convert_dq", "attn.bwd_aux"),
    (r"FlashAttnBwd|flash_bwd|fmha\w*bwd|fmha\w*backward|sdpa\w*bprop", "attn.bwd"),
    (r"compute_attn_ws|FlashAttnFwd|flash_fwd|fmha|sdpa\w*fprop|flash_attention", "attn.fwd"),
    (r"m_grouped\w*fp8|fp8_m_grouped|grouped\w*fp8\w*gemm|m_grouped_fp8", "gemm.fp8.grouped"),
    (r"fp8_dptp128c_acc|wgrad_gemm|fp8\w*wgrad", "gemm.fp8.wgrad"),
    (r"fp8_ptp128c|fp8_gemm_kernel|deep_gemm\w*fp8|gemm\w*e4m3|e4m3\w*gemm|nvjet_qq", "gemm.fp8"),
    (r"m_grouped\w*bf16|grouped_gemm\w*bf16|grouped_mm", "gemm.bf16.grouped"),
    (r"xmma_gemm|nvjet|cublas\w*gemm|ampere_\w*gemm|sm\d\d_\w*gemm|cutlass\w*gemm|GemmUniversal|\bgemm", "gemm.bf16"),
    (r"gatherTopK|topk_gating|radixSort\w*TopK", "router.topk"),
    (r"adam|multi_tensor", "optimizer"),
    (r"embedding\w*backward", "embedding.bwd"),
    (r"embedding|indexSelect", "embedding"),
    (r"softmax|cross_entropy|nll_loss", "loss"),
)
_COMPILED = tuple((re.compile(pattern), cls) for pattern, cls in PATTERNS)


@lru_cache(maxsize=4096)
def kernel_class(name: str) -> str:
    """The class of a kernel with this name; `elem` where no pattern matches."""
    return next((cls for pattern, cls in _COMPILED if pattern.search(name)), OTHER)


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
