"""What the copy engine (TMA) can stage: checked on a lowered kernel, so that a refusal names operand and line."""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.dsl.ast import Access
from tcomp.dsl.errors import TcError
from tcomp.dsl.expressions import accesses_in
from tcomp.instructions import IN_TENSOR_MEMORY
from tcomp.ir.layout import RowMajor, Shifted, Swizzled
from tcomp.ir.tensor_map import MAX_BOX, tile_map
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Statement, Unpack
from tcomp.ir.walk import computes, statements_in
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.tree.nest import disjoint

FIRST_SM = 90


def check_tensor_copies(kernel: Kernel, machine: GpuMachine) -> None:
    """TcError at a `stage ... by tma` that the machine, the operand's shape or the kernel's loops do not allow."""
    for phase in kernel.phases:
        written = [s.target for s in statements_in(phase) if isinstance(s, Compute)]
        for s in statements_in(phase):
            if isinstance(s, Loop) and s.level == "pipe":
                _one_way(s)
            if isinstance(s, Pack) and s.by == "tma":
                _check(s, kernel, machine, written, _only_by_tma(s.buffer, phase))
            if isinstance(s, Unpack):
                _check(s.reversed, kernel, machine, written, False)


def _only_by_tma(tile: str, phase: Sequence[Statement]) -> bool:
    """Does an instruction read the tile that takes no other copies? Then no remedy may name them."""
    reading = (c for c in computes(phase) if c.instruction in IN_TENSOR_MEMORY)
    return any(a.tensor == tile for c in reading for a in accesses_in(c.value))


def _check(pack: Pack, kernel: Kernel, machine: GpuMachine, written: Sequence[Access], only: bool) -> None:
    """`only`: the tile has to come by tma."""
    name = pack.source.tensor
    if machine.sm < FIRST_SM:
        raise TcError(
            f"{machine.target} has no tensor copies: {name} cannot be staged by tma",
            pack.span,
            "stage it by cp.async, and keep tma for a schedule on sm_90a",
        )
    if any(a.tensor == name and not disjoint(a, pack.source) for a in written):
        raise TcError(
            f"{name} cannot be staged by tma: this kernel writes it",
            pack.span,
            "write it in a kernel of its own" if only else "stage it by cp.async, or write it in a kernel of its own",
        )
    if not isinstance(kernel.buffer(pack.buffer).layout, RowMajor | Shifted | Swizzled):
        raise TcError(
            f"{name} cannot be staged by tma: rows of its tile are padded, and a tensor copy writes none",
            pack.span,
            "leave `pad` out: a tile that comes by tma is swizzled",
        )
    try:
        tile_map(pack, kernel.buffer(pack.buffer), kernel.buffer(name))
    except ValueError as e:
        wide = [a.name for a in pack.axes[:-1] if a.block > MAX_BOX]
        hint = "choose tiles (and for strides: dimensions) that tensor maps can describe"
        if wide:
            hint = f"take tiles of at most {MAX_BOX} of '{wide[0]}'"
        raise TcError(
            f"{name} cannot be staged by tma: {e}", pack.span, hint + ("" if only else ", or stage it by cp.async")
        ) from None


def _one_way(loop: Loop) -> None:
    """The tiles of one pipe loop arrive by one kind of copy: their rings turn together."""
    packs = [s for s in loop.body if isinstance(s, Pack)]
    other = [p for p in packs if p.by != "tma"]
    if other and len(other) < len(packs):
        raise TcError(
            f"{other[0].source.tensor} is staged by {other[0].by} in a pipe loop where other tiles come by tma",
            other[0].span,
            f"stage all tiles of this loop by tma, {', '.join(p.source.tensor for p in other)} too, or none",
        )
