"""The way between expert-parallel ranks, by dispatcher; none where a rank has all experts (ep = 1).

deepep: layout, notify (barrier and token counts) and the kernels that forward tokens. hybrid_ep: the gates' choices are
gathered from all ranks, then its kernels; no barrier of its own (github.com/deepseek-ai/DeepEP, branch hybrid-ep,
deep_ep/hybrid_ep_buffer.py, 2025). nccl: token counts travel first, then every (token, expert) copy by itself.
allgather: every rank gets all tokens of the group, and a reduce-scatter brings sums home
(NVIDIA/Megatron-LM, megatron/core/transformer/moe/token_dispatcher.py, 2025: MoEAllGatherTokenDispatcher).

What is received is known on the GPU first. Software that needs it on the host (`stack.token_counts`) waits there once a
layer, forward and where a layer is recomputed: until then it cannot issue what follows. Experts that are filled up to a
capacity get as many tokens from everyone: no counts travel (Megatron-Core, --moe-pad-expert-input-to-capacity).
"""

from __future__ import annotations

from typing import Literal

from simulator.dtypes import BF16, FP8
from simulator.graph.block import Segment, SegmentBuilder
from simulator.graph.linear import cast
from simulator.graph.parallel import expert_ranks_per_node, sharded_tokens
from simulator.graph.shapes import Shapes
from simulator.graph.tokens import latent, order, router
from simulator.ops import AllToAll, Collective, HostRead, Notify, Work

COUNT_BYTES = 8.0
"""Bytes of a token count, an int64 [B]."""
CHOICE_BYTES = 1.0
"""Bytes of one token's choice of one expert in the map that Hybrid-EP gathers, a bool [B]."""
Direction = Literal["dispatch", "combine"]


def waits_for_host(s: Shapes) -> bool:
    """Whether the host reads token counts back in each layer."""
    return s.stack.token_counts == "host" or (s.stack.token_counts == "all_to_all" and order.travels(s))


def read_counts(builder: SegmentBuilder, s: Shapes) -> None:
    """The host reads token counts and issues what follows then."""
    if waits_for_host(s):
        builder.add("moe.counts.read", "wait.host", HostRead(seconds=s.stack.host_read))


def work_of(s: Shapes, direction: Direction, *, backward: bool = False) -> Work:
    """Dispatch or combine of this rank's tokens; combine is always BF16 (V3 report, section 3.2.2).

    Backward reuses the layout of the forward, and a combine also returns the gate weights' gradients (DeepEP's
    README, `dispatch_backward`), which Hybrid-EP sends as whole vectors, as it does the weights in a forward dispatch.
    """
    model, ep = s.model, s.job.layout.ep
    each = order.each_bytes(s) if direction == "dispatch" else model.expert_hidden * BF16
    if backward == (direction == "combine"):
        each += order.gate_bytes(s)
    if s.stack.dispatcher == "allgather":
        return Collective(
            kind="all_gather" if direction == "dispatch" else "reduce_scatter",
            bytes=ep * sharded_tokens(s) * each,
            ranks=ep,
            per_node=min(ep, expert_ranks_per_node(s)),
        )
    return AllToAll(
        direction=direction,
        tokens=sharded_tokens(s),
        hidden=model.expert_hidden,
        bytes_per_token=each,
        ranks=ep,
        gate=model.gate,
        cached=backward,
        weighted=backward and direction == "combine",
        imbalance=s.imbalance,
        barrier=s.stack.dispatcher != "deepep",
        per_node=expert_ranks_per_node(s) if s.job.layout.etp * s.job.layout.cp > 1 else 0,
    )


def _small(s: Shapes, size: float, kind: Literal["all_gather", "all_to_all"]) -> Collective:
    """A small message of every rank to all others, `size` bytes altogether."""
    ep = s.job.layout.ep
    return Collective(kind=kind, bytes=size, ranks=ep, per_node=min(ep, expert_ranks_per_node(s)))


