"""Every rank its own times: a case worked out by hand, equal ranks, full ranks, random loads, slow GPUs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from simulator.engine.des import simulate as run_events
from simulator.engine.kernel_sequence import Priced, sequence_of
from simulator.engine.lower import lower
from simulator.engine.priced_model import PricedModel
from simulator.engine.program import Program, ProgramStep
from simulator.engine.ranks.columns import Columns
from simulator.engine.ranks.rendezvous import RankTimeline, run
from simulator.engine.ranks.steady import repeated
from simulator.engine.ranks.tables import FlowTable, SequenceTable, Tables, places
from simulator.engine.ranks.under_way import padded
from simulator.engine.ranks.whole_step import uneven_step
from simulator.engine.tasks import COMM, COMPUTE, Tasks
from simulator.graph.block import Block
from simulator.graph.shapes import at_load, hit_of
from simulator.graph.stage import build_blocks
from simulator.inputs import load_scenario
from simulator.ops import AllToAll, Op
from simulator.results.simulate import prepare, simulate
from simulator.routing.traffic import distinct
from simulator.schedule import Action, Schedule

JOBS = ("tiny-1f1b", "tiny-zb1p", "tiny-interleaved", "tiny-gpipe")
"""Jobs without collectives of gradients or shared links in the step that count: both engines see the same."""


def columns(pp: int, loads: list[float]) -> Columns:
    """Ranks of one group with loads that persist, and the mean one."""
    every = np.append(np.array(loads), 1.0)
    ones = np.ones((pp, len(every)))
    return Columns(
        names=tuple(range(len(loads))),
        starts=(0,),
        loads=lambda layer, microbatch: every,
        node_loads=lambda layer, microbatch: np.ones(len(every)),
        slowdown=ones,
        nic=ones,
        pace=ones,
    )


def ran(built: PricedModel, schedule: Schedule, loads: list[float]) -> RankTimeline:
    mean = replace(built, rendezvous=None)
    return run(
        lower(mean, schedule),
        mean,
        columns(schedule.ranks, loads),
        Tables(mean, np.array(loads), np.ones(1)),
    )


class TwoLayers:
    """Stands in for `Tables`: two layers, each attention (A), barrier (N), dispatch (D), experts (E), which wait for D.

    Times in seconds: A 2; N 1; D 4 x the highest load, half as fast while the rank computes; E 10 x load, twice as slow
    overlapped with D. Two ranks with loads 1.5 and 0.5, and the mean one.
    """

    grid = nodes = received = np.array([0.0, 2.0])
    hit = (0.0, 0.0)  # bytes grow as the load does

    def __init__(self, built: PricedModel) -> None:
        op = next(op for block in built.blocks.values() for op in block.ops())
        priced = built.price(op)

        def step(kind: str, stream: int, waits: tuple[int, ...], seconds: float) -> ProgramStep:
            one = Priced(op=priced.op, cost=priced.cost, durations=(seconds,) * 4)
            return ProgramStep(sequence_of(kind, kind, [one]), stream, waits)  # type: ignore[arg-type]

        steps = []
        for first in (0, 4):
            before = (first - 1,) if first else ()
            steps += [
                step("compute", COMPUTE, before, 2.0),
                step("notify", COMM, (first,), 1.0),
                step("all_to_all", COMM, (), 4.0),
                step("compute", COMPUTE, (first + 2,), 10.0),
            ]
        self.program = Program(steps=tuple(steps), tails=(7, 6))
        same = SequenceTable(padded(np.array([[[0.0, 2.0]]] * 3)), False)
        barrier = SequenceTable(padded(np.array([[[0.0, 1.0]]] * 3)), False)
        full = np.array([[[0.0, 0.0], [0.0, top]] for top in (20.0, 20.0, 40.0)])
        experts = SequenceTable(padded(full), True)
        flow = FlowTable(np.array([[0.0, 0.0]] * 2 + [[8.0, 16.0]] * 2))
        self.tables: list[SequenceTable | FlowTable] = [same, barrier, flow, experts] * 2

    def of(self, step: object) -> tuple[Program, list[SequenceTable | FlowTable]]:
        return self.program, self.tables


def test_two_ranks_and_two_layers_worked_out_by_hand() -> None:
    """Layer 1: A 0-2 on both; N 2-3; D 3-9 on both (4 s x 1.5, the full rank's links); E 9-24 and 9-14.
    Layer 2: A 24-26 and 14-16; N waits for rank 0: 26-27 (rank 1 has waited 10 s); D 27-33; E 33-48 and 33-38."""
    built, _ = prepare(load_scenario("tiny-1f1b", ["stack=megatron-core", "precision.recipe=bf16"]))
    tables = TwoLayers(built)
    tasks = repeated(tables.program, Action("F", 0, 0), 1)
    found = run(tasks, built, columns(1, [1.5, 0.5]), tables, draw=lambda task, block: (0, 0))  # type: ignore[arg-type]
    spans = [(start.tolist(), end.tolist()) for start, end in zip(found.start, found.end, strict=True)]
    assert spans[0] == ([0, 0, 0], [2, 2, 2])
    assert spans[1] == ([2, 2, 2], [3, 3, 3])
    assert spans[2] == ([3, 3, 3], [9, 9, 9])
    assert spans[3] == ([9, 9, 9], [24, 14, 19])
    assert spans[4] == ([24, 14, 19], [26, 16, 21])
    assert spans[5] == ([26, 16, 21], [27, 27, 27])
    assert found.wait[5].tolist() == [0, 10, 5]
    assert spans[6] == ([27, 27, 27], [33, 33, 33])
    assert spans[7] == ([33, 33, 33], [48, 38, 43])
    assert found.makespan == 48


@pytest.mark.parametrize("job", JOBS)
def test_equal_ranks_are_the_event_engine_to_the_last_bit(job: str) -> None:
    built, schedule = prepare(load_scenario(job))
    events, ranks = run_events(lower(built, schedule)), ran(built, schedule, [1.0, 1.0, 1.0])
    assert [each.tolist() for each in ranks.start] == [[start] * 4 for start in events.start]
    assert [each.tolist() for each in ranks.end] == [[end] * 4 for end in events.end]


def _as_one_runs_it(found: RankTimeline, tables: Tables, loads: list[float], column: int) -> Tasks:
    """The tasks of one column by itself: its kernels' times, and rendezvous that begin and end when they did."""
    every = np.append(np.array(loads), 1.0)
    place = places(tables.grid, every)
    tasks = found.tasks
    sequences, release = list(tasks.sequence), dict(tasks.release)
    for action in tasks.actions:
        assert action.step is not None
        for task, table in zip(range(action.first, action.last), tables.of(action.step)[1], strict=True):
            sequence = sequences[task]
            if isinstance(table, SequenceTable):
                times = table.at(place)
                own = times[:, min(column, times.shape[1] - 1), :-1] + np.zeros((3, 1))
                if sequence.kind == "notify":
                    own[:, -1] += found.wait[task][column]
                lines = tuple(tuple(line) for line in [*own.tolist(), own[0].tolist()])
                sequences[task] = replace(sequence, cumulative=lines)
            else:
                begun = float(found.start[task][column] + found.wait[task][column])
                release[task] = begun
                lines = ((0.0, float(found.end[task][column]) - begun),) * 4
                sequences[task] = replace(sequence, cumulative=lines, nic=0.0, nvlink=0.0)
    return replace(tasks, sequence=sequences, release=release)


@given(
    job=st.sampled_from(["tiny-1f1b", "tiny-zb1p"]),
    loads=st.lists(st.floats(0.4, 2.5), min_size=2, max_size=4),
)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_unequal_ranks_are_the_event_engine_rank_by_rank_where_nothing_is_shared(job: str, loads: list[float]) -> None:
    """Each column's kernels, run by the event engine with its rendezvous given, start and end when they did among all;
    and a rendezvous begins when the last column has come."""
    built, schedule = UNSHARED[job]
    mean = replace(built, rendezvous=None)
    tables = Tables(mean, np.array(loads), np.ones(1))
    found = run(lower(mean, schedule, optimizer=False), mean, columns(schedule.ranks, loads), tables)
    for task, wait in found.wait.items():
        came = found.start[task]
        assert (came + wait)[:-1] == pytest.approx(np.full(len(loads), came[:-1].max()))
        assert len(set(found.end[task].tolist()[:-1])) == 1
    for column in range(len(loads)):
        events = run_events(_as_one_runs_it(found, tables, loads, column))
        apart = [float(end[column]) for end in found.end]
        assert events.end == pytest.approx(apart, rel=1e-9)


UNSHARED = {job: prepare(load_scenario(job)) for job in ("tiny-1f1b", "tiny-zb1p")}


@pytest.mark.parametrize("job", ["tiny-1f1b", "tiny-dualpipe"])
@pytest.mark.parametrize("top", [1.2, 1.6])
def test_a_persistently_full_rank_costs_what_its_own_compute_says(job: str, top: float) -> None:
    """The step of the event engine if every kernel of every rank had the full one's tokens."""
    scenario = load_scenario(job)
    built, schedule = prepare(scenario)
    found, even = (ran(built, schedule, loads).makespan for loads in ([top, *[(16 - top) / 15] * 15], [1.0]))
    received = distinct(top, hit_of(scenario)[0])

    def full(block: Block) -> Block:
        halves = []
        for segments in (block.forward, block.backward):
            halves.append(tuple(replace(one, ops=tuple(map(_around, one.ops))) for one in segments))
        return replace(block, forward=halves[0], backward=halves[1])

    def _around(op: Op) -> Op:
        if not isinstance(op.work, AllToAll):
            return op
        return replace(op, work=replace(op.work, imbalance=received, node_imbalance=1.0))

    blocks = {kind: full(block) for kind, block in build_blocks(at_load(built.shapes, scenario, top)).items()}
    alike = run_events(lower(replace(built, blocks=blocks), schedule)).makespan
    assert alike > even
    assert found - even == pytest.approx(alike - even, rel=1e-9 if job == "tiny-1f1b" else 0.2)


@given(order=st.permutations(range(6)), seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_permuting_ranks_changes_nothing(order: list[int], seed: int) -> None:
    built, schedule = PREPARED
    loads = np.random.default_rng(seed).uniform(0.5, 1.5, 6)
    one, other = ran(built, schedule, loads.tolist()), ran(built, schedule, loads[list(order)].tolist())
    assert one.makespan == other.makespan
    for first, second in zip(one.end, other.end, strict=True):
        assert first[:-1][list(order)].tolist() == second[:-1].tolist()
        assert first[-1] == second[-1]


PREPARED = prepare(load_scenario("tiny-1f1b"))


def test_random_loads_cost_less_than_persistent_ones_of_the_same_maximum() -> None:
    """The same loads at every barrier of a persistent draw, or each layer and microbatch its own."""
    job = "tiny-dualpipe"
    random = load_scenario(job, ["routing.kind=sampled", "routing.microbatch_cv=0.5"])
    top = prepare(random)[0].shapes.imbalance
    steady = load_scenario(job, ["routing.kind=skewed", f"routing.max_over_mean={top}"])
    even, once, always = (simulate(one).metrics["step_time_s"] for one in (load_scenario(job), random, steady))
    assert even < once < always


def test_an_uneven_step_is_that_of_the_ranks_where_nothing_is_shared() -> None:
    """The event engine, given the waits of a mean rank, ends when the last rank does."""
    for overrides in (["routing.kind=skewed", "routing.max_over_mean=1.4"], ["routing.kind=sampled", "routing.cv=0.3"]):
        built, schedule = prepare(load_scenario("tiny-1f1b", overrides))
        step = uneven_step(built, schedule)
        assert run_events(step.tasks).makespan == pytest.approx(step.timeline.makespan, rel=1e-5)


def test_a_slow_gpu_makes_its_group_wait_and_a_slow_nic_does_too() -> None:
    even = simulate(load_scenario("tiny-dualpipe"))
    slow, narrow, late = (
        simulate(load_scenario("tiny-dualpipe", overrides))
        for overrides in (
            ["stragglers.gpus=1", "stragglers.slowdown=1.2", "stragglers.stage=1"],
            ["stragglers.gpus=1", "stragglers.nic=0.1", "stragglers.stage=1"],
            ["stragglers.jitter=1e-4"],
        )
    )
    step = even.metrics["step_time_s"]
    assert step < slow.metrics["step_time_s"] < 1.2 * step
    assert narrow.metrics["step_time_s"] > step
    assert late.metrics["step_time_s"] > step + 1e-4
    assert slow.uneven is not None
    wait = sum(slow.uneven.timeline.wait.values())
    assert wait[0] < wait[1]  # the slow GPU waits least


def test_a_slow_gpu_of_a_dense_job_is_waited_for_in_its_pipeline_and_at_the_end() -> None:
    job = ["hardware=h800", "gpus=16", "layout.tp=1", "layout.pp=4", "batch.global_batch_size=16"]
    even = simulate(load_scenario("llama-3-8b", job)).metrics["step_time_s"]
    slow = simulate(load_scenario("llama-3-8b", [*job, "stragglers.gpus=1", "stragglers.slowdown=1.5"]))
    assert even < slow.metrics["step_time_s"] < 1.5 * even
