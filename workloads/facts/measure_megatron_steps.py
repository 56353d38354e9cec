"""Measure whole training steps of Megatron-Core with Transformer Engine on one GPU, with clock, power and kernels.

    python workloads/facts/measure_megatron_steps.py OUT_DIRECTORY [--only REGEX] [--budget S] [--seconds S]

Needs megatron-core and transformer_engine, not Apex. Compared with, never fitted. A step is Megatron's: its schedule
without a pipeline over several microbatches, the loss of pretrain_gpt with its checks for NaN (two host reads), the
check of the gradients, distributed optimizer with FP32 masters and moments, clipping that always scales, weights copied
from the masters, the gradient buffer zeroed. What is run is in `megatron_plan.py`.

`steps.csv`: mean time of a step under sustained load, SM clock and power over it (power of NVML's energy counter), part
of the samples at which the power limit set the clock; then, of a last step under the profiler with the load going on,
its time, `busy_ms` in which any kernel ran, launches. `parts.csv`: every kernel name of that step, and how long nothing
ran before kernels of that name. `samples.csv`: clock and power at each instant.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import statistics
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import torch
from measure_te_layers import Program, Table, begin, without_apex  # type: ignore[import-not-found]
from megatron_plan import STEPS, Step  # type: ignore[import-not-found]
from te_cases import (  # type: ignore[import-not-found]  # the scripts next to it
    CASES,
    QWEN3,
    Case,
    dense,
    moe,
    squared_relu,
)

Row = dict[str, Any]
_GPT3 = CASES["gpt-3-175b tp4"].config | {"num_attention_heads": 96, "num_query_groups": 96, "ffn_hidden_size": 49152}
_NEMOTRON = {"normalization": "LayerNorm", "layernorm_zero_centered_gamma": True, "gated_linear_unit": False}
MODELS: dict[str, Case] = {
    "llama-3-8b": CASES["llama-3-8b"],
    "gpt-3-175b": replace(CASES["gpt-3-175b tp4"], config=_GPT3, vocab=51200),
    "nemotron-4-15b": Case(
        layers=4,
        seq=4096,
        mbs=2,
        vocab=256000,
        rotary=0.5,
        config=dense(6144, 48, 8, 24576) | _NEMOTRON | {"activation_func": squared_relu},
    ),
    "mixtral-8x7b": replace(CASES["mixtral-8x7b"], config=moe(4096, 32, 8, 8, 2, 14336), vocab=32000),
    "qwen3-30b-a3b": replace(CASES["qwen3-30b-a3b"], config=QWEN3),
    "gpt-3-175b tp4": CASES["gpt-3-175b tp4"],
}
"""Whole widths, and one of four ranks of GPT-3."""
POWER_INSTANT, POWER_CAP = 186, 4
"""NVML_FI_DEV_POWER_INSTANT; nvmlClocksThrottleReasonSwPowerCap."""
WARM_UP = 3
PROFILED = 2.5
"""Steps run so long under the profiler before the one that is kept, so that the clock is as low as it was [s]."""
SETTLE = 0.15
"""Part of the time that goes by before clock, power and steps count: until the clock has settled."""
POOL = 8
"""Different microbatches of random tokens."""


class Sensors:
    """Clock and power of a GPU while something runs."""

    def __init__(self) -> None:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pynvml.nvmlInit()
        self.nvml, self.gpu = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.samples: list[tuple[float, float, float, bool]] = []

    def power(self) -> float:
        """Of this moment [W], where the driver says it."""
        (found,) = self.nvml.nvmlDeviceGetFieldValues(self.gpu, [POWER_INSTANT])
        return float(found.value.uiVal) / 1e3

    def _sample(self, stop: threading.Event, began: float) -> None:
        while not stop.wait(0.05):
            clock = self.nvml.nvmlDeviceGetClockInfo(self.gpu, self.nvml.NVML_CLOCK_SM)
            reasons = self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.gpu)
            self.samples.append((time.perf_counter() - began, clock, self.power(), bool(reasons & POWER_CAP)))

    @contextmanager
    def over(self) -> Iterator[Row]:
        """Sample while the body runs; the row is filled at its end."""
        out: Row = {}
        self.samples, stop, began = [], threading.Event(), time.perf_counter()
        energy = self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu)
        thread = threading.Thread(target=self._sample, args=(stop, began), daemon=True)
        thread.start()
        yield out
        stop.set()
        thread.join()
        joules = (self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.gpu) - energy) / 1e3
        clocks = [s[1] for s in self.samples] or [0.0]
        out |= {
            "watts": round(joules / (time.perf_counter() - began), 1),
            "sm_mhz": round(statistics.mean(clocks)),
            "sm_mhz_sd": round(statistics.pstdev(clocks)),
            "capped": round(statistics.mean(s[3] for s in self.samples), 3) if self.samples else "",
            "celsius": self.nvml.nvmlDeviceGetTemperature(self.gpu, 0),
        }


class Training:
    """A model with its optimizer; `steps` run Megatron's schedule."""

    def __init__(self, case: Case, precision: str) -> None:
        from megatron.core.distributed import finalize_model_grads
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
        from megatron.core.rerun_state_machine import get_rerun_state_machine

        self.case, self.precision = case, precision
        self.program = Program(case, precision)
        settings = OptimizerConfig(
            optimizer="adam",
            lr=1e-5,
            weight_decay=0.1,
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=True,
            clip_grad=1e-3,
        )
        self.model = self.program.model
        vars(self.model.ddp_config)["check_for_nan_in_grad"] = True  # training.py's default
        self.optimizer = get_megatron_optimizer(settings, [self.model], use_gloo_process_groups=False)
        vars(self.model.config).update(
            no_sync_func=self.model.no_sync,
            grad_scale_func=self.optimizer.scale_loss,
            finalize_model_grads_func=finalize_model_grads,
        )
        self.checks, self.total = get_rerun_state_machine(), torch.zeros(1, device="cuda")

    def shape(self, seq: int, mbs: int) -> None:
        """Random tokens of these sizes."""
        many = (POOL, mbs, seq)
        self.tokens, self.labels = (torch.randint(0, self.case.vocab, many, device="cuda") for _ in range(2))
        self.positions = torch.arange(seq, device="cuda").expand(mbs, -1).contiguous()
        self.mask, self.at = torch.ones(mbs, seq, device="cuda"), 0

    def forward(self, _data: Any, model: Any) -> tuple[torch.Tensor, Any]:
        """Forward of a microbatch, and what makes its loss, as Megatron's schedule calls it."""
        self.at = (self.at + 1) % POOL
        losses = model(self.tokens[self.at], self.positions, None, labels=self.labels[self.at], loss_mask=self.mask)
        return losses, self.loss

    def loss(self, losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Row]:
        """pretrain_gpt's."""
        mask = self.mask.view(-1).float()
        loss = torch.sum(losses.view(-1).float() * mask)
        for rejects in (torch.isnan, torch.isinf):
            self.checks.validate_result(result=loss, rejection_func=rejects, message="loss", fatal=True)
        count = mask.sum().clone().detach().to(torch.int)
        report = torch.cat([loss.clone().detach().view(1), count.view(1)])
        return loss, count, {"lm loss": report}

    def step(self, seq: int, mbs: int, microbatches: int) -> None:
        """One step, as training.py's train_step and training_log."""
        from megatron.core.pipeline_parallel.schedules import forward_backward_no_pipelining

        self.model.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = forward_backward_no_pipelining(
            forward_step_func=self.forward,
            data_iterator=None,
            model=[self.model],
            num_microbatches=microbatches,
            seq_length=seq,
            micro_batch_size=mbs,
        )
        done, norm, _ = self.optimizer.step()
        sums = torch.vstack([r["lm loss"] for r in reports]).sum(dim=0)
        self.total += sums[0] / sums[1]
        if not done or not norm > 0.0 or torch.isnan(self.total).item():
            raise RuntimeError(f"step: done {done}, norm {norm}")

    def free(self) -> None:
        """Give the memory back, whoever still holds the optimizer."""
        for one in getattr(self.optimizer, "chained_optimizers", [self.optimizer]):
            for group in one.optimizer.param_groups:
                for p in group["params"]:
                    p.grad = None
                    for tensor in (p, *(t for t in one.optimizer.state[p].values() if torch.is_tensor(t))):
                        tensor.data.untyped_storage().resize_(0)
        self.program.free()


