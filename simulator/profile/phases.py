"""Forward, backward and optimizer of a profile without marks of layers, its steps, and the repetition of its layers.

Phases come from the CPU where it was recorded (`scopes`), else from the thread that launched a kernel, else from kernel
names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np

from simulator.profile.names import known_class
from simulator.profile.recording import Kernel, Recording
from simulator.profile.scopes import BACKWARD, FORWARD, OPTIMIZER, covers

BACKWARD_ONLY = ("attn.bwd", "norm.bwd", "embedding.bwd", "loss.bwd")
FORWARD_ONLY = ("attn.fwd", "embedding")
NAMES = "kernel names"
MOST_COMPARED = 20_000
"""Kernels of a forward in which a repetition is sought; the time grows with their square."""
FEWEST_LAYERS = 3
"""Repetitions of a kernel sequence that make it a layer."""
SHORTEST = 4
"""Kernels of a layer, at least: fewer are a loop within one."""
MOSTLY = 0.5
"""Part of a repeated sequence from which on what repeats within it are its layers: it is then a whole forward, one of
several microbatches. Less is a loop within a layer, as over queries, keys and values."""
ONE_LAUNCH = 0.5
"""Part of kernels that share their launch with others from which on a profile is taken for one of CUDA graphs."""
STARTING = ("gemm", "attn", "embedding", "convolution")
"""Kernels with which a forward begins; behind an optimizer others still clip, cast or gather."""
INPUT = "Memcpy HtoD"
"""What copies the next step's input from the host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The kernels of one step in launch order, and from its first kernel to the first of the next one [s]."""

    kernels: list[Kernel]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """A kernel sequence that a forward repeats.

    Parameters
    ----------
    count : repetitions, one after another.
    kernels : kernels of each.
    seconds : median time from one to the next [s].
    within : repetitions of what they are in: microbatches, forwards of an inference.
    """

    count: int
    kernels: int
    seconds: float
    within: int = 1


def give_phases(recording: Recording) -> str:
    """Give each kernel `forward`, `backward` or `optimizer`; returns where that comes from."""
    ordered = in_order(recording.kernels)
    graphs = len({(k.thread, k.launched) for k in ordered}) < ONE_LAUNCH * len(ordered)
    threads = set() if graphs else _backward_threads(ordered)
    if recording.scopes.known and not graphs:
        source = "the CPU's ranges"
        for kernel in ordered:
            kernel.phase = recording.scopes.phase(kernel.thread, kernel.launched)
    elif threads:
        source = "the threads that launched kernels"
        for kernel in ordered:
            kernel.phase = BACKWARD if kernel.thread in threads else FORWARD
    else:
        source = NAMES
        _by_names(ordered)
    optimizer = recording.scopes.marks.get(OPTIMIZER, ())
    for kernel in ordered:
        if kernel.cls == OPTIMIZER or covers(optimizer, kernel.launched):
            kernel.phase = OPTIMIZER
    _around_updates(ordered, sure=source != NAMES)
    return source


def _by_names(ordered: Sequence[Kernel]) -> None:
    """Each kernel the phase of the last one whose name has one. Few forward attentions between backward ones are
    recomputation: a forward has as many in a row as it has layers."""
    classes = [known_class(k.name) for k in ordered]
    forward = FORWARD_ONLY if "attn.fwd" in classes else (*FORWARD_ONLY, "norm.fwd")
    anchors = [(at, cls in BACKWARD_ONLY) for at, cls in enumerate(classes) if cls in BACKWARD_ONLY or cls in forward]
    runs = [(is_backward, list(run)) for is_backward, run in groupby(anchors, key=itemgetter(1))]
    longest = max((len(run) for is_backward, run in runs if not is_backward), default=0)
    found = {
        run[0][0]: BACKWARD if is_backward or (number and 2 * len(run) < longest) else FORWARD
        for number, (is_backward, run) in enumerate(runs)
    }
    phase = FORWARD
    for at, kernel in enumerate(ordered):
        phase = found.get(at, phase)
        kernel.phase = phase


def _around_updates(ordered: Sequence[Kernel], *, sure: bool) -> None:
    """What clips, casts and gathers next to an update belongs to it: between the last kernel of a backward that
    computes and the first of the next forward. Where phases are `sure`, a backward's kernels stay its own; where names
    gave them, what follows is of a forward until a name says more."""
    run: list[Kernel] = []
    fresh = False
    for kernel in [*ordered, None]:
        if kernel is None or _begins_forward(kernel):
            if any(one.phase == OPTIMIZER for one in run):
                for one in run:
                    one.phase = one.phase if sure and one.phase == BACKWARD else OPTIMIZER
                fresh = not sure
            run = []
        else:
            run.append(kernel)
        if kernel is not None and fresh:
            fresh = known_class(kernel.name) not in (*FORWARD_ONLY, *BACKWARD_ONLY)
            if fresh and kernel.phase == BACKWARD:
                kernel.phase = FORWARD


