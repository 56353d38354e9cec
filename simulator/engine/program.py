"""From blocks to a program: the kernel sequences of an action, their streams, and what each waits for.

An action is a lone forward (F), full backward (B), input gradient (I), weight gradient (W) of one stage, or an
overlapped pair. Equal actions share one program.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from math import hypot
from weakref import WeakKeyDictionary

from simulator.cost.pieces import SPLITS, gathered, scattered
from simulator.cost.price import wait_cost
from simulator.engine.kernel_sequence import ALONE, COLLECTIVE, KernelSequence, Kind, Priced, sequence_of
from simulator.engine.tasks import COMM, COMPUTE, FROM_HOST, SYNC, TO_HOST
from simulator.graph.block import Block, Segment
from simulator.ops import AllToAll, Attention, Collective, Gemm, HostRead, Notify, Op, PointToPoint, Streaming, Wait

Pricer = Callable[[Op], Priced]
"""Prices one op under the four conditions."""


@dataclass(frozen=True, slots=True)
class ProgramStep:
    """One kernel sequence of a program. A step with no `waits` that is first on its stream starts with the action.

    Parameters
    ----------
    sequence : the kernels.
    stream : `COMPUTE` or `COMM`.
    waits : earlier steps that it waits for, besides its predecessor on the stream.
    forward : whether it belongs to a forward, also in an overlapped pair.
    block : number of its block on the stage.
    microbatch : which microbatch it belongs to, of two that overlap in serving.
    """

    sequence: KernelSequence
    stream: int
    waits: tuple[int, ...]
    forward: bool = True
    block: int = 0
    microbatch: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of an action, in program order.

    Parameters
    ----------
    steps : the steps.
    tails : steps with which the action ends. Its sends start then, as in the published DualPipe, which posts them after
        the whole chunk.
    forward_start, backward_start : first step of each block's forward and backward (-1: none, for example an embedding
        whose weight gradients run later).
    wgrad_end : last step of each block's weight gradients.
    offloads, reloads : by block, the step that copies what it keeps to the host, or back.
    """

    steps: tuple[ProgramStep, ...]
    tails: tuple[int, ...]
    forward_start: tuple[int, ...] = ()
    backward_start: tuple[int, ...] = ()
    wgrad_end: tuple[int, ...] = ()
    offloads: Mapping[int, int] = field(default_factory=dict)
    reloads: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """The copies of what a stage's layers keep, by block: to the host and back. One layer's copy may be on its way
    while the next layer runs; the one after that waits for it.

    Parameters
    ----------
    to_host : behind a block's forward.
    from_host : before a block's backward, from when the block behind it begins.
    """

    to_host: Mapping[int, KernelSequence] = field(default_factory=dict)
    from_host: Mapping[int, KernelSequence] = field(default_factory=dict)


NO_COPIES = Copies()


OUT = "out.B"
"""The segment of the copies that a plain all-to-all carries in backward (`simulator.graph.moe`)."""


@dataclass(frozen=True, slots=True)
class PlacedSegment:
    """A segment in program order.

    Parameters
    ----------
    segment : the segment.
    waits_for_all_to_all : its first compute kernels wait for the all-to-all that ended the block before.
    block : number of its block on the stage.
    microbatch : which microbatch it belongs to, of two that overlap in serving.
    """

    segment: Segment
    waits_for_all_to_all: bool
    block: int
    microbatch: int = 0

    @property
    def leads(self) -> bool:
        """Whether it is about the all-to-all behind it, and no part of attention or the experts."""
        return self.segment.name == OUT


def _units(segments: Sequence[PlacedSegment]) -> tuple[list[PlacedSegment], list[list[PlacedSegment]]]:
    """Leading comm segments, and units: a compute segment with what follows it (comm, weight gradients)."""
    lead: list[PlacedSegment] = []
    units: list[list[PlacedSegment]] = []
    for placed in segments:
        starts = placed.segment.stream == "compute" and placed.segment.direction != "W"
        if starts or (not units and placed.segment.direction == "W"):
            units.append([placed])
        elif units:
            units[-1].append(placed)
        else:
            lead.append(placed)
    return lead, units


def _in_issue_order(unit: list[PlacedSegment]) -> list[PlacedSegment]:
    """Compute, then its all-to-all, then deferred weight gradients, which are issued last."""
    return [unit[0], *sorted(unit[1:], key=lambda placed: placed.segment.stream != "comm")]


