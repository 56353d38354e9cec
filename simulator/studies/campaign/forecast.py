"""Forecasts a campaign, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from simulator.errors import PlanError
from simulator.inputs import load_scenario
from simulator.inputs.check import Problem, check
from simulator.memory import MemoryReport, memory_of_rows, needed
from simulator.results.metrics import price_of
from simulator.results.result import plain
from simulator.results.simulate import Engine, powered_plan, schedule_of, timeline_of
from simulator.spec.scenario import Scenario
from simulator.studies.campaign.campaign import Campaign, Phase
from simulator.studies.campaign.energy import Energy, energy_of
from simulator.studies.campaign.goodput import Goodput, sampled
from simulator.units import HOUR

SCHEMA = "foretrain.campaign/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseForecast:
    """One phase, or one plateau of a ramp.

    Parameters
    ----------
    name : name of the phase.
    part : part of the campaign that it counts in.
    batch : global batch [sequences].
    sequence : sequence length [tokens].
    schedule : pipeline schedule.
    steps : optimizer steps.
    tokens : tokens trained on.
    step : step time [s].
    gpu_hours : without failures [h].
    dollars : cost without failures [USD].
    memory : highest peak of a rank [B].
    energy : energy of the phase.
    remarks : what had to differ from the job.
    """

    name: str
    part: str
    batch: int
    sequence: int
    schedule: str
    steps: float
    tokens: float
    step: float
    gpu_hours: float
    dollars: float
    memory: float
    energy: Energy
    remarks: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Time of the phase without failures [s]."""
        return self.steps * self.step


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A whole campaign: its phases, the goodput under failures, and `gpus` it runs on."""

    campaign: Campaign
    gpus: int
    phases: tuple[PhaseForecast, ...]
    goodput: Goodput | None
    assumptions: tuple[str, ...] = field(default=())

    def part(self, name: str) -> tuple[float, float]:
        """GPU-hours and dollars of one part."""
        mine = [phase for phase in self.phases if phase.part == name]
        return sum(phase.gpu_hours for phase in mine), sum(phase.dollars for phase in mine)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts in their order."""
        return tuple(dict.fromkeys(phase.part for phase in self.phases))

    @property
    def seconds(self) -> float:
        """Time of all phases, without failures [s]."""
        return sum(phase.seconds for phase in self.phases)

    def as_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        parts = {}
        for name in self.parts:
            hours, dollars = self.part(name)
            parts[name] = {
                "gpu_hours": hours,
                "cost_usd": dollars,
                "published_gpu_hours": self.campaign.published.get(name),
            }
        return {
            "schema": SCHEMA,
            "campaign": plain(self.campaign),
            "gpus": self.gpus,
            "phases": [plain(phase) for phase in self.phases],
            "parts": parts,
            "goodput": plain(self.goodput),
            "assumptions": list(self.assumptions),
        }


def forecast(
    campaign: Campaign,
    overrides: Sequence[str] = (),
    *,
    engine: Engine = "events",
    progress: Callable[[float], None] | None = None,
) -> Forecast:
    """Simulate every phase of a campaign; equal steps are simulated once."""
    whole = load_scenario(campaign.job, overrides)
    pieces = [
        (phase, scenario, tokens)
        for phase in campaign.phases
        for scenario, tokens in plateaus(phase, load_scenario(campaign.job, (*overrides, *phase.set)))
    ]
    known: dict[Any, tuple[float, MemoryReport, float | None]] = {}
    done = []
    for at, (phase, scenario, tokens) in enumerate(pieces):
        done.append(_phase(campaign, phase, scenario, tokens, engine, known))
        if progress is not None:
            progress((at + 1) / len(pieces))
    return Forecast(
        campaign=campaign,
        gpus=whole.job.gpus,
        phases=tuple(done),
        goodput=_goodput(campaign, whole.job.gpus, done),
        assumptions=tuple(
            dict.fromkeys([*campaign.assumptions, *_common(whole), *(phase.energy.how for phase in done)])
        ),
    )


