"""Shipped jobs by whether they serve."""

from __future__ import annotations

from simulator.inputs import list_names, load_job
from simulator.spec.workload import WORKLOADS

SERVING = [name for name in list_names("job") if WORKLOADS[load_job(name).workload].serves]
TRAINING = [name for name in list_names("job") if name not in SERVING]