def forward_segments(blocks: Sequence[Block]) -> list[PlacedSegment]:
    """All forward segments of a stage in program order."""
    return [
        PlacedSegment(segment, i == 0 and b > 0, b)
        for b, block in enumerate(blocks)
        for i, segment in enumerate(block.forward)
    ]


def backward_segments(blocks: Sequence[Block], *, wgrad: bool, dgrad: bool) -> list[PlacedSegment]:
    """All backward segments of a stage in program order; the last block comes first."""
    placed = []
    for number, block in reversed(list(enumerate(blocks))):
        for segment in block.backward:
            if wgrad if segment.direction == "W" else dgrad:
                placed.append(PlacedSegment(segment, False, number))
    return placed


def order_alone(segments: Sequence[PlacedSegment]) -> list[PlacedSegment]:
    """Program order of a lone action."""
    lead, units = _units(segments)
    return lead + [placed for unit in units for placed in _in_issue_order(unit)]


def order_pair(forward: Sequence[PlacedSegment], backward: Sequence[PlacedSegment]) -> list[PlacedSegment]:
    """Program order of an overlapped pair: backward and forward compute segments alternate, forward first.

    For a MoE layer against a MoE layer this is ATTN(F) | MLP(B) MLP(W) MLP(F) ATTN(B) ATTN(W) ATTN(F) | ... on the
    compute stream and COMBINE(B) | DISPATCH(F) DISPATCH(B) COMBINE(F) COMBINE(B) | ... on the other (DeepSeek-V3
    report, figure 4, and DeepSeek's public training profile).
    """
    lead, back = _units(backward)
    first, ahead = _units(forward)
    if not lead and back and len(back[0]) > 1 and back[0][1].segment.stream == "comm" and back[0][0].leads:
        lead, back = back[0], back[1:]  # the copies before the first all-to-all, and it, go ahead of any forward
    out = lead + first
    for index in range(max(len(back), len(ahead))):
        for units in (ahead, back):
            if index < len(units):
                out.extend(_in_issue_order(units[index]))
    return out


def _pieces(segment: Segment) -> Iterator[tuple[Kind, list[Op]]]:
    """Cut a segment where an op waits for another stream and behind what the host reads, and a comm segment by what its
    kernels do."""
    kind_now: Kind | None = None
    piece: list[Op] = []
    for op in segment.ops:
        kind: Kind = "collective" if isinstance(op.work, (Collective, PointToPoint)) else "compute"
        if segment.stream == "comm":
            kind = "all_to_all" if isinstance(op.work, (AllToAll, Collective)) else "work"
            kind = "notify" if isinstance(op.work, Notify) else kind
        if piece and (kind != kind_now or op.after or isinstance(piece[-1].work, HostRead)):
            assert kind_now is not None
            yield kind_now, piece
            piece = []
        kind_now = kind
        piece.append(op)
    if piece and kind_now is not None:
        yield kind_now, piece


