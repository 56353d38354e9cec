"""Fit the communication parameters in `hardware_profiles/fabric/` to the tables `tables/fabric_*.csv`.

    python -m hardware_profiles.calibration.fit_fabric            # fit, print parameters and errors
    python -m hardware_profiles.calibration.fit_fabric --check    # errors of the parameters as they stand

Either way the errors of the parameters as they stand go to `report_fabric.json` and `report_fabric.md`, next to
those of the kernels. Rows marked `fit` decide the parameters, rows marked `held out` only judge them. Only kernels
and links are in these tables, never a training step. To refit for another cluster, add rows with its name and copy
a TOML file. Needs scipy.

Columns. `fabric_ep`, `fabric_low_latency`: an all-to-all of `tokens` tokens of `bytes_per_token` [B] over `ep`
ranks, by the `kernels` named in the fabric file; `groups`, `node_limit`, `scored` describe the gate of that
measurement (DeepEP's own tests: groups are nodes, at most 4 kept, scored by their best expert); `weighted`: a
combine that also sums the gradients of the gate weights; a published bandwidth was turned into `time_us` with the
bytes it counts (`note`). `fabric_collective`: `bytes` as in
`simulator.ops.Collective`. `fabric_all_reduce`: a serving engine's own all-reduce within a node, in a CUDA graph.
`fabric_topology`, `fabric_latency`: arXiv 2505.09343, Tables 3 and 5.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter
from scipy.optimize import least_squares, lsq_linear

from hardware_profiles.calibration.evaluate import Errors, Judged, summed
from hardware_profiles.calibration.report import write
from simulator.cost.collective_cost import collective_cost, p2p_cost
from simulator.cost.topology import SWITCH_PRICE
from simulator.inputs.files import find, read_extended
from simulator.ops import Collective, PointToPoint
from simulator.spec.comm_params import Fabric
from simulator.spec.hardware import Cluster, Gpu, Node, Peak
from simulator.spec.kernel_params import Kernels
from simulator.validation.rows import all_to_all_time, collective_time

HERE = Path(__file__).parent
TABLES = HERE / "tables"
Row = dict[str, str]
Doc = dict[str, Any]

# [s] Where one operation at a time was issued from Python: it lasts at least the first, and the second comes
# on top of the kernel's time (launch, and the skew of two processes). A property of how that table was
# measured, not of a link.
HOST = {"h200": (70e-6, 40e-6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One least-squares problem over the rows of `table` of `hardware` (and `kernels`): `free` names sets of TOML keys
    that share a value. None free: another GPU's parameters are only compared."""

    name: str
    hardware: str
    table: str
    kernels: tuple[str, ...]
    free: tuple[tuple[str, ...], ...]


