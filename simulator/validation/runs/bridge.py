"""What the launch scripts of Megatron Bridge's published runs set, by container, model, GPU and precision."""

from __future__ import annotations

from functools import cache

from simulator.validation.figures import Figure, Row, fact_rows
from simulator.validation.outcome import precision_of

TABLE = "bridge_settings.csv"
SCRIPTED: tuple[str, ...] = (
    "optimizer.gradients=bf16",
    "optimizer.reduced=bf16",
    "stack.loss=te",
    "stack.gradient_mean=collective",
    "stack.gradient_check=false",
)
"""All performance recipes (scripts/performance, 2025-10 to 2026-08): grad_reduce_in_fp32 false,
cross_entropy_fusion_impl te, average_in_collective, no check_for_nan_in_grad."""
BY_TENSOR: tuple[str, ...] = ("precision.scaling=current", "precision.weights=recipe")
"""Where FP8 has a scale a tensor: fp8_recipe tensorwise, fp8_param_gather true (training/mixed_precision.py, v0.2.2 and
later). With MXFP8 the gathered parameters are BF16 (reuse_grad_buf_for_mxfp8_param_ag), as with NVFP4."""
STAGES = {
    (4, 4): "Et*16|(t*16|)*2t*13{}L",
    (8, 8): "Et*8|(t*8|)*6t*5{}L",
    (16, 16): "Et*4|(t*4|)*14t{}L",
    (8, 32): "Et|(tt|)*30{}L",
}
"""Layouts of DeepSeek-V3 and Kimi K2 by ranks and stages of a pipeline, {} for an MTP module
(src/megatron/bridge/recipes/deepseek/deepseek_v3.py, kimi/kimi_k2.py; scripts/performance/run_script.py, 2025)."""


def is_bridge(figure: Figure) -> bool:
    """Whether it is one of these runs."""
    return figure.id.startswith("E.bridge.")


def container(figure: Figure) -> tuple[int, ...]:
    """The container that it ran in: 26.02.01 as (26, 2, 1)."""
    numbers = []
    for part in figure.id.split(".")[2:]:
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


@cache
def _rows() -> tuple[Row, ...]:
    return tuple(fact_rows(TABLE))


def scripted(figure: Figure) -> tuple[str, ...]:
    """The overrides that the run's scripts amount to, the newest of its container last."""
    precision = precision_of(figure).replace("FP4", "NVFP4")
    run = (figure.config["model"], figure.config["gpu"], precision)
    known = [
        (tuple(map(int, row["since"].split("."))), row["settings"])
        for row in _rows()
        if (row["model"], row["gpu"], row["precision"]) == run
    ]
    before = [settings for since, settings in sorted(known) if since <= container(figure)]
    own = tuple(one.strip() for one in before[-1].split(";") if one.strip()) if before else ()
    return (*SCRIPTED, *(BY_TENSOR if precision == "FP8" else ()), *_casts_of(figure, precision), *own)


def _casts_of(figure: Figure, precision: str) -> tuple[str, ...]:
    """Casts of the container's Transformer Engine: 2.9 in 25.11, 2.12 in 26.02, 2.14 in 26.04, 2.16 in 26.06
    (docs/releases/software-versions.md, 2026-08)."""
    if precision not in ("MXFP8", "NVFP4") or container(figure) < (26, 2):
        return ()
    return (f"stack.block_casts={'joined' if container(figure) >= (26, 6) else 'laid_out'}",)


def predicts_further(figure: Figure) -> bool:
    """Whether DeepSeek-V3 trains with its MTP module: as the recipes say, unless the page says otherwise
    (mtp_num_layers = 1; the page's model FLOP of a token are 260 GFLOP with and 250 without)."""
    return figure.config["model"] == "dsv3" and figure.config.get("variant") != "w/o MTP"


def stages(figure: Figure, pp: int, vpp: int) -> str | None:
    """The layout of stages that the recipes write, None where they leave it to Megatron-Core."""
    if figure.config["model"] not in ("dsv3", "kimi_k2"):
        return None
    many = pp * vpp
    layout = STAGES.get((pp if many == 32 else many, many))
    return layout.format("m" if predicts_further(figure) else "") if layout else None
