"""Matches each kernel of a profile with its simulated op, and predicts each op for what was really concurrent."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from simulator.cost.price import launches_of
from simulator.engine.kernel_sequence import ALONE, BANDWIDTH_SHARED, SM_SHARED, Priced
from simulator.ops import AllToAll, Fixed
from simulator.profile.align import Item, align
from simulator.profile.effective import covered, effective_seconds
from simulator.profile.pair import OpSpan
from simulator.profile.recording import Kernel, intervals
from simulator.results.intervals import Interval

WAITING = ("comm.notify", "comm.layout")


@dataclass(slots=True)
class Matched:
    """A simulated op and the kernels it is in the profile; `measured` and `predicted` [s] without gaps."""

    span: OpSpan
    kernels: list[Kernel] = field(default_factory=list)
    measured: float = 0.0
    predicted: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether all of its launches were found (of many tiny ones: half)."""
        needed = launches_of(self.span.priced.op)
        return len(self.kernels) >= (needed / 2 if isinstance(self.span.priced.op.work, Fixed) else needed)


def alone(priced: Priced, gap: float) -> float:
    """Time of one launch alone [s]."""
    count = max(1, launches_of(priced.op))
    return max(0.0, priced.durations[ALONE] - launches_of(priced.op) * gap) / count


def item(span: OpSpan, gap: float) -> Item:
    """One launch of an op, as it is aligned."""
    count = max(1, launches_of(span.priced.op))
    return Item(span.priced.op.cls, alone(span.priced, gap), span.phase, count)


def match(kernels: Sequence[Kernel], spans: Sequence[OpSpan], gap: float) -> list[Matched]:
    """Match by phase and period, in launch order; one entry for every op."""
    wanted: dict[tuple[str, int], list[Matched]] = defaultdict(list)
    for span in spans:
        wanted[span.phase, span.period].append(Matched(span=span))
    seen: dict[tuple[str, int], list[Kernel]] = defaultdict(list)
    for kernel in sorted(kernels, key=lambda k: (k.launched, k.start)):
        if kernel.phase:
            seen[kernel.phase, kernel.period].append(kernel)
    for key, ops in wanted.items():
        _match_phase(seen.get(key, []), ops, gap)
    out = [one for ops in wanted.values() for one in ops]
    _measure(kernels, out)
    _predict(kernels, out, gap)
    return out


def _match_phase(kernels: Sequence[Kernel], ops: Sequence[Matched], gap: float) -> None:
    expanded = [one for one in ops for _ in range(launches_of(one.span.priced.op))]
    items = [item(one.span, gap) for one in expanded]
    for kernel, at in zip(kernels, align([Item(k.cls, k.seconds) for k in kernels], items), strict=True):
        if at >= 0:
            expanded[at].kernels.append(kernel)


def _measure(kernels: Sequence[Kernel], ops: Sequence[Matched]) -> None:
    """Effective times: kernels of the compute streams share the GPU, those concurrent with an all-to-all count with
    their duration."""
    concurrent = ("dispatch", "combine")
    effective = effective_seconds([k for k in kernels if not k.comm and not k.phase.startswith(concurrent)])
    for one in ops:
        one.measured = sum(effective.get(id(k), k.seconds) for k in one.kernels)


def _predict(kernels: Sequence[Kernel], ops: Sequence[Matched], gap: float) -> None:
    """Time of each op under the conditions its own kernels met, each for its part of their time."""
    held = intervals([k for k in kernels if k.cls in WAITING])
    moving = intervals([k for k in kernels if k.cls in ("comm.dispatch", "comm.combine")])
    computing = intervals([k for k in kernels if not k.comm])
    for one in ops:
        priced = one.span.priced
        taken = launches_of(priced.op) * gap
        if isinstance(priced.op.work, AllToAll):
            concurrent = _mean(one.kernels, lambda k: covered(k, computing))
            shares = {ALONE: 1.0 - concurrent, BANDWIDTH_SHARED: concurrent}
        else:
            shares = _conditions(one.kernels, held, moving)
        one.predicted = sum(share * (priced.durations[condition] - taken) for condition, share in shares.items())


def _conditions(kernels: Sequence[Kernel], held: Sequence[Interval], moving: Sequence[Interval]) -> dict[int, float]:
    traffic = _mean(kernels, lambda k: covered(k, moving))
    waiting = min(1.0 - traffic, _mean(kernels, lambda k: covered(k, held)))
    return {ALONE: 1.0 - traffic - waiting, SM_SHARED: waiting, BANDWIDTH_SHARED: traffic}


def _mean(kernels: Sequence[Kernel], part: Callable[[Kernel], float]) -> float:
    """Mean of a part (0 to 1) over kernels, weighted by their times."""
    total = sum(k.seconds for k in kernels)
    return sum(part(k) * k.seconds for k in kernels) / total if total else 0.0
