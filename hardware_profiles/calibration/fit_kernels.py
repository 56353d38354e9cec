"""Fit the kernel classes of the hardware profiles to the tables of measurements.

    python -m hardware_profiles.calibration.fit_kernels [--only GLOB] [--dry-run] [--table OWN.csv --hardware h200]
    python -m hardware_profiles.calibration.fit_kernels --home h20     # this GPU only; with --only, these classes of it
    python -m hardware_profiles.calibration.fit_kernels --carry        # no fit: hand on and score what there is

Writes `hardware_profiles/kernels/NAME.toml` of every GPU in `evaluate.GPUS` and, next to this file, `report.json` and
`report.md` with the error of every class on the samples it was fitted to and on those held out. Deterministic: a fixed
split of the shapes (`sample.split`) and a seeded search. Only kernel-level measurements enter, no
end-to-end figure. Needs SciPy, which foretrain itself does not.
"""

from __future__ import annotations

import argparse
import math
import tomllib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from hardware_profiles.calibration import concurrent
from hardware_profiles.calibration import report as errors_report
from hardware_profiles.calibration import samples as tables
from hardware_profiles.calibration.evaluate import GPUS, Errors, errors, predict
from hardware_profiles.calibration.h800_trace import COMM_TRAFFIC, trace_fixed
from hardware_profiles.calibration.layers import blackwell_scans, te_gemms
from hardware_profiles.calibration.layers.libraries import releases
from hardware_profiles.calibration.layers.moe_layer import moe_fixed
from hardware_profiles.calibration.other_gpus import ASSUMED, KIN, RECIPES, everything, sustained
from hardware_profiles.calibration.recipes import (
    BLACKWELL_STREAMED,
    CARRIED,
    RENAMED,
    SAME_SM,
    STREAMED,
    STREAMS,
    Recipe,
)
from hardware_profiles.calibration.sample import Sample, split
from hardware_profiles.calibration.toml_text import kernels_toml
from simulator.errors import InputError
from simulator.spec.kernel_params import (
    AttentionParams,
    AttentionRate,
    DecodeAttentionParams,
    FixedParams,
    GemmParams,
    Kernels,
    ScanParams,
    StreamParams,
    assumed_scans,
)

HERE = Path(__file__).parent
SEED = 20250601
LOG_CAP = 0.3
Params = GemmParams | AttentionParams | DecodeAttentionParams | ScanParams | StreamParams
Class = type[GemmParams] | type[AttentionParams] | type[DecodeAttentionParams] | type[ScanParams] | type[StreamParams]
KIND: dict[str, tuple[str, Class]] = {
    "gemm": ("gemm", GemmParams),
    "attention": ("attention", AttentionParams),
    "decode": ("decode", DecodeAttentionParams),
    "scan": ("scan", ScanParams),
    "stream": ("stream", StreamParams),
}


def build(recipe: Recipe, values: dict[str, float], like: Params | None = None) -> Params:
    """Parameters of a recipe's class from those of another GPU, its fixed settings and the free values found."""
    settings: dict[str, Any] = {f.name: getattr(like, f.name) for f in fields(like)} if like else {}
    settings |= recipe.fixed
    rates = []
    for name, value in values.items():
        if name.startswith("rate:"):
            d_qk, d_v = (int(x) for x in name.split(":")[1:])
            rates.append(AttentionRate(d_qk=d_qk, d_v=d_v, rate=round(value, 5)))
        else:
            settings[name] = float(f"{value:.4g}")
    if recipe.kind == "attention":
        settings["rates"] = tuple(rates)
    settings |= {"source": f"{recipe.source}; the rest as on {recipe.like}" if like else recipe.source}
    return KIND[recipe.kind][1](**settings | {"range": recipe.range})


