"""Copies between GPU and host, and updates that the host's CPU makes.

Copies run at the attainable bandwidth of the link (PCIe, or NVLink-C2C); an Adam on the CPU is bound by the memory that
a GPU's share of the host gives it (arXiv 2101.06840, section 5.1).
"""

from __future__ import annotations

from simulator.cost.cost import Cost
from simulator.errors import InputError
from simulator.ops import HostWork
from simulator.spec.hardware import Cluster


def host_cost(work: HostWork, cluster: Cluster) -> Cost:
    """Time of the copies and of the CPU's work, one after the other or at once.

    Raises
    ------
    InputError : the hardware profile does not describe its hosts.
    """
    host = cluster.node.host
    if host is None:
        raise InputError(f"{cluster.name}: node.host: missing: offloading needs bandwidth and memory of the host")
    there, back, cpu = (
        work.to_host / host.bandwidth,
        work.from_host / host.bandwidth,
        work.memory / host.memory_bandwidth,
    )
    return Cost(
        duration=max(there, back, cpu) if work.overlapped else there + back + cpu,
        bound_by="host",
        formula="max(to host, CPU, from host)" if work.overlapped else "to host + CPU + from host",
        terms=(
            ("to_host_s", there),
            ("cpu_s", cpu),
            ("from_host_s", back),
            ("bandwidth", host.bandwidth),
            ("memory_bandwidth", host.memory_bandwidth),
        ),
        source=cluster.sources.get("node.host.bandwidth", ""),
        calibrated=False,
    )
