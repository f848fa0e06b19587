"""What an arrival by some lanes of a warp releases: what those did, and what their warp did before it last met."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.vgpu.hopper import init, launch, wait

# Warp 0 does something with the words of its lanes and arrives at an mbarrier; warp 1 waits and overwrites them.
BODY = """
shl.b32 %r4, %r0, 2; and.b32 %r4, %r4, 124; add.u32 %r5, %r1, %r4; and.b32 %r7, %r0, 31; setp.eq.u32 %p2, %r7, 0;
setp.eq.u32 %p1, %r3, 1; @!%p1 st.shared.u32 [%r5], %r0;
{init}
@%p1 bra OTHER;
{does}
bra END;
OTHER:
{wait}
{then}
END:
"""
MEET = "bar.warp.sync -1;"
FIRST = "@%p2 mbarrier.arrive.shared::cta.b64 _, [%r2];"
ONE_BY_ONE = """mov.u32 %r8, 0;
L: setp.eq.u32 %p3, %r7, %r8; @%p3 mbarrier.arrive.shared::cta.b64 _, [%r2];
add.u32 %r8, %r8, 1; setp.lt.u32 %p4, %r8, {}; @%p4 bra L;"""
READ, WRITE, AGAIN = "ld.shared.u32 %r10, [%r5];", "st.shared.u32 [%r5], %r7;", "st.shared.u32 [%r5], 77;"
ACCESSES = pytest.mark.parametrize("access", [READ, WRITE])


def races(does: str, arrivals: int = 1, then: str = AGAIN, waits: str = wait(0, "0", "W")) -> bool:
    body = BODY.format(init=init(arrivals), does=does, wait=waits, then=then)
    found = launch(body, np.zeros(64, np.uint32), block=64)[0].kinds()
    assert found <= {"shared memory race"}
    return bool(found)


@ACCESSES
def test_one_lane_speaks_for_the_others_once_they_have_met(access: str) -> None:
    assert not races(access + MEET + FIRST)
    assert races(access + FIRST)
    assert races(MEET + access + FIRST)


def test_shuffles_and_votes_are_no_meeting() -> None:
    for exchange in ("shfl.sync.bfly.b32 %r11, %r10, 1, 31, -1;", "vote.sync.ballot.b32 %r11, %p2, -1;"):
        assert races(READ + exchange + FIRST)


@ACCESSES
def test_a_lane_releases_what_it_did_itself(access: str) -> None:
    assert not races(f"@%p2 {access}" + FIRST, then=f"@%p2 {AGAIN}")
    assert not races(access + FIRST, then="") and races(f"@!%p2 {access}" + FIRST)


@ACCESSES
def test_lanes_that_arrive_one_after_another_release_what_all_did(access: str) -> None:
    assert not races(access + ONE_BY_ONE.format(32), 32)
    assert races(access + ONE_BY_ONE.format(31), 31)


@ACCESSES
def test_a_relaxed_arrival_releases_what_its_lane_had_fenced(access: str) -> None:
    relaxed = FIRST.replace("arrive", "arrive.relaxed.cta")
    fence = "fence.acq_rel.cta;"
    assert not races(access + MEET + fence + relaxed)
    assert races(access + MEET + relaxed) and races(access + fence + relaxed)


@pytest.mark.parametrize("meet", [MEET, "vote.sync.any.pred %p5, %p2, -1;"])
def test_what_one_lane_waited_for_the_others_know_once_they_have_met(meet: str) -> None:
    first = "@!%p2 bra NEXT;\n" + wait(0, "0", "W") + "NEXT: " + meet
    assert races(READ + MEET + FIRST, waits=first) == (meet != MEET)


def test_lanes_that_wait_one_after_another_each_know() -> None:
    loop = "mov.u32 %r8, 0;\nNEXT: setp.ne.u32 %p3, %r7, %r8; @%p3 bra OVER;\n" + wait(0, "0", "W")
    loop += "OVER: add.u32 %r8, %r8, 1; setp.lt.u32 %p4, %r8, 32; @%p4 bra NEXT;"
    assert not races(READ + MEET + FIRST, waits=loop)
