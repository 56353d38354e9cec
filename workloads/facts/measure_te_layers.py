"""Measure layers of Megatron-Core with Transformer Engine on one GPU: whole, kernel by kernel, and the host's part.

    python workloads/facts/measure_te_layers.py OUT_DIRECTORY [--only REGEX] [--parts whole,host,update] [--budget S]

Needs megatron-core and transformer_engine, not Apex. Compared with, never fitted. Cases are `te_cases.py`'s, through
Megatron-Core's GPTModel, DistributedDataParallel and distributed optimizer with one rank: weight gradients are added
into the gradient buffer by the GEMMs, FP8 weights are cast in the first microbatch of a step (`cached` 0) and kept in
the following ones (1).

`te_times.csv`: a microbatch forward and backward under sustained load, `busy_us` of its kernels, clock and power.
`te_kernels.csv`: every kernel of a microbatch in order, profiled at that clock, and after which module's start
(`x`) or end (`after x`) it was launched; small spins mark these, so that gaps are not comparable.
`te_host.csv`: time the calls of a microbatch take, one after the other, at widths where the GPU waits for the host.
"""

from __future__ import annotations

import argparse
import csv
import gc
import os
import re
import statistics
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch
import torch.nn.functional as F
from te_cases import CASES, FP8, SMALL, Case  # type: ignore[import-not-found]  # the script next to it

Row = dict[str, Any]
Marks = list[str]
Kernel = tuple[str, str, float, float]
"""Mark, name, start and time [us]."""
MARKED = re.compile(
    r"(embedding|linear_\w+|[qk]_layernorm|core_attention|pre_mlp_layernorm|input_layernorm|router|experts"
    r"|shared_experts|final_layernorm|output_layer)$"
)
"""Modules whose start and end are marked in a profile."""
LOAD_SECONDS = 0.8
ACCUMULATED = 4
HOST_RUNS, HOST_UNSEEN = 24, 4


class Table:
    """Rows that are on disk as soon as they are known."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path, self.columns = path, columns
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writeheader()

    def add(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerows(rows)


def without_apex() -> None:
    """The head's weight gradient, which Megatron-Core takes from Apex, as the same cuBLAS call through TE."""
    from transformer_engine.pytorch.cpp_extensions import general_gemm

    def accumulate(x: torch.Tensor, dy: torch.Tensor, grad: torch.Tensor) -> None:
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        general_gemm(x, dy, out_dtype=grad.dtype, layout="NT", grad=True, out=grad, accumulate=True)

    module: Any = types.ModuleType("fused_weight_gradient_mlp_cuda")
    module.wgrad_gemm_accum_fp32 = module.wgrad_gemm_accum_fp16 = accumulate
    sys.modules[module.__name__] = module


def config_of(case: Case, precision: str) -> Any:
    """Megatron-Core's configuration."""
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    kind = MLATransformerConfig if case.config.get("multi_latent_attention") else TransformerConfig
    fp8 = {"fp8": "e4m3" if precision == "blockwise" else "hybrid", "fp8_recipe": precision}
    return kind(
        num_layers=case.layers,
        bf16=True,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        gradient_accumulation_fusion=True,
        bias_activation_fusion=case.config["activation_func"] is F.silu or case.config["add_bias_linear"],
        bias_dropout_fusion=True,
        masked_softmax_fusion=True,
        persist_layer_norm=True,
        apply_rope_fusion=case.positions == "rope",
        cross_entropy_loss_fusion=True,
        cross_entropy_fusion_impl="te",
        **(fp8 | {"fp8_amax_history_len": 1024, "fp8_amax_compute_algo": "max"} if precision in FP8 else {}),
        **case.config,
    )