def as_kernels(recipe: Recipe, params: Params) -> Kernels:
    """A profile that holds one class."""
    empty = Kernels(name="fit", gap=0.0, gap_source="")
    table: Any = {KIND[recipe.kind][0]: dict.fromkeys(recipe.samples, params)}
    return replace(empty, **table)


def _weight(sample: Sample) -> float:
    """Less for what the clock's resolution blurs: one at long times, half where it is 3 % of the time."""
    blur = sample.resolution / (0.03 * sample.seconds)
    return sample.weight / math.sqrt(1.0 + blur * blur)


def objective(recipe: Recipe, fitted: list[Sample], like: Params | None) -> Callable[[dict[str, float]], float]:
    """Weighted mean of |log(predicted / measured)|, capped so that no outlier leads."""
    weights = [_weight(s) for s in fitted]
    total = sum(weights)

    def value(values: dict[str, float]) -> float:
        kernels = as_kernels(recipe, build(recipe, values, like))
        loss = 0.0
        for sample, weight in zip(fitted, weights, strict=True):
            off = abs(math.log(predict(sample, kernels) / sample.seconds))
            loss += weight * (min(off, LOG_CAP) + off * off)
        return loss / total

    return value


def search(recipe: Recipe, fitted: list[Sample], like: Params | None, seed: int) -> tuple[float, Params]:
    """The best parameters within the recipe's bounds that a start of differential evolution and a simplex behind it
    find, and how far off they are (see `objective`)."""
    from scipy.optimize import differential_evolution, minimize

    names, bounds = list(recipe.free), list(recipe.free.values())
    value = objective(recipe, fitted, like)
    if not names:
        return value({}), build(recipe, {}, like)

    def at(x: Any) -> float:
        inside = [min(max(v, lo), hi) for v, (lo, hi) in zip(x, bounds, strict=True)]
        return value(dict(zip(names, inside, strict=True)))

    evolve: Any = differential_evolution  # its stubs want NumPy types
    rough = evolve(at, bounds, seed=seed, maxiter=recipe.effort, popsize=12, polish=False, tol=1e-5)
    fine = minimize(at, rough.x, method="Nelder-Mead", options={"maxiter": 300, "xatol": 1e-5, "fatol": 1e-7})
    best = fine if fine.fun < rough.fun else rough
    inside = [float(min(max(v, lo), hi)) for v, (lo, hi) in zip(best.x, bounds, strict=True)]
    return float(best.fun), build(recipe, dict(zip(names, inside, strict=True)), like)


def chosen(recipe: Recipe, everything: list[Sample]) -> list[Sample]:
    """Samples of the recipe's classes on its GPUs."""
    mine = [s for s in everything if s.cls in recipe.samples and s.hardware in recipe.hardware]
    return [s for s in mine if not recipe.tables or s.table in recipe.tables]


def kept(name: str) -> dict[str, Params]:
    """Classes of a GPU that were fitted before and still have a recipe."""
    named = {cls for recipe in RECIPES if recipe.home == name for cls in (recipe.cls, *recipe.also)}
    return {cls: params for cls, params in measured_before(name).items() if cls in named}


def fit_all(
    everything: list[Sample], only: str, homes: tuple[str, ...]
) -> tuple[dict[str, dict[str, Params]], list[Errors]]:
    """Parameters by GPU and class, and their errors: fitted those of the GPUs `homes` that match `only`, of the others
    what was before."""
    found = {name: kept(name) for name in GPUS}
    parts = [(recipe, *split(chosen(recipe, everything))) for recipe in RECIPES]
    with ProcessPoolExecutor() as pool:
        for leans in (False, True):  # what is like another GPU's after that
            mine = [
                (r, fitted, found[r.like][r.copied or r.cls] if leans else None)
                for r, fitted, _ in parts
                if r.home in homes and fnmatch(r.cls, only) and bool(r.like) == leans
            ]
            starts = [(*one, SEED + start) for one in mine for start in range(one[0].starts)]
            ends = pool.map(search, *zip(*starts, strict=True)) if starts else iter(())
            for recipe, _, _ in mine:
                _, params = min((next(ends) for _ in range(recipe.starts)), key=lambda end: end[0])
                found[recipe.home] |= dict.fromkeys((recipe.cls, *recipe.also), params)
    return found, [line for part in parts for line in _errors_of(*part, found)]


