"""Measure NCCL between the GPUs of one host by size: point to point and collectives, alone and two at a time.

    torchrun --nproc-per-node N -m hardware_profiles.calibration.measuring.measure_collectives OUT.csv
    torchrun --nproc-per-node N -m hardware_profiles.calibration.measuring.measure_collectives LOG.csv --choices

For any number of GPUs. Operations: send (each even rank to the next), exchange (both ways at once), all_reduce,
all_gather, reduce_scatter, all_to_all, all_to_all_uneven (a rank gets a share that grows with its number), broadcast;
BF16; 1 KiB to 4 GiB, every second size `held_out` = 1. `bytes`: the message (send, exchange: one way), or the whole
buffer of a rank: input of all_reduce, reduce_scatter and all_to_all, output of all_gather. Times are of the slowest
rank, by its clock: `us` a call in a loop of the host, waited for at the end; `host_us` the host's time to issue it;
`waited_us` median of single calls each waited for; `graph_us` a call in a CUDA graph of many. `other`: a second
operation on a communicator and a stream of its own meanwhile; times are until both are through, over the calls of one.

With --choices nothing is timed: each call is made with NCCL's own log on; `algorithm`, `protocol`, `channels` are what
NCCL says it chose, `kernel` is the kernel's name. NVLink multicast is off (NCCL_NVLS_ENABLE=0) throughout.

One process shows that it starts, and reads NCCL's log, with --dry; there is nothing to send there. Without GPUs it runs
over gloo, to test the plan. Run on two H200 (2026-11-28); on four and eight not yet.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COLUMNS = ["gpu", "gpus", "op", "other", "bytes", "held_out", "us", "host_us", "waited_us", "graph_us", "algorithm"]
COLUMNS += ["protocol", "channels", "kernel"]
OPS = ("send", "exchange", "all_reduce", "all_gather", "reduce_scatter", "all_to_all", "all_to_all_uneven", "broadcast")
LOGGED = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
"""Operations that have an algorithm; the others are sends and receives."""
PAIRS = (("all_reduce", "all_reduce"), ("all_gather", "reduce_scatter"), ("all_to_all", "all_reduce"),
         ("exchange", "all_gather"))  # fmt: skip
SIZES = [1 << power for power in range(10, 33)]
TARGET, LOOPS = 0.01, 5
"""Seconds that a loop takes, and how many there are."""
ALGORITHMS = ("TREE", "RING", "COLLNET_DIRECT", "COLLNET_CHAIN", "NVLS", "NVLS_TREE", "PAT")
PROTOCOLS = ("LL", "LL128", "SIMPLE")
"""NCCL's numbers in the log of its older releases."""
CHOICE = re.compile(r"(?:(\w+): )?(\d+) Bytes -> Algo (\S+) proto (\S+)(?: channel\{Lo\.\.Hi\}=\{(\d+)\.\.(\d+)\})?")
Row = dict[str, Any]
Call = Callable[[], object]


def choices(text: str) -> list[Row]:
    """What NCCL's log says it chose: one for each collective."""
    out = []
    for _, _, algorithm, protocol, low, high in CHOICE.findall(text):
        row: Row = {"algorithm": named(algorithm, ALGORITHMS), "protocol": named(protocol, PROTOCOLS)}
        out.append(row | {"channels": int(high) - int(low) + 1 if high else ""})
    return out


def named(value: str, names: tuple[str, ...]) -> str:
    """A name, of a number or as it is."""
    return names[int(value)] if value.isdigit() and int(value) < len(names) else value.upper()


