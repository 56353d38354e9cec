"""Fit the power model to what a GPU of one's own drew under sustained load: a part of `foretrain calibrate fit`.

The rows of `measure_power.py` become the mixes of `fit_power.py`, and its fits make the values of [gpu.power]: power
readings of BF16 GEMMs at full clock give their watts, times of GEMMs that the limit slows the rest. Every mix is judged
by values fitted to the other three quarters of them, and by those of the profile that the GPU is like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

from hardware_profiles.calibration import fit_power
from hardware_profiles.calibration.evaluate import Judged
from hardware_profiles.calibration.fit_power import DRAWN, PRECISIONS, SLOWED, FullClock, Mix, SlowedMixes
from hardware_profiles.calibration.own.own_gpu import mean_error
from hardware_profiles.calibration.own.power_rows import MEMORY, PAUSE, Row, held_back, mixes_of, read
from simulator.spec.hardware import Cluster, Gpu, Power

FEWEST = 4
"""Slowed mixes that the exponent needs."""
FOLDS = 4
EXPONENT = 0.5
"""Where nothing says how a GPU slows: about that of an H100 and an H200."""
SAME = 0.01
"""A limit within so much of the TDP is the TDP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedMix:
    """A GEMM in a mix (or alone: no `other`) as measured, and as forecast: with the values of the profile that the GPU
    is like (`before`), and with those of a fit that did not see the mix (`after`); times [s] and power [W].

    `before` has no power where that profile has no power model.
    """

    precision: str
    other: str
    time_before: Judged
    time_after: Judged
    power_before: Judged | None
    power_after: Judged


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPower:
    """What came of the rows under sustained load.

    Parameters
    ----------
    values : of [gpu.power], measured on this GPU.
    sources : where each comes from.
    power : all values, with those that were carried over.
    known : those of the profile it is like; None: it has none.
    tdp, limit : power limit that the driver enforces [W], the first only where it is not the profile's (else 0).
    cap : power at which GEMMs are slowed [W]; 0 where the limit is not met.
    slowdown : by precision, how many times as long GEMMs alone take as after rest.
    mixes : GEMMs alone and in mixes, by precision.
    late : kernels that were left out, as the host had held them back.
    """

    values: dict[str, float]
    sources: dict[str, str]
    power: Power
    known: Power | None
    tdp: float
    limit: float
    cap: float
    slowdown: dict[str, float]
    mixes: tuple[JudgedMix, ...]
    late: tuple[str, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the values of the profile it is like stay: they are nearer to mixes than fits to other mixes."""
        return self.known is not None and error_after(self.mixes) > mean_error([mix.time_before for mix in self.mixes])

    @property
    def carried(self) -> tuple[str, ...]:
        """Names of values that are those of the profile it is like."""
        return tuple(one.name for one in fields(Power) if one.name not in self.values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a GPU, and what is known of the one it is like.

    Parameters
    ----------
    table : its rows.
    alone : its GEMMs alone, by precision.
    full : power at full clock, by BF16 GEMMs between copies and pauses.
    cap : power at which GEMMs are slowed [W]; 0 where the limit is not met.
    limit : power limit that the driver enforces [W].
    tdp : TDP of its profile [W].
    known : power model of the GPU that it is like.
    """

    table: Sequence[Row]
    alone: Mapping[str, Mix]
    full: FullClock
    cap: float
    limit: float
    tdp: float
    known: Power | None

    @property
    def exponent(self) -> float:
        """The exponent before any fit."""
        return self.known.exponent if self.known else EXPONENT

    def unslowed(self) -> dict[str, float]:
        """Power of GEMMs alone as read [W], by precision, of those that run at full clock."""
        return {name: mix.power for name, mix in self.alone.items() if mix.slowdown < SLOWED}

    def watts(self, names: Sequence[str]) -> list[float]:
        """Power of kernels alone [W], of those that were measured."""
        return [row.power for row in self.table if row.form == "other" and row.other in names]


def fit(table: Path, like: Cluster, origin: str, measured_on: str) -> OwnPower | str | None:
    """The power model of the GPU that `table` was measured on; None where the table has no rows under sustained load,
    and a line that says why where they do not give one.

    Raises InputError where a row of that section is wrong.
    """
    found = read(table)
    if not found:
        return None
    late = held_back(found)
    found = [row for row in found if row.form != "other" or row.other not in late]
    idle = next((row.power for row in found if row.form == "idle"), 0.0)
    copies = next((row.power for row in found if row.form == "other" and row.other == "copy"), 0.0)
    bf16 = [
        mix
        for row, mix in mixes_of(found, idle).items()
        if row.precision == "bf16" and row.other in ("", "copy", PAUSE)
    ]
    if not copies or not bf16:
        return "copies alone, or BF16 GEMMs, are missing"
    try:
        full = fit_power.full_clock(bf16, copies, idle)
    except ValueError as error:
        return str(error)
    if full.idle <= 0.0 or full.tensor <= full.idle:
        return f"the power of GEMMs ({full.tensor:.0f} W) and of pauses ({full.idle:.0f} W) make no sense"
    mixes = mixes_of(found, full.idle)
    slowed = [mix.power for mix in mixes.values() if mix.slowdown >= SLOWED]
    limit, cap = found[0].limit, sum(slowed) / len(slowed) if slowed else 0.0
    tdp = limit if abs(limit / like.gpu.tdp - 1.0) > SAME else like.gpu.tdp
    alone = {row.precision: mix for row, mix in mixes.items() if row.form == "gemm"}
    mine = Measured(table=found, alone=alone, full=full, cap=cap, limit=limit, tdp=tdp, known=like.gpu.power)
    try:
        source = f"measured on {measured_on} under sustained load ({table.name})"
        return replace(_fitted(mine, mixes, like.gpu, source, origin), late=late)
    except LookupError as error:
        return f"{error.args[0]} not measured, and {origin} has no power model"


def _fitted(mine: Measured, mixes: Mapping[Row, Mix], like: Gpu, source: str, origin: str) -> OwnPower:
    values, between = values_of(mine, list(mixes.values()))
    values = {name: float(f"{value:.4g}") for name, value in values.items()}
    power = _whole(values, mine.known)
    labelled, judged = list(mixes.items()), []
    for at, (row, mix) in enumerate(labelled):
        seen = [other for place, (_, other) in enumerate(labelled) if place % FOLDS != at % FOLDS]
        unseen = _whole(values_of(mine, seen)[0], mine.known)
        (time_before, power_before), (time_after, power_after) = (
            _judged(row, mix, power, tdp) for power, tdp in ((mine.known, like.tdp), (unseen, mine.tdp))
        )
        judged.append(
            JudgedMix(
                precision=row.precision, other=row.other, time_before=time_before, time_after=time_after,
                power_before=power_before if mine.known else None, power_after=power_after,
            )
        )  # fmt: skip
    return OwnPower(
        values=values, sources=_sources(mine, values, between, source, judged, origin), power=power, known=mine.known,
        tdp=mine.tdp if mine.tdp != like.tdp else 0.0, limit=mine.limit, cap=mine.cap, mixes=tuple(judged),
        slowdown={name: mix.slowdown for name, mix in mine.alone.items()},
    )  # fmt: skip


def error_after(mixes: Sequence[JudgedMix]) -> float:
    """Mean error of the times of mixes, by fits that did not see them."""
    return mean_error([mix.time_after for mix in mixes])


def _whole(values: Mapping[str, float], known: Power | None) -> Power:
    """All values, those that were not measured as known. Raises LookupError: one is not known either."""
    if known is not None:
        return replace(known, **values)
    lacking = [one.name for one in fields(Power) if one.default is MISSING and one.name not in values]
    if lacking:
        raise LookupError(" and ".join(lacking))
    return Power(**values)


def values_of(mine: Measured, mixes: Sequence[Mix]) -> tuple[dict[str, float], float]:
    """Values of [gpu.power] that these mixes give, and the share of what memory-bound kernels draw alone that they draw
    between GEMMs.

    Without enough slowed mixes there is no exponent among them, or an assumed one where none is known.
    """
    enough = bool(mine.cap) and sum(mix.slowdown >= SLOWED for mix in mixes) >= FEWEST
    found = slowed(mine, mixes) if enough else _alone(mine)
    tensor = [found.watts[name] for name in PRECISIONS[:3] if name in found.watts]
    cap = mine.cap or max(mine.limit, *(row.power for row in mine.table))
    values = {"cap_of_tdp": cap / mine.tdp, "idle": mine.full.idle, "tensor": sum(tensor) / len(tensor)}
    if enough or mine.known is None:
        values["exponent"] = found.exponent
    if PRECISIONS[3] in found.watts:
        values["split"] = found.watts[PRECISIONS[3]]
    for name, kernels in ({"memory": MEMORY} | DRAWN).items():
        if watts := mine.watts(kernels):
            values[name] = sum(watts) / len(watts) * found.between
    if (attention := _attention(mine, found.exponent)) is not None:
        values["attention"] = attention
        if mine.known is not None and mine.known.attention_mixed:
            values["attention_mixed"] = attention * mine.known.attention_mixed / mine.known.attention
    return values, found.between


def slowed(mine: Measured, mixes: Sequence[Mix]) -> SlowedMixes:
    """What the times of mixes say, enough of which the limit slows."""
    start = (mine.full.tensor, mine.full.exponent or mine.exponent)
    found = fit_power.slowed_mixes(mixes, mine.full.tensor, mine.cap, start)
    return found._replace(watts=found.watts | mine.unslowed())


def _alone(mine: Measured) -> SlowedMixes:
    """What GEMMs alone say with the exponent that is known; those at full clock draw what was read."""
    watts = {name: fit_power.attention([mix.slowdown], mine.cap, mine.exponent) for name, mix in mine.alone.items()}
    return SlowedMixes(watts | mine.unslowed(), mine.exponent, 1.0)


def _attention(mine: Measured, exponent: float) -> float | None:
    """Power of attention at full clock [W]: as read where the limit does not slow it."""
    own = [row for row in mine.table if row.form == "other" and row.other.startswith("attention")]
    slow = [row.other_us / row.us for row in own]
    if not slow:
        return None
    if mine.cap and sum(slow) / len(slow) >= SLOWED:
        return fit_power.attention(slow, mine.cap, exponent)
    return sum(row.power for row in own) / len(own)


def _judged(row: Row, mix: Mix, power: Power | None, tdp: float) -> tuple[Judged, Judged]:
    """Time of the GEMM of a mix [s], and its power [W]: predicted and measured."""
    label = f"{row.precision} with {row.other}" if row.other else row.precision
    if power is None:
        return Judged(label, mix.gemm, mix.measured), Judged(label, 0.0, mix.power)
    cap = power.cap_of_tdp * tdp
    watts = dict.fromkeys(PRECISIONS[:3], power.tensor) | {PRECISIONS[3]: power.split or power.tensor}
    own = mix._replace(watts=power.idle if mix.idle else power.memory)
    time = fit_power.under_load(own, watts, power.exponent, 1.0, cap)
    return Judged(label, time, mix.measured), Judged(label, min(cap, fit_power.demanded(own, watts, 1.0)), mix.power)


def _sources(
    mine: Measured,
    values: Mapping[str, float],
    between: float,
    source: str,
    judged: Sequence[JudgedMix],
    origin: str,
) -> dict[str, str]:
    """Where each value comes from."""
    alone = f"{between:.3f} of it between GEMMs" if between != 1.0 else "alone"

    def times(*precisions: str) -> str:
        some = [mix for mix in judged if mix.precision in precisions]
        return f"times of GEMMs in mixes, those held out {error_after(some):.1%} off" if some else ""

    fp8, many = times(*PRECISIONS[1:3]), sum(row.other.startswith("attention") for row in mine.table)
    how = {
        "cap_of_tdp": f"mean power of the GEMMs that are slowed, of {mine.tdp:.0f} W",
        "idle": "between GEMMs, and while nothing ran",
        "tensor": "BF16 by its power between copies and pauses at full clock" + (f", FP8 by {fp8}" if fp8 else ""),
        "split": times(PRECISIONS[3]),
        "exponent": times(*PRECISIONS),
        "memory": f"mean of {', '.join(n for n in MEMORY if mine.watts([n]))}; {alone}",
        "attention": f"time under sustained load over that after rest, and exponent ({many} measured, none held out)",
        "attention_mixed": f"that part of what attention draws alone that it is on {origin}",
    }
    how |= {name: f"{', '.join(n for n in kernels if mine.watts([n]))}; {alone}" for name, kernels in DRAWN.items()}
    if not mine.cap:
        how["cap_of_tdp"] = "the limit is not met by GEMMs; this is the one that the driver enforces"
        how |= dict.fromkeys(("tensor", "split", "attention"), "power as read: the limit is not met")
    out = {name: f"{source}: {how[name]}" for name in values}
    if mine.known is None and mine.exponent == values["exponent"]:
        out["exponent"] = f"assumed: about that of an H100 and an H200, as {origin} has none; range 0.45 to 0.6"
    return out
