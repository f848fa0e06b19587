"""Object code kept between runs, by content (`tcomp.codegen.cache`).

Missing kernels are compiled in forked worker processes, because LLVM is behind one lock per process, and beside what
the caller does meanwhile: a step's first kernels are machine code before its last ones are lowered. What another
program is compiling into the same folder is waited for, when all else is done.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import llvmlite.binding as llvm

from tcomp.codegen.cache import ContentCache
from tcomp.codegen.claims import LOOK, PATIENCE, give_back, take
from tcomp.codegen.cpu.compiled import CompiledKernel, kernel_key, memory_needs, symbols_of
from tcomp.interrupts import interrupts_wait
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor
    from multiprocessing.process import BaseProcess

WORKERS = 8
"""The most processes that compile; no more than the machine has cores."""
PARALLEL_FROM = 4
"""Fewer misses than this are not worth starting processes for."""


class ObjectCache(ContentCache):
    """Object code by key in one folder."""

    def __init__(self, folder: Path | str | None = None) -> None:
        super().__init__(folder, kind="object-1", suffix=".o")


class Compilers:
    """Compiles kernels for one machine, from the cache where it has them.

    `begin` may be called for each kernel as it becomes known; `finish` gives the compiled ones, `close` ends the worker
    processes. They are started by the first `begin` that has enough to do for them. A process with other threads never
    starts any (a lock that one of them holds would stay locked in the child): it compiles in `finish`.
    """

    def __init__(self, machine: CpuMachine, cache_dir: Path | str | None = None) -> None:
        self.machine = machine
        self._cache = ObjectCache(cache_dir)
        self._objects: dict[str, bytes] = {}
        self._waiting: dict[str, Kernel] = {}
        self._begun: dict[str, Future[bytes]] = {}
        self._claimed: set[str] = set()
        self._elsewhere: set[str] = set()
        """what other processes compile"""
        self._patient = True
        self._pool: ProcessPoolExecutor | None = None
        self._processes: list[BaseProcess] = []
        self._threads: set[threading.Thread] = set()
        """those of this process that work and results go through: without one alive, nothing comes any more"""
        self._alone = False
        self._hook: Callable[[threading.ExceptHookArgs], object] = threading.excepthook

    def begin(self, kernel: Kernel) -> None:
        """Compile a kernel beside what the caller does, if it is neither in the cache nor begun."""
        key = kernel_key(kernel, self.machine)
        if key in self._objects or key in self._waiting or key in self._begun or key in self._elsewhere:
            return
        if self._found(key) or not self._claim(key):
            return
        self._waiting[key] = kernel
        if self._pool is None and not self._alone and len(self._waiting) >= PARALLEL_FROM:
            self._pool = _pool(self.machine)
            if self._pool is not None:
                self._hook, threading.excepthook = threading.excepthook, self._told
        if self._pool is not None:
            with interrupts_wait():
                self._submit(self._pool)

    def _submit(self, pool: ProcessPoolExecutor) -> None:
        """Give the processes what waits; the first call forks. (`finish` compiles what no process did.)"""
        import multiprocessing

        others, threads = multiprocessing.active_children(), set(threading.enumerate())
        try:
            for name, waiting in self._waiting.items():
                self._begun[name] = pool.submit(_compile_one, waiting, self.machine)
        except BrokenExecutor:
            return
        except (RuntimeError, OSError):  # not one process or thread more (a container's limit, say)
            self._processes += [p for p in multiprocessing.active_children() if p not in others]
            self._kill()
            self._pool, self._alone = None, True
            self._begun.clear()
            return
        self._processes += [p for p in multiprocessing.active_children() if p not in others]
        self._threads |= set(threading.enumerate()) - threads
        self._waiting.clear()

    def _told(self, args: threading.ExceptHookArgs) -> None:
        """Of what ends threads, what `_lost` does not answer for is told as before."""
        if args.exc_type is not RuntimeError or str(args.exc_value) != "can't start new thread":
            self._hook(args)

    def _lost(self) -> bool:
        """Has the pool's thread ended? It needs another one for its queue, and where that is one too many it dies, and
        tells nobody."""
        return self._pool is not None and not any(t.is_alive() for t in self._threads)

    def _kill(self) -> None:
        """End processes that nobody would tell to end: Python's own end would wait for them."""
        for process in self._processes:
            process.kill()
            process.join()
        self._processes.clear()

    def _found(self, key: str) -> bool:
        """Whether there is code for a key by now, from the cache if not from before."""
        if key not in self._objects and key not in self._begun:
            found = self._cache.load(key)
            if found is not None:
                self._objects[key] = found
        return key in self._objects

    def _claim(self, key: str) -> bool:
        """Whether this process is to compile a key that was not in the cache: no other one does, nor has done so by
        now, nor lets all wait too long."""
        if not take(self._cache.folder, key) and self._patient:
            self._elsewhere.add(key)
            return False
        self._claimed.add(key)
        if self._found(key):
            self._disclaim(key)
            return False
        return True

    def _disclaim(self, *keys: str) -> None:
        """Let other processes compile these keys, or find them in the cache."""
        for key in keys:
            give_back(self._cache.folder, key)
        self._claimed.difference_update(keys)

    def finish(self, kernels: Sequence[Kernel]) -> list[CompiledKernel]:
        """Compiled kernels in the order given. An error of a kernel's own (`Unsupported`) is raised here."""
        keys = [kernel_key(k, self.machine) for k in kernels]
        missing = {key: k for k, key in zip(kernels, keys, strict=True) if not self._found(key)}
        # The longest first, so that no worker is left with one at the end.
        for kernel in sorted(missing.values(), key=lambda k: -len(repr(k.phases))):
            self.begin(kernel)
        end = time.monotonic() + PATIENCE
        while missing:
            for key, kernel in missing.items():
                if key not in self._objects and key not in self._elsewhere:
                    body = self._compiled(key) or _compile_one(kernel, self.machine)
                    self._cache.store(key, body)
                    self._objects[key] = body
                    self._disclaim(key)
            left = {key: k for key, k in missing.items() if key not in self._objects}
            if left:
                self._disclaim(*self._claimed)  # nobody waits for who waits
                time.sleep(LOOK)
            end = end if len(left) == len(missing) else time.monotonic() + PATIENCE
            self._patient = time.monotonic() < end
            self._elsewhere.clear()
            missing = left
            for kernel in missing.values():
                self.begin(kernel)
        return [
            CompiledKernel(symbols_of(k, key), self._objects[key], *memory_needs(k))
            for k, key in zip(kernels, keys, strict=True)
        ]

    def _compiled(self, key: str) -> bytes | None:
        """What a process made of a kernel; None where none was asked to, or where nothing will come."""
        while key in self._begun:
            lost = self._lost()  # (before the look at the result: the thread's last act may be to bring it)
            try:
                return self._begun[key].result(0 if lost else LOOK)
            except BrokenExecutor:
                break
            except TimeoutError:
                if lost:
                    self._kill()
                    break
        return None

    def close(self) -> None:
        """Begin nothing more, and end the processes."""
        if self._pool is not None:
            if self._lost():
                self._kill()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
        if threading.excepthook == self._told:
            threading.excepthook = self._hook
        self._processes.clear()
        self._threads.clear()
        self._begun.clear()
        self._disclaim(*self._claimed)


