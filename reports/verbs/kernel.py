"""`foretrain kernel OP`: what one operation costs; `foretrain kernel table IN.csv`: many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from reports.verbs.options import Complete, Input, json_option, print_json, print_report, progress, say, verbosity

if TYPE_CHECKING:
    from simulator.spec.hardware import Cluster

_HARDWARE = click.option(
    "--hardware", type=Input("hardware"), default="h800", show_default=True, help="A hardware profile, or its path."
)
_SET = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PATH=VALUE",
    help="Change a value of the hardware, as in hardware.gpu.sms=108. Repeatable.",
)
_LEAST_ONE = click.IntRange(min=1)


def _integer(name: str, text: str, *, required: bool = False, least: int = 1) -> Callable[[Any], Any]:
    return click.option(f"--{name}", type=click.IntRange(min=least), required=required, help=text)


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Bytes: 58.7e6, 58.7MB or 512MiB."""
    from simulator.studies.kernel.question import size

    if value is None:
        return None
    try:
        return size(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no size from 0; write 58.7e6, 58.7MB or 512MiB") from None


def _bytes(text: str, *, required: bool = True) -> Callable[[Any], Any]:
    return click.option("--bytes", callback=_size, metavar="SIZE", required=required, help=text)


_CLS = click.option("--cls", help="Kernel class of the profile, instead of the usual one.")
_IMPL = click.option(
    "--impl",
    help="Whose kernel: library (cublas, cudnn, deepgemm), training (DeepSeek's; fa3) or fa2."
    " [default of a GEMM: library on all SMs, training on fewer]",
)
_SMS = _integer("sms", "SMs granted. [default: all]")
_CONCURRENT = click.option(
    "--concurrent",
    "--beside",
    "concurrent",
    is_flag=True,
    default=None,
    help="Overlapped with other work: compute with an all-to-all. (--beside: its former name.)",
)
_PRECISION = click.option(
    "--precision",
    type=click.Choice(["fp8", "bf16", "fp8_tensor", "fp8_row"]),
    help="fp8: block-scaled, as DeepSeek's. [default: bf16]",
)


def _asks(op: str, text: str, *options: Callable[[Any], Any]) -> click.Command:
    """A subcommand that asks about one operation."""

    def run(hardware: str, overrides: tuple[str, ...], as_json: bool, **said: Any) -> None:
        _ask(op, hardware, overrides, as_json, said)

    command: Any = run
    for option in reversed((*options, _HARDWARE, _SET, json_option)):
        command = option(command)
    made: click.Command = click.command(name=op.replace("_", "-"), cls=Complete, help=text)(command)
    return made


def _ask(op: str, hardware: str, overrides: tuple[str, ...], as_json: bool, said: dict[str, Any]) -> None:
    from reports.terminal.kernel_tables import report
    from simulator.errors import InputError
    from simulator.inputs import load_hardware
    from simulator.studies.kernel import BadColumn, Question, answer
    from simulator.studies.kernel.question import PRECISIONS

    cluster = load_hardware(hardware, overrides)
    given = {name: value for name, value in said.items() if value is not None}
    if "precision" in given:
        given["precision"] = PRECISIONS[given["precision"]]
    if "form" in given:
        given["form"] = given["form"].replace("-", "_")
    try:
        one = answer(Question(op=op, hardware=hardware, **given), cluster)
    except BadColumn as error:
        raise InputError(f"--{error.column.replace('_', '-')}{str(error).removeprefix(error.column)}") from None
    if as_json:
        print_json(one.as_dict())
    else:
        print_report(*report(one, cluster))


@click.group(
    epilog="Example: foretrain kernel gemm --hardware h800 --precision fp8 --m 4096 --n 24576 --k 1536 --sms 112"
)
def kernel() -> None:
    """Ask what one operation costs: time, limit, formula with its numbers, source.

    `kernel table` prices a whole CSV of operations and compares it with what was measured.
    """


def _gemm_options(grouped: bool) -> tuple[Callable[[Any], Any], ...]:
    rows = "Rows (tokens), over all groups." if grouped else "Rows (tokens)."
    forms = ["grouped", "masked", "wgrad"] if grouped else ["dense", "wgrad", "masked"]
    return (
        _integer("m", rows, required=True),
        _integer("n", "Columns of the output.", required=True),
        _integer("k", "Length of the sum.", required=True),
        _PRECISION,
        click.option("--groups", type=_LEAST_ONE, required=grouped, help="Groups, one weight each (local experts)."),
        click.option("--rows", help="Tokens per expert, '120 88 ...'. [default: equal]"),
        click.option(
            "--form",
            type=click.Choice(forms),
            help="wgrad: added to FP32 gradients. masked: m is tokens per expert (with --rows: expected).",
        ),
        _SMS,
        _CONCURRENT,
        _CLS,
        _IMPL,
    )


_COLLECTIVE = (
    _bytes("The whole buffer, all shards together: 512MiB, 1e9."),
    _integer("ranks", "Ranks that take part.", required=True),
    _integer("nodes", "Nodes they stand on. [default: as few as hold them]"),
)
_ALL_TO_ALL = (
    _integer("tokens", "Tokens of each rank."),
    _integer("hidden", "Values of a token. [default: 7168]"),
    _integer("top-k", "Experts of a token. [default: 8]"),
    _integer("node-limit", "Nodes a token may reach (0: any).", least=0),
    _integer("ep", "Ranks the experts are spread over."),
    _integer("experts", "Routed experts. [default: 256]"),
    _integer("groups", "Groups of the gate. [default: the nodes]"),
    click.option("--direction", type=click.Choice(["dispatch", "combine"]), help="[default: dispatch]"),
    _PRECISION,
    _integer("sms", "SMs the all-to-all holds (0: none, a co-processor). [default: 24]", least=0),
    click.option(
        "--low-latency/--throughput",
        default=None,
        help="Kernels for decoding. [default: up to 128 tokens, if neither SMs nor a node limit are named]",
    ),
    click.option("--dispatcher", help="Kernels by name in the profile, or nccl. [default: deepep]"),
    _bytes("Without --tokens: a plain all-to-all of this buffer.", required=False),
    _integer("ranks", "Ranks of a plain all-to-all."),
    _integer("nodes", "Nodes they stand on."),
    _CONCURRENT,
)

for _command in (
    _asks("gemm", "A GEMM of (m x k) by (k x n).", *_gemm_options(grouped=False)),
    _asks("grouped_gemm", "GEMMs of experts in one kernel; m is the total of tokens.", *_gemm_options(grouped=True)),
    _asks(
        "attention",
        "An attention core, forward or backward.",
        _integer("seq", "Tokens of a sequence.", required=True),
        _integer("heads", "Query heads.", required=True),
        _integer("kv-heads", "Key/value heads. [default: as many]"),
        _integer("d-qk", "Width of a query head. [default: 128]"),
        _integer("d-v", "Width of a value head. [default: as the query's]"),
        _integer("batch", "Sequences. [default: 1]"),
        _integer("seq-kv", "Keys of a sequence. [default: seq]"),
        click.option("--causal/--full", default=True, show_default=True, help="Masked to earlier tokens, or not."),
        click.option("--backward", is_flag=True, help="The backward kernel."),
        click.option("--precision", type=click.Choice(["bf16", "fp8"]), help="[default: bf16]"),
        _SMS,
        _CONCURRENT,
        _CLS,
        _IMPL,
    ),
    _asks(
        "decode_attention",
        "Attention of the newest tokens over a cache (flash decoding), grouped heads or MLA.",
        _integer("heads", "Query heads.", required=True),
        _integer("kv-len", "Cached tokens of a sequence, the new ones too.", required=True),
        _integer("batch", "Sequences. [default: 1]"),
        _integer("kv-heads", "Key/value heads; 1 with --d-v below --d-qk: MLA, absorbed. [default: as many]"),
        _integer("d-qk", "Width of a query head. [default: 128]"),
        _integer("d-v", "Width of a value head. [default: as the query's]"),
        _integer("q-len", "New tokens of a sequence. [default: 1]"),
        click.option("--kv-dtype", type=click.Choice(["bf16", "fp8"]), help="Of the cache. [default: bf16]"),
        _SMS,
        _CONCURRENT,
        _CLS,
        click.option(
            "--impl",
            help="Whose kernel: fa2 (PyTorch's), fa3 (SGLang's), fa3_vllm, trtllm, flashinfer, flashmla (MLA)."
            " [default: as measured on the GPU]",
        ),
    ),
    _asks(
        "stream",
        "A memory-bound kernel.",
        _bytes("Read and written together, half and half."),
        click.option("--cls", help="Kernel class: norm.fwd, swiglu, quant.token ... [default: elem]"),
        _SMS,
        _CONCURRENT,
    ),
    _asks("all_to_all", "Dispatch or combine of experts, or with --bytes a plain all-to-all.", *_ALL_TO_ALL),
    _asks(
        "p2p",
        "A message to one other rank.",
        _bytes("The message: 58.7MB, 1e6."),
        _integer("nodes", "1: within a node, over NVLink; 2: over the NIC. [default: 1]"),
        click.option(
            "--both-ways", is_flag=True, default=None, help="The rank receives as much at the same time, as in a ring."
        ),
    ),
    _asks(
        "all_reduce",
        "Sum over ranks, the result on all of them.",
        *_COLLECTIVE,
        click.option(
            "--impl", help="Whose kernel: nccl, or of a serving engine: vllm, sglang, trtllm. [default: nccl]"
        ),
    ),
    _asks("all_gather", "Shards of all ranks, gathered on each.", *_COLLECTIVE),
    _asks("reduce_scatter", "Sum over ranks, a shard of it on each.", *_COLLECTIVE),
):
    kernel.add_command(_command)


@kernel.command(
    "table",
    epilog="Example: foretrain kernel table mine.csv --json. Columns: op, hardware, precision, m, n, k, groups, rows,"
    " form, sms, seq, heads, kv_heads, batch, d_qk, d_v, q_len, kv_len, kv_dtype, causal, backward, bytes, ranks,"
    " nodes, both_ways, tokens, hidden, top_k, node_limit, ep, experts, direction, cls, impl; time_us where measured."
    " Any may be missing or empty but op.",
)
@click.argument("file", metavar="IN.csv")
@click.option("--hardware", type=Input("hardware"), default="h800", show_default=True, help="Of rows that name none.")
@_SET
@json_option
@verbosity
def table_command(
    file: str, hardware: str, overrides: tuple[str, ...], as_json: bool, quiet: bool, verbose: bool
) -> None:
    """Price every row of a CSV; write it with predicted_us and error added.

    error is (predicted - measured) / measured. The mean absolute error of each operation goes to stderr, or into the
    JSON object. IN.csv may be - for stdin.
    """
    from functools import cache

    from reports.terminal.kernel_tables import mape_lines
    from simulator.inputs import load_hardware
    from simulator.studies.kernel import answer_table, misspelt, read_table

    @cache
    def clusters(name: str) -> Cluster:
        return load_hardware(name, overrides)

    clusters(hardware)  # a wrong name or --set is said once, not for every row
    label = "stdin" if file == "-" else file
    with progress("pricing", quiet=quiet) as done:
        raw = read_table(_text(file), label)
        priced = answer_table(raw, label, clusters, hardware=hardware, progress=done)
    for line in misspelt(raw.columns):
        say(f"{label}: {line}", quiet=quiet)
    if as_json:
        print_json(priced.as_dict())
        return
    click.echo(priced.as_csv(), nl=False)
    for line in mape_lines(priced):
        say(line, quiet=quiet)


def _text(file: str) -> str:
    from pathlib import Path
    from sys import stdin

    from simulator.inputs.reading import decoded, read_text

    return decoded(stdin.buffer, "stdin", "table") if file == "-" else read_text(Path(file), file, "table")
