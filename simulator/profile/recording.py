"""What a profile holds of one GPU: kernels with their streams, and the phases that the program announced."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any

from simulator.errors import InputError
from simulator.profile.events import Progress, gpu_name, trace_events
from simulator.profile.names import kernel_class
from simulator.profile.scopes import CollectedScopes, Scopes
from simulator.results.intervals import Interval, length, merged

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset")
LAUNCHING = ("cuda_runtime", "cuda_driver", "runtime", "driver")
RANGES = ("user_annotation", "cpu_op", "operator")
"""Categories of events; the last ones of each are what profilers wrote until 2022."""
COUNTED_EVERY = 65536
"""Events after which kernels are counted."""
MOST_KERNELS = 2_000_000
"""Kernels of a file; a kernel needs 0.4 kB."""
FOREIGN = re.compile(r"^Cijk_|_ZN2ck|ck_tile|__amd_rocclr|rocblas|MIOpen")
"""Names of kernels for GPUs of AMD."""
US = 1e-6
_LATEST = 1e17
_NUMBERS = re.compile(r"[0-9]+")
"""Times of events are at most so far from zero [µs]: 3,000 years, where clocks count from 1970."""
PHASE = re.compile(r"^\s*(attn|mlp|dispatch|combine)\s*\(\s*([FBW])\s*\)\s*$", re.IGNORECASE)
"""Names of the ranges that DeepSeek's profile marks: `attn(F)`, `mlp(W)`, `combine(B)` ..."""


