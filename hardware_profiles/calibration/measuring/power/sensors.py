"""Clock, power and energy of the GPU while something runs: from NVML, or from nvidia-smi where pynvml is missing."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from functools import cache
from typing import Any, NamedTuple

import torch


class Reading(NamedTuple):
    """What the driver shows at a time [s]: clock [MHz], power [W] (on many GPUs the mean of a second) and that of the
    instant (0: not shown), energy since the driver was loaded [J] (0: not shown)."""

    at: float
    clock: float
    power: float
    instant: float
    energy: float


def uuid() -> str:
    """The GPU that PyTorch computes on, as the driver names it; its index where PyTorch does not know."""
    known = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    return f"GPU-{str(known).removeprefix('GPU-')}" if known else "0"


class Nvml:
    """Through pynvml."""

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        self.nvml: Any = pynvml
        pynvml.nvmlInit()
        name = uuid()
        by_name = name.startswith("GPU-")
        self.gpu = pynvml.nvmlDeviceGetHandleByUUID(name) if by_name else pynvml.nvmlDeviceGetHandleByIndex(0)

    def limit(self) -> float:
        """Power limit that the driver enforces [W]."""
        return float(self.nvml.nvmlDeviceGetEnforcedPowerLimit(self.gpu)) / 1e3

    def read(self) -> Reading:
        """The state now."""
        clock = self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM)
        power = self.nvml.nvmlDeviceGetPowerUsage(self.gpu) / 1e3
        return Reading(time.time(), float(clock), power, self._instant(), self._energy())

    def _instant(self) -> float:
        try:
            (field,) = self.nvml.nvmlDeviceGetFieldValues(self.gpu, [self.nvml.NVML_FI_DEV_POWER_INSTANT])
            return float(field.value.uiVal) / 1e3 if field.nvmlReturn == 0 else 0.0
        except (AttributeError, self.nvml.NVMLError):  # an older pynvml or driver
            return 0.0

    def _energy(self) -> float:
        try:
            return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu)) / 1e3
        except self.nvml.NVMLError:
            return 0.0


class Smi:
    """Through nvidia-smi, a process each time."""

    def __init__(self) -> None:
        self.fields = "clocks.sm,power.draw,power.draw.instant"
        try:
            self.read()
        except ValueError:  # an older driver does not know the last one
            self.fields = "clocks.sm,power.draw"

    def limit(self) -> float:
        """Power limit that the driver enforces [W]."""
        return self._ask("enforced.power.limit")[0]

    def read(self) -> Reading:
        """The state now."""
        clock, power, *instant = self._ask(self.fields)
        return Reading(time.time(), clock, power, instant[0] if instant else 0.0, 0.0)

    def _ask(self, fields: str) -> list[float]:
        query = ["nvidia-smi", "-i", uuid(), f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
        shown = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False).stdout
        return [float(value) for value in shown.strip().split(",")]


@cache
def meter() -> Nvml | Smi:
    """Whichever of both shows clock, power and its limit here. Raises RuntimeError: neither, and what each said."""
    said = []
    for way, name in ((Nvml, "pynvml"), (Smi, "nvidia-smi")):
        try:
            found: Nvml | Smi = way()
            if found.read().power > 0.0 and found.limit() > 0.0:
                return found
            said.append(f"{name}: no power, or no power limit")
        except Exception as error:
            said.append(f"{name}: {type(error).__name__} {error}".strip()[:120])
    raise RuntimeError("; ".join(said))


def unreadable() -> str:
    """Why neither shows this GPU's power; empty where one does."""
    try:
        meter()
    except RuntimeError as error:
        return str(error)
    return ""


@cache
def _once(line: str) -> None:
    print(line, file=sys.stderr)


class Sensors:
    """Readings while something runs; none, and a line about it, where the driver shows none."""

    def __init__(self) -> None:
        self.seen: list[Reading] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        try:
            while not self.done.wait(0.03):
                self.seen.append(meter().read())
        except Exception as error:
            _once(f"power and clock are not read: {error}")

    def __enter__(self) -> Sensors:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join(5)

    def readings(self, last: float = 0.0) -> dict[str, float]:
        """Means of the last half, or of the last so many seconds; `power_w` of its second half, as many GPUs show means
        of a second."""
        late = self.seen[len(self.seen) // 2 :]
        if last and self.seen:
            late = [one for one in self.seen if one.at >= self.seen[-1].at - last]
        if len(late) < 3:
            return {}
        out = {"power_w": round(statistics.mean(one.power for one in late[len(late) // 2 :]), 1)}
        if late[0].instant:
            out["power_w_instant"] = round(statistics.mean(one.instant for one in late), 1)
        if late[0].energy:
            out["power_w_energy"] = round((late[-1].energy - late[0].energy) / (late[-1].at - late[0].at), 1)
        return out | {"sm_mhz": round(statistics.mean(one.clock for one in late))}
