"""What a campaign file says: phases over one job, published figures to show with it, failures, power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simulator.errors import InputError
from simulator.inputs.files import find, list_names, read, read_extended
from simulator.inputs.limits import Range, check_ranges
from simulator.inputs.typed import build
from simulator.spec.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase of training. `tokens` or `steps` gives its length.

    Parameters
    ----------
    name : the phase's name.
    part : phases of the same part are summed.
    tokens : tokens to train on.
    steps : optimizer steps.
    set : overrides of the job, as `--set` takes them.
    ramp_from : batch at the start of a ramp, which grows linearly with the tokens [sequences].
    ramp_steps : plateaus of the ramp.
    """

    name: str
    part: str = ""
    tokens: float | None = None
    steps: int | None = None
    set: tuple[str, ...] = ()
    ramp_from: int | None = None
    ramp_steps: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Failures that stop the whole job.

    Parameters
    ----------
    mtbf_gpu_hours : GPU-hours between two failures.
    checkpoint_s : time that one checkpoint stops training [s] (0: it is written while training goes on).
    restart_s : from a failure until training continues from the last checkpoint [s].
    interval_s : training between two checkpoints [s] (0: the optimum, at least a step).
    runs : Monte-Carlo runs.
    seed : of the Monte-Carlo runs.
    """

    mtbf_gpu_hours: float
    checkpoint_s: float = 60.0
    restart_s: float = 900.0
    interval_s: float = 0.0
    runs: int = 200
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """Power beyond the profile's own model. All assumed.

    Parameters
    ----------
    gpu_share : power of a GPU in training where the profile has no power model, share of its TDP.
    rest_watts : the rest of a node and the network, per GPU [W] (DGX H100: at most 10.2 kW for 8 GPUs of 0.7 kW).
    pue : power of the data centre over that of its computers.
    """

    gpu_share: float = 0.85
    rest_watts: float = 400.0
    pue: float = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """A campaign file.

    Parameters
    ----------
    name : the campaign's name.
    job : job that the phases change.
    phases : the phases in order.
    fallback_schedules : tried in order where a batch of a ramp is too small for the job's schedule.
    published : GPU-hours by part [h], only shown with the forecast.
    failures : failures of the run.
    power : power beyond the profile's model.
    assumptions : shown with the answer.
    """

    name: str
    job: str
    phases: tuple[Phase, ...]
    fallback_schedules: tuple[str, ...] = ("1f1b",)
    published: dict[str, float] = field(default_factory=dict)
    failures: Failures | None = None
    power: Supply = field(default_factory=Supply)
    assumptions: tuple[str, ...] = ()


_WEEK = 604_800.0
PHASE: Mapping[str, Range] = {
    "tokens": Range(low=1, high=1e20),
    "steps": Range(low=1, high=1e12),
    "ramp_from": Range(low=1, high=1e9),
    "ramp_steps": Range(low=1, high=1000),  # each is simulated
}
FAILURES: Mapping[str, Range] = {
    "mtbf_gpu_hours": Range(low=1, high=1e12, unit="GPU-hours"),
    "checkpoint_s": Range(low=0, high=_WEEK, unit="s"),
    "restart_s": Range(low=0, high=_WEEK, unit="s"),
    "interval_s": Range(low=0, high=1e9, unit="s"),
    "runs": Range(low=1, high=10_000),
    "seed": Range(low=0, high=2**63 - 1),
}
POWER: Mapping[str, Range] = {
    "gpu_share": Range(low=0, high=1),
    "rest_watts": Range(low=0, high=1e5, unit="W"),
    "pue": Range(low=1, high=10),
}
"""What the numbers of a campaign file may be; a campaign outside them is a mistake."""


def load_campaign(name_or_path: str) -> Campaign:
    """The campaign of a shipped name or of a TOML file."""
    source = find("campaign", name_or_path)
    made = build(Campaign, {"name": source.name} | read_extended("campaign", source), source.label)
    for number, phase in enumerate(made.phases):
        _check(phase, f"{source.label}: phases[{number}] ({phase.name})")
    if not made.phases:
        raise InputError(f"{source.label}: phases: there is none; add [[phases]]")
    if made.failures is not None:
        check_ranges(made.failures, FAILURES, source.label, "failures.")
    check_ranges(made.power, POWER, source.label, "power.")
    check_ranges(made.published, dict.fromkeys(made.published, Range(low=0)), source.label, "published.")
    return made


def is_job_file(name_or_path: str) -> bool:
    """Whether a path leads to a TOML file with a job: it has a job's keys and no phases, or extends a shipped job."""
    path = Path(name_or_path)
    if path.suffix.lower() != ".toml" or not path.is_file():
        return False
    table = read(find("campaign", str(path) if len(path.parts) > 1 else f"./{path}"))
    if "phases" in table or "job" in table:
        return False
    return bool({"model", "layout", "batch"} & set(table)) or table.get("extends") in list_names("job")


def _check(phase: Phase, where: str) -> None:
    if (phase.tokens is None) == (phase.steps is None):
        raise InputError(f"{where}: must have tokens or steps, and not both")
    if (phase.tokens or phase.steps or 0) <= 0:
        raise InputError(f"{where}: tokens and steps must be above 0")
    if phase.ramp_from is not None and (phase.tokens is None or phase.ramp_from < 1 or phase.ramp_steps < 1):
        raise InputError(f"{where}: a ramp needs tokens, a ramp_from and ramp_steps of at least 1")
    check_ranges(phase, PHASE, where)


def campaign_of_job(scenario: Scenario, job: str) -> Campaign:
    """A job's own run as a campaign of one phase."""
    only = Phase(name="training", part="training", tokens=scenario.job.run.tokens)
    return Campaign(name=scenario.name, job=job, phases=(only,))
