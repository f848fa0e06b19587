"""Object code kept between runs, by content.

A file's name is the hash of all that its object code depends on, so an entry is never out of date, only
missing. Files are written under a temporary name and renamed; each carries a checksum, and one that is torn
or damaged is compiled again. Processes may share the folder. Missing kernels are compiled in forked worker
processes, because LLVM is behind one lock per process.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import struct
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import llvmlite.binding as llvm

from tcomp.codegen.cpu.compile import CompiledKernel, compile_kernel, kernel_key, memory_needs, symbols_of
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine

_MAGIC = b"tcomp-object-1\n"
_HEADER = struct.Struct("<32sQ")
WORKERS = 2
PARALLEL_FROM = 4
"""Fewer misses than this are not worth starting processes for."""


class CacheWarning(UserWarning):
    """The cache folder cannot be used; the run goes on without it."""


def default_folder() -> Path:
    """$TCOMP_CACHE_DIR or $TCOMP_CACHE, else $XDG_CACHE_HOME/tcomp, else ~/.cache/tcomp; then kernels/."""
    for name in ("TCOMP_CACHE_DIR", "TCOMP_CACHE"):
        if os.environ.get(name):
            return Path(os.environ[name]) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tcomp" / "kernels"


class ObjectCache:
    """Object code by key in one folder."""

    _warned: set[str] = set()  # noqa: RUF012

    def __init__(self, folder: Path | str | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.o"

    def load(self, key: str) -> bytes | None:
        """The object of that key; None where it is missing, cut short, or altered."""
        try:
            content = self.path(key).read_bytes()
        except OSError:
            return None
        head = len(_MAGIC) + _HEADER.size
        if len(content) < head or not content.startswith(_MAGIC):
            return None
        digest, size = _HEADER.unpack_from(content, len(_MAGIC))
        body = content[head:]
        if len(body) != size or _digest(key, body) != digest:
            return None
        return body

    def store(self, key: str, body: bytes) -> None:
        """Keep an object; a folder that cannot be written is reported once and otherwise ignored."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{key}.", suffix=".partial", dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(_MAGIC + _HEADER.pack(_digest(key, body), len(body)) + body)
                os.replace(temporary, self.path(key))
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
        except OSError as e:
            self._warn(e)

    def _warn(self, error: OSError) -> None:
        if str(self.folder) in self._warned:
            return
        self._warned.add(str(self.folder))
        reason = error.strerror or str(error)
        warnings.warn(
            f"compiled kernels cannot be kept in {self.folder}: {reason}\n"
            "  help: every start will compile again; set TCOMP_CACHE to a folder that you can write to",
            CacheWarning,
            stacklevel=4,
        )


def _digest(key: str, body: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + body).digest()


def compile_kernels(
    kernels: Sequence[Kernel], machine: CpuMachine, cache_dir: Path | str | None = None
) -> list[CompiledKernel]:
    """Compiled kernels in the order given, from the cache where it has them."""
    cache = ObjectCache(cache_dir)
    keys = [kernel_key(k, machine) for k in kernels]
    objects: dict[str, bytes] = {}
    missing: dict[str, Kernel] = {}
    for key, kernel in zip(keys, kernels, strict=True):
        if key in objects or key in missing:
            continue
        found = cache.load(key)
        if found is None:
            missing[key] = kernel
        else:
            objects[key] = found
    for key, body in _compile_missing(missing, machine):
        cache.store(key, body)
        objects[key] = body
    return [
        CompiledKernel(symbols_of(k, key), objects[key], *memory_needs(k)) for k, key in zip(kernels, keys, strict=True)
    ]


def cached_object(
    text: str, machine: CpuMachine, cache_dir: Path | str | None, build: Callable[[CpuMachine], bytes]
) -> bytes:
    """Object code of hand-written IR `text`, from the cache or built."""
    cache = ObjectCache(cache_dir)
    parts = (text, machine.name, machine.features, machine.triple, llvm.llvm_version_info)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    found = cache.load(key)
    if found is None:
        found = build(machine)
        cache.store(key, found)
    return found


def _compile_missing(missing: dict[str, Kernel], machine: CpuMachine) -> list[tuple[str, bytes]]:
    jobs = list(missing.items())
    workers = min(WORKERS, machine.cores, len(jobs))
    # A process with threads must not fork: a lock held by one of them would stay locked in the child.
    safe = threading.active_count() == 1 and "fork" in multiprocessing.get_all_start_methods()
    if len(jobs) < PARALLEL_FROM or workers < 2 or not safe:
        return [(key, compile_kernel(kernel, machine).object) for key, kernel in jobs]
    # The longest first, so that no worker is left with one at the end.
    jobs.sort(key=lambda job: -len(repr(job[1].phases)))
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        bodies = pool.map(_compile_one, [(kernel, machine) for _, kernel in jobs])
        return [(key, body) for (key, _), body in zip(jobs, bodies, strict=True)]


def _compile_one(job: tuple[Kernel, CpuMachine]) -> bytes:
    kernel, machine = job
    return compile_kernel(kernel, machine).object
