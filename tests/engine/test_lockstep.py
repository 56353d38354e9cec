"""Ranks of a decode step apart: an oracle with a task for every rank, equal ranks, idle ranks, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.engine.kernel_sequence import ALONE, KernelSequence, Priced, sequence_of
from simulator.engine.lockstep.durations import Durations
from simulator.engine.lockstep.ranks import _placed, lock_step
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel
from simulator.engine.program import Program, assemble, sequences_of, waiting
from simulator.engine.tasks import COMM, COMPUTE, LANES, SEND_NEXT, SEND_PREVIOUS, SYNC, Tasks
from simulator.inputs import load_scenario
from simulator.ops import AllToAll
from simulator.results.simulate import prepare, simulate

SMALL = ("model.num_hidden_layers=5", "gpus=16", "layout.ep=16", "serving.sequences=32")
UNEVEN = ("routing.kind=sampled", "routing.cv=0.7", "serving.context={mean=2000, cv=0.6}")
APART = ("serving.ranks=apart",)


def built(*changes: str) -> PricedModel:
    return prepare(load_scenario("deepseek-v3-decode-ep128", [*SMALL, *changes]))[0]


def lasting(like: KernelSequence, seconds: float, kind: str) -> KernelSequence:
    """A sequence of one op that takes so long."""
    op: Priced = waiting(seconds, like.ops[-1].op)
    return sequence_of("compute" if kind == "compute" else "work", like.name, [op])


def all_ranks(model: PricedModel) -> float:
    """The step as a task for every sequence of every rank, with barriers as tasks without length."""
    order = _placed(model)
    two = model.scenario.job.serving is not None and model.scenario.job.serving.two_batch_overlap
    program: Program = assemble(order, model.price, 1.0, False, collectives=SYNC if two else COMM)
    durations = Durations(model, model.stages[0])
    own = [
        durations.of(placed, at, sequence)
        for placed in order
        for at, sequence in enumerate(sequences_of(placed.segment, model.price))
    ]
    ranks, tp = model.scenario.job.gpus, model.scenario.job.layout.tp
    tasks = Tasks(ranks=ranks)
    done: list[list[int]] = []
    last: dict[tuple[int, int], int] = {}

    def barrier(preds: list[int], like: KernelSequence, lane: int = SEND_NEXT) -> int:
        return tasks.add(lane, lasting(like, 0.0, "work"), tuple(preds))

    for at, step in enumerate(program.steps):
        kind, like = step.sequence.kind, step.sequence
        needs = [
            [done[one][rank] for one in step.waits] + ([last[rank, step.stream]] if (rank, step.stream) in last else [])
            for rank in range(ranks)
        ]
        work = like.ops[-1].op.work
        gathers = kind == "all_to_all" and isinstance(work, AllToAll) and work.direction == "dispatch"
        if gathers:
            together = barrier([one for need in needs for one in need], like)
            needs = [[together]] * ranks
        if kind == "collective":
            groups = [
                barrier([x for need in needs[first : first + tp] for x in need], like, first * LANES + SEND_PREVIOUS)
                for first in range(0, ranks, tp)
            ]
            needs = [[groups[rank // tp]] for rank in range(ranks)]
        mine = [
            tasks.add(rank * LANES + step.stream, lasting(like, float(own[at][rank]), kind), tuple(needs[rank]))
            for rank in range(ranks)
        ]
        if kind == "all_to_all" and not gathers:
            together = barrier(mine, like)
            mine = [tasks.add(rank * LANES + COMM, lasting(like, 0.0, kind), (together,)) for rank in range(ranks)]
        done.append(mine)
        for rank in range(ranks):
            last[rank, step.stream] = mine[rank]
    return longest_path(tasks).makespan


@pytest.mark.parametrize(
    "changes",
    [
        UNEVEN,
        (*UNEVEN, "serving.two_batch_overlap=false"),
        (*UNEVEN, "layout.tp=4", "layout.sp=true", "serving.redundant_experts=16"),
        (*UNEVEN, "serving.mtp_depth=2", "serving.idle_ranks=3"),
    ],
)
def test_a_task_for_every_rank_gives_the_same_step(changes: tuple[str, ...]) -> None:
    model = built(*changes, *APART)
    found = longest_path(lock_step(model)).makespan
    assert found == pytest.approx(all_ranks(model), rel=1e-9)


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_equal_ranks_are_the_mean_rank(overlap: str) -> None:
    plain, apart = (
        simulate(load_scenario("deepseek-v3-decode-ep128", [f"serving.two_batch_overlap={overlap}", *more])).metrics
        for more in ((), APART)
    )
    assert apart["step_time_s"] == pytest.approx(plain["step_time_s"], rel=1e-9)
    assert apart["rank_wait_max_s"] < 1e-9
    assert apart["expert_load_max_over_mean"] == 1.0


def test_the_rank_with_most_to_do_waits_least() -> None:
    model = built(*UNEVEN, *APART)
    tasks = lock_step(model)
    assert tasks.apart is not None
    assert tasks.apart.waited[0] < tasks.apart.waited[1] < tasks.apart.waited[2]
    assert tasks.apart.compute[1] > tasks.apart.compute[0]
    step = longest_path(tasks).makespan
    assert step >= tasks.apart.compute[1]
    even = longest_path(lock_step(built("serving.context=2000", *APART))).makespan
    assert step > even


def test_waits_fill_what_a_rank_does_not_compute() -> None:
    """Kernels and waits of the shown rank: the compute stream's, and gaps while tokens travel, add up to the step."""
    tasks = lock_step(built(*UNEVEN, "serving.two_batch_overlap=false", *APART))
    timeline = longest_path(tasks)
    total = sum(sequence.cumulative[ALONE][-1] for sequence in tasks.sequence)
    shared = [
        at for at, lane in enumerate(tasks.lane) if lane % LANES == COMPUTE and tasks.sequence[at].name == "shared.F"
    ]
    hidden = sum(timeline.end[at] - timeline.start[at] for at in shared)  # runs while tokens travel
    assert total - hidden == pytest.approx(timeline.makespan, rel=1e-9)


