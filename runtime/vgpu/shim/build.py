"""Compiles shim.c into the user's cache folder as libcuda.so.1, once for each content.

The folder's name is the hash of the C text, the table and the compiler; processes that compile at the same time
each write a file of their own and rename it into place.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from tcomp.errors import UserError
from tcomp.runtime.cache import cache_folder
from tcomp.runtime.vgpu.shim.entries import Entry

SONAME = "libcuda.so.1"
_SOURCE = Path(__file__).with_name("shim.c")
_HINT = "install gcc or clang (Debian, Ubuntu: apt install gcc libc6-dev), or name a C compiler by CC=..."


def table_header(entries: list[Entry]) -> str:
    """entries.h: one line per driver entry, numbered from 0."""
    return "".join(
        f'E({n}, {e.symbol}, "{e.base}", {e.since}, {int(e.per_thread)}, {len(e.types)})\n'
        for n, e in enumerate(entries)
    )


def find_compiler() -> list[str]:
    """$CC, else cc, gcc or clang. UserError when there is none."""
    named = os.environ.get("CC")
    for text in [named] if named else ["cc", "gcc", "clang"]:
        words = shlex.split(text)
        if words and shutil.which(words[0]):
            return words
    if named:
        raise UserError(f"the virtual CUDA driver needs a C compiler, and CC={named} is not found", _HINT)
    raise UserError("the virtual CUDA driver needs a C compiler, and none of cc, gcc and clang is found", _HINT)


def build(entries: list[Entry]) -> Path:
    """The path of libcuda.so.1, compiled now or earlier. UserError when it cannot be."""
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise UserError(
            f"the virtual CUDA driver needs Linux on x86-64 or ARM64, this is {platform.system()} on "
            f"{platform.machine()}",
            "use the virtual GPU without a driver: from tcomp.runtime.vgpu import Device",
        )
    header, source = table_header(entries), _SOURCE.read_text()
    text = re.sub(r"\s+", " ", f"{platform.machine()} {SONAME} {header} {source}")
    folder = cache_folder(f"libcuda/{hashlib.sha256(text.encode()).hexdigest()[:24]}")
    library = folder / SONAME
    if library.exists():
        return library
    compiler = find_compiler()
    with tempfile.TemporaryDirectory(prefix=".compile.", dir=folder) as work:
        (Path(work) / "entries.h").write_text(header)
        (Path(work) / "shim.c").write_text(source)
        out = Path(work) / SONAME
        command = [*compiler, "-O1", "-fPIC", "-shared", f"-Wl,-soname,{SONAME}", "-o", str(out), "shim.c", "-ldl"]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
            raise UserError(
                f"the C compiler cannot build the virtual CUDA driver: {' '.join(compiler)} says\n    "
                + "\n    ".join(said[-6:]),
                _HINT,
            )
        os.replace(out, library)
    return library
