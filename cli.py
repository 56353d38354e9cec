"""The command line: which verbs there are, and what becomes of errors. Each verb lives in `reports.verbs`.

A verb is loaded only when it runs, so that `--help` answers at once. To add one, write `reports/verbs/<verb>.py`
with a click command in it and add a line to `VERBS`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

import click

VERBS: Mapping[str, tuple[str, str]] = {
    "simulate": ("reports.verbs.simulate:simulate", "Simulate a step, of training or serving: how long, and why."),
    "serve": (
        "reports.verbs.serving.serve:serve",
        "Replay requests: latencies, throughput, queues, price.",
    ),
    "size": ("reports.verbs.serving.size:size", "Find the cheapest deployment for a rate of requests."),
    "compare": ("reports.verbs.compare:compare", "Simulate jobs, or varied values of one, side by side."),
    "report": ("reports.verbs.report:report", "Put saved results side by side."),
    "memory": ("reports.verbs.memory:memory", "Forecast the memory of every rank over a step."),
    "search": ("reports.verbs.search:search", "Try layouts, schedules or hardware, and rank what fits."),
    "plan": ("reports.verbs.plan:plan", "Forecast a whole run: phases, failures, price, energy."),
    "new": ("reports.verbs.new:new", "Write a complete job file to start from."),
    "check": ("reports.verbs.check:check", "Check whether a job's numbers fit together."),
    "show": ("reports.verbs.show:show", "Print a model, hardware, schedule, job, stack or op graph."),
    "explain": ("reports.verbs.explain:explain", "Explain every op, and what the step depends on."),
    "kernel": ("reports.verbs.kernel:kernel", "Ask what one operation costs, or price a table of them."),
    "calibrate": (
        "reports.verbs.calibrating.commands:calibrate",
        "Make a profile of your own GPU from measurements; check it.",
    ),
    "numerics": ("reports.verbs.numerics:numerics", "Check the claims of DeepSeek-V3's report by numbers."),
    "trace": ("reports.verbs.trace_compare:trace", "Hold a PyTorch profile against the simulation of its job."),
    "validate": ("reports.verbs.validate:validate", "Compute published figures; show predicted next to published."),
}
"""Verb -> (where its command is, its line in the help), in the order of the help."""

FAULT, USAGE, INTERRUPTED, BROKEN_PIPE = 1, 2, 130, 141
GARBAGE = 50_000
"""New objects between two searches for cycles. The values of a simulation hold none; every 700, that took a tenth of
its time."""
DEBUG = "debug"
"""What the context holds if tracebacks are wanted."""


class ReaderGone(Exception):
    """Whoever read stdout has left, as `| head` does."""


class Verbs(click.Group):
    """A group that loads a verb when it is asked for, and turns errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of the help."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb."""
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb, or name the nearest one."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise click.UsageError(f"there is no command {args[0]!r}: {_nearest(args[0])}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb; click's own way with interrupts and broken pipes is not ours."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None
        except BrokenPipeError:
            raise ReaderGone from None
        except Exception:
            if ctx.obj == DEBUG:
                _show_traceback()
            raise

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> NoReturn:
        """Run and exit: 0 fine, 1 a fault of foretrain, 2 usage or a bad file, 3 the answer is no, 130 interrupted."""
        extra["standalone_mode"] = False
        sys.exit(_guarded(lambda: super(Verbs, self).main(args, *rest, **extra)))


def _guarded(run: Any) -> int:
    """The exit code of `run`; an error that the user can mend becomes its lines on stderr."""
    try:
        code = run()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # click 8.2 and later
            click.echo(error.format_message(), err=True)
        else:
            _complain(_usage(error))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _complain("interrupted")
        return INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        _drop(sys.stdout)
        return BROKEN_PIPE
    except Exception as error:
        return _code_of(error)


