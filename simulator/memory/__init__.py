"""Memory of every rank over a step: what is resident, what microbatches keep, what ops need while they run."""

from simulator.memory.account import curve_of, memory_of, memory_of_rows
from simulator.memory.assumptions import Assumptions
from simulator.memory.measures import Measure, measures
from simulator.memory.memory_report import GROUPS, Curve, Item, MemoryReport, RankMemory, needed
from simulator.memory.serving import memory_of_serving

__all__ = [
    "GROUPS",
    "Assumptions",
    "Curve",
    "Item",
    "Measure",
    "MemoryReport",
    "RankMemory",
    "curve_of",
    "measures",
    "memory_of",
    "memory_of_rows",
    "memory_of_serving",
    "needed",
]
