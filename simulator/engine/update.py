"""The kernels that change the parameters at the end of a step, and those on gradients before they are reduced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil

from simulator.dtypes import BF16, FP8
from simulator.graph.linear import unvectorized
from simulator.graph.parameters import WEIGHT_BYTES, Held, matrices_by_block
from simulator.graph.precision.casts import CLASS
from simulator.ops import Gemm, HostWork, Op, Streaming, Work
from simulator.spec.model import BlockKind
from simulator.spec.precision import Formats
from simulator.spec.scenario import Scenario
from simulator.spec.states import States

FLAT_GRADIENTS, FLAT_PARAMETERS = 2, 3
"""Copies of all that nanotron flattens around reduce_scatter_coalesced and all_gather_coalesced: its own list and
NCCL's (ProcessGroupNCCL, newLikeFlat); of parameters the empty list, out of NCCL's, out of its own
(huggingface/nanotron, src/nanotron/distributed.py, 2023 to 2025)."""
NEWTON_SCHULZ = 5
"""Iterations that orthogonalise a matrix (arXiv 2502.16982, section 2.1)."""


def own_gradient_ops(held: Held, scenario: Scenario) -> list[Op]:
    """Kernels on a rank's own gradients before they are reduced once a step: their norm, and the scaling to a mean.

    Megatron-Core reads and writes its whole buffer so, whatever part of it the rank updates
    (megatron/core/distributed/param_and_grad_buffer.py, start_grad_sync and check_grads, 2025).

    Parameters
    ----------
    held : parameters of all stages of the rank.
    """
    job, stack = scenario.job, scenario.stack
    size = held.total * scenario.states.gradient_bytes
    ops = []
    if stack.gradient_check:
        ops.append(_op("gradient.check", "elem", Streaming(read=size, written=0.0)))
    if stack.gradient_mean == "before" and job.dp * job.layout.cp > 1:
        ops.append(_op("gradient.scale", "elem", Streaming(read=size, written=size)))
    if stack.ddp_buckets and job.dp > 1:
        moved = 2 * held.total * BF16
        ops.append(_op("gradient.buckets", "elem", Streaming(read=moved, written=moved)))
        if job.layout.zero == 1:
            ops.append(_op("gradient.flatten", "elem", Streaming(read=size, written=size), FLAT_GRADIENTS))
    return ops


def update_ops(held: Held, blocks: Sequence[BlockKind], shards: tuple[int, int], scenario: Scenario) -> list[Op]:
    """Kernels of the update on one rank: gradient norm, the optimizer, clearing the gradients, the FP8 weights.

    Without an optimizer only gradients are cleared.

    Parameters
    ----------
    held, blocks : parameters and blocks of all stages of the rank.
    shards : ranks that dense parameters, and experts, are spread over where ZeRO shards something.
    """
    zero, states = scenario.job.layout.zero, scenario.states
    parts = (shards[0], shards[1]) if zero else (1, 1)
    mine = held.dense / parts[0] + held.experts / parts[1]
    summed = mine if zero >= 2 else held.total
    ops = _changes(held, blocks, parts, scenario) if states.updates else []
    if scenario.stack.ddp_buckets and zero == 1 and scenario.job.dp > 1 and states.updates:
        moved = held.total * BF16
        ops.append(_op("param.flatten", "elem", Streaming(read=moved, written=moved), FLAT_PARAMETERS))
    if scenario.stack.gradients_zeroed:
        cleared = Streaming(read=0.0, written=summed * states.gradient_bytes)
        ops.append(_op("optimizer.zero_grad", "elem", cleared))
    return ops + (_narrow_weights(held, parts, scenario.formats) if states.updates else [])


def _narrow_weights(held: Held, parts: tuple[int, int], formats: Formats) -> list[Op]:
    """The copies of weights that narrow GEMMs read, made once a step; none where they are cast at each use.

    What is gathered narrow is cast by the rank that updates it, and its other form made of it by each rank; else every
    rank casts all that it holds. Scales of whole tensors, if they are the weights' own, need a pass before.
    """
    mine = held.narrow / parts[0] + held.narrow_experts / parts[1]
    whole = held.narrow + held.narrow_experts
    if formats.recipe == "fp8":
        return [_op("optimizer.quant_w", "quant.token", Streaming(read=mine * WEIGHT_BYTES, written=mine * FP8))]
    if not formats.cached_bytes:
        return []
    each, first = formats.record.weight, formats.gathered_bytes < WEIGHT_BYTES
    many, forms = (mine, 1) if first else (float(whole), formats.layouts)
    scaled_first = (formats.record.scaled == "tensor" and formats.scaling == "current") or formats.recipe == "nvfp4"
    read = many * WEIGHT_BYTES
    ops = [_op("optimizer.amax_w", "quant.amax", Streaming(read=read, written=0.0))] if scaled_first else []
    cast = Streaming(read=read, written=many * forms * each)
    ops.append(_op("optimizer.quant_w", CLASS[formats.recipe], cast))
    if first and formats.layouts == 2:
        ops.append(_op("optimizer.turn_w", "weight_t", Streaming(read=whole * each, written=whole * each)))
    return ops


def muon_shard_bytes(held: Held, scenario: Scenario) -> tuple[float, float]:
    """What Muon gathers of the dense matrices and of the experts, in BF16, so that each is whole on the rank that
    orthogonalises it (arXiv 2502.16982, section 2.3, distributed Muon) [B]."""
    if scenario.states.kind != "muon" or not scenario.job.layout.zero:
        return 0.0, 0.0
    return held.matrices * BF16, held.experts * BF16


def _op(name: str, cls: str, work: Work, count: int = 1) -> Op:
    return Op(name=name, cls=cls, part="W", segment="optimizer", stream="compute", work=work, count=count)


def _changes(held: Held, blocks: Sequence[BlockKind], parts: tuple[int, int], scenario: Scenario) -> list[Op]:
    """The gradient norm and the optimizer itself."""
    states, away = scenario.states, scenario.job.offload.optimizer
    mine = held.dense / parts[0] + held.experts / parts[1]
    matrices = held.matrices / parts[0] + held.experts / parts[1] if states.kind == "muon" else 0.0
    kept = states.master_bytes + states.moment_bytes
    second = (states.moment_bytes - states.first_bytes) * matrices
    read = mine * (states.gradient_bytes + kept) - second
    copied = _copied(states, scenario.job.layout.zero)
    apart = scenario.stack.weights_copied and states.masters != "none"
    written = mine * (kept + copied) - second
    ops, each = [], states.gradient_bytes
    if apart and each < states.master_bytes:  # Megatron-Core's distrib_optimizer.py, _copy_model_grads_to_main_grads
        wide = states.master_bytes
        ops.append(_op("optimizer.widen_g", "elem.unvectorized", unvectorized(mine, each, wide)))
        read, each = read + mine * (wide - each), wide
    whole = scenario.stack.clips_whole and scenario.job.layout.zero == 1
    gradients = (held.total if whole else mine) * each
    ops.append(_op("optimizer.grad_norm", "elem", Streaming(read=gradients, written=0.0)))
    if scenario.stack.gradients_clipped:
        ops.append(_op("optimizer.clip", "elem", Streaming(read=gradients, written=gradients)))
    here = (1 - away) * mine
    if away < 1 and scenario.stack.update == "foreach" and states.kind == "adamw":
        ops.append(_foreach(here, states))
    elif away < 1:
        changed = (1 - away) * written - (here * copied if apart else 0.0)
        work = Streaming(read=(1 - away) * read, written=changed, values=here)
        ops.append(_op(f"optimizer.{_NAMES[states.kind]}", "optimizer", work))
        if apart:
            work = Streaming(read=here * states.master_bytes, written=here * copied)
            ops.append(_op("optimizer.copy_w", "elem", work))
    if away:
        ops.append(
            _op("optimizer.host", "optimizer.host", _on_host(away * mine, read / mine, written / mine, scenario))
        )
    return ops + (_orthogonal(blocks, parts, scenario) if states.kind == "muon" else [])


FOREACH = (("p", "p"), ("mg", "m"), ("v", "v"), ("vg", "v"), ("v", "v"), ("v", "v"), ("v", "v"), ("pmv", "p"))
"""What each kernel of AdamW reads and writes: decay of the parameters, first moment, decay of the second, its sum with
the squared gradient, square root, correction of its bias, epsilon, step (torch/optim/adamw.py, _multi_tensor_adamw,
2024; the squared gradient is read once)."""


def _foreach(mine: float, states: States) -> Op:
    """AdamW of so many parameters by a kernel for each of its operations."""
    sizes = {"p": states.master_bytes, "g": states.gradient_bytes, "m": states.first_bytes}
    sizes["v"] = states.moment_bytes - states.first_bytes
    read = sum(sizes[of] for reads, _ in FOREACH for of in reads)
    written = sum(sizes[of] for _, writes in FOREACH for of in writes)
    kernels = len(FOREACH)
    work = Streaming(read=mine * read / kernels, written=mine * written / kernels)
    return _op("optimizer.adam", "elem", work, kernels)


def _on_host(mine: float, read: float, written: float, scenario: Scenario) -> HostWork:
    """The update of `mine` parameters by the CPU, which reads and writes so many bytes of each: gradients are copied
    there, and what GEMMs read is copied back."""
    states, zero = scenario.states, scenario.job.layout.zero
    return HostWork(
        to_host=mine * states.gradient_bytes,
        from_host=mine * (_copied(states, zero) or states.master_bytes),
        memory=mine * (read + written),
        overlapped=scenario.stack.host_update_overlap,
    )


_NAMES = {"adamw": "adam", "adam8bit": "adam8bit", "muon": "muon", "sgd": "sgd"}


def _copied(states: States, zero: int) -> float:
    """Bytes a parameter that the update writes for the GEMMs in addition to what it changes [B].

    None where that is what they read, or where FP32 parameters are cast when they are gathered.
    """
    return WEIGHT_BYTES if states.masters != "none" or (states.parameters == "fp32" and zero < 3) else 0.0


def _orthogonal(blocks: Sequence[BlockKind], parts: tuple[int, int], scenario: Scenario) -> list[Op]:
    """Newton-Schulz iterations of the matrices whose update this rank computes, in BF16.

    An iteration on X (m x n, m <= n) is A = X X^T, B = b A + c A A, X = a X + B X (arXiv 2502.16982, equation 2). The
    matrices are spread over the ranks that share them; each is worked on whole.
    """
    count: Counter[tuple[int, int, int]] = Counter()
    for kind in blocks:
        for rows, columns, many, part in matrices_by_block(kind, scenario.model, scenario.job):
            count[min(rows, columns), max(rows, columns), parts[part]] += many
    ops = []
    for (short, long, shared), many in sorted(count.items()):
        own = NEWTON_SCHULZ * ceil(many / shared)
        name = f"optimizer.newton_schulz.{short}x{long}.{shared}"
        ops += [
            _op(f"{name}.gram", "gemm.bf16", Gemm(m=short, n=short, k=long, precision="bf16"), own),
            _op(f"{name}.square", "gemm.bf16", Gemm(m=short, n=short, k=short, precision="bf16"), own),
            _op(f"{name}.apply", "gemm.bf16", Gemm(m=short, n=long, k=short, precision="bf16"), own),
        ]
    return ops
