"""Loops that wait for memory: the others run meanwhile, locks are handed on, and a wait for nothing is a deadlock."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Options, machine
from tests.runtime.vgpu.conftest import entry, launch

ZERO = np.zeros(4, np.uint32)
# Each lane takes the lock in turn, adds 1 to a plain counter, and goes a long way after giving the lock back.
LOCK = """
L: atom.global.cas.b32 %r5, [%rd0], 0, 1; setp.ne.u32 %p0, %r5, 0; @%p0 bra L;
membar.gl; ld.volatile.global.u32 %r6, [%rd0+4]; add.u32 %r6, %r6, 1; st.volatile.global.u32 [%rd0+4], %r6; membar.gl;
atom.global.exch.b32 %r7, [%rd0], 0;
""" + "".join(f"setp.eq.u32 %p1, %r0, {n}; @%p1 bra M{n}; add.u32 %r8, %r8, 1; M{n}:\n" for n in range(40))


@pytest.mark.parametrize(("grid", "block"), [(1, 32), (2, 64)])
def test_a_lock_is_handed_on_without_long_waits(grid: int, block: int) -> None:
    report, (out,) = launch("mov.u32 %r8, 0;\n" + LOCK, ZERO, grid=grid, block=block)
    assert out[1] == grid * block and out[0] == 0
    assert report.warp_instructions < 1000 * grid * block


SPIN = "{} W: ld.{}.global.u32 %r5, [%rd0]; setp.eq.u32 %p1, %r5, 0; @%p1 bra W;\n"


@pytest.mark.parametrize("load", ["volatile", "acquire.gpu", "relaxed.sys"])
def test_a_wait_for_a_flag_that_nobody_raises_is_a_deadlock(load: str) -> None:
    report, _ = launch(SPIN.format("", load), ZERO, grid=2, block=64)
    assert report.kinds() == {"deadlock"}
    text = str(report)
    assert f"ld.{load}.global.u32 %r5, [%rd0]" in text and "block 1 warp 1" in text and "spins on the memory" in text


def test_a_wait_for_a_block_that_comes_later_is_none() -> None:
    raise_it = "mov.u32 %r9, %ctaid.x; setp.eq.u32 %p0, %r9, 1; @%p0 st.volatile.global.u32 [%rd0], 1; @%p0 bra END;\n"
    assert launch(SPIN.format(raise_it, "volatile") + "END:", ZERO, grid=2)[0].ok


def test_spinning_threads_and_threads_at_a_barrier_are_named_together() -> None:
    split = "setp.lt.u32 %p0, %r0, 32; @%p0 bra W; bar.sync 0; bra END;\n"
    report, _ = launch(SPIN.format(split, "volatile") + "END:", ZERO, block=64)
    text = str(report)
    assert report.kinds() == {"deadlock"}
    assert "warp 0 at PTX line" in text and "spins" in text and "warp 1 at PTX line" in text and "barrier 0" in text


def test_a_long_loop_over_volatile_memory_ends() -> None:
    body = """
    mov.u32 %r5, 0; mov.u32 %r6, 0;
    L: ld.volatile.global.u32 %r7, [%rd0]; add.u32 %r6, %r6, %r7; add.u32 %r5, %r5, 1;
    setp.lt.u32 %p0, %r5, 5000; @%p0 bra L; st.volatile.global.u32 [%rd0+8], %r6;"""
    report, (out,) = launch(body, np.array([3, 0, 0, 0], np.uint32), block=1)
    assert report.ok and out[2] == 15000


def test_a_wait_with_a_time_limit_ends() -> None:
    body = """
    mov.u64 %rd5, %globaltimer;
    W: mov.u64 %rd6, %globaltimer; sub.u64 %rd7, %rd6, %rd5; setp.gt.u64 %p2, %rd7, 3000; @%p2 bra END;
    ld.volatile.global.u32 %r5, [%rd0]; setp.eq.u32 %p1, %r5, 0; @%p1 bra W; END: st.volatile.global.u32 [%rd0], 9;"""
    report, (out,) = launch(body, ZERO, block=1)
    assert report.ok and out[0] == 9


def test_a_loop_that_never_ends_says_where_it_runs() -> None:
    gpu = Device(options=Options(max_steps=1000))
    report = gpu.load(entry("L: add.u32 %r0, %r0, 1; bra L;", "")).launch("k", 1, 32, [])
    assert "still running after 1001 steps" in str(report) and "is running" in str(report)


def test_lanes_that_come_back_join_those_that_wait_there() -> None:
    """Three groups reach one instruction one after the other, the later ones from further down."""
    body = """
    setp.lt.u32 %p0, %r0, 20; setp.lt.u32 %p1, %r0, 10; @%p1 bra FAR; @%p0 bra NEAR;
    HERE: bar.warp.sync -1; bra DONE;
    NEAR: mov.u32 %r5, 0; bra HERE;
    FAR: mov.u32 %r5, 1; bra BACK;
    DONE: atom.global.add.u32 %r6, [%rd0], 1; bra END;
    BACK: mov.u32 %r5, 2; bra HERE;
    END:"""
    report, (out,) = launch(body, ZERO)
    assert report.ok and out[0] == 32, str(report)


def test_lanes_look_again_each_time_that_others_have_left() -> None:
    """The first eight wait for those that leave at once, then for those that leave later."""
    body = """
    setp.lt.u32 %p0, %r0, 8; setp.ge.u32 %p1, %r0, 16; @%p1 bra TWO; @!%p0 bra END;
    bar.warp.sync 0xffff;
    TWO: bar.warp.sync 0xffff00ff; @%p1 bra END;
    bar.warp.sync 0xffff00ff;
    atom.global.add.u32 %r6, [%rd0], 1;
    END:"""
    report, (out,) = launch(body, ZERO)
    assert report.ok and out[0] == 8, str(report)


TICKET = """
setp.ne.u32 %p1, %r0, 0; @%p1 bra END;
atom.global.add.u32 %r6, [%rd0+8], 1; mul.wide.u32 %rd5, %r9, 4; add.u64 %rd5, %rd5, %rd0; st.u32 [%rd5], %r6;"""
SPUN = """mov.u32 %r5, 0;
W: ld.volatile.global.u32 %r7, [%rd0+12]; add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 14; @%p1 bra W;"""
LEFT = "setp.ge.u32 %p1, %r0, 8; @%p1 bra END; bar.warp.sync -1;"


@pytest.mark.parametrize("wait", [SPUN, LEFT], ids=["spinning", "waiting"])
@pytest.mark.parametrize("when", [0, 1 << 40])
def test_a_block_that_starts_last_lets_those_go_on_that_can(
    wait: str, when: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block that spins for a while, or whose lanes wait for others that have left, is done before it."""
    monkeypatch.setattr(machine, "starts", lambda *_: (np.arange(2), [(0, 0), (1, when)]))
    body = f"mov.u32 %r9, %ctaid.x; setp.ne.u32 %p0, %r9, 0; @%p0 bra GO; {wait}\nGO: {TICKET}\nEND:"
    report, (out,) = launch(body, ZERO, grid=2, block=32 if wait == LEFT else 1)
    assert report.ok and out[:2].tolist() == ([0, 1] if when else [1, 0]), str(report)
