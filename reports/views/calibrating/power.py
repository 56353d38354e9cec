"""What `foretrain calibrate fit` says of power: what was measured, how far off the power model is, what was kept."""

from __future__ import annotations

from hardware_profiles.calibration.own.own_gpu import mean_error
from hardware_profiles.calibration.own.own_power import OwnPower

BELOW = 0.9
"""A GPU that is slowed at less of its limit may be held back by something else."""
NAMES = {"bf16": "BF16", "fp8_tensor": "FP8", "fp8_tensor_split": "FP8 with split sums"}


def power_lines(power: OwnPower | str | None, origin: str) -> list[str]:
    """What was measured under sustained load, how far off the power model is, what was carried over."""
    if power is None:
        return []
    if isinstance(power, str):
        return [f"Power: measured under sustained load, but not fitted ({power}): all of it is carried over.", ""]
    slow = ", ".join(f"{NAMES.get(name, name)} {one:.2f}" for name, one in power.slowdown.items())
    lines = [f"Power under sustained load: GEMMs alone last so many times as long as after rest: {slow}."]
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
    times, watts = (f"{mean_error(rows):.1%}" for rows in (power.after, power.watts_after))
    before = f"{mean_error(power.before):.1%}"
    drawn = f"{mean_error(power.watts_before):.1%} as {origin}, " if power.watts_before else ""
    worst = max(power.after, key=lambda one: abs(one.predicted / one.measured - 1.0))
    lines += [
        "",
        f"Times of GEMMs in {len(power.after)} mixes: {before} off as {origin}, {times} with values fitted to the other"
        f" mixes (worst {worst.predicted / worst.measured - 1.0:+.1%}, {worst.label}); their power: {drawn}{watts}.",
        "",
    ]
    if power.carried:
        values = ", ".join(f"{key} {getattr(power.power, key):g}" for key in power.carried)
        lines += [f"Not measured, carried over from {origin}: {values}.", ""]
    return lines
