"""Published figures compared with what the simulator computes for the same configuration."""

from simulator.validation.figures import Figure, load_figures
from simulator.validation.intervals import Placed, coverage, intervals_of, off
from simulator.validation.known_runs import Count, KnownRun, Verdict, counts, known_runs, verdicts
from simulator.validation.outcome import Group, Outcome, Steps, by_precision, grouped
from simulator.validation.validate import validate

__all__ = [
    "Count",
    "Figure",
    "Group",
    "KnownRun",
    "Outcome",
    "Placed",
    "Steps",
    "Verdict",
    "by_precision",
    "counts",
    "coverage",
    "grouped",
    "intervals_of",
    "known_runs",
    "load_figures",
    "off",
    "validate",
    "verdicts",
]
