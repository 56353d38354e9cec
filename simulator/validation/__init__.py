"""Published figures compared with what the simulator computes for the same configuration."""

from simulator.validation.figures import Figure, load_figures
from simulator.validation.outcome import Group, Outcome, grouped
from simulator.validation.validate import validate

__all__ = ["Figure", "Group", "Outcome", "grouped", "load_figures", "validate"]
