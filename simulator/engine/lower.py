"""Joins graph, cost and schedule: unrolls a schedule into tasks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from simulator.dtypes import BF16
from simulator.engine.host import Issue, after_reads, issuing, releases
from simulator.engine.kernel_sequence import ALONE, KernelSequence, sequence_of
from simulator.engine.priced_model import PricedModel, Unrolled, action_key, program_of
from simulator.engine.pricing import pricer
from simulator.engine.program import Pricer, Program
from simulator.engine.ranks.waits import Rendezvous, with_rendezvous
from simulator.engine.sync import Sharding, append_optimizer, copies_of, gather_parameters
from simulator.engine.tasks import COMPUTE, LANES, SEND_NEXT, SEND_PREVIOUS, ActionOf, Tasks
from simulator.graph.block import Block
from simulator.graph.serving.layer import serving_kinds
from simulator.graph.serving.shapes import ServingShapes, serving_shapes
from simulator.graph.shapes import shapes_of
from simulator.graph.stage import build_blocks, place
from simulator.ops import AllToAll, Op, PointToPoint
from simulator.schedule import Action, Pair, Schedule, Step, halves, rank_of, record_of
from simulator.schedule.order import progress, step_needs
from simulator.schedule.pairing import PAIRED
from simulator.spec.model import BlockKind
from simulator.spec.scenario import Scenario


def price_model(
    scenario: Scenario,
    stages: int,
    *,
    pace: float = 1.0,
    watts: float | None = None,
    like: PricedModel | None = None,
) -> PricedModel:
    """Build and price the blocks of a scenario and spread them over `stages`; `pace` and `watts`: see `PricedModel`.

    `like`: a model of the same scenario, which has the same blocks at another pace.
    """
    if like is not None:
        shapes, blocks = like.shapes, like.blocks
    else:
        shapes = serving_shapes(scenario) if scenario.workload.serves else shapes_of(scenario)
        blocks = build_blocks(shapes)
    price = pricer(scenario, _most_met_all_to_all(blocks), pace)
    seconds = seconds_by_kind(blocks, price, overlaps(scenario))
    return PricedModel(
        scenario=scenario,
        shapes=shapes,
        blocks=blocks,
        price=price,
        imbalance=shapes.imbalance if scenario.workload.serves else 1.0,
        resampled_per_layer=scenario.job.routing.kind in ("sampled", "measured"),
        rendezvous=_rendezvous(scenario),
        stages=(serving_kinds(shapes),)
        if isinstance(shapes, ServingShapes)
        else place(scenario.model, stages, scenario.job, seconds, mirrored=mirrored(scenario)),
        block_seconds=seconds,
        pace=pace,
        watts=watts,
    )


def is_uneven(scenario: Scenario) -> bool:
    """Whether ranks of a training job differ, so that some wait for others."""
    if scenario.workload.serves:
        return False
    return _uneven_loads(scenario) or scenario.job.stragglers.any or drawn_clocks(scenario)


def ranks_apart(scenario: Scenario) -> bool:
    """Whether they are simulated apart over the whole step, instead of as a mean rank sees them."""
    slow = scenario.job.stragglers.any or drawn_clocks(scenario)
    return is_uneven(scenario) and (slow or scenario.job.routing.ranks != "mean")


def drawn_clocks(scenario: Scenario) -> bool:
    """Whether each GPU has a power demand of its own."""
    power = scenario.cluster.gpu.power
    return scenario.job.stragglers.clocks == "drawn" and power is not None and power.spread > 0.0


def _uneven_loads(scenario: Scenario) -> bool:
    job = scenario.job
    return scenario.model.is_moe and job.layout.ep > 1 and job.routing.kind != "uniform"


def _rendezvous(scenario: Scenario) -> Callable[[PricedModel, Step, Program], Rendezvous] | None:
    if not is_uneven(scenario) or not _uneven_loads(scenario):
        return None
    from simulator.engine.ranks.steady import Steady  # NumPy takes 0.1 s to load

    return Steady().of


def seconds_by_kind(blocks: dict[BlockKind, Block], price: Pricer, hidden: bool) -> dict[BlockKind, float]:
    """Time of each kind of block, forward and backward [s]; without its all-to-alls where they are `hidden`."""
    return {
        kind: sum(price(op).durations[ALONE] for op in block.ops() if not (hidden and op.stream == "comm"))
        for kind, block in blocks.items()
    }


def overlaps(scenario: Scenario) -> bool:
    """Whether all-to-alls mostly hide behind another microbatch's compute: then stages are balanced without them."""
    record = record_of(scenario.job.layout.schedule)
    if pairs_forwards(scenario):
        return True
    return scenario.stack.overlapped_pair and record is not None and record.overlapped_pairs