class _Assembler:
    """Turns placed segments into steps; local to `assemble`."""

    def __init__(self, price: Pricer, imbalance: float, resampled_per_layer: bool, collectives: int) -> None:
        self.price = price
        self.collectives = collectives
        self.imbalance = imbalance
        self.resampled_per_layer = resampled_per_layer
        self.experts: dict[str, float] = defaultdict(float)
        self.steps: list[ProgramStep] = []
        self.owners: dict[str, dict[str, int]] = defaultdict(dict)
        self.last = {COMPUTE: -1, COMM: -1, SYNC: -1}
        self.loose: dict[str, int] = {}
        self.blocking: int | None = None
        self.forward_start: dict[int, int] = {}
        self.backward_start: dict[int, int] = {}
        self.wgrad_end: dict[int, int] = {}
        self.offloads: dict[int, int] = {}
        self.reloads: dict[int, int] = {}
        self.pending: list[int] = []

    def reload(self, block: int, copy: KernelSequence) -> None:
        """Bring back what a block keeps, before its backward; its first kernels wait for it."""
        begun = [at for at in self.backward_start.values() if at >= 0]
        self.reloads[block] = len(self.steps)
        self.pending.append(len(self.steps))
        self.steps.append(ProgramStep(copy, FROM_HOST, (max(begun),) if begun else (), False))

    def offload(self, block: int, copy: KernelSequence) -> None:
        """Send away what a block keeps, behind its forward; the block after the next waits for it."""
        self.pending += [at for other, at in self.offloads.items() if other < block][-1:]
        self.offloads[block] = len(self.steps)
        waits = {at for at in self.last.values() if at >= 0}
        self.steps.append(ProgramStep(copy, TO_HOST, tuple(sorted(waits))))

    def add(self, placed: PlacedSegment) -> None:
        """Append the kernel sequences of one segment."""
        half = "F" if placed.segment.direction == "F" else "B"
        (self.forward_start if half == "F" else self.backward_start).setdefault(placed.block, len(self.steps))
        home = COMM if placed.segment.stream == "comm" else COMPUTE
        whose = f"{half}{placed.microbatch}"
        owner = self.owners[whose]
        for index, sequence in enumerate(self._with_waits(sequences_of(placed.segment, self.price), whose)):
            stream = self.collectives if sequence.kind == "collective" else home
            waits = {owner[name] for name in sequence.ops[0].op.after}
            if self.blocking is not None and stream == COMPUTE:
                waits.add(self.blocking)
                self.blocking = None
            if stream != COMPUTE and (index == 0 or home == COMPUTE) and self.last[COMPUTE] >= 0:
                waits.add(self.last[COMPUTE])  # an all-to-all is issued after the compute before it
            if stream == COMPUTE and self.pending:
                waits.update(self.pending)
                self.pending.clear()
            if stream == COMPUTE and placed.waits_for_all_to_all and index == 0 and whose in self.loose:
                waits.add(self.loose[whose])
            self.last[stream] = len(self.steps)
            owner.update(dict.fromkeys([priced.op.name for priced in sequence.ops], len(self.steps)))
            if sequence.kind == "all_to_all":
                self.loose[whose] = len(self.steps)
            if sequence.kind == "collective":
                self.blocking = len(self.steps)  # compute after a collective needs its result
            place = (placed.block, placed.microbatch)
            self.steps.append(ProgramStep(sequence, stream, tuple(sorted(waits)), half == "F", *place))
        if half == "B":
            self.wgrad_end[placed.block] = len(self.steps) - 1

    def _with_waits(self, sequences: list[KernelSequence], whose: str) -> list[KernelSequence]:
        """Lengthen each barrier by the wait for the most loaded rank: its experts' extra time since the last barrier.

        A pair works on two layers between barriers. If the most loaded rank is always the same, its extra times add up;
        if loads are resampled for each layer, the two spreads add up as independent ones.
        """
        if self.imbalance <= 1.0:
            return sequences
        out = []
        for sequence in sequences:
            self.experts[whose] += sum(p.durations[ALONE] for p in sequence.ops if p.op.scales_with_load)
            if sequence.kind == "notify" or _sums_up(sequence):
                times = self.experts.values()
                both = hypot(*times) if self.resampled_per_layer else sum(times)
                extra = waiting((self.imbalance - 1.0) * both, sequence.ops[-1].op)
                self.experts.clear()
                out.append(sequence_of(sequence.kind, sequence.name, [*sequence.ops, extra]))
            else:
                out.append(sequence)
        return out


def _sums_up(sequence: KernelSequence) -> bool:
    """Whether it ends with an all-to-all that waits for the tokens of all ranks with no barrier before it."""
    work = sequence.ops[-1].op.work
    if isinstance(work, Collective):
        return sequence.ops[-1].op.stream == "comm"
    return isinstance(work, AllToAll) and (work.barrier or (work.low_latency and work.direction == "combine"))


def waiting(seconds: float, barrier: Op) -> Priced:
    """The wait at a barrier as an op of its own [s]."""
    work = Wait(seconds=seconds)
    op = replace(barrier, name=f"{barrier.name}.wait", cls="wait.slowest", work=work, after=())
    return Priced(op=op, cost=wait_cost(work), durations=(seconds,) * 4)


