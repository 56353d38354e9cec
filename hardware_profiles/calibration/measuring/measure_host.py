"""Measure what the host needs to issue work: `stack.host_kernel`, `host_gemm`, `host_collective`.

    python hardware_profiles/calibration/measuring/measure_host.py OUT.csv
    python -m torch.distributed.run --nproc-per-node 2 hardware_profiles/calibration/measuring/measure_host.py OUT.csv

Each row repeats one call on operands so small that the GPU is always ahead, without waiting for it, and divides the
time of the host by the calls; `launches` are the kernels of one call, counted by the profiler, `us` the median of
rounds. Rows `*_backward` time autograd's pass alone. Needs PyTorch with CUDA; Transformer Engine is measured where it
is installed, collectives where torchrun starts two ranks. Less than a minute.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

COLUMNS = ["what", "gpu", "cpu", "ranks", "launches", "us", "us_min"]
CALLS, ROUNDS, TOKENS, WIDTH = 50, 15, 128, 256
"""Calls a round stay below the 1024 launches that a stream holds before it makes the host wait."""
Row = dict[str, Any]


def cpu() -> str:
    """The model of the processor."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")


def launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills that a call puts on the GPU."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return sum(1 for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA)


class Recorder:
    """Rows so far."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.here = {"gpu": torch.cuda.get_device_name(), "cpu": cpu()}
        self.ranks = dist.get_world_size() if dist.is_initialized() else 1

    def add(self, what: str, call: Callable[[], object], *, calls: int = CALLS) -> None:
        """Host time of one call."""
        for _ in range(5):
            call()
        torch.cuda.synchronize()
        times = []
        for _ in range(ROUNDS):
            a = time.perf_counter()
            for _ in range(calls):
                call()
            times.append((time.perf_counter() - a) / calls * 1e6)
            torch.cuda.synchronize()
        self._keep(what, launches(call), times)

    def backward(self, what: str, forward: Callable[[], torch.Tensor]) -> None:
        """Host time of autograd's pass over what `forward` made."""
        for _ in range(5):
            forward().sum().backward()
        torch.cuda.synchronize()
        times = []
        for _ in range(ROUNDS * 4):
            out = forward()
            gradient = torch.ones_like(out)
            torch.cuda.synchronize()
            a = time.perf_counter()
            out.backward(gradient)
            times.append((time.perf_counter() - a) * 1e6)
            torch.cuda.synchronize()
        out = forward()
        gradient = torch.ones_like(out)
        torch.cuda.synchronize()
        self._keep(f"{what}_backward", launches(lambda: out.backward(gradient)), times)

    def _keep(self, what: str, many: int, times: list[float]) -> None:
        row = {"what": what, **self.here, "ranks": self.ranks, "launches": many}
        self.rows.append(row | {"us": round(median(times), 2), "us_min": round(min(times), 2)})
        if self.ranks == 1 or dist.get_rank() == 0:
            print(self.rows[-1], flush=True)


