"""Object code kept between runs, by content (`tcomp.codegen.cache`).

Missing kernels are compiled in forked worker processes, because LLVM is behind one lock per process.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import llvmlite.binding as llvm

from tcomp.codegen.cache import ContentCache
from tcomp.codegen.cpu.compile import CompiledKernel, compile_kernel, kernel_key, memory_needs, symbols_of
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine

WORKERS = 2
PARALLEL_FROM = 4
"""Fewer misses than this are not worth starting processes for."""


class ObjectCache(ContentCache):
    """Object code by key in one folder."""

    def __init__(self, folder: Path | str | None = None) -> None:
        super().__init__(folder, kind="object-1", suffix=".o")


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