FITS = (
    Fit(
        name="NVLink collectives, 8 H100",
        hardware="h100",
        table="fabric_collective",
        kernels=(),
        free=(
            ("nvlink.protocols.ll.alpha",),
            ("nvlink.protocols.ll.payload",),
            ("nvlink.protocols.ll128.alpha",),
            ("nvlink.protocols.sharp.alpha",),
            ("nvlink.protocols.sharp.payload",),
            ("nvlink.all_to_all_alpha",),
        ),
    ),
    *(
        Fit(
            name=f"all-reduce of {kernels}, H200",
            hardware="h200",
            table="fabric_all_reduce",
            kernels=(kernels,),
            free=tuple(
                (f"all_reduce.{kernels}.{name}",)
                for name in ("one_alpha", "one_peer", "one_rate", "two_alpha", "two_peer", "two_rate")
                if (kernels, name) != ("vllm", "two_peer")
            ),
        )
        for kernels in ("vllm", "sglang", "trtllm")
    ),
    *(
        Fit(
            name=f"all-reduce of {kernels}, H100",
            hardware="h100",
            table="fabric_all_reduce",
            kernels=(kernels,),
            free=(),
        )
        for kernels in ("vllm", "sglang", "trtllm")
    ),
    Fit(
        name="NVLink collectives, 2 H200",
        hardware="h200",
        table="fabric_collective",
        kernels=(),
        free=(("nvlink.local_copy",),),
    ),
    Fit(
        name="expert kernels, H800",
        hardware="h800",
        table="fabric_ep",
        kernels=("deepep", "deepep_tuned"),
        free=(
            ("ep.deepep.send_rate",),
            ("ep.deepep_tuned.send_rate",),
            ("ep.deepep.forward_rate", "ep.deepep_tuned.forward_rate"),
            ("ep.deepep.concurrent_dispatch_factor", "ep.deepep_tuned.concurrent_dispatch_factor"),
            ("ep.deepep.concurrent_combine_factor", "ep.deepep_tuned.concurrent_combine_factor"),
            ("ep.deepep.first_dispatch_factor", "ep.deepep_tuned.first_dispatch_factor"),
            ("ep.deepep.weighted", "ep.deepep_tuned.weighted"),
        ),
    ),
    Fit(
        name="expert kernels by SMs and nodes, H100",
        hardware="h100",
        table="fabric_ep",
        kernels=("deepep",),
        free=(
            ("ep.deepep.send_rate",),
            ("ep.deepep.forward_rate",),
            ("ep.deepep.reduce",),
            ("ep.deepep.overlap",),
            ("ep.deepep.startup",),
            ("ep.deepep.startup_combine",),
        ),
    ),
    Fit(
        name="NVLink collectives, B200",
        hardware="b200",
        table="fabric_collective",
        kernels=(),
        free=(
            ("nvlink.protocols.ll.alpha",),
            ("nvlink.protocols.ll.step",),
            ("nvlink.protocols.ll.payload",),
            ("nvlink.protocols.ll128.alpha", "nvlink.protocols.simple.alpha"),
            ("nvlink.protocols.sharp.alpha",),
            ("nvlink.protocols.sharp.payload",),
            ("nvlink.local_copy",),
            ("nvlink.all_to_all_alpha",),
        ),
    ),
    Fit(
        name="NVLink collectives, A100",
        hardware="a100",
        table="fabric_collective",
        kernels=(),
        free=(
            ("nvlink.protocols.ll.alpha",),
            ("nvlink.protocols.ll.step",),
            ("nvlink.protocols.ll.payload",),
            ("nvlink.protocols.ll128.alpha", "nvlink.protocols.simple.alpha"),
            ("nvlink.local_copy",),
            ("nvlink.all_to_all_alpha",),
        ),
    ),
    Fit(
        name="expert kernels in one node, B200",
        hardware="b200",
        table="fabric_ep",
        kernels=("deepep",),
        free=(("ep.deepep.forward_rate",),),
    ),
    Fit(
        name="low latency in one node, B200",
        hardware="b200",
        table="fabric_low_latency",
        kernels=("deepep",),
        free=(
            ("low_latency.deepep.alpha_dispatch", "low_latency.deepep.alpha_combine"),
            ("low_latency.deepep.staging_dispatch", "low_latency.deepep.staging_combine"),
        ),
    ),
    Fit(
        name="NVLink collectives, GB200",
        hardware="gb200",
        table="fabric_collective",
        kernels=(),
        free=(),
    ),
    Fit(
        name="expert kernels in one tray, GB200",
        hardware="gb200",
        table="fabric_ep",
        kernels=("deepep",),
        free=(("ep.deepep.forward_rate",),),
    ),
    Fit(
        name="Hybrid-EP in one rack, GB200",
        hardware="gb200",
        table="fabric_ep",
        kernels=("hybrid_ep",),
        free=(("ep.hybrid_ep.forward_rate",), ("ep.hybrid_ep.startup",)),
    ),
    Fit(
        name="low latency in one tray, GB200",
        hardware="gb200",
        table="fabric_low_latency",
        kernels=("deepep",),
        free=(
            ("low_latency.deepep.alpha_dispatch", "low_latency.deepep.alpha_combine"),
            ("low_latency.deepep.staging_dispatch", "low_latency.deepep.staging_combine"),
        ),
    ),
    Fit(
        name="Hybrid-EP, H100",
        hardware="h100",
        table="fabric_ep",
        kernels=("hybrid_ep",),
        free=(("ep.hybrid_ep.send_rate",), ("ep.hybrid_ep.startup",)),
    ),
    Fit(
        name="low latency over InfiniBand, H800",
        hardware="h800",
        table="fabric_low_latency",
        kernels=("deepep_ibrc",),
        free=(
            ("low_latency.deepep_ibrc.staging_dispatch", "low_latency.deepep_ibrc.staging_combine"),
            ("low_latency.deepep_ibrc.hop",),
        ),
    ),
    Fit(
        name="low latency with NVLink, H800",
        hardware="h800",
        table="fabric_low_latency",
        kernels=("deepep",),
        free=(("low_latency.deepep.alpha_dispatch", "low_latency.deepep.alpha_combine"),),
    ),
    Fit(
        name="low latency by ranks and tokens, H100",
        hardware="h100",
        table="fabric_low_latency",
        kernels=("deepep",),
        free=(
            ("low_latency.deepep.alpha_dispatch",),
            ("low_latency.deepep.alpha_combine",),
            ("low_latency.deepep.hop",),
            ("low_latency.deepep.staging_dispatch",),
            ("low_latency.deepep.staging_combine",),
        ),
    ),
    Fit(
        name="low latency of pplx, H100",
        hardware="h100",
        table="fabric_low_latency",
        kernels=("pplx",),
        free=(
            ("low_latency.pplx.alpha_dispatch",),
            ("low_latency.pplx.alpha_combine",),
            ("low_latency.pplx.hop",),
            ("low_latency.pplx.staging_dispatch",),
            ("low_latency.pplx.staging_combine",),
        ),
    ),
)