def model_of(case: Case, precision: str) -> Any:
    """Model in Megatron-Core's data-parallel wrapper."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.module import Float16Module

    config = config_of(case, precision)
    spec = get_gpt_layer_with_transformer_engine_spec(
        num_experts=case.config.get("num_moe_experts"),
        moe_grouped_gemm=True,
        qk_layernorm=case.config.get("qk_layernorm", False),
        multi_latent_attention=case.config.get("multi_latent_attention", False),
    )
    model = GPTModel(
        config,
        spec,
        vocab_size=case.vocab,
        max_sequence_length=case.seq,
        position_embedding_type=case.positions,
        rotary_percent=case.rotary,
        share_embeddings_and_output_weights=False,
    ).cuda()
    shared = DistributedDataParallelConfig(
        grad_reduce_in_fp32=case.grads == torch.float32, use_distributed_optimizer=True
    )
    return DistributedDataParallel(config, shared, Float16Module(config, model))


class Program:
    """Forward and backward of a case; what runs them is timed from outside."""

    def __init__(self, case: Case, precision: str) -> None:
        torch.manual_seed(1)
        self.case, self.precision = case, precision
        self.model = model_of(case, precision)
        self.ids = torch.randint(0, case.vocab, (case.mbs, case.seq), device="cuda")
        self.labels = torch.randint(0, case.vocab, (case.mbs, case.seq), device="cuda")
        self.positions = torch.arange(case.seq, device="cuda").expand(case.mbs, -1).contiguous()

    def forward(self, first: bool) -> torch.Tensor:
        """The loss; `first` of a step's microbatches cast FP8 weights."""
        if first:
            self.model.module.module.set_is_first_microbatch()
        losses = self.model(self.ids, self.positions, None, labels=self.labels)
        return losses.float().mean()

    def free(self) -> None:
        """Give the memory back, whoever still holds the model."""
        from megatron.core.transformer.moe.moe_utils import get_moe_layer_wise_logging_tracker
        from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

        for buffer in (*self.model.buffers, *self.model.expert_parallel_buffers):
            for data in (buffer.param_data, buffer.grad_data):
                if data is not None:
                    data.untyped_storage().resize_(0)
        for module in self.model.modules():
            getattr(module, "_fp8_workspaces", {}).clear()
        FP8GlobalStateManager.reset()
        get_moe_layer_wise_logging_tracker().clear()

    def microbatch(self, first: bool) -> None:
        """One microbatch, its gradients kept in the buffer."""
        with self.model.no_sync():
            self.forward(first).backward()


