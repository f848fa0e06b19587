"""A phase's entry: the function with its attributes and arguments, and where in memory every buffer begins.

It takes a pointer per operand, where blocks share tiles a pointer to their region, another where they have words that
are zero between launches, and the phase's tensor maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llvmlite import ir

from tcomp.codegen.llvm.integers import Facts
from tcomp.codegen.llvm.types import I8, I32, I64, VOID, IrValue
from tcomp.codegen.nvptx.emitter import GLOBAL, GpuEmitter
from tcomp.codegen.nvptx.launch import OperandMap
from tcomp.codegen.nvptx.layout import SharedLayout
from tcomp.codegen.nvptx.phase_facts import constant_operands, threads_of
from tcomp.codegen.nvptx.threads.domain import GpuScope
from tcomp.ir.multicast import cluster_of
from tcomp.ir.regions import SHARED as SHARED_REGIONS, tile_offsets
from tcomp.ir.tile import Kernel, Statement

DYNAMIC = "tc_shared"
"""memory that all blocks share, with a pointer each behind the operands', where a kernel has such tiles"""


@dataclass(frozen=True)
class Entry:
    """The function, its pointers, and the addresses of its tensor maps."""

    function: ir.Function
    pointers: Sequence[IrValue]
    maps: Mapping[OperandMap, IrValue]


def declare_entry(
    module: ir.Module, symbol: str, kernel: Kernel, phase: Sequence[Statement], maps: tuple[OperandMap, ...]
) -> Entry:
    """The entry without a body."""
    pointers = len(kernel.operands) + sum(1 for s in SHARED_REGIONS if tile_offsets(kernel, s)[1])
    parameters = [GLOBAL] * pointers + [ir.PointerType()] * len(maps)
    function = ir.Function(module, ir.FunctionType(VOID, parameters), name=symbol)
    function.calling_convention = "ptx_kernel"
    # llvmlite knows no attributes with a value, but prints what its set holds.
    together = cluster_of(kernel, phase)
    clusters = f' "nvvm.cluster_dim"="{together.blocks},1,1"' if together is not None else ""
    set.add(function.attributes, f'nounwind "nvvm.reqntid"="{threads_of(kernel, phase)}"{clusters}')
    for argument in function.args[:pointers]:
        set.add(argument.attributes, "align 256")
    for argument in function.args[pointers:]:
        set.add(argument.attributes, 'byval([128 x i8]) align 64 "nvvm.grid_constant"')
    return Entry(function, function.args[:pointers], dict(zip(maps, function.args[pointers:], strict=True)))


def share_registers(entry: Entry, blocks: int) -> None:
    """So many blocks have an SM's registers. (The assembler only moves registers between warps of a kernel that says
    so.)"""
    set.add(entry.function.attributes, f'"nvvm.minctasm"="{blocks}"')


def scope_of(entry: Entry, em: GpuEmitter, kernel: Kernel, layout: SharedLayout, target: str) -> GpuScope:
    """The names that the entry's body starts with. Offsets into shared memory are added where the emitter stands."""
    b = em.here()
    shared = em.module.globals.get(DYNAMIC)
    roots: dict[str, IrValue] = dict(zip((o.name for o in kernel.operands), entry.pointers, strict=False))
    regions = iter(entry.pointers[len(kernel.operands) :])
    for offsets, size in (tile_offsets(kernel, s) for s in SHARED_REGIONS):
        region = next(regions) if size else None
        for name, at in offsets.items():
            roots[name] = b.gep(region, [ir.Constant(I64, at)], source_etype=I8)
    for name, at in layout.offsets.items():
        roots[name] = b.gep(shared, [ir.Constant(I32, at)], source_etype=I8)
        if name in layout.own:
            place = em.mul(em.side(), layout.own[name])
            roots[name] = em.here().gep(roots[name], [em.i64(place)], source_etype=I8)
    return GpuScope(
        buffers=kernel.buffers, roots=roots, variables={}, facts=Facts(),
        fma=True, registers=255, lanes_f32=1, features=frozenset(), threads=kernel.gpu.shape, target=target,
        constant=constant_operands(kernel),
        exchange={k: b.gep(shared, [ir.Constant(I32, at)], source_etype=I8) for k, at in layout.exchange.items()},
    )  # fmt: skip
