"""Which results of threads are dealt out to be joined (`dealing.py`), by how many threads, and in how much memory."""

from __future__ import annotations

import pytest

from tcomp.codegen.nvptx.threads.dealing import Dealing, dealing
from tcomp.codegen.nvptx.threads.plan import Sharing
from tcomp.ir.blocks import ThreadShape


def over_rows(each: int, shape: ThreadShape, parallel: str = "lane.x", **more: str) -> Dealing | None:
    """Columns along `parallel`, rows along all that is left of the block but `more["unused"]`."""
    unused = frozenset(more.get("unused", "").split())
    present = {"lane.x": shape.lanes_x, "lane.y": shape.lanes_y, "warp.x": shape.warps_x, "warp.y": shape.warps_y}
    reduced = frozenset(d for d, n in present.items() if n > 1) - set(parallel.split()) - unused
    return dealing(each, Sharing(frozenset(parallel.split()), reduced, reduced | unused), shape)


@pytest.mark.parametrize(
    ("each", "shape", "helpers", "pitch"),
    [
        (16, ThreadShape(1, 16, 8, 4), 4, 128 + 8),
        (8, ThreadShape(1, 16, 16, 2), 4, 128 + 8),
        (16, ThreadShape(1, 4, 32, 1), 1, 512),  # (128 threads for 512 points)
        (4, ThreadShape(1, 18, 32, 1), 2, 128 + 16),  # 18 parts: no four helpers have as many each
        (4, ThreadShape(1, 16, 8, 4), 8, 32 + 4),  # more helpers would read from one bank
    ],
)
def test_points_are_joined_by_as_many_threads_as_there_are(
    each: int, shape: ThreadShape, helpers: int, pitch: int
) -> None:
    dealt = over_rows(each, shape)
    assert dealt is not None and (dealt.helpers, dealt.pitch) == (helpers, pitch)
    assert dealt.parts == shape.warps * shape.lanes_y and dealt.points == each * shape.lanes_x
    assert dealt.bytes == 4 * dealt.parts * pitch and dealt.neighbours * helpers == 32


@pytest.mark.parametrize(
    ("each", "shape", "others"),
    [
        (4, ThreadShape(1, 15, 8, 4), {}),  # 60 parts to read
        (18, ThreadShape(1, 16, 8, 4), {}),  # no whole vectors
        (16, ThreadShape(1, 16, 4, 8), {}),  # four lanes with results of their own: eight write at a time
        (16, ThreadShape(2, 16, 8, 4), {"parallel": "lane.x warp.x"}),  # warps with results of their own
        (16, ThreadShape(2, 16, 8, 4), {"unused": "warp.x"}),  # equal parts, of which one counts
    ],
)
def test_threads_join_their_own_otherwise(each: int, shape: ThreadShape, others: dict[str, str]) -> None:
    assert over_rows(each, shape, **others) is None
