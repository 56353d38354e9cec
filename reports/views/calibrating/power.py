"""What `foretrain calibrate fit` says of power: what was measured, how far off the power model is, what was kept."""

from __future__ import annotations

from hardware_profiles.calibration.fit_power import PRECISIONS
from hardware_profiles.calibration.own.own_gpu import mean_error
from hardware_profiles.calibration.own.own_power import OwnPower

BELOW = 0.9
"""A GPU that is slowed at less of its limit may be held back by something else."""
NAMES = dict(zip(PRECISIONS, ("BF16", "FP8", "FP8 by row", "FP8 with split sums"), strict=True))


def power_lines(power: OwnPower | str | None, origin: str) -> list[str]:
    """What was measured under sustained load, how far off the power model is, what was carried over."""
    if power is None:
        return []
    if isinstance(power, str):
        return [f"Power: measured under sustained load, but not fitted ({power}): all of it is carried over.", ""]
    slow = ", ".join(f"{one:.2f} ({NAMES[name]})" for name, one in power.slowdown.items())
    lines = [f"Power: under sustained load GEMMs alone take {slow} times as long as after rest."]
    if not power.cap:
        lines.append(
            f"This GPU does not meet its limit of {power.limit:.0f} W (none is slowed by 1 %): the watts below are what"
            " was read, and no step is slowed."
        )
    else:
        lines.append(f"Slowed, they draw {power.cap:.0f} W; the driver enforces {power.limit:.0f} W.")
        if power.cap < BELOW * power.limit:
            lines.append("Heat or a clock limit, not the power limit, may hold this GPU back.")
    lines += ["", f"| gpu.power | as {origin} | measured | how |", "|---|---|---|---|"]
    known = power.known
    for key, value in power.values.items():
        was = f"{getattr(known, key):g}" if known else "none"
        lines.append(f"| {key} | {was} | {value:g} | {power.sources[key].partition(': ')[2]} |")
    lines += ["", *_errors(power, origin), ""]
    if power.kept:
        lines += [f"The values of {origin} are nearer: they are kept, and those measured only shown here.", ""]
    if power.late:
        names = ", ".join(power.late)
        lines += [f"Left out, as the host issued them too slowly to keep the GPU busy alone: {names}.", ""]
    if power.carried and not power.kept:
        values = ", ".join(f"{key} {getattr(power.power, key):g}" for key in power.carried)
        lines += [f"Not measured, carried over from {origin}: {values}.", ""]
    return lines


def _errors(power: OwnPower, origin: str) -> list[str]:
    """How far times and power of the mixes are off, by precision."""
    lines = [
        f"Each quarter of {len(power.mixes)} mixes is judged by values fitted to the others, and by those of {origin}:",
        "",
        f"| GEMMs alone and in mixes | many | time off as {origin} | fitted | power off as {origin} | fitted |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        mine = [mix for mix in power.mixes if mix.precision == name]
        if mine:
            known = [mix.power_before for mix in mine if mix.power_before]
            off = (
                mean_error([mix.time_before for mix in mine]), mean_error([mix.time_after for mix in mine]),
                mean_error(known) if known else None, mean_error([mix.power_after for mix in mine]),
            )  # fmt: skip
            shown = " | ".join("-" if one is None else f"{one:.1%}" for one in off)
            lines.append(f"| {title} | {len(mine)} | {shown} |")
    worst = max(power.mixes, key=lambda mix: abs(mix.time_after.predicted / mix.time_after.measured - 1.0))
    where = NAMES[worst.precision] + (f" with {worst.other}" if worst.other else " alone")
    error = worst.time_after.predicted / worst.time_after.measured - 1.0
    return [*lines, "", f"The worst time: {error:+.1%} ({where})."]
