"""Numbers and names of the program in words that need no explanation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from simulator.spec.job import Layout, Module, Routing
    from simulator.spec.precision import Precision
    from simulator.spec.scenario import Scenario
    from simulator.spec.stack import Stack

PHASES = {
    "forward": "forward",
    "backward": "backward",
    "weight": "weight gradients",
    "overlapped": "overlapped",
    "bubble": "bubble",
    "optimizer": "sync and optimizer",
    "other": "other",
}
"""Where a step's time goes."""

BOUNDS = {
    "tensor": "tensor cores",
    "memory": "memory bandwidth",
    "instructions": "instructions, address by address",
    "sm": "SMs granted to it",
    "nvlink": "NVLink bandwidth",
    "ib": "network bandwidth",
    "latency": "latency",
    "fixed": "fixed launch time",
    "wait": "wait for others",
    "host": "the host, or copies to it",
}
"""What limits a kernel."""

BLOCKS = {
    "embed": "embedding",
    "dense": "dense layer",
    "moe": "MoE layer",
    "hash": "MoE layer by table",
    "head": "output head",
    "mtp": "MTP module",
    "dense-kept": "dense layer, not recomputed",
    "moe-kept": "MoE layer, not recomputed",
    "dense-inner": "dense layer, in a group",
    "moe-inner": "MoE layer, in a group",
}

_CLASSES = {
    "attn.fwd": "attention, forward",
    "attn.bwd": "attention, backward",
    "attn.fwd.mxfp8": "attention in MXFP8, forward",
    "attn.bwd.mxfp8": "attention in MXFP8, backward",
    "attn.decode": "attention, decode",
    "attn.decode.mla": "latent attention, decode",
    "attn.decode.fp8": "attention, decode, FP8 cache",
    "attn.decode.index.fp8": "index of sparse attention, decode, FP8 cache",
    "attn.decode.index": "index of sparse attention, decode",
    "attn.decode.mla.fp8": "latent attention, decode, FP8 cache",
    "attn.bwd_aux": "attention, backward: preparation",
    "comm.dispatch": "expert dispatch (all-to-all)",
    "comm.combine": "expert combine (all-to-all)",
    "comm.notify": "all-to-all notify (token counts)",
    "comm.layout": "all-to-all layout (token order)",
    "comm.p2p": "sends between stages",
    "comm.all_gather": "all-gather",
    "comm.all_reduce": "all-reduce",
    "comm.reduce_scatter": "reduce-scatter",
    "comm.all_to_all": "all-to-all",
    "comm.broadcast": "broadcast",
    "comm.tp.all_gather": "all-gather, tensor parallel",
    "comm.tp.reduce_scatter": "reduce-scatter, tensor parallel",
    "comm.tp.all_reduce": "all-reduce, tensor parallel",
    "comm.etp.all_gather": "all-gather, tensor-parallel experts",
    "comm.etp.reduce_scatter": "reduce-scatter, tensor-parallel experts",
    "comm.cp": "context parallel",
    "dropout": "dropout",
    "dequant": "casts from FP8",
    "elem": "elementwise",
    "elem.norm_weight": "gradients of norm weights",
    "elem.small": "elementwise, small",
    "elem.unvectorized": "elementwise, not vectorized",
    "cat.unvectorized": "concatenation, not vectorized",
    "norm.small": "norms, small",
    "swiglu.small": "SwiGLU, small",
    "rope.small": "rotary embedding, small",
    "kvcopy.small": "copies of keys and values, small",
    "quant.small": "casts to FP8, small",
    "permute.small": "token permutation, small",
    "elem.mixed": "sums of BF16 and FP32",
    "copy.heads": "copies of heads",
    "elem.reduce": "sums over heads",
    "elem.strided": "strided copies",
    "embedding": "embedding, forward",
    "embedding.bwd": "embedding, backward",
    "embedding.bwd.table": "embedding, backward (whole table)",
    "kvcopy": "copies of keys and values",
    "gelu": "GELU",
    "host": "the host issues kernels",
    "loss": "loss",
    "loss.bwd": "loss, backward",
    "loss.te": "loss (Transformer Engine)",
    "loss.te.write": "gradient of the loss (Transformer Engine)",
    "norm.fwd": "norms, forward",
    "norm.fwd.narrow": "norms, forward (narrow rows)",
    "norm.bwd": "norms, backward",
    "norm.sums": "norms, backward: sums over rows",
    "optimizer": "optimizer update",
    "permute.expand": "token permutation, expanding",
    "permute.pad": "rows of experts padded",
    "permute.map.count": "token permutation, index map (counting)",
    "permute.map.build": "token permutation, index map (building)",
    "permute.reduce": "token permutation, reducing",
    "quant.chan_t": "casts to FP8, transposed",
    "quant.special": "casts to FP8, combined",
    "quant.amax": "maxima for scales",
    "quant.block": "casts to FP8, per block",
    "quant.column": "casts to FP8, by columns",
    "quant.mxfp8": "casts to MXFP8",
    "quant.nvfp4": "casts to NVFP4",
    "quant.row": "casts to FP8, per row",
    "quant.tensor": "casts to FP8, per tensor",
    "quant.token": "casts to FP8, per token",
    "quant.turned.experts": "casts of experts' rows to FP8, per tensor, with transpose",
    "quant.turned": "casts to FP8, per tensor, with transpose",
    "rope": "rotary embedding",
    "router.topk": "router's choice of experts",
    "router": "router",
    "scale_t": "transposed scales",
    "softmax": "softmax",
    "softmax.wide": "softmax (long rows)",
    "softmax.long": "softmax (very long rows)",
    "swiglu": "SwiGLU",
    "geglu": "GEGLU",
    "silu": "SiLU",
    "wait.host": "wait for the host",
    "wait.slowest": "wait for the most loaded rank",
    "tensormap": "descriptors of grouped matmuls",
    "weight_t": "transposed FP8 weights",
}
_MULTIPLIED = {"bf16": "BF16", "mxfp8": "MXFP8", "nvfp4": "NVFP4"}
_FORMS = {
    "grouped": "routed experts",
    "wgrad": "weight gradients",
    "grouped_wgrad": "weight gradients, routed experts",
    "masked": "routed experts, masked",
    "split": "input gradients",
    "grouped.split": "input gradients, routed experts",
}