def compile_kernels(
    kernels: Sequence[Kernel], machine: CpuMachine, cache_dir: Path | str | None = None
) -> list[CompiledKernel]:
    """Compiled kernels in the order given, from the cache where it has them."""
    compilers = Compilers(machine, cache_dir)
    try:
        return compilers.finish(kernels)
    finally:
        compilers.close()


def cached_object(
    text: str, machine: CpuMachine, cache_dir: Path | str | None, build: Callable[[CpuMachine], bytes]
) -> bytes:
    """Object code of hand-written IR `text`, from the cache or built."""
    cache = ObjectCache(cache_dir)
    parts = (text, machine.name, machine.features, machine.triple, llvm.llvm_version_info)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return cache.made(key, lambda: build(machine))


def _pool(machine: CpuMachine) -> ProcessPoolExecutor | None:
    """Worker processes; None where forking is not safe, or of no use."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor  # with it loads what only a start that compiles needs

    workers = min(WORKERS, machine.cores)
    safe = threading.active_count() == 1 and "fork" in multiprocessing.get_all_start_methods()
    if not safe or workers < 2:
        return None
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork"), initializer=_begin_work)


def _begin_work() -> None:
    """In a worker: Ctrl-C is the parent's affair, and the parent's end is the worker's."""
    gc.disable()  # compiling makes many objects and no cycles that matter before the process ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _compile_one(kernel: Kernel, machine: CpuMachine) -> bytes:
    # The generator, which a start that finds all of its kernels in the cache never loads.
    from tcomp.codegen.cpu.compile import compile_kernel

    return compile_kernel(kernel, machine).object
