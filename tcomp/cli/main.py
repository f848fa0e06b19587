"""The `tcomp` command: one module per sub-command, loaded only when that command runs.

Errors that a user can act on (UserError, TcError) end here as one message on standard error and exit code 2.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from tcomp import __version__
from tcomp.cli.voice import one_speaks
from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError
from tcomp.errors import UserError

HELP = """Train GPT-2 and Llama class models from one `.tc` text: index equations, schedules, one planned step.

Start with `tcomp train`: it trains a small GPT-2 on this machine's own text in about a minute.
Then `tcomp show gpt2 linear --schedule`, `tcomp plan gpt2 --config 124M -B 4 -T 1024`,
`tcomp grad ops/layernorm.tc layernorm` show what it is made of."""

COMMANDS = {
    "train": "train", "generate": "generate", "eval": "evaluate", "import": "import_weights",
    "export": "export_weights", "build": "build", "plan": "plan", "show": "show", "grad": "grad", "check": "check",
    "tune": "tune", "fmt": "fmt", "doctor": "doctor", "bench": "bench", "roofline": "roofline", "data": "data",
    "vgpu": "vgpu",
}  # fmt: skip
"""Command -> its module of tcomp.cli, which has a function of the module's name, or an `app` of sub-commands."""

_FORMAT = warnings.formatwarning


@cache
def command_line(*commands: str) -> Callable[[], Any]:
    """The command line with these commands."""
    app = typer.Typer(
        name="tcomp",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=HELP,
    )
    app.callback()(options)  # besides, it keeps one command alone from becoming the whole command line
    for command in commands:
        module = import_module(f"tcomp.cli.{COMMANDS[command]}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=command)
        else:
            app.command(command)(getattr(module, COMMANDS[command]))
    return typer.main.get_command(app)


def print_version(wanted: bool) -> None:
    if wanted:
        print(f"tcomp {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What stands before a command."""


def main() -> None:
    """Run the command line; ends the process."""
    sys.argv[1:] = spread_data(sys.argv[1:])
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error: a path may hold any bytes
    with one_speaks():
        run()


def run() -> None:
    """Run the command line, all errors that a user can act on as messages; ends the process."""
    warnings.formatwarning = _as_message
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop while Python ends
    try:
        try:
            first = sys.argv[1:2]
            command_line(*(first if first and first[0] in COMMANDS else COMMANDS))()
        finally:
            sys.stdout.flush()
    except TcError as e:
        fail(e.render())
    except UserError as e:
        fail(_placed(e))
    except OSError as e:
        reason = e.strerror or str(e) or type(e).__name__
        fail(f"error: {reason if e.filename is None else f'{e.filename}: {reason}'}\n  help: {_advice(e)}")
    except MemoryError:
        fail("error: out of memory\n  help: use smaller sizes, or free some memory")
    except RuntimeError as e:
        if str(e) != "can't start new thread":  # as Python says it, without a class of its own
            raise
        fail(
            f"error: {e}\n  help: use fewer --threads, or raise the limit (ulimit -u, or the container's of processes)"
        )
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _placed(e: UserError) -> str:
    """The message; one that begins with a place in a file (`own.tc:6:1: ...`) as the language's own, with that line."""
    found = re.fullmatch(r"([^\n:]+):(\d+):(\d+): (.+)", e.message, re.DOTALL)
    if found is None:
        return f"error: {e}"
    file, line, column, message = found[1], int(found[2]), int(found[3]), found[4]
    text = ""
    with suppress(OSError, UnicodeDecodeError):
        text = Path(file).read_text(encoding="utf-8")
    return TcError(message, Span(file, line, column, line + 1, 1), e.hint, text=text).render()


def _as_message(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning that is meant for the user (a cache that cannot be kept), without the place in the code."""
    if category.__module__.startswith("tcomp."):
        return f"warning: {message}\n"
    return _FORMAT(message, category, filename, lineno, line)


def _advice(e: OSError) -> str:
    return {
        errno.ENOSPC: "free some disk space",
        errno.EDQUOT: "free some of your disk quota",
        errno.ENOMEM: "use smaller sizes, or free some memory",
        errno.EMFILE: "raise the limit of open files (ulimit -n)",
    }.get(e.errno or 0, "look at the path, its permissions, and whether there is room")


def spread_data(arguments: list[str]) -> list[str]:
    """`train --data A B C` as `train --data A --data B --data C`, so that `--data *.txt` works; the same of `eval`."""
    if arguments[:1] not in (["train"], ["eval"]):
        return arguments
    spread: list[str] = []
    paths = -1  # how many paths the --data before this argument has, or -1 when there is none
    for argument in arguments:
        if argument.startswith("-") and argument != "-":
            paths = 0 if argument == "--data" else -1
        elif paths >= 0:
            paths += 1
            if paths > 1:
                spread.append("--data")
        spread.append(argument)
    return spread


def fail(text: str) -> None:
    """The message, and exit code 2. Output that has nowhere to go is dropped."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(text, file=sys.stderr)
    sys.exit(2)