def assemble(
    order: Sequence[PlacedSegment],
    price: Pricer,
    imbalance: float,
    resampled_per_layer: bool,
    copies: Copies = NO_COPIES,
    *,
    collectives: int = COMM,
) -> Program:
    """The program of segments in program order. Op names are unique per block, so later blocks overwrite earlier.

    `imbalance`: load of the most loaded rank over the mean; `resampled_per_layer`: which rank that is changes from
    layer to layer; `collectives`: the stream of collectives that compute waits for.
    """
    assembler = _Assembler(price, imbalance, resampled_per_layer, collectives)
    ends = {placed.block: at for at, placed in enumerate(order) if placed.segment.direction == "F"}
    for at, placed in enumerate(order):
        block, forward = placed.block, placed.segment.direction == "F"
        if placed.segment.direction == "B" and block in copies.from_host and block not in assembler.reloads:
            assembler.reload(block, copies.from_host[block])
        assembler.add(placed)
        if forward and ends[block] == at and block in copies.to_host:
            assembler.offload(block, copies.to_host[block])
    return Program(
        steps=tuple(assembler.steps),
        tails=tuple(sorted(at for at in assembler.last.values() if at >= 0)),
        forward_start=tuple(assembler.forward_start[block] for block in sorted(assembler.forward_start)),
        backward_start=tuple(
            assembler.backward_start.get(block, -1) for block in range(max(assembler.backward_start, default=-1) + 1)
        ),
        wgrad_end=tuple(assembler.wgrad_end[block] for block in sorted(assembler.wgrad_end)),
        offloads=assembler.offloads,
        reloads=assembler.reloads,
    )


_SEQUENCES: WeakKeyDictionary[Pricer, dict[int, tuple[Segment, list[KernelSequence]]]] = WeakKeyDictionary()
"""Kernel sequences by pricer and segment (kept alive, so that its id is not reused): equal layers are priced once."""


def sequences_of(segment: Segment, price: Pricer) -> list[KernelSequence]:
    """The kernel sequences of one segment; later calls return the same objects."""
    known = _SEQUENCES.setdefault(price, {})
    if id(segment) not in known:
        known[id(segment)] = segment, _sequences(segment, price)
    return known[id(segment)][1]


def _sequences(segment: Segment, price: Pricer) -> list[KernelSequence]:
    pieces = [(kind, [price(op) for op in ops]) for kind, ops in _pieces(segment)]
    sequences = []
    for at, (kind, ops) in enumerate(pieces):
        if kind == "collective" and ops[0].op.concurrent_with != "nothing":
            before = pieces[at - 1][1] if at else []
            after = pieces[at + 1][1] if at + 1 < len(pieces) else []
            sequences.append(sequence_of(kind, segment.name, [exposed(each, before, after, price) for each in ops]))
        else:
            sequences.append(sequence_of(kind, segment.name, ops))
    return sequences


def exposed(collective: Priced, before: Sequence[Priced], after: Sequence[Priced], price: Pricer) -> Priced:
    """The exposed time of a collective that is overlapped with a kernel: what it adds to the kernel's.

    Overlapped with a kernel that does not need it, a `whole` collective exposes what exceeds the kernel's time G, and
    what the kernel loses while the collective holds SMs: the kernel takes G' if the collective is long, and does C/G'
    of its work during a short one.
    """
    work = collective.op.work
    assert isinstance(work, (Collective, PointToPoint))
    feeds = isinstance(work, PointToPoint) or work.kind == "all_gather"
    side = after if feeds else list(reversed(before))
    first = next((at for at, p in enumerate(side) if isinstance(p.op.work, (Gemm, Attention))), None)
    if first is None:
        return collective
    kernel = side[first]
    time, alone = collective.durations[ALONE], kernel.durations[ALONE]
    if collective.op.concurrent_with == "whole" or isinstance(work, PointToPoint):
        slowed = alone + collective.cost.held * (kernel.durations[COLLECTIVE] - alone)
        rest = max(time, time + alone * (1.0 - time / slowed)) - alone
    else:
        fed = of_one_input(side[first:]) if feeds else [kernel]
        rest = in_pieces(collective, fed, work, price) - sum(one.durations[ALONE] for one in fed)
    rest = max(0.0, rest)  # which rounding may miss
    left = min(1.0, rest / time) if time else 0.0  # the other bytes cross the links during the kernel
    cost = collective.cost
    cost = replace(cost, nic_bytes=left * cost.nic_bytes, nvlink_bytes=left * cost.nvlink_bytes)
    return replace(collective, cost=cost, durations=(rest,) * 4)


