"""Search over layouts, schedules and hardware for the plan that is fastest, cheapest or smallest."""

from simulator.studies.search.axes import Axis, Question, Scenarios, question
from simulator.studies.search.candidate import Candidate, Rank, pareto
from simulator.studies.search.confirming import Confirmed, confirm, in_confirmed_order
from simulator.studies.search.ranking import Found, intervals, search
from simulator.studies.search.store import Store

__all__ = [
    "Axis",
    "Candidate",
    "Confirmed",
    "Found",
    "Question",
    "Rank",
    "Scenarios",
    "Store",
    "confirm",
    "intervals",
    "in_confirmed_order",
    "pareto",
    "question",
    "search",
]