def _code_of(error: Exception) -> int:
    """The exit code for an error, said in its lines; what nobody foresaw is a fault of ours, and one line, too."""
    from simulator.errors import ForetrainError

    if isinstance(error, ForetrainError):
        _complain(str(error))
        return error.exit_code
    if isinstance(error, OSError) and error.strerror:
        _complain(_of_system(error))
        if error.filename is None:
            _drop(sys.stdout)
        return USAGE
    if isinstance(error, MemoryError):
        _complain("there is not enough memory for this")
        return FAULT
    said = " ".join(str(error).split())[:_SAID]
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    _complain(f"{what}: this is a fault of foretrain, please report it (foretrain --debug ... shows where it happened)")
    return FAULT


_SAID = 120  # characters of an unforeseen error's message that are repeated


def _of_system(error: OSError) -> str:
    """What the system said of a file: a name too long, a disk that is full."""
    return f"{error.filename if error.filename is not None else 'output'}: {error.strerror}"


def _show_traceback() -> None:
    """The traceback of the error at hand, if stderr takes it."""
    from traceback import format_exc

    with suppress(OSError):
        click.echo(format_exc(), err=True, nl=False)


def _drop(stream: Any) -> None:
    """Let what is still to be written to stdout or stderr go nowhere, so that nothing complains at exit."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(text: str) -> None:
    """The lines of an error on stderr. Where it takes none (a full disk), the exit code has to do."""
    from simulator.errors import printable

    try:
        for line in text.split("\n"):
            click.echo(f"foretrain: {printable(line)}", err=True)
    except OSError:
        _drop(sys.stderr)


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    where = f" (see {context.command_path} --help)" if context is not None else ""
    missing = _missing(context) if isinstance(error, click.MissingParameter) and context is not None else []
    if len(missing) > 1:
        return f"Missing {', '.join(missing)}{where}"
    return f"{error.format_message().rstrip('.')}{where}"


def _missing(context: click.Context) -> list[str]:
    """Everything required that was not given; click reads what is given first, so that all of that is known by now."""
    every = [one for one in context.command.get_params(context) if one.required and one.name not in context.params]
    return [f"{one.param_type_name} {one.get_error_hint(context)}" for one in every]


def _nearest(verb: str) -> str:
    from simulator.errors import meant

    return meant(verb, VERBS, otherwise="the help lists them")


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        number = version("foretrain")
    except PackageNotFoundError:
        number = "(not installed)"
    click.echo(f"foretrain {number}")
    ctx.exit()


def _debugged(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.obj = DEBUG


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog="Start with: foretrain simulate deepseek-v3-pretrain",
)
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_debugged,
    help="Show the traceback of an error that nobody foresaw.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version and exit."
)
def foretrain() -> None:
    """Forecast what training and serving DeepSeek-V3-class models cost on GPU clusters.

    How long a step takes and where the time goes, whether it fits into memory, what a run or a million tokens cost. A
    JOB is the name of a shipped job (foretrain show job lists them) or the path of a TOML file. Any value of a job, its
    model, hardware or software stack can be changed with --set path=value.

    Exit codes: 0 fine; 1 a fault of foretrain; 2 wrong usage or a bad file; 3 the answer is no; 130 interrupted.
    """


def main() -> None:
    """Entry point of the console script."""
    if not _with_streams():
        _complain("stdout is closed: redirect it to /dev/null if nothing is to be printed")
        sys.exit(USAGE)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")  # a terminal without a glyph shows "?", not a traceback
    gc.set_threshold(GARBAGE)
    try:
        foretrain(prog_name="foretrain")
    finally:
        gc.freeze()  # Python looks through all that is left at exit, and finds no cycles: a twentieth of a simulation


def _with_streams() -> bool:
    """Whether there is a stdout. Closed descriptors lead nowhere now, lest a file that is opened becomes one."""
    closed = [number for number in (0, 1, 2) if not _is_open(number)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if 2 in closed:
        sys.stderr = os.fdopen(2, "w")
    return 1 not in closed


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