def profiled(step: Any, seconds: float) -> Row:
    """Time, busy time [ms] and kernels of the last of the steps that fill so many seconds under the profiler."""
    step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as prof:
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            torch.cuda._sleep(10)
            step()
        torch.cuda._sleep(10)
        step()
        torch.cuda._sleep(10)
        torch.cuda.synchronize()
    cuda = torch.autograd.DeviceType.CUDA
    found = [e for e in prof.profiler.kineto_results.events() if e.device_type() == cuda]
    found.sort(key=lambda e: e.start_ns())
    spins = [at for at, e in enumerate(found) if "spin_kernel" in e.name()]
    mine = found[spins[-2] + 1 : spins[-1]]
    busy, last = 0.0, found[spins[-2]].start_ns()
    parts: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for e in mine:
        start, end = e.start_ns(), e.start_ns() + e.duration_ns()
        busy += max(0, end - max(start, last))
        part = parts[e.name().removeprefix("void ").replace(",", ";")[:150]]
        for at, more in enumerate((1, e.duration_ns() / 1e3, max(0, start - last) / 1e3)):
            part[at] += more
        last = max(last, end)
    span = found[spins[-1]].start_ns() - found[spins[-2]].start_ns()
    return {"profiled_ms": span / 1e6, "busy_ms": busy / 1e6, "launches": len(mine), "parts": parts}


