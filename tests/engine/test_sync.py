"""Gradient sync, sharding, collectives pipelined with kernels, and the power limit."""

from __future__ import annotations

from dataclasses import replace
from math import hypot

import pytest

from simulator.cost.cost import Cost
from simulator.cost.price import wait_cost
from simulator.engine.kernel_sequence import Priced
from simulator.engine.longest_path import longest_path
from simulator.engine.lower import lower, price_model
from simulator.engine.power import alone, demand, draw, highest_demand, lagging_pace, lags, paused, slowdown
from simulator.engine.program import exposed
from simulator.engine.tasks import COMPUTE, LANES, SYNC, Tasks, Timeline
from simulator.engine.update import own_gradient_ops, update_ops
from simulator.errors import InputError
from simulator.graph.parameters import Held, held_by_stage
from simulator.inputs import load_hardware, load_scenario
from simulator.memory.optimizer_states import shards_of
from simulator.ops import Attention, Collective, Gemm, HostRead, Op, Streaming, Wait, Work
from simulator.results.simulate import prepare, schedule_of, simulate
from simulator.spec.hardware import Gpu, Power
from simulator.spec.model import BlockKind

SMALL = ["gpus=64", "layout.tp=1", "layout.pp=1", "batch.global_batch_size=256", "hardware=h100"]


def tasks_of(*overrides: str) -> Tasks:
    scenario = load_scenario("llama-3-8b", [*SMALL, *overrides])
    schedule = schedule_of(scenario)
    return lower(price_model(scenario, schedule.stages), schedule)


def collectives(tasks: Tasks, kind: str) -> list[float]:
    """Buffers of the collectives on the sync stream [B]."""
    works = [priced.op.work for lane, sequence in zip(tasks.lane, tasks.sequence, strict=True) if lane % LANES == SYNC
             for priced in sequence.ops]  # fmt: skip
    return [work.bytes for work in works if isinstance(work, Collective) and work.kind == kind]


def parameters() -> int:
    scenario = load_scenario("llama-3-8b", SMALL)
    blocks = ("embed", *scenario.model.layer_kinds(), "head")
    assert held_by_stage(blocks, scenario.model, scenario.job).total == scenario.model.parameters()
    return scenario.model.parameters()


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_zero_1_reduces_gradients_once_and_gathers_parameters_once(overlap: str) -> None:
    tasks = tasks_of("layout.zero=1", f"stack.grad_sync_overlap={overlap}", f"stack.param_gather_overlap={overlap}")
    assert sum(collectives(tasks, "reduce_scatter")) == 4.0 * parameters()
    assert sum(collectives(tasks, "all_gather")) == 2.0 * parameters()


def groups_of(tasks: Tasks) -> dict[str, set[tuple[int, int]]]:
    """Ranks, and ranks per node, of the collectives on the sync stream by kind."""
    found: dict[str, set[tuple[int, int]]] = {}
    for lane, sequence in zip(tasks.lane, tasks.sequence, strict=True):
        for work in (priced.op.work for priced in sequence.ops if lane % LANES == SYNC):
            if isinstance(work, Collective):
                found.setdefault(work.kind, set()).add((work.ranks, work.per_node))
    return found


@pytest.mark.parametrize("zero", ["1", "3"])
def test_replicas_shard_within_a_group_and_all_reduce_shards_over_the_groups(zero: str) -> None:
    """64 ranks in groups of 16 (two nodes), or of 4 (two in a node): one all-reduce of each rank's shard."""
    steps = 4 if zero == "3" else 1
    for replicas, sharing, near in ((4, (16, 8), (4, 1)), (16, (4, 4), (16, 2))):
        tasks = tasks_of(f"layout.zero={zero}", f"layout.replicas={replicas}")
        assert sum(collectives(tasks, "reduce_scatter")) == steps * 4.0 * parameters()
        assert sum(collectives(tasks, "all_reduce")) == pytest.approx(steps * 4.0 * parameters() / (64 / replicas))
        assert groups_of(tasks) == {"reduce_scatter": {sharing}, "all_gather": {sharing}, "all_reduce": {near}}


