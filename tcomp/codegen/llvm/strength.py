"""LLVM's loop strength reduction, which an option of the whole process switches.

It is the most expensive part of making machine code. What it would find in a kernel's loops is mostly there already:
addresses are made frame by frame (`emitter.py`), and an operand of an x86 instruction adds a base, an index times the
element's size and a constant by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import llvmlite.binding as llvm

_ONE_AT_A_TIME = threading.Lock()


@contextmanager
def strength_reduction(wanted: bool) -> Iterator[None]:
    """Emit code in this block with or without it. Other threads' blocks wait."""
    with _ONE_AT_A_TIME:
        llvm.set_option("tcomp", f"--disable-lsr={'false' if wanted else 'true'}")
        try:
            yield
        finally:
            llvm.set_option("tcomp", "--disable-lsr=false")
