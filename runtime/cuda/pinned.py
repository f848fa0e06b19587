"""What ranks exchange of GPUs' memory, through pinned host memory: with any GPU and any build of torch.

    piece 0   out of the GPU | messages | into the GPU
    piece 1                  | out      | messages | into
    piece 2                             | out      | messages | into

Two pieces are in hand at a time. The host waits for messages, and for a piece to be out; never for one to be in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from cuda.bindings import driver as cu

from tcomp.model.step import Rows
from tcomp.runtime.cuda.context import Context
from tcomp.runtime.cuda.driver import call
from tcomp.runtime.distributed.exchange import Links
from tcomp.runtime.values import Array

MOST = 32 << 20
"""Bytes of a piece, one way, of all ranks together: pinned are four times as many"""
_ALIGNMENT = 256


@dataclass(frozen=True)
class _Piece:
    """`size` bytes at each device address: those at `sent[i]` go to the ranks `to[i]`, those that come from a rank to
    `came` of it."""

    size: int
    sent: tuple[int, ...]
    to: tuple[tuple[int, ...], ...]
    came: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Half:
    """Pinned memory for a piece."""

    out: Array
    into: Array
    is_out: Any  # event: the piece is out of the GPU
    is_in: Any  # event: what has come is in the GPU


class PinnedExchange:
    """`exchange.Exchange`. `arena` is the device address that rows' offsets count from, `longest` the bytes of the
    longest row; `faults` reports what the driver says of kernels before."""

    name = "gloo through host memory"
    ahead = 1

    def __init__(
        self,
        links: Links,
        context: Context,
        arena: int,
        longest: int,
        faults: Callable[[], AbstractContextManager[None]],
        most: int = MOST,
    ) -> None:
        self._links, self._context, self._arena, self._faults = links, context, arena, faults
        self._others = [r for r in range(links.size) if r != links.rank]
        count = len(self._others)
        self._each = min(-(-longest // _ALIGNMENT), max(1, most // count // _ALIGNMENT)) * _ALIGNMENT
        self._halves = [
            _Half(context.pinned(size), context.pinned(size), context.event(), context.event())
            for size in (count * self._each,) * 2
        ]

    def scatter(self, moves: Sequence[tuple[Rows, Rows]]) -> None:
        own, others = self._links.rank, self._others
        with self._faults():
            for source, to in moves:
                self._within(source.row(own), to.row(own), to.bytes)
            self._exchange(
                [
                    _Piece(
                        n,
                        tuple(self._arena + source.row(r) + at for r in others),
                        tuple((r,) for r in others),
                        tuple((r, self._arena + to.row(r) + at) for r in others),
                    )
                    for source, to in moves
                    for at, n in self._cut(to.bytes)
                ]
            )

    def gather(self, moves: Sequence[tuple[int, Rows]]) -> None:
        own, others = self._links.rank, self._others
        with self._faults():
            for place, to in moves:
                self._within(place, to.row(own), to.bytes)
            self._exchange(
                [
                    _Piece(
                        n,
                        (self._arena + place + at,),
                        (tuple(others),),
                        tuple((r, self._arena + to.row(r) + at) for r in others),
                    )
                    for place, to in moves
                    for at, n in self._cut(to.bytes)
                ]
            )

    def close(self) -> None:
        """Nothing waits on the GPU for others."""

    def _within(self, source: int, to: int, size: int) -> None:
        """Copy a rank's own row."""
        if source != to:
            call(cu.cuMemcpyDtoDAsync, self._arena + to, self._arena + source, size, self._context.compute)

    def _cut(self, size: int) -> Iterator[tuple[int, int]]:
        """First byte and bytes of each part of a row."""
        return ((at, min(self._each, size - at)) for at in range(0, size, self._each))

    def _exchange(self, pieces: Sequence[_Piece]) -> None:
        for i, piece in enumerate(pieces):
            if i == 0:
                self._take_out(piece, self._halves[0])
            if i + 1 < len(pieces):
                self._take_out(pieces[i + 1], self._halves[(i + 1) % 2])
            self._pass_on(piece, self._halves[i % 2])

    def _take_out(self, piece: _Piece, half: _Half) -> None:
        for k, address in enumerate(piece.sent):
            host = half.out[k * self._each :]
            call(cu.cuMemcpyDtoHAsync, host.ctypes.data, address, piece.size, self._context.compute)
        call(cu.cuEventRecord, half.is_out, self._context.compute)

    def _pass_on(self, piece: _Piece, half: _Half) -> None:
        sent = [half.out[k * self._each :][: piece.size] for k in range(len(piece.sent))]
        came = [half.into[k * self._each :][: piece.size] for k in range(len(piece.came))]
        self._context.until(half.is_in)
        self._context.until(half.is_out)
        self._links.exchange(
            [(r, a) for a, ranks in zip(sent, piece.to, strict=True) for r in ranks],
            [(r, a) for (r, _), a in zip(piece.came, came, strict=True)],
        )
        for (_, address), host in zip(piece.came, came, strict=True):
            call(cu.cuMemcpyHtoDAsync, address, host.ctypes.data, piece.size, self._context.compute)
        call(cu.cuEventRecord, half.is_in, self._context.compute)
