"""What ranks exchange of their memory: rows of [ranks, elements], from messages between any two of them.

Nothing here adds: the step's program "sum" does, on the device, each element on one rank, in the order of the ranks. So
the result is the same bits whoever adds, however messages travel, and whether or not all ranks then get it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tcomp.model.step import Rows, Slot

Array = NDArray[Any]
Region = Callable[[Slot, bool], AbstractContextManager[Array]]


class Links(Protocol):
    """Messages among `size` ranks, from and to host memory."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def exchange(self, sends: Sequence[tuple[int, Array]], receives: Sequence[tuple[int, Array]]) -> None:
        """Send arrays to ranks and receive into arrays from ranks, all at once; returns when both are done. Arrays are
        contiguous. Messages between two ranks arrive in the order in which they were sent. PeerFailed when one is gone
        or does not answer."""
        ...


class Exchange(Protocol):
    """Movements among all ranks of what lies in the memory of their executors, in order with the programs that these
    run. All ranks ask for the same, in the same order. PeerFailed when a rank is gone."""

    name: str
    """how it is done, for people"""
    ahead: int
    """steps whose results may still be out when the next one is asked for"""

    def scatter(self, moves: Sequence[tuple[Rows, Rows]]) -> None:
        """Row r of each first goes to rank r, into row `rank` of the second there. A rank's own is copied, too."""
        ...

    def gather(self, moves: Sequence[tuple[int, Rows]]) -> None:
        """Of each move: what lies at the first (bytes from the arena's beginning), as long as a row, goes to all ranks,
        into row `rank` there. It may lie there already."""
        ...

    def close(self) -> None:
        """The executor is to be closed: nothing that was asked for may keep it waiting for a rank that is gone."""
        ...


class HostExchange:
    """Rows in host memory, that messages go from and to as they are. `region` is an executor's (`executor.Inner`)."""

    name = "gloo"
    ahead = 0

    def __init__(self, links: Links, region: Region) -> None:
        self.links, self._region = links, region

    def scatter(self, moves: Sequence[tuple[Rows, Rows]]) -> None:
        own, size = self.links.rank, self.links.size
        with ExitStack() as opened:
            for source, to in moves:
                sent = [opened.enter_context(self._region(row(source, source.row(r)), False)) for r in range(size)]
                came = [opened.enter_context(self._region(row(to, to.row(r)), True)) for r in range(size)]
                came[own][...] = sent[own]
                self.links.exchange(_others(sent, own), _others(came, own))

    def gather(self, moves: Sequence[tuple[int, Rows]]) -> None:
        own, size = self.links.rank, self.links.size
        with ExitStack() as opened:
            for at, to in moves:
                sent = opened.enter_context(self._region(row(to, at), False))
                came = [opened.enter_context(self._region(row(to, to.row(r)), True)) for r in range(size)]
                if at != to.row(own):
                    came[own][...] = sent
                self.links.exchange(_others([sent] * size, own), _others(came, own))

    def close(self) -> None:
        pass


def row(rows: Rows, at: int) -> Slot:
    """As many elements as a row has, at a place, as a slot."""
    return Slot("", "", rows.dtype, (rows.elements,), at, rows.bytes, 0, 0)


def gathered(links: Links, values: Array) -> Array:
    """All ranks' values, [ranks, n]: small ones, of the host's."""
    rows = np.empty((links.size, values.size), values.dtype)
    rows[links.rank] = values.reshape(-1)
    others = _others(list(rows), links.rank)
    links.exchange([(r, rows[links.rank]) for r, _ in others], others)
    return rows


def _others(arrays: Sequence[Array], own: int) -> list[tuple[int, Array]]:
    """The arrays of the other ranks, by these."""
    return [(r, a) for r, a in enumerate(arrays) if r != own]
