"""The cheapest deployment that holds a service level at a rate of requests."""

from simulator.studies.sizing.judging import Choice, Wanted
from simulator.studies.sizing.sizing import Sizing, size

__all__ = ["Choice", "Sizing", "Wanted", "size"]