def test_replicas_keep_larger_shards() -> None:
    held, shards = Held(dense=64), []
    for replicas in (1, 4):
        scenario = load_scenario("llama-3-8b", [*SMALL, "layout.zero=3", f"layout.replicas={replicas}"])
        shards.append(shards_of(scenario, 1).of(held))
    assert shards == [1.0, 4.0]


def test_fp32_shards_are_cast_and_copied_before_each_gather() -> None:
    """Of a shard of 1/64: FP32 read, BF16 written; BF16 read and written; forward and backward of 4 microbatches."""
    tasks = tasks_of("layout.zero=3", "stack=torchtitan")
    works = [priced.op.work for sequence in tasks.sequence for priced in sequence.ops if "shard." in priced.op.name
             and priced.op.cls == "elem" and priced.op.stream == "comm"]  # fmt: skip
    moved = sum(work.read + work.written for work in works if isinstance(work, Streaming))
    assert moved == pytest.approx(2 * 4 * (4 + 2 + 2 + 2) * parameters() / 64)
    assert not [s for s in tasks_of("layout.zero=3").sequence if s.name == "param.shard"]  # of BF16 parameters


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        (("layout.replicas=3",), "layout.replicas: 3: does not divide dp x cp 64; use 2 or 4"),
        (("layout.zero=0", "layout.replicas=2"), "changes nothing: without ZeRO every rank holds everything"),
    ],
)
def test_replicas_that_cannot_be_are_refused(changes: tuple[str, ...], wrong: str) -> None:
    with pytest.raises(InputError, match=wrong):
        prepare(load_scenario("llama-3-8b", [*SMALL, *changes]))


def test_zero_0_reduces_all_to_all_ranks() -> None:
    tasks = tasks_of("layout.zero=0")
    assert sum(collectives(tasks, "all_reduce")) == 4.0 * parameters()
    assert collectives(tasks, "all_gather") == []


def test_zero_2_reduces_every_microbatch() -> None:
    assert sum(collectives(tasks_of("layout.zero=2"), "reduce_scatter")) == 4 * 4.0 * parameters()


def test_zero_3_gathers_before_every_forward_and_backward() -> None:
    tasks = tasks_of("layout.zero=3")
    assert sum(collectives(tasks, "all_gather")) == 2 * 4 * 2.0 * parameters()
    assert sum(collectives(tasks, "reduce_scatter")) == 4 * 4.0 * parameters()


@pytest.mark.parametrize("schedule", ["zb1p", "zb2p"])
def test_zero_3_with_split_backward_gathers_no_embedding_for_input_gradients(schedule: str) -> None:
    scenario = load_scenario("llama-3-8b", ["layout.pp=4", f"layout.schedule={schedule}", "layout.zero=3"])
    made = schedule_of(scenario)
    tasks = lower(price_model(scenario, made.stages), made)
    layout, model, count = scenario.job.layout, scenario.model, scenario.job.microbatches
    table, head = model.vocab_size * model.hidden_size // layout.tp, "head"
    layers = sum(held_by_stage((kind,), model, scenario.job).total for kind in (*model.layer_kinds(), head))
    assert sum(collectives(tasks, "all_gather")) == count * 2.0 * (2 * layers + table)


def test_weights_kept_in_fp8_are_gathered_in_fp8_and_cast_where_they_are_updated() -> None:
    """A MoE layer of V3: matrices with a scale per 128 x 128, gate and norms in BF16."""
    narrow, wide = (load_scenario(f"deepseek-v3-{name}") for name in ("pretrain", "bf16"))
    held = held_by_stage(("moe",), narrow.model, narrow.job)
    gathered = sum(held.weight_bytes(narrow.formats))
    matrices = held.matrices + held.experts
    assert gathered == matrices * (1 + 4 / 128**2) + 2 * (held.total - matrices)
    assert held.narrow == held.matrices
    assert held.narrow_experts == held.experts
    assert sum(held.weight_bytes(wide.formats)) == 2 * held.total
    casts = [op for op in update_ops(held, (), (256, 4), narrow) if op.name == "optimizer.quant_w"]
    assert [op.work.written for op in casts] == [held.matrices / 256 + held.experts / 4]  # type: ignore[union-attr]
    assert not [op for op in update_ops(held, (), (256, 4), wide) if op.name == "optimizer.quant_w"]


