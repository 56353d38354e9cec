"""Architectures of config.json files by `model_type`: one module a family, all in `SHIPPED`."""

from collections.abc import Mapping

from simulator.inputs.architectures import (
    deepseek,
    deepseek_v4,
    experts,
    gemma4,
    gpt,
    jamba,
    kimi,
    lfm2,
    llama,
    recurrent,
    windows,
)
from simulator.inputs.architectures.architecture import Architecture, Only, Unsupported

SHIPPED: Mapping[str, Architecture] = {
    **deepseek.SHIPPED,
    **deepseek_v4.SHIPPED,
    **kimi.SHIPPED,
    **llama.SHIPPED,
    **experts.SHIPPED,
    **experts.LING,
    **gpt.SHIPPED,
    **windows.SHIPPED,
    **gemma4.SHIPPED,
    **recurrent.SHIPPED,
    **jamba.SHIPPED,
    **lfm2.SHIPPED,
}
"""The project's own, by `model_type`."""

__all__ = ["SHIPPED", "Architecture", "Only", "Unsupported"]
