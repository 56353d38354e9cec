"""Training steps of ByteDance's MegaScale and MegaScale-MoE, next to Megatron-LM at the commits that they name.

What the papers leave out is taken alike for all rows, and said here: microbatches of one sequence; nothing recomputed
in the dense model (its commit of Megatron-LM has FlashAttention); windows of half a sequence, which one of 2,048 tokens
hardly feels (arXiv 2402.15627, section 3.1, says that there is one); Adam for LAMB.
"""

from __future__ import annotations

from typing import Any

from simulator.validation.figures import Figure
from simulator.validation.training_figures import DENSE, Overrides, gpt, overrides_of, step

SYSTEMS: dict[str, dict[str, Any]] = {
    "megascale": {
        "stack": "megascale",
        "model__parallel_block": True,
        "model__shared_norm": True,
        "model__sliding_window": 1024,
    },
    # 2023-01: sequence parallelism, FlashAttention (--use-flash-attn), a sharded optimizer without overlap
    "megatron-lm": {"stack": "megatron-lm", "stack__tp_regather": True, "stack__attention_fused": True},
}
"""Software and model of a row; Megatron-LM is commit 285068c8 (arXiv 2402.15627, section 6.1)."""


def dense(figure: Figure) -> float:
    """Iteration time of the 175B model on Ampere GPUs [s] (arXiv 2402.15627, tables 1 and 2)."""
    return step(DENSE, dense_run(figure), "longest-path").seconds


def dense_run(figure: Figure) -> Overrides:
    """The overrides of the job that a row of table 2 is."""
    c = figure.config
    seq = int(c["seq"])
    sizes = gpt(layers=int(c["layers"]), heads=int(c["heads"]), hidden=int(c["hidden"]), vocab=int(c["vocab"]), seq=seq)
    return sizes + overrides_of(
        hardware="a100",
        gpus=int(c["gpus"]),
        layout__tp=int(c["tp"]),
        layout__pp=int(c["pp"]),
        layout__vpp=int(c["vp"]),
        layout__schedule="interleaved",
        layout__recompute="none",
        layout__stages="even",
        batch__sequence_length=seq,
        batch__microbatch_size=1,
        batch__global_batch_size=int(c["gbs"]),
        **SYSTEMS[str(c["system"])],
    )


def experts(figure: Figure) -> float:
    """Iteration time of the 352B model on H800 [s] (arXiv 2505.11432, tables 2 and 3)."""
    return step(DENSE, experts_run(figure), "longest-path").seconds


def experts_run(figure: Figure) -> Overrides:
    """The overrides of the job that a row of MegaScale-MoE in table 3 is.

    Attention goes over the ranks of a node as Ulysses does it, experts as well. Gradients are summed in FP32 and travel
    in BF16 (section 5). Not here: the kernels that send while they multiply and what else overlaps (section 4), which
    make a step shorter, and the activations that are made again behind it, at 0.5 % by the paper. Assumed: one stage a
    rank.
    """
    c = figure.config
    return overrides_of(
        model="mixtral-8x7b",
        model__num_hidden_layers=int(c["layers"]),
        model__hidden_size=int(c["hidden"]),
        model__num_attention_heads=int(c["heads"]),
        model__num_key_value_heads=int(c["kv_heads"]),
        model__moe_intermediate_size=int(c["ffn"]),
        model__n_routed_experts=int(c["experts"]),
        model__num_experts_per_tok=int(c["topk"]),
        model__vocab_size=int(c["vocab"]),
        hardware="h800",
        stack="megatron-core",
        stack__attention="fa2",
        optimizer__reduced="bf16",
        gpus=int(c["gpus"]),
        precision__recipe="bf16",
        layout__tp=int(c["tp"]),
        layout__cp=int(c["cp"]),
        layout__cp_kind="all_to_all",
        layout__pp=int(c["pp"]),
        layout__ep=int(c["ep"]),
        layout__schedule="1f1b",
        layout__recompute="none",
        layout__stages="even",
        batch__sequence_length=int(c["seq"]),
        batch__microbatch_size=1,
        batch__global_batch_size=int(c["gbs"]),
    )
