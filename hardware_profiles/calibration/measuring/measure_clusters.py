"""Ask the driver how many clusters of CTAs fit on the GPU at once, where each CTA fills an SM.

    python -m hardware_profiles.calibration.measuring.measure_clusters OUT.csv

A cluster lies within one GPC, and GPCs have unequal numbers of SMs, so that clusters may leave some SMs out. Columns:
`cluster` CTAs each, `clusters` that fit, `sms` they run on.
"""

from __future__ import annotations

import csv
import ctypes
import sys
from typing import Any

import torch

PTX = b".version 7.8\n.target sm_90\n.address_size 64\n.visible .entry none()\n{\nret;\n}\n\0"
SHARED = 200 << 10
"""Bytes of shared memory of a CTA: no other fits on the same SM."""
CLUSTER_DIMENSION, MAX_DYNAMIC_SHARED = 4, 8
"""CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES (cuda.h)."""


class Attribute(ctypes.Structure):
    """CUlaunchAttribute."""

    _fields_ = [("id", ctypes.c_int), ("pad", ctypes.c_char * 4), ("value", ctypes.c_uint * 16)]


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(Attribute)), ("count", ctypes.c_uint),
    ]  # fmt: skip


def checked(code: int) -> None:
    if code:
        raise RuntimeError(f"CUDA driver error {code}")


def clusters_of(driver: Any, function: ctypes.c_void_p, size: int) -> int:
    """How many clusters of `size` CTAs run at once."""
    attribute = Attribute(id=CLUSTER_DIMENSION, value=(ctypes.c_uint * 16)(size, 1, 1))
    config = Config(
        grid=(ctypes.c_uint * 3)(size * 1024, 1, 1), block=(ctypes.c_uint * 3)(384, 1, 1), shared=SHARED,
        attributes=ctypes.pointer(attribute), count=1,
    )  # fmt: skip
    found = ctypes.c_int()
    checked(driver.cuOccupancyMaxActiveClusters(ctypes.byref(found), function, ctypes.byref(config)))
    return found.value


def main() -> None:
    """A row for each size of cluster."""
    torch.zeros(1, device="cuda")  # makes the context
    driver = ctypes.CDLL("libcuda.so.1")
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    checked(driver.cuModuleLoadData(ctypes.byref(module), PTX))
    checked(driver.cuModuleGetFunction(ctypes.byref(function), module, b"none"))
    checked(driver.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, SHARED))
    with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
        file.write(f"# {torch.cuda.get_device_name()}, measure_clusters.py\n")
        writer = csv.writer(file)
        writer.writerow(["cluster", "clusters", "sms"])
        for size in (1, 2, 4, 8):
            fit = clusters_of(driver, function, size)
            writer.writerow([size, fit, size * fit])
            print(f"clusters of {size}: {fit}, on {size * fit} SMs", flush=True)


if __name__ == "__main__":
    main()
