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
@click.option("--rank", type=int, metavar="N", help="The pipeline rank that was profiled. [default: their mean]")
@json_option
@verbosity
def compare(
    profile: str,
    job: str,
    overrides: tuple[str, ...],
    device: str | None,
    rank: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Show measured next to predicted: step, phases, and kernels by family.

    TRACE is a Chrome trace of the PyTorch profiler on an NVIDIA GPU, plain or gzip, of any size. Forward, backward,
    optimizer, steps and layers are found in it. Where it marks the phases of each layer by name, as in attn(F), mlp(W)
    or dispatch(B), the overlapped pair of the job is compared, op by op. JOB is the job that was profiled.
    """
    from pathlib import Path
    from time import perf_counter

    from simulator.inputs import load_scenario
    from simulator.profile import Comparison, compare_any, read_recording
    from simulator.routing.published_loads import with_equal_loads

    scenario = with_equal_loads(load_scenario(job, overrides))  # a profile has loads of its own
    refuse_serving(scenario, **{"trace-compare": True})
    began = perf_counter()
    with progress(f"reading {Path(profile).name}", quiet=quiet) as done:
        recording = read_recording(Path(profile), done, device)
    found = compare_any(recording, scenario, rank)
    if as_json:
        print_json(found.as_dict())
    elif isinstance(found, Comparison):
        from reports.terminal.profiling.pair_tables import report

        print_report(*report(found, verbose=verbose))
    else:
        from reports.terminal.profiling.step_profile_tables import report as step_report

        print_report(*step_report(found, verbose=verbose))
    say(f"read {len(recording.kernels):,} kernels in {perf_counter() - began:.1f} s", quiet=quiet)
