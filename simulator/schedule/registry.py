"""The schedules by name, and what is asked of them.

Every module in `simulator/schedule/generators` brings its `RECORDS`; scripts and installed packages may add theirs.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Final

from simulator.errors import ScheduleError, meant
from simulator.plugins import Registry
from simulator.schedule import generators
from simulator.schedule.action import Schedule
from simulator.schedule.durations import UNIFORM, Durations
from simulator.schedule.record import ScheduleRecord
from simulator.schedule.validate import validate

GROUP: Final = "foretrain.schedules"
"""The entry points by which installed packages offer schedules."""


def _shipped() -> dict[str, ScheduleRecord]:
    """The records of all generators, in the order in which the schedules were published."""
    modules = (import_module(f"{generators.__name__}.{module.name}") for module in iter_modules(generators.__path__))
    records: list[ScheduleRecord] = [record for module in modules for record in module.RECORDS]
    return {record.name: record for record in sorted(records, key=lambda record: record.year)}


SCHEDULES: Registry[ScheduleRecord] = Registry(
    kind="schedule", cls=ScheduleRecord, group=GROUP, shipped=_shipped(), error=ScheduleError
)


def register(record: ScheduleRecord) -> None:
    """Add a schedule for this process; raises ScheduleError for a name in use.

    Worker processes of a search do not have it: a search with registered schedules runs in one process. A package
    that offers its record as an entry point `foretrain.schedules` is known everywhere.
    """
    SCHEDULES.register(record.name, record)


def record_of(name: str) -> ScheduleRecord | None:
    """The record of a schedule's name; None for the path of a file."""
    return SCHEDULES.get(name)


def build(name: str, *, pp: int, microbatches: int, vpp: int = 1, durations: Durations = UNIFORM) -> Schedule:
    """The schedule of that name, an automatic one for these durations; raises ScheduleError with every broken rule.

    One from outside the project is validated too, as one from a file is.
    """
    record = _named(name)
    with SCHEDULES.guard(name):
        schedule = record(pp, microbatches, vpp, durations=durations)
        if name not in SCHEDULES.shipped:
            validate(schedule)
            if schedule.ranks != pp:
                raise ScheduleError(f"{name} generates {schedule.ranks} rows for pp {pp}: it needs one for each rank")
    return schedule


def rules(name: str, pp: int, microbatches: int, vpp: int = 1) -> list[str]:
    """Every rule of the schedule that these numbers break, one sentence each; empty if it can be built."""
    record = _named(name)
    with SCHEDULES.guard(name):
        return record.broken(pp, microbatches, vpp)


def stages_of(name: str, pp: int, vpp: int = 1) -> int:
    """Number of stages [1] the model is cut into: pp, or more where a microbatch visits a rank repeatedly."""
    record = _named(name)
    with SCHEDULES.guard(name):
        return record.stages(pp, vpp)


def closed_form_bubble(name: str, pp: int, f: float, i: float, w: float, pair: float | None = None) -> float:
    """Idle time of the worst rank by the published formula, for uniform stages and free communication.

    Durations are those of one stage (a thin one for interleaved, so that ``vpp`` does not appear); a pair takes the
    sum of its halves if not given. Idle is within the makespan, but for zero-bubble schedules within the rank's span.
    Sources: Narayanan et al. 2021, section 2.2 (1F1B, interleaved); Qi et al. 2023, table 1 (ZB-H1, ZB-H2) and
    section 6 (ZB-V); DeepSeek-V3 report, table 2 (1F1B, ZB1P, DualPipe). Raises ScheduleError where there is none.

    Against the schedules themselves, for W <= F: those of 1F1B and ZB-H1 are exact, that of ZB-H2 is if
    also W <= I. DualPipe's is exact on the middle ranks, which idle most, if I = F; it is too large if I > F,
    too small if I < F; all ranks idle alike only if a pair takes F + B. ZB-V has one for F = I = W only.
    """
    record = _named(name)
    if record.bubble is None:
        raise ScheduleError(f"{name} has no closed form of its bubble: simulate it, or use uniform_times")
    with SCHEDULES.guard(name):
        return record.bubble(pp, f, i, w, f + (i + w) if pair is None else pair)


def _named(name: str) -> ScheduleRecord:
    """The record of that name; raises ScheduleError, with the nearest name, for a schedule that does not exist."""
    record = record_of(name)
    if record is not None:
        return record
    hint = meant(name, SCHEDULES, otherwise=f"choose one of {', '.join(SCHEDULES)}")
    raise ScheduleError(f"there is no schedule {name!r}: {hint}")
