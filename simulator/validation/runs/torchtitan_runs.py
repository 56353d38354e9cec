"""Training steps of torchtitan: its own benchmarks, on H100 of 96 GB (HBM2e) at 500 W, and others'."""

from __future__ import annotations

from typing import Final

from simulator.validation.figures import Figure
from simulator.validation.training_figures import DENSE, Overrides, overrides_of, step

MODELS: Final = {"llama31_8b": "llama-3-8b", "llama31_70b": "llama-3-70b", "llama31_405b": "llama-3.1-405b"}
RECIPES: Final = {"bf16": "bf16", "float8_tensorwise": "fp8_tensor", "float8_rowwise": "fp8_row"}
EAGER: Final = {
    "stack__attention": "fa2",
    "stack__loss": "fp32",
    "stack__projections": "separate",
    "stack__keys_repeated": True,
    "stack__rope_complex": True,
    "stack__norm_kernels": "operators",
    "stack__update": "foreach",
}
"""What torchtitan of 2024 is without torch.compile (its model's and its optimizer's code at 9dec370)."""
LAYERS: Final = {"llama-3.1-405b": 126}
LENGTH: Final = 8192
"""Tokens of a sequence where the source does not say: its default."""


def rate(figure: Figure) -> float:
    """Tokens per GPU and second (github.com/pytorch/torchtitan, benchmarks)."""
    one = step(DENSE, run(figure), "longest-path")
    return one.job.tokens_per_step / one.seconds / one.job.gpus


def stack_of(figure: Figure) -> str:
    """The program's release: the benchmarks of 2024, and those of 2025."""
    return "torchtitan" if ".2024" in figure.id else "torchtitan-2025"


def run(figure: Figure) -> Overrides:
    """FSDP2 over what the other degrees leave; local batches are sequences of a data-parallel rank.

    Programs that are not compiled are eager PyTorch with what else torchtitan sets. Pipelines have as many microbatches
    as ranks, and two stages a rank where they are interleaved, the first and the last layer fewer (torchtitan/
    parallelisms/pipelining_utils.py, 2024-12: its defaults).
    """
    c = figure.config
    pp, cp, batch = (int(c.get(key, 1)) for key in ("pp", "cp", "local_batch"))
    precision = str(c["precision"])
    values: dict[str, object] = {
        "model": MODELS[str(c.get("model") or figure.id.split(".")[2].removesuffix("_asynctp"))],
        "hardware": str(c.get("hardware", "h100-hbm2e")),
        "stack": stack_of(figure) if c["compile"] else "torch",
        "gpus": int(c["gpus"]),
        "layout__tp": int(c["tp"]),
        "layout__pp": pp,
        "layout__cp": cp,
        "layout__zero": 3 if pp == 1 else 1,
        "layout__recompute": "full" if c["recompute"] == "full" else "selective",
        "precision__recipe": RECIPES[precision],
        "batch__sequence_length": int(c.get("seq", LENGTH)),
        "batch__microbatch_size": batch // pp,
        "batch__global_batch_size": batch * int(c["fsdp"]),
    }
    if values["precision__recipe"] == "fp8_tensor" and pp == 1:
        values["precision__weights"] = "recipe"  # its float8 all-gather
    if not c["compile"]:
        values |= EAGER
    if pp > 1:
        values |= pipeline(pp, str(c.get("schedule", "1f1b")), LAYERS[str(values["model"])])
    if cp > 1:
        values |= {"layout__cp_kind": "all_gather"}
    if c["async_tp"]:
        values |= {"stack__tp_overlap": True}
    return overrides_of(**values)


def pipeline(ranks: int, schedule: str, layers: int) -> dict[str, object]:
    """Layers of each stage: what does not divide goes to the second stage and those behind it, one each."""
    chunks = 2 if schedule == "interleaved" else 1
    stages = ranks * chunks
    few, more = divmod(layers, stages)
    each = [few, *[few + (at < more) for at in range(stages - 2)]]
    each.append(layers - sum(each))
    return {"layout__stages": each, "layout__schedule": schedule, "layout__vpp": chunks}
