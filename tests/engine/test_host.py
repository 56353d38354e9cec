"""Kernels do not start before their host has issued them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from simulator.cost.cost import Cost
from simulator.engine.host import after_reads, issuing, releases
from simulator.engine.kernel_sequence import KernelSequence, Priced, sequence_of
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import PricedModel, host_after_message, lower, price_model
from simulator.engine.program import Program, ProgramStep
from simulator.engine.tasks import COMM, COMPUTE, Tasks
from simulator.estimate.estimate import estimate
from simulator.estimate.shared_prices import SharedPrices
from simulator.inputs import list_names, load_scenario, load_stack
from simulator.ops import Gemm, Op, Streaming
from simulator.results.simulate import prepare, simulate, timeline_of
from simulator.schedule import Action
from simulator.spec.model import BlockKind
from simulator.spec.stack import Stack

US = 1e-6


def stack(kernel: float, gemm: float) -> Stack:
    return replace(load_stack("torch"), host_kernel=kernel, host_gemm=gemm)


def kernel(seconds: float, *, gemm: bool = False, count: int = 1) -> Priced:
    work = Gemm(m=1, n=1, k=1, precision="bf16") if gemm else Streaming(read=1.0, written=1.0)
    op = Op(name="x", cls="x", part="F", segment="x.F", work=work, count=count)
    return Priced(op=op, cost=Cost(duration=seconds, bound_by="fixed"), durations=(seconds,) * 4)


def one_by_one(kernels: list[Priced], host: Stack, start: float) -> float:
    """End of the last kernel, each started when it is issued and the one before is over [s]."""
    issued, now = 0.0, start
    for priced in kernels:
        each = host.host_gemm if isinstance(priced.op.work, Gemm) else host.host_kernel
        for _ in range(priced.op.count):
            issued += each
            now = max(now, issued) + priced.durations[0] / priced.op.count
    return now


def ends(sequence: KernelSequence, host: Stack, start: float) -> float:
    """End of a run that could start at `start` when its host turns to it at 0 [s]."""
    issue = issuing(host)
    assert issue is not None
    return max(start, issue(sequence)[0]) + sequence.alone


@pytest.mark.parametrize(
    ("durations", "end"),
    [
        ((10, 1, 1), 16),  # issued at 4, 8, 12: the first lasts until 14, the others follow it
        ((1, 1, 1), 13),  # each is shorter than its issue: the last starts at 12
        ((1, 20, 1), 29),  # the second starts at 8
    ],
)
def test_a_run_ends_when_the_slower_of_host_and_gpu_is_through(durations: tuple[int, ...], end: int) -> None:
    sequence = sequence_of("compute", "x", [kernel(d * US) for d in durations])
    assert ends(sequence, stack(4 * US, 9 * US), 0.0) == pytest.approx(end * US)


def test_it_is_what_starting_kernel_by_kernel_gives() -> None:
    chance = random.Random(1)
    for _ in range(200):
        many = [
            kernel(chance.expovariate(1 / (5 * US)), gemm=chance.random() < 0.4, count=chance.choice((1, 1, 3)))
            for _ in range(chance.randint(1, 12))
        ]
        host, start = stack(chance.uniform(1, 8) * US, chance.uniform(1, 40) * US), chance.choice((0.0, 60 * US))
        sequence = sequence_of("compute", "x", many)
        assert ends(sequence, host, start) == pytest.approx(one_by_one(many, host, start), rel=1e-9)


def test_a_program_is_issued_in_its_order() -> None:
    sequence = sequence_of("compute", "x", [kernel(1 * US), kernel(1 * US)])
    issue = issuing(stack(4 * US, 9 * US))
    assert issue is not None
    steps = (ProgramStep(sequence, COMPUTE, ()), ProgramStep(sequence, COMPUTE, (0,)))
    release_times, total = releases(Program(steps=steps, tails=(1,)), issue)
    assert (*release_times, total) == pytest.approx((7 * US, 15 * US, 16 * US))


def tasks_of(*overrides: str) -> Tasks:
    scenario = load_scenario("tiny-1f1b", overrides)
    built, schedule = prepare(scenario)
    return lower(built, schedule)


HOSTED = ("stack.host_kernel=2e-4", "stack.host_gemm=4e-4", "stack.host_collective=3e-4")


def test_without_host_times_nothing_is_held_back() -> None:
    assert not tasks_of().release


def test_a_slow_host_makes_the_step_as_long_as_it_needs() -> None:
    """All kernels of the most loaded rank, issued one after the other."""
    tasks = tasks_of(*HOSTED)
    last = max(tasks.release.values())
    span = longest_path(tasks).makespan
    assert last < span < 1.2 * last
    assert span > 2 * longest_path(tasks_of()).makespan


def test_a_fast_host_only_delays_the_beginning() -> None:
    fast = ("stack.host_kernel=1e-9", "stack.host_gemm=1e-9", "stack.host_collective=1e-9")
    assert longest_path(tasks_of(*fast)).makespan == pytest.approx(longest_path(tasks_of()).makespan, rel=1e-4)


@pytest.mark.parametrize("host", [HOSTED, ("stack.host_kernel=4e-6", "stack.host_gemm=1.3e-5")], ids=["slow", "fast"])
def test_engines_and_the_fast_path_agree(host: tuple[str, ...]) -> None:
    """Gradients are reduced when all is over, so that it does not matter where inside an action its host is late."""
    overlaps = ("stack.grad_sync_overlap=false", "stack.param_gather_overlap=false", "layout.zero=0")
    scenario = load_scenario("llama-3-8b", (*host, *overlaps, "hardware.node.nvlink.bandwidth=1e13"))
    built, schedule = prepare(scenario)
    assert price_model(scenario, schedule.stages).stages == built.stages
    quick = timeline_of(built, schedule, "longest-path").makespan
    assert timeline_of(built, schedule, "events").makespan == pytest.approx(quick, rel=1e-6)
    assert estimate(scenario, SharedPrices(scenario, "longest-path")).step == pytest.approx(quick, rel=1e-3)


READS = (
    "model=mixtral-8x7b",
    "model.num_hidden_layers=2",
    "gpus=2",
    "layout.tp=1",
    "layout.pp=1",
    "layout.ep=2",
    "layout.recompute=none",
    "batch.sequence_length=128",
    "batch.global_batch_size=4",
    "stack=torch",
    "hardware=h200",
    "optimizer.kind=none",
    "model.moe_intermediate_size=256",
    "model.hidden_size=512",
    "model.vocab_size=1024",
)


def _step(*changes: str) -> float:
    result = simulate(load_scenario("llama-3-8b", [*READS, *changes]), engine="longest-path")
    return float(result.metrics["step_time_s"])


NO_ISSUE = tuple(f"stack.host_{what}=0" for what in ("kernel", "call", "gemm", "attention", "collective"))


def test_a_host_that_issues_in_no_time_waits_once_a_layer_and_microbatch() -> None:
    slower = _step(*NO_ISSUE, "stack.host_read=1e-3") - _step(*NO_ISSUE, "stack.host_read=0")
    assert slower == pytest.approx(2 * 2 * 1e-3, rel=1e-6)


def test_after_a_read_the_gpu_waits_for_what_the_host_issues() -> None:
    """Two tasks behind a read: the first waits for its issue, the second only as far as the first is no longer."""
    scenario = load_scenario("llama-3-8b", [*READS, *NO_ISSUE])
    built, _ = prepare(scenario)
    read, kernel = (_priced(built, "moe.counts.read", 5e-6), _priced(built, "router.gate", 30e-6))
    steps = (
        ProgramStep(sequence_of("work", "dispatch.F", [read]), COMM, ()),
        ProgramStep(sequence_of("compute", "mlp.F", [kernel]), COMPUTE, (0,)),
        ProgramStep(sequence_of("compute", "mlp.F", [kernel]), COMPUTE, (1,)),
    )
    stack = replace(scenario.stack, host_kernel=20e-6)
    late = after_reads(Program(steps, (2,)), issuing(stack))
    assert [step.sequence.alone for step in late.steps] == pytest.approx([5e-6, 50e-6, 30e-6])
    slow = after_reads(Program(steps, (2,)), issuing(stack, 2.0))
    assert [step.sequence.alone for step in slow.steps] == pytest.approx([5e-6, 70e-6, 40e-6])


def _priced(built: PricedModel, name: str, seconds: float) -> Priced:
    op = next(op for op in built.blocks[BlockKind.MOE].ops() if op.name == name)
    one = built.price(replace(op, count=1))
    return replace(one, durations=(seconds,) * 4)


def test_kernels_of_a_graph_are_not_issued_one_by_one() -> None:
    each = (_step(f"stack.cuda_graphs={what}") for what in ("none", "gate", "attention", "layers"))
    alone, gate, attention, layers = each
    assert alone > gate > attention > layers
    assert layers == pytest.approx(_step(*NO_ISSUE), rel=0.2)


def test_a_thousandfold_host_shows() -> None:
    """Of a larger model on a single GPU, whose kernels are mostly longer than their issue."""
    few = ("gpus=1", "layout.ep=1", "batch.sequence_length=4096", "model.hidden_size=4096", "batch.global_batch_size=2")
    kernel = 2e-6
    assert _step(*few, f"stack.host_kernel={1000 * kernel}") > 10 * _step(*few, f"stack.host_kernel={kernel}")


TRAINING = [name for name in list_names("stack") if load_stack(name).serving is None]
DENSE = ("hardware=h200", "gpus=1", "layout.tp=1", "layout.pp=1", "layout.recompute=none", "layout.zero=0")
SMALL = (
    "model.num_hidden_layers=2",
    "batch.sequence_length=2048",
    "batch.microbatch_size=1",
    "batch.global_batch_size=2",
)


def _trained(stack: str, *changes: str) -> float:
    scenario = load_scenario("llama-3-8b", [*DENSE, *SMALL, f"stack={stack}", *changes])
    return float(simulate(scenario, engine="longest-path").metrics["step_time_s"])


@pytest.mark.parametrize("name", TRAINING)
def test_a_thousandfold_host_shows_in_every_stack_that_trains(name: str) -> None:
    """Also in DeepSeek's, whose host is ahead in its trace (0 s); and where what is replayed are graphs of layers, it
    shows no more than in what stands around them."""
    kernel = load_stack(name).host_kernel or 2e-6
    slow = f"stack.host_kernel={1000 * kernel}"
    eager = _trained(name, slow)
    assert eager > 2.5 * _trained(name)
    assert _trained(name, slow, "stack.cuda_graphs=layers") < 0.6 * eager


def test_a_compiled_program_has_less_to_issue() -> None:
    """The same host price a call: torch.compile's program has fewer calls than eager modules."""
    same = ("stack.host_kernel=1e-3", "stack.host_gemm=1e-3")
    assert _trained("torch-compile", *same) < 0.8 * _trained("torch", *same)