def pairs_forwards(scenario: Scenario) -> bool:
    """Whether the software runs the forwards and backwards of this schedule in pairs that overlap."""
    return scenario.stack.expert_overlap and scenario.model.is_moe and scenario.job.layout.schedule in PAIRED


def fills_waits(scenario: Scenario) -> bool:
    """Whether waiting weight gradients run while a lone input gradient waits for its all-to-alls."""
    return scenario.stack.wgrad_fills_waits and scenario.model.is_moe


def mirrored(scenario: Scenario) -> bool:
    """Whether stages are balanced in pairs at the same distance from both ends, which share a rank."""
    record = record_of(scenario.job.layout.schedule)
    return record is not None and record.mirrored


def is_issued(scenario: Scenario) -> bool:
    """Whether the host issues the kernels of a step one by one; else it replays a CUDA graph."""
    return scenario.job.serving is None or not scenario.job.serving.cuda_graphs


def host_of(scenario: Scenario) -> Issue | None:
    """How the host issues a scenario's kernels; None where that takes no time."""
    return issuing(scenario.stack, scenario.cluster.node.host_pace) if is_issued(scenario) else None


def _most_met_all_to_all(blocks: dict[BlockKind, Block]) -> Op | None:
    """The all-to-all that compute overlaps with most: a combine."""
    found = [(op.work, op) for block in blocks.values() for op in block.ops() if isinstance(op.work, AllToAll)]
    return max(found, key=lambda each: each[0].direction == "combine", default=(None, None))[1]


class Programs:
    """Programs by signature: equal actions of equal stages share one."""

    def __init__(self, built: PricedModel) -> None:
        self.built = built
        self.issue = host_of(built.scenario)
        self.made: dict[Hashable, Program] = {}
        self.releases: dict[int, tuple[list[float], float]] = {}

    def released(self, program: Program, issue: Issue) -> tuple[list[float], float]:
        """See `releases`, of a program made here."""
        key = id(program)
        if key not in self.releases:
            self.releases[key] = releases(program, issue)
        return self.releases[key]

    def of(self, step: Step) -> Program:
        """The program of a step."""
        built = self.built
        key = action_key(built.stages, step)
        if key not in self.made:
            program = program_of(built, step)
            if built.rendezvous is not None:
                program = with_rendezvous(program, built.rendezvous(built, step, program))
            self.made[key] = after_reads(program, self.issue, host_after_message(built.scenario, built.stages, step))
        return self.made[key]


def link_tier(scenario: Scenario, a: int, b: int) -> str:
    """The link between pipeline ranks `a` and `b`: ranks of one stage are consecutive, stages follow each other."""
    width = scenario.job.gpus // scenario.job.layout.pp
    node = scenario.cluster.node.gpus
    return "nvlink" if a * width // node == b * width // node else "nic"


def sends_block(scenario: Scenario) -> bool:
    """Whether a rank computes on only when its send is done."""
    how = scenario.stack.p2p_overlap
    return how == "never" or (how == "chunks" and scenario.job.layout.vpp == 1)


def host_after_message(scenario: Scenario, stages: Sequence[tuple[BlockKind, ...]], step: Step) -> float | None:
    """How long after a message that a step follows the host begins to issue it [s]; None where it does not wait for
    messages. The first stage begins a forward, and the last a backward, without one."""
    if isinstance(step, Pair) or step.kind == "W" or scenario.job.layout.pp == 1:
        return None
    alone = BlockKind.EMBED if step.kind == "F" else BlockKind.HEAD
    if not scenario.stack.p2p_sync or not sends_block(scenario) or alone in stages[step.stage]:
        return None
    return scenario.cluster.node.host_pace * scenario.stack.host_read * scenario.stack.p2p_reads


HEADER = 64.0
"""Bytes of a message that says what the next is [B]."""


