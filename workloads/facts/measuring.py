"""What the measurements on several GPUs share: run every configuration, keep what succeeded as a table."""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist


def record(plan: Sequence[tuple[Any, ...]], measure: Callable[..., dict[str, Any]]) -> None:
    """Measure every configuration of `plan` on all ranks; the first rank writes the rows to the file the command names.

    A configuration that fails is reported and left out. The table is written anew after each, so that none is lost.
    """
    dist.init_process_group("nccl")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    rows: list[dict[str, Any]] = []
    for one in plan:
        try:
            rows.append(measure(*one))
        except Exception as error:
            print("failed", one, str(error)[:600], flush=True)
            continue
        if dist.get_rank() == 0:
            print(rows[-1], flush=True)
            write(sys.argv[1], rows)
    dist.destroy_process_group()


def write(path: str, rows: Sequence[dict[str, Any]]) -> None:
    """A table with the versions it was measured with."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(f"# torch {torch.__version__}, {os.path.basename(sys.argv[0])}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def rounds(once: Callable[[], None], seconds: float) -> int:
    """How many steps fill `seconds`, the same number on all ranks."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    once()
    torch.cuda.synchronize()
    many = torch.tensor([max(4, int(seconds / (time.perf_counter() - began)))], device="cuda")
    dist.broadcast(many, 0)
    return int(many)
