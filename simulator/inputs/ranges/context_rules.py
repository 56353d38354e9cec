"""What context parallelism asks of the attention core and its heads."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.inputs.problems import Problem
from simulator.spec.mixer import Mixer
from simulator.spec.scenario import Scenario

NO_KERNEL = (Mixer.SPARSE, Mixer.BLOCKS, Mixer.CSA, Mixer.HCA)
"""Layers whose core is no single kernel over queries, keys and values: these are gathered."""


def context_rules(s: Scenario) -> Iterator[Problem]:
    """What kinds of context parallelism ask of the core and its heads."""
    layout, model = s.job.layout, s.model
    if layout.cp == 1 or s.job.serving is not None or layout.cp_kind == "all_gather":
        return
    kinds = list(dict.fromkeys(model.layer_kinds()))
    whole = [kind for kind in kinds if kind.mixer in NO_KERNEL]
    if whole or not s.stack.attention_fused:
        layers = f"{whole[0].mixer} layers of {model.name}" if whole else f"the stack {s.stack.name}"
        yield Problem(
            rule="context parallelism",
            key="layout.cp_kind",
            value=layout.cp_kind,
            message=f"the attention of {layers} is no single kernel over queries, keys and values",
            suggestion="use all_gather",
        )
    if layout.cp_kind != "all_to_all" or layout.tp < 1:
        return
    for kind in kinds:
        layer = model.of_kind(kind)
        heads = layer.num_attention_heads // layout.tp
        kv = heads if layer.is_mla else max(1, layer.num_key_value_heads // layout.tp)
        if heads % layout.cp or kv % layout.cp:
            yield Problem(
                rule="context parallelism",
                key="layout.cp",
                value=layout.cp,
                message=f"all_to_all spreads the {heads} heads and {kv} key-value heads of a rank over cp ranks",
                suggestion="use a cp that divides both, or the ring",
            )
            return