def rows_of(table: str) -> list[Row]:
    """Rows of one calibration table."""
    with (TABLES / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def document(name: str) -> Doc:
    """A fabric TOML file, laid over the one it extends."""
    return read_extended("fabric", find("fabric", name))


def node_of(name: str, *, sharp: bool) -> Node:
    """The node of a hardware profile: its link bandwidths are attainable and no part of the fit."""
    table = read_extended("hardware", find("hardware", name))["node"]
    return TypeAdapter(Node).validate_python(table | {"nvlink_sharp": sharp})


def cluster_of(name: str, doc: Doc, *, sharp: bool = False) -> Cluster:
    """A cluster with the node of profile `name` and the fabric parameters of `doc`; its GPU plays no part."""
    gpu = Gpu(
        name=name,
        architecture="hopper",
        sms=132,
        boost_clock=1.83e9,
        peak=Peak(bf16=989e12),
        hbm_bytes=80e9,
        hbm_bandwidth=3.35e12,
        l2_bytes=50e6,
        tdp=700.0,
    )
    return Cluster(
        name=name,
        gpu=gpu,
        node=node_of(name, sharp=sharp),
        price_per_gpu_hour=0.0,
        kernels=Kernels(name="none", gap=0.0, gap_source="not used"),
        fabric=TypeAdapter(Fabric).validate_python(doc),
    )


def predict(table: str, row: Row, cluster: Cluster) -> float:
    """Predicted time of one row [s]."""
    if table == "fabric_all_reduce":
        ranks = int(row["ranks"])
        work = Collective(
            kind="all_reduce", bytes=float(row["bytes"]), ranks=ranks, per_node=ranks, kernels=row["kernels"]
        )
        return collective_cost(work, cluster).duration
    if table == "fabric_collective":
        least, added = HOST.get(row["hardware"], (0.0, 0.0))
        return max(least, added + _collective(row, cluster))
    return all_to_all_time(row, cluster, low_latency=table == "fabric_low_latency")


def _collective(row: Row, cluster: Cluster) -> float:
    if row["op"] == "send_recv":
        return p2p_cost(PointToPoint(bytes=float(row["bytes"]), tier="nvlink"), cluster).duration
    return collective_time(row, cluster)


def chosen(fit: Fit) -> list[Row]:
    """Rows a fit is about, fitted and held out."""
    rows = [row for row in rows_of(fit.table) if row["hardware"] == fit.hardware]
    return [row for row in rows if not fit.kernels or row["kernels"] in fit.kernels]


def errors(fit: Fit, doc: Doc, rows: Iterable[Row]) -> list[float]:
    """log(predicted / measured) of each row."""
    plain, sharp = cluster_of(fit.hardware, doc), cluster_of(fit.hardware, doc, sharp=True)
    out = []
    for row in rows:
        cluster = sharp if row.get("nvlink_sharp") == "1" else plain
        out.append(log(predict(fit.table, row, cluster) / (1e-6 * float(row["time_us"]))))
    return out


def get(doc: Doc, path: str) -> float:
    """Value at a dotted path."""
    for key in path.split("."):
        doc = doc[key]
    return float(doc)  # type: ignore[arg-type]  # a leaf


def put(doc: Doc, path: str, value: float) -> None:
    """Set the value at a dotted path."""
    *keys, last = path.split(".")
    for key in keys:
        doc = doc[key]
    doc[last] = value


def solve(fit: Fit) -> Doc:
    """Least squares of the log errors over the rows marked `fit`, each parameter varied by its logarithm."""
    doc = document(fit.hardware)
    if not fit.free:
        return doc
    rows = [row for row in chosen(fit) if row["use"] == "fit"]
    start = [log(get(doc, paths[0])) for paths in fit.free]

    def residuals(x: np.ndarray[tuple[int], np.dtype[np.float64]], /) -> list[float]:
        for paths, value in zip(fit.free, x, strict=True):
            for path in paths:
                put(doc, path, exp(float(value)))
        return errors(fit, doc, rows)

    best = least_squares(residuals, start, diff_step=[1e-3] * len(start))
    residuals(best.x)
    return doc


def mape(logs: Sequence[float]) -> float:
    """Mean absolute error of predicted against measured [%]."""
    return 100.0 * sum(abs(exp(x) - 1.0) for x in logs) / len(logs) if logs else 0.0


def report(fit: Fit, doc: Doc, *, rows_too: bool) -> None:
    """Print the fitted parameters and the errors of fitted and held-out rows."""
    rows = chosen(fit)
    logs = errors(fit, doc, rows)
    print(f"\n{fit.name}")
    for paths in fit.free:
        print(f"  {' = '.join(paths)} = {get(doc, paths[0]):.4g}")
    for use in ("fit", "held out"):
        part = [x for x, row in zip(logs, rows, strict=True) if row["use"] == use]
        if part:
            worst = 100 * (exp(max(part, key=abs)) - 1)
            print(f"  {use}: {len(part)} rows, MAPE {mape(part):.1f} %, worst {worst:+.1f} %")
    if rows_too:
        for x, row in zip(logs, rows, strict=True):
            error = 100 * (exp(x) - 1)
            print(f"    {row['id']:56} {row['use']:9} {float(row['time_us']):10.1f} us {error:+6.1f} %")


def class_of(fit: Fit, row: Row) -> str:
    """The kernel class that a row measures; for all-to-alls with the name of the kernels: `comm.dispatch@deepep`."""
    if fit.table == "fabric_collective":
        return "comm.p2p" if row["op"] == "send_recv" else f"comm.{row['op']}"
    if fit.table == "fabric_all_reduce":
        return f"comm.all_reduce@{row['kernels']}"
    return f"comm.{row['direction']}@{row['kernels']}" + (".low_latency" if fit.table == "fabric_low_latency" else "")


def judged() -> list[Errors]:
    """Errors of the parameters as they stand, by class, GPU and part."""
    found: dict[tuple[str, str, str], list[Judged]] = {}
    for fit in FITS:
        rows = chosen(fit)
        for row, off in zip(rows, errors(fit, document(fit.hardware), rows), strict=True):
            part = "fitted" if row["use"] == "fit" else "held out"
            seconds = 1e-6 * float(row["time_us"])
            one = Judged(row["id"], exp(off) * seconds, seconds)
            found.setdefault((class_of(fit, row), fit.hardware, part), []).append(one)
    return [summed(*key, rows) for key, rows in sorted(found.items())]


HEAD = (
    "# Errors of communication",
    "",
    "Written by `fit_fabric.py`, columns as for kernels. An all-to-all is named with its kernels",
    "(`fabric.ep`, `fabric.low_latency` of a hardware profile).",
)


def prices() -> tuple[float, float]:
    """Price of a link and of an endpoint [USD] from the published cost table, given the price of a switch."""
    rows = rows_of("fabric_topology")
    cost = np.array([1e6 * float(row["cost_musd"]) for row in rows])
    counts = np.array([[float(row["links"]), float(row["endpoints"])] for row in rows])
    switches = np.array([SWITCH_PRICE * float(row["switches"]) for row in rows])
    found = lsq_linear(counts / cost[:, None], 1.0 - switches / cost, (0.0, np.inf)).x
    return float(found[0]), float(found[1])


def hops() -> dict[str, tuple[float, float]]:
    """Base and per-switch latency [s] of each network: one switch within a leaf, three across leaves."""
    times = {(row["link"], row["path"]): 1e-6 * float(row["time_us"]) for row in rows_of("fabric_latency")}
    out = {}
    for link in ("ib", "roce"):
        hop = (times[link, "cross_leaf"] - times[link, "same_leaf"]) / 2.0
        out[link] = times[link, "same_leaf"] - hop, hop
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="no fit: errors of the TOML files as they stand")
    parser.add_argument("--rows", action="store_true", help="print every row")
    parser.add_argument("--only", default="", help="fits whose name contains this")
    options = parser.parse_args()
    if not any(options.only in fit.name for fit in FITS):
        parser.error(f"--only: {options.only}: no fit; there are {', '.join(fit.name for fit in FITS)}")
    for fit in FITS:
        if options.only in fit.name:
            report(fit, document(fit.hardware) if options.check else solve(fit), rows_too=options.rows)
    write("report_fabric", HEAD, judged())
    print(f"\nnetwork prices [USD]: switch {SWITCH_PRICE:.0f} (assumed), link, endpoint = {prices()}")
    print(f"network latency (base, per switch) [s]: {hops()}")


if __name__ == "__main__":
    main()
