"""Synchronisation through atomics on shared memory: the last warp to count down may touch what the others left."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.vgpu import hopper
from tests.runtime.vgpu.conftest import launch

# each of four warps writes its word, one lane of each counts; the last one sums (a step has all four at once)
LAST = """
mov.u32 %r1, buf; shr.u32 %r2, %r0, 5; and.b32 %r3, %r0, 31; shl.b32 %r4, %r2, 2; add.u32 %r5, %r1, %r4;
setp.eq.u32 %p0, %r0, 0; @%p0 st.shared.u32 [%r1+16], 0; bar.sync 0;
setp.ne.u32 %p1, %r3, 0; @%p1 bra END;
st.shared.u32 [%r5], %r2; {fence}
atom.shared.add{semantics}.cta.u32 %r6, [%r1+16], 1;
setp.ne.u32 %p2, %r6, 3; @%p2 bra END; {after}
ld.shared.v4.u32 {{%r7, %r8, %r9, %r10}}, [%r1];
add.u32 %r7, %r7, %r8; add.u32 %r7, %r7, %r9; add.u32 %r7, %r7, %r10; st.global.u32 [%rd0], %r7;
END: mov.u32 %r5, 0;
"""
FENCE = "fence.acq_rel.cta;"
OUT = np.zeros(1, np.uint32)


@pytest.mark.parametrize(("fence", "semantics", "after"), [
    (FENCE, ".acquire", ""), (FENCE, ".relaxed", FENCE), ("fence.sc.cta;", ".acq_rel", ""), ("", ".acq_rel", ""),
])  # fmt: skip
def test_the_last_of_four_warps_in_one_step_has_learnt_of_the_others(fence: str, semantics: str, after: str) -> None:
    report, (out,) = launch(LAST.format(fence=fence, semantics=semantics, after=after), OUT, block=128, shared=32)
    assert report.ok, report
    assert out[0] == 6


@pytest.mark.parametrize(("fence", "semantics", "after"), [
    ("", ".relaxed", ""), ("", ".acquire", ""), (FENCE, ".relaxed", ""), ("", ".release", ""),
])  # fmt: skip
def test_half_of_the_order_is_none(fence: str, semantics: str, after: str) -> None:
    report, _ = launch(LAST.format(fence=fence, semantics=semantics, after=after), OUT, block=128, shared=32)
    assert report.kinds() == {"shared memory race"}


# As libcu++'s pipeline ends: every lane has waited on the object, one lane of each warp counts, the last invalidates.
RETIRE = (
    hopper.init(64)
    + """
mbarrier.arrive.shared::cta.b64 _, [%r2];
W: mbarrier.test_wait.parity.shared::cta.b64 %p9, [%r2], 0; @!%p9 bra W;
{again}
match.any.sync.b32 %r6, 7, 0xffffffff; and.b32 %r7, %r0, 31; setp.ne.u32 %p1, %r7, 0; @%p1 bra END;
{fence} atom.shared.add.acquire.cta.u32 %r8, [%r1], 1; setp.ne.u32 %p2, %r8, 1; @%p2 bra END;
mbarrier.inval.shared::cta.b64 [%r2];
END: mov.u32 %r9, 0;
"""
)
ZERO = "@%p0 st.shared.u32 [%r1], 0; bar.sync 0;\n"


def retire(**parts: str) -> set[str]:
    return hopper.launch(ZERO + RETIRE.format(**{"again": "", "fence": FENCE, **parts}), OUT, block=64)[0].kinds()


def test_the_last_user_of_an_mbarrier_may_invalidate_it() -> None:
    assert not retire()
    again = "setp.lt.u32 %p3, %r0, 32; @%p3 mbarrier.test_wait.parity.shared::cta.b64 %p9, [%r2], 0;"
    assert not retire(again=again)
    assert retire(fence="", again=again) == {"shared memory race"}


def test_an_initialisation_by_another_lane_of_the_warp_still_needs_a_barrier() -> None:
    body = "@%p0 mbarrier.init.shared::cta.b64 [%r2], 1; {} setp.eq.u32 %p1, %r0, 5;\n"
    body += "@%p1 mbarrier.inval.shared::cta.b64 [%r2];"
    assert not hopper.launch(body.format("bar.warp.sync -1;"), OUT)[0].kinds()
    assert hopper.launch(body.format(""), OUT)[0].kinds() == {"shared memory race"}
