"""`foretrain trace compare TRACE JOB`: a recorded profile against the simulation of the same job."""

from __future__ import annotations

import click

from reports.verbs.only_training import refuse_serving
from reports.verbs.options import (
    job_argument,
    json_option,
    print_json,
    print_report,
    progress,
    say,
    set_option,
    verbosity,
)


@click.group()
def trace() -> None:
    """Read profiles recorded by PyTorch."""


@trace.command(epilog="Example: foretrain trace compare train.json.gz deepseek-v3-pretrain")
@click.argument("profile", metavar="TRACE")
@job_argument
@set_option
@click.option("--device", metavar="N", help="The GPU to look at. [default: the one with the most kernels]")
@json_option
@verbosity
def compare(
    profile: str, job: str, overrides: tuple[str, ...], device: str | None, as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Show measured next to predicted: kernel classes, phases, and the overlapped pair.

    TRACE is a Chrome trace of the PyTorch profiler, plain or gzip, of any size. The phases of each layer must be
    marked in it by name, as in attn(F), mlp(W) or dispatch(B). JOB is the job that was profiled.
    """
    from pathlib import Path
    from time import perf_counter

    from simulator.inputs import load_scenario
    from simulator.profile import compare as hold_against
    from simulator.profile import read_recording

    scenario = load_scenario(job, overrides)
    refuse_serving(scenario, **{"trace-compare": True})
    began = perf_counter()
    with progress(f"reading {Path(profile).name}", quiet=quiet) as done:
        recording = read_recording(Path(profile), done, device)
    found = hold_against(recording, scenario)
    if as_json:
        print_json(found.as_dict())
    else:
        from reports.terminal.profile_tables import report

        print_report(*report(found, verbose=verbose))
    say(f"read {len(recording.kernels):,} kernels in {perf_counter() - began:.1f} s", quiet=quiet)