def _before_dispatch(builder: SegmentBuilder, s: Shapes, last: str) -> tuple[str, ...]:
    """What ranks send each other before tokens travel. Returns what the all-to-all still waits for."""
    notify = Notify(ranks=s.job.layout.ep, tokens=s.tokens)
    experts, ep = s.model.n_routed_experts, s.job.layout.ep
    match s.stack.dispatcher:
        case "deepep":
            builder.add("moe.dispatch.fwd.layout", "comm.layout", notify, after=(last,))
            builder.add("moe.dispatch.fwd.notify", "comm.notify", notify)
        case "hybrid_ep":
            size = ep * sharded_tokens(s) * experts * CHOICE_BYTES
            builder.add("moe.choices", "comm.ep.counts", _small(s, size, "all_gather"), after=(last,))
        case "nccl" if s.stack.token_counts == "capacity":
            return (last,)
        case "nccl":
            builder.add(
                "moe.counts.a2a", "comm.ep.counts", _small(s, experts * COUNT_BYTES, "all_to_all"), after=(last,)
            )
        case "allgather":
            size = ep * sharded_tokens(s) * experts * (CHOICE_BYTES + BF16)
            builder.add("moe.choices", "comm.ep.counts", _small(s, size, "all_gather"), after=(last,))
    return ()


def dispatch(s: Shapes) -> tuple[Segment, ...]:
    """`dispatch.F`: what ranks send each other, then the all-to-all; the host's wait alone where nothing travels."""
    builder = SegmentBuilder("dispatch.F", "F", s, "comm")
    builder.unit = "moe"
    last = router.last_of_forward(s)
    if not order.travels(s):
        if waits_for_host(s):
            builder.add("moe.counts.read", "wait.host", HostRead(seconds=s.stack.host_read), after=(last,))
            return (builder.done(),)
        return ()
    after = _before_dispatch(builder, s, last)
    read_counts(builder, s)
    builder.add("moe.dispatch.fwd.a2a", "comm.dispatch", work_of(s, "dispatch"), after=after)
    return (builder.done(),)


def arrived(s: Shapes, name: str) -> tuple[str, ...]:
    """What the experts wait for: the all-to-all `name`, or the host where nothing travels."""
    if order.travels(s):
        return (name,)
    return ("moe.counts.read",) if waits_for_host(s) and name == "moe.dispatch.fwd.a2a" else ()


def _segment(s: Shapes, segment: str, name: str, direction: Direction, after: str) -> tuple[Segment, ...]:
    """Notify and all-to-all after the op `after`."""
    if not order.travels(s):
        return ()
    builder = SegmentBuilder(segment, "F" if segment.endswith("F") else "I", s, "comm")
    builder.unit = "moe"
    waits: tuple[str, ...] = (after,)
    if s.stack.dispatcher == "deepep":
        builder.add(f"{name}.notify", "comm.notify", Notify(ranks=s.job.layout.ep, tokens=s.tokens), after=waits)
        waits = ()
    suffix = "a2a" if segment.endswith("F") else f"a2a_{direction}"
    work = work_of(s, direction, backward=segment.endswith("B"))
    kept = latent.kept(s) if segment == "combine.F" and not order.every_copy_travels(s) else 0.0
    builder.add(f"{name}.{suffix}", f"comm.{direction}", work, after=waits, saved=kept)
    return (builder.done(),)


def combine(s: Shapes, last: str) -> tuple[Segment, ...]:
    """`combine.F`: the expert outputs travel home in BF16, after the op `last`."""
    return _segment(s, "combine.F", "moe.combine.fwd", "combine", last)


def combine_backward(s: Shapes) -> tuple[Segment, ...]:
    """`combine.B`: the gradient of the combine is a dispatch with the cached layout; in FP8 it is cast before."""
    if not order.travels(s) and not s.fp8:
        return ()
    builder = SegmentBuilder("combine.B", "I", s, "comm")
    builder.unit = "moe"
    t, h = sharded_tokens(s), s.model.expert_hidden
    if s.fp8:
        builder.add("moe.combine.bwd.quant", "quant.token", cast(t * h, BF16, FP8))
    if order.travels(s):
        if s.stack.dispatcher == "deepep":
            builder.add("moe.combine.bwd.notify", "comm.notify", Notify(ranks=s.job.layout.ep, tokens=s.tokens))
        builder.add("moe.combine.bwd.a2a_dispatch", "comm.dispatch", work_of(s, "dispatch", backward=True))
    return (builder.done(),)


def gradient_arrived(s: Shapes) -> tuple[str, ...]:
    """What the experts' backward waits for."""
    if order.travels(s):
        return ("moe.combine.bwd.a2a_dispatch",)
    return ("moe.combine.bwd.quant",) if s.fp8 else ()


def dispatch_backward(s: Shapes, last: str) -> tuple[Segment, ...]:
    """`dispatch.B`: the gradient of the dispatch is a combine, after the op `last`."""
    return _segment(s, "dispatch.B", "moe.dispatch.bwd", "combine", last)