def test_overlapped_sync_is_never_slower() -> None:
    times = {}
    for overlap in ("true", "false"):
        flags = (f"stack.grad_sync_overlap={overlap}", f"stack.param_gather_overlap={overlap}")
        times[overlap] = longest_path(tasks_of("layout.zero=1", *flags)).makespan
    assert times["true"] < times["false"]


def test_gradients_that_are_dropped_need_no_zeros() -> None:
    """PyTorch drops them; Megatron's buffer is zeroed: 4 bytes a parameter of the model, of a shard with ZeRO-2."""
    held = Held(dense=3e9)
    for stack, zero, size in (("torch", 1, 0.0), ("megatron-core", 1, 12e9), ("megatron-core", 2, 12e9 / 8)):
        scenario = load_scenario("llama-3-8b", [f"stack={stack}", f"layout.zero={zero}"])
        cleared = [op.work for op in update_ops(held, (), (8, 8), scenario) if op.name == "optimizer.zero_grad"]
        assert [work.written for work in cleared if isinstance(work, Streaming)] == ([size] if size else [])


def bytes_of_update(*overrides: str, kernel: str) -> tuple[float, float]:
    """Bytes that one kernel of the update reads and writes, of 1e9 dense parameters without ZeRO."""
    scenario = load_scenario("llama-3-8b", ["layout.zero=0", *overrides])
    found = [op.work for op in update_ops(Held(dense=1e9, matrices=4e8), (), (8, 8), scenario) if op.name == kernel]
    assert len(found) == 1
    assert isinstance(found[0], Streaming)
    return found[0].read / 1e9, found[0].written / 1e9


BF16_ALL = [f"optimizer.{key}=bf16" for key in ("parameters", "gradients", "reduced", "first_moment", "second_moment")]


@pytest.mark.parametrize(
    ("settings", "kernel", "read", "written"),
    [
        (["stack.weights_copied=false"], "adam", 4 + 4 + 8, 4 + 8 + 2),  # gradient, master, moments; those, BF16 copy
        ([], "adam", 4 + 4 + 8, 4 + 8),  # the copy is a kernel of its own
        ([], "copy_w", 4, 2),
        (["layout.zero=1"], "copy_w", 4 / 8, 2 / 8),
        (["stack.gradients_clipped=true", "layout.zero=1"], "clip", 4 / 8, 4 / 8),
        ([*BF16_ALL, "optimizer.masters=none"], "adam", 2 + 2 + 4, 2 + 4),
        (["optimizer.gradients=bf16", "optimizer.reduced=bf16"], "widen_g", 2, 4),  # what follows reads FP32
        (["optimizer.gradients=bf16", "optimizer.reduced=bf16"], "grad_norm", 4, 0),
        (["optimizer.gradients=bf16", "optimizer.reduced=bf16"], "adam", 4 + 4 + 8, 4 + 8),
        (["optimizer.gradients=bf16", "optimizer.reduced=bf16", "stack.weights_copied=false"], "grad_norm", 2, 0),
        (["optimizer.parameters=fp32"], "adam", 4 + 4 + 8, 4 + 8 + 2),
        (["optimizer.parameters=fp32", "layout.zero=3"], "adam", (4 + 4 + 8) / 8, (4 + 8) / 8),  # cast when gathered
        (["optimizer.kind=adam8bit"], "adam8bit", 4 + 4 + 2 * (1 + 4 / 256), 4 + 2 * (1 + 4 / 256)),
        (["optimizer.kind=sgd"], "sgd", 4 + 4 + 4, 4 + 4),
        (["optimizer.kind=sgd", "optimizer.first_moment=none"], "sgd", 4 + 4, 4),
        (["optimizer.kind=muon"], "muon", 4 + 4 + 4 + 0.6 * 4, 4 + 4 + 0.6 * 4),  # 4 of 10 stand in matrices
    ],
)
def test_the_update_moves_what_the_states_say(settings: list[str], kernel: str, read: float, written: float) -> None:
    assert bytes_of_update(*settings, kernel=f"optimizer.{kernel}") == pytest.approx((read, written))


