"""The thread team: every launch on every thread, in order, the same bits each time, interrupts at any moment."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num
from tcomp.errors import UserError
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Scope
from tcomp.machine.cpu import detect
from tcomp.model.step import Launch, Slot, Step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.cpu.team import Team, _Command
from tcomp.runtime.executor import HostExecutor

MACHINE = detect()
N = 480
REPEATS = 60


def operand(name: str, *shape: int) -> Buffer:
    return Buffer(name, DType.F32, shape, Scope.OPERAND)


def shift_kernel() -> Kernel:
    """Y[i] = X[n - 1 - i] + 1, in 16 blocks over the cores: each thread reads what others wrote before."""
    i = Axis("i", Name("i.0"), Binary("+", Name("i.0"), Num(30)), 30, 1, 1)
    value: Expr = Binary("+", Access("X", (Binary("-", Num(N - 1), Name("i")),)), Num(1.0))
    body = Loop("i.0", Num(0), Num(N), 30, "core", (Compute(Access("Y", (Name("i"),)), value, (i,)),))
    return Kernel("shift", (operand("X", N), operand("Y", N)), (), ((body,),), frozenset("X"), frozenset("Y"))


def sum_kernel() -> Kernel:
    """s += sum of exp(X) over partials, one per block of 48: the order of additions must not depend on threads."""
    lanes = MACHINE.lanes_f32
    i = Axis("i", Name("i.0"), Binary("+", Name("i.0"), Num(48)), 48, 2, lanes)
    part = Buffer("part", DType.F32, (N // 48,), Scope.TEAM)
    value = Call("exp", (Access("X", (Name("i"),)),))
    target = Access("part", (Binary("//", Name("i.0"), Num(48)),))
    first = Loop("i.0", Num(0), Num(N), 48, "core", (Compute(target, value, (i,), frozenset("i"), "sum"),))
    p = Axis("p", Num(0), Num(N // 48), N // 48)
    last = Compute(Access("s", ()), Access("part", (Name("p"),)), (p,), frozenset("p"), "sum")
    return Kernel(
        "total", (operand("X", N), operand("s")), (part,), ((first,), (last,)), frozenset("X"), frozenset("s")
    )


def step() -> Step:
    slots: dict[str, Slot] = {}
    end = 0
    for name, shape in (("A", (N,)), ("B", (N,)), ("s", ())):
        count = int(np.prod(shape))
        slots[name] = Slot(name, "activation", DType.F32, shape, end, count * 4, 0, 0)
        end += -(-count * 4 // 64) * 64
    a, b, s = (slots[n].offset for n in "ABs")
    there, back = Launch("shift", (a, b), "there"), Launch("shift", (b, a), "back")
    programs = {"shift": (there, back) * REPEATS, "sum": (Launch("sum", (a, s), "sum"),), "nothing": ()}
    return Step("m", "", {}, slots, end, end, 0, 1024, {"shift": shift_kernel(), "sum": sum_kernel()}, programs, ())


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_launch_sees_the_one_before(threads: int, objects: Path) -> None:
    executor = CpuExecutor(step(), MACHINE, threads, objects)
    start = np.arange(N, dtype=np.float32)
    for _ in range(5):
        executor.array("A")[...] = start
        executor.run("shift")
        np.testing.assert_array_equal(executor.array("A"), start + 2 * REPEATS)
        np.testing.assert_array_equal(executor.array("B"), (start + 2 * REPEATS - 1)[::-1])
    executor.close()


def test_zeros_are_written_where_memory_is_not_fresh(objects: Path) -> None:
    executor = CpuExecutor(step(), MACHINE, 2, objects)
    executor.write("A", 0)
    assert not executor.array("A").any()
    executor.write("A", 7)
    executor.write("A", 0)
    assert not executor.array("A").any()
    executor.write("A", 7)
    executor.write("B", 0)
    executor.run("shift")
    assert executor.array("A").any() and executor.array("B").any()
    for name in ("A", "B"):
        executor.write(name, 0)
        assert not executor.array(name).any()
    executor.close()


def test_zeros_are_not_written_into_memory_that_nothing_has_touched(
    objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start that writes to pages has to wait for them. Two slots may be one memory at different times."""
    made = step()
    part = replace(made.slots["B"], name="part", offset=made.slots["B"].offset + 64, shape=(1,), bytes=4)
    executor = CpuExecutor(replace(made, slots={**made.slots, "part": part}), MACHINE, 2, objects)
    stored: list[str] = []
    write = HostExecutor.write
    monkeypatch.setattr(HostExecutor, "write", lambda e, name, value: stored.append(name) or write(e, name, value))
    executor.write("part", 7)
    for name in ("A", "B"):
        executor.write(name, 0)
    assert stored == ["part", "B"] and not executor.array("B").any()
    executor.close()


