"""The command line, `ionto-rt`. A command's module is loaded when it is asked for, and what it needs when it runs.

Exit codes: 0 done, 1 ended short of its goal, 2 refused with no current having flowed. An error is one line on stderr.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from ionto_rt.errors import IontoError, one_line, system_words

PROGRAM = "ionto-rt"
DONE, SHORT, REFUSED = 0, 1, 2

COMMANDS = {
    "run": ("run", "Run a treatment, with live view, record and receipt."),
    "check": ("run", "Validate a treatment and print its plan; no current."),
    "devices": ("devices", "List what can be connected to."),
    "doctor": ("doctor", "Check whether this host is fit for real time, and say what to change."),
    "calibrate": ("calibrate", "Measure a device on a load that is known."),
    "virtual-device": ("devices", "Serve a DAQ with skin attached on a pseudo-terminal."),
    "sessions": ("records", "List the sessions of a folder."),
    "report": ("records", "Write a session's report: one HTML page and a picture."),
    "replay": ("records", "Run a session's inputs again and compare every bit."),
    "blackbox": ("records", "What went over the port before a trip, and after it."),
    "recover": ("records", "After a crash: restore the record and settle the dose."),
    "verify": ("records", "Check a session's record against itself."),
    "latency": ("latency", "Measure wake-up jitter and round trip on this host."),
    "sounds": ("sounds", "Write the alarm signals as WAV files and describe them."),
    "campaign": ("campaign", "Run sessions under seeded faults and check every invariant."),
    "certify": ("certify", "State where the regulation is stable, try it and prove it."),
}
"""Name: module in this package that holds the command, and the line that lists it."""


class LazyGroup(click.Group):
    """Lists its commands without loading them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"{__name__}.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_") + "_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _print_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        import ionto_rt

        click.echo(f"{PROGRAM} {ionto_rt.__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100, "color": None}
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print it.")
def group() -> None:
    """Real-time host for iontophoresis: runs a treatment on a device, or on a virtual one, and keeps its record.

    Not a medical device. Exit codes: 0 done, 1 ended short of its goal, 2 refused with no current having flowed.
    """


def complain(text: str) -> None:
    """One line on stderr; silent if nobody can hear it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{PROGRAM}: {one_line(' '.join(text.split()))}", file=sys.stderr, flush=True)


_unsaid: list[str] = []
"""Texts that stdout has refused in this call: one line has said so, and the exit code must."""


def say(text: str, kept: str = "") -> None:
    """A text on stdout, at once; silent if its reader has gone, for what has been done is done.

    If it cannot be written for another cause, one line says so, and `kept` where it can be read.
    """
    try:
        click.echo(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _close_pipe()
    except (OSError, ValueError) as error:
        _close_pipe()
        words = system_words(error) if isinstance(error, OSError) else str(error)
        _unsaid.append(text)
        complain(f"standard output could not be written ({words}); {kept or 'what was done stands'}")


def _close_pipe() -> None:
    """The reader of our output is gone: let the interpreter's last flush go nowhere instead of failing."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def call(arguments: Sequence[str]) -> int:
    """Run a command line; the exit code."""
    _unsaid.clear()
    try:
        code = group.main(list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        sys.stdout.flush()
        ended = code if isinstance(code, int) else DONE
        return SHORT if ended == DONE and _unsaid else ended
    except click.UsageError as error:
        where = f"; see `{error.ctx.command_path} --help`" if error.ctx is not None else ""
        complain(f"{error.format_message().rstrip('.')}{where}")
    except click.ClickException as error:
        complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _interrupted(arguments)
    except IontoError as error:
        complain(str(error))
        return error.exit_code
    except BrokenPipeError:
        _close_pipe()
        return SHORT
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        complain(f"{where}{error.strerror or error}; check the path and its permissions")
    except RuntimeError as error:
        # A signal in the middle of an import comes out wrapped.
        if not isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise
        return _interrupted(arguments)
    return REFUSED


def _interrupted(arguments: Sequence[str]) -> int:
    """Interrupted outside a session: `run` has moved no current, of the others nobody knows how far they came."""
    if arguments and arguments[0] == "run":
        complain("interrupted; no current has flowed")
        return REFUSED
    complain("interrupted")
    return SHORT


def main() -> NoReturn:
    """Entry point of the command."""
    sys.exit(call(sys.argv[1:]))
