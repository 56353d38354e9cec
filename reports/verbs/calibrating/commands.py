"""`foretrain calibrate`: measure a GPU of one's own, fit a profile to it, and check the forecast against real steps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reports.verbs.options import Input, Ordered, output_file, output_folder, print_json, quiet_option, say

if TYPE_CHECKING:
    from hardware_profiles.calibration.own.measure_own import Progress

NO_TORCH = "calibrate: PyTorch is not installed here; measure where it is (pip install torch), on a machine with a GPU"
NO_GPU = "calibrate: PyTorch sees no GPU here (torch.cuda.is_available() is False)"
SECONDS = 4.0
"""How long each model of a check runs, its last half timed [s]."""
_QUICK = click.option("--quick", is_flag=True, help="A quarter of it: less exact, for a first look.")


@click.group(
    cls=Ordered,
    epilog="Example: foretrain calibrate measure --out mine.csv && foretrain calibrate fit mine.csv --hardware my-gpu"
    " && foretrain calibrate check --hardware my-gpu.toml",
)
def calibrate() -> None:
    """Make a hardware profile of your own GPU from measurements, and check it.

    measure runs kernels (needs PyTorch and the GPU, minutes), fit makes a profile of their times (anywhere), check runs
    a few whole training steps and puts the forecast next to them.
    """


def gpu() -> str:
    """The name of this machine's GPU. Raises InputError where PyTorch or the GPU is missing."""
    from simulator.errors import InputError

    try:
        import torch
    except ImportError:
        raise InputError(NO_TORCH) from None
    if not torch.cuda.is_available():
        raise InputError(NO_GPU)
    return str(torch.cuda.get_device_name())


@calibrate.command(epilog="Example: foretrain calibrate measure --out mine.csv --quick")
@click.option("--out", required=True, metavar="FILE.csv", help="The table to write.")
@_QUICK
@quiet_option
def measure(out: str, quick: bool, quiet: bool) -> None:
    """Measure GEMMs, attention and memory-bound kernels on this GPU, rested and under sustained load.

    The kernels are those behind our own tables, each alone after a rest. Under sustained load, GEMMs run alone and
    between other kernels or pauses, for power and clock at the power limit. Nothing else should run on the GPU. Rows
    are written as they are known.
    """
    file = output_file(out, "--out", (".csv",))
    name = gpu()
    from hardware_profiles.calibration.measuring.power.sensors import unreadable
    from hardware_profiles.calibration.own import measure_own

    hidden = unreadable()
    cases = measure_own.plan(quick=quick, power=not hidden)
    seconds = measure_own.estimate(cases)
    many = ", ".join(f"{len(mine)} of {section} ({seconds[section]:.0f} s)" for section, mine in cases.items())
    say(f"{name}: kernels to measure: {many}; about {clock(sum(seconds.values()))}", quiet=quiet)
    if hidden:
        say(f"nothing is measured under sustained load: this GPU's power cannot be read ({hidden})", quiet=quiet)
    part = file.with_name(f"{file.stem}.part{file.suffix}")
    rows = measure_own.measure(cases, part, lambda at: say(line(at), quiet=quiet))
    part.replace(file)
    say(f"wrote {file}: {rows} rows; next: foretrain calibrate fit {file} --hardware my-gpu", quiet=quiet)


def line(at: Progress) -> str:
    """One line of progress."""
    return f"{at.section:10} {at.done:4} of {at.all:4}   {clock(at.used)} used, about {clock(at.left)} left"


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02} min"


@calibrate.command(epilog="Example: foretrain calibrate fit mine.csv --hardware my-gpu")
@click.argument("table", metavar="MINE.csv")
@click.option("--hardware", required=True, metavar="NAME", help="Name of the profile: NAME.toml is written.")
@click.option(
    "--like", type=Input("hardware"), help="The shipped GPU it resembles. [default: by the table's first line]"
)
@click.option("--out", default=".", metavar="DIRECTORY", show_default=True, help="Where to write.")
@quiet_option
def fit(table: str, hardware: str, like: str | None, out: str, quiet: bool) -> None:
    """Fit kernel parameters and the power model to a table of measurements and write a hardware profile.

    Writes NAME.toml (the profile, which extends the GPU it is like), NAME-kernels.toml (parameters of its kernels) and
    NAME.md (what was measured, how far off the forecast is on shapes kept out, what was carried over).
    """
    from hardware_profiles.calibration.own import own_gpu, own_power
    from reports.export.files import replacing
    from reports.views.calibrating.pages import kernels_text, page, profile_text
    from simulator.errors import InputError
    from simulator.inputs import list_names, load_hardware

    folder, source = output_folder(out, "--out"), Path(table)
    if not hardware.replace("-", "").replace("_", "").isalnum():
        raise InputError(f"--hardware: {hardware}: must be a name of letters, digits, - and _")
    if hardware in list_names("hardware"):
        raise InputError(
            f"--hardware: {hardware}: a profile of that name is shipped; give yours another, as my-{hardware}"
        )
    measured_on = own_gpu.named_gpu(source)
    origin = like or own_gpu.nearest(measured_on)
    if origin is None:
        raise InputError(f"{table}: the first line names no GPU that is shipped ({measured_on or 'none'}); give --like")
    nearest = load_hardware(origin)
    found = own_gpu.fit(source, nearest, origin, measured_on or "a GPU")
    power = own_power.fit(source, nearest, origin, measured_on or "a GPU")
    folder.mkdir(exist_ok=True)
    texts = {
        f"{hardware}.toml": profile_text(hardware, origin, measured_on, source, power),
        f"{hardware}-kernels.toml": kernels_text(found.kernels, hardware, measured_on, source),
        f"{hardware}.md": page(found, hardware, origin, measured_on, source, power),
    }
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    click.echo(page(found, hardware, origin, measured_on, source, power, named=False), nl=False)
    say(f"wrote {', '.join(str(folder / name) for name in texts)}", quiet=quiet)


@calibrate.command(epilog="Example: foretrain calibrate check --hardware my-gpu.toml")
@click.option("--hardware", type=Input("hardware"), required=True, help="The profile to check, by name or path.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@_QUICK
@quiet_option
def check(hardware: str, as_json: bool, quick: bool, quiet: bool) -> None:
    """Run a few whole training steps on this GPU, and put the forecast next to them.

    Llama-shaped models in plain PyTorch, BF16, eager and compiled, each for some seconds: time of a step, power and
    clock (where they can be read), and what the power model says of them. Nothing is fitted to them.
    """
    name = gpu()
    from hardware_profiles.calibration.measuring.power.sensors import Sensors
    from reports.views.calibrating.pages import STEPS, forecast, step_table
    from workloads.facts import measure_step

    plan, rows = STEPS[::2] if quick else STEPS, []
    say(f"{name}: {len(plan)} models, a few steps of each, about {clock(20.0 * len(plan))}", quiet=quiet)
    for at, (model, mode, seq, mbs) in enumerate(plan, 1):
        with Sensors() as sensors:
            row: dict[str, Any] = measure_step.measure(model, mode, seq, mbs, 2, SECONDS)
        rows.append(row | sensors.readings(last=SECONDS / 2) | forecast(row, hardware))
        say(f"{at} of {len(plan)}: {rows[-1]['step_ms']:.1f} ms, forecast {rows[-1]['forecast_ms']:.1f}", quiet=quiet)
    if as_json:
        print_json({"gpu": name, "hardware": hardware, "steps": rows})
    else:
        click.echo(step_table(rows, name, hardware), nl=False)