def test_a_slower_processor_issues_later() -> None:
    assert _step("hardware.node.host_pace=2") > 1.5 * _step("hardware.node.host_pace=1")


def test_a_host_that_waits_for_messages_begins_anew() -> None:
    """Between stages: each kernel of an action starts when it was issued; the first forward and the last backward of a
    microbatch follow no message."""
    jobs = [
        load_scenario("tiny-1f1b", ["stack=megatron-core", "precision.recipe=bf16", f"stack.p2p_sync={on}"])
        for on in ("false", "true")
    ]
    stages = prepare(jobs[1])[0].stages
    last, pace = len(stages) - 1, jobs[1].cluster.node.host_pace * jobs[1].stack.host_read
    asked = {(kind, at): host_after_message(jobs[1], stages, Action(kind, at, 0)) for kind in "FBW" for at in (0, last)}
    none = {("F", 0), ("B", last), ("W", 0), ("W", last)}
    assert asked == {key: None if key in none else pace for key in asked}
    assert pace > 0
    assert host_after_message(jobs[0], stages, Action("B", 0, 0)) is None
    host = replace(stack(kernel=20e-6, gemm=0.0), host_call=0.0)
    kernel = _priced(prepare(load_scenario("llama-3-8b", READS))[0], "router.gate", 30e-6)
    program = Program((ProgramStep(sequence_of("compute", "mlp.F", [kernel]), COMPUTE, ()),), (0,))
    late = after_reads(program, issuing(host), began=5e-6)
    assert [step.sequence.alone for step in late.steps] == pytest.approx([55e-6])
    assert after_reads(program, issuing(host)) is program
    quick, slow = (float(simulate(job, engine="longest-path").metrics["step_time_s"]) for job in jobs)
    assert slow > quick