def test_a_rank_reads_and_writes_all_its_gradients_before_they_are_reduced() -> None:
    """Megatron-Core: a norm of the whole FP32 buffer, then every value times 1/dp, with ZeRO-1 as well."""
    held = Held(dense=2e9, experts=1e9)
    moved = {}
    for change in ("layout.zero=1", "stack.gradient_mean=collective", "stack.gradient_check=false", "gpus=8"):
        alone = ["layout.tp=8", "batch.global_batch_size=8"] if change == "gpus=8" else []
        scenario = load_scenario("llama-3-8b", [*SMALL, change, *alone])
        works = [op.work for op in own_gradient_ops(held, scenario)]
        moved[change] = [(work.read, work.written) for work in works if isinstance(work, Streaming)]
    check, scale = (12e9, 0.0), (12e9, 12e9)
    assert list(moved.values()) == [[check, scale], [check], [scale], [check]]  # one replica has nothing to scale


def test_chunks_are_reduced_in_the_order_in_which_their_backwards_end() -> None:
    """Of interleaved stages the last chunk leads; each block waits for its own gradients alone, but the very last."""
    changes = ["layout.schedule=interleaved", "layout.vpp=2", "layout.pp=2", "model.num_hidden_layers=8"]
    tasks = tasks_of(*changes, "layout.stages=even", "layout.zero=1", "stack.param_gather_overlap=false")
    for rank in range(2):
        sums = [(int(part.name.split(".")[1][1:]), at) for at, part in enumerate(tasks.sequence)
                if tasks.lane[at] == rank * LANES + SYNC and part.name.startswith("grad.s")]  # fmt: skip
        stages = [stage for stage, _ in sums]
        assert stages == sorted(stages, reverse=True)
        assert set(stages) == {rank, rank + 2}
        own = [at for at, part in enumerate(tasks.sequence)
               if part.name == "gradients" and tasks.lane[at] // LANES == rank]  # fmt: skip
        waiting = [at for _, at in sums if own[0] in tasks.preds[at]]
        assert waiting == [sums[-1][1]]


def test_what_is_done_to_own_gradients_delays_the_reduction_by_its_time() -> None:
    """Without overlap reductions wait for it; with overlap it stands on the stream of compute; ZeRO-2 has none."""
    quiet = ("stack.gradient_check=false", "stack.gradient_mean=collective")
    at_once = "hardware.node.host_pace=0"  # the check reads each microbatch's loss too
    for zero, overlap in ((1, "false"), (1, "true"), (2, "true")):
        flags = (
            f"layout.zero={zero}",
            f"stack.grad_sync_overlap={overlap}",
            "stack.param_gather_overlap=false",
            at_once,
        )
        tasks, without = tasks_of(*flags), longest_path(tasks_of(*flags, *quiet)).makespan
        own = [sequence.alone for sequence in tasks.sequence if sequence.name == "gradients"]
        assert len(own) == (zero < 2)
        later = longest_path(tasks).makespan - without
        if overlap == "false":
            assert later == pytest.approx(own[0], rel=1e-6)
        else:
            assert 0.0 <= later <= sum(own) * (1 + 1e-6)


def test_without_an_optimizer_nothing_is_updated_or_gathered() -> None:
    scenario = load_scenario("llama-3-8b", ["optimizer.kind=none", "stack=torch"])
    assert update_ops(Held(dense=1e9), (), (8, 8), scenario) == []
    tasks = tasks_of("optimizer.kind=none", "layout.zero=1", "stack=megatron-core")
    assert collectives(tasks, "all_gather") == [] != collectives(tasks, "reduce_scatter")


def test_gradients_are_reduced_in_the_format_that_is_said() -> None:
    wide, narrow = (sum(collectives(tasks_of("layout.zero=1", f"optimizer.reduced={how}"), "reduce_scatter"))
                    for how in ("fp32", "bf16"))  # fmt: skip
    assert wide == 4 * parameters() == 2 * narrow


def test_muon_orthogonalises_the_matrices_of_its_shard() -> None:
    """5 iterations of 2 m m n + 2 m m m + 2 m m n FLOP, spread over the ranks that share the parameters."""
    blocks = [BlockKind.EMBED, *[BlockKind.DENSE] * 32, BlockKind.HEAD]
    scenario = load_scenario("llama-3-8b", [*SMALL, "layout.zero=1", "optimizer.kind=muon"])
    products = [op for op in update_ops(Held(), blocks, (64, 1), scenario) if isinstance(op.work, Gemm)]
    h, kv, inner = 4096, 1024, 14336
    # 32 layers: wq, wo of h x h; wk, wv of h x kv; three of h x inner: 64, 64, 96 over 64 ranks
    matrices = [(h, h, 1), (kv, h, 1), (h, inner, 2)]
    by_hand = sum(5 * many * (4 * m * m * n + 2 * m**3) for m, n, many in matrices)
    assert sum(op.count * op.work.flops for op in products if isinstance(op.work, Gemm)) == by_hand
    gathered = collectives(tasks_of("layout.zero=1", "optimizer.kind=muon", "layout.tp=1"), "all_gather")
    plain = collectives(tasks_of("layout.zero=1"), "all_gather")
    assert sum(gathered) - sum(plain) == pytest.approx(2 * 32 * (2 * h * h + 2 * h * kv + 3 * h * inner))


def priced(work: Work, seconds: float) -> Priced:
    op = Op(name="x", cls="x", part="F", segment="x.F", work=work, concurrent_with="chunks")
    return Priced(op=op, cost=Cost(duration=seconds, bound_by="fixed"), durations=(seconds,) * 4)


@pytest.mark.parametrize(
    ("comm", "gemm", "shown"),
    [
        (4.0, 8.0, 0.0),  # each part arrives while those before it are multiplied
        (8.0, 4.0, 8 + 4 / 4 - 4),  # too long to hide: the last part arrives after 8 s
        (4.0, 0.0, 4.0),  # nothing to hide behind
    ],
)
def test_a_pipelined_collective_shows_only_what_the_kernel_does_not_hide(
    comm: float, gemm: float, shown: float
) -> None:
    gather = priced(Collective(kind="all_gather", bytes=1.0, ranks=4, per_node=4), comm)

    def price(op: Op) -> Priced:
        assert isinstance(op.work, Gemm)
        return priced(op.work, gemm * op.work.m / 8)

    kernel = [priced(Gemm(m=8, n=1, k=1, precision="bf16"), gemm)] if gemm else []
    assert exposed(gather, [], kernel, price).durations[0] == pytest.approx(shown)


POWER = Power(cap_of_tdp=1.0, idle=100.0, memory=500.0, tensor=1000.0, attention=900.0, exponent=0.5)


def gpu_of(power: Power) -> Gpu:
    return replace(load_hardware("h100").gpu, tdp=700.0, power=power)


def test_below_the_cap_nothing_is_slowed() -> None:
    assert slowdown(650.0, gpu_of(POWER), 1) == 1.0


def test_beyond_the_cap_the_slowdown_is_a_power_of_the_demand() -> None:
    assert slowdown(4 * 700.0, gpu_of(POWER), 1) == pytest.approx(2.0)


def test_more_gpus_hold_a_hungrier_one() -> None:
    spread = gpu_of(replace(POWER, spread=0.03))
    assert highest_demand(1) == 0.0
    assert slowdown(800.0, spread, 1) < slowdown(800.0, spread, 8) < slowdown(800.0, spread, 2048)


def test_demand_lies_between_idle_and_the_highest_demand_of_a_kernel() -> None:
    watts = demand(longest_path(tasks_of()), POWER)
    assert POWER.memory < watts < POWER.tensor


def test_attention_lags_behind_gemms_at_the_limit_alone() -> None:
    """Not at full clock; in full from 2 % on; a profile without the ratio slows both alike."""
    power = replace(POWER, attention_lag=1.1)
    assert lagging_pace(1.0, power) == 1.0
    assert lagging_pace(1.01, power) == pytest.approx((1.0 + 1.02 * 1.1) / 2)
    assert lagging_pace(1.2, power) == pytest.approx(1.2 * 1.1)
    assert lagging_pace(1.2, POWER) == lagging_pace(1.2, None) == 1.2


def test_kernels_whose_instructions_decide_lag_where_they_were_seen_to() -> None:
    op = Op(
        name="x", cls="swiglu.bwd@te", part="B", segment="a.B", stream="compute", work=Streaming(read=1.0, written=1.0)
    )
    bound = {kind: replace(wait_cost(Wait(seconds=1.0)), bound_by=kind) for kind in ("instructions", "memory")}
    assert lags(op, bound["instructions"])
    assert not lags(op, bound["memory"])
    assert not lags(replace(op, cls="elem.unvectorized"), bound["instructions"])


def test_what_kinds_of_work_draw() -> None:
    """Attention less between GEMMs than alone; who waits for the host, what an idle GPU does."""
    power = replace(POWER, attention_mixed=700.0)
    core = Attention(batch=1, seq_q=64, seq_kv=64, heads=8, kv_heads=8, d_qk=64, d_v=64, causal=True, backward=False)
    op = Op(name="core", cls="attn.fwd", part="F", segment="a.F", stream="compute", work=core)
    cost = replace(wait_cost(Wait(seconds=1.0)), bound_by="tensor")
    assert (draw(op, power), draw(op, POWER), alone(op, cost, power)) == (700.0, 900.0, 900.0)
    for work in (Wait(seconds=1.0), HostRead(seconds=1.0)):
        assert draw(replace(op, cls="wait.host", work=work), power) == power.idle


def test_a_power_limit_slows_a_dense_step() -> None:
    """H100 with and without a lower cap: the same step, longer."""
    fast = simulate(load_scenario("llama-3-8b", [*SMALL, "hardware.gpu.tdp=2000"]), engine="longest-path")
    slow = simulate(load_scenario("llama-3-8b", [*SMALL, "hardware.gpu.tdp=500"]), engine="longest-path")
    assert slow.metrics["step_time_s"] > 1.1 * fast.metrics["step_time_s"]


def test_ranks_that_meet_wait_for_the_clock_that_is_lowest_just_then() -> None:
    """Deviations of GPUs and of the governor are independent; without the limit nobody's clock moves."""
    power = replace(POWER, spread=0.02, dither=0.01)
    gpu, watts = gpu_of(power), 2 * 700.0
    usual, worst = slowdown(watts, gpu, 1), slowdown(watts, gpu, 8)
    assert slowdown(watts, gpu, 8, 1) == worst
    assert slowdown(watts, gpu, 1, 8) == pytest.approx(usual * (1 + 0.01 * highest_demand(8)))
    both = usual * (1 + hypot(worst / usual - 1, 0.01 * highest_demand(8)))
    assert slowdown(watts, gpu, 8, 8) == pytest.approx(both)
    assert slowdown(600.0, gpu, 8, 8) == 1.0
    at_most = gpu.power_cap / (1 + 0.02 * highest_demand(8))  # above it one GPU of 8 meets the limit
    assert slowdown(at_most, gpu, 8, 64) == pytest.approx(1.0)
    assert slowdown(1.0001 * at_most, gpu, 8, 64) == pytest.approx(1.0, abs=1e-3)  # and moves no further than it must


def test_only_short_pauses_count_in_the_mean_demand() -> None:
    """Two ranks of a step of 10 s: one pauses for 3 s, for 0.1 s, and for 1 + 2 s around the step; the other computes
    for 1 s of it."""
    tasks = Tasks(ranks=2)
    work = tasks_of().sequence[0]
    spans = [(1.0, 2.0), (5.0, 6.0), (6.1, 8.0), (4.0, 5.0)]
    for at in range(len(spans)):
        tasks.add((at == 3) * LANES + COMPUTE, work, ())
    tasks.add(SYNC, work, ())
    start, end = zip(*spans, (8.0, 10.0), strict=True)
    timeline = Timeline(tasks=tasks, start=list(start), end=list(end), changes={})
    power = replace(POWER, pause=0.25)
    assert paused(timeline, power, around=False) == pytest.approx(3.0 - 0.25)
    assert paused(timeline, power, around=True) == pytest.approx(3.0 - 0.25 + 3.0 - 0.25 + 9.0 - 0.25)
    assert paused(timeline, POWER, around=True) == 0.0  # every pause counts
    above, less = (demand(timeline, one) - POWER.idle for one in (power, POWER))
    assert above * (20.0 - paused(timeline, power, around=True)) == pytest.approx(less * 20.0)
