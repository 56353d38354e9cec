"""Everything one run depends on, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.spec.hardware import Cluster
from simulator.spec.job import Job
from simulator.spec.model import ModelSpec
from simulator.spec.precision import Formats, formats_of
from simulator.spec.stack import Stack
from simulator.spec.states import States, resolved
from simulator.spec.uneven import ExpertCounts
from simulator.spec.workload import WORKLOADS, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A resolved job: everything that a forecast depends on.

    Parameters
    ----------
    name : the job's name.
    job : the values of the job file.
    model : shape of the model.
    cluster : hardware profile.
    stack : settings of the software.
    counts : recorded tokens per expert, for measured routing.
    """

    name: str
    job: Job
    model: ModelSpec
    cluster: Cluster
    stack: Stack
    counts: ExpertCounts | None = None

    @property
    def states(self) -> States:
        """What a rank keeps of its parameters: the job's `[optimizer]` over its stack's."""
        return resolved(self.job.optimizer, self.stack.optimizer)

    @property
    def formats(self) -> Formats:
        """How its GEMMs are run: the job's `[precision]` over its stack's."""
        return formats_of(self.job.precision, self.stack.precision, self.cluster.gpu.architecture, self.job.layout.zero)

    @property
    def assumed_hardware(self) -> tuple[str, ...]:
        """Numbers of the hardware profile that nobody measured or published, as far as the job reads them: those of the
        host where something is offloaded to it."""
        away = self.job.offload.optimizer or self.job.offload.activations
        return tuple(path for path in self.cluster.assumed if away or not path.startswith("node.host."))

    @property
    def gap_setting(self) -> str:
        """The setting that says how long the GPU waits between two kernels: of a replayed step or of one that the host
        issues."""
        replayed = self.job.serving is not None and self.job.serving.cuda_graphs and self.stack.serving is not None
        return "stack.serving.graph_gap" if replayed else "stack.kernel_gap"

    @property
    def kernel_gap(self) -> float:
        """Time between two kernels on the GPU [s]."""
        serving = self.stack.serving
        if serving is not None and self.gap_setting == "stack.serving.graph_gap":
            return serving.graph_gap
        return self.stack.kernel_gap

    @property
    def workload(self) -> Workload:
        """What the job does with the model."""
        return WORKLOADS[self.job.workload]


def amax_ranks(job: Job, stack: Stack, formats: Formats) -> int:
    """Ranks that agree on the largest values of tensors in every pass over a stage's layers; 1 if none do.

    Only under delayed scaling of whole tensors: other scales are those of the tensor at hand.
    """
    if formats.record.scaled != "tensor" or formats.scaling != "delayed" or stack.amax_group == "none":
        return 1
    replicas = job.dp if stack.amax_group == "stage" else 1
    return job.layout.tp * job.layout.cp * replicas
