"""Training runs of others by their published layout: Megatron Bridge, NeMo, DGX Cloud benchmarks, TorchTitan.

What a source leaves out is taken alike for all runs of a family. Nothing here, or in what it calls, is fitted to them.

FP8 is one scale a tensor (delayed or current scaling) unless the source says MX. Without pipeline chunks the schedule
is 1F1B, else interleaved; where the chunks outnumber pairs of layers, embedding and loss count as a layer each.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from simulator.inputs import load_scenario
from simulator.spec.model import ModelSpec
from simulator.validation.cannot import CannotCompute
from simulator.validation.figures import Figure
from simulator.validation.runs import bridge
from simulator.validation.training_figures import DENSE, Overrides, gpt, overrides_of, step

RACK_GPUS = 64
"""Jobs of powers of two use 64 of a rack's 72 GPUs."""

EVEN = ("force-balanced", "token drop")
"""Routings of published runs under which no rank has more than the mean."""

DROPPED = "capacity factor 1.0 with padding (drop)"
"""Experts that are filled up to the mean, and drop what exceeds it."""


def _plain(layers: int, hidden: int, heads: int, inner: int, vocab: int, kv_heads: int, act: str) -> Overrides:
    """A model without gates in its feed-forward part: Nemotron-4, with LayerNorm and half of each head rotated
    (NVIDIA/NeMo-Framework-Launcher, launcher_scripts/conf/training/nemotron, 2024: layernorm1p, rotary_percentage)."""
    return overrides_of(
        model="llama-3-8b",
        model__num_hidden_layers=layers,
        model__hidden_size=hidden,
        model__num_attention_heads=heads,
        model__num_key_value_heads=kv_heads,
        model__head_dim=hidden // heads,
        model__intermediate_size=inner,
        model__vocab_size=vocab,
        model__hidden_act=act,
        model__gated_mlp=False,
        model__norm="layer",
        model__partial_rotary_factor=0.5,
    )


def _experts(base: str, **values: Any) -> Overrides:
    """A model of experts with the sizes of `values`."""
    return overrides_of(model=base, **{f"model__{key}": value for key, value in values.items()})


TWICE_FURTHER = "model.num_nextn_predict_layers=2"
"""Nemotron 3 Super, Ultra and 3.5 Lightning train one MTP module that is passed through twice (mtp_num_layers = 2,
mtp_use_repeated_layer; the published FLOP of a token have both passes, too). Its weights count twice here: 1.5e9 of
Super's, of which a GPU holds a 64th."""

MODELS: Mapping[str, Overrides] = {
    "llama3_8b": ("model=llama-3-8b",),
    "llama31_8b": ("model=llama-3-8b",),
    "llama3_70b": ("model=llama-3-70b",),
    "llama31_70b": ("model=llama-3-70b",),
    "llama31_405b": ("model=llama-3.1-405b",),
    "llama2_7b": ("model=llama-2-7b",),
    "llama2_13b": overrides_of(
        model="llama-2-7b",
        model__num_hidden_layers=40,
        model__hidden_size=5120,
        model__num_attention_heads=40,
        model__num_key_value_heads=40,
        model__intermediate_size=13824,
    ),
    "llama2_70b": ("model=llama-3-70b", "model.vocab_size=32000"),
    "maxtext_llama2_70b": ("model=llama-3-70b", "model.vocab_size=32000"),
    "gpt3_5b": gpt(layers=24, heads=32, hidden=4096, vocab=51200, seq=2048),
    "gpt3_20b": gpt(layers=44, heads=48, hidden=6144, vocab=51200, seq=2048),
    "gpt3_175b": gpt(layers=96, heads=96, hidden=12288, vocab=51200, seq=2048),
    "nemotron_8b": _plain(32, 4096, 32, 16384, 256000, 32, "relu2"),
    "nemotron_22b": _plain(40, 6144, 48, 24576, 256000, 48, "relu2"),
    "nemotron4_15b": _plain(32, 6144, 48, 24576, 256000, 8, "relu2"),
    "nemotron_340b": _plain(96, 18432, 96, 73728, 256000, 8, "relu2"),
    "nemotron4_340b": _plain(96, 18432, 96, 73728, 256000, 8, "relu2"),
    "dsv3": ("model=deepseek-v3", "model.num_nextn_predict_layers=0"),
    "qwen3_235b": ("model=qwen3-235b-a22b",),
    "qwen3_30b": ("model=qwen3-30b-a3b",),
    "kimi_k2": ("model=kimi-k2",),
    "dsv4_flash": ("model=deepseek-v4-flash",),
    "grok1_314b": _experts(
        "mixtral-8x7b",
        num_hidden_layers=64,
        hidden_size=6144,
        moe_intermediate_size=32768,
        num_attention_heads=48,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=131072,
    ),
    "gptoss_120b": ("model=gpt-oss-120b",),
    "nemotron3_nano": ("model=nemotron-3-nano",),
    "nemotron35_lightning": ("model=nemotron-3-nano", TWICE_FURTHER),
    "nemotron3_super": ("model=nemotron-3-super", TWICE_FURTHER),
    "nemotron3_ultra": ("model=nemotron-3-ultra", TWICE_FURTHER),
}
"""Sizes of the models, each from its paper or model card."""

