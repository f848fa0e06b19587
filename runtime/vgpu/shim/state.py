"""The one virtual driver of this process, and the log that its messages go to."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tcomp.runtime.vgpu.shim.codes import fail

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.driver import VirtualDriver

_current: VirtualDriver | None = None
_forked = False


def driver() -> VirtualDriver:
    """The installed driver. NOT_INITIALIZED where there is none, and in a forked child, as with the real one."""
    if _current is None or _forked:
        raise fail("NOT_INITIALIZED")
    return _current


def installed() -> VirtualDriver | None:
    return _current


def set_driver(new: VirtualDriver | None) -> None:
    global _current
    _current = new


def log(text: str) -> None:
    """One message to standard error; $TCOMP_VGPU_QUIET silences it."""
    if not os.environ.get("TCOMP_VGPU_QUIET"):
        print(f"tcomp virtual GPU: {text}", file=sys.stderr, flush=True)


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)
