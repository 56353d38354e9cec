"""Time what one call puts on a rested GPU, by the profiler; write rows to a table as they are known.

Before each launch the GPU idles, L2 is flushed and a short spin hides the launch, so that
kernels run at the boost clock and on cold operands. `us` is the median span from the first kernel's start to the last
one's end, `busy_us` the kernels' own time, `launches` their number, `kernel` the longest one's name.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LAUNCHES = 6
REST = 6.0
SPIN = 2_000_000
"""Cycles of the spin before each launch: about 1 ms, while the host launches what is measured."""
CHUNK = 60
"""Cases under one profiler."""
NAME = 160
"""Letters kept of a kernel's name."""
Row = dict[str, Any]
Call = Callable[[], object]
Events = list[tuple[float, float, str]]
"""Start, end [us] and name of what ran on the GPU."""
TIMES = ["us", "us_min", "busy_us", "launches", "kernel"]
"""Columns that `measured` fills."""


@dataclass(frozen=True)
class Case:
    """What is measured: labels, a function that allocates operands and returns the call, a guess of its time [s]."""

    labels: Row
    make: Callable[[], Call]
    guess: float = 2e-5


def arguments(text: str, sections: Sequence[str]) -> argparse.Namespace:
    """What the command says."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the table to write")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which nothing further is begun")
    parser.add_argument("--every", type=int, default=1, help="of each section take every so-many-th case")
    parser.add_argument("--only", default=",".join(sections), help="sections to measure, of: " + ", ".join(sections))
    return parser.parse_args()


def driver() -> str:
    """The driver's version, where it can be asked."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:
        return "unknown"


class Table:
    """A table whose rows are on disk as soon as they are known, and the time that is left."""

    def __init__(self, path: str, columns: Sequence[str], budget: float = 1e9) -> None:
        self.path, self.columns, self.last, self.rows = path, columns, time.time() + budget, 0
        today = datetime.datetime.now(tz=datetime.UTC).date()
        head = f"# {torch.cuda.get_device_name()}, driver {driver()}, torch {torch.__version__}, "
        with open(path, "w", newline="", encoding="utf-8") as file:
            file.write(f"{head}CUDA {torch.version.cuda}, {Path(sys.argv[0]).name}, {today}\n")
            csv.DictWriter(file, columns).writeheader()

    def over(self) -> bool:
        """Whether the time is up."""
        return time.time() > self.last

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerows(rows)
        self.rows += len(rows)

    def run(self, cases: Sequence[Case], after: Callable[[Case, Row], Row] | None = None) -> None:
        """Measure cases, some under one profiler at a time; `after` may add to each row."""
        for at in range(0, len(cases), CHUNK):
            if self.over():
                print(f"out of time: {len(cases) - at} cases left out", flush=True)
                return
            part = cases[at : at + CHUNK]
            try:
                rows = measured(part)
            except Exception as error:
                print(f"{len(part)} cases lost: {type(error).__name__} {error}", file=sys.stderr, flush=True)
                continue
            found = {id(row[0]): row[1] for row in rows}
            self.add([after(c, found[id(c)]) if after else found[id(c)] for c in part if id(c) in found])
            torch.cuda.empty_cache()


def measured(cases: Sequence[Case]) -> list[tuple[Case, Row]]:
    """Rows of the cases that ran."""
    return [(case, case.labels | summary(runs)) for case, runs in launches_of(cases)]


def launches_of(cases: Sequence[Case]) -> list[tuple[Case, list[Events]]]:
    """What each launch of the cases that ran put on the GPU; the profiler's events are cut at the spins."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    owners: list[Case | None] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
        for case in cases:
            try:
                for owner in launched(case, flush):
                    owners.append(owner)
            except Exception as error:
                print(f"left out {case.labels}: {type(error).__name__} {str(error)[:200]}", file=sys.stderr, flush=True)
                torch.cuda.synchronize()
        owners.append(None)
        launch(flush, None)
    samples = cut(gpu_events(prof))
    if len(samples) != len(owners):
        raise RuntimeError(f"{len(samples)} launches in the profile, {len(owners)} made")
    found: dict[int, tuple[Case, list[Events]]] = {}
    for owner, events in zip(owners, samples, strict=True):
        if owner is not None:
            found.setdefault(id(owner), (owner, []))[1].append(events[:-1])  # the last one is the next flush
    return [(case, runs) for case, runs in found.values() if all(runs)]


def launched(case: Case, flush: torch.Tensor) -> Iterator[Case | None]:
    """Launch one case, the first times unseen: whom each launch that was made belongs to."""
    call = case.make()
    for _ in range(2):
        yield None
        launch(flush, call)
    for _ in range(LAUNCHES):
        time.sleep(max(2e-3, REST * case.guess))
        yield case
        launch(flush, call)


def launch(flush: torch.Tensor, call: Call | None) -> None:
    """One launch between two waits."""
    flush.zero_()
    torch.cuda._sleep(SPIN)
    if call is not None:
        call()
    torch.cuda.synchronize()


def gpu_events(prof: Any) -> Events:
    """Everything that ran on the GPU, by start."""
    cuda = torch.autograd.DeviceType.CUDA
    events = (e for e in prof.profiler.kineto_results.events() if e.device_type() == cuda)
    return sorted((e.start_ns() / 1e3, (e.start_ns() + e.duration_ns()) / 1e3, e.name()) for e in events)


def cut(events: Events) -> list[Events]:
    """What ran after each spin."""
    samples: list[Events] = []
    for event in events:
        if "spin_kernel" in event[2]:
            samples.append([])
        elif samples:
            samples[-1].append(event)
    return samples


def summary(runs: list[Events]) -> Row:
    """Times of the launches of one case."""
    spans = sorted(max(e[1] for e in run) - run[0][0] for run in runs)
    busy = statistics.median(sum(e[1] - e[0] for e in run) for run in runs)
    longest = max(runs[0], key=lambda e: e[1] - e[0])
    out: Row = {"us": round(statistics.median(spans), 3), "us_min": round(spans[0], 3), "busy_us": round(busy, 3)}
    name = longest[2].removeprefix("void ").replace(",", ";")[:NAME]
    return out | {"launches": len(runs[0]), "kernel": name}


def in_graph(calls: Sequence[Call], seconds: float = 0.01) -> float:
    """Mean time of a call [us] where all follow each other in a CUDA graph that is replayed."""
    graph = captured(calls)
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    a.record()
    graph.replay()
    b.record()
    b.synchronize()
    many = max(2, min(50, int(seconds * 1e3 / max(1e-3, a.elapsed_time(b)))))
    a.record()
    for _ in range(many):
        graph.replay()
    b.record()
    b.synchronize()
    return float(a.elapsed_time(b)) / many / len(calls) * 1e3


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of calls one after the other."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        calls[0]()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def guarded(table: Table, sections: Mapping[str, Callable[[Table, int], None]], only: str, every: int) -> None:
    """Run sections; whatever one raises leaves the others alone."""
    for name in only.split(","):
        began, before = time.time(), table.rows
        try:
            sections[name](table, every)
        except Exception as error:
            print(f"section {name} ended early: {type(error).__name__} {str(error)[:300]}", file=sys.stderr, flush=True)
        print(f"== {name}: {table.rows - before} rows in {time.time() - began:.1f} s", flush=True)