def of_one_input(kernels: Sequence[Priced]) -> list[Priced]:
    """The first kernel, and GEMMs right behind it of the same rows: several layers that read what one gather brings."""
    first = kernels[0].op.work
    if not isinstance(first, Gemm):
        return [kernels[0]]
    works = ((p, p.op.work) for p in kernels)
    same = takewhile(lambda one: isinstance(one[1], Gemm) and (one[1].m, one[1].k) == (first.m, first.k), works)
    return [p for p, _ in same]


def in_pieces(collective: Priced, kernels: Sequence[Priced], work: Collective, price: Pricer) -> float:
    """Time of a collective and the kernels that it feeds, or the one that it drains, in pieces [s]
    (`simulator.cost.pieces`).

    Attention cut into one chunk per rank and pipelined: comm time C and G in n chunks take max(C, G) + min(C, G)/n
    (Ring Attention, arXiv 2310.01889).
    """
    op, gemm, ranks = kernels[0].op, kernels[0].op.work, work.ranks
    time, alone = collective.durations[ALONE], sum(one.durations[ALONE] for one in kernels)
    if not isinstance(gemm, Gemm) or gemm.form != "dense":
        return max(time, alone) + min(time, alone) / ranks
    if collective.op.concurrent_with == "pipeline":
        piece = price(replace(op, work=replace(gemm, n=-(-gemm.n // SPLITS), left=work.sms))).durations[ALONE]
        return max(alone, scattered(time, piece, SPLITS, sent=SPLITS))
    rows = -(-gemm.m // ranks)
    pieces = [replace(one.op, work=replace(one.op.work, m=rows)) for one in kernels if isinstance(one.op.work, Gemm)]
    piece = sum(price(each).durations[ALONE] for each in pieces)
    if work.kind == "all_gather":
        return max(alone, gathered(time, piece, ranks))
    sums = Streaming(read=work.bytes, written=work.bytes / ranks)
    end = price(Op(name="sums", cls="elem", part=op.part, segment=op.segment, work=sums)).durations[ALONE]
    return end + max(alone, scattered(time, piece, ranks, sent=ranks - 1))


def filled_and_rest(blocks: Sequence[Block]) -> tuple[list[PlacedSegment], list[PlacedSegment]]:
    """A stage's input gradients, with the weight gradients of an earlier microbatch behind each all-to-all; and those
    behind the last input gradient, which hands the stage's gradient on and must not wait for them."""
    order = order_alone(backward_segments(blocks, wgrad=True, dgrad=True))
    end = max((at for at, placed in enumerate(order) if placed.segment.direction == "B"), default=-1) + 1
    return order[:end], order[end:]


def lone_program(
    kind: str,
    blocks: Sequence[Block],
    price: Pricer,
    imbalance: float = 1.0,
    resampled_per_layer: bool = False,
    copies: Copies = NO_COPIES,
    filled: bool = False,
) -> Program:
    """Program of a lone F, B, I or W of a stage; `filled`: of an I whose waits weight gradients fill, or of the W that
    has the rest of them."""
    if kind == "F":
        return assemble(order_alone(forward_segments(blocks)), price, imbalance, resampled_per_layer, copies)
    if filled:
        order, rest = filled_and_rest(blocks)
        return assemble(order if kind == "I" else rest, price, imbalance, resampled_per_layer, copies)
    back = backward_segments(blocks, wgrad=kind != "I", dgrad=kind != "W")
    return assemble(order_alone(back), price, imbalance, resampled_per_layer, copies)


def pair_program(
    ahead: Sequence[Block],
    back: Sequence[Block],
    price: Pricer,
    imbalance: float = 1.0,
    resampled_per_layer: bool = False,
    copies: Copies = NO_COPIES,
) -> Program:
    """Program of a forward of one stage overlapped with a full backward of another."""
    return assemble(
        order_pair(forward_segments(ahead), backward_segments(back, wgrad=True, dgrad=True)),
        price,
        imbalance,
        resampled_per_layer,
        copies,
    )


def sequential_program(
    ahead: Sequence[Block],
    back: Sequence[Block],
    price: Pricer,
    imbalance: float = 1.0,
    resampled_per_layer: bool = False,
    copies: Copies = NO_COPIES,
) -> Program:
    """A pair as software without overlap runs it: the forward, then the full backward."""
    order = order_alone(forward_segments(ahead))
    order += order_alone(backward_segments(back, wgrad=True, dgrad=True))
    return assemble(order, price, imbalance, resampled_per_layer, copies)
