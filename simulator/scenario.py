"""Everything one run depends on, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.hardware import Cluster
from simulator.layout import Job
from simulator.model import ModelSpec
from simulator.stack import Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A resolved job: the job file's values, the model, the cluster and the software stack."""

    name: str
    job: Job
    model: ModelSpec
    cluster: Cluster
    stack: Stack
