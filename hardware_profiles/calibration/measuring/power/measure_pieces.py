"""Measure GEMMs in pieces on several streams, as overlapped tensor parallelism runs them.

    python -m hardware_profiles.calibration.measuring.power.measure_pieces OUT.csv

Sustained load: each case is repeated for `SECONDS`, and the mean of the second half is kept; nothing is sent. Pieces in
FP8 are replayed in CUDA graphs, as Python issues them too slowly. A piece of a ring has one rank's rows, a piece of a
pipeline a quarter of the weight's columns.

| how | what |
|---|---|
| whole | one GEMM |
| gather | a piece for each rank, on three streams in turn |
| scatter | a piece for each rank, on three streams; each waits for the one but last |
| pipeline | four pieces on three streams, 16 SMs left free |
| margin | one GEMM, 16 SMs left free |
| wgrad_add16, wgrad_add32, wgrad_mm | the weight gradient (k: tokens) added into BF16 or FP32, or alone |
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

SECONDS = 0.8
FREE = 16
RING = (
    (8, 4096, 2304, 16384), (8, 4096, 13312, 16384), (4, 4096, 2560, 8192), (4, 4096, 14336, 8192),
    (4, 2048, 9216, 12288), (4, 2048, 12288, 12288), (4, 16384, 6144, 6144), (2, 8192, 3072, 4096),
)  # fmt: skip
"""Ranks, rows, columns and depth of GEMMs that a gather feeds: Llama 3.1 405B and 70B, GPT-3, Nemotron-4 15B, 8B."""
DRAINED = (
    (8, 4096, 16384, 2048), (8, 4096, 16384, 6656), (4, 4096, 8192, 2048), (4, 4096, 8192, 7168),
    (4, 2048, 12288, 3072), (4, 2048, 12288, 12288), (4, 16384, 6144, 6144), (2, 8192, 4096, 7168),
)  # fmt: skip
"""Those that a reduce-scatter drains."""
WEIGHTS = ((12288, 12288, 2048), (16384, 6656, 4096), (8192, 7168, 4096), (6144, 6144, 16384))
COLUMNS = ("how", "precision", "ranks", "m", "n", "k", "us", "power_w", "sm_mhz")
GRAPHED = ("whole", "gather", "scatter", "pipeline")
Call = Callable[[], object]


def operand(rows: int, columns: int, precision: str) -> torch.Tensor:
    """Random normal values."""
    x = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16)
    return x.to(torch.float8_e4m3fn) if precision == "fp8" else x


def multiplied(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x times w transposed, in BF16."""
    if x.dtype == torch.bfloat16:
        return x @ w.t()
    one = torch.ones((), device="cuda")
    return torch._scaled_mm(x, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


class Streams:
    """Pieces on three streams in turn."""

    def __init__(self) -> None:
        self.all = [torch.cuda.Stream() for _ in range(3)]

    def run(self, pieces: list[tuple[torch.Tensor, torch.Tensor]], in_flight: int = 0) -> None:
        """All pieces, and the current stream waits for them."""
        main = torch.cuda.current_stream()
        done: list[torch.Event] = []
        start = main.record_event()
        for stream in self.all:
            stream.wait_event(start)
        for at, (x, w) in enumerate(pieces):
            stream = self.all[at % 3]
            with torch.cuda.stream(stream):
                if in_flight and at >= in_flight:
                    stream.wait_event(done[at - in_flight])
                multiplied(x, w)
                done.append(stream.record_event())
        for event in done[-3:]:
            main.wait_event(event)


def state() -> tuple[float, float]:
    """Power [W] and clock [MHz] now."""
    import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

    pynvml.nvmlInit()
    gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
    clock = pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)
    return pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3, float(clock)


def seconds_each(call: Call, before: int, many: int) -> float:
    """Mean time of `many` calls after some `before` them [s]."""
    for _ in range(before):
        call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(many):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / many