class Layer(nn.Module):
    """A small Llama layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH, bias=False), nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.norm_attn, self.norm_ffn = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, tokens, width) to the same."""
        q, k, v = (t.view(1, TOKENS, 4, -1).transpose(1, 2) for t in self.qkv(self.norm_attn(x)).chunk(3, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(1, TOKENS, WIDTH))
        gate, up = self.up(self.norm_ffn(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def tensor(*shape: int, grad: bool = False) -> torch.Tensor:
    """Random BF16 values."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, requires_grad=grad)


def kernels(rec: Recorder) -> None:
    """Elementwise kernels, one by one and as a chain that autograd goes back through."""
    x, y, leaf = tensor(TOKENS, WIDTH), tensor(TOKENS, WIDTH), tensor(TOKENS, WIDTH, grad=True)
    rec.add("add", lambda: x + y)
    rec.add("mul", lambda: x * y)
    rec.add("add_with_graph", lambda: leaf + y)
    rec.add("to_fp32", x.float)
    rec.add("cat", lambda: torch.cat((x, y), dim=-1))

    def chain() -> torch.Tensor:
        out = leaf
        for _ in range(20):
            out = out * y
        return out

    rec.backward("mul_x20", chain)


def modules(rec: Recorder) -> None:
    """Modules of a layer, eager and compiled, forward and backward."""
    made: dict[str, Any] = {
        "linear": nn.Linear(WIDTH, WIDTH, bias=False),
        "rms_norm": nn.RMSNorm(WIDTH),
        "layer_norm": nn.LayerNorm(WIDTH),
        "layer": Layer(),
    }
    x = tensor(1, TOKENS, WIDTH, grad=True)
    for name, fresh in made.items():
        module = fresh.to("cuda", torch.bfloat16)
        rec.add(name, lambda: module(x))
        rec.backward(name, lambda: module(x))
        compiled = torch.compile(module)
        rec.add(f"{name}_compiled", lambda: compiled(x))
        rec.backward(f"{name}_compiled", lambda: compiled(x))
    q = tensor(1, 4, TOKENS, 64, grad=True)
    rec.add("sdpa", lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True))
    rec.backward("sdpa", lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True))


def rest(rec: Recorder) -> None:
    """Optimizer, a graph of kernels, a value read back."""
    layer: Any = nn.Sequential(*(Layer() for _ in range(8))).to("cuda", torch.bfloat16)
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    adam = torch.optim.AdamW(layer.parameters(), fused=True)
    rec.add("adamw_fused_64_tensors", adam.step, calls=5)
    x = tensor(1, TOKENS, WIDTH)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad():
        layer(x)
        with torch.cuda.graph(graph):
            layer(x)
    rec.add("graph_of_8_layers", graph.replay, calls=5)
    rec.add("item", lambda: x.sum().item())


def transformer_engine(rec: Recorder) -> None:
    """The modules that Megatron-Core is made of."""
    try:
        import transformer_engine.pytorch as te  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return
    x = tensor(TOKENS, 1, WIDTH, grad=True)
    made = {
        "te_linear": te.Linear(WIDTH, WIDTH, bias=False, params_dtype=torch.bfloat16),
        "te_layernorm_linear": te.LayerNormLinear(WIDTH, WIDTH, bias=False, params_dtype=torch.bfloat16),
    }
    for name, module in made.items():
        rec.add(name, lambda: module(x))
        rec.backward(name, lambda: module(x))
        with te.fp8_autocast(enabled=True):
            rec.add(f"{name}_fp8", lambda: module(x))
    core = te.DotProductAttention(4, 64, attn_mask_type="causal")
    q = tensor(TOKENS, 1, 4, 64, grad=True)
    rec.add("te_attention", lambda: core(q, q, q))
    rec.backward("te_attention", lambda: core(q, q, q))


def collectives(rec: Recorder) -> None:
    """NCCL, on small buffers: all ranks issue the same, and none waits."""
    if not dist.is_initialized():
        return
    n = dist.get_world_size()
    part, whole = tensor(TOKENS, WIDTH), tensor(n * TOKENS, WIDTH)
    rec.add("all_gather", lambda: dist.all_gather_into_tensor(whole, part))
    rec.add("reduce_scatter", lambda: dist.reduce_scatter_tensor(part, whole))
    rec.add("all_reduce", lambda: dist.all_reduce(part))
    rec.add("all_to_all", lambda: dist.all_to_all_single(whole, whole.clone()))
    rec.add("all_gather_async", lambda: dist.all_gather_into_tensor(whole, part, async_op=True).wait())


def main() -> None:
    """All sections; one that fails leaves the others."""
    if "RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    rec = Recorder()
    for section in (kernels, modules, rest, transformer_engine, collectives):
        try:
            section(rec)
        except Exception as error:
            print("failed:", section.__name__, str(error)[:200], file=sys.stderr)
    if rec.ranks == 1 or dist.get_rank() == 0:
        with open(sys.argv[1], "w", newline="", encoding="utf-8") as file:
            file.write(f"# measure_host.py, torch {torch.__version__}\n")
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rec.rows)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
