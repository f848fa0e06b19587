"""An executor of a step that ranks divide: its own device runs the programs, and between them it exchanges with others.

    micro-batches | shares to their ranks | sum | norm | sums to all | summed gradients to all | update
    micro-batches | shares to their ranks | sum | norm | sums to all | update of the share | parameters to all

The first line is plain data parallel, the second ZeRO-1. Both have the same sums in the same order, so their results
are bitwise the same. Of a tensor that is divided (a moment, a master copy) each rank keeps a part; it is read and
written by its name as if it were whole, read on rank 0 only, while the others serve it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tcomp.errors import UserError
from tcomp.model.step import Division, FlatVector, Slot, Step
from tcomp.runtime.distributed.exchange import Exchange, Links, gathered
from tcomp.runtime.distributed.shares import owners
from tcomp.runtime.executor import Executor, Reading
from tcomp.runtime.peers import LeadFailed, PeerFailed
from tcomp.runtime.values import numpy_type, stored

Array = NDArray[Any]
_DONE, _FAILED = -1, -2


class Inner(Executor, Protocol):
    """An executor that also lets its memory be read and written by place."""

    def region(self, slot: Slot, write: bool) -> AbstractContextManager[Array]:
        """The elements of any slot, in its shape; with `write`, what is put there is in the memory behind it."""
        ...


class RankExecutor:
    """Rank `links.rank`'s executor; `inner` runs the step as that rank has it (`shares.step_of`). What ranks say goes
    by `links`, what their memory has by `exchange`."""

    def __init__(self, inner: Inner, links: Links, exchange: Exchange) -> None:
        assert inner.step.division is not None and inner.step.division.ranks == links.size
        self.inner, self.links, self.exchange = inner, links, exchange
        self.division: Division = inner.step.division
        self._step = _as_whole(inner.step)
        self._parts = list(self.division.parts)

    @property
    def step(self) -> Step:
        """The step, divided tensors as slots of their whole shape (which have no place)."""
        return self._step

    # --------------------------------------------------------------------------------------------- runs

    def run(self, program: str) -> None:
        self.inner.run(program)

    def run_step(self, program: str) -> None:
        d, spread = self.division, [(rows.row(self.rank), rows) for rows in self.division.spread]
        self.inner.run(program)
        self.exchange.scatter(d.scattered)
        self.exchange.gather(d.joined)
        self.inner.run("sum")
        if d.sums is not None:
            self.inner.run("norm")
            self.exchange.gather([(d.sums.row(self.rank), d.sums)])
        if not d.zero:
            self.exchange.gather(spread)
        self.inner.run("update")
        if d.zero:
            self.exchange.gather(spread)

    # ------------------------------------------------------------------------------------------- values

    def read(self, name: str) -> Array:
        if name not in self.division.parts:
            return self.inner.read(name)
        slot = self._step.slots[name]
        return self.read_part(name, 0, prod(slot.shape)).reshape(slot.shape)

    def read_part(self, name: str, start: int, stop: int) -> Array:
        """As elsewhere; of a divided tensor on rank 0 only, while the others `serve`."""
        if name not in self.division.parts:
            return self.inner.read_part(name, start, stop)
        assert self.links.rank == 0
        out = np.empty(stop - start, numpy_type(self._step.slots[name].dtype))
        pieces = list(self._pieces(name, start, stop))
        for _, low, high, place in (p for p in pieces if p[0] == 0):
            out[low:high] = self._own(name, place, high - low)
        self._say(self._parts.index(name), start, stop)  # from here on others wait until all of it has come
        for rank, low, high, _ in (p for p in pieces if p[0]):
            self.links.exchange([], [(rank, out[low:high])])
        return out

    def write(self, name: str, value: ArrayLike) -> None:
        if name not in self.division.parts:
            self.inner.write(name, value)
            return
        slot = self._step.slots[name]
        self._keep(name, np.broadcast_to(stored(value, slot.dtype), slot.shape))

    @contextmanager
    def fill(self, name: str) -> Iterator[Array]:
        if name not in self.division.parts:
            with self.inner.fill(name) as array:
                yield array
            return
        slot = self._step.slots[name]
        whole = np.empty(slot.shape, numpy_type(slot.dtype))
        yield whole
        self._keep(name, whole)

    def batch(self) -> AbstractContextManager[dict[str, Array]]:
        return self.inner.batch()

    def fetch(self, name: str) -> Reading:
        return self.inner.fetch(name)

    def wait(self) -> None:
        self.inner.wait()

    def close(self) -> None:
        self.exchange.close()
        self.inner.close()

    def _keep(self, name: str, whole: Array) -> None:
        """Keep this rank's part of a whole tensor."""
        flat = whole.reshape(-1)
        for rank, low, high, place in self._pieces(name, 0, flat.size):
            if rank == self.links.rank:
                v = self.division.vectors[self.division.parts[name].vector]
                with self.inner.region(_slot(v, place, high - low), write=True) as own:
                    own[...] = flat[low:high]

    def _own(self, name: str, place: int, count: int) -> Array:
        """Elements of what this rank keeps of a tensor."""
        v = self.division.vectors[self.division.parts[name].vector]
        with self.inner.region(_slot(v, place, count), write=False) as values:
            return np.ascontiguousarray(values)

    def _pieces(self, name: str, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """Rank, first and last + 1 (from `start` on) and place of each part of elements start .. stop - 1."""
        part = self.division.parts[name]
        for o in owners(self.division, part.start + start, stop - start):
            yield o.rank, o.start, o.stop, o.place

    # ------------------------------------------------------------------------------------ with the others

    def agree(self, loss: float, stop: bool) -> tuple[float, bool]:
        """`Peers.agree`."""
        rows = gathered(self.links, np.array([loss, float(stop)]))
        return float(rows[:, 0].sum()) / self.links.size, bool(rows[:, 1].any())

    def joined(self, values: Sequence[float]) -> list[float]:
        """`Peers.joined`."""
        return [float(v) for v in gathered(self.links, np.array(values, np.float64)).T.reshape(-1)]

    def check_alike(self) -> None:
        """`Peers.check_alike`."""
        check = 0
        for name in self.inner.step.slots:
            slot = self._step.slots.get(name)
            if slot is not None and slot.kind in ("parameter", "master", "state"):
                with self.inner.region(slot, write=False) as values:
                    check = zlib.crc32(np.ascontiguousarray(values).tobytes(), check)
        if len(set(self.joined([check]))) > 1:
            raise UserError(
                "the ranks' parameters are not the same bits",
                "train on machines that are alike, from the same files; a run goes on from its last checkpoint",
            )

    @property
    def ahead(self) -> int:
        """`Peers.ahead`."""
        return self.exchange.ahead

    @property
    def rank(self) -> int:
        return self.links.rank

    @property
    def size(self) -> int:
        return self.links.size

    def lead(self, work: Callable[[], None]) -> None:
        """`Peers.lead`."""
        if self.links.rank:
            self._serve()
            return
        try:
            work()
        except PeerFailed:  # the others find that out themselves, and any end of this process
            raise
        except UserError:
            self._say(_FAILED, 0, 0)
            raise
        self._say(_DONE, 0, 0)

    def _serve(self) -> None:
        """Send rank 0 what it reads of divided tensors, until it is done."""
        asked = np.empty(3, np.int64)
        while True:
            self.links.exchange([], [(0, asked)])
            number, start, stop = (int(x) for x in asked)
            if number == _FAILED:
                raise LeadFailed("rank 0 could not do what all wait for", "look at its message")
            if number == _DONE:
                return
            for rank, low, high, place in self._pieces(self._parts[number], start, stop):
                if rank == self.links.rank:
                    self.links.exchange([(0, self._own(self._parts[number], place, high - low))], [])

    def _say(self, number: int, start: int, stop: int) -> None:
        """Tell all others what rank 0 reads next, or that it is done."""
        asked = np.array([number, start, stop], np.int64)
        self.links.exchange([(r, asked) for r in range(1, self.links.size)], [])


def _as_whole(step: Step) -> Step:
    """The step with divided tensors as slots of their whole shape, in the place of what a rank keeps of them."""
    d = step.division
    assert d is not None
    if not d.parts:
        return step
    kept = {v.offset: vector for vector, v in d.vectors.items() if v.sharded}
    slots: dict[str, Slot] = {}
    for name, slot in step.slots.items():
        vector = kept.get(slot.offset, "") if slot.kind in ("state", "master") else ""
        if not vector:
            slots[name] = slot
        for n, part in d.parts.items():
            if part.vector == vector:
                size = prod(part.shape) * slot.dtype.bytes
                slots[n] = Slot(n, part.kind, slot.dtype, part.shape, slot.offset, size, 0, 0)
    return replace(step, slots=slots)


def _slot(v: FlatVector, start: int, elements: int) -> Slot:
    """Elements of a flat vector as a slot."""
    size = v.dtype.bytes
    return Slot("", "", v.dtype, (elements,), v.offset + start * size, elements * size, 0, 0)
