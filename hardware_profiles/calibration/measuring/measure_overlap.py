"""Measure concurrent kernels and collectives on the GPUs of one node, with PyTorch and NCCL alone.

    torchrun --nproc-per-node 2 hardware_profiles/calibration/measuring/measure_overlap.py OUT.csv

Each rank runs the same kernel in a loop on one stream while NCCL runs one collective in a loop on another; both loops
are long enough that either always overlaps with the other while it is timed. `op` is a GEMM of m x k by k x n, an
attention of m tokens and n heads of k, or a norm or sum of m x n BF16 values. Columns: `us_alone`, `us_concurrent` of
the kernel; `comm_us_alone`, `comm_us_concurrent` of the collective (mean of the loop), `bytes` its output (all-gather)
or input (reduce-scatter) on a rank. Loops run at the power limit, alone and overlapped.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((4096, 7168, 2048), (8192, 4096, 4096), (4096, 14336, 4096), (8192, 10240, 8192))
OTHERS = (("attention", 4096, 32, 128), ("attention", 8192, 32, 128), ("norm", 8192, 8192, 0), ("add", 8192, 8192, 0))
MEGABYTES = (32, 128, 512)
SECONDS = 0.4
Row = dict[str, Any]


def loop(stream: torch.cuda.Stream, call: Callable[[], object], count: int) -> tuple[torch.cuda.Event, ...]:
    """Issue `count` calls on a stream between two events."""
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.stream(stream):
        a.record(stream)
        for _ in range(count):
            call()
        b.record(stream)
    return a, b


def agreed(value: float) -> float:
    """The largest of all ranks' values: ranks must issue equally many collectives."""
    most = torch.tensor([value], device="cuda", dtype=torch.float64)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most.item())


def alone(stream: torch.cuda.Stream, call: Callable[[], object]) -> float:
    """Mean time of a call in a loop of its own, of the slowest rank [us]."""
    a, b = loop(stream, call, 10)
    torch.cuda.synchronize()
    one = agreed(a.elapsed_time(b) / 10)  # [ms]
    count = min(400, max(10, int(SECONDS * 1e3 / one)))
    a, b = loop(stream, call, count)
    torch.cuda.synchronize()
    return agreed(float(a.elapsed_time(b)) / count * 1e3)


def concurrently(
    one: tuple[torch.cuda.Stream, Callable[[], object], float],
    other: tuple[torch.cuda.Stream, Callable[[], object], float],
) -> float:
    """Mean time of a call of `one` while `other` runs all the time [us]."""
    count = min(400, max(10, int(SECONDS * 1e6 / one[2])))
    cover = int(2.5 * count * one[2] / other[2]) + 5
    start, _ = loop(other[0], other[1], 3)
    _, end = loop(other[0], other[1], min(cover, 900))
    time.sleep(0.002)
    a, b = loop(one[0], one[1], count)
    torch.cuda.synchronize()
    inside = end.elapsed_time(b) < 0.0 and start.elapsed_time(a) > 0.0
    return float(a.elapsed_time(b)) / count * 1e3 if inside else -1.0


def kernel(op: str, m: int, n: int, k: int) -> Callable[[], object]:
    """A kernel of this shape."""
    if op == "gemm":
        a, w = (torch.randn(rows, k, device="cuda", dtype=torch.bfloat16) for rows in (m, n))
        return lambda: a @ w.t()
    if op == "attention":
        q, key, value = (torch.randn(1, n, m, k, device="cuda", dtype=torch.bfloat16) for _ in range(3))

        def run() -> torch.Tensor:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                return F.scaled_dot_product_attention(q, key, value, is_causal=True)

        return run
    x = torch.randn(m, n, device="cuda", dtype=torch.bfloat16)
    if op == "norm":
        weight = torch.ones(n, device="cuda", dtype=torch.bfloat16)
        return lambda: F.rms_norm(x, (n,), weight)
    y = torch.empty_like(x)
    return lambda: torch.add(x, x, out=y)


def collective(kind: str, size: int, world: int) -> Callable[[], object]:
    """A collective whose whole buffer is `size` bytes of BF16."""
    whole = torch.randn(size // 2, device="cuda", dtype=torch.bfloat16)
    part = torch.empty(size // 2 // world, device="cuda", dtype=torch.bfloat16)
    if kind == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part)
    if kind == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole)
    return lambda: dist.all_reduce(whole)


def main() -> None:
    """All pairs of a kernel and a collective."""
    dist.init_process_group("nccl")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.cuda.set_device(rank)
    compute, comm = torch.cuda.Stream(), torch.cuda.Stream(priority=-1)
    rows: list[Row] = []
    for op, m, n, k in (*(("gemm", *shape) for shape in SHAPES), *OTHERS):
        gemm = kernel(op, m, n, k)
        us = alone(compute, gemm)
        for kind in ("all_gather", "reduce_scatter", "all_reduce"):
            for size in MEGABYTES if (m, n, k) == SHAPES[1] or op != "gemm" else MEGABYTES[1:2]:
                call = collective(kind, size << 20, world)
                dist.barrier()
                comm_us = alone(comm, call)
                dist.barrier()
                slow = concurrently((compute, gemm, us), (comm, call, comm_us))
                dist.barrier()
                comm_slow = concurrently((comm, call, comm_us), (compute, gemm, us))
                shape = {"gpus": world, "op": op, "m": m, "n": n, "k": k, "collective": kind, "bytes": size << 20}
                times = {"us_alone": us, "us_concurrent": slow}
                times |= {"comm_us_alone": comm_us, "comm_us_concurrent": comm_slow}
                rows.append(shape | {key: round(value, 2) for key, value in times.items()})
                if rank == 0:
                    print(rows[-1], flush=True)
    if rank == 0:
        with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
            file.write(f"# {torch.cuda.get_device_name()}, torch {torch.__version__}, measure_overlap.py\n")
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
