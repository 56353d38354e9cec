"""The tables of a job file that go with its workload: defaults, and what a workload has no use for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.inputs.overrides import OPTION, Override
from simulator.inputs.problems import problem
from simulator.spec.job import Job
from simulator.spec.workload import WORKLOADS

Table = dict[str, Any]

_LAYOUT: Mapping[str, Any] = {"sp": False}
"""Layout of a serving job where its file does not say: all-reduces, as engines run tensor parallelism by default."""
_SERVING: Mapping[str, Table] = {
    "decode": {"context": 0, "tokens": 1, "cuda_graphs": True},
    "prefill": {"context": 0, "cuda_graphs": False},
}
"""`[serving]` where the file does not say; engines run prefill without CUDA graphs, since its shapes vary."""


def with_defaults(table: Table, source: str) -> Table:
    """The table of a job file with what its workload implies.

    Raises
    ------
    InputError : a table is there that the workload has no use for.
    """
    name = table.get("workload", "training")
    known = WORKLOADS.get(name) if isinstance(name, str) else None
    if known is None:
        return table  # reported when the value is read
    if not known.serves:
        _absent(table, "serving", source, f'only jobs with workload = "prefill" or "decode" have it, not "{name}"')
        # an empty batch has its missing keys named together with all others
        return {"batch": {}} | table | {"routing": _loads(table.get("routing", {}))}
    _absent(table, "batch", source, f'a job with workload = "{name}" has a table [serving] instead')
    serving, layout = table.get("serving", {}), table.get("layout", {})
    if isinstance(serving, dict):  # missing keys are named together with all others when the values are read
        serving = {**_SERVING[str(name)], **serving}
    return table | {"layout": {**_LAYOUT, **layout} if isinstance(layout, dict) else layout, "serving": serving}


def _loads(routing: Any) -> Any:
    """`[routing]` of a training job: one that says nothing of its loads takes them as others measured them."""
    return {"kind": "auto", **routing} if isinstance(routing, dict) else routing


def refuse_other_workload(job: Job, change: Override) -> None:
    """Raise for an override of a table that the job's workload has no use for, or of the workload itself."""
    serves = WORKLOADS[job.workload].serves
    if change.root == "batch" and serves:
        raise problem(OPTION, change.path, change.text, f'changes nothing: workload "{job.workload}" has [serving]')
    if change.root == "serving" and job.serving is None:
        right = f'changes nothing: the job has workload "{job.workload}"; prefill and decode have [serving]'
        raise problem(OPTION, change.path, change.text, right)


def refuse_changed_kind(before: Job, after: Job) -> None:
    """Raise where an override makes a serving job train, or the reverse: their tables differ."""
    if WORKLOADS[before.workload].serves != WORKLOADS[after.workload].serves:
        right = f'the job has the tables of workload "{before.workload}": write a job file'
        raise problem(OPTION, "workload", after.workload, right)


def _absent(table: Table, key: str, source: str, why: str) -> None:
    if key in table:
        raise problem(source, key, "[table]", why)
