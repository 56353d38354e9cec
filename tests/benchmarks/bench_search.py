"""Layouts a second of a search over DeepSeek-V3, and whether memory stays flat.

Run with `make bench`. Nothing here asserts a time. `valid` counts layouts that break no rule, those included that do
not fit the memory and so are never timed; `timed` counts only those that got a step time. With memory without end every
valid layout is timed.
"""

from __future__ import annotations

import resource

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from simulator.studies.search import question, search
from simulator.studies.search.workers import cores

OVER = (
    "layout.pp=4,8,16,32",
    "layout.ep=16,32,64,128",
    "layout.schedule=1f1b,zb1p,dualpipe,dualpipev,gpipe,zb2p",
    "layout.recompute=deepseek,full",
    "layout.zero=0,1",
    "batch.microbatch_size=1,2",
)


def cpu_seconds() -> float:
    """CPU time of this process and of the workers that have ended [s]: what a busy machine does not change."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


@pytest.mark.parametrize(
    ("comm_sms", "memory"),
    [("20", "80e9"), ("12,16,20,24,28,32", "80e9"), ("12,16,20,24,28,32", "1e13")],
    ids=["768", "4608", "4608-all-timed"],
)
def test_search(benchmark: BenchmarkFixture, comm_sms: str, memory: str) -> None:
    axes = (*OVER, f"overlap.comm_sms={comm_sms}")
    asked = question("deepseek-v3-pretrain", (f"hardware.gpu.hbm_bytes={memory}",), axes)
    before = cpu_seconds()
    found = benchmark.pedantic(lambda: search(asked), rounds=1)
    spent = cpu_seconds() - before
    valid = found.counts["ok"] + found.counts["too big"]
    seconds = benchmark.stats.stats.mean
    benchmark.extra_info.update(
        combinations=asked.size,
        cores=cores(),
        valid_per_s=round(valid / seconds),
        valid_per_cpu_s=round(valid / spent),
        timed_per_s=round(found.counts["ok"] / seconds),
        peak_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        worker_peak_mb=round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
    )
    print(benchmark.extra_info)
