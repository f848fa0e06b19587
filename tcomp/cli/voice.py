"""What is wrong with a command line, said once where torchrun has started several processes with it.

All of them find it, so one of each machine says it. From `all_speak` on, when the line is read, others may fail for
reasons of their own (`ranks.py`: then the first that fails says why).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from tcomp.errors import UserError
from tcomp.runtime.distributed.place import place_here

_silence = ExitStack()


@contextmanager
def one_speaks() -> Iterator[None]:
    """Until `all_speak`, only the first process of a machine writes to its standard streams."""
    try:
        place = place_here()
    except UserError:  # said later, by the command that is for several processes
        place = None
    with _silence as stack:
        if place is not None and place.local:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            stack.enter_context(redirect_stdout(nowhere))
            stack.enter_context(redirect_stderr(nowhere))
        yield


def all_speak() -> None:
    """The command line is read."""
    _silence.close()
