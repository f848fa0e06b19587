"""A `Compute` marked `use INSTRUCTION` on a CPU: are its operands packed as the instruction reads them?

acc[m, n] += sum k: X.packed[m, k] * W.packed[n, k]      both tiles bf16, k in groups of two (`Panels.group`)

An operand that is not read a vector at a time may stay where it is (`stage X in packed at m by widening`) if its
groups lie whole there: k is what its rows run along, and even.
So may a temporary's tile whose rows run along k (`w[q, k]`, in bf16), which ends with a whole group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.dsl.ast import Access, DType, Name, names_in
from tcomp.instructions.matching import Factor, MatchError, factors, instruction_for, types_of
from tcomp.instructions.vector import VECTOR, VectorInstruction
from tcomp.ir.tile import Axis, Buffer, Compute, Panels, RowMajor, Scope


def vector_instruction(family: str) -> VectorInstruction | None:
    """The declaration of that name, on whatever target."""
    return next((i for i in VECTOR if i.family == family), None)


def match_vector(
    c: Compute, buffers: Mapping[str, Buffer], target: str, tiles: Mapping[str, Sequence[int]], staged: frozenset[str]
) -> VectorInstruction:
    """The instruction that computes `c` on a CPU target. MatchError for none.

    `tiles` are the sizes of loops' tiles, `staged` the tensors that the schedule packs where that is of use.
    """
    result = c.target.tensor.partition(".sum")[0]
    pair = factors(c.value)
    if pair is None or c.reducer != "sum":
        raise MatchError(
            f"'{result}' is not a sum of products of two tensors",
            "give other factors an equation of their own, not inlined",
        )
    if c.guard is not None:
        raise MatchError(
            f"'{result}' sums under a condition",
            "make a factor zero outside it: select(condition, x, 0.0) in its own equation",
        )
    types = [f.dtype(buffers[f.access.tensor]) for f in pair]
    found = instruction_for(c.instruction, types[0], types[1], target, VECTOR)
    if found is None:
        shown = " by ".join(f"{t} ('{_shown(f)}')" for t, f in zip(types, pair, strict=True))
        takes = types_of(c.instruction, target, VECTOR)
        hint = f"it takes {takes} there: store both operands so" if takes != "nothing" else "leave out the `use` line"
        raise MatchError(f"{c.instruction} does not multiply {shown} on {target}", hint)
    k = reduced_axis(c)
    if k.lanes > 1:
        raise MatchError(
            f"loop '{k.name}' of '{result}' is mapped to vec and summed over", "map an index of the result to vec"
        )
    odd = [t for t in tiles.get(k.name, ()) if t % found.group]
    if odd:
        raise MatchError(
            f"loop '{k.name}' has tiles of {odd[0]}; {found.family} takes {found.group} values of it at a time",
            f"choose a tile that is a multiple of {found.group}",
        )
    for f in pair:
        named = f.access.tensor in staged or tile_in_groups(buffers[f.access.tensor], f.access, k.name, found.group)
        if not named or not _reads_in_place(c, f, found, k, buffers):
            _check_packed(c, f, found, k, buffers)
    if buffers[c.target.tensor].dtype is not DType.F32:
        raise MatchError(
            f"'{result}' is {buffers[c.target.tensor].dtype}; {found.family} adds up in f32",
            "give the sum an equation of its own in f32 and round in a second one; leave out a cast of it",
        )
    return found


def reduced_axis(c: Compute) -> Axis:
    """The one axis that a Compute sums over."""
    reduced = [a for a in c.axes if a.name in c.reduced]
    if len(reduced) != 1:
        listing = ", ".join(a.name for a in reduced) or "nothing"
        result = c.target.tensor.partition(".sum")[0]
        raise MatchError(
            f"'{result}' sums over {listing} within a tile; the instruction over one index",
            "map the other reduced indices to seq(1)",
        )
    return reduced[0]


def _reads_in_place(c: Compute, f: Factor, found: VectorInstruction, k: Axis, buffers: Mapping[str, Buffer]) -> bool:
    """Do an operand's groups lie whole in memory, and is one word of it used for a whole vector?"""
    vector = {a.name for a in c.axes if a.lanes > 1}
    rows = f.access.subscripts[:-1]
    place = buffers[f.access.tensor], f.access, k.name, found.group
    whole = groups_lie_whole(*place) or tile_in_groups(*place)
    return f.cast is None and not any(names_in(s) & vector for s in rows) and whole


def _check_packed(c: Compute, f: Factor, found: VectorInstruction, k: Axis, buffers: Mapping[str, Buffer]) -> None:
    layout = buffers[f.access.tensor].layout
    rows = {a.name for a in c.axes} - c.reduced
    packed = isinstance(layout, Panels)
    if not packed and not any(names_in(s) & rows for s in f.access.subscripts):
        raise MatchError(
            f"operand '{_shown(f)}' has no index of the result, and its rows are no whole groups of {found.group}",
            f"let them be, or leave out the `use {found.family}` line",
        )
    if f.cast is not None or not isinstance(layout, Panels) or layout.group != found.group:
        raise MatchError(
            f"operand '{_shown(f)}' is not packed; {found.family} reads groups of {found.group} values of {k.name}",
            f"stage it in the loop around: stage {_shown(f)} in packed at {k.name}",
        )
    if k.name not in names_in(f.access.subscripts[layout.grouped]):
        raise MatchError(
            f"operand '{_shown(f)}' is packed along another index than {k.name}",
            f"use {found.family} for one equation that reads it in this loop",
        )


def groups_lie_whole(source: Buffer, access: Access, k: str, group: int) -> bool:
    """Is every group of k's values, from a multiple of the group on, one word of a bf16 tensor in memory?"""
    plain = isinstance(source.layout, RowMajor) and source.dtype is DType.BF16 and source.shape[-1] % group == 0
    elsewhere = any(k in names_in(s) for s in access.subscripts[:-1])
    return plain and access.subscripts[-1] == Name(k) and not elsewhere


def tile_in_groups(buffer: Buffer, access: Access, k: str, group: int) -> bool:
    """Is each group of k neighbours in a row of the tile, which ends with a whole one?"""
    own = [k in names_in(s) for s in access.subscripts]
    whole = (
        buffer.scope is Scope.SCRATCH and buffer.layout == RowMajor() and bool(own) and buffer.shape[-1] % group == 0
    )
    return whole and own[-1] and not any(own[:-1])


def _shown(f: Factor) -> str:
    """The tensor as the schedule's writer knows it."""
    return f.access.tensor.partition(".packed")[0]
