"""Published figures compared with what the simulator computes for the same configuration."""

from simulator.validation.figures import Figure, load_figures
from simulator.validation.intervals import Placed, coverage, intervals_of
from simulator.validation.outcome import Group, Outcome, grouped
from simulator.validation.validate import validate

__all__ = ["Figure", "Group", "Outcome", "Placed", "coverage", "grouped", "intervals_of", "load_figures", "validate"]