HARDWARE: Mapping[str, Mapping[str, Any]] = {
    "H100": {"hardware": "h100"},
    "B200": {"hardware": "b200"},
    "GB200": {"hardware": "gb200", "hardware__node__gpus": RACK_GPUS},
    "GB300": {"hardware": "gb300", "hardware__node__gpus": RACK_GPUS},
    "B300": {"hardware": "b300"},
}


RECIPE: Mapping[str, Mapping[str, Any]] = {
    "FP8-CS": {"precision__recipe": "fp8_tensor", "precision__scaling": "current"},
    "FP8-MX": {"precision__recipe": "mxfp8"},
    "MXFP8": {"precision__recipe": "mxfp8"},
    "NVFP4": {"precision__recipe": "nvfp4"},
    "float8_rowwise": {"precision__recipe": "fp8_row"},
}
"""Settings of published precisions that name their scales; others in FP8 scale by tensor."""


def recipe_of(precision: str) -> Mapping[str, Any]:
    """The settings of a published precision."""
    recipe = "bf16" if precision.lower().startswith("bf16") else "fp8_tensor"
    return RECIPE.get(precision.partition(" ")[0], {"precision__recipe": recipe})


def stages_of(layers: int, pp: int, vpp: int) -> list[int] | str:
    """Layers of each stage; even, or with embedding and loss counted as a layer."""
    each, left = divmod(layers + 2, pp * vpp)
    if layers % (pp * vpp) == 0:
        return "even"
    return [each - 1, *[each] * (pp * vpp - 2), each - 1] if not left and each > 1 else "balanced"


NEMO_24 = ("E.dgxc.v24.", "E.dgxc.v25.02.", "E.nemo2407.")
"""Sources whose runs are NeMo's of 2024 and early 2025."""

NEMO_25: Mapping[str, Any] = {
    "optimizer__gradients": "bf16",
    "optimizer__reduced": "bf16",
    "stack__gradient_mean": "collective",
}
"""What the scripts of NeMo 2.3 (container 25.04; scripts/performance, nemo/collections/llm/recipes at v2.3.1) set:
grad_reduce_in_fp32 false, average_in_collective; and in FP8 fp8_param_gather."""

SCRIPTS: Mapping[str, Mapping[str, Any]] = {
    "llama31_405b": {
        "stack__attention": "cudnn",
        "model__vocab_size": 51200,
        "stack__tp_sms_attention": 24,
        "stack__tp_sms_ffn": 8,
    },
    "llama31_70b": {"stack__attention": "cudnn", "stack__tp_sms_attention": 24},
    "llama": {"stack__attention": "cudnn"},
    "gpt3": {
        "stack__loss": "parallel",
        "stack__dropout": True,
        "stack__tp_sms_attention": 24,
        "stack__tp_sms_ffn": 20,
    },
    "grok1": {
        "stack__loss": "parallel",
        "stack__token_counts": "capacity",
        "layout__etp": 4,
        "model__vocab_size": 128512,
    },
    "nemotron4_15b": {"stack__attention": "cudnn"},
    "nemotron4_340b": {"layout__recompute": "selective"},
}
"""What launch scripts and configurations of NVIDIA/dgxc-benchmarking say at the tags v24.11.1 and v25.02.02, where it
is not the stack's: NVTE_FUSED_ATTN, cross_entropy_loss_fusion, hidden_dropout, activations_checkpoint_granularity,
num_sm of ub_tp_comm_overlap_cfg. Grok's experts (grok1/grok1_314b.yaml: moe_token_dispatcher_type alltoall,
moe_pad_expert_input_to_capacity, moe_expert_capacity_factor 1.0) are cut as all else in Megatron-Core 0.9 (etp = tp).
Grok has the tokenizer of Llama 3 and Llama 405B that of GPT-2, filled up to multiples of 128 tp."""

SCRIPTS_IN_FP8: Mapping[str, Mapping[str, Any]] = {"llama31_405b": {"stack__tp_reduced": "recipe"}}
"""What they say of FP8 runs alone: fp8_buf of proj_fprop and fc2_fprop (llama3.1/configure.sh)."""

LAUNCHER: Mapping[str, Mapping[str, Any]] = {
    "gpt3_20b": {"stack__loss": "parallel", "stack__dropout": True, "stack__tp_sms_ffn": 24},
    "gpt3": {
        "stack__loss": "parallel",
        "stack__dropout": True,
        "stack__tp_sms_attention": 24,
        "stack__tp_sms_ffn": 20,
    },
    "llama2": {"stack__loss": "parallel", "stack__tp_sms_attention": 24},
    "llama3_70b": {"stack__tp_sms_attention": 24},
    "nemotron_340b": {"stack__loss": "parallel", "layout__recompute": "selective"},
}
"""The same of NVIDIA/NeMo-Framework-Launcher at the tag 24.07, launcher_scripts/conf/training. What overlaps with
tensor parallelism is taken to be switched on, as every ub_cfg_h100 file there is for FP8, which no configuration
switches on."""