def arguments() -> argparse.Namespace:
    """What the command says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="the table to write")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which nothing further is begun")
    parser.add_argument("--largest", type=int, default=SIZES[-1], help="bytes of the largest buffer")
    parser.add_argument("--every", type=int, default=1, help="take every so-many-th size")
    parser.add_argument("--only", default="", help="take only operations that this regular expression finds")
    parser.add_argument("--choices", action="store_true", help="record what NCCL chooses instead of times")
    parser.add_argument("--dry", action="store_true", help="one process: show that it starts")
    return parser.parse_args()


def tensor(size: int) -> torch.Tensor:
    """A buffer of so many bytes."""
    return torch.ones(max(1, size // 2), device=DEVICE, dtype=torch.bfloat16)


def shares(count: int, ranks: int) -> list[int]:
    """Unequal parts of a buffer: the higher the rank the more; whole 128 bytes, as rows of tokens are."""
    parts = [count * (r + 1) * 2 // (ranks * (ranks + 1)) // 64 * 64 for r in range(ranks)]
    parts[-1] += count - sum(parts)
    return parts


def peer(rank: int, ranks: int) -> int:
    """The other rank of a pair; itself where there is none."""
    other = rank ^ 1
    return other if other < ranks else rank


def point_to_point(op: str, size: int, group: Any) -> Call:
    """One way or both ways between the ranks of each pair."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    other = peer(rank, ranks)
    out, into = tensor(size), tensor(size)
    todo = []
    if other != rank and (op == "exchange" or rank < other):
        todo.append(("send", out))
    if other != rank and (op == "exchange" or rank > other):
        todo.append(("receive", into))

    def call() -> None:
        ways = {"send": dist.isend, "receive": dist.irecv}
        ops = [dist.P2POp(ways[way], buffer, other, group=group) for way, buffer in todo]
        for work in dist.batch_isend_irecv(ops) if ops else []:
            work.wait()

    return call


