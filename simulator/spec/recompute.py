"""Recomputation as a set of modules: what backward recomputes instead of reading what forward kept."""

from __future__ import annotations

from typing import Literal

from simulator.spec.job import Layout
from simulator.spec.stack import Stack

Module = Literal["core_attn", "norm", "mla_up", "swiglu", "ops", "full"]
"""What can be recomputed:

- `core_attn`: the attention core (Megatron's selective recomputation, arXiv 2205.05198, section 5);
- `norm`: the outputs of all norms (arXiv 2412.19437, section 3.2.3);
- `mla_up`: the up-projections of latent attention (the same section);
- `swiglu`: the outputs of the activation, of dense layers and of experts (section 3.3.3);
- `ops`: all of a layer but its attention core, its all-to-alls and every second GEMM (TorchTitan's policy `op`,
  arXiv 2410.06511; see `simulator.graph.recompute`);
- `full`: all of a layer; only its input is kept.
"""

Modules = frozenset[Module]

NOTHING: Modules = frozenset()
DEEPSEEK: Modules = frozenset(("norm", "mla_up", "swiglu"))
"""What DeepSeek-V3 recomputes (arXiv 2412.19437, sections 3.2.3 and 3.3.3)."""


def recomputed_modules(layout: Layout, stack: Stack) -> Modules:
    """The modules that a job recomputes: its `layout.recompute`, where that is `selective` as the `stack` means it."""
    match layout.recompute:
        case "none":
            return NOTHING
        case "full":
            return frozenset(("full",))
        case "deepseek":
            return DEEPSEEK
        case "selective":
            return frozenset(("core_attn",)) if stack.selective == "core" else frozenset(("ops",))
