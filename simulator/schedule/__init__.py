"""Pipeline schedules: in which order every rank computes which stage of which microbatch."""

from simulator.schedule.action import (
    Action,
    Kind,
    Pair,
    Row,
    Schedule,
    Step,
    actions_of,
    halves,
    iter_actions,
    rank_of,
    stages_on,
)
from simulator.schedule.analysis import UniformResult, peak_in_flight, uniform_times
from simulator.schedule.durations import Durations
from simulator.schedule.generators.dualpipe import dualpipe, dualpipev
from simulator.schedule.generators.interleaved import interleaved
from simulator.schedule.generators.one_f_one_b import gpipe, one_f_one_b
from simulator.schedule.generators.zero_bubble import zb1p, zb2p, zbv
from simulator.schedule.generators.zero_bubble_automatic import zb1p_auto, zb2p_auto
from simulator.schedule.grid import grid_rich, grid_text
from simulator.schedule.order import needs, output_of
from simulator.schedule.record import Generator, Rule, ScheduleRecord
from simulator.schedule.registry import (
    SCHEDULES,
    build,
    closed_form_bubble,
    record_of,
    register,
    rules,
    stages_of,
)
from simulator.schedule.text import format_schedule, parse_schedule
from simulator.schedule.validate import validate

__all__ = [
    "SCHEDULES",
    "Action",
    "Durations",
    "Generator",
    "Kind",
    "Pair",
    "Row",
    "Rule",
    "Schedule",
    "ScheduleRecord",
    "Step",
    "UniformResult",
    "actions_of",
    "build",
    "closed_form_bubble",
    "dualpipe",
    "dualpipev",
    "format_schedule",
    "gpipe",
    "grid_rich",
    "grid_text",
    "halves",
    "interleaved",
    "iter_actions",
    "needs",
    "one_f_one_b",
    "output_of",
    "parse_schedule",
    "peak_in_flight",
    "rank_of",
    "record_of",
    "register",
    "rules",
    "stages_of",
    "stages_on",
    "uniform_times",
    "validate",
    "zb1p",
    "zb1p_auto",
    "zb2p",
    "zb2p_auto",
    "zbv",
]
