"""What a row of a calibration table of communication describes, and its predicted time.

The fit of the parameters and the comparison with published figures read rows alike.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.cost.all_to_all_cost import all_to_all_cost
from simulator.cost.collective_cost import collective_cost
from simulator.ops import AllToAll, Collective, Gate
from simulator.routing.traffic import gate_vector
from simulator.spec.hardware import Cluster

HIDDEN = 7168
"""Hidden size of every measured all-to-all: DeepSeek-V3's."""


def collective_time(row: Mapping[str, str], cluster: Cluster) -> float:
    """Time of a collective of `fabric_collective` [s]."""
    work = Collective(
        kind=row["op"],  # type: ignore[arg-type]  # the table's words are the kinds
        bytes=float(row["bytes"]),
        ranks=int(row["ranks"]),
        per_node=int(row["per_node"]),
    )
    return collective_cost(work, cluster).duration


def all_to_all_time(row: Mapping[str, str], cluster: Cluster, *, low_latency: bool) -> float:
    """Time of a dispatch or combine of `fabric_ep` or `fabric_low_latency` [s].

    Hybrid-EP's benchmark sends gate weights both ways and does not count their bytes (its tests/test_hybrid_ep.py).
    """
    experts, ranks = int(row["experts"]), int(row["ep"])
    vector = gate_vector(experts, ranks=ranks, ranks_per_node=cluster.node.gpus)
    along = vector if row["kernels"] == "hybrid_ep" else 0.0
    work = AllToAll(
        direction="dispatch" if row["direction"] == "dispatch" else "combine",
        tokens=int(row["tokens"]),
        hidden=HIDDEN,
        bytes_per_token=float(row["bytes_per_token"]) + along,
        ranks=ranks,
        gate=Gate(
            experts=experts,
            top_k=int(row["top_k"]),
            groups=int(row.get("groups") or 0),
            node_limit=int(row.get("node_limit") or 0),
            scored=int(row.get("scored") or 2),
        ),
        cached=row.get("cached") == "1",
        weighted=row.get("weighted") == "1",
        low_latency=low_latency,
    )
    return all_to_all_cost(
        work,
        f"comm.{work.direction}",
        cluster,
        sms=int(row.get("sms") or 0),
        concurrent_with_compute=row.get("concurrent_with_compute") == "1",
        dispatcher=row["kernels"],
    ).duration
