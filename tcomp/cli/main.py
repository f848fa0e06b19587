"""The `tcomp` command: one module per sub-command, loaded only when that command runs.

Errors that a user can act on (UserError, TcError) end here as one message on standard error and exit code 2.
"""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
from collections.abc import Callable
from functools import cache

import typer

from tcomp.cli import (
    bench,
    build,
    check,
    data,
    doctor,
    evaluate,
    export_weights,
    fmt,
    generate,
    grad,
    import_weights,
    plan,
    roofline,
    show,
    train,
    tune,
    vgpu,
)
from tcomp.dsl.errors import TcError
from tcomp.errors import UserError

app = typer.Typer(
    name="tcomp",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Train GPT-2 class models from one `.tc` text: index equations, schedules, one planned step.

Start with `tcomp train`: it trains a small GPT-2 on this machine's own text in about a minute.
Then `tcomp show gpt2 linear --schedule`, `tcomp plan gpt2 --config 124M -B 4 -T 1024`,
`tcomp grad ops/layernorm.tc layernorm` show what it is made of.""",
)

for name, command in (
    ("train", train.train),
    ("generate", generate.generate),
    ("eval", evaluate.evaluate),
    ("import", import_weights.import_weights),
    ("export", export_weights.export_weights),
    ("build", build.build),
    ("plan", plan.plan),
    ("show", show.show),
    ("grad", grad.grad),
    ("check", check.check),
    ("tune", tune.tune),
    ("fmt", fmt.fmt),
    ("doctor", doctor.doctor),
    ("bench", bench.bench),
    ("roofline", roofline.roofline),
):
    app.command(name)(command)
app.add_typer(data.app, name="data")
app.add_typer(vgpu.app, name="vgpu")


@cache
def _command() -> Callable[[], object]:
    """What `app` describes, made once: Typer reads every command's signature for it."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; ends the process."""
    sys.argv[1:] = spread_data(sys.argv[1:])
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop while Python ends
    try:
        try:
            _command()()
        finally:
            sys.stdout.flush()
    except TcError as e:
        fail(e.render())
    except UserError as e:
        fail(f"error: {e}")
    except OSError as e:
        reason = e.strerror or str(e) or type(e).__name__
        fail(f"error: {e.filename}: {reason}" if e.filename is not None else f"error: {reason}\n{_advice(e)}".rstrip())
    except MemoryError:
        fail("error: out of memory\n  help: use smaller sizes, or free some memory")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _advice(e: OSError) -> str:
    return {
        errno.ENOSPC: "  help: free some disk space",
        errno.EDQUOT: "  help: free some of your disk quota",
        errno.ENOMEM: "  help: use smaller sizes, or free some memory",
    }.get(e.errno or 0, "")


def spread_data(arguments: list[str]) -> list[str]:
    """`train --data A B C` as `train --data A --data B --data C`, so that `--data *.txt` works."""
    if arguments[:1] != ["train"]:
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


if __name__ == "__main__":
    main()
