"""The schedules by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from simulator.schedule.action import Schedule
from simulator.schedule.dualpipe import dualpipe, dualpipev
from simulator.schedule.interleaved import interleaved
from simulator.schedule.one_f_one_b import gpipe, one_f_one_b
from simulator.schedule.rules import check, check_name
from simulator.schedule.zero_bubble import zb1p, zb2p, zbv

Generator: TypeAlias = Callable[[int, int, int], Schedule]
"""(ranks, microbatches, vpp) -> Schedule; raises ScheduleError where the numbers break a rule."""


def _plain(generate: Callable[[int, int], Schedule]) -> Generator:
    """A schedule without virtual stages, in the registry's form."""
    return lambda ranks, microbatches, vpp: generate(ranks, microbatches)


SCHEDULES: Mapping[str, Generator] = MappingProxyType(
    {
        "gpipe": _plain(gpipe),
        "1f1b": _plain(one_f_one_b),
        "interleaved": interleaved,
        "zb1p": _plain(zb1p),
        "zb2p": _plain(zb2p),
        "zbv": _plain(zbv),
        "dualpipe": _plain(dualpipe),
        "dualpipev": _plain(dualpipev),
    }
)


def build(name: str, *, pp: int, microbatches: int, vpp: int = 1) -> Schedule:
    """The schedule of that name; raises ScheduleError with every rule that the numbers break."""
    check_name(name)
    check(name, pp, microbatches, vpp)
    return SCHEDULES[name](pp, microbatches, vpp)