def _goodput(campaign: Campaign, gpus: int, phases: Sequence[PhaseForecast]) -> Goodput | None:
    """What failures leave of the run; a checkpoint can be taken after the longest step."""
    if campaign.failures is None:
        return None
    seconds, step = sum(phase.seconds for phase in phases), max(phase.step for phase in phases)
    return sampled(campaign.failures, gpus, seconds, step)


def _common(scenario: Scenario) -> list[str]:
    """What every forecast of a whole run assumes."""
    price, whose = price_of(scenario)
    return [
        "Every step of a phase lasts as long as the one simulated; evaluation and data loading take no time.",
        f"A GPU-hour costs ${price:.2f}: the price {whose}.",
    ]


def plateaus(phase: Phase, scenario: Scenario) -> list[tuple[Scenario, float]]:
    """Scenarios of a phase with the tokens of each: one, or the plateaus of its ramp, equal in tokens.

    The first plateau has the ramp's first batch. Every pipeline gets an even number of microbatches, as bidirectional
    schedules need.
    """
    job = scenario.job
    if phase.ramp_from is None:
        return [(scenario, phase.tokens or float((phase.steps or 0) * job.tokens_per_step))]
    share, last = 2 * job.dp * job.batch.microbatch_size, job.batch.global_batch_size
    out = []
    for number in range(phase.ramp_steps):
        size = phase.ramp_from + (last - phase.ramp_from) * number / phase.ramp_steps
        batch = replace(job.batch, global_batch_size=max(share, round(size / share) * share))
        out.append((replace(scenario, job=replace(job, batch=batch)), (phase.tokens or 0.0) / phase.ramp_steps))
    return out


def runnable(scenario: Scenario, fallbacks: Sequence[str]) -> tuple[Scenario, tuple[str, ...]]:
    """The scenario, or the first fallback schedule under which it is valid and fits (or else is valid), with what was
    changed and why."""
    broken = _errors(scenario)
    if not broken:
        return scenario, ()
    layouts = (replace(scenario.job.layout, schedule=name) for name in fallbacks)
    others = [replace(scenario, job=replace(scenario.job, layout=layout)) for layout in layouts]
    valid = [other for other in others if not _errors(other)]
    if not valid:
        raise PlanError(f"{scenario.name}: {broken[0]}; no fallback schedule runs it either: {', '.join(fallbacks)}")
    chosen = next((other for other in valid if _memory(other).fits), valid[0])
    name = chosen.job.layout.schedule
    return chosen, (f"{name} instead of {scenario.job.layout.schedule}: {broken[0].message}",)


def _errors(scenario: Scenario) -> list[Problem]:
    return [problem for problem in check(scenario) if problem.severity == "error"]


def _memory(scenario: Scenario) -> MemoryReport:
    schedule = schedule_of(scenario)
    return memory_of_rows(powered_plan(scenario, schedule, scenario.job.gpus)[0], schedule)


def _phase(
    campaign: Campaign,
    phase: Phase,
    scenario: Scenario,
    tokens: float,
    engine: Engine,
    known: dict[Any, tuple[float, MemoryReport, float | None]],
) -> PhaseForecast:
    scenario, remarks = runnable(scenario, campaign.fallback_schedules)
    job = scenario.job
    key = (job, id(scenario.model) if phase.set else None)
    if key not in known:
        schedule = schedule_of(scenario)
        plan, _, watts = powered_plan(scenario, schedule, scenario.job.gpus)
        known[key] = timeline_of(plan, schedule, engine).step_time, memory_of_rows(plan, schedule), watts
    step, memory, watts = known[key]
    if memory.answer != "fits":
        remarks += (f"{memory.answer}: {needed(memory.verdict())}",)
    steps = tokens / job.tokens_per_step
    hours = steps * step * job.gpus / HOUR
    return PhaseForecast(
        name=phase.name,
        part=phase.part or phase.name,
        batch=job.batch.global_batch_size,
        sequence=job.batch.sequence_length,
        schedule=job.layout.schedule,
        steps=steps,
        tokens=tokens,
        step=step,
        gpu_hours=hours,
        dollars=hours * price_of(scenario)[0],
        memory=memory.peak,
        energy=energy_of(scenario, watts, hours, campaign.power),
        remarks=remarks,
    )
