"""`foretrain numerics`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from reports.verbs.options import (
    Input,
    json_option,
    output_file,
    output_folder,
    print_json,
    print_report,
    quiet_option,
    say,
)

if TYPE_CHECKING:
    from workloads.reference.claims import Claim

DISAGREES = 3
METHODS = ("none", "bias", "auxiliary-loss")


@click.command(epilog="Example: foretrain numerics --quick --out page")
@click.option("--quick", is_flag=True, help="Fewer steps and samples: half a minute instead of two.")
@click.option("--out", metavar="DIR", help="Write the page and its figures there: claims.md, figures/*.png.")
@json_option
@click.option("--loads-out", metavar="FILE", help="Instead, write a job whose experts are loaded as a gate loads them.")
@click.option(
    "--job",
    type=Input("job"),
    default="deepseek-v3-pretrain",
    metavar="JOB",
    show_default=True,
    help="For --loads-out: the job whose gate it is.",
)
@click.option(
    "--balancing",
    type=click.Choice(METHODS),
    default="bias",
    show_default=True,
    help="For --loads-out: how the gate is balanced.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=1),
    default=400,
    show_default=True,
    help="For --loads-out: steps of balancing; the last quarter counts.",
)
@quiet_option
def numerics(
    quick: bool,
    out: str | None,
    as_json: bool,
    loads_out: str | None,
    job: str,
    balancing: str,
    steps: int,
    quiet: bool,
) -> int:
    """Check the claims of DeepSeek-V3's report that numbers can check.

    A small DeepSeek-V3 in NumPy, run on the spot: FP8 GEMMs and training, routing and balancing, multi-token
    prediction, activations held by pipeline schedules. Exit code 3 if a claim disagrees.
    """
    if "numpy" not in sys.modules:
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the order of sums, and with it the last digits
    if loads_out is not None:
        return _write_loads(output_file(loads_out, "--loads-out"), job, balancing, steps, quiet)
    claims = _run(out, quick, quiet)
    if as_json:
        from reports.terminal.numerics_tables import as_dict

        print_json(as_dict(claims, quick=quick))
    else:
        from reports.terminal.numerics_tables import report

        print_report(*report(claims))
    return DISAGREES if any(claim.agrees is False for claim in claims) else 0


def _run(out: str | None, quick: bool, quiet: bool) -> list[Claim]:
    """The claims, with page and figures where they are wanted."""
    from workloads.reference.claims import run_claims

    def report(what: str) -> None:
        say(f"running: {what}", quiet=quiet)

    target = output_folder(out, "--out") if out is not None else None
    with TemporaryDirectory(prefix="foretrain-") as made:
        claims = run_claims(Path(made), quick=quick, report=report)
        if target is not None:
            _copy(Path(made), target)
            say(f"wrote {target / 'claims.md'} and its figures", quiet=quiet)
    return claims


def _copy(made: Path, target: Path) -> None:
    """Every file below `made` to its place below `target`, each whole or not at all; the page last."""
    from reports.export.files import replacing

    for file in sorted(made.rglob("*.*"), key=lambda path: path.suffix == ".md"):
        place = target / file.relative_to(made)
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as out:
            out.write(file.read_bytes())


def _write_loads(file: Path, job: str, balancing: str, steps: int, quiet: bool) -> int:
    """A job file with the loads that the job's gate ends up with."""
    from typing import cast

    from reports.export.files import replacing
    from reports.terminal.numerics_tables import gate_of
    from simulator.errors import InputError
    from simulator.inputs import load_scenario
    from workloads.reference.claims.loads import Method, as_toml, loads_of_ranks

    scenario = load_scenario(job)
    if not scenario.model.n_routed_experts:
        raise InputError(f"--job: {job}: {scenario.model.name} has no experts to load")
    ranks = scenario.job.layout.ep
    found = loads_of_ranks(gate_of(scenario.model), ranks, cast(Method, balancing), steps=steps)
    base = str(Path(job).resolve()) if Path(job).is_file() else job
    with replacing(file) as stream:
        stream.write(as_toml(found, model=scenario.model.name, extends=base).encode())
    say(f"wrote {file}: the busiest of {ranks} ranks gets {found.max_over_mean:.2f} times the mean", quiet=quiet)
    return 0
