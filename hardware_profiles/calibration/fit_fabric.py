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
`simulator.ops.Collective`. `nccl`: what `measure_collectives.py` measured between two and four H200, device time
alone (`graph_us`, the mean of its runs); every second size is held out. `fabric_all_reduce`: a serving engine's own
all-reduce within a node, in a CUDA graph. `fabric_topology`, `fabric_latency`: arXiv 2505.09343, Tables 3 and 5.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Sequence
from math import exp, log
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter
from scipy.optimize import least_squares, lsq_linear

from hardware_profiles.calibration.evaluate import Errors, Judged, summed
from hardware_profiles.calibration.fabric_fits import FITS, Fit
from hardware_profiles.calibration.report import write
from simulator.cost.collective_cost import collective_cost
from simulator.cost.message_cost import p2p_cost
from simulator.cost.topology import SWITCH_PRICE
from simulator.inputs.files import find, read_extended
from simulator.ops import Collective, PointToPoint
from simulator.spec.comm_params import Fabric
from simulator.spec.hardware import Cluster, Gpu, Node, Peak
from simulator.spec.kernel_params import Kernels
from simulator.validation.rows import all_to_all_time, collective_time

HERE = Path(__file__).parent
TABLES = HERE / "tables"
ROBUST = 0.05
"""Logarithm of an error beyond which a row of a robust fit counts less."""
Row = dict[str, str]
Doc = dict[str, Any]


def rows_of(table: str) -> list[Row]:
    """Rows of one calibration table."""
    if table == "nccl":
        return [row for ranks in MEASURED_RANKS for row in nccl_rows(ranks)]
    with (TABLES / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


MEASURED_RANKS = (2, 4)
MISALIGNED = "all_to_all_uneven"
"""Its parts between two GPUs begin at odd addresses, which NCCL copies slowly; rows of tokens do not."""


def nccl_rows(ranks: int) -> list[Row]:
    """What was measured of one operation at a time between `ranks` H200: the mean of the runs' device times."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows_of(f"h200x{ranks}_collectives"):
        if not row["other"] and row["op"] != MISALIGNED:
            found.setdefault((row["op"], row["bytes"]), []).append(row)
    out = []
    for (op, size), runs in found.items():
        mean = exp(sum(log(float(run["graph_us"])) for run in runs) / len(runs))
        label = {"exchange": "both_ways"}.get(op, op)
        head = {"id": f"h200x{ranks}.{label}.{size}", "hardware": "h200", "op": op, "bytes": size, "ranks": str(ranks)}
        use = "held out" if runs[0]["held_out"] == "1" else "fit"
        out.append(head | {"per_node": str(ranks), "nvlink_sharp": "0", "time_us": str(mean), "use": use})
    return out


def document(name: str) -> Doc:
    """A fabric TOML file, laid over the one it extends."""
    return read_extended("fabric", find("fabric", name))


def node_of(name: str, *, sharp: bool) -> Node:
    """The node of a hardware profile: its link bandwidths are attainable and no part of the fit."""
    table = read_extended("hardware", find("hardware", name))["node"]
    return TypeAdapter(Node).validate_python(table | {"nvlink_sharp": sharp})


def cluster_of(name: str, doc: Doc, *, sharp: bool = False) -> Cluster:
    """A cluster with the node of profile `name` and the fabric parameters of `doc`; of its GPU only the architecture
    plays a part."""
    gpu = Gpu(
        name=name,
        architecture=read_extended("hardware", find("hardware", name))["gpu"]["architecture"],
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
    if table in ("fabric_collective", "nccl"):
        return _collective(row, cluster)
    return all_to_all_time(row, cluster, low_latency=table == "fabric_low_latency")


MESSAGES = {"send": "comm.p2p", "exchange": "comm.p2p@both_ways"}


def _collective(row: Row, cluster: Cluster) -> float:
    if row["op"] in MESSAGES:
        both = row["op"] == "exchange"
        return p2p_cost(PointToPoint(bytes=float(row["bytes"]), tier="nvlink", both_ways=both), cluster).duration
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

    loss: Literal["soft_l1", "linear"] = "soft_l1" if fit.robust else "linear"
    best = least_squares(residuals, start, diff_step=[1e-3] * len(start), loss=loss, f_scale=ROBUST)
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
    if fit.table in ("fabric_collective", "nccl"):
        return MESSAGES.get(row["op"], f"comm.{row['op']}")
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