def software_of(figure: Figure) -> dict[str, Any]:
    """The stack of a run, and what its source's scripts set otherwise."""
    name = str(figure.config["model"])
    if figure.id.startswith("E.dgxc.v25.05."):
        narrow = {"precision__weights": "recipe"} if figure.config["precision"] == "FP8" else {}
        graphs = name == "nemotron4_340b" and figure.config["gpu"] == "GB200"  # nemotron/launch.sh
        eager = (
            {"stack__relu2_fused": False} if name.startswith("nemotron4") else {}
        )  # nemo/collections/llm/fn/activation.py
        graphed = {"stack__cuda_graphs": "layers"} if graphs else {}
        return {"stack": "megatron-core", **NEMO_25, **narrow, **eager, **graphed}
    if not figure.id.startswith(NEMO_24):
        return {"stack": "megatron-core"}
    tables = [SCRIPTS if figure.id.startswith("E.dgxc.") else LAUNCHER]
    if tables[0] is SCRIPTS and str(figure.config["precision"]).startswith("FP8"):
        tables.append(SCRIPTS_IN_FP8)
    own: dict[str, Any] = {"stack": "nemo-24"}
    for table in tables:
        own |= next((values for start, values in table.items() if name.startswith(start)), {})
    return own


def run_of(figure: Figure) -> Overrides:
    """The overrides of the job that a figure's configuration is."""
    c = figure.config
    name = str(c["model"])
    if name not in MODELS:
        raise CannotCompute(f"{name} is not among the models that are forecast here")
    if str(c.get("task", "pretrain")) != "pretrain":
        raise CannotCompute("lengths of its packed sequences are not published")
    pp, vpp = int(c.get("pp", 1)), int(c.get("vp", 1))
    layers = int(c.get("layers", model_of(name).num_hidden_layers))
    extra: dict[str, Any] = {"layout__zero": 3} if int(c.get("fsdp", 0)) else {}
    if bridge.predicts_further(figure):
        extra["model__num_nextn_predict_layers"] = 1
    if str(c.get("routing", "")).startswith(EVEN) or str(c.get("moe", "")).endswith(DROPPED):
        extra["routing__kind"] = "uniform"
    software = software_of(figure)
    recompute = "selective" if "selective" in str(c.get("recompute")) else "none"
    if name.startswith("maxtext"):
        return MODELS[name] + maxtext(figure)
    return (
        MODELS[name]
        + overrides_of(
            **({"model__num_hidden_layers": layers} if "layers" in c else {}),
            **HARDWARE[str(c["gpu"])],
            gpus=int(c["gpus"]),
            **recipe_of(str(c["precision"])),
            layout__tp=int(c.get("tp", 1)),
            layout__cp=int(c.get("cp", 1)),
            layout__pp=pp,
            layout__vpp=vpp,
            layout__ep=int(c.get("ep", 1)),
            layout__schedule="interleaved" if vpp > 1 else "1f1b",
            **{"layout__recompute": recompute, **software},
            layout__stages=bridge.stages(figure, pp, vpp) or stages_of(layers, pp, vpp),
            batch__sequence_length=int(c["seq"]),
            batch__microbatch_size=int(c["mbs"]),
            batch__global_batch_size=int(c["gbs"]),
        )
        + overrides_of(**extra)
        + (bridge.scripted(figure) if bridge.is_bridge(figure) else ())
    )


def maxtext(figure: Figure) -> Overrides:
    """MaxText of NVIDIA's DGX Cloud benchmarking (v24.11.1, maxtext/configure.sh): FSDP over all GPUs, from 64 nodes on
    over 128 of them; kept are the projections of attention and what leaves the feed-forward part; FP8 is Flax's, with
    delayed scaling."""
    c = figure.config
    gpus, narrow = int(c["gpus"]), str(c["precision"]) == "FP8"
    return overrides_of(
        hardware="h100",
        stack="maxtext",
        gpus=gpus,
        layout__tp=1,
        layout__pp=1,
        layout__zero=3,
        layout__replicas=gpus // 128 if gpus >= 512 else 1,
        layout__recompute='["core_attn", "mlp", "layernorm"]',
        precision__recipe="fp8_tensor" if narrow else "bf16",
        **({"precision__scaling": "delayed"} if narrow else {}),
        batch__sequence_length=int(c["seq"]),
        batch__microbatch_size=int(c["mbs"]),
        batch__global_batch_size=int(c["gbs"]),
    )


@cache
def model_of(name: str) -> ModelSpec:
    """The model that a name of `MODELS` stands for."""
    base, *changes = MODELS[name]
    return load_scenario(DENSE, (base, *changes)).model


def rate(figure: Figure) -> float:
    """Tokens per second on each GPU, or the time of a step [s]."""
    one = step(DENSE, run_of(figure), "longest-path")
    return one.seconds if figure.quantity == "step_time" else one.job.tokens_per_step / one.seconds / one.job.gpus