def test_results_are_the_same_bits_for_any_number_of_runs(objects: Path) -> None:
    x = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    seen = set()
    for threads in (1, 2, 5):
        executor = CpuExecutor(step(), MACHINE, threads, objects)
        executor.array("A")[...] = x
        for _ in range(20):
            executor.run("sum")
            seen.add(executor.array("s").tobytes())
        executor.close()
    assert len(seen) == 1
    assert np.frombuffer(seen.pop(), np.float32)[0] == pytest.approx(np.exp(x.astype(np.float64)).sum(), rel=1e-5)


def test_an_empty_program_and_a_profile(objects: Path) -> None:
    executor = CpuExecutor(step(), MACHINE, 2, objects)
    executor.run("nothing")
    labels = [label for label, _ in executor.profile("sum")]
    assert labels == ["sum (1/2)", "sum (2/2)"]
    assert all(ticks > 0 for _, ticks in executor.profile("shift"))
    executor.close()


def test_a_profile_leaves_out_that_threads_wake(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter = Team._enter

    def late(self: Team, tid: int, command: _Command) -> None:
        time.sleep(0.02 if tid else 0)
        enter(self, tid, command)

    executor = CpuExecutor(step(), MACHINE, 2, objects)
    executor.run("shift")
    monkeypatch.setattr(Team, "_enter", late)
    first, *others = (ticks for _, ticks in executor.profile("shift"))
    assert first < sum(others)
    executor.close()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler of Ctrl-C: under nohup, say, the signal is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_any_moment_leaves_the_team_ready(objects: Path, ctrl_c: None) -> None:
    executor = CpuExecutor(step(), MACHINE, 3, objects)
    start = np.arange(N, dtype=np.float32)
    interrupted = 0
    generator = np.random.default_rng(0)
    # A long enough program to be hit inside it, too.
    for _ in range(20):
        executor.array("A")[...] = start
        delay = float(generator.uniform(0, 0.003))
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            for _ in range(3):
                executor.run("shift")
            timer.join()
            time.sleep(10)  # the signal is on its way
        except KeyboardInterrupt:
            interrupted += 1
        timer.join()
        executor.array("A")[...] = start
        executor.run("shift")
        np.testing.assert_array_equal(executor.array("A"), start + 2 * REPEATS)
    assert interrupted == 20
    executor.close()


@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_thread_that_slept_on_the_callers_cpu_starts_on_another(
    objects: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpus = os.sched_getaffinity(0)
    here, move = min(cpus), os.sched_setaffinity
    moves: list[tuple[int, set[int]]] = []

    def recorded(thread: int, where: set[int]) -> None:
        moves.append((thread, where))
        move(thread, where)

    executor = CpuExecutor(step(), MACHINE, 2, objects)
    try:
        move(0, {here})
        places, (worker,) = executor._team._places, executor._team._workers
        executor.run("shift")
        until(lambda: places.last[1] is not None and os.sched_getaffinity(worker.native_id or 0) == cpus)
        monkeypatch.setattr(os, "sched_setaffinity", recorded)
        places.last[1] = here  # as if it had slept there
        executor.run("shift")
        until(lambda: len(moves) == 2)
        (sent, there), free = moves
        assert sent == worker.native_id and there < cpus and here not in there and free == (0, cpus)
        assert os.sched_getaffinity(sent) == cpus and places.last[1] in there
    finally:
        move(0, cpus)
        executor.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_closing_ends_the_threads_and_arrays_stay(objects: Path) -> None:
    before = threading.active_count()
    executor = CpuExecutor(step(), MACHINE, 4, objects)
    assert threading.active_count() == before + 3
    executor.array("A")[...] = 3
    view = executor.array("A")
    executor.close()
    executor.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        executor.run("sum")
    del executor
    assert (view == 3).all()


def test_a_closed_executor_gives_its_memory_back_with_the_last_reference(objects: Path) -> None:
    """Not when cycles are looked for: that may be after the next executor has mapped its own."""
    executor = CpuExecutor(step(), detect(), 2, objects)
    executor.run("shift")
    executor.close()
    arena = weakref.ref(executor._arena)
    gc.disable()
    try:
        del executor
        assert arena() is None
    finally:
        gc.enable()


def test_the_arena_is_aligned_and_zero(objects: Path) -> None:
    executor = CpuExecutor(step(), MACHINE, 1, objects)
    address = executor.array("A").ctypes.data
    assert address % 64 == 0
    assert not executor.array("B").any()
    assert ctypes.c_float.from_address(address).value == 0
    executor.close()


def test_no_threads_is_refused(objects: Path) -> None:
    with pytest.raises(UserError, match="0 threads"):
        CpuExecutor(step(), MACHINE, 0, objects)
