"""How sure a forecast is: what is uncertain, the interval of the step time, and what contributes how much of it."""

from simulator.studies.uncertainty.interval import DRAWS, SEED, Contribution, Interval, interval
from simulator.studies.uncertainty.sources import GROUPS, ClassError, sources_of

__all__ = ["DRAWS", "GROUPS", "SEED", "ClassError", "Contribution", "Interval", "interval", "sources_of"]
