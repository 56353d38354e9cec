"""`foretrain serve JOB`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Literal

import click

from reports.verbs.options import (
    Complete,
    job_argument,
    json_option,
    output_file,
    output_folder,
    print_json,
    print_report,
    progress,
    quiet_option,
    say,
    set_option,
    warn,
)
from simulator.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from reports.export.request_trace import RequestTrace
    from simulator.serving.deployment import Deployment
    from simulator.serving.serve import Served

TOO_MUCH = 3
WINDOW = "0:10"
"""Seconds of a replay in its trace where nothing else is said."""


@click.command(
    cls=Complete,
    epilog="Example: foretrain serve llama-3-8b-decode --set stack=vllm --requests poisson:4 --input-tokens 1024"
    " --output-tokens uniform:0.8-1.0x256",
)
@job_argument
@click.option(
    "--requests",
    required=True,
    metavar="LOAD",
    help="FILE (Mooncake's or Azure's format), poisson:RATE, gamma:RATE,CV or closed:USERS; rates in requests/s.",
)
@click.option(
    "--input-tokens", metavar="D", help="Lengths of prompts: N, uniform:0.8-1.0xN, gamma:1.0xN, or FILE:COLUMN."
)
@click.option("--output-tokens", metavar="D", help="Lengths of answers, likewise.")
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    help="Requests to replay. [default: all of a file, 10 for each user of a closed loop, else 1000]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="S", help="Seed of the load.")
@click.option(
    "--replicas",
    type=click.IntRange(min=1, max=4096),
    default=1,
    show_default=True,
    metavar="N",
    help="Copies of the job's layout.",
)
@click.option(
    "--router",
    type=click.Choice(["round-robin", "least-load", "prefix-affinity"]),
    default="round-robin",
    show_default=True,
    help="How requests are spread over engines.",
)
@click.option(
    "--prefill-replicas",
    type=click.IntRange(min=1, max=4096),
    metavar="N",
    help="Disaggregate: N further replicas compute prompts, and those of --replicas go on from their KV caches.",
)
@click.option(
    "--prefill-set",
    "prefill_overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a value of the replicas for prompts only, on top of --set. Repeatable.",
)
@click.option(
    "--kv-path",
    type=click.Choice(["nic", "nvlink"]),
    help="What KV caches cross from those replicas: nvlink joins the GPUs of a node. [default: nic]",
)
@click.option(
    "--lose-at",
    type=click.FloatRange(min=0.0),
    metavar="SECONDS",
    help="Lose the last engine at that time; what it held is computed anew by the others.",
)
@click.option(
    "--slow",
    type=click.FloatRange(min=1.0),
    metavar="FACTOR",
    help="The last engine has a slow GPU: its steps take FACTOR times as long.",
)
@click.option(
    "--hot-expert",
    type=click.FloatRange(min=1.0),
    metavar="TIMES",
    help="What if one expert of every layer had TIMES the mean expert's tokens: replay with and without it.",
)
@click.option("--slo", metavar="LIMITS", help="Limits of a request for goodput [s], as in ttft=2,tpot=0.05.")
@click.option("--records", metavar="FILE", help="Write a line of CSV for every answered request.")
@click.option("--html", metavar="FILE", help="Write a page to look at in a browser: one file, needs no network.")
@click.option("--figures", metavar="DIR", help="Draw figures into DIR, each as SVG and PNG.")
@click.option("--trace", metavar="FILE", help="Write engines' steps and requests for ui.perfetto.dev (.json.gz).")
@click.option("--window", metavar="START:END", help="Seconds of the replay in the trace, as in 20:30. [default: 0:10]")
@set_option
@json_option
@quiet_option
def serve(
    job: str,
    requests: str,
    input_tokens: str | None,
    output_tokens: str | None,
    count: int | None,
    seed: int,
    replicas: int,
    router: str,
    prefill_replicas: int | None,
    prefill_overrides: tuple[str, ...],
    kv_path: Literal["nic", "nvlink"] | None,
    lose_at: float | None,
    slow: float | None,
    hot_expert: float | None,
    slo: str | None,
    records: str | None,
    html: str | None,
    figures: str | None,
    trace: str | None,
    window: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Replay requests through simulated engines of JOB and report what users see.

    Every step takes what `simulate` forecasts of it. Exit code 3 if requests come faster than they can be answered.
    """
    _check_together(prefill_replicas, prefill_overrides, kv_path, overrides, window, trace)
    table = output_file(records, "--records") if records is not None else None
    page = output_file(html, "--html") if html is not None else None
    traced = output_file(trace, "--trace") if trace is not None else None
    folder = output_folder(figures, "--figures") if figures is not None else None
    seen = _trace_of(window) if trace is not None else None
    from simulator.serving.deployment import failing
    from simulator.serving.hot_expert import check_uneven, compared, with_hot_expert
    from simulator.serving.load.sources import LoadSpec
    from simulator.serving.serve import serve as run
    from simulator.serving.slo import parse_limits

    limits = parse_limits(slo) if slo is not None else {}

    def deployed(own: tuple[str, ...]) -> Deployment:
        apart = None if prefill_replicas is None else ((*own, *prefill_overrides), prefill_replicas, kv_path or "nic")
        return failing(_deployed(job, own, replicas, router, apart), lose_at, slow)

    deployment, plain = deployed(overrides), None
    if hot_expert is not None:
        check_uneven(deployment.scenario)
        plain, deployment = deployment, deployed(with_hot_expert(overrides, hot_expert))
    load = LoadSpec(requests=requests, input_tokens=input_tokens, output_tokens=output_tokens, count=count, seed=seed)
    began = perf_counter()
    from reports.export.request_records import recording

    with recording(table) as note, progress("replaying", quiet=quiet) as done:
        answered, watched = [note] if note is not None else [], None
        if seen is not None:
            answered, watched = [*answered, seen.finished], seen.stepped
        served = run(deployment, load, limits=limits, answered=answered, watched=watched, progress=done)
        hot = compared(run(plain, load, limits=limits, progress=done), served) if plain is not None else None
    took = perf_counter() - began
    if seen is not None and traced is not None:
        if seen.start > served.recorder.end:
            raise InputError(f"--window: {seen.start:g} s: the replay ends after {served.recorder.end:.3f} s")
        say(f"wrote {seen.write(traced):,} events to {traced}", quiet=quiet)
    _write_looks(served, page, folder, quiet)
    if as_json:
        from simulator.serving.summary import as_dict

        warn(served.warnings, quiet=quiet)
        print_json(as_dict(served) | ({"hot_expert": hot.as_dict()} if hot is not None else {}))
    else:
        from reports.terminal import replay_tables

        print_report(*replay_tables.report(served, hot))
    if table is not None:
        say(f"wrote {served.recorder.finished_count:,} requests to {table}", quiet=quiet)
    say(f"replayed {served.recorder.arrived:,} requests in {took:.1f} s", quiet=quiet)
    return TOO_MUCH if served.overload is not None else 0


