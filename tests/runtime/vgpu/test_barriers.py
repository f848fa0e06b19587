"""Named barriers: split arrival and wait, several rounds in flight, what they order, and how they are misused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.vgpu.conftest import launch

START = """
mov.u32 %r1, buf; shr.u32 %r2, %r0, 5; and.b32 %r3, %r0, 31; setp.eq.u32 %p0, %r2, 0;
shl.b32 %r4, %r3, 2; add.u32 %r5, %r1, %r4; mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8;
"""
# Warp 0 fills two buffers by turns and arrives at "full" (1, 2); warp 1 reads and arrives at "empty" (3, 4).
RING = (
    START
    + """
mov.u32 %r10, 0; mov.u32 %r11, 0;
LOOP: and.b32 %r6, %r10, 1; shl.b32 %r7, %r6, 7; add.u32 %r7, %r7, %r5;
add.u32 %r8, %r6, 1; add.u32 %r9, %r6, 3; setp.ge.u32 %p1, %r10, 2; setp.lt.u32 %p2, %r10, 6;
@!%p0 bra CONSUMER;
{wait_empty}
mad.lo.u32 %r12, %r10, 100, %r3; st.shared.u32 [%r7], %r12;
bar.arrive %r8, 64;
{late}
bra NEXT;
CONSUMER: bar.sync %r8, 64;
ld.shared.u32 %r12, [%r7]; add.u32 %r11, %r11, %r12;
@%p2 bar.arrive %r9, 64;
NEXT: add.u32 %r10, %r10, 1; setp.lt.u32 %p3, %r10, 8; @%p3 bra LOOP;
st.global.u32 [%rd9], %r11;
"""
)
WAIT_EMPTY = "@%p1 bar.sync %r9, 64;"
OUT = np.zeros(128, np.uint32)


def test_a_producer_may_be_ahead_by_an_arrival_at_each_of_several_barriers() -> None:
    report, (out,) = launch(RING.format(wait_empty=WAIT_EMPTY, late=""), OUT, block=64, shared=256)
    assert report.ok, report
    assert (out[32:64] == 2800 + 8 * np.arange(32)).all()


def test_without_the_way_back_the_producer_overwrites_what_is_being_read() -> None:
    report, _ = launch(RING.format(wait_empty="", late=""), OUT, block=64, shared=256)
    assert "shared memory race" in report.kinds() or "barrier misuse" in report.kinds()


def test_an_arrival_orders_what_came_before_it_and_nothing_after() -> None:
    late = "add.u32 %r12, %r12, 1; st.shared.u32 [%r7], %r12;"
    report, _ = launch(RING.format(wait_empty=WAIT_EMPTY, late=late), OUT, block=64, shared=256)
    assert "shared memory race" in report.kinds()


@pytest.mark.parametrize("first", ["bar.arrive 0, 96;", "bar.arrive 0, 96; bar.arrive 5, 64;"])
def test_arrivals_count_for_a_barrier_of_the_whole_block(first: str) -> None:
    body = START + f"@!%p0 bra REST; st.shared.u32 [%r5], %r3; {first} bra END;\n"
    body += "REST: bar.sync 0; ld.shared.u32 %r6, [%r5]; st.global.u32 [%rd9], %r6; END:"
    report, (out,) = launch(body, OUT, block=96, shared=128)
    assert report.ok, report
    assert (out[32:96].reshape(2, 32) == np.arange(32)).all()


def test_blocks_of_a_wave_have_barriers_of_their_own() -> None:
    report, _ = launch(RING.format(wait_empty=WAIT_EMPTY, late=""), OUT, block=64, grid=5, shared=256)
    assert report.kinds() <= {"global memory race"}  # they write one place, each the same
    body = START + "@%p0 bar.arrive 1, 64; @!%p0 bar.sync 1, 64;"
    assert launch(body, OUT, block=64, grid=7, shared=128)[0].ok


def test_warps_that_arrive_at_once_order_what_each_of_them_has_done() -> None:
    body = START + "@%p0 bra WAIT; shl.b32 %r6, %r0, 2; add.u32 %r6, %r6, %r1; st.shared.u32 [%r6], %r0;\n"
    body += "bar.arrive 1, 96; bra END;\nWAIT: bar.sync 1, 96;\n"
    body += "ld.shared.u32 %r6, [%r5+128]; ld.shared.u32 %r7, [%r5+256]; add.u32 %r6, %r6, %r7;\n"
    report, (out,) = launch(body + "st.global.u32 [%rd9], %r6; END:", OUT, block=96, grid=3, shared=384)
    assert report.kinds() <= {"global memory race"}  # (all blocks write the same)
    assert (out[:32] == 96 + 2 * np.arange(32)).all()


@pytest.mark.parametrize(("read", "ordered"), [(128, True), (256, False)])
def test_barriers_that_warps_arrive_at_by_one_instruction_order_no_more_than_their_own(
    read: int, ordered: bool
) -> None:
    """Warps 1 and 2 arrive at barriers 1 and 2; warp 0 waits at 1 and reads what one of them wrote."""
    body = START + "@%p0 bra WAIT; shl.b32 %r6, %r0, 2; add.u32 %r6, %r6, %r1; st.shared.u32 [%r6], %r0;\n"
    body += "bar.arrive %r2, 64; bra END;\nWAIT: bar.sync 1, 64;\n"
    body += f"ld.shared.u32 %r6, [%r5+{read}]; st.global.u32 [%rd9], %r6; bar.sync 2, 64; END:"
    report, _ = launch(body, OUT, block=96, shared=384)
    assert report.kinds() == (set() if ordered else {"shared memory race"}), report


@pytest.mark.parametrize("ordered", [True, False])
def test_blocks_that_arrive_at_once_order_no_more_than_their_own_warps(ordered: bool) -> None:
    """In even blocks warp 1 arrives, in odd ones warp 2; warp 0 reads what that one wrote, or warp 1."""
    body = START + "mov.u32 %r7, %ctaid.x; and.b32 %r7, %r7, 1; add.u32 %r7, %r7, 1; @%p0 bra WAIT;\n"
    body += "shl.b32 %r6, %r0, 2; add.u32 %r6, %r6, %r1; st.shared.u32 [%r6], %r0;\n"
    body += "setp.ne.u32 %p1, %r2, %r7; @%p1 bra END; bar.arrive 1, 64; bra END;\nWAIT: bar.sync 1, 64;\n"
    body += f"shl.b32 %r8, {'%r7' if ordered else '1'}, 7; add.u32 %r8, %r8, %r5; ld.shared.u32 %r6, [%r8];\nEND:"
    report, _ = launch(body, OUT, block=96, grid=2, shared=384)
    assert report.kinds() == (set() if ordered else {"shared memory race"}), report


def test_warps_meet_at_a_barrier_by_different_instructions() -> None:
    body = START + "shl.b32 %r6, %r0, 2; add.u32 %r6, %r6, %r1; st.shared.u32 [%r6], %r0; @%p0 bra FIRST;\n"
    body += "bar.sync 1, 64; ld.shared.u32 %r6, [%r5]; bra BOTH;\n"
    body += "FIRST: bar.sync 1, 64; ld.shared.u32 %r6, [%r5+128];\n"
    report, (out,) = launch(body + "BOTH: st.global.u32 [%rd9], %r6;", OUT, block=64, shared=256)
    assert report.ok, report
    assert (out[:64] == (np.arange(64) + 32) % 64).all()


@pytest.mark.parametrize(("body", "text"), [
    ("@%p0 bar.arrive 1, 64; @%p0 bar.arrive 1, 64; @!%p0 bar.sync 1, 64;", "again before it has completed"),
    ("@%p0 bar.arrive 1, 96; @!%p0 bar.sync 1, 64;", "is for 64 threads here, and for 96 where others"),
    ("mov.u32 %r9, 16; bar.sync %r9, 64;", "barriers 0 to 15"),
    ("mov.u32 %r9, 40; bar.sync 1, %r9;", "a multiple of 32"),
])  # fmt: skip
def test_misuse_is_found(body: str, text: str) -> None:
    report, _ = launch(START + body, OUT, block=64, shared=128)
    assert [f for f in report.findings if f.kind == "barrier misuse" and text in f.message], report


def test_a_round_must_surely_have_ended_before_the_next_begins() -> None:
    """Two pairs of warps that use one barrier for themselves: whoever comes first, a GPU may count one of each."""
    pairs = "setp.lt.u32 %p1, %r2, 2; @%p1 bra A; {second} bar.sync 1, 64; bra END; A: bar.sync 1, 64; {first} END:"
    report, _ = launch(START + pairs.format(first="", second=""), OUT, block=128, shared=128)
    assert report.kinds() == {"barrier misuse"} and "nothing makes sure that they are through" in str(report)
    turns = pairs.format(first="bar.arrive 2, 128;", second="bar.sync 2, 128;")
    assert launch(START + turns, OUT, block=128, shared=128)[0].ok
    twice = "bar.sync 1, 64; bar.sync 1, 64;"
    assert launch(START + twice, OUT, block=64, shared=128)[0].ok


def test_an_arrival_that_nobody_waits_for_is_no_deadlock_and_a_wait_that_lacks_one_is() -> None:
    assert launch(START + "@%p0 bar.arrive 1, 64;", OUT, block=64, shared=128)[0].ok
    report, _ = launch(START + "@%p0 bar.arrive 2, 64; @!%p0 bar.sync 1, 64;", OUT, block=64, shared=128)
    assert report.kinds() == {"deadlock"}
    assert "warp 1" in str(report) and "barrier 1: 32 of 64 threads" in str(report)
