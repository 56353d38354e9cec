"""Biases of experts, and the bound of their activation, where PyTorch's calls compute them.

Megatron-Core (megatron/core/transformer/moe/experts.py, TEGroupedMLP, 0.14 of 2025-09 to 0.19 of 2026-08; without
--use-transformer-engine-op-fuser): the first GEMMs add their bias and, backward, sum its gradient up. The bias of the
second is weighed by the gate and added expert by expert (`_apply_bias`): a multiplication and an addition for each, and
one concatenation; autograd runs a cast, two multiplications and two sums for each, and one concatenation. A bound of
the activation (gpt-oss) cuts the first GEMMs' output in halves, clamps each and joins them again, and makes a tensor of
a number (megatron/core/fusions/fused_bias_geglu.py, weighted_bias_quick_geglu_impl): PyTorch copies that to the GPU and
waits for the copy (torch/csrc/utils/tensor_new.cpp, internal_new_from_data: a copy that blocks), so that the host
issues what follows when all before is done.

Gate weights are FP32 where DeepEP or Hybrid-EP bring them (token_dispatcher.py: "only supports float32 probs"), and
what they multiply becomes FP32, too; NCCL's all-to-all brings them as the gate made them, in BF16.
"""

from __future__ import annotations

from simulator.dtypes import BF16, FP32
from simulator.graph.block import SegmentBuilder
from simulator.graph.linear import cast, unvectorized
from simulator.graph.shapes import Shapes
from simulator.ops import HostRead, Part, Streaming
from simulator.spec.stack import LIBRARY

HALVES = 2


def by_expert(s: Shapes) -> bool:
    """Whether PyTorch's calls add the biases of experts."""
    return s.model.mlp_bias and s.stack.expert_biases == "eager"


def clamps(s: Shapes) -> bool:
    """Whether PyTorch's calls bound the activation's inputs."""
    return s.model.swiglu_limit > 0.0 and s.stack.expert_biases == "eager"


def parameters_of(s: Shapes) -> int:
    """Parameters of an expert's linear layer."""
    return 2 if s.model.mlp_bias else 1


def bound(builder: SegmentBuilder, s: Shapes, inner: int, *, part: Part = "F") -> None:
    """The first GEMMs' output bounded, forward or (part R) again in backward, before the activation."""
    if not clamps(s):
        return
    again = ".again" if part == "R" else ""
    kept = 0.0 if again or s.activation_again("moe") else HALVES * s.rows * inner * BF16
    half = unvectorized(s.rows * inner, BF16, BF16)
    builder.add(
        f"moe.clamp.halves{again}.eager", "elem.unvectorized", half, part=part, count=HALVES, scales_with_load=True
    )
    joined = cast(HALVES * s.rows * inner, BF16, BF16)
    builder.add(f"moe.clamp.cat{again}.eager", "elem", joined, part=part, saved=kept, scales_with_load=True)
    builder.add(f"moe.offset.read{again}", "wait.host", HostRead(seconds=s.stack.host_read), part=part)


def bound_backward(builder: SegmentBuilder, s: Shapes, inner: int) -> None:
    """The gradient of that, behind the activation's."""
    if not clamps(s):
        return
    half = unvectorized(s.rows * inner, 2 * BF16, BF16)
    builder.add("moe.clamp.halves.bwd.eager", "elem.unvectorized", half, count=HALVES, scales_with_load=True)
    builder.add("moe.clamp.cat.bwd.eager", "elem", cast(HALVES * s.rows * inner, BF16, BF16), scales_with_load=True)


def _weight_bytes(s: Shapes) -> float:
    """Bytes of a gate weight, and of what it has multiplied [B]."""
    return BF16 if s.stack.dispatcher in LIBRARY else FP32


def last_of_add(s: Shapes) -> str:
    """The op with which the biases are added."""
    return f"moe.down.bias.{'narrow' if _weight_bytes(s) > BF16 else 'cat'}.eager"


def add(builder: SegmentBuilder, s: Shapes) -> None:
    """The weighted biases added to the experts' outputs."""
    if not by_expert(s):
        return
    values, wide, many = s.rows * s.model.expert_hidden, _weight_bytes(s), s.local_experts
    each = values / many
    scaled = unvectorized(each, 0.0, wide)
    builder.add("moe.down.bias.weigh.eager", "elem.unvectorized", scaled, count=many, scales_with_load=True)
    builder.add("moe.down.bias.add.eager", "elem", cast(each, BF16 + wide, wide), count=many, scales_with_load=True)
    builder.add("moe.down.bias.cat.eager", "elem", cast(values, wide, wide), scales_with_load=True)
    if wide > BF16:
        builder.add("moe.down.bias.narrow.eager", "elem", cast(values, wide, BF16), scales_with_load=True)


def add_backward(builder: SegmentBuilder, s: Shapes) -> None:
    """Gradients of these biases and of the gate weights that they are multiplied by."""
    if not by_expert(s):
        return
    values, wide, many = s.rows * s.model.expert_hidden, _weight_bytes(s), s.local_experts
    each = values / many
    if wide > BF16:
        builder.add("moe.down.bias.widen.bwd.eager", "elem", cast(values, BF16, wide), scales_with_load=True)
        builder.add("moe.down.bias.narrow.bwd.eager", "elem", cast(each, wide, BF16), count=many, scales_with_load=True)
    product = unvectorized(each, wide, wide)
    builder.add(
        "moe.down.bias.weigh.bwd.eager", "elem.unvectorized", product, count=HALVES * many, scales_with_load=True
    )
    total = Streaming(read=each * wide, written=0.0)
    builder.add("moe.down.bias.sum.bwd.eager", "elem.reduce", total, count=HALVES * many, scales_with_load=True)
    builder.add("moe.down.bias.cat.bwd.eager", "elem", cast(values, BF16, BF16), scales_with_load=True)