def message(built: PricedModel, a: int, b: int) -> KernelSequence:
    """The send of one microbatch's activations (or gradients) from pipeline rank `a` to `b`, behind what announces it
    (`stack.p2p_headers`)."""
    s = built.shapes
    tokens = s.tokens / (s.job.layout.tp if s.job.layout.sp else 1)
    tier = link_tier(built.scenario, a, b)
    work = PointToPoint(bytes=tokens * s.model.sent_width * BF16, tier="nvlink" if tier == "nvlink" else "nic")
    op = Op(name="pp.send", cls="comm.p2p", part="F", segment="send", stream="comm", work=work)
    header = replace(op, name="pp.header", work=replace(work, bytes=HEADER))
    return sequence_of("send", "send", [built.price(one) for one in (*[header] * s.stack.p2p_headers, op)])


def append(tasks: Tasks, rank: int, program: Program, entry: tuple[int, ...], needed: Mapping[int, int]) -> int:
    """Append a program behind `entry`; steps in `needed` wait for that task too. Returns the number of its first."""
    base, lane, steps = len(tasks.lane), rank * LANES, program.steps
    tasks.lane.extend([lane + part.stream for part in steps])
    tasks.sequence.extend([part.sequence for part in steps])
    preds = [_behind(base, part.waits) for part in steps]
    for at, task in needed.items():
        preds[at] += (task,)
    if entry:
        for at in {part.stream: at for at, part in reversed(list(enumerate(steps)))}.values():  # first of each stream
            preds[at] += entry
    tasks.preds.extend(preds)
    return base


def _behind(base: int, waits: tuple[int, ...]) -> tuple[int, ...]:
    """The tasks that a step waits for; the program's begin at `base`. Most wait for one or none."""
    if not waits:
        return ()
    return (base + waits[0],) if len(waits) == 1 else tuple([base + at for at in waits])


class _Lowering:
    """Appends the tasks of one step after another; local to `lower`."""

    def __init__(self, built: PricedModel, schedule: Schedule) -> None:
        self.built, self.schedule = built, schedule
        node = built.scenario.cluster.node
        self.tasks = Tasks(
            ranks=schedule.ranks,
            nic=node.nic.bandwidth,
            nvlink=node.nvlink.bandwidth,
            steps_overlap=built.scenario.stack.post_validation,
        )
        self.programs = Programs(built)
        self.place = rank_of(schedule)
        self.arrived: dict[tuple[str, int, int], tuple[int, ...]] = {}
        self.tails: list[tuple[int, ...]] = [()] * schedule.ranks
        self.sends: dict[tuple[int, int], KernelSequence] = {}
        self.last_backward: dict[tuple[int, int], tuple[int, ...]] = {}
        self.gathered: dict[tuple[int, int], tuple[int | None, ...]] = {}
        self.sharding = Sharding(built.scenario, built.stages, built.price, copies_of(schedule))
        self.scattered: dict[tuple[int, int], tuple[int, ...]] = {}
        self.issue = self.programs.issue
        self.issued = [0.0] * schedule.ranks

    def step(self, rank: int, step: Step) -> None:
        """Tasks of one step and the sends after it."""
        tasks, program = self.tasks, self.programs.of(step)
        entry = set(self.tails[rank])
        for need in step_needs(step, self.schedule.stages):
            _, stage, microbatch = need
            if self.place[stage, microbatch] != rank:  # what the rank made itself need not be sent first
                entry.update(self.arrived.get(need, ()))
        entry_preds = tuple(sorted(entry))
        ahead, back = halves(step)
        needed = self._first_parameters(rank, ahead, program)
        needed |= self.sharding.gather(tasks, rank, step, program, entry_preds)
        base = append(tasks, rank, program, entry_preds, needed)
        self._hosted(rank, program, base)
        end = len(tasks.lane)
        phase = self.built.scenario.workload.phase_of["pair" if isinstance(step, Pair) else step.kind]
        tasks.actions.append(ActionOf(rank, step, phase, base, end))
        self.tails[rank] = tuple(base + at for at in program.tails)
        ready = self.tails[rank]
        if ahead.kind == "F":
            self._send(rank, ahead, ready)
        if back.kind in ("B", "I"):
            self._send(rank, back, ready)
        if back.kind in ("B", "W"):
            self.last_backward[rank, back.stage] = tuple(base + at for at in program.wgrad_end)
            self.scattered[rank, back.stage] = self.sharding.reduce(tasks, rank, step, program, base)

    def _hosted(self, rank: int, program: Program, base: int) -> None:
        """Hold the tasks of a program, from `base` on, until the rank's host has issued them."""
        if self.issue is not None:
            release_times, total = self.programs.released(program, self.issue)
            self.tasks.release.update((base + at, self.issued[rank] + late) for at, late in enumerate(release_times))
            self.issued[rank] += total

    def _first_parameters(self, rank: int, ahead: Action, program: Program) -> dict[int, int]:
        """Steps of a stage's first forward that wait for parameters gathered once a step -> the gather."""
        if ahead.kind != "F":
            return {}
        first = self.gathered.pop((rank, ahead.stage), ())
        return {at: task for at, task in zip(program.forward_start, first, strict=False) if task is not None}

    def _send(self, rank: int, action: Action, ready: tuple[int, ...]) -> None:
        """Hand the output of an action, `ready` after these tasks, to the rank of the next (or previous) stage."""
        forward = action.kind == "F"
        output = ("F" if forward else "I", action.stage, action.microbatch)
        target = action.stage + (1 if forward else -1)
        self.arrived[output] = ready
        if not 0 <= target < self.schedule.stages:
            return
        peer = self.place[target, action.microbatch]
        if peer == rank:
            return
        if (rank, peer) not in self.sends:
            self.sends[rank, peer] = message(self.built, rank, peer)
        lane = rank * LANES + (SEND_NEXT if forward else SEND_PREVIOUS)
        sent = self.tasks.add(lane, self.sends[rank, peer], ready)
        self.tasks.peer[sent] = peer
        self.arrived[output] = (sent,)
        if sends_block(self.built.scenario):
            self.tails[rank] = (*self.tails[rank], sent)