def of_class(cls: str) -> str:
    """A kernel class in words: `gemm.fp8.grouped` -> `FP8 matmul, routed experts`.

    Of a class with a more special name, what is known of it, and the rest in brackets: `norms, forward (residual)`.
    """
    known = cls
    while known and known not in _CLASSES:
        known = known.rpartition("@" if "@" in known else ".")[0]
    if known:
        special = cls[len(known) + 1 :].replace(".", ", ")
        return _CLASSES[known] + (f" ({special})" if special else "")
    first, _, rest = cls.partition(".")
    if first != "gemm":
        return cls
    precision, _, form = rest.partition(".")
    kind = _MULTIPLIED.get(precision.partition("@")[0], "FP8")
    return f"{kind} matmul" + (f", {_FORMS.get(form, form)}" if form else "")


_LISTED = re.compile(r"^(.*not calibrated on .*: )([a-z][\w.]*(?:, [a-z][\w.]*)*)$")


def of_warning(warning: str) -> str:
    """A warning of a result with its kernel classes in words."""
    found = _LISTED.match(warning)
    return found[1] + "; ".join(map(of_class, found[2].split(", "))) if found else warning


def of_bound(bound: str) -> str:
    """A limiting resource in words."""
    return BOUNDS.get(bound, bound)


ENDS = ("embed", "head", "mtp")
"""Blocks that are no layers."""
_MIXERS = {
    "sliding": "with a window",
    "chunked": "with chunked attention",
    "sparse": "with sparse attention",
    "blocks": "with chosen blocks of keys",
    "csa": "with chosen entries",
    "hca": "with coarse entries",
    "delta": "with the delta rule",
    "kda": "with Kimi Delta Attention",
    "mamba2": "with Mamba-2",
    "mamba1": "with Mamba-1",
    "conv": "with a short convolution",
    "hybrid": "with attention and Mamba-2",
    "full": "with attention",
    "none": "without attention",
}


