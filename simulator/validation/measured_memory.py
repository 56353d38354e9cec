"""Measured peaks of memory, computed as PyTorch counts them: allocations of the rank with the highest peak, without the
CUDA context and fragmentation. Sources do not always say what they count; this is assumed.
"""

from __future__ import annotations

from functools import lru_cache

from simulator.inputs import load_scenario
from simulator.memory import memory_of_rows
from simulator.results.simulate import prepare
from simulator.units import GB
from simulator.validation.figures import Figure
from simulator.validation.training_figures import DENSE, Overrides, simumax_run, zero_bubble_run

GIB = 2.0**30


@lru_cache(maxsize=64)
def allocated(overrides: Overrides) -> float:
    """Bytes allocated at the highest peak of a rank [B]."""
    report = memory_of_rows(*prepare(load_scenario(DENSE, overrides)))
    return max(rank.peak - rank.group("context") - rank.group("slack") for rank in report.ranks)


def zero_bubble(figure: Figure) -> float:
    """Peak of the zero-bubble paper's runs (arXiv 2401.10241, table 4) [GB]."""
    return allocated(zero_bubble_run(figure)) / GB


def simumax(figure: Figure) -> float:
    """Peak of SimuMax's runs [GiB]."""
    return allocated(simumax_run(figure)) / GIB
