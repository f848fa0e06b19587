"""A folder that is there whole or not at all: filled under a temporary name, flushed, and renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tcomp.errors import UserError
from tcomp.runtime.cache import sync_folder


@contextmanager
def whole_folder(out: Path, option: str) -> Iterator[Path]:
    """The folder to fill; it becomes `out`, which `option` named, when the block ends without an error.

    UserError where something else is there already, or where it cannot be written. Who writes a file flushes it.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: there is something of that name already", f"give another {option}, or remove it")
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        sync_folder(partial)
        if out.exists():
            out.rmdir()
        os.rename(partial, out)
        sync_folder(out.parent)
    except OSError as e:
        raise UserError(
            f"{out}: cannot write it: {e.strerror or e}", f"free some disk space, or give another {option}"
        ) from e
    finally:
        shutil.rmtree(partial, ignore_errors=True)
