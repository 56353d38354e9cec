"""The cheapest deployment that holds a service level at a rate of requests."""

from simulator.studies.sizing.day import Day, over_day, read_curve
from simulator.studies.sizing.judging import Choice, Wanted
from simulator.studies.sizing.sizing import Sizing, size

__all__ = ["Choice", "Day", "Sizing", "Wanted", "over_day", "read_curve", "size"]
