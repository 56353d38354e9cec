"""A profile compared with the forecast of a step, by phase and by family of kernel classes.

Nothing has to be marked in the profile: phases, steps and layers are found in it (`phases`), families by kernel names
(`names`). What no family names, and families that the job does not run, are listed by time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from simulator.cost.price import launches_of
from simulator.engine.kernel_sequence import ALONE, KernelSequence
from simulator.engine.tasks import LANES, Timeline
from simulator.errors import InputError
from simulator.ops import Collective, Op
from simulator.profile.names import family, known_class
from simulator.profile.phases import Repetition, give_phases, in_order, repeated, whole_steps
from simulator.profile.recording import Kernel, Recording, busy, intervals
from simulator.profile.scopes import BACKWARD, COMMUNICATION, FORWARD, OPTIMIZER, PHASES
from simulator.results.intervals import Interval, length, merged, minus
from simulator.results.simulate import simulate
from simulator.spec.scenario import Scenario
from simulator.spec.stack import LIBRARY

SCHEMA = "foretrain.trace-compare-step/1"
NEEDED = ("GEMM", "GEMM, FP8", "grouped GEMM", "attention forward", "attention backward")
"""Families of which a profile of a transformer has at least one."""
ANCHORS = ("attention forward", "GEMM", "GEMM, FP8")
"""Families whose calls say which part of a step a profile is that has no whole one, the first that both have."""
MARKS = (
    'wrap the passes in torch.profiler.record_function("forward"), ("backward") and ("optimizer"), call'
    " profiler.step() once a step, and record ProfilerActivity.CPU and CUDA"
)
"""What a program adds so that its profile can be read."""

FAR = 1.9
"""Times as many calls as forecast from which a step is one of another model or batch: half as many microbatches, twice
as many layers."""
TRAVEL = ("comm.dispatch", "comm.combine")
"""Classes of tokens on their way to experts and back."""
LAYER = ("attn", "mlp", "dispatch", "combine")
"""Segments of a layer's forward."""
Key = tuple[str, str]
"""Phase and family."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Time [s] and number of kernels."""

    seconds: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(seconds=self.seconds + other.seconds, calls=self.calls + other.calls)

    def scaled(self, factor: float) -> Spent:
        """So much of it."""
        return Spent(seconds=factor * self.seconds, calls=factor * self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One family in one phase.

    Parameters
    ----------
    phase : forward, backward, optimizer or communication.
    family : family of kernel classes.
    measured, predicted : of a step, or of the part of one that the profile holds.
    """

    phase: str
    family: str
    measured: Spent
    predicted: Spent

    @property
    def error(self) -> float | None:
        """Predicted over measured time, less 1; None where nothing was measured."""
        return self.predicted.seconds / self.measured.seconds - 1.0 if self.measured.seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """Kernels of one name that the job does not run; `cls`: its class where no family has it, "" if not known."""

    name: str
    family: str
    cls: str
    spent: Spent


@dataclass(frozen=True, slots=True, kw_only=True)
class StepComparison:
    """Everything `trace compare` shows of a profile without marks of layers.

    Parameters
    ----------
    recording, scenario : what is compared.
    phases_from : where the phases of kernels come from.
    steps : whole steps of the profile; 0: it holds a part of one.
    part : part of the forecast's step that is compared with.
    by : family whose calls gave that part; "" where steps are whole.
    step : measured and predicted time of a step [s]; 0 where the profile holds none.
    busy, exposed : in a measured step, time in which a kernel runs, and communication while nothing computes [s].
    predicted_exposed : the same of the forecast [s].
    rows : by phase and family.
    strangers : kernels without a row, the longest first.
    layers : the kernel sequence that a forward repeats.
    predicted_layer : time of a layer's forward on the compute stream [s].
    ranks : pipeline ranks that the forecast is the mean of; one: that rank.
    """

    recording: Recording
    scenario: Scenario
    phases_from: str
    steps: int
    part: float
    by: str
    step: tuple[float, float]
    busy: float
    exposed: float
    predicted_exposed: float
    rows: tuple[Row, ...]
    strangers: tuple[Stranger, ...]
    layers: Repetition | None
    predicted_layer: float
    ranks: tuple[int, ...]

    @property
    def matched(self) -> float:
        """Part of the measured kernel time that has a family which the job runs."""
        known = sum(row.measured.seconds for row in self.rows if row.predicted.calls)
        return known / max(1e-12, known + sum(s.spent.seconds for s in self.strangers))

    @property
    def same_layers(self) -> bool:
        """Whether what a forward repeats is a layer of the job: as many on a pipeline rank, or that many times more,
        or less where some layers differ from others."""
        on_rank = self.scenario.model.num_hidden_layers / self.scenario.job.layout.pp
        count = self.layers.count if self.layers is not None else 0
        return bool(count) and (count % on_rank < 1 or on_rank % count < 1)

    @property
    def other_calls(self) -> Row | None:
        """The family of a whole step's forward, first of `ANCHORS`, of which the job makes more than `FAR` times as
        many calls, or as few; None: none. Then it is another model or batch."""
        both = {r.family: r for r in self.rows if r.phase == FORWARD and r.measured.calls and r.predicted.calls}
        for row in (both[name] for name in ANCHORS if self.steps and name in both):
            ratio = row.predicted.calls / row.measured.calls
            return row if not 1 / FAR <= ratio <= FAR else None
        return None

    @property
    def unfused_attention(self) -> bool:
        """Whether the job runs one kernel for attention and the profile as many softmax kernels as a layer repeats."""
        runs = {row.family for row in self.rows if row.predicted.calls}
        seen = {row.family for row in self.rows if row.measured.calls}
        softmax = sum(s.spent.calls for s in self.strangers if s.family == "softmax and loss" and "oft" in s.name)
        layers = self.layers.count if self.layers is not None else 0
        return "attention forward" in runs - seen and 0 < layers <= softmax

    def total(self, phase: str) -> tuple[float, float]:
        """Measured and predicted kernel time of a phase [s]."""
        own = [row for row in self.rows if row.phase == phase]
        return sum(row.measured.seconds for row in own), sum(row.predicted.seconds for row in own)

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {
            "schema": SCHEMA,
            "trace": self.recording.path,
            "gpu": self.recording.gpu,
            "job": self.scenario.name,
            "hardware": self.scenario.cluster.name,
            "pipeline_ranks": list(self.ranks),
            "kernels": len(self.recording.kernels),
            "span_s": self.recording.span,
            "phases_from": self.phases_from,
            "whole_steps": self.steps,
            "part_of_step": self.part,
            "part_by": self.by,
            "step_s": self.step[0],
            "predicted_step_s": self.step[1],
            "busy_s": self.busy,
            "exposed_comm_s": self.exposed,
            "predicted_exposed_comm_s": self.predicted_exposed,
            "matched": self.matched,
            "layers": None
            if self.layers is None
            else {
                "count": self.layers.count,
                "kernels": self.layers.kernels,
                "forward_s": self.layers.seconds,
                "within": self.layers.within,
            },
            "predicted_layer_forward_s": self.predicted_layer,
            "rows": [
                {
                    "phase": row.phase,
                    "family": row.family,
                    "measured_s": row.measured.seconds,
                    "measured_calls": row.measured.calls,
                    "predicted_s": row.predicted.seconds,
                    "predicted_calls": row.predicted.calls,
                    "error": row.error,
                }
                for row in self.rows
            ],
            "not_matched": [
                {
                    "kernel": s.name[:160],
                    "family": s.family,
                    "class": s.cls,
                    "s": s.spent.seconds,
                    "calls": s.spent.calls,
                }
                for s in self.strangers
            ],
        }


def compare_step(recording: Recording, scenario: Scenario, rank: int | None = None) -> StepComparison:
    """Hold a profile against a step of the job, of pipeline rank `rank` (None: their mean).

    Raises InputError where nothing of the profile is anything that the job runs.
    """
    if rank is not None and not 0 <= rank < scenario.job.layout.pp:
        raise InputError(f"--rank {rank}: the job has pipeline ranks 0 to {scenario.job.layout.pp - 1}")
    result = simulate(scenario)
    ranks = tuple(range(scenario.job.layout.pp)) if rank is None else (rank,)
    predicted = forecast_by_phase(result.timeline, ranks, library=scenario.stack.dispatcher in LIBRARY)
    phases_from = give_phases(recording)
    steps = whole_steps(recording)
    groups = [step.kernels for step in steps] or [recording.kernels]
    measured, names = _measured(groups)
    known = {name for _, name in predicted}
    _refuse_strangers(recording, scenario, measured, known)
    part, by = (1.0, "") if steps else _part(measured, predicted)
    shown = set(PHASES) if steps else {COMMUNICATION, *(phase for phase, _ in measured)}
    keys = [key for key in {**measured, **predicted} if key[1] in known and key[0] in shown]
    rows = [
        Row(
            phase=phase,
            family=name,
            measured=measured.get((phase, name), Spent()),
            predicted=predicted.get((phase, name), Spent()).scaled(part),
        )
        for phase, name in keys
    ]
    return StepComparison(
        recording=recording,
        scenario=scenario,
        phases_from=phases_from,
        steps=len(steps),
        part=part,
        by=by,
        step=(sum(s.seconds for s in steps) / len(steps), result.metrics["step_time_s"]) if steps else (0.0, 0.0),
        busy=sum(busy(group) for group in groups) / len(groups),
        exposed=sum(_exposed(group) for group in groups) / len(groups),
        predicted_exposed=part * exposed_kernels(result.timeline, ranks),
        rows=tuple(sorted(rows, key=lambda r: (PHASES.index(r.phase), -max(r.measured.seconds, r.predicted.seconds)))),
        strangers=_strangers(names, known),
        layers=repeated([k for k in in_order(groups[0]) if k.phase == FORWARD and not k.comm]),
        predicted_layer=forward_of_a_layer(result.timeline, ranks),
        ranks=ranks,
    )


def _measured(groups: Sequence[Sequence[Kernel]]) -> tuple[dict[Key, Spent], dict[Key, Spent]]:
    """Mean over steps, by phase and family, and by name and family."""
    found: dict[Key, Spent] = defaultdict(Spent)
    names: dict[Key, Spent] = defaultdict(Spent)
    for kernel in (kernel for group in groups for kernel in group):
        own = family(known_class(kernel.name))
        spent = Spent(seconds=kernel.seconds / len(groups), calls=1.0 / len(groups))
        names[kernel.name, own] += spent
        if own:
            found[COMMUNICATION if kernel.comm else kernel.phase, own] += spent
    return dict(found), dict(names)


def family_of(op: Op, *, library: bool) -> str:
    """The family of the kernels of an op: of a collective by its kind; `library`: tokens travel to their experts by
    collectives of NCCL."""
    if isinstance(op.work, Collective) and (library or op.cls not in TRAVEL):
        return family(f"comm.{op.work.kind}")
    return family("comm.all_to_all" if library and op.cls in TRAVEL else op.cls)


def forecast_by_phase(timeline: Timeline, ranks: Sequence[int], *, library: bool = False) -> dict[Key, Spent]:
    """Time and launches of each family in each phase, mean over pipeline ranks. A kernel sequence's time is divided
    among its ops in proportion to their times alone. `library`: see `family_of`."""
    total: dict[tuple[int, str], Spent] = defaultdict(Spent)
    sequences = {}
    for sequence, phase, seconds in _spans(timeline, ranks):
        sequences[id(sequence)] = sequence
        total[id(sequence), phase] += Spent(seconds=seconds, calls=1)
    out: dict[Key, Spent] = defaultdict(Spent)
    for (number, phase), spent in total.items():
        sequence = sequences[number]
        scale = spent.seconds / sequence.alone if sequence.alone else 0.0
        for priced in sequence.ops:
            name = family_of(priced.op, library=library)
            if name:
                seconds, calls = priced.durations[ALONE] * scale, spent.calls * launches_of(priced.op)
                where = (
                    COMMUNICATION if priced.op.cls.startswith("comm.") else OPTIMIZER if name == OPTIMIZER else phase
                )
                out[where, name] += Spent(seconds=seconds / len(ranks), calls=calls / len(ranks))
    return dict(out)


def _spans(timeline: Timeline, ranks: Sequence[int]) -> Iterator[tuple[KernelSequence, str, float]]:
    """Every kernel sequence of the pipeline ranks, its phase, and how long it ran [s]."""
    tasks = timeline.tasks
    phases = {task: action.phase for action in tasks.actions for task in range(action.first, action.last)}
    for task, sequence in enumerate(tasks.sequence):
        if tasks.lane[task] // LANES in ranks:
            phase = _phase(phases.get(task, OPTIMIZER), sequence.first.segment)
            yield sequence, phase, timeline.end[task] - timeline.start[task]


def _phase(action: str, segment: str) -> str:
    """The phase of a kernel sequence: that of its action; in an overlapped pair what its segment is of (`attn.F`)."""
    if action == "overlapped":
        return FORWARD if segment.endswith(".F") else BACKWARD
    return {"weight": BACKWARD}.get(action, action)


def forward_of_a_layer(timeline: Timeline, ranks: Sequence[int]) -> float:
    """Mean time of one layer's forward on the compute stream, without embedding, head and MTP [s]; 0 if no layer has
    one attention."""
    seconds = layers = 0.0
    for sequence, phase, took in _spans(timeline, ranks):
        first = sequence.first
        if phase == FORWARD and first.stream == "compute" and first.segment.partition(".")[0] in LAYER:
            seconds += took
            layers += sum(family(p.op.cls) == "attention forward" for p in sequence.ops)
    return seconds / layers if layers else 0.0


def exposed_kernels(timeline: Timeline, ranks: Sequence[int]) -> float:
    """Time in which communication kernels run and no others, mean over pipeline ranks [s]; a wait for the host, or for
    another rank's launch, is no kernel."""
    tasks = timeline.tasks
    seconds = 0.0
    for rank in ranks:
        moving: list[Interval] = []
        computing: list[Interval] = []
        for task, sequence in enumerate(tasks.sequence):
            if tasks.lane[task] // LANES == rank:
                for priced, span in zip(sequence.ops, timeline.op_spans(task), strict=True):
                    if family(priced.op.cls):  # a wait has none
                        (moving if priced.op.cls.startswith("comm.") else computing).append(span)
        seconds += length(minus(merged(moving), merged(computing)))
    return seconds / len(ranks)


def _part(measured: Mapping[Key, Spent], predicted: Mapping[Key, Spent]) -> tuple[float, str]:
    """Which part of a step the profile holds, by the calls of the first family of `ANCHORS` that both have."""

    def calls(of: Mapping[Key, Spent], phase: str, name: str) -> float:
        return sum(spent.calls for (in_phase, own), spent in of.items() if own == name and in_phase == phase)

    for phase, name in product((FORWARD, BACKWARD), ANCHORS):
        seen, wanted = calls(measured, phase, name), calls(predicted, phase, name)
        if seen and wanted:
            return seen / wanted, name
    return 1.0, ""


def _refuse_strangers(
    recording: Recording, scenario: Scenario, measured: Mapping[Key, Spent], known: Iterable[str]
) -> None:
    """InputError if the profile has no GEMM or attention kernel of the job."""
    wanted = set(known) & set(NEEDED)
    if wanted & {name for _, name in measured}:
        return
    longest = max(recording.kernels, key=lambda k: k.seconds)
    raise InputError(
        f"{recording.path}: none of its {len(recording.kernels):,} kernels is one that {scenario.name} runs"
        f" ({', '.join(sorted(wanted))}); the longest is {longest.name[:60]!r}. Is it the profile of another job?"
        f" In the program, {MARKS}"
    )


def _strangers(names: Mapping[Key, Spent], known: Iterable[str]) -> tuple[Stranger, ...]:
    runs = set(known)
    left = [
        Stranger(name=name, family=own, cls=known_class(name), spent=spent)
        for (name, own), spent in names.items()
        if own not in runs
    ]
    return tuple(sorted(left, key=lambda s: (-s.spent.seconds, s.name)))


def _exposed(kernels: Sequence[Kernel]) -> float:
    """Time of communication while nothing computes [s]."""
    return length(minus(intervals([k for k in kernels if k.comm]), intervals([k for k in kernels if not k.comm])))
