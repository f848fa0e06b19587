"""The layout of a shared tile that threads write in one order and read in another: where a warp's lanes meet least in
the same bank.

Rows padded to an odd number of 16-byte groups serve rows and columns of 32-bit elements. A tile of 8-bit elements that
is transposed is read a byte at a time, by lanes whose rows lie 8 or 16 apart, and whatever the pitch, several of these
share a bank. There rows follow each other, with a gap after each such group of them (and after each row, where rows are
as long as there are banks, so that lanes which write several at once meet in none). A vector of which lanes read eight
elements each has a gap of four after as many as there are banks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

from tcomp.ir.tile import Buffer, Layout, Pitched, Spread
from tcomp.schedule.staging.shared import padded

WARP = 32
WORD = 4
"""bytes of a bank"""
WIDEST = 16
"""bytes that a thread accesses at once"""
Use = tuple[Spread, ...]


def shared_layout(tile: Buffer, uses: Sequence[Use | None]) -> Layout:
    """The tile's layout, for how each access shares its dimensions out (None: otherwise than each by one axis)."""
    if len(tile.shape) == 1:
        return _vector_layout(tile, uses)
    usual = padded(tile.shape[-1], tile.dtype.bytes)
    if len(tile.shape) != 2 or tile.dtype.bytes >= WORD:
        return usual
    known = [u for u in uses if u is not None]
    if len(known) < len(uses):
        return usual
    return min((usual, *_skewed(tile, known)), key=lambda layout: sum(_conflicts(tile, layout, u) for u in known))


def _vector_layout(tile: Buffer, uses: Sequence[Use | None]) -> Layout:
    known = [u[0] for u in uses if u is not None]
    if len(known) < len(uses) or tile.dtype.bytes != WORD or tile.shape[0] % WARP:
        return tile.layout
    plain, skewed = (sum(_passes(u, gap) for u in known) for gap in (0, WIDEST // WORD))
    return Pitched(tile.shape[0], WARP, WIDEST // WORD) if skewed < plain else tile.layout


def _passes(use: Spread, gap: int) -> int:
    """Passes that a warp's accesses of 128 bits to a vector take, which has so many words more after each `WARP`."""
    wide = WIDEST // WORD
    if use.grain % wide:
        return 0
    lanes = [lane * use.grain for lane in range(use.lanes if use.lane else 1)]
    passes = 0
    for at in range(0, len(lanes), WARP // wide):
        banks = Counter((w + w // WARP * gap + i) % WARP for w in lanes[at : at + WARP // wide] for i in range(wide))
        passes += max(banks.values())
    return passes * use.grain // wide


def _skewed(tile: Buffer, uses: Sequence[Use]) -> Iterator[Pitched]:
    """Layouts with a gap after the rows that one lane takes, also with rows that end half-way round the banks."""
    size, columns = tile.dtype.bytes, tile.shape[1]
    if columns * size % WIDEST == 0:
        for group in sorted({u[0].grain for u in uses if u[0].lane and u[0].grain.bit_count() == 1}):
            for end, gap in product((0, WARP // 2 * WORD), (WORD, 2 * WORD, 4 * WORD)):
                yield Pitched(columns + end // size, group, gap // size)


def _conflicts(tile: Buffer, layout: Layout, use: Use) -> int:
    """Passes more than needed that a warp's accesses to the whole tile take."""
    size = tile.dtype.bytes
    pitch, group, skew = (
        (layout.pitch, layout.group, layout.skew) if isinstance(layout, Pitched) else (tile.shape[1], 1, 0)
    )
    n = min(use[1].grain, WIDEST // size)
    while pitch % n or skew % n:
        n //= 2
    across = max((s.lanes for s in use if s.lane == "x"), default=WARP // max(s.lanes for s in use))
    words: list[int] = []
    for lane in range(WARP):
        at = {"x": lane % across, "y": lane // across, "": 0}
        row, column = (at[s.lane] % s.lanes * s.grain for s in use)
        words.append((row * pitch + row // group * skew + column) * size // WORD)
    wide = max(1, n * size // WORD)
    extra = 0
    for first in range(0, WARP, WARP // wide):
        touched = {w + i for w in words[first : first + WARP // wide] for i in range(wide)}
        extra += max(Counter(w % WARP for w in touched).values()) - 1
    return extra * prod(s.per_thread(d) for s, d in zip(use, tile.shape, strict=True)) // n
