"""Read and write a schedule as text: a header, then one line a rank.

    # name=1f1b stages=2 microbatches=3
    0: 0F0 0F1 0B0 0F2 0B1 0B2
    1: 1F0 1B0 1F1 1B1 1F2 1B2

Empty lines and other lines that begin with ``#`` are ignored.
"""

import re
from typing import NoReturn, cast

from simulator.errors import ScheduleError
from simulator.schedule.action import MOST_CHUNKS, Action, Kind, Pair, Row, Schedule, Step

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_HEADER = re.compile(r"#\s*name=(\S+)\s+stages=(\S+)\s+microbatches=(\S+)")
_LINE = re.compile(r"([0-9]{1,9}):(.*)")
_ACTION = re.compile(r"([0-9]{1,9})([FBIW])([0-9]{1,9})")
_PAIR = re.compile(r"\(([^;()]*);([^;()]*)\)")
_COUNT = re.compile(r"[1-9][0-9]{0,8}")

_HEADER_FORM = "# name=1f1b stages=4 microbatches=8"
_STEP_FORM = "stage, F, B, I or W, microbatch, as in 2F0, or an overlapped pair, as in (0F7;7B3)"


def format_schedule(schedule: Schedule) -> str:
    """The text of a schedule, from which ``parse_schedule`` gives back the same one."""
    if not _NAME.fullmatch(schedule.name):
        raise ScheduleError(
            f"a schedule named {schedule.name!r} cannot be written: use letters, digits and . _ + - only"
        )
    header = f"# name={schedule.name} stages={schedule.stages} microbatches={schedule.microbatches}"
    lines = (" ".join([f"{rank}:", *map(str, row)]) for rank, row in enumerate(schedule.rows))
    return "\n".join([header, *lines]) + "\n"


def parse_schedule(text: str, *, source: str) -> Schedule:
    """The schedule written in ``text``; ``source`` (a file's name) is what errors call it.

    Checks the form and that stages and microbatches are within the header's; ``validate`` checks the meaning.
    """
    header: tuple[str, int, int] | None = None
    rows: list[Row] = []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        where = f"{source}, line {number}"
        if line.startswith("#") and header is None:
            header = _parse_header(line, where)
        elif line and not line.startswith("#"):
            if header is None:
                _fail(where, f"there is no header before the first rank: begin with '{_HEADER_FORM}'")
            rows.append(_parse_row(line, header[1], header[2], len(rows), where))
    if header is None:
        _fail(source, f"there is no schedule in it: begin with '{_HEADER_FORM}'")
    if not rows:
        _fail(source, "there are no ranks in it: write one line a rank, as in '0: 0F0 0B0'")
    name, stages, microbatches = header
    return Schedule(name=name, stages=stages, microbatches=microbatches, rows=tuple(rows))


def _parse_header(line: str, where: str) -> tuple[str, int, int] | None:
    """Name, stages and microbatches; None for a comment that does not try to be a header."""
    match = _HEADER.fullmatch(line)
    if match is None:
        if "name=" in line or "stages=" in line:
            _fail(where, f"'{line}' is no header: write it like '{_HEADER_FORM}'")
        return None
    name, stages, microbatches = match.groups()
    if not _NAME.fullmatch(name):
        _fail(where, f"name={name}: use letters, digits and . _ + - only")
    sizes = _count("stages", stages, where), _count("microbatches", microbatches, where)
    if sizes[0] * sizes[1] > MOST_CHUNKS:
        _fail(where, f"{sizes[1]} microbatches of {sizes[0]} stages are more than can be simulated: {MOST_CHUNKS:,}")
    return name, *sizes


def _count(key: str, value: str, where: str) -> int:
    if not _COUNT.fullmatch(value):
        _fail(where, f"{key}={value}: write a whole number of at least 1 and at most 9 digits")
    return int(value)


def _parse_row(line: str, stages: int, microbatches: int, rank: int, where: str) -> Row:
    match = _LINE.fullmatch(line)
    if match is None:
        _fail(where, f"'{_shortened(line)}' is no rank: begin it with number and colon, here '{rank}: '")
    if int(match[1]) != rank:
        _fail(where, f"rank {match[1]} stands where rank {rank} belongs: write every rank once, from 0 on")
    return tuple(_parse_step(token, stages, microbatches, where) for token in match[2].split())


def _parse_step(token: str, stages: int, microbatches: int, where: str) -> Step:
    pair = _PAIR.fullmatch(token)
    if pair is None:
        return _parse_action(token, token, stages, microbatches, where)
    forward = _parse_action(pair[1], token, stages, microbatches, where)
    backward = _parse_action(pair[2], token, stages, microbatches, where)
    if forward.kind != "F" or backward.kind not in "BI":
        _fail(where, f"'{token}': a pair is a forward, then a backward (B or I), as in (0F7;7B3)")
    return Pair(forward, backward)


def _parse_action(text: str, token: str, stages: int, microbatches: int, where: str) -> Action:
    match = _ACTION.fullmatch(text)
    if match is None:
        _fail(where, f"'{_shortened(token)}' is no step: write {_STEP_FORM}")
    stage, microbatch = int(match[1]), int(match[3])
    if stage >= stages:
        _fail(where, f"'{token}': there is no stage {stage}: the header says {stages}, so 0 to {stages - 1}")
    if microbatch >= microbatches:
        known = f"the header says {microbatches}, so 0 to {microbatches - 1}"
        _fail(where, f"'{token}': there is no microbatch {microbatch}: {known}")
    return Action(cast(Kind, match[2]), stage, microbatch)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _fail(where: str, what: str) -> NoReturn:
    raise ScheduleError(f"{where}: {what}")
