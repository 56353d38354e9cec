"""Which settings of `[precision]` can go together, on which hardware, and which change nothing."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.inputs.problems import Problem
from simulator.spec.mixer import Mixer
from simulator.spec.precision import RECIPES, Precision
from simulator.spec.scenario import Scenario

GATHERED_NARROW = ("fp8_tensor",)
"""Recipes whose weights FSDP2 gathers in FP8 (torchao/float8/config.py, 2026: enable_fsdp_float8_all_gather takes
scales of tensors only)."""
CHOSEN = (Mixer.SPARSE, Mixer.BLOCKS)
"""Mixers whose core is of chosen keys."""
TRAINED_ONLY = ("fp8_block", "fp8_tensor", "fp8_row", "mxfp8", "nvfp4")
"""Recipes that are not modelled of serving."""


def precision_rules(s: Scenario) -> Iterator[Problem]:
    """What the GPU cannot multiply, and settings of training that exclude each other or that nothing reads."""
    yield from _hardware(s)
    yield from _emulated(s)
    own = s.job.precision
    if s.workload.serves:
        yield from _serving(s)
    elif own.recipe in ("bf16", "fp8"):
        yield from _unread(own)
    else:
        yield from _by_layer(s)
    first, last, layers = own.bf16_first_layers, own.bf16_last_layers, s.model.num_hidden_layers
    if first + last > layers:
        yield Problem(
            rule="precision",
            key="precision.bf16_last_layers",
            value=last,
            message=f"with bf16_first_layers {first} are more than the model's {layers} layers",
            suggestion=f"use at most {max(0, layers - first)}",
        )


def _hardware(s: Scenario) -> Iterator[Problem]:
    gpu, record = s.cluster.gpu, RECIPES[s.job.precision.recipe]
    if s.job.precision.recipe == "bf16":
        return
    lacks = "FP8 tensor cores" if gpu.peak.fp8 <= 0 else ""
    if record.blackwell and gpu.architecture != "blackwell":
        lacks = f"tensor cores for {record.words}, which came with Blackwell"
    elif record.gemm == "nvfp4" and gpu.peak.fp4 <= 0:
        lacks = "an FP4 rate in its profile (hardware.gpu.peak.fp4)"
    if lacks:
        yield Problem(
            rule="precision",
            key="precision.recipe",
            value=s.job.precision.recipe,
            message=f"{gpu.name} has no {lacks}",
            suggestion="use bf16" if gpu.peak.fp8 <= 0 else "use bf16, fp8_block or fp8_tensor",
        )


def _emulated(s: Scenario) -> Iterator[Problem]:
    if s.job.precision.recipe == "fp8_block" and s.cluster.gpu.architecture == "blackwell":
        yield Problem(
            rule="precision",
            key="precision.recipe",
            value="fp8_block",
            message="is made for Hopper; Blackwell scales by 32 values itself",
            suggestion="use mxfp8",
            severity="warning",
        )


def _serving(s: Scenario) -> Iterator[Problem]:
    own = s.job.precision
    if own.recipe in TRAINED_ONLY:
        yield _problem("recipe", own.recipe, "is not modelled of serving", "use fp8 or bf16")
    for key in ("bf16", "bf16_first_layers", "bf16_last_layers", "scaling", "weights", "kept", "attention"):
        value = getattr(own, key)
        if value != getattr(Precision(), key):
            yield _problem(key, value, f"is of training; the job has workload {s.job.workload}", "leave it out")


def _unread(own: Precision) -> Iterator[Problem]:
    """Under bf16 there is nothing to set; DeepSeek's recipe is one program, all of whose settings are its own."""
    why = "changes nothing: everything is in BF16" if own.recipe == "bf16" else "is as DeepSeek's program has it"
    keys = ["bf16", "scaling", "weights", "kept", "attention"]
    if own.recipe == "bf16":
        keys += ["bf16_first_layers", "bf16_last_layers"]
    for key in keys:
        value = getattr(own, key)
        if value != getattr(Precision(), key):
            yield _problem(key, value, why, "leave it out, or choose another recipe: fp8_block, fp8_tensor ...")


def _by_layer(s: Scenario) -> Iterator[Problem]:
    own, formats, model = s.job.precision, s.formats, s.model
    if own.scaling is not None and own.recipe != "fp8_tensor":
        yield _problem("scaling", own.scaling, f"changes nothing: {own.recipe} scales by {formats.record.scaled}",
                       "leave it out, or use fp8_tensor")  # fmt: skip
    yield from _core(s)
    delayed = own.recipe == "fp8_tensor" and formats.scaling == "delayed"
    if delayed and own.bf16_first_layers + own.bf16_last_layers:
        key = "bf16_first_layers" if own.bf16_first_layers else "bf16_last_layers"
        yield _problem(key, getattr(own, key), "delayed scaling has no layers in BF16 (Megatron-Core refuses it)",
                       "use precision.scaling=current")  # fmt: skip
    sharded = s.states.parameters == "fp32" and s.job.layout.zero >= 3
    if formats.weights == "recipe" and sharded and own.recipe not in GATHERED_NARROW:
        yield _problem("weights", "recipe", f"FP32 shards are not gathered in {formats.record.words}",
                       "use cast, or fp8_tensor")  # fmt: skip
    recurrent = any(model.of_kind(kind).mixer_of(0).is_recurrent for kind in model.layer_kinds())
    absent = {
        "recurrent": "" if recurrent else "recurrent mixers",
        "mtp": "" if model.num_nextn_predict_layers else "MTP modules",
        "dense": "" if any(kind.ffn == "dense" for kind in model.layer_kinds()) else "dense feed-forward layers",
        "experts": "" if model.is_moe else "experts",
        "shared_experts": "" if model.is_moe and model.shared_width else "shared experts",
    }
    for part in own.bf16:
        if absent.get(part):
            yield _problem("bf16", part, f"{model.name} has no {absent[part]}", "leave it out")
    twice = next((part for at, part in enumerate(own.bf16) if part in own.bf16[:at]), None)
    if twice is not None:
        yield _problem("bf16", twice, "stands there twice", "leave one out")
    if s.stack.loss == "fused_linear" and "head" not in own.bf16:
        yield _problem("bf16", list(own.bf16), "the fused loss runs its head in BF16", 'add "head"')


def _core(s: Scenario) -> Iterator[Problem]:
    """An attention core in the recipe's format: where Transformer Engine has one, and it is in the graph."""
    own, model = s.job.precision, s.model
    if own.attention == "bf16":
        return
    mixers = [model.of_kind(kind).mixer_of(0) for kind in model.layer_kinds()]
    why = ""
    if own.recipe != "mxfp8":
        why = f"is known of mxfp8 only, not of {own.recipe}"
    elif s.stack.norm_kernels != "te" or s.stack.attention != "cudnn" or not s.stack.attention_fused:
        why = f"is Transformer Engine's by cuDNN, and the stack {s.stack.name} has another attention core"
    elif s.job.layout.cp > 1:
        why = "is not known under context parallelism"
    elif "attention" in own.bf16:
        why = "changes nothing: bf16 says that attention stays in BF16"
    elif not any(mixer.attends and not mixer.compresses and mixer not in CHOSEN for mixer in mixers):
        why = f"changes nothing: {model.name} has no layer whose queries attend to all keys before them"
    if why:
        yield _problem("attention", own.attention, why, "use bf16")


def _problem(key: str, value: object, message: str, suggestion: str) -> Problem:
    return Problem(rule="precision", key=f"precision.{key}", value=value, message=message, suggestion=suggestion)
