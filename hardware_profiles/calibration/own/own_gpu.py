"""Fit kernel parameters to measurements of a GPU of one's own: what `foretrain calibrate fit` does.

A class of kernels is fitted if the table has enough shapes of it, by a few factors on the parameters that the GPU it is
like has for it: rates, bandwidth, fixed times. Of the shapes a third is held out, as in our own fits (`sample.split`),
and judges both. Every other class is carried over and says so. Kernel times only; no step enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from pathlib import Path

from hardware_profiles.calibration.evaluate import Judged
from hardware_profiles.calibration.sample import Sample, merged, split
from hardware_profiles.calibration.samples import own_table
from simulator.cost.attention_cost import attention_cost
from simulator.cost.cost import Share
from simulator.cost.gemm_cost import gemm_cost
from simulator.cost.streaming_cost import streaming_cost
from simulator.errors import InputError
from simulator.ops import Attention, Gemm, Streaming
from simulator.spec.hardware import Cluster, Gpu
from simulator.spec.kernel_params import AttentionParams, GemmParams, Kernels, StreamParams, rested

Params = GemmParams | AttentionParams | StreamParams
FEWEST = 6
"""Shapes that a class needs to be fitted."""
GAIN = 0.01
"""By how much less a class must be off on the shapes fitted, or the parameters that are known stay as they are."""
STEPS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.004)
"""Steps of the search, in the logarithm of a factor."""
RANGE = log(4.0)
"""A factor stays within 1/4 and 4: a GPU that is farther off is not like the other one."""
CAP = 0.3
PROFILES = ("gb300", "gb200", "b200", "h200", "h100", "h800", "h20", "a100")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """One class: its parameters, and errors on the shapes held out (none held out: on those fitted).

    `kept`: the parameters are those of the GPU that it is like, which a fit hardly betters.
    """

    cls: str
    params: Params
    fitted: int
    held: int
    before: float
    after: float
    worst: Judged
    kept: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnFit:
    """What came of a table: the kernels, classes fitted, and how many classes were carried over."""

    kernels: Kernels
    classes: tuple[Fitted, ...]
    carried: tuple[str, ...]
    few: tuple[tuple[str, int], ...]


def named_gpu(table: Path) -> str:
    """The GPU that the first line of a table names; empty where it names none."""
    try:
        with table.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{table}: {getattr(error, 'strerror', error)}: must be a CSV table") from None
    return first.removeprefix("#").split(",")[0].strip() if first.startswith("#") else ""


def nearest(gpu: str) -> str | None:
    """The shipped profile of a GPU with this name; None where there is none."""
    words = gpu.lower().replace("-", " ").split()
    return next((name for name in PROFILES if name in words), None)


def fit(table: Path, like: Cluster, origin: str, measured_on: str) -> OwnFit:
    """Parameters of the GPU that `table` was measured on; `like`: the cluster named `origin` that it resembles.

    Raises InputError where the table cannot be read, or has no class with enough shapes.
    """
    samples = merged([replace(s, rested=1.0) for s in own_table(table, origin)])
    by_class: dict[str, list[Sample]] = {}
    for sample in samples:
        by_class.setdefault(sample.cls, []).append(sample)
    found, few = [], []
    for cls, mine in sorted(by_class.items()):
        base = _params(cls, like.kernels)
        if base is not None and len(mine) >= FEWEST:
            found.append(_class(cls, base, mine, like.gpu, f"measured on {measured_on} ({table.name})", origin))
        else:
            few.append((cls, len(mine)))
    if not found:
        raise InputError(
            f"{table}: no class of kernels has {FEWEST} shapes; foretrain calibrate measure, without --quick, writes"
            " a table that has"
        )
    kernels = like.kernels
    for one in found:
        kernels = _with(kernels, one.cls, one.params)
    names = {one.cls for one in found}
    others = [*like.kernels.gemm, *like.kernels.attention, *like.kernels.decode, *like.kernels.stream]
    carried = tuple(sorted(cls for cls in others if cls not in names))
    return OwnFit(kernels=kernels, classes=tuple(found), carried=carried, few=tuple(few))


def _params(cls: str, kernels: Kernels) -> Params | None:
    for table in (kernels.gemm, kernels.attention, kernels.stream):
        if cls in table:
            return table[cls]
    return None


def _with(kernels: Kernels, cls: str, params: Params) -> Kernels:
    if isinstance(params, GemmParams):
        return replace(kernels, gemm=kernels.gemm | {cls: params})
    if isinstance(params, AttentionParams):
        return replace(kernels, attention=kernels.attention | {cls: params})
    return replace(kernels, stream=kernels.stream | {cls: params})


def scaled(params: Params, factors: tuple[float, float, float]) -> Params:
    """Parameters with their rates of compute, rates of memory and fixed times multiplied, shares at most 1."""
    compute, memory, fixed = factors
    if isinstance(params, GemmParams):
        return replace(
            params,
            rate=params.rate * compute,
            bandwidth=min(1.0, params.bandwidth * memory),
            launch=params.launch * fixed,
            tile_time=params.tile_time * fixed,
        )
    if isinstance(params, AttentionParams):
        rates = tuple(replace(one, rate=one.rate * compute) for one in params.rates)
        bandwidth, launch = min(1.0, params.bandwidth * memory), params.launch * fixed
        return replace(params, rates=rates, bandwidth=bandwidth, launch=launch, tile_time=params.tile_time * fixed)
    return replace(
        params,
        bandwidth=min(1.0, params.bandwidth * memory),
        sm_rate=params.sm_rate * compute,
        cta_rate=params.cta_rate * compute,
        launch=params.launch * fixed,
        cta_time=params.cta_time * fixed,
    )


def _class(cls: str, base: Params, mine: list[Sample], gpu: Gpu, source: str, origin: str) -> Fitted:
    to_fit, held = split(mine)

    def loss(factors: tuple[float, float, float]) -> float:
        off = [abs(log(p / m)) for _, p, m in judged(to_fit, cls, scaled(base, factors), gpu)]
        return sum(min(x, CAP) + x * x for x in off) / len(off)

    best = scaled(base, tuned(loss))
    known, found = (mean_error(judged(to_fit, cls, params, gpu)) for params in (base, best))
    kept = known - found < GAIN
    if kept:
        best = base
    judges = held or to_fit
    before, after = (judged(judges, cls, params, gpu) for params in (base, best))
    error = mean_error(after)
    how = f"as on {origin}, which a fit hardly betters" if kept else f"its form as on {origin}"
    text = f"{source}: {len(to_fit)} shapes fitted, {len(held)} held out: {error:.1%} off; {how}"
    params = replace(best if kept else rounded(best), source=text, assumed=False)
    worst = max(after, key=lambda one: abs(log(one.predicted / one.measured)))
    return Fitted(
        cls=cls, params=params, fitted=len(to_fit), held=len(held), before=mean_error(before), after=error, worst=worst,
        kept=kept,
    )  # fmt: skip


def tuned(loss: Callable[[tuple[float, float, float]], float]) -> tuple[float, float, float]:
    """The three factors of the least loss that a compass search from 1 finds: along each, by ever smaller steps."""
    at, least = [0.0, 0.0, 0.0], loss((1.0, 1.0, 1.0))
    for step in STEPS:
        better = True
        while better:
            better = False
            for index in range(3):
                for way in (step, -step):
                    tried = list(at)
                    tried[index] = min(RANGE, max(-RANGE, tried[index] + way))
                    value = loss((exp(tried[0]), exp(tried[1]), exp(tried[2])))
                    if value < least - 1e-9:
                        at, least, better = tried, value, True
    return exp(at[0]), exp(at[1]), exp(at[2])


def judged(samples: Iterable[Sample], cls: str, params: Params, gpu: Gpu) -> list[Judged]:
    """Predicted and measured times of rested kernels on all SMs of a GPU."""
    kernels = rested(_with(Kernels(name="own", gap=0.0, gap_source=""), cls, params))
    return [Judged(s.label, _seconds(s, cls, gpu, kernels), s.seconds) for s in samples]


def _seconds(sample: Sample, cls: str, gpu: Gpu, kernels: Kernels) -> float:
    share, total = Share(sms=gpu.sms, partner_traffic=0.0), 0.0
    for work in sample.work:
        if isinstance(work, Gemm):
            total += gemm_cost(work, cls, gpu, kernels, share).duration
        elif isinstance(work, Attention):
            total += attention_cost(work, cls, gpu, kernels, share).duration
        elif isinstance(work, Streaming):
            total += streaming_cost(work, cls, gpu, kernels, share).duration
    return total


def mean_error(rows: Sequence[Judged]) -> float:
    """Mean of |predicted - measured| / measured."""
    return sum(abs(row.predicted / row.measured - 1.0) for row in rows) / len(rows)


TOUCHED = ("launch", "bandwidth", "rate", "sm_rate", "cta_rate", "cta_time", "tile_time")


def rounded(params: Params) -> Params:
    """Four digits of what a factor touched."""
    four = {name: float(f"{getattr(params, name):.4g}") for name in TOUCHED if hasattr(params, name)}
    if isinstance(params, AttentionParams):
        rates = tuple(replace(one, rate=float(f"{one.rate:.4g}")) for one in params.rates)
        return replace(params, rates=rates, **four)  # type: ignore[arg-type]  # floats all
    return replace(params, **four)  # type: ignore[arg-type]  # floats all