def lower(built: PricedModel, schedule: Schedule, *, optimizer: bool = True) -> Tasks:
    """The tasks of one step. The schedule must be valid (see `schedule.validate`).

    Of a workload that updates its parameters, they are gathered before and updated behind it, unless `optimizer` says
    no.
    """
    known = built.unrolled
    if known is not None and optimizer and known.scenario is built.scenario and known.schedule is schedule:
        again = priced_again(known, built)
        if again is not None:
            return again
    lowering = _Lowering(built, schedule)
    optimizer = optimizer and built.scenario.workload.updates
    if optimizer:
        lowering.gathered = gather_parameters(built.scenario, built.stages, built.price, lowering.tasks, schedule)
    for rank, at in progress(schedule).order:
        lowering.step(rank, schedule.rows[rank][at])
    if optimizer:
        append_optimizer(
            built.scenario,
            built.stages,
            built.price,
            lowering.tasks,
            lowering.last_backward,
            lowering.tails,
            lowering.scattered,
        )
    return lowering.tasks


def priced_again(known: Unrolled, built: PricedModel) -> Tasks | None:
    """An unrolled step at the prices of another model of the same scenario.

    None where more than prices may differ: stages are cut elsewhere, or a host issues kernels, whose releases depend on
    prices.
    """
    tasks, programs, lasts = known.tasks, Programs(built), 0
    if known.stages != built.stages or tasks.release:
        return None
    sequences, made = list(tasks.sequence), dict[int, KernelSequence]()
    for action in tasks.actions:
        if action.step is None:
            continue
        steps = programs.of(action.step).steps
        if len(steps) != action.last - action.first:
            return None
        sequences[action.first : action.last] = [part.sequence for part in steps]
        _price_others(sequences, lasts, action.first, built.price, made)
        lasts = action.last
    _price_others(sequences, lasts, len(sequences), built.price, made)
    return replace(tasks, sequence=sequences)


def _price_others(
    sequences: list[KernelSequence], first: int, last: int, price: Pricer, made: dict[int, KernelSequence]
) -> None:
    """Price what is no part of an action's program: sends, collectives of gradients and parameters, the update. `made`:
    by the sequence before, which lives on in the tasks."""
    for at in range(first, last):
        old = sequences[at]
        if id(old) not in made:
            made[id(old)] = sequence_of(old.kind, old.name, [price(one.op) for one in old.ops])
        sequences[at] = made[id(old)]


def stage_names(stages: Sequence[Sequence[BlockKind]]) -> list[str]:
    """Each stage's blocks for people: `embed + 3 dense + 1 moe`."""
    out = []
    for blocks in stages:
        parts: list[str] = []
        for kind in dict.fromkeys(blocks):
            count = blocks.count(kind)
            parts.append(kind if count == 1 and not kind.is_layer else f"{count} {kind}")
        out.append(" + ".join(parts))
    return out


__all__ = ["COMPUTE", "PricedModel", "link_tier", "lower", "message", "price_model", "stage_names"]