def _errors_of(
    recipe: Recipe, fitted: list[Sample], held: list[Sample], found: dict[str, dict[str, Params]]
) -> list[Errors]:
    """Errors of a class on each GPU that it was fitted to, on the shapes fitted and on the others."""
    kernels = as_kernels(recipe, found[recipe.home][recipe.cls])
    out = []
    for hardware in recipe.hardware:
        for part, rows in (("fitted", fitted), ("held out", held)):
            mine = [s for s in rows if s.hardware == hardware]
            if mine:
                out.append(errors(recipe.cls, hardware, part, mine, kernels))
    print(recipe.home, recipe.cls, [f"{e.hardware} {e.part} {e.count}: {e.mape:.1%}" for e in out])
    return out


def nearer(cls: str, own: dict[str, Params]) -> bool:
    """Whether a GPU has a GEMM of this precision from nearer by: it prices the class (`simulator.cost.classes`)."""
    precision = cls.split("@", 1)[0].split(".")[:2]
    return precision[0] == "gemm" and ".".join(precision) in own


def budget(target: str, origin: str) -> float:
    """Share of the tensor peak that power sustains on one GPU over that on another of the same architecture; else 1.

    As measured where both ran the same lasting GEMMs. Else it goes with watts per FLOP/s of tensor peak: the same
    tensor cores take the same energy for a FLOP. Energy across architectures is not known.
    """
    here, there = GPUS[target], GPUS[origin]
    if here.architecture != there.architecture:
        return 1.0
    if KIN.get(target) == origin:
        return sustained(target)
    return (here.tdp / here.peak.bf16) / (there.tdp / there.peak.bf16)


