"""Register tiles: one stack slot for each element that a thread has, which LLVM turns into a register."""

from __future__ import annotations

from dataclasses import replace

from llvmlite import ir

from tcomp.codegen.nvptx.domain import GpuScope
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.evaluation import slot_type
from tcomp.dsl.ast import Span
from tcomp.ir.pairs import SECOND
from tcomp.ir.tile import Buffer, Fragment


def give_registers(em: GpuEmitter, scope: GpuScope, t: Buffer, span: Span) -> None:
    """Make the tile's slots, with zeros in them, where the emitter stands. `Unsupported` without a layout."""
    if not isinstance(t.layout, Fragment):
        raise Unsupported(f"tile '{t.name}' is in registers without a layout for threads", span)
    count = 1
    for size, s in zip(t.shape, t.layout.spreads, strict=True):
        count *= s.per_thread(size)
    b = em.here()
    kind = slot_type(t.dtype)
    slots = [b.alloca(kind, name=f"{_safe(t.name)}.{i}") for i in range(count)]
    for slot in slots:
        b.store(ir.Constant(kind, 0), slot)
    scope.fragments[t.name] = slots


def give_second(em: GpuEmitter, scope: GpuScope, name: str, span: Span) -> None:
    """The second of two register tiles that products of a pair of turns fill."""
    tile = replace(scope.buffers[name], name=name + SECOND)
    scope.buffers[tile.name] = tile
    give_registers(em, scope, tile, span)
    for known in ("bounded", "zeroed"):
        names: frozenset[str] = getattr(scope, known)
        setattr(scope, known, names | {tile.name} if name in names else names)


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
