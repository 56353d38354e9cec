"""What the measurements of whole steps share: ranks, a table written row by row, a time limit, kernels by kind."""

from __future__ import annotations

import argparse
import csv
import datetime
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""On a CPU the scripts only show that they start: nothing is worth keeping of what they say there."""
WARM_UP = 3
KINDS = (
    ("nccl", r"nccl"),
    ("copy", r"^(memcpy|memset)"),
    ("optimizer", r"multi_tensor|adam"),
    ("attention", r"flash|fmha|sdpa|attention"),
    ("grouped", r"grouped|groupproblemshape"),
    ("gemm", r"nvjet|gemm|cutlass|cublas|splitk|gemv|xmma"),
    ("sort", r"sort|topk|radix|histogram|scan"),
    ("index", r"index|gather|scatter"),
)
"""Kinds of kernels by what their names hold, the first that fits; all others are `other`."""
Row = dict[str, Any]
Measure = Callable[..., Row]


def arguments(text: str) -> argparse.Namespace:
    """What the command says: the table to write, seconds that all may take, which part of the plan."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the table to write")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which no further row is begun")
    parser.add_argument("--every", type=int, default=1, help="of the plan take every so-many-th row")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many rows at the start of the plan")
    parser.add_argument("--only", default="", help="take only rows of the plan that this regular expression finds")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each row is measured")
    parser.add_argument("--tiny", action="store_true", help="models so small that a CPU runs them: shows it starts")
    return parser.parse_args()


def begin() -> tuple[int, int]:
    """Join the ranks that torchrun started, if it did: (rank, ranks). NVLink multicast stays off."""
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    if "RANK" not in os.environ:
        return 0, 1
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(minutes=3))
    return dist.get_rank(), dist.get_world_size()


def end() -> None:
    """Leave the ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def driver() -> str:
    """The driver's version, where it can be asked."""
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:
        return "unknown"


def gpu() -> str:
    """The name of the GPU."""
    return str(torch.cuda.get_device_name()) if DEVICE == "cuda" else "cpu"


class Table:
    """A table whose rows are on disk as soon as they are known; only the first rank writes."""

    def __init__(self, path: str, columns: Sequence[str]) -> None:
        self.columns, self.path, self.rows = columns, path, 0
        today = datetime.datetime.now(tz=datetime.UTC).date()
        with open(path, "w", newline="", encoding="utf-8") as file:
            file.write(f"# {gpu()}, driver {driver()}, torch {torch.__version__}, {os.path.basename(sys.argv[0])}, ")
            file.write(f"{today}\n")
            csv.DictWriter(file, columns).writeheader()

    def add(self, row: Row) -> None:
        """Append one row."""
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)
        self.rows += 1
        print({key: value for key, value in row.items() if value != ""}, flush=True)


def agreed(value: float) -> float:
    """The largest of all ranks' values."""
    if not dist.is_initialized():
        return value
    most = torch.tensor([value], device=DEVICE, dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most.item())


def gathered(value: float) -> list[float]:
    """Every rank's value."""
    if not dist.is_initialized():
        return [value]
    mine = torch.tensor([value], device=DEVICE, dtype=torch.float64)
    all_of = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(all_of, mine)
    return [float(one.item()) for one in all_of]


def record(plan: Sequence[Any], measure: Measure, columns: Sequence[str], args: argparse.Namespace) -> None:
    """Measure every row of the plan on all ranks; one that fails is reported and left out."""
    rank, _ = begin()
    table = Table(args.out, columns) if rank == 0 else None
    last = time.time() + args.budget
    for one in (one for one in plan[args.skip :: args.every] if re.search(args.only, " ".join(map(str, one)))):
        if agreed(time.time()) > last:
            print("out of time before", one, flush=True)
            break
        began = time.time()
        row = attempt(one, measure)
        failed = agreed(float(row is None)) > 0
        release()
        if table is not None and row is not None and not failed:
            table.add({**row, "took_s": round(time.time() - began, 1)})
    end()


def attempt(one: Any, measure: Measure) -> Row | None:
    """A row, or None where the measurement fails."""
    try:
        return measure(*one)
    except Exception as error:
        print("failed", one, type(error).__name__, str(error)[:500], flush=True)
        return None


def release() -> None:
    """Forget the last model: what it compiled, and its memory."""
    torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def wait() -> None:
    """Until the GPU has done all it was given."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peaks() -> Row:
    """Most memory allocated and reserved on each rank [GB]."""
    if DEVICE == "cpu":
        return {"peak_gb": "", "reserved_gb": ""}
    allocated, reserved = torch.cuda.max_memory_allocated() / 1e9, torch.cuda.max_memory_reserved() / 1e9
    text = [" ".join(f"{one:.3f}" for one in gathered(value)) for value in (allocated, reserved)]
    return {"peak_gb": text[0], "reserved_gb": text[1]}


class Sensors:
    """SM clock and power of this rank's GPU while something runs."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float]] = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            one = pynvml.nvmlDeviceGetHandleByUUID("GPU-" + uuid.removeprefix("GPU-"))
            while not self.done.wait(0.1):
                clock = pynvml.nvmlDeviceGetClockInfo(one, pynvml.NVML_CLOCK_SM)
                self.seen.append((float(clock), pynvml.nvmlDeviceGetPowerUsage(one) / 1e3))
        except Exception as error:
            print("no sensors:", error, file=sys.stderr)

    def __enter__(self) -> Sensors:
        if DEVICE == "cuda":
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        if self.thread.is_alive():
            self.thread.join(5)

    def readings(self) -> Row:
        """Medians of the last half."""
        late = self.seen[len(self.seen) // 2 :]
        if not late:
            return {"sm_mhz": "", "power_w": ""}
        return {"sm_mhz": round(median(s[0] for s in late)), "power_w": round(median(s[1] for s in late))}


def warm(step: Callable[[], object]) -> None:
    """The first steps, in which things are compiled and loaded."""
    for _ in range(WARM_UP):
        step()
    wait()


def settled(step: Callable[[], object], seconds: float) -> list[float]:
    """Times of single steps [s], each waited for; a first half is thrown away."""
    began = time.perf_counter()
    step()
    wait()
    many = int(agreed(max(6.0, min(400.0, seconds / (time.perf_counter() - began)))))
    times = []
    for _ in range(many):
        a = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - a)
    return times[len(times) // 2 :]


def kind_of(name: str) -> str:
    """Which kind a kernel is."""
    lower = name.lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, lower)), "other")


def kernels(step: Callable[[], object]) -> Row:
    """Time of a step's kernels by kind [ms], their number, and the name of the one that computes attention."""
    if DEVICE == "cpu":
        step()
        return {}
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        step()
        torch.cuda.synchronize()
    found: dict[str, float] = {}
    launches, attention = 0, ""
    for event in seen.events():
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        kind = kind_of(event.name)
        found[kind] = found.get(kind, 0.0) + event.device_time_total / 1e3
        launches += 1
        if kind == "attention" and not attention:
            attention = event.name.removeprefix("void ").replace(",", ";")[:100]
    out: Row = {f"{kind}_ms": round(found.get(kind, 0.0), 4) for kind in (*(k for k, _ in KINDS), "other")}
    return out | {"gpu_ms": round(sum(found.values()), 4), "launches": launches, "attention_kernel": attention}


SPLIT = [f"{kind}_ms" for kind in (*(k for k, _ in KINDS), "other")]
"""Columns of `kernels` by kind."""