def test_an_idle_rank_computes_no_attention_and_brings_no_tokens() -> None:
    busy, idle = (Durations(model := built(*APART, *more), model.stages[0]) for more in ((), ("serving.idle_ranks=4",)))
    assert len(busy.contexts) == 1
    assert [len(each) for each in idle.contexts] == [32] * 12 + [0] * 4
    rates = [
        simulate(load_scenario("deepseek-v3-decode-ep128", [*SMALL, *APART, *more])).metrics["tokens_per_step"]
        for more in ((), ("serving.idle_ranks=4",))
    ]
    assert rates == [16 * 32, 12 * 32]


def test_both_engines_agree() -> None:
    scenario = load_scenario("deepseek-v3-decode-ep128", [*SMALL, *UNEVEN, *APART])
    events, path = (simulate(scenario, engine=engine).metrics for engine in ("events", "longest-path"))
    assert path == events


def test_another_seed_is_another_draw() -> None:
    one, other = (
        simulate(load_scenario("deepseek-v3-decode-ep128", [*SMALL, *UNEVEN, *APART, f"serving.seed={seed}"])).metrics
        for seed in (0, 1)
    )
    assert one["step_time_s"] != other["step_time_s"]
    assert one["step_time_s"] == pytest.approx(other["step_time_s"], rel=0.2)


def test_expert_times_are_interpolated_between_priced_loads() -> None:
    model = built(*UNEVEN, *APART)
    durations = Durations(model, model.stages[0])
    order = [placed for placed in _placed(model) if placed.segment.name == "mlp.F" and placed.block > 3]
    times = durations.of(order[0], 0, sequences_of(order[0].segment, model.price)[0])
    loads = durations.loads.of(order[0].block, order[0].microbatch)
    assert np.corrcoef(times, loads)[0, 1] > 0.6
    assert times.max() > times.min()
