"""Many warps that read one place, and a writer who must know of each of them (and of no one else)."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu.races import Sets
from tests.runtime.vgpu.hopper import init, launch, wait

# The first 3 or 4 warps read a word, each says so at an mbarrier; warp 4 waits for them and writes; others do neither.
BODY = """
@%p0 st.shared.u32 [%r1], 7;
{init}
setp.ge.u32 %p1, %r3, {readers}; @%p1 bra REST;
mov.u32 %r4, 0;
READ: ld.shared.u32 %r10, [%r1]; add.u32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, %r3; @%p2 bra READ;
bar.warp.sync -1; and.b32 %r5, %r0, 31; setp.eq.u32 %p3, %r5, 0;
setp.ne.u32 %p4, %r3, {missing}; and.pred %p3, %p3, %p4;
@%p3 mbarrier.arrive.shared::cta.b64 _, [%r2];
bra END;
REST:
setp.ne.u32 %p1, %r0, 128; @%p1 bra END;
{wait}
st.shared.u32 [%r1], 8;
END:
"""


@pytest.mark.parametrize(("readers", "missing"), [(r, n) for r in (3, 4) for n in (*range(r), None)])
def test_a_writer_needs_to_know_of_every_reader(readers: int, missing: int | None) -> None:
    """Warps 2 and 3 read once more after 0 and 1, and 3 at last alone."""
    arriving = readers if missing is None else readers - 1
    body = BODY.format(init=init(arriving), readers=readers, missing=9 if missing is None else missing,
                       wait=wait(0, "0", "W"))  # fmt: skip
    report, _ = launch(body, np.zeros(4, np.uint32), block=192)
    assert ("shared memory race" in report.kinds()) == (missing is not None), report


# One warp after the other reads, says so at an mbarrier, and lets the next one read.
IN_TURN = """
@%p0 st.shared.u32 [%r1], 7;
{init}
setp.ge.u32 %p1, %r3, 4; @%p1 bra REST;
setp.eq.u32 %p2, %r3, 0; @%p2 bra READ;
barrier.cta.sync.aligned %r3, 64;
READ: ld.shared.u32 %r10, [%r1];
bar.warp.sync -1; and.b32 %r5, %r0, 31; setp.eq.u32 %p3, %r5, 0;
setp.lt.u32 %p4, %r3, {arriving}; and.pred %p3, %p3, %p4;
@%p3 mbarrier.arrive.shared::cta.b64 _, [%r2];
setp.eq.u32 %p2, %r3, 3; @%p2 bra END;
add.u32 %r4, %r3, 1;
barrier.cta.arrive.aligned %r4, 64;
bra END;
REST:
setp.ne.u32 %p1, %r0, 128; @%p1 bra END;
{wait}
st.shared.u32 [%r1], 8;
END:
"""


@pytest.mark.parametrize("arriving", [3, 4])
def test_readers_in_turn_are_known_by_their_own_last_reads(arriving: int) -> None:
    body = IN_TURN.format(init=init(arriving), arriving=arriving, wait=wait(0, "0", "W"))
    report, _ = launch(body, np.zeros(4, np.uint32), block=160)
    assert ("shared memory race" in report.kinds()) == (arriving < 4), report


@pytest.mark.parametrize("warps", [4, 63, 64, 200])
def test_who_reads_a_word_beside_others_is_known_in_clusters_of_any_size(warps: int) -> None:
    sets = Sets(np.arange(warps))
    key, reader = np.array([7, 5, 5, 6, 7, 7, 5]), np.array([1, 0, warps - 1, 2, 2, warps - 1, 0])
    granules, codes = sets.of_readers(key, reader, 9)
    assert granules.tolist() == [5, 7]
    found = [[x.tolist() for x in sets.readers(code)] for code in codes.tolist()]
    assert found == [[[0, warps - 1], [9, 9]], [[1, 2, warps - 1], [9, 9, 9]]]
