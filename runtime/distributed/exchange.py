"""Sums and copies of vectors among ranks, from messages between any two of them.

A vector is [ranks, n]: row r is rank r's share. Each element is summed by its owner in the order of the ranks, so the
result is the same bits whoever adds, however messages travel, and whether or not all ranks then get it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PIECE = 1 << 22
"""Elements of a share that are on their way at a time: bounds the memory for what others send"""


class Links(Protocol):
    """Messages among `size` ranks."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Send arrays to ranks and receive into arrays from ranks, all at once; returns when both are done. Arrays are
        contiguous. Messages between two ranks arrive in the order in which they were sent. PeerFailed when one is gone
        or does not answer."""
        ...


def add_up(links: Links, vector: Array, piece: int = PIECE) -> None:
    """Row `rank` becomes the sum of all ranks' rows of that number; the others stay. `vector` is f32 [ranks, n]."""
    n = vector.shape[1]
    came = np.empty((links.size, min(piece, n)), vector.dtype)
    for at in range(0, n, piece):
        now = vector[:, at : at + piece]
        there = came[:, : now.shape[1]]
        links.exchange([(r, now[r]) for r in _others(links)], [(r, there[r]) for r in _others(links)])
        parts = [now[r] if r == links.rank else there[r] for r in range(links.size)]
        total = there[links.rank]
        np.add(parts[0], parts[1], out=total)
        for part in parts[2:]:
            total += part
        now[links.rank] = total


def spread(links: Links, vector: Array) -> None:
    """Every rank gets row r from rank r. `vector` is [ranks, n], of any type."""
    own = vector[links.rank]
    links.exchange([(r, own) for r in _others(links)], [(r, vector[r]) for r in _others(links)])


def gathered(links: Links, values: Array) -> Array:
    """All ranks' values, [ranks, n]: small ones."""
    rows = np.empty((links.size, values.size), values.dtype)
    rows[links.rank] = values.reshape(-1)
    spread(links, rows)
    return rows


def _others(links: Links) -> list[int]:
    return [r for r in range(links.size) if r != links.rank]