def _deployed(
    job: str,
    overrides: tuple[str, ...],
    replicas: int,
    router: str,
    apart: tuple[tuple[str, ...], int, Literal["nic", "nvlink"]] | None,
) -> Deployment:
    """Replicas of a job; `apart`: overrides and replicas of engines for prompts only, and the path of KV caches."""
    from simulator.inputs import load_scenario
    from simulator.serving.deployment import deploy, disaggregated

    scenario = load_scenario(job, overrides, replayed=True)
    found = deploy(scenario, replicas=replicas, router=router)  # type: ignore[arg-type]
    if apart is None:
        return found
    own = load_scenario(job, apart[0], replayed=True)
    return disaggregated(found, deploy(own, replicas=apart[1], router=router), apart[2])  # type: ignore[arg-type]


def _check_together(
    prefill_replicas: int | None,
    prefill_overrides: tuple[str, ...],
    kv_path: str | None,
    overrides: tuple[str, ...],
    window: str | None,
    trace: str | None,
) -> None:
    """Options that change nothing without another one."""
    if prefill_replicas is None:
        key = "stack.scheduler.kv_handover"
        named = {"--prefill-set": bool(prefill_overrides), "--kv-path": kv_path is not None}
        named[key] = any(one.startswith(key) for one in overrides)
        for name, given in named.items():
            if given:
                raise click.UsageError(f"{name} belongs to --prefill-replicas", click.get_current_context())
    if window is not None and trace is None:
        raise click.UsageError("--window belongs to --trace", click.get_current_context())


def _trace_of(window: str | None) -> RequestTrace:
    """What gathers the events of a window, checked before anything is computed."""
    from reports.export.request_trace import RequestTrace
    from reports.export.trace import parse_window

    return RequestTrace(*parse_window(window or WINDOW))


def _write_looks(served: Served, page: Path | None, folder: Path | None, quiet: bool) -> None:
    """The page and the figures that were asked for."""
    if page is not None:
        from reports.html import write_replay

        write_replay(served, page)
        say(f"wrote {page}", quiet=quiet)
    if folder is not None:
        from reports.figures.replay_figure import write_replay_figures

        say(f"drew {len(write_replay_figures(served, folder))} files into {folder}", quiet=quiet)
