"""`foretrain new`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from reports.verbs.options import Input, output_file, quiet_option, say

if TYPE_CHECKING:
    from simulator.studies.starting_job import StartingJob


@click.command(epilog="Example: foretrain new --model qwen3-235b-a22b --hardware h200 --out job.toml")
@click.option("--model", type=Input("model"), default="llama-3-8b", show_default=True, help="Model, by name or path.")
@click.option("--hardware", type=Input("hardware"), default="h100", show_default=True, help="Hardware profile.")
@click.option("--gpus", type=click.IntRange(min=1), metavar="N", help="GPUs. [default: the fewest on which it fits]")
@click.option("--stack", type=Input("stack"), help="Software stack. [default: by model, hardware and GPUs]")
@click.option("--out", metavar="FILE", help="Write the file, which must not exist yet. [default: print it]")
@quiet_option
def new(model: str, hardware: str, gpus: int | None, stack: str | None, out: str | None, quiet: bool) -> None:
    """Write a complete job file to start from.

    The layout is the fastest of some usual ones that are valid and fit into memory. Every value has a comment; change
    them, and ask foretrain search for better ones.
    """
    file = output_file(out, "--out", (".toml",)) if out is not None else None
    from simulator.errors import InputError
    from simulator.studies.starting_job import starting_job

    if file is not None and file.exists():
        raise InputError(f"--out: {out}: is there already; give another name")
    text = job_text(starting_job(model, hardware, gpus, stack))
    if file is None:
        click.echo(text, nl=False)
        return
    from reports.export.files import replacing

    with replacing(file) as whole:
        whole.write(text.encode("utf-8"))
    say(f"wrote {file}", quiet=quiet)


def job_text(start: StartingJob) -> str:
    """The job as TOML, each value with a comment."""
    job, layout, batch = start.job, start.job.layout, start.job.batch
    return f"""# {job.model} on {job.gpus} GPUs: forecast {start.step:.3g} s a step, {start.memory / 1e9:.1f} GB a GPU,
# the fastest of {start.fitting} layouts that fit.
# Forecast it with: foretrain simulate FILE. Try other layouts with: foretrain search FILE.
model = "{job.model}"  # a shipped name (foretrain show model), or the path of a config.json
hardware = "{job.hardware}"  # a shipped name (foretrain show hardware), or the path of a profile
gpus = {job.gpus}
stack = "{job.stack}"  # {start.why_stack}

[layout]
tp = {layout.tp}  # tensor parallelism
pp = {layout.pp}  # pipeline stages
ep = {layout.ep}  # ranks that experts are spread over
cp = {layout.cp}  # ranks that a sequence is spread over
zero = {layout.zero}  # 0: all is kept whole; 1: optimizer sharded; 2: gradients, too; 3: parameters, too
replicas = {layout.replicas}  # groups of ranks that each hold all that is sharded (HSDP)
schedule = "{layout.schedule}"  # foretrain show schedule lists them
recompute = "{layout.recompute}"  # none, selective, full, deepseek, or a list of modules

[batch]
sequence_length = {batch.sequence_length}  # [tokens]
microbatch_size = {batch.microbatch_size}  # [sequences]
global_batch_size = {batch.global_batch_size}  # [sequences]; {job.tokens_per_step / 1e6:.1f} million tokens a step

[precision]
recipe = "{job.precision.recipe}"  # bf16; fp8_tensor, fp8_row, fp8_block, mxfp8, nvfp4; fp8: DeepSeek's own program
bf16 = ["head"]  # GEMMs that stay in BF16 under the others: head, attention, dense, shared_experts, experts

[memory]
headroom = 0.0  # left free [share of what CUDA reports]

[run]
tokens = {job.run.tokens:.0e}  # to train on
"""