def _begins_forward(kernel: Kernel) -> bool:
    """Whether behind an optimizer this kernel is of the next forward."""
    return known_class(kernel.name).startswith(STARTING) or kernel.name.startswith(INPUT)


def in_order(kernels: Sequence[Kernel]) -> list[Kernel]:
    """Kernels as they were launched; where launches are not known, as they started."""
    return sorted(kernels, key=lambda k: (k.launched, k.start))


def _backward_threads(kernels: Sequence[Kernel]) -> set[str]:
    """Threads that launch kernels that only a backward has, where others launch a forward and none of these. A
    backward that recomputes launches kernels of a forward, too."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kernel in kernels:
        counts[kernel.thread][known_class(kernel.name)] += 1
    found = {thread for thread, classes in counts.items() if any(c in classes for c in BACKWARD_ONLY)}
    forward = [t for t, classes in counts.items() if t not in found and any(c in classes for c in FORWARD_ONLY)]
    return found if forward and "" not in counts else set()


def whole_steps(recording: Recording) -> list[Step]:
    """Steps that are whole in the profile, with a backward and an optimizer: those that `profiler.step()` announced,
    else from the end of one optimizer to the end of the next."""
    ordered = in_order(recording.kernels)
    begins = [start for start, _ in recording.scopes.steps]
    if begins:
        groups: list[list[Kernel]] = [[] for _ in begins]
        for kernel in ordered:
            at = int(np.searchsorted(begins, kernel.launched, side="right")) - 1
            if at >= 0 and recording.scopes.steps[at][1] >= kernel.launched:
                groups[at].append(kernel)
        groups = [group for group in groups if {BACKWARD, OPTIMIZER} <= {k.phase for k in group}]
    else:
        groups = _between_optimizers(ordered)
    groups = [group for group in groups if group]
    if not groups:
        return []
    starts = [min(k.start for k in group) for group in groups]
    last = max(k.end for k in groups[-1])
    return [
        Step(kernels=group, seconds=max(0.0, end - start))
        for group, (start, end) in zip(groups, pairwise([*starts, last]), strict=True)
    ]


def _between_optimizers(ordered: Sequence[Kernel]) -> list[list[Kernel]]:
    """From behind each optimizer to the end of the next one. What comes before the first counts where it has as many
    kernels as the others: a profile may begin anywhere."""
    groups: list[list[Kernel]] = [[]]
    updated = False
    for kernel in ordered:
        if updated and kernel.phase == FORWARD and _begins_forward(kernel):
            groups.append([])
            updated = False
        updated = updated or kernel.phase == OPTIMIZER
        groups[-1].append(kernel)
    if not updated:
        groups.pop()
    if len(groups) > 1 and abs(len(groups[0]) - len(groups[1])) > 0.02 * len(groups[1]):
        groups.pop(0)
    return groups if len(groups) > 1 or (groups and _begins_whole(groups[0])) else []


def _begins_whole(group: Sequence[Kernel]) -> bool:
    """Whether a lone group has a forward before its backward and an optimizer at its end."""
    return group[0].phase == FORWARD and any(k.phase == BACKWARD for k in group)


def repeated(kernels: Sequence[Kernel]) -> Repetition | None:
    """The sequence of kernel names that a forward repeats most: one layer, of how many. None if nothing repeats."""
    names = [k.name for k in kernels[:MOST_COMPARED]]
    numbers = {name: at for at, name in enumerate(dict.fromkeys(names))}
    codes = np.array([numbers[name] for name in names])
    found, first, within = None, 0, 1
    while (inner := _most_repeated(codes)) is not None:
        covered, period, begin = inner
        if found is not None:
            if covered < MOSTLY * len(codes):
                break
            within *= found[0]
        first += begin
        found = (covered // period, period)
        codes = codes[begin : begin + period]
    if found is None:
        return None
    count, period = found
    starts = [kernels[at].start for at in range(first, first + count * period, period)]
    return Repetition(count=count, kernels=period, seconds=float(np.median(np.diff(starts))), within=within)


def _most_repeated(codes: np.ndarray) -> tuple[int, int, int] | None:
    """Numbers that the longest repetition covers, its period and its begin; None if nothing repeats."""
    best: tuple[int, int, int] | None = None
    for period in range(SHORTEST, len(codes) // FEWEST_LAYERS + 1):
        begin, run = _longest_run(codes[:-period] == codes[period:])
        count = run // period + 1
        if count < FEWEST_LAYERS or len(set(codes[begin : begin + period].tolist())) < SHORTEST:
            continue
        if best is None or count * period > 1.05 * best[0]:
            best = (count * period, period, begin)
    return best


def _longest_run(equal: np.ndarray) -> tuple[int, int]:
    """Begin and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], equal, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    at = int(np.argmax(lengths))
    return int(edges[2 * at]), int(lengths[at])
