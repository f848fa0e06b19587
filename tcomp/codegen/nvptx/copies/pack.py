"""`Pack`: all threads of a block copy a tile from memory to shared memory, in pieces of up to 128 bits.

Thread t copies pieces t, t + threads, ...; pieces are numbered along the source's contiguous axis first, so that
neighbouring lanes read neighbouring addresses. Elements past an axis's end become zero. "cp.async" pieces are copied
in the background by the memory system; the caller commits and awaits them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.integers import Known
from tcomp.codegen.llvm.tiles import Span, span_of
from tcomp.codegen.llvm.types import IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.threads import formats
from tcomp.codegen.nvptx.threads.addressing import Addressing, Place
from tcomp.codegen.nvptx.threads.domain import AxisPlace, GpuDomain, GpuScope
from tcomp.codegen.nvptx.threads.evaluation import GpuEvaluator, GpuGraph
from tcomp.dsl.ast import Access, Name, Num
from tcomp.ir.tile import SERIAL, Axis, Buffer, Pack, Pitched

UNROLLED = 16
"""pieces per thread that are written out; more are a loop"""


@dataclass
class Side:
    """One end of the copies: the source or the tile, over the same axes."""

    domain: GpuDomain
    addressing: Addressing
    place: Place


class PackGenerator:
    """Writes one Pack at the emitter's current place."""

    def __init__(self, em: GpuEmitter, scope: GpuScope, node: Pack) -> None:
        self.em, self.scope, self.pack = em, scope, node
        self.buffer: Buffer = scope.buffers[node.buffer]
        self.threads = em.threads.threads
        self.looping = False

    def generate(self) -> None:
        em, node = self.em, self.pack
        with em.frame():
            em.here()
            spans = {a.name: span_of(em, a, self.scope) for a in node.axes}
            self.source = self._side(node.axes, spans, node.source)
            inner = tuple(Axis(a.name, Num(0), Num(n), n) for a, n in zip(node.axes, self.buffer.shape, strict=True))
            whole = {a.name: Span(em.i64(0), a.block, Known.exact(a.block)) for a in inner}
            self.tile = self._side(inner, whole, Access(node.buffer, tuple(Name(a.name) for a in inner)))
            self.fast, self.n = self._piece()
            self._copies()

    def _side(self, axes: Sequence[Axis], spans: dict[str, Span], access: Access) -> Side:
        domain = GpuDomain(self.em, self.scope, self.em.depth, None, 1, spans=spans)
        for a in axes:
            domain.declare(a, spans[a.name].start)
        addressing = Addressing(domain)
        graph = GpuGraph(frozenset(domain.axes), addressing)
        GpuEvaluator(domain, graph, addressing)
        return Side(domain, addressing, addressing.place(access, graph))

    # ------------------------------------------------------------------------------------------ pieces

    def _piece(self) -> tuple[str, int]:
        """The axis that pieces lie along, and their elements."""
        source, domain = self.source.place, self.source.domain
        units = source.unit_axes()
        last = self.pack.axes[-1].name if self.pack.axes else ""
        fast = last if last in units or not units else units[0]
        if fast != last or last not in units or source.buffer.dtype is not self.buffer.dtype:
            return fast, 1
        # (Rows of a swizzled tile are whole granules, and no piece is larger than one.)
        pitch = self.buffer.layout.pitch if isinstance(self.buffer.layout, Pitched) else self.buffer.shape[-1]
        n = formats.WIDEST // self.buffer.dtype.bytes
        while n > 1:
            fits = pitch % n == 0 or len(self.buffer.shape) == 1
            whole = self.buffer.shape[-1] % n == 0 and domain.spans[fast].known.multiple_of(n)
            gathered = all(stride % n == 0 for _, stride in source.gathered)
            if fits and whole and gathered:
                for a in self.pack.axes:
                    # Any piece: its first element is a multiple of n along the fast axis, anywhere along the others.
                    step = n if a.name == fast else 1
                    domain.enter(a.name, AxisPlace(0, 0, 0, SERIAL, (0,), (None,), (False,), (None,), step))
                if domain.aligned(source.form, {a.name: 0 for a in self.pack.axes}, fast, n):
                    return fast, n
            n //= 2
        return fast, 1

    def _enter(self, at: dict[str, tuple[Int, int]], fast: str, n: int) -> None:
        """Set both domains to the piece whose first element has these coordinates (a value and a number)."""
        for a, size in zip(self.pack.axes, self.buffer.shape, strict=True):
            base, offset = at[a.name]
            if isinstance(base, int):
                base, offset = 0, base + offset
            known = self.source.domain.spans[a.name].known
            checked = known.lo is None or known.lo < size
            multiple = 0 if isinstance(base, int) else n if a.name == fast else 1
            for domain, check in ((self.source.domain, checked), (self.tile.domain, False)):
                level = self.em.depth if check or self.looping else 0
                domain.enter(a.name, AxisPlace(level, base, 0, SERIAL, (offset,), (None,), (check,), (None,), multiple))

    def _copies(self) -> None:
        """All pieces of this thread."""
        em = self.em
        pieces = math.prod(self.buffer.shape) // self.n
        turns = -(-pieces // self.threads)
        thread: Int = em.thread() if self.threads > 1 else 0
        if turns <= UNROLLED:
            for t in range(turns):
                number = t * self.threads
                if number + self.threads <= pieces:
                    self._copy(thread, self.threads - 1, number)
                else:
                    b = em.here()
                    some = b.icmp_signed("<", em.i64(thread), em.i64(pieces - number))
                    em.when(some, partial(self._copy, thread, self.threads - 1, number))
            return
        self.looping = True

        def body(base: Int) -> None:
            self._copy(base, pieces - 1, 0)

        em.repeat(thread, pieces, self.threads, body)

    def _copy(self, base: Int, most: int, number: int) -> None:
        """Piece base + number, where base is at most `most`."""
        em, n = self.em, self.n
        self._enter(self._coordinates(base, most, number), self.fast, n)
        point = {a.name: 0 for a in self.pack.axes}
        source = self.source.place
        to = self.tile.addressing.pointer(self.tile.place, point, self.fast, n)
        mask = self.source.domain.mask(point)
        size = n * self.buffer.dtype.bytes
        same = source.buffer.dtype is self.buffer.dtype
        if self.pack.by == "cp.async" and same and size in (4, 8, 16):
            pointer = self.source.addressing.pointer(source, point, self.fast, n)
            self._asynchronous(to, pointer, size, mask)
            return
        dtype = source.buffer.dtype
        pointer = self.source.addressing.pointer(source, point, self.fast, n)
        b = em.here()
        raw = b.load(pointer, typ=formats.access_type(dtype, n), align=size if same else dtype.bytes)
        if source.buffer.name in self.scope.constant:
            raw.set_metadata("invariant.load", em.module.add_metadata([]))
        if not same:
            raw = formats.pack(em, formats.unpack(em, raw, dtype, 1), self.buffer.dtype)
        if mask is not None:
            raw = b.select(mask, raw, ir.Constant(raw.type, None))
        b.store(raw, to, align=size)

    def _asynchronous(self, to: IrValue, source: IrValue, size: int, mask: IrValue | None) -> None:
        em = self.em
        b = em.here()
        cache = "cg" if size == 16 else "ca"
        text = f"cp.async.{cache}.shared.global [$0], [$1], {size}"
        if mask is None:
            em.effect(text + ";", "rl", [to, source])
        else:
            bytes_read = b.select(mask, em.i64(size), em.i64(0))
            em.effect(text + ", $2;", "rlr", [to, source, bytes_read])

    # ------------------------------------------------------------------------------------- coordinates

    def _coordinates(self, base: Int, most: int, number: int) -> dict[str, tuple[Int, int]]:
        """The first element of piece base + number, axis by axis: a value and a number to add to it."""
        names = [a.name for a in self.pack.axes]
        sizes = dict(zip(names, self.buffer.shape, strict=True))
        order = [self.fast, *(a for a in reversed(names) if a != self.fast)] if names else []
        at: dict[str, tuple[Int, int]] = {}
        for i, a in enumerate(order):
            step = self.n if a == self.fast else 1
            size = sizes[a] // step
            if i == len(order) - 1 or number % size + most < size:
                last = i == len(order) - 1
                own, offset = base, number if last else number % size
                base, most, number = 0, 0, 0 if last else number // size
            else:
                if number % size:
                    base, most, number = self._add(base, number), most + number, 0
                own, offset = self._divided(base, size, rest=True), 0
                base, most, number = self._divided(base, size, rest=False), most // size, number // size
            at[a] = (self._times(own, step), offset * step)
        return at

    def _level(self) -> int:
        return self.em.depth if self.looping else 0

    def _add(self, x: Int, number: int) -> Int:
        em = self.em
        return em.once(self._level(), ("sum", _name(x), number), lambda: em.add(x, number))

    def _times(self, x: Int, factor: int) -> Int:
        em = self.em
        return em.once(self._level(), ("product", _name(x), factor), lambda: em.mul(x, factor))

    def _divided(self, x: Int, size: int, rest: bool) -> Int:
        em = self.em
        if isinstance(x, int):
            return x % size if rest else x // size

        def make() -> IrValue:
            b = em.builder
            return b.urem(x, em.i64(size)) if rest else b.udiv(x, em.i64(size))

        return em.once(self._level(), ("rest" if rest else "quotient", _name(x), size), make)


def _name(x: Int) -> int | str:
    return x if isinstance(x, int) else f"%{id(x)}"
