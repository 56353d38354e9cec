"""Which layer and phase each kernel of a profile belongs to.

The kernels of the compute streams are aligned with the compute ops of as many simulated layer pairs as the profile
has attention kernels, those of the communication stream with the all-to-alls; so a profile may begin and end anywhere.
Where the program announced ranges (`attn(F)` ...), a kernel can only be an op of its range; in a profile too long to
be aligned they decide alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from simulator.cost.price import launches_of
from simulator.engine.lower import PricedModel
from simulator.profile.align import Item, align
from simulator.profile.match import item
from simulator.profile.pair import Layers, OpSpan, Rows, simulated
from simulator.profile.recording import Kernel, Recording, busy

ANCHORS = ("attn.fwd", "attn.bwd")
MOST_PERIODS = 16
"""Layer pairs that are aligned at once."""
NEEDED = "mlp(F)"
ARRIVING = "dispatch(F)"
"""The experts of a layer (`NEEDED`) start after its tokens have arrived."""


def label(recording: Recording, built: PricedModel) -> None:
    """Give every kernel its phase and period (the number of the layer pair)."""
    counted = Counter(k.cls for k in recording.kernels)
    periods = 1 + max((counted[cls] for cls in ANCHORS), default=0)
    if periods > MOST_PERIODS and any(k.phase for k in recording.kernels):
        return
    plain = Layers(forward=Rows(), backward=Rows())
    spans = simulated(built, [plain] * min(periods, MOST_PERIODS))
    gap = built.scenario.kernel_gap
    compute, comm = by_kind(recording)
    _align(compute, [s for s in spans if s.priced.op.stream == "compute"], gap)
    _align(comm, [s for s in spans if s.priced.op.stream == "comm"], gap)
    _shift(comm, _offset(compute, comm))
    _fill(compute)


def by_kind(recording: Recording) -> tuple[list[Kernel], list[Kernel]]:
    """Kernels of the streams that mostly compute, and of those that mostly communicate, in order of their starts."""
    comm_streams = {
        stream
        for stream, kernels in recording.streams().items()
        if busy([k for k in kernels if k.comm]) > 0.5 * busy(kernels)
    }
    compute = [k for k in recording.kernels if k.stream not in comm_streams]
    return compute, [k for k in recording.kernels if k.stream in comm_streams]


def _align(kernels: Sequence[Kernel], spans: Sequence[OpSpan], gap: float) -> None:
    """Phase and period of each kernel that is an op."""
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    expanded = [span for span in ordered for _ in range(launches_of(span.priced.op))]
    ops = [item(span, gap) for span in expanded]
    found = align([Item(k.cls, k.seconds, k.phase) for k in kernels], ops)
    for kernel, at in zip(kernels, found, strict=True):
        kernel.phase, kernel.period = ("", -1) if at < 0 else (expanded[at].phase, expanded[at].period)


def _offset(compute: Sequence[Kernel], comm: Sequence[Kernel]) -> int:
    """What to add to the periods of communication so that tokens arrive before the experts that work on them."""
    arrived = {k.period: k.end for k in comm if k.phase == ARRIVING and k.cls == "comm.dispatch"}
    votes: Counter[int] = Counter()
    for period in {k.period for k in compute if k.phase == NEEDED}:
        work = [k for k in compute if k.phase == NEEDED and k.period == period and k.cls.endswith(".grouped")]
        begun = min((k.start for k in work), default=None)
        before = [(end, number) for number, end in arrived.items() if begun is not None and end <= begun]
        if before:
            votes[period - max(before)[1]] += 1
    return votes.most_common(1)[0][0] if votes else 0


def _shift(kernels: Sequence[Kernel], offset: int) -> None:
    for kernel in kernels:
        if kernel.phase:
            kernel.period += offset


def _fill(kernels: Sequence[Kernel]) -> None:
    """A kernel that is no op belongs where its neighbours do."""
    phase, period = "", -1
    for kernel in kernels:
        if kernel.phase:
            phase, period = kernel.phase, kernel.period
        else:
            kernel.phase, kernel.period = phase, period
