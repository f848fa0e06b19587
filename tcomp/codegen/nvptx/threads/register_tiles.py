"""Register tiles: one stack slot for each element that a thread has, which LLVM turns into a register."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llvmlite import ir

from tcomp.codegen.llvm.text import safe_name
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.codegen.nvptx.threads.evaluation import slot_type
from tcomp.dsl.ast import Span
from tcomp.ir.pairs import SECOND, paired
from tcomp.ir.tile import Buffer, Compute, Fragment, Kernel, Loop, Scope, Statement
from tcomp.ir.walk import accesses_of, statements_in


def give_tiles(em: GpuEmitter, scope: GpuScope, kernel: Kernel, phase: Sequence[Statement]) -> None:
    """The slots of all register tiles that a phase uses."""
    used = {a.tensor for s in statements_in(phase) if isinstance(s, Compute) for a in accesses_of(s)}
    for t in kernel.tiles:
        if t.name in used and t.scope is Scope.REGISTERS:
            give_registers(em, scope, t, kernel.span)
        if t.name in used and t.scope is Scope.SCRATCH:
            raise Unsupported(f"tile '{t.name}' is in a CPU core's scratch memory", kernel.span)
    for s in statements_in(phase):
        if isinstance(s, Loop) and (product := paired(s)) is not None:
            give_second(em, scope, product.target.tensor, kernel.span)


def give_registers(em: GpuEmitter, scope: GpuScope, t: Buffer, span: Span) -> None:
    """Make the tile's slots, with zeros in them, where the emitter stands. `Unsupported` without a layout."""
    if not isinstance(t.layout, Fragment):
        raise Unsupported(f"tile '{t.name}' is in registers without a layout for threads", span)
    count = 1
    for size, s in zip(t.shape, t.layout.spreads, strict=True):
        count *= s.per_thread(size)
    b = em.here()
    kind = slot_type(t.dtype)
    slots = [b.alloca(kind, name=f"{safe_name(t.name)}.{i}") for i in range(count)]
    for slot in slots:
        b.store(ir.Constant(kind, 0), slot)
    scope.fragments[t.name] = slots


def give_second(em: GpuEmitter, scope: GpuScope, name: str, span: Span) -> None:
    """The second of two register tiles that products of a pair of turns fill."""
    tile = replace(scope.buffers[name], name=name + SECOND)
    scope.buffers[tile.name] = tile
    give_registers(em, scope, tile, span)
    if name in scope.bounded:
        scope.bounded |= {tile.name}
    if name in scope.zeroed:
        scope.zeroed |= {tile.name}
