"""Which steps `measure_unseen_steps.py` runs: shapes drawn by lot from a seed, none chosen by hand.

Sizes are drawn from lists; layers fill a budget of parameters and of work, so that a step takes a fraction of a second.
Some models run with twice the sequences, too, so that the time of a further token and of what does not grow with tokens
are known apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

SEED = 27
PARAMETERS = {"dense": 1.8e9, "moe": 3.2e9}
"""At most so many parameters in layers."""
WORK = 3.0e13
"""At most so many times a parameter meets a token in a step, about a third of a second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One program. `experts` 0: dense; `shared`: width of the shared experts; `load`: of single experts."""

    name: str = ""
    mode: Literal["eager", "compile", "fp8_tensor", "fp8_row"] = "eager"
    style: Literal["fused", "separate"] = "fused"
    hidden: int
    inner: int
    layers: int = 1
    heads: int
    kv_heads: int
    d: int
    experts: int = 0
    topk: int = 0
    shared: int = 0
    vocab: int
    seq: int
    mbs: int = 1
    microbatches: int = 1
    load: Literal["balanced", "skewed"] = "balanced"
    states: Literal["bf16", "masters"] = "bf16"
    adam: Literal["fused", "foreach"] = "fused"
    recompute: Literal["none", "full"] = "none"
    loop: bool = False

    @property
    def layer(self) -> tuple[float, float]:
        """Parameters of a layer: all, and those that a token meets."""
        attention = self.hidden * self.d * (2 * self.heads + 2 * self.kv_heads)
        each = 3 * self.hidden * self.inner
        if not self.experts:
            return attention + each, attention + each
        shared = 3 * self.hidden * self.shared
        return attention + shared + self.experts * each, attention + shared + self.topk * each

    def filled(self) -> Case:
        """With as many layers as the budgets allow."""
        tokens = self.seq * self.mbs * self.microbatches
        held, met = self.layer
        most = min(PARAMETERS["moe" if self.experts else "dense"] / held, WORK / tokens / met)
        return replace(self, layers=max(1, min(10, int(most))))

    def tiny(self) -> Case:
        """So small that a CPU runs it."""
        some = {"experts": 4, "topk": 2, "shared": min(self.shared, 32)} if self.experts else {}
        small = {"hidden": 64, "inner": 32, "layers": 2, "heads": 4, "kv_heads": 2, "d": 16, "vocab": 128}
        return replace(self, seq=32, **small, **some)  # type: ignore[arg-type]  # sizes all


def _sizes(lot: Random, hiddens: list[int]) -> dict[str, int]:
    """What dense and other models share."""
    hidden, d = lot.choice(hiddens), lot.choice([64, 128, 128])
    heads = hidden // d
    kv = heads // lot.choice([f for f in (1, 2, 4, 8) if heads % f == 0])
    seq = lot.choice([1024, 2048, 4096, 4096, 8192])
    mbs = max(1, lot.choice([2048, 4096, 8192]) // seq)
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": kv, "d": d, "seq": seq, "mbs": mbs}
    return sizes | {"vocab": lot.choice([32000, 50304, 65536, 102400]), "microbatches": lot.choice([1, 2, 2, 3, 4])}


def dense_models(lot: Random) -> list[Case]:
    """Six dense models."""
    out = []
    for i in range(6):
        sizes = _sizes(lot, [1536, 2048, 2560, 3072, 4096, 5120, 6144])
        inner = 256 * round(sizes["hidden"] * lot.choice([2.67, 3.5, 4.0]) / 256)
        out.append(Case(style="fused" if i % 2 else "separate", inner=inner, **sizes).filled())  # type: ignore[arg-type]
    return out


def expert_models(lot: Random) -> list[Case]:
    """Eight models with experts."""
    out: list[Case] = []
    while len(out) < 8:
        sizes = _sizes(lot, [1024, 1536, 2048, 2560, 3072, 4096])
        experts = lot.choice([8, 16, 32, 64])
        topk = lot.choice([k for k in (2, 4, 6, 8) if k <= experts // 2])
        inner = lot.choice([512, 768, 1024, 1408, 2048, 2816, 4096])
        shared, load = lot.choice([0, 0, inner, 2 * inner]), lot.choice(["balanced", "balanced", "skewed"])
        style = "fused" if len(out) % 2 else "separate"
        case = Case(style=style, inner=inner, experts=experts, topk=topk, shared=shared, load=load, **sizes)  # type: ignore[arg-type]
        if 0.1e9 < case.layer[0] < PARAMETERS["moe"]:
            out.append(case.filled())
    return out


def _cases() -> Iterator[Case]:
    lot = Random(SEED)
    dense, sparse = dense_models(lot), expert_models(lot)
    dense = [replace(c, name=f"dense{i}") for i, c in enumerate(dense)]
    sparse = [replace(c, name=f"moe{i}") for i, c in enumerate(sparse)]
    yield replace(sparse[0], loop=True, style="fused", shared=0)
    yield replace(sparse[5], loop=True, style="fused", shared=0)
    yield replace(dense[2], adam="foreach")
    for states in (dense[0], sparse[2], replace(sparse[4], mode="compile")):
        yield replace(states, states="masters")
    for recomputed in (dense[1], replace(dense[3], mode="compile"), sparse[1], replace(sparse[5], mode="compile")):
        yield replace(recomputed, recompute="full")
    for many, models, mode in (
        (4, sparse, "eager"),
        (3, sparse, "compile"),
        (2, dense, "fp8_tensor"),
        (3, dense, "compile"),
        (3, dense, "eager"),
    ):
        for i, c in enumerate(models):
            yield replace(c, mode=mode)  # type: ignore[arg-type]
            if i < many:
                yield replace(c, mode=mode, mbs=2 * c.mbs)  # type: ignore[arg-type]
    for c in dense[:3]:
        yield replace(c, mode="fp8_row")


def plan() -> list[Case]:
    """All cases, named by what they are."""
    out = []
    for c in _cases():
        words = [c.name, c.mode, f"{c.mbs}x{c.seq}x{c.microbatches}", c.style]
        words += [word for word, there in (("loop", c.loop), ("foreach", c.adam == "foreach")) if there]
        words += [word for word in (c.states, c.recompute) if word not in ("bf16", "none")]
        out.append(replace(c, name=" ".join(words)))
    return out
