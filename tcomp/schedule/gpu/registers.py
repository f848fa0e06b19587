"""Sums that cannot all be in the registers of a GPU's thread beside an asynchronous product are refused before anything
is compiled: what of them spills makes the assembler wait for each product where it is issued.

Counted is only what is certain, so nothing is refused that assembles without spills: the sums that a loop adds to in
every turn are whole in registers all the while, and so is the result of an asynchronous product until it is waited for.
Sums in tensor memory take none. Operands, addresses and pointwise temporaries come on top: what of those spills is
found when the kernel is assembled. (`autotune/gpu_registers.py` has a closer estimate.) Sums by other instructions may
spill: they run all the same, and heads of 256 channels are trained so on GPUs without wgmma.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tcomp.dsl.ast import Num, Span, accesses_in, names_in
from tcomp.dsl.errors import TcError
from tcomp.instructions import IN_TENSOR_MEMORY, INSTRUCTIONS
from tcomp.ir.pairs import paired
from tcomp.ir.tile import Axis, Compute, Fragment, Kernel, Loop, Scope
from tcomp.ir.walk import computes, loops_in
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.kernel_plan import KernelPlan

AWAITED = frozenset(i.family for i in INSTRUCTIONS if i.asynchronous) - IN_TENSOR_MEMORY
"""instructions whose results are in registers, and are not read before a wait"""
ROOM = 32
"""registers that a remedy leaves to everything else"""


@dataclass(frozen=True)
class Held:
    """A tile that is whole in registers. `axes` are those of the statement at `span` that makes it, a dimension each;
    there are so many `copies` of it."""

    name: str
    layout: Fragment
    itemsize: int
    axes: tuple[Axis, ...]
    copies: int
    span: Span

    def registers(self, blocks: Mapping[str, int] | None = None) -> int:
        """Registers a thread. `blocks` are other sizes of some axes."""
        shape = [min(_within(a), (blocks or {}).get(a.name, a.block)) for a in self.axes]
        values = math.prod(s.per_thread(n) for s, n in zip(self.layout.spreads, shape, strict=True))
        return self.copies * -(-values * self.itemsize // 4)


def check_registers(kernel: Kernel, plan: KernelPlan, machine: GpuMachine) -> None:
    """TcError where the sums of a loop are certain not to fit a thread's registers."""
    there, elsewhere = limit(kernel, machine), collected(kernel)
    for phase in kernel.phases:
        for loop in loops_in(phase):
            held = [h for h in held_by(loop, kernel) if h.name not in elsewhere] if loop.level != "grid" else []
            needed = sum(h.registers() for h in held)
            if needed > there:
                each = ", ".join(f"{h.registers()} for '{h.name}'" for h in held)
                raise TcError(
                    f"each thread would hold sums in {needed} registers at the same time ({each}), and has {there}",
                    held[0].span,
                    _remedy(held, plan, there),
                )


def limit(kernel: Kernel, machine: GpuMachine) -> int:
    """Registers that a thread of the kernel can have."""
    producer, warps = kernel.gpu.producer, kernel.gpu.shape.warps * kernel.gpu.sides
    if producer is None:
        return _shared_out(machine, warps)
    moved = machine.registers_moved(warps, producer.warps, producer.registers)
    return moved or _shared_out(machine, warps + producer.warps)


def held_by(loop: Loop, kernel: Kernel) -> list[Held]:
    """Of a loop with products that end later than they are issued: the sums that each turn adds to, and the largest
    other result of such a product. Nothing of other loops."""
    body, pair = list(computes(loop.body)), paired(loop)
    if not any(c.instruction in AWAITED for c in body):
        return []
    sums: dict[str, Held] = {}
    products: list[Held] = []
    for c in body:
        held = _held(c, kernel, 2 if c is pair else 1)
        if held is None:
            continue
        if all(_adds(d) for d in body if d.target.tensor == held.name):
            # (One sum may do for another of the same terms.)
            sums.setdefault(held.name if c.instruction in AWAITED else str((c.value, c.guard)), held)
        elif c.instruction in AWAITED:
            products.append(held)
    return [*{h.name: h for h in sums.values()}.values(), *sorted(products, key=Held.registers)[-1:]]


def collected(kernel: Kernel) -> set[str]:
    """Sums of a kernel that are in tensor memory."""
    return {c.target.tensor for phase in kernel.phases for c in computes(phase) if c.instruction in IN_TENSOR_MEMORY}


def _shared_out(machine: GpuMachine, warps: int) -> int:
    return min(machine.registers_per_thread, machine.registers_per_block // (32 * warps) // 8 * 8)


def _adds(c: Compute) -> bool:
    return c.accumulate or c.target.tensor in {a.tensor for a in accesses_in(c.value)}


def _held(c: Compute, kernel: Kernel, copies: int) -> Held | None:
    """What a statement makes, where that is a tile in registers, shared out among lanes, with an axis a dimension."""
    tile, own = kernel.buffers[c.target.tensor], {a.name: a for a in c.axes}
    layout = tile.layout
    if tile.scope is not Scope.REGISTERS or not isinstance(layout, Fragment):
        return None
    axes = tuple(own[n] for s in c.target.subscripts for n in sorted(names_in(s)) if n in own)
    if [a.block for a in axes] != list(tile.shape) or not any(s.lane for s in layout.spreads):
        return None
    return Held(tile.name, layout, tile.dtype.bytes, axes, copies, c.span)


def _within(axis: Axis) -> int:
    """Values of an axis that are within the tensor in some turn: what is always outside the assembler may leave out."""
    return min(axis.block, int(axis.stop.value)) if isinstance(axis.stop, Num) else axis.block


def _remedy(held: Sequence[Held], plan: KernelPlan, there: int) -> str:
    """The axis whose tile has to be cut least for the sums to fit, to a power of two, and where its size is written."""
    found: list[tuple[float, str]] = []
    for axis in {a.name: a for h in held for a in h.axes}.values():
        mapping = plan.mapping(axis.name, [h.name for h in held])
        tiles = [t for t in mapping.tiles if t.block is not None and t.block >= axis.block] if mapping else []
        sizes = (1 << n for n in range((axis.block - 1).bit_length() - 1, 3, -1))
        fits = (n for n in sizes if sum(h.registers({axis.name: n}) for h in held) + ROOM <= there)
        block = next(fits, None)
        if tiles and block is not None:
            size = next((s for s in plan.origins.sizes if s.value == tiles[-1].block and "->" not in s.name), None)
            place = f"{size.name}, line {size.span.line}" if size else f"line {tiles[-1].span.line}"
            text = f"take tiles of {block} of '{axis.name}' instead of {tiles[-1].block} ({place})"
            found.append((axis.block / block, text))
    return min(found)[1] if found else "take smaller tiles, or give some of the sums a kernel of their own"