class Draw:
    """Clock and power while something runs."""

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        self.nvml, self.gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.samples: list[tuple[float, float]] = []
        self.stop = threading.Event()

    def _sample(self) -> None:
        while not self.stop.wait(0.02):
            clock = self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM)
            self.samples.append((clock, self.nvml.nvmlDeviceGetPowerUsage(self.gpu) / 1e3))

    @contextmanager
    def over(self) -> Iterator[None]:
        """Sample while the body runs."""
        self.samples, self.stop = [], threading.Event()
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stop.set()
            thread.join()

    def means(self) -> Row:
        """Of the second half of the samples."""
        half = self.samples[len(self.samples) // 2 :] or [(0.0, 0.0)]
        return {
            "sm_mhz": round(statistics.mean(s[0] for s in half)),
            "watts": round(statistics.mean(s[1] for s in half)),
        }


def sustained(call: Callable[[], object], draw: Draw, seconds: float = LOAD_SECONDS) -> Row:
    """Mean time of a call [us] under sustained load: of the second half of the time."""
    call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    torch.cuda.synchronize()
    each = time.perf_counter() - began
    many = max(2, int(seconds / each / 2))
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    with draw.over():
        for at in range(2 * many):
            if at == many:
                events[0].record()
            call()
        events[1].record()
        torch.cuda.synchronize()
    return {"us": round(events[0].elapsed_time(events[1]) * 1e3 / many, 1), **draw.means()}


def mark(marks: Marks, label: str) -> None:
    """A spin on the stream, and its label."""
    marks.append(label)
    torch.cuda._sleep(10)


def differentiable(found: Any) -> torch.Tensor | None:
    """The first tensor, alone or in a tuple, that gets a gradient."""
    if isinstance(found, torch.Tensor):
        return found if found.requires_grad else None
    return next((t for x in found if (t := differentiable(x)) is not None), None) if isinstance(found, tuple) else None


def hooks_of(marks: Marks, label: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """What marks start and end of a module, before and after its forward."""

    def before(_module: Any, args: Any) -> None:
        mark(marks, "F " + label)
        if (x := differentiable(args)) is not None and not x.is_leaf:
            x.register_hook(lambda _grad: mark(marks, "B after " + label))

    def after(_module: Any, _args: Any, out: Any) -> None:
        mark(marks, "F after " + label)
        if (x := differentiable(out)) is not None:
            x.register_hook(lambda _grad: mark(marks, "B " + label))

    return before, after


@contextmanager
def marking(model: torch.nn.Module, marks: Marks) -> Iterator[None]:
    """Mark starts and ends of modules on the stream, forward and backward."""
    handles = []
    for name, module in model.named_modules():
        if MARKED.search(name):
            at = re.search(r"layers\.(\d+)", name)
            before, after = hooks_of(marks, (at.group(1) + " " if at else "- ") + name.rsplit(".", 1)[-1])
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def profiled(call: Callable[[Marks], object], before: Callable[[], object]) -> list[Kernel]:
    """Mark, name, start and time [us] of every kernel of a call that follows `before` without a pause."""
    marks: Marks = []
    for _ in range(2):
        marks.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
            before()
            mark(marks, "start")
            call(marks)
            torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    found = [e for e in prof.profiler.kineto_results.events() if e.device_type() == cuda]
    found.sort(key=lambda e: e.start_ns())
    spins = [at for at, e in enumerate(found) if "spin_kernel" in e.name()]
    out, label = [], ""
    if len(spins) < len(marks):
        raise RuntimeError(f"{len(spins)} spins in the profile, {len(marks)} marks")
    labels = dict(zip(spins[-len(marks) :], marks, strict=True))
    for at in range(spins[-len(marks)], len(found)):
        if at in labels:
            label = labels[at]
        else:
            e = found[at]
            out.append(
                (label, e.name().removeprefix("void ").replace(",", ";"), e.start_ns() / 1e3, e.duration_ns() / 1e3)
            )
    return out


def kernel_rows(labels: Row, kernels: Sequence[Kernel]) -> list[Row]:
    """Rows of `te_kernels.csv`; `start` is since the first kernel's [us]."""
    keys = ("mark", "kernel", "start", "us")
    return [
        labels | dict(zip(keys, (mark, name[:150], round(start - kernels[0][2], 1), round(us, 2)), strict=True))
        for mark, name, start, us in kernels
    ]


def once(program: Program, cached: int, marks: Marks, hooks: bool = False) -> None:
    """One microbatch, its directions marked, and with `hooks` its modules."""
    with program.model.no_sync(), marking(program.model, marks) if hooks else nullcontext():
        loss = program.forward(not cached)
        mark(marks, "B start")
        loss.backward()


def microbatches(program: Program, many: int, every: int) -> None:
    """Several; each `every`-th is the first of a step."""
    for at in range(many):
        program.microbatch(at % every == 0)


def whole(case: Case, name: str, precision: str, tables: Mapping[str, Table], draw: Draw) -> None:
    """Times and kernels of a microbatch."""
    program = Program(case, precision)
    microbatches(program, 2, 2)
    labels = {"case": name, "precision": precision, "layers": case.layers, "seq": case.seq, "mbs": case.mbs}
    for cached in (0, 1) if precision in FP8 else (1,):
        every = ACCUMULATED if cached else 1
        row = labels | {"cached": cached} | sustained(partial(microbatches, program, every, every), draw)
        row["us"] = round(row["us"] / every, 1)
        warm = partial(microbatches, program, max(1, int(3e5 / row["us"])), every)
        plain = profiled(partial(once, program, cached), warm)
        for way in ("F", "B"):
            mine = [k for k in plain if (k[0] == "B start") == (way == "B")]
            row |= {f"busy_{way}_us": round(sum(k[3] for k in mine), 1), f"launches_{way}": len(mine)}
            row[f"span_{way}_us"] = round(max(k[2] + k[3] for k in mine) - mine[0][2], 1)
        tables["times"].add([row])
        marked = profiled(partial(once, program, cached, hooks=True), warm)
        tables["kernels"].add(kernel_rows({"case": name, "precision": precision, "cached": cached}, marked))
        print(row, flush=True)
    program.free()


def small(case: Case, layers: int) -> Case:
    """The same modules, so narrow that the host decides."""
    config = dict(case.config) | SMALL
    if "num_query_groups" in config:
        config["num_query_groups"] = min(4, config["num_query_groups"])
    if "num_moe_experts" in config:
        config |= {"moe_ffn_hidden_size": 256}
    return replace(case, layers=layers, seq=256, mbs=1, vocab=512, config=config)


def host(case: Case, name: str, precision: str, tables: Mapping[str, Table], draw: Draw) -> None:
    """Time the host takes to launch a microbatch, with one layer and with five, while the GPU waits for it."""
    for layers in (1, 5):
        program = Program(small(case, layers), precision)
        microbatches(program, HOST_UNSEEN, HOST_UNSEEN)
        torch.cuda.synchronize()
        stamps = [time.perf_counter()]
        for _ in range(HOST_RUNS):
            with program.model.no_sync():
                loss = program.forward(False)
                stamps.append(time.perf_counter())
                loss.backward()
                stamps.append(time.perf_counter())
        spans = [(b - a) * 1e6 for a, b in pairwise(stamps)]
        row: Row = {"case": name, "precision": precision, "layers": layers}
        for way, mine in (("F", spans[0::2]), ("B", spans[1::2])):
            row |= {f"host_{way}_us": round(statistics.median(mine), 1), f"min_{way}_us": round(min(mine), 1)}
        plain = profiled(partial(one_more, program), noop)
        row |= {"launches": len(plain), "busy_us": round(sum(k[3] for k in plain), 1)}
        tables["host"].add([row])
        print(row, flush=True)
        program.free()


def one_more(program: Program, _marks: Marks) -> None:
    """A microbatch that is not a step's first."""
    program.microbatch(False)


def noop() -> None:
    """Nothing before."""


def update(case: Case, name: str, precision: str, tables: Mapping[str, Table], draw: Draw) -> None:
    """Kernels of the optimizer's step, with the gradients' norm, and of zeroing the gradients."""
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    if precision != "bf16":
        return
    program = Program(case, precision)
    settings = OptimizerConfig(
        optimizer="adam", lr=1e-5, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True, clip_grad=1.0
    )
    optimizer = get_megatron_optimizer(settings, [program.model], use_gloo_process_groups=False)

    def updated(marks: Marks) -> None:
        for label, call in (("U step", optimizer.step), ("U zero", program.model.zero_grad_buffer)):
            mark(marks, label)
            call()
        optimizer.zero_grad()

    program.microbatch(True)
    updated([])
    kernels = profiled(updated, lambda: program.microbatch(True))
    many = sum(p.numel() for p in program.model.parameters())
    program.free()
    tables["kernels"].add(kernel_rows({"case": name, "precision": precision, "cached": 1}, kernels))
    print(
        f"update of {name}: {many} parameters, {len(kernels)} kernels, {sum(k[3] for k in kernels):.0f} us", flush=True
    )


PARTS = {"whole": whole, "host": host, "update": update}
COLUMNS = {
    "times": ["case", "precision", "cached", "layers", "seq", "mbs", "us", "sm_mhz", "watts"]
    + [f"{what}_{way}" for way in ("F_us", "B_us") for what in ("busy", "span")]
    + ["launches_F", "launches_B"],
    "kernels": ["case", "precision", "cached", "mark", "kernel", "start", "us"],
    "host": ["case", "precision", "layers", "host_F_us", "min_F_us", "host_B_us", "min_B_us", "launches", "busy_us"],
}


def begin() -> None:
    """One rank of everything; the fused rotation of MLA is behind a flag."""
    from megatron.core import parallel_state
    from megatron.core.config import set_experimental_flag
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    set_experimental_flag(True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29513", "RANK": "0", "WORLD_SIZE": "1"}
    torch.distributed.init_process_group("nccl", world_size=1, rank=0, device_id=torch.device("cuda", 0))
    parallel_state.initialize_model_parallel(1, 1)
    model_parallel_cuda_manual_seed(1)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=".")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which nothing further is begun")
    asked = parser.parse_args()
    last = time.time() + asked.budget
    without_apex()  # before Megatron-Core looks for it
    begin()
    tables = {name: Table(asked.out / f"te_{name}.csv", columns) for name, columns in COLUMNS.items()}
    draw = Draw()
    for part in asked.parts.split(","):
        for precision, name in ((p, name) for p in ("bf16", *FP8) for name in CASES):
            case, began = CASES[name], time.time()
            if precision not in case.precisions or not re.search(asked.only, f"{name} {precision}") or began > last:
                continue
            torch._dynamo.reset()  # Megatron-Core compiles its fused functions, a program for its own shapes
            try:
                PARTS[part](case, name, precision, tables, draw)
            except Exception as error:
                print(f"left out: {part} {name} {precision}: {type(error).__name__} {str(error)[:300]}", flush=True)
                traceback.print_exc(limit=-6)
            gc.collect()
            torch.cuda.empty_cache()
            print(f"== {part} {name} {precision}: {time.time() - began:.1f} s", flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