def of_block(kind: str) -> str:
    """A block: `MoE layer`, `dense layer with a window`."""
    mixer, _, ffn = kind.rpartition("+")
    plain, narrow = ffn.replace("-bf16", ""), "-bf16" in ffn
    name = BLOCKS.get(plain, "layer" if plain == "none" else plain) + (" in BF16" if narrow else "")
    return f"{name} {_MIXERS.get(mixer, mixer)}" if mixer else name


def of_layers(kind: str) -> str:
    """The same in a list of how many there are: `MoE`, `dense with a window`."""
    return of_block(kind).replace(" layer", "", 1)


_LIMITS = {"communication": "communication that nothing hides", "idle": "nothing runs: waits and the host"}


def of_limit(metric: str) -> str:
    """The limit that a metric `bound_by_..._s` of a serving step counts the time of, in words."""
    bound = metric.removeprefix("bound_by_").removesuffix("_s")
    return _LIMITS.get(bound) or of_bound(bound)


def of_blocks(blocks: Sequence[str]) -> str:
    """The blocks of a stage: `embedding + 3 dense layers + 2 MoE layers`."""
    main = list(blocks[: blocks.index("mtp")]) if "mtp" in blocks else list(blocks)
    modules = blocks.count("mtp")
    parts = []
    for kind in dict.fromkeys(main):
        count, name = main.count(kind), of_block(kind)
        many = kind not in ENDS
        parts.append((f"{count} " if many else "") + (name.replace("layer", "layers", 1) if count > 1 else name))
    if modules:
        parts.append(f"{modules} MTP module" + ("s" if modules > 1 else ""))
    return " + ".join(parts)


def large(value: float) -> str:
    """A count in words: `284.5 billion`."""
    for factor, word in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {word}"
    return f"{value:,.0f}"


def compact(value: float) -> str:
    """A count with a one-letter factor, for narrow columns: `4.79M`."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:#.3g}".rstrip(".") + letter
    return f"{value:#.3g}".rstrip(".")


def dollars(value: float) -> str:
    """An amount of money."""
    return f"${large(value)}" if abs(value) >= 1e6 else f"${value:,.2f}" if abs(value) < 1e3 else f"${value:,.0f}"


def seconds(value: float) -> str:
    """A duration with four significant digits and a unit that suits it."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")):
        if abs(value) >= factor:
            return f"{value / factor:.4g} {unit}"
    return f"{value:.4g} s"


class Unit(NamedTuple):
    """A unit of time that suits a whole table."""

    name: str
    seconds: float

    def of(self, value: float) -> str:
        """A duration [s] in this unit, without its name."""
        return f"{value / self.seconds:.3f}" if value < 100 * self.seconds else f"{value / self.seconds:.1f}"


def unit_for(longest: float) -> Unit:
    """Seconds, or milliseconds where everything is short."""
    return Unit("s", 1.0) if longest >= 1.0 else Unit("ms", 1e-3)


def layer_name(layer: int) -> str:
    """A layer's number; of gradients and parameters, which have none, their name."""
    return str(layer) if layer >= 0 else "gradients"


WAITS = {"load": "uneven loads", "hardware": "slow hardware", "jitter": "late hosts"}
"""Why ranks wait for others."""


