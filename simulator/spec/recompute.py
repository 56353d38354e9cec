"""Recomputation as a set of modules: what backward recomputes instead of reading what forward kept."""

from __future__ import annotations

from typing import get_args

from simulator.spec.job import Layout, Module
from simulator.spec.stack import Stack

Modules = frozenset[Module]

NOTHING: Modules = frozenset()
DEEPSEEK: Modules = frozenset(("norm", "mla_up", "swiglu"))
"""What DeepSeek-V3 recomputes (arXiv 2412.19437, sections 3.2.3 and 3.3.3)."""

CHECKPOINTED: Modules = frozenset(("mlp", "moe", "shared_experts"))
"""Modules of a layer that run again as a whole; only their input is kept."""

MODULES: tuple[Module, ...] = get_args(Module)


def recomputed_modules(layout: Layout, stack: Stack) -> Modules:
    """The modules that a job recomputes: its `layout.recompute`, where that is `selective` as the `stack` means it."""
    match layout.recompute:
        case "none":
            return NOTHING
        case "full":
            return frozenset(("layer",))
        case "deepseek":
            return DEEPSEEK
        case "selective":
            return frozenset(("core_attn",)) if stack.selective == "core" else frozenset(("ops",))
        case modules:
            return frozenset(modules)