def operation(op: str, size: int, group: Any = None) -> Call:
    """A call of an operation."""
    if op in ("send", "exchange"):
        return point_to_point(op, size, group)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    whole = tensor(2 * max(ranks, size // 2 // ranks * ranks))
    part = tensor(whole.nbytes // ranks)
    if op == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if op == "broadcast":
        return lambda: dist.broadcast(whole, 0, group=group)
    if op == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)
    if op == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
    if op == "all_to_all":
        into = torch.empty_like(whole)
        return lambda: dist.all_to_all_single(into, whole, group=group)
    sent = shares(whole.numel(), ranks)
    mine = tensor(2 * ranks * sent[rank])
    return lambda: dist.all_to_all_single(mine, whole, [sent[rank]] * ranks, sent, group=group)


def wait() -> None:
    """Until this rank's GPU is through."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def most(value: float) -> float:
    """The largest of all ranks' values."""
    out = torch.tensor([value], device=DEVICE, dtype=torch.float64)
    dist.all_reduce(out, dist.ReduceOp.MAX)
    return float(out.item())


def together() -> None:
    """All ranks, with idle GPUs."""
    wait()
    dist.barrier()
    wait()


def loop(calls: list[tuple[Call, Any]], many: int) -> tuple[float, float]:
    """Time until all are through, and of the host to issue them [us], both over the rounds: each call on its stream."""
    together()
    a = time.perf_counter()
    for _ in range(many):
        for call, stream in calls:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                call()
    issued = time.perf_counter()
    wait()
    return most((time.perf_counter() - a) / many * 1e6), most((issued - a) / many * 1e6)


def rounds(calls: list[tuple[Call, Any]]) -> int:
    """How many rounds take about the target, the same on all ranks."""
    once, _ = loop(calls, 3)
    once = min(once, loop(calls, 3)[0])
    return int(most(max(4, min(300, TARGET / once * 1e6))))


def waited(call: Call, many: int) -> float:
    """Median of single calls, each begun by all ranks at once and waited for [us]."""
    times = []
    for _ in range(max(5, min(20, many))):
        together()
        a = time.perf_counter()
        call()
        wait()
        times.append(most((time.perf_counter() - a) * 1e6))
    return statistics.median(times)


def graphed(calls: list[tuple[Call, Any]], many: int) -> float | str:
    """Time of a round in a CUDA graph of `many` [us]: calls on streams of their own from fork to join."""
    if DEVICE == "cpu":
        return ""
    many = min(many, 50)
    graph = torch.cuda.CUDAGraph()
    together()
    with torch.cuda.graph(graph):
        main = torch.cuda.current_stream()
        for call, stream in calls:
            own = stream or main
            own.wait_stream(main) if own != main else None
            with torch.cuda.stream(own):
                for _ in range(many):
                    call()
        for _, stream in calls:
            if stream is not None:
                main.wait_stream(stream)
    times = []
    for _ in range(5):
        together()
        a = time.perf_counter()
        graph.replay()
        wait()
        times.append(most((time.perf_counter() - a) / many * 1e6))
    return statistics.median(times)


def timed(op: str, other: str, size: int, groups: tuple[Any, Any]) -> Row:
    """Times of one operation, or of two at once."""
    calls: list[tuple[Call, Any]] = [(operation(op, size, groups[0]), None)]
    if other:
        streams = [torch.cuda.Stream() if DEVICE == "cuda" else None for _ in range(2)]
        calls = [(calls[0][0], streams[0]), (operation(other, size, groups[1]), streams[1])]
    many = rounds(calls)
    us, host = (statistics.median(times) for times in zip(*(loop(calls, many) for _ in range(LOOPS)), strict=True))
    row: Row = {"us": round(us, 3), "host_us": round(host, 3)}
    row["waited_us"] = "" if other else round(waited(calls[0][0], many), 3)
    graph = graphed(calls, many)
    return row | {"graph_us": graph if graph == "" else round(float(graph), 3)}


def kernel_of(call: Call) -> str:
    """The name of the kernel that a call runs."""
    if DEVICE == "cpu":
        call()
        return ""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    names = [e.name for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    return next((name for name in names if "nccl" in name.lower()), names[0] if names else "")[:100]


def from_log(op: str, size: int, log: Path) -> Row:
    """What NCCL says of one operation."""
    call = operation(op, size)
    call()
    together()
    before = log.stat().st_size if log.exists() else 0
    call()
    together()
    text = log.read_bytes()[before:].decode(errors="replace") if log.exists() else ""
    found = choices(text)
    chosen = found[0] if found and op in LOGGED else {"algorithm": "", "protocol": "", "channels": ""}
    return chosen | {"kernel": kernel_of(call)}


def plan(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Operation, the other one, bytes."""
    yield from (one for one in whole_plan(args) if re.search(args.only, f"{one[0]} {one[1]}"))


def whole_plan(args: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """All of it, whatever operations are asked for."""
    sizes = [size for size in SIZES if size <= args.largest][:: args.every]
    for op in OPS:
        yield from ((op, "", size) for size in sizes)
    if not args.choices:
        for op, other in PAIRS:
            yield from ((op, other, size) for size in sizes[::2] if size <= 1 << 30)


def log_path() -> Path:
    """Where NCCL writes its log; set before it starts."""
    path = Path(tempfile.gettempdir()) / f"nccl_{os.getpid()}.log"
    os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "TUNING,COLL", "NCCL_DEBUG_FILE": str(path)}
    return path


def attempt(op: str, other: str, size: int, groups: tuple[Any, Any], log: Path | None) -> Row | None:
    """A row, or None where it fails on any rank."""
    row: Row | None = None
    try:
        row = from_log(op, size, log) if log else timed(op, other, size, groups)
    except Exception as error:
        print("failed", op, other, size, type(error).__name__, str(error)[:300], flush=True)
    return None if most(float(row is None)) > 0 else row


def header(file: Any) -> None:
    """The line of a table that says where it was measured."""
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if DEVICE == "cuda" else "none"
    gpu = torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu"
    today = datetime.datetime.now(tz=datetime.UTC).date()
    file.write(f"# {gpu}, torch {torch.__version__}, NCCL {nccl}, measure_collectives.py, {today}\n")


def start(args: argparse.Namespace) -> Path | None:
    """Join the ranks."""
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    log = log_path() if args.choices or args.dry else None
    if args.dry and "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        os.environ.setdefault("MASTER_PORT", "29511")
    if DEVICE == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo", timeout=datetime.timedelta(minutes=3))
    return log


def main() -> None:
    """The whole plan."""
    args = arguments()
    log = start(args)
    groups = (None, dist.new_group())
    last, ranks = time.time() + args.budget, dist.get_world_size()
    first = dist.get_rank() == 0
    with open(args.out if first else os.devnull, "w", newline="", encoding="utf-8") as file:
        header(file)
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        for op, other, size in plan(args):
            if most(time.time()) > last:
                print("out of time before", op, other, size, flush=True)
                break
            row = attempt(op, other, size, groups, log if args.choices else None)
            if DEVICE == "cuda":
                torch.cuda.empty_cache()
            if row is None:
                continue
            head: Row = {"gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu", "gpus": ranks, "op": op}
            head |= {"other": other, "bytes": size, "held_out": SIZES.index(size) // (2 if other else 1) % 2}
            writer.writerow(head | row)
            file.flush()
            if first:
                print(head | row, flush=True)
    if log is not None and first:
        text = log.read_text(errors="replace") if log.exists() else ""
        print(f"NCCL's log: {len(text.splitlines())} lines, {len(choices(text))} choices", flush=True)
        print(text[-1500:], file=sys.stderr)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