def lasting(call: Call, seconds: float = SECONDS) -> dict[str, float]:
    """Mean time of the second half of a run [us], power and clock then."""
    many = max(10, int(seconds / 2 / max(seconds_each(call, 3, 5), 1e-6)))
    for _ in range(many):
        call()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    for _ in range(many):
        call()
    last.record()
    watts, clock = state()
    while not last.query():
        watts, clock = state()
        time.sleep(0.01)
    return {"us": first.elapsed_time(last) * 1e3 / many, "power_w": watts, "sm_mhz": clock}


def graphed(call: Call) -> dict[str, float]:
    """The same of a call that is replayed in a CUDA graph, four times in each: the host does not count."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(4):
            call()
    found = lasting(graph.replay)
    return found | {"us": found["us"] / 4}


def pieces_of(
    x: torch.Tensor, w: torch.Tensor, many: int, along_weight: bool
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A GEMM in so many pieces."""
    return [(x, part) for part in w.chunk(many)] if along_weight else [(part, w) for part in x.chunk(many)]


def limited(call: Call) -> None:
    """The call, its GEMMs on all SMs but `FREE`."""
    torch._C._set_sm_carveout_experimental(FREE)
    call()
    torch._C._set_sm_carveout_experimental(None)


def cases(streams: Streams, precision: str) -> list[tuple[str, int, tuple[int, int, int], Call]]:
    """(how, ranks, shape, call) of one precision; operands are made when the call is first asked for."""
    out = []
    for ways, shapes in ((("whole", "gather"), RING), (("whole", "scatter", "pipeline", "margin"), DRAINED)):
        for ranks, m, n, k in shapes:
            x, w = operand(m, k, precision), operand(n, k, precision)
            ring, line = pieces_of(x, w, ranks, False), pieces_of(x, w, 4, True)
            calls: dict[str, Call] = {
                "whole": partial(multiplied, x, w),
                "gather": partial(streams.run, ring),
                "scatter": partial(streams.run, ring, 2),
                "pipeline": partial(limited, partial(streams.run, line)),
                "margin": partial(limited, partial(multiplied, x, w)),
            }
            out += [(how, ranks, (m, n, k), calls[how]) for how in ways]
    return out


def gradients() -> list[tuple[str, int, tuple[int, int, int], Call]]:
    """Weight gradients added into BF16 and FP32."""
    out: list[tuple[str, int, tuple[int, int, int], Call]] = []
    for m, n, k in WEIGHTS:
        g, x = operand(k, m, "bf16").t(), operand(k, n, "bf16")
        kept16, kept32 = (torch.zeros(m, n, device="cuda", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
        add32 = partial(torch.addmm, kept32, g, x, out_dtype=torch.float32, out=kept32)
        out.append(("wgrad_add16", 1, (m, n, k), partial(torch.addmm, kept16, g, x, out=kept16)))
        out += [("wgrad_add32", 1, (m, n, k), add32), ("wgrad_mm", 1, (m, n, k), partial(torch.mm, g, x))]
    return out


def main() -> None:
    torch.manual_seed(0)
    out, streams = Path(sys.argv[1]), Streams()
    warm, weight = operand(8192, 8192, "bf16"), operand(8192, 8192, "bf16")
    lasting(lambda: multiplied(warm, weight), 6.0)
    with out.open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, restval="")
        table.writeheader()

        def keep(how: str, precision: str, ranks: int, shape: tuple[int, int, int], found: dict[str, float]) -> None:
            m, n, k = shape
            row = {"how": how, "precision": precision, "ranks": ranks, "m": m, "n": n, "k": k}
            table.writerow(row | {key: round(value, 2) for key, value in found.items()})
            file.flush()

        for precision in ("bf16", "fp8"):
            for how, ranks, shape, call in cases(streams, precision):
                try:
                    keep(
                        how,
                        precision,
                        ranks,
                        shape,
                        graphed(call) if precision == "fp8" and how in GRAPHED else lasting(call),
                    )
                except Exception as error:  # a library may refuse a shape: the others count
                    print(how, precision, shape, error, file=sys.stderr)
        for how, ranks, shape, call in gradients():
            try:
                keep(how, "bf16", ranks, shape, lasting(call))
            except Exception as error:
                print(how, shape, error, file=sys.stderr)


if __name__ == "__main__":
    main()