def moved(params: Params, target: str, origin: str) -> Params:
    """Parameters of a class as they hold on another GPU: rates stay shares of a peak, power is its own.

    A rate above 1 shows how far a GPU's clock exceeds the one of its peak; that of another GPU is unknown. A step from
    chunk to chunk is a chain of instructions and loads: it takes as many cycles there, which is assumed.
    """
    if isinstance(params, ScanParams):
        cycles = GPUS[origin].boost_clock / GPUS[target].boost_clock
        return replace(params, step_time=float(f"{params.step_time * cycles:.4g}"))
    scale = budget(target, origin)
    if isinstance(params, GemmParams) and params.cluster_sms:
        params = replace(params, cluster_sms=params.cluster_sms * GPUS[target].sms // GPUS[origin].sms)
    if isinstance(params, StreamParams) or scale == 1.0:
        return params
    params = replace(params, power_rate=float(f"{params.power_rate * scale:.4g}"))
    if isinstance(params, AttentionParams | DecodeAttentionParams):
        return params
    return replace(params, rate=min(params.rate, 1.0), loop_rate=float(f"{params.loop_rate * scale:.4g}"))


def carried(params: Params, cls: str, target: str, origin: str, why: str, assumed: bool) -> Params:
    """Parameters of a class as another GPU gives them, with what its source says of it."""
    share = blackwell_scans.scan_pace(cls, target, origin)
    if share and isinstance(params, ScanParams | StreamParams):
        source = f"{params.source}; {blackwell_scans.reason(cls, target)}"
        return replace(
            blackwell_scans.paced(params, share, GPUS[target], GPUS[origin]), source=source, assumed=cls != "conv"
        )
    steps = " and as many cycles a step" if assumed and isinstance(params, ScanParams) else ""
    return replace(
        moved(params, target, origin), source=f"{params.source}; {why}{steps}", assumed=assumed or params.assumed
    )


def carry(found: dict[str, dict[str, Params]]) -> None:
    """Give each GPU the classes that were measured on another of its architecture, and say so in the source."""
    measured = {name: dict(classes) for name, classes in found.items()}
    renamed = {(target, named) for target, _, _, named, _ in RENAMED}
    for target, origin, why, assumed in (*CARRIED, *ASSUMED):
        alike = GPUS[target].architecture == GPUS[origin].architecture
        own = measured[target] if alike else dict(found[target])
        for cls, params in measured[origin].items():
            missing = "fp8" in cls and not GPUS[target].peak.fp8
            known = cls in found[target] or (target, cls) in renamed
            nearest = assumed and KIN.get(target) != origin and nearer(cls, own)
            if not known and not missing and not nearest:
                found[target][cls] = carried(params, cls, target, origin, why, assumed)
    for target, cls, origin, named, why in RENAMED:
        params = measured[origin][named]
        found[target][cls] = replace(moved(params, target, origin), source=f"{params.source}; {why}")
    cublaslt(found)
    for classes in found.values():
        streamed(classes)
        for cls, params in assumed_scans().items():
            classes.setdefault(cls, params)


def cublaslt(found: dict[str, dict[str, Params]]) -> None:
    """Add Transformer Engine's NVFP4 GEMMs where they were timed, and on the other GPU with the same SM."""
    if "gemm.nvfp4" not in found.get(te_gemms.HOME, {}):
        return
    share = te_gemms.pace(profile(te_gemms.HOME, found[te_gemms.HOME], {}), GPUS[te_gemms.HOME])
    for name in te_gemms.SAME:
        params = found.get(name, {}).get("gemm.nvfp4")
        if isinstance(params, GemmParams):
            found[name][te_gemms.CLASS] = te_gemms.paced(params, share)


def streamed(classes: dict[str, Params]) -> None:
    """Add the classes of experts' GEMMs that run one by one on several streams: as measured together, where a GPU's
    grouped class is of such GEMMs; else from the class of one of them."""
    for cls, single in (STREAMED | (BLACKWELL_STREAMED if "gemm.nvfp4" in classes else {})).items():
        together, params = classes.get(cls.removesuffix("@streams")), classes.get(f"{single}@te", classes.get(single))
        if isinstance(together, GemmParams) and together.streams > 1:
            classes[cls] = together
        elif isinstance(params, GemmParams):
            why = f"one for each expert, {STREAMS} at a time"
            classes[cls] = replace(params, streams=STREAMS, source=f"{params.source}; {why}", assumed=True)


def profile(name: str, params: dict[str, Params], fixed: dict[str, FixedParams]) -> Kernels:
    """All classes of one GPU."""

    def of(kind: type) -> dict[str, Any]:
        return {cls: p for cls, p in sorted(params.items()) if isinstance(p, kind)}

    return Kernels(
        name=name,
        gap=2e-6,
        gap_source="H800 training trace: 450 of 460 gaps on the compute stream are 1 to 3 us, median 2 us",
        comm_traffic=COMM_TRAFFIC,
        gemm=of(GemmParams),
        attention=of(AttentionParams),
        decode=of(DecodeAttentionParams),
        scan=of(ScanParams),
        stream=of(StreamParams),
        fixed=fixed,
        releases=releases() if GPUS[name].architecture == "hopper" else {},
        source="written by hardware_profiles/calibration/fit_kernels.py",
    )


def measured_before(name: str) -> dict[str, Params]:
    """Classes that the kernel file of a GPU holds from measurements of its own."""
    file = HERE.parent / "kernels" / f"{name}.toml"
    if not file.exists():
        return {}
    text = file.read_text(encoding="utf-8")
    kernels = TypeAdapter(Kernels).validate_python(tomllib.loads(text))
    classes: dict[str, Params] = {
        **kernels.gemm, **kernels.attention, **kernels.decode, **kernels.scan, **kernels.stream
    }  # fmt: skip
    return {cls: p for cls, p in classes.items() if not p.assumed and SAME_SM not in p.source}


def fixed_classes() -> dict[str, FixedParams]:
    """Mean time of the trace's small kernels, by class."""
    out = {}
    for cls, times in sorted(trace_fixed().items()):
        text = f"H800 training trace: mean of {len(times)} kernels (1 us resolution)"
        out[cls] = FixedParams(time=float(f"{sum(times) / len(times):.3g}"), source=text)
    return out


HEAD = (
    "# Errors of the fitted kernel classes",
    "",
    "Written by `fit_kernels.py`. MAPE is the mean of |predicted - measured| / measured; bias is total predicted",
    "over total measured, less one. `compared` rows took no part in any fit and belong to a GPU or a situation the",
    "class was not fitted on; `unseen` ones were measured when the form of the model was settled. The last column is",
    "the MAPE over the samples of at least 50 us.",
)


def compared(profiles: dict[str, Kernels]) -> list[Errors]:
    """Errors on samples that no fit saw: other GPUs, new shapes, and concurrent kernels."""
    known = everything()
    fitted = {s for r in RECIPES for s in chosen(r, known)}
    out = _compared([s for s in known if s not in fitted], "compared", profiles)
    out += _compared(tables.h100_unseen(), "unseen", profiles)
    for others in (concurrent.contention(), concurrent.concurrent_traffic(), concurrent.concurrent_collectives()):
        for label in sorted({s.label for s in others}):
            out += _compared([s for s in others if s.label == label], f"compared: {label}", profiles)
    return out


def _compared(samples: list[Sample], part: str, profiles: dict[str, Kernels]) -> list[Errors]:
    """Errors of each class on each GPU."""
    keys = sorted({(s.cls, s.hardware) for s in samples})
    return [errors(*key, part, [s for s in samples if (s.cls, s.hardware) == key], profiles[key[1]]) for key in keys]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="fit only the classes that match this pattern; the others stay")
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    parser.add_argument("--table", type=Path, help="add your own measurements, in the columns of measure_h200.py")
    parser.add_argument("--hardware", choices=sorted(GPUS), default="h200", help="the GPU of your measurements")
    parser.add_argument(
        "--home", choices=sorted(GPUS), action="append", help="refit this GPU only (repeatable); others carry it over"
    )
    parser.add_argument(
        "--carry", action="store_true", help="no fit: carry what was measured to other GPUs and score it"
    )
    args = parser.parse_args()
    if not any(fnmatch(recipe.cls, args.only) for recipe in RECIPES):
        parser.error(f"--only: {args.only}: no kernel class fits; try 'gemm.*' or 'attn.*'")
    homes = () if args.carry else tuple(args.home or GPUS)
    try:
        own = tables.own_table(args.table, args.hardware) if args.table else []
    except InputError as error:
        parser.error(f"--table: {error}")
    if lacking := sorted(
        f"{recipe.cls} on {recipe.home}"
        for recipe in RECIPES
        if recipe.cls not in kept(recipe.home) and not (recipe.home in homes and fnmatch(recipe.cls, args.only))
    ):
        parser.error(f"--only, --home: {', '.join(lacking)}: never fitted, and not among these: fit them, too")
    found, report = fit_all([*everything(), *own], args.only, homes)
    if args.dry_run:
        return
    carry(found)
    fixed = {**fixed_classes(), **moe_fixed()}
    profiles = {name: profile(name, params, fixed) for name, params in found.items()}
    for name, kernels in profiles.items():  # those of other homes too: they carry classes from these
        (HERE.parent / "kernels" / f"{name}.toml").write_text(kernels_toml(kernels), encoding="utf-8")
    errors_report.write("report", HEAD, [*report, *compared(profiles)])


if __name__ == "__main__":
    main()
