"""Published figures compared with what the simulator computes for the same configuration."""

from simulator.validation.figures import Figure, load_figures
from simulator.validation.known_runs import Count, KnownRun, Verdict, counts, known_runs, verdicts
from simulator.validation.outcome import Group, Outcome, grouped
from simulator.validation.validate import validate

__all__ = [
    "Count",
    "Figure",
    "Group",
    "KnownRun",
    "Outcome",
    "Verdict",
    "counts",
    "grouped",
    "known_runs",
    "load_figures",
    "validate",
    "verdicts",
]
