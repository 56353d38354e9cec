"""Search over layouts, schedules and hardware for the plan that is fastest, cheapest or smallest."""

from simulator.search.axes import Axis, Question, Scenarios, question
from simulator.search.candidate import Candidate, Rank, pareto
from simulator.search.search import Confirmed, Found, confirm, search
from simulator.search.store import Store

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
    "pareto",
    "question",
    "search",
]