def measure(training: Training, what: Step, tables: dict[str, Table], sensors: Sensors, seconds: float) -> None:
    """One row, its kernels and its samples."""
    training.shape(what.seq, what.mbs)
    step = partial(training.step, what.seq, what.mbs, what.microbatches)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    each = time.perf_counter() - began
    settle = max(1, round(SETTLE * seconds / each))
    many = max(4, round(seconds / each) - settle)
    for _ in range(settle):
        step()
    torch.cuda.synchronize()
    with sensors.over() as row:
        began = time.perf_counter()
        for _ in range(many):
            step()
        torch.cuda.synchronize()
        took = time.perf_counter() - began
    labels: Row = {key: getattr(what, key) for key in ("model", "precision", "layers", "seq", "mbs", "microbatches")}
    row |= labels | {"step_ms": round(took / many * 1e3, 3), "steps": many}
    row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    tables["samples"].add(
        [
            {"step": what.name, "s": round(t, 2), "sm_mhz": c, "watts": round(w), "capped": int(p)}
            for t, c, w, p in sensors.samples
        ]
    )
    found = profiled(step, min(PROFILED, seconds))
    parts = found.pop("parts")
    row |= {key: round(value, 3) for key, value in found.items()}
    tables["steps"].add([row])
    tables["parts"].add(
        [
            {"step": what.name, "kernel": name, "launches": many, "us": round(us, 1), "gap_us": round(gap, 1)}
            for name, (many, us, gap) in sorted(parts.items(), key=lambda item: -item[1][1])
        ]
    )
    print(row, flush=True)


COLUMNS = {
    "steps": [
        *("model", "precision", "layers", "seq", "mbs", "microbatches", "step_ms", "steps", "watts", "sm_mhz"),
        *("sm_mhz_sd", "capped", "celsius", "peak_gb", "profiled_ms", "busy_ms", "launches"),
    ],
    "parts": ["step", "kernel", "launches", "us", "gap_us"],
    "samples": ["step", "s", "sm_mhz", "watts", "capped"],
}


def main() -> None:
    """Run what was asked for; a model is built once for all its steps in a precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", default=".")
    parser.add_argument("--budget", type=float, default=1e9, help="seconds after which nothing further is begun")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long each step is repeated, not as planned")
    asked = parser.parse_args()
    last = time.time() + asked.budget
    without_apex()  # before Megatron-Core looks for it
    begin()
    tables = {name: Table(asked.out / f"{name}.csv", columns) for name, columns in COLUMNS.items()}
    sensors = Sensors()
    wanted = [step for step in STEPS if re.search(asked.only, step.name)]
    for model, precision in dict.fromkeys((step.model, step.precision) for step in wanted):
        mine = [step for step in wanted if (step.model, step.precision) == (model, precision)]
        training = None
        for step in mine:
            began = time.time()
            if began > last:
                continue
            torch._dynamo.reset()  # Megatron-Core compiles its fused functions, a program for its own shapes
            try:
                if training is None:
                    case = replace(MODELS[model], layers=step.layers, seq=max(s.seq for s in mine))
                    training = Training(case, precision)
                measure(training, step, tables, sensors, asked.seconds or step.seconds)
            except Exception as error:
                print(f"left out: {step.name}: {type(error).__name__} {str(error)[:300]}", flush=True)
                traceback.print_exc(limit=-6)
            print(f"== {step.name}: {time.time() - began:.1f} s", flush=True)
        if training is not None:
            training.free()
            del training
        gc.collect()
        torch.cuda.empty_cache()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