@dataclass(slots=True)
class Kernel:
    """One kernel of a profile.

    Parameters
    ----------
    name : name in the profile.
    cls : kernel class.
    stream : stream that it ran on.
    start : start, from the first kernel's [s].
    seconds : duration [s].
    grid : CTAs by dimension.
    launched : time of its launch on the CPU [s].
    phase : phase of a layer that it belongs to.
    period : number of the layer pair.
    thread : thread that launched it; "" if its launch is not in the profile.
    """

    name: str
    cls: str
    stream: int
    start: float
    seconds: float
    grid: tuple[int, ...]
    launched: float
    phase: str = ""
    period: int = -1
    thread: str = ""

    @property
    def end(self) -> float:
        """End [s]."""
        return self.start + self.seconds

    @property
    def comm(self) -> bool:
        """Whether it communicates."""
        return self.cls.startswith("comm.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A range that the program announced on the CPU: `phase` from `start` to `end` [s]."""

    phase: str
    start: float
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The kernels of one device in order of their starts, and the marks in order of theirs.

    Parameters
    ----------
    path, device : the file, and the number of the GPU in it.
    gpu : name of the GPU; "" if the profile does not say it.
    kernels : the kernels.
    marks : the phases of layers that the program announced.
    scopes : what else the CPU did.
    """

    path: str
    device: str
    kernels: list[Kernel]
    marks: list[Mark]
    gpu: str = ""
    scopes: Scopes = field(default_factory=Scopes)

    @property
    def span(self) -> float:
        """From the start of the first kernel to the end of the last [s]."""
        return max(k.end for k in self.kernels) - min(k.start for k in self.kernels)

    @property
    def clock(self) -> float:
        """Resolution of its times [s]: 1 us where all are whole microseconds, as older profilers write them; else 0."""
        whole = all(abs(k.seconds * 1e6 - round(k.seconds * 1e6)) < 1e-3 for k in self.kernels)
        return 1e-6 if whole else 0.0

    def streams(self) -> dict[int, list[Kernel]]:
        """Kernels of each stream, the busiest stream first."""
        by: dict[int, list[Kernel]] = defaultdict(list)
        for kernel in self.kernels:
            by[kernel.stream].append(kernel)
        return dict(sorted(by.items(), key=lambda item: -busy(item[1])))


def intervals(kernels: Sequence[Kernel]) -> list[Interval]:
    """The times in which any of them runs."""
    return merged((k.start, k.end) for k in kernels)


def busy(kernels: Sequence[Kernel]) -> float:
    """Time in which any of them runs [s]."""
    return length(intervals(kernels))


def late(kernels: Sequence[Kernel]) -> float:
    """Time between the kernels in which the next one had not been launched yet [s]: they waited for the CPU.

    At the start of a profile the queues are empty and tiny kernels outrun the CPU; later it is ahead by milliseconds.
    Kernels whose launch is not in the profile count as launched in time.
    """
    waited, end = 0.0, None
    for kernel in sorted(kernels, key=lambda k: k.start):
        if end is not None and kernel.launched < kernel.start:
            waited += max(0.0, kernel.launched - end)
        end = max(kernel.end, end if end is not None else kernel.end)
    return waited


@dataclass(slots=True)
class _Collected:
    """What is kept of the events while they pass by. Times in µs as in the file."""

    kernels: dict[str, list[tuple[str, int, float, float, tuple[int, ...], Any]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    launches: dict[Any, tuple[float, str]] = field(default_factory=dict)
    marks: list[tuple[str, float, float]] = field(default_factory=list)
    scopes: CollectedScopes = field(default_factory=CollectedScopes)
    events: int = 0
    on_cpu: int = 0
    foreign: str = ""

    def add(self, event: dict[str, Any]) -> None:
        """Keep a kernel, a launch or a mark; forget everything else."""
        self.events += 1
        if event.get("ph") != "X":
            return
        category = str(event.get("cat", "")).lower()
        if category in ON_GPU:
            args = event.get("args") or {}
            grid = _grid(args.get("grid"))
            device = str(args.get("device", event.get("pid", 0)))
            stream = _whole(args.get("stream", event.get("tid", 0)))
            start, took = _micros(event["ts"]), _micros(event.get("dur", 0.0), least=0.0)
            name = intern(str(event.get("name", "")))
            if not self.foreign and FOREIGN.search(name):
                self.foreign = name
            self.kernels[device].append((name, stream, start, took, grid, args.get("correlation")))
        elif category in LAUNCHING:
            correlation = (event.get("args") or {}).get("correlation")
            if correlation is not None:
                self.launches[correlation] = (_micros(event["ts"]), intern(str(event.get("tid", ""))))
        elif category in RANGES:
            self.on_cpu += 1
            name, start = str(event.get("name", "")), _micros(event["ts"])
            end = start + _micros(event.get("dur", 0.0), least=0.0)
            found = PHASE.match(name)
            if found and category == "user_annotation":
                self.marks.append((f"{found[1].lower()}({found[2].upper()})", start, end))
            else:
                self.scopes.add(name, intern(str(event.get("tid", ""))), start, end)


def _micros(value: Any, least: float = -_LATEST) -> float:
    """A time of an event [µs]; ValueError if it is none."""
    number = float(value)
    if not least <= number <= _LATEST:
        raise ValueError(value)
    return number


def _grid(value: Any) -> tuple[int, ...]:
    """The grid of a kernel: a list, which some exporters write as a text."""
    return tuple(_whole(n) for n in (_NUMBERS.findall(value) if isinstance(value, str) else value or ()))


def _whole(value: Any) -> int:
    """A whole number of an event; ValueError if it is none that a GPU could have."""
    number = float(value)
    if not abs(number) <= _LATEST:
        raise ValueError(value)
    return int(number)


def read_recording(path: Path, progress: Progress | None = None, device: str | None = None) -> Recording:
    """Read the profile at `path`; of several devices the one with the most kernels, unless `device` is named."""
    kept = _Collected()
    for count, event in enumerate(trace_events(path, progress), start=1):
        try:
            kept.add(event)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError):
            name = str(event.get("name", ""))[:60]
            raise InputError(f"{path}: not a trace of the PyTorch profiler: event {name!r} cannot be read") from None
        if count % COUNTED_EVERY == 0 and sum(map(len, kept.kernels.values())) > MOST_KERNELS:
            raise InputError(
                f"{path}: more than {MOST_KERNELS:,} kernels; record fewer steps: "
                "profile(schedule=torch.profiler.schedule(wait=2, warmup=1, active=2))"
            )
    gpu = gpu_name(path)
    _refuse(path, kept, gpu)
    chosen = device if device is not None else max(kept.kernels, key=lambda d: len(kept.kernels[d]))
    if chosen not in kept.kernels:
        raise InputError(f"{path}: no kernels of device {chosen}; it has {', '.join(sorted(kept.kernels))}")
    return _recording(path, chosen, kept, gpu)


def _refuse(path: Path, kept: _Collected, gpu: str) -> None:
    """InputError for a profile without kernels of an NVIDIA GPU."""
    if kept.events and not kept.kernels and not kept.on_cpu:
        raise InputError(
            f"{path}: not a trace of the PyTorch profiler: none of its events has a category (cat) of it, such as"
            " kernel or cpu_op; write it with torch.profiler.profile(...).export_chrome_trace"
        )
    if not kept.kernels:
        seen = f"; the {kept.on_cpu:,} ranges in it are of the CPU" if kept.on_cpu else ""
        raise InputError(f"{path}: no GPU kernels in it{seen}; record with ProfilerActivity.CUDA on an NVIDIA GPU")
    if gpu.startswith("AMD") or kept.foreign:
        whose = gpu or f"an AMD GPU (kernel {kept.foreign[:40]!r})"
        raise InputError(f"{path}: recorded on {whose}; only profiles of NVIDIA GPUs can be compared")


def _recording(path: Path, device: str, kept: _Collected, gpu: str) -> Recording:
    raw = sorted(kept.kernels[device], key=lambda k: (k[2], k[1]))
    zero = raw[0][2]
    kernels = []
    for name, stream, start, took, grid, correlation in raw:
        launched, thread = kept.launches.get(correlation, (start, ""))
        kernels.append(
            Kernel(
                name=name,
                cls=kernel_class(name),
                stream=stream,
                start=(start - zero) * US,
                seconds=took * US,
                grid=grid,
                launched=(launched - zero) * US,
                thread=thread,
            )
        )
    marks = [
        Mark(phase=phase, start=(start - zero) * US, end=(end - zero) * US)
        for phase, start, end in sorted(kept.marks, key=lambda mark: mark[1])
    ]
    recording = Recording(
        path=str(path), device=device, kernels=kernels, marks=marks, gpu=gpu, scopes=kept.scopes.freeze(zero, US)
    )
    _give_phases(recording, launched=bool(kept.launches))
    return recording


def _give_phases(recording: Recording, *, launched: bool) -> None:
    """Each kernel gets the phase under whose mark it was launched, and which occurrence of that phase it is."""
    if not launched or not recording.marks:
        return
    counts: dict[str, int] = defaultdict(int)
    numbered = []
    for mark in recording.marks:
        numbered.append((mark, counts[mark.phase]))
        counts[mark.phase] += 1
    at = 0
    for kernel in sorted(recording.kernels, key=lambda k: k.launched):
        while at < len(numbered) and numbered[at][0].end < kernel.launched:
            at += 1
        if at < len(numbered) and numbered[at][0].start <= kernel.launched:
            kernel.phase, kernel.period = numbered[at][0].phase, numbered[at][1]
