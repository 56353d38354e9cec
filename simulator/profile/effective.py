"""The time of a kernel that was concurrent with others: its part of the shared GPU, and which kernels those were."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from simulator.profile.recording import Kernel
from simulator.results.intervals import Interval


def effective_seconds(kernels: Sequence[Kernel]) -> dict[int, float]:
    """id of each kernel -> its time, where concurrent kernels of the list share each interval equally [s].

    Two weight gradients on two streams each take twice as long as alone; their effective times add up to the time
    that passed.
    """
    out = {id(k): 0.0 for k in kernels}
    edges = sorted({t for k in kernels for t in (k.start, k.end)})
    starting = sorted(kernels, key=lambda k: k.start)
    running: list[Kernel] = []
    at = 0
    for begin, end in pairwise(edges):
        running = [k for k in running if k.end > begin]
        while at < len(starting) and starting[at].start <= begin:
            if starting[at].end > begin:
                running.append(starting[at])
            at += 1
        for kernel in running:
            out[id(kernel)] += (end - begin) / len(running)
    return out


def covered(kernel: Kernel, others: Sequence[Interval]) -> float:
    """Part of the kernel's time (0 to 1) that lies in `others` (sorted, disjoint)."""
    if kernel.seconds <= 0.0:
        return 0.0
    at = max(0, bisect_right(others, (kernel.start, float("inf"))) - 1)
    total = 0.0
    while at < len(others) and others[at][0] < kernel.end:
        total += max(0.0, min(kernel.end, others[at][1]) - max(kernel.start, others[at][0]))
        at += 1
    return min(1.0, total / kernel.seconds)
