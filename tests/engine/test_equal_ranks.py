"""Equal ranks, each simulated, are a mean rank to the last bit: every schedule, every shipped job with experts."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.engine.des import simulate as run_events
from simulator.engine.lower import lower
from simulator.engine.ranks.columns import Columns
from simulator.engine.ranks.rendezvous import run
from simulator.engine.ranks.tables import Tables
from simulator.engine.ranks.whole_step import met_tasks
from simulator.inputs import list_names, load_job, load_model, load_scenario
from simulator.results.simulate import prepare
from simulator.schedule import SCHEDULES

SMALL = ("layout.pp=2", "model.num_hidden_layers=6", "model.first_k_dense_replace=1", "routing.kind=uniform")
SHIPPED = {
    "deepseek-v2-pretrain": (*SMALL, "gpus=128", "batch.global_batch_size=512"),
    "deepseek-v3-1f1b": (*SMALL, "gpus=256", "batch.global_batch_size=512"),
    "deepseek-v3-bf16": (*SMALL, "gpus=256", "batch.global_batch_size=512"),
    "deepseek-v3-pretrain": (*SMALL, "gpus=256", "batch.global_batch_size=512"),
    "deepseek-v3-zb1p": (*SMALL, "gpus=256", "batch.global_batch_size=512"),
    "deepseek-v4-flash-pretrain": ("layout.pp=2", "gpus=128", "batch.global_batch_size=512", "routing.kind=uniform"),
}
"""Shipped jobs on two stages, with few layers and microbatches."""
TINY = {
    "gpipe": ("tiny-gpipe",),
    "1f1b": ("tiny-1f1b",),
    "interleaved": ("tiny-interleaved",),
    "zb1p": ("tiny-zb1p",),
    "zb2p": ("tiny-zb1p", "layout.schedule=zb2p"),
    "zb1p-auto": ("tiny-zb1p", "layout.schedule=zb1p-auto"),
    "zb2p-auto": ("tiny-zb1p", "layout.schedule=zb2p-auto"),
    "zbv": ("tiny-dualpipev", "layout.schedule=zbv"),
    "dualpipe": ("tiny-dualpipe",),
    "dualpipev": ("tiny-dualpipev",),
}


def three_equal(pp: int) -> Columns:
    """Three ranks with the mean load, and the mean one."""
    ones = np.ones((pp, 4))
    return Columns(
        names=(0, 1, 2),
        starts=(0,),
        loads=lambda layer, microbatch: ones[0],
        node_loads=lambda layer, microbatch: ones[0],
        slowdown=ones,
        nic=ones,
        pace=ones,
    )


CASES = [
    *TINY.values(),
    ("tiny-bf16",),
    ("tiny-1f1b", "layout.zero=3"),
    *((job, *sets) for job, sets in SHIPPED.items()),
]


def test_every_schedule_and_every_shipped_job_is_here() -> None:
    assert set(TINY) == set(SCHEDULES)
    jobs = {name: load_job(name) for name in list_names("job")}
    moe = {name for name, job in jobs.items() if job.serving is None and load_model(job.model).is_moe}
    assert moe == {case[0] for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join((case[0], *case[-1:][: len(case) - 1])))
def test_equal_ranks_are_a_mean_rank_to_the_last_bit(case: tuple[str, ...]) -> None:
    """Whatever the links share: waits are none, all-to-alls last as long, and the event engine sees the same tasks."""
    built, schedule = prepare(load_scenario(case[0], case[1:]))
    tasks = lower(built, schedule)
    ran = run(tasks, built, three_equal(schedule.ranks), Tables(built, np.ones(3), np.ones(3)))
    assert not any(wait.any() for wait in ran.wait.values())
    alone, together = run_events(tasks), run_events(met_tasks(tasks, ran))
    assert (together.start, together.end) == (alone.start, alone.end)