def percent(part: float) -> str:
    """A share of one, as a percentage."""
    return f"{100 * part:.1f} %"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with consecutive ones joined: `0, 2-14`."""
    parts: list[str] = []
    first = 0
    for at, number in enumerate(numbers):
        if at + 1 == len(numbers) or numbers[at + 1] != number + 1:
            start = numbers[first]
            parts.append(str(start) if start == number else f"{start}-{number}")
            first = at + 1
    return ", ".join(parts)


def counted(number: int, one: str) -> str:
    """A number of things: "1 variant", "2 variants", "3 microbatches"."""
    ending = "" if number == 1 else "es" if one.endswith("ch") else "s"
    return f"{number} {one}{ending}"


_RECOMPUTED: dict[Module, str] = {
    "core_attn": "the attention core",
    "norm": "all norms",
    "layernorm": "the norms before attention and the feed-forward part",
    "mla_up": "up-projections of latent attention",
    "mla_up_proj": "up-projections of latent attention and their norms",
    "swiglu": "activations of feed-forward parts",
    "moe_act": "activations of routed experts",
    "mlp": "dense feed-forward parts",
    "moe": "experts with their gate and all-to-alls",
    "shared_experts": "shared experts",
    "ops": "all of a layer but the attention core and every second GEMM",
    "layer": "whole layers",
}


def of_precision(precision: Precision) -> str:
    """What GEMMs run in: `FP8`, `FP8 scaled by tensor`."""
    from simulator.spec.precision import RECIPES

    plain = "FP8" if precision.recipe == "fp8" else RECIPES[precision.recipe].words
    layers = precision.bf16_first_layers + precision.bf16_last_layers
    return plain + (f" ({counted(layers, 'layer')} in BF16)" if layers else "")


def of_recompute(layout: Layout, stack: Stack) -> str:
    """What backward computes again."""
    from simulator.spec.recompute import MODULES, recomputed_modules

    modules = recomputed_modules(layout, stack)
    if not modules:
        return "nothing"
    if "layer" in modules and layout.recompute_method == "block":
        return f"the first {counted(layout.recompute_layers, 'layer')} of each stage"
    if "layer" in modules and layout.recompute_layers > 1:
        return f"whole layers, in groups of {layout.recompute_layers}"
    return ", ".join(_RECOMPUTED[name] for name in MODULES if name in modules)


def of_routing(routing: Routing) -> str:
    """How evenly tokens are taken to reach the experts."""
    if routing.kind == "uniform":
        return "every expert-parallel rank gets the same number of tokens"
    if routing.kind == "skewed":
        return f"the most loaded expert-parallel rank gets {routing.max_over_mean:g} times the mean"
    if routing.kind == "hot":
        return f"one expert of every layer gets {routing.hot_expert:g} times the mean, the others share the rest"
    if routing.kind == "given":
        return f"the loads of the {len(routing.loads)} expert-parallel ranks are given, at most {max(routing.loads):g}"
    if routing.kind == "measured":
        return f"tokens per expert as recorded in {routing.file}"
    anew = f", and of {routing.microbatch_cv:g} anew in each microbatch" if routing.microbatch_cv else ""
    return (
        f"popularity of experts sampled with a coefficient of variation of {routing.cv:g} in each layer{anew}"
        f" (seed {routing.seed})"
    )


def of_training_loads(scenario: Scenario) -> str:
    """The same of a training job, with what others measured of gates that are balanced alike."""
    from simulator.routing.published_loads import default_loads_of, is_published, measured_at

    routing, taken = scenario.job.routing, default_loads_of(scenario.model)
    text = of_routing(routing)
    if scenario.job.layout.ep == 1:
        return text
    if routing.kind == "uniform" and taken is not None and taken.even:
        return f"{text}: what exceeds the mean is dropped (foretrain show loads)"
    if taken is None or not is_published(routing, taken):
        return text
    seen = "; a mean rank's waits stand for all, --set routing.ranks=apart has each" if routing.ranks == "mean" else ""
    return (
        f"{text}, as others measured gates that are balanced alike: {measured_at(taken)} on the most loaded expert or"
        f" rank (foretrain show loads){seen}; --set routing.kind=uniform for equal loads"
    )


UNEQUAL = 0.02
"""From this share on by which the busiest rank exceeds the mean, it is said."""

_COUNTED = re.compile(r"(\d+) (?:dense|moe)")


def unequal(stages: Sequence[str], excess: float) -> str:
    """How many stages there are, from how few to how many layers they have, and how much longer the busiest rank
    computes."""
    counts = [sum(int(number) for number in _COUNTED.findall(stage)) for stage in stages]
    span = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{len(counts)} stages of {span} layers, the busiest rank computes {excess:.0%} longer than the mean"


def setup(model: str, gpus: int | None, gpu: str) -> str:
    """What a report is about: `deepseek-v3 on 2,048 x H800 SXM 80GB`."""
    return f"{model} on {'?' if gpus is None else f'{gpus:,}'} x {gpu}"
