"""The feed-forward part: dense layers, shared experts, and the pieces that both are made of.

`name` is `dense` or `shared`. With FP8, the output of up_gate is kept in FP8 and the activation is recomputed in
backward together with its cast (DeepSeek-V3 report, section 3.3.3).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from simulator.dtypes import BF16, FP8, fp8_bytes
from simulator.graph import linear
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast, scales, unvectorized
from simulator.graph.mixers import per_layer
from simulator.graph.norm import (
    enter_ffn_backward,
    kept_of_ffn_input,
    leave_ffn,
    leave_ffn_backward,
    norm_forward,
    sum_of_two,
)
from simulator.graph.parallel import gather, regather, scatter, sharded_tokens, shares_input
from simulator.graph.precision.casts import Place
from simulator.graph.shapes import Activated, Shapes
from simulator.ops import Facts, Gemm, Streaming
from simulator.spec.model import ModelSpec
from simulator.spec.precision import HighPrecision, Recipe

ACTIVATIONS = {
    ("silu", True): "swiglu",
    ("gelu", True): "geglu",
    ("silu", False): "silu",
    ("gelu", False): "gelu",
    ("relu", True): "reglu",
    ("relu", False): "relu",
    ("relu2", True): "relu2_glu",
    ("relu2", False): "relu2",
}
"""Kernel class of an activation by `hidden_act` and whether it is gated. All read and write the same bytes, which is
what takes their time; one that a profile has not measured is priced as another, and the result says so."""


PART: dict[Activated, HighPrecision] = {"dense": "dense", "shared": "shared_experts", "moe": "experts"}
"""Whose GEMMs stay in BF16 together (`precision.bf16`)."""


def activation_class(model: ModelSpec) -> str:
    """Kernel class of a model's activation."""
    return ACTIVATIONS[model.hidden_act, model.gated_mlp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ffn:
    """Widths of one rank's share: `up` is 2 x `inner` where the activation is gated (SwiGLU), else `inner`.

    `first` is where its first GEMM stands: shared experts read what the gate reads, not a norm of their own.
    """

    name: Literal["dense", "shared"]
    tokens: int
    hidden: int
    inner: int
    gated: bool
    recipe: Recipe
    first: Place

    @property
    def fp8(self) -> bool:
        """Whether the fine-grained FP8 recipe runs."""
        return self.recipe == "fp8"

    @property
    def up(self) -> int:
        """Output width of the first GEMM."""
        return sum(self.projected)

    @property
    def projected(self) -> tuple[int, ...]:
        """Widths of what the input is projected to: gate and up, or up alone."""
        return (self.inner,) * (2 if self.gated else 1)


def ffn_of(s: Shapes, name: Literal["dense", "shared"]) -> Ffn:
    """The dense feed-forward part or the shared experts of these shapes."""
    model = s.model
    inner = model.intermediate_size if name == "dense" else model.shared_width
    first: Place = "column" if name == "dense" else "alone"
    return Ffn(
        name=name,
        tokens=s.tokens,
        hidden=model.hidden_size,
        inner=inner // s.job.layout.tp,
        gated=model.gated_mlp,
        recipe=s.of_part(PART[name]).recipe,
        first=first,
    )


def eager_activation(
    builder: SegmentBuilder,
    name: Activated,
    rows: int,
    inner: int,
    *,
    gated: bool,
    backward: bool,
    scales_with_load: bool = False,
) -> None:
    """What software without a fused SwiGLU runs next to the multiplication with the up half (`activation_kernel`):
    SiLU (or GELU) forward; backward its gradient, the multiplication for the gradient of the up half, and both halves'
    gradients concatenated. Autograd also keeps silu(gate), for the gradient of the multiplication.
    `scales_with_load`: of routed experts."""
    values = rows * inner
    if squares_apart(builder.shapes, gated=gated):
        _square(builder, name, values, backward=backward, scales_with_load=scales_with_load)
    if not is_eager(builder.shapes, gated=gated):
        return
    direction = "bwd" if backward else "fwd"
    kernel = f"{name}.{builder.shapes.model.hidden_act}.{direction}"
    keeps = not backward and builder.shapes.workload.keeps_activations and not builder.shapes.activation_again(name)
    work = unvectorized(values, (2 if backward else 1) * BF16, BF16)
    facts: Facts = {"scales_with_load": scales_with_load}
    builder.add(kernel, "elem.unvectorized", work, saved=values * BF16 if keeps else 0.0, **facts)
    if backward:
        builder.add(f"{name}.swiglu.up.bwd", "elem", sum_of_two(values), **facts)
        builder.add(f"{name}.swiglu.cat.bwd", "elem", cast(2 * values, BF16, BF16), **facts)


def squares_apart(s: Shapes, *, gated: bool) -> bool:
    """Whether a squared ReLU is a ReLU and a square, each a kernel with a gradient of its own."""
    return s.model.hidden_act == "relu2" and not gated and not (s.stack.relu2_fused and s.stack.swiglu_fused)


def _square(builder: SegmentBuilder, name: Activated, values: int, *, backward: bool, scales_with_load: bool) -> None:
    """The kernels of a square over a ReLU that `activation_kernel` is not: forward the ReLU; backward a copy of its
    output (its first power), that times two, and times the output's gradient, before the gradient of the ReLU
    (PyTorch, torch/csrc/autograd/FunctionsManual.cpp: pow_backward). They keep the ReLU's output instead of its input.
    """
    facts: Facts = {"scales_with_load": scales_with_load}
    if not backward:
        builder.add(f"{name}.relu.fwd", "elem", cast(values, BF16, BF16), **facts)
        return
    for kernel in ("power", "twice"):
        builder.add(f"{name}.square.{kernel}.bwd", "elem", cast(values, BF16, BF16), **facts)
    builder.add(f"{name}.square.bwd", "elem", sum_of_two(values), **facts)


def is_eager(s: Shapes, *, gated: bool) -> bool:
    """Whether kernels of their own compute SwiGLU's parts."""
    return gated and not s.stack.swiglu_fused


def activation_kernel(
    s: Shapes, rows: int, inner: int, *, gated: bool, backward: bool = False, again: bool = False, out: float = BF16
) -> tuple[str, Streaming]:
    """(class, work) of the kernel of SwiGLU (gated) or GELU, fused or not, that writes `out` bytes a value; backward
    with `again` also the recomputed output.

    Not fused, it is a multiplication with a half of the up projection, which is not next to the other in memory.
    """
    if is_eager(s, gated=gated):
        return "elem.unvectorized", unvectorized((2 if again else 1) * rows * inner, 2 * BF16, out)
    if backward:
        own = ".bwd" if s.stack.norm_kernels in ("compiled", "te") else ""
        return activation_class(s.model) + own, activation_backward_work(rows, inner, gated=gated, again=again)
    return activation_class(s.model), activation_work(rows, inner, gated=gated, out=out)


def activation_work(rows: int, inner: int, *, gated: bool, out: float) -> Streaming:
    """Forward of SwiGLU (gated) or GELU: read the up projection in BF16, write `out` bytes a value."""
    return Streaming(read=rows * inner * BF16 * (2 if gated else 1), written=rows * inner * out)


def activation_backward_work(rows: int, inner: int, *, gated: bool, again: bool = False) -> Streaming:
    """Backward: read the up projection and dy, write its gradient; with `again` also the recomputed output."""
    wide = 2 if gated else 1
    written = rows * inner * (wide + (1 if again else 0))
    return Streaming(read=rows * inner * BF16 * (wide + 1), written=written * BF16, values=written)


def persistent(s: Shapes) -> int:
    """Grid of a persistent kernel: all SMs, or those that a stack never gives to the all-to-all."""
    return s.sms - s.job.overlap.comm_sms if s.stack.gemm_sms_reserved else s.sms


def kept_activation(s: Shapes, name: Activated, rows: int, inner: int) -> float:
    """Bytes of the activation's output kept for the weight gradient [B]; nothing where it is recomputed."""
    part = s.of_part(PART[name])
    if s.activation_again(name):
        return 0.0
    return fp8_bytes(rows * inner) if part.fp8 else rows * inner * part.formats.kept_bytes


def kept_up(s: Shapes, rows: int, up: int) -> float:
    """Bytes of the up projection kept for backward [B]."""
    return fp8_bytes(rows * up) if s.fp8 else rows * up * BF16


def _kept_input(s: Shapes, f: Ffn) -> float:
    """Bytes that the first GEMM keeps of its input in addition to what a norm keeps [B]."""
    if f.name == "dense":
        return kept_of_ffn_input(s)
    return f.tokens * f.hidden * s.of_part("shared_experts").formats.copied_bytes


def up(builder: SegmentBuilder, f: Ffn, s: Shapes, *, cast_input: bool) -> None:
    """First GEMM."""
    linear.forward(
        builder,
        f"{f.name}.up_gate",
        f.tokens,
        f.up,
        f.hidden,
        recipe=f.recipe,
        place=f.first,
        cast_input=cast_input,
        saved=kept_up(s, f.tokens, f.up) + _kept_input(s, f),
        matrices=f.projected,
    )


def down(builder: SegmentBuilder, f: Ffn, s: Shapes) -> None:
    """Activation (fused with its cast) and second GEMM."""
    eager_activation(builder, f.name, f.tokens, f.inner, gated=f.gated, backward=False)
    cls, work = activation_kernel(s, f.tokens, f.inner, gated=f.gated, out=FP8 if f.fp8 else BF16)
    builder.add(
        f"{f.name}.swiglu.fwd_quant" if f.fp8 else f"{f.name}.swiglu.fwd",
        cls,
        work,
        saved=kept_activation(s, f.name, f.tokens, f.inner),
    )
    linear.forward(
        builder,
        f"{f.name}.down",
        f.tokens,
        f.hidden,
        f.inner,
        recipe=f.recipe,
        place="row",
        cast_input=False,
        read_by_backward=s.model.norm_placement != "pre",  # by a norm behind the branch
    )


def save(builder: SegmentBuilder, f: Ffn) -> None:
    """FP8 only: the copy of the up projection that backward reads."""
    if f.fp8:
        builder.add(f"{f.name}.up_gate.save_fp8", "quant.token", cast(f.tokens * f.up, BF16, FP8))


def down_backward(
    builder: SegmentBuilder, f: Ffn, s: Shapes, *, gradient_fp8: bool, after: tuple[str, ...] = ()
) -> None:
    """Input gradient of the second GEMM and of the activation. `gradient_fp8`: dy arrives already cast."""
    if f.fp8:
        builder.add(
            f"{f.name}.up_gate.dequant",
            "dequant",
            Streaming(read=f.tokens * f.up * FP8, written=f.tokens * f.up * BF16, blocks=persistent(s)),
            part="R",
            after=after,
        )
        linear.input_gradient(
            builder, f"{f.name}.down", f.tokens, f.hidden, f.inner, recipe="fp8", cast_gradient=not gradient_fp8
        )
        linear.cast_for_wgrad(
            builder, f"{f.name}.down", f.tokens, f.hidden, which="g", read=FP8 if gradient_fp8 else BF16
        )
        if s.activation_again(f.name):
            builder.add(
                f"{f.name}.swiglu.recompute_quant_t",
                "quant.chan_t",
                activation_work(f.tokens, f.inner, gated=f.gated, out=FP8),
                part="R",
            )
        else:
            linear.cast_for_wgrad(builder, f"{f.name}.down", f.tokens, f.inner, which="x", read=FP8)
    else:
        linear.input_gradient(
            builder,
            f"{f.name}.down",
            f.tokens,
            f.hidden,
            f.inner,
            recipe=f.recipe,
            place="row",
        )
    eager_activation(builder, f.name, f.tokens, f.inner, gated=f.gated, backward=True)
    again = s.activation_again(f.name) and not f.fp8
    cls, work = activation_kernel(s, f.tokens, f.inner, gated=f.gated, backward=True, again=again)
    builder.add(f"{f.name}.swiglu.bwd", cls, replace(work, blocks=persistent(s) if f.fp8 else 0))


def up_backward(builder: SegmentBuilder, f: Ffn) -> None:
    """Input gradient of the first GEMM and the casts for its weight gradient."""
    if f.fp8:
        linear.weight_transpose(builder, f"{f.name}.up_gate", f.up, f.hidden)
        builder.add(f"{f.name}.up_gate.quant_g", "quant.token", cast(f.tokens * f.up, BF16, FP8))
        builder.add(f"{f.name}.up_gate.scale_t_g", "scale_t", scales(f.tokens, f.up))
        builder.add(
            f"{f.name}.up_gate.dgrad",
            "gemm.fp8",
            Gemm(m=f.tokens, n=f.hidden, k=f.up, precision="fp8_block"),
        )
        linear.cast_for_wgrad(builder, f"{f.name}.up_gate", f.tokens, f.up, which="g")
        linear.cast_for_wgrad(builder, f"{f.name}.up_gate", f.tokens, f.hidden, which="x")
    else:
        linear.input_gradient(
            builder,
            f"{f.name}.up_gate",
            f.tokens,
            f.up,
            f.hidden,
            recipe=f.recipe,
            place=f.first,
            matrices=f.projected,
        )


def dense_forward(s: Shapes) -> Segment:
    """`mlp.F` of a dense layer."""
    f = ffn_of(s, "dense")
    builder = SegmentBuilder("mlp.F", "F", s)
    with builder.inside("mlp"):
        if not shares_input(s):
            gather(builder, "dense.x", s, f.hidden)
        up(builder, f, s, cast_input=True)
        down(builder, f, s)
        save(builder, f)
        scatter(builder, "dense", s, f.hidden)
    leave_ffn(builder, s)
    per_layer.add(builder, s)
    return builder.done()


def dense_backward(s: Shapes) -> Segment:
    """`mlp.B` of a dense layer."""
    f = ffn_of(s, "dense")
    builder = SegmentBuilder("mlp.B", "I", s)
    per_layer.add_backward(builder, s)
    enter_ffn_backward(builder, s)
    if s.model.mlp_bias:
        linear.bias_gradient(builder, "dense.down", sharded_tokens(s), f.hidden)
    gather(builder, "dense.g", s, f.hidden)
    down_backward(builder, f, s, gradient_fp8=False)
    if s.model.mlp_bias:
        linear.bias_gradient(builder, "dense.up_gate", f.tokens, f.up)
    if s.norm_again("layer") and s.model.norm_placement != "post":
        norm_forward(builder, "norm.ffn.recompute", sharded_tokens(s), f.hidden, part="R")
    regather(builder, "dense.x", s, f.hidden)
    up_backward(builder, f)
    if not shares_input(s):
        scatter(builder, "dense.dx", s, f.hidden, gradient=True)
    leave_ffn_backward(builder, s)
    return builder.done()


def dense_weights(s: Shapes) -> Segment:
    """`mlp.W` of a dense layer."""
    f = ffn_of(s, "dense")
    builder = SegmentBuilder("mlp.W", "W", s)
    per_layer.weights(builder, s)
    linear.weight_gradient(builder, "dense.down", f.tokens, f.hidden, f.inner, recipe=f.recipe, place="row")
    linear.weight_gradient(
        builder,
        "dense.up_gate",
        f.tokens,
        f.up,
        f.hidden,
        recipe=f.recipe,
        place="column",
        matrices=f.projected,
    )
    return builder.done()
