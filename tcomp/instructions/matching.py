"""A `Compute` marked `use INSTRUCTION` against the declarations: which instruction it is, and which operand is what.

    acc[m - m.0, n - n.0] += sum k: X.shared[m - m.0, k - k.0] * W.shared[n - n.0, k - k.0]
        m on lanes along y: rows of D and A      n on lanes along x: columns of D and B      k: reduced

`MatchError` says which operand's layout, element type or extent is at fault, and what would do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, names_in
from tcomp.instructions.declaration import Instruction, OperandForms
from tcomp.ir.tile import Axis, Buffer, Compute, Fragment, Pitched, RowMajor, Scope, Spread, Swizzled

LANES_Y, LANES_X = 8, 4
"""The lanes of a warp along rows and columns of an accumulator."""
ACROSS = Spread(2, "x", LANES_X)
"""How a register operand's index k is shared out: as the columns of an accumulator are."""
_FLOATS = {d.value: d for d in (DType.F32, DType.BF16, DType.F16, DType.E4M3, DType.E5M2)}


class MatchError(Exception):
    """No instruction computes this equation as it stands: what is at fault, and what to write instead."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


@dataclass(frozen=True)
class Factor:
    """One factor of a contraction: an access, and the type it is rounded to if the schedule casts it."""

    access: Access
    cast: DType | None

    def dtype(self, buffer: Buffer) -> DType:
        return self.cast or buffer.dtype


@dataclass(frozen=True)
class Operand:
    """A factor in its role. `along_k`: its rows in memory run along k."""

    factor: Factor
    buffer: Buffer
    along_k: bool

    @property
    def in_registers(self) -> bool:
        return self.buffer.scope is Scope.REGISTERS


@dataclass(frozen=True)
class Match:
    """An instruction that computes a contraction: the axis of each of its dimensions, and its two operands."""

    instruction: Instruction
    m: Axis
    n: Axis
    k: Axis
    a: Operand
    b: Operand


def factors(value: Expr) -> tuple[Factor, Factor] | None:
    """The two factors of a product of accesses, either of them perhaps cast; None for any other expression."""
    if not (isinstance(value, Binary) and value.op == "*"):
        return None
    found = [_factor(value.left), _factor(value.right)]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


def _factor(e: Expr) -> Factor | None:
    match e:
        case Access():
            return Factor(e, None)
        case Call(name, (Access() as a,)) if name in _FLOATS:
            return Factor(a, _FLOATS[name])
    return None


class Declared(Protocol):
    """What all declarations say: the name in schedules, the operands' types, the targets."""

    @property
    def family(self) -> str: ...
    @property
    def a(self) -> DType: ...
    @property
    def b(self) -> DType: ...
    @property
    def targets(self) -> frozenset[str]: ...


D = TypeVar("D", bound=Declared)


def instruction_for(family: str, a: DType, b: DType, target: str, instructions: Iterable[D]) -> D | None:
    """The instruction of a family for two element types on a target."""
    for i in instructions:
        if i.family == family and (i.a, i.b) == (a, b) and target in i.targets:
            return i
    return None


def _by_rows(m: Axis, instructions: Iterable[Instruction]) -> list[Instruction]:
    """Those that multiply as many rows as a warpgroup has of the axis first, of one family with several numbers."""
    rows = 4 * m.spread.warp_tile if m.spread is not None and m.spread.warp else 0
    return sorted(instructions, key=lambda i: i.m != rows)


def types_of(family: str, target: str, instructions: Iterable[Declared]) -> str:
    """The pairs of element types that a family takes on a target, for messages."""
    found = [
        i.a.value if i.a is i.b else f"{i.a} by {i.b}"
        for i in instructions
        if i.family == family and target in i.targets
    ]
    return ", ".join(dict.fromkeys(found)) or "nothing"


def operand_axes(c: Compute) -> tuple[Axis, Axis, Axis]:
    """The axes of rows, columns and k."""
    name = c.target.tensor.partition(".sum")[0]
    reduced = [a for a in c.axes if a.name in c.reduced]
    parallel = [a for a in c.axes if a.name not in c.reduced]
    if not reduced:
        raise MatchError(
            f"'{name}' sums over nothing within a tile; the instruction over one index",
            "name the equation of a product, and end the loop that it sums over in mma, on a tile",
        )
    if len(reduced) != 1:
        listing = ", ".join(a.name for a in reduced)
        raise MatchError(
            f"'{name}' sums over {listing}; the instruction sums over one index",
            "map the other reduced indices to seq(1), or reduce them in another equation",
        )
    rows = [a for a in parallel if a.spread is not None and a.spread.lane == "y"]
    columns = [a for a in parallel if a.spread is not None and a.spread.lane == "x"]
    if len(parallel) != 2 or len(rows) != 1 or len(columns) != 1:
        listing = ", ".join(a.name for a in parallel) or "none"
        others = [a.name for a in parallel if a.spread is None or not a.spread.lane]
        hint = f"end both loops in mma, and give all others tiles of 1: {', '.join(others) or 'b'} -> grid(1)"
        if len(parallel) == 2 and others:
            hint = f"end the line of '{others[0]}' in mma: {others[0]} -> grid(64) / warp(32) / mma"
        raise MatchError(
            f"'{name}' must have two indices mapped to mma on a tile, rows and columns (it has: {listing})",
            hint,
        )
    return rows[0], columns[0], reduced[0]


def match(c: Compute, buffers: Mapping[str, Buffer], target: str, instructions: Iterable[Instruction]) -> Match:
    """The instruction that computes `c` on a GPU target. MatchError when there is none."""
    instructions = tuple(instructions)
    family, result = c.instruction, c.target.tensor
    m, n, k = operand_axes(c)
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
    left = [f for f in pair if m.name in _indices(f)]
    right = [f for f in pair if n.name in _indices(f)]
    if len(left) != 1 or len(right) != 1 or left[0] is right[0]:
        raise MatchError(
            f"'{result}' is not a matrix product over {k.name}: one factor must have the indices {m.name} and "
            f"{k.name}, the other {n.name} and {k.name}",
            "use fma (no `use` line) for this equation",
        )
    copy = "tma" if any(i.family == family and i.threads == 128 for i in instructions) else "cp.async"
    a, b = (_operand(f, i, k, buffers, copy) for f, i in ((left[0], m), (right[0], n)))
    types = (a.factor.dtype(a.buffer), b.factor.dtype(b.buffer))
    found = instruction_for(family, *types, target, _by_rows(m, instructions))
    elsewhere = {t for i in instructions if i.family == family for t in i.targets}
    if found is None and target not in elsewhere:
        raise MatchError(
            f"{target} has no {family}",
            f"give this schedule to targets that have it alone: {', '.join(sorted(elsewhere))}",
        )
    if found is None:
        raise MatchError(
            f"{family} does not multiply {types[0]} ('{_shown(a)}') by {types[1]} ('{_shown(b)}') on {target}",
            f"it takes {types_of(family, target, instructions)}: {_remedy(result, a, b)}",
        )
    _check_place(a, b, found.left, found, m, k)
    _check_place(b, a, found.right, found, n, k)
    _check_result(c, buffers, found)
    _check_extents(found, c.target.tensor.partition(".")[0], m, n, k)
    return Match(found, m, n, k, a, b)


LOADED = ".registers"
"""in the names of tiles that `stage X in registers at q` makes"""


def _remedy(result: str, a: Operand, b: Operand) -> str:
    """How operands get a type that an instruction takes."""
    loaded = next((o for o in (a, b) if LOADED in o.factor.access.tensor), None)
    if loaded is not None:
        return f"stage {_shown(loaded)} in shared memory alone, not in registers, where it is loaded as f32"
    computed = [o for o in (a, b) if o.in_registers]
    if computed:
        other = b if computed[0] is a else a
        return f"cast {result}.{_shown(computed[0])} to {other.factor.dtype(other.buffer)}"
    tf32 = " (or use the family's .tf32 for f32 ones)" if a.buffer.dtype is b.buffer.dtype is DType.F32 else ""
    return f"store both operands in a type it takes{tf32}"


def _indices(f: Factor) -> set[str]:
    return {n for s in f.access.subscripts for n in names_in(s)}


def _shown(o: Operand) -> str:
    """The tensor as the schedule's writer knows it: a monoid's weights are `weight`, whatever its key is called."""
    name = o.factor.access.tensor.partition(".shared")[0].partition(LOADED)[0]
    return "weight" if name.endswith(".weight") else name


def _operand(f: Factor, own: Axis, k: Axis, buffers: Mapping[str, Buffer], copy: str) -> Operand:
    """A factor in its role. `copy` is what makes tiles as the instruction reads them."""
    buffer = buffers[f.access.tensor]
    walked = [[i for i in (own.name, k.name) if i in names_in(s)] for s in f.access.subscripts]
    used = [w for w in walked if w]
    name = f.access.tensor.partition(".shared")[0]
    if used not in ([[own.name], [k.name]], [[k.name], [own.name]]):
        raise MatchError(
            f"operand '{name}' must be read at [{own.name}, {k.name}] or [{k.name}, {own.name}]",
            "use fma (no `use` line) for this equation",
        )
    if buffer.scope not in (Scope.SHARED, Scope.REGISTERS):
        raise MatchError(
            f"operand '{name}' is in device memory; the instruction reads shared memory and registers",
            f"stage it in the loop around: stage {name} in shared at {k.name} by {copy}",
        )
    if len(walked) != 2:
        raise MatchError(f"operand '{name}' must have two indices within its tile", "give the others tiles of 1")
    return Operand(f, buffer, walked[-1] == [k.name])


def _check_place(o: Operand, other: Operand, forms: OperandForms, i: Instruction, own: Axis, k: Axis) -> None:
    name, staged = _shown(o), ".shared" in o.factor.access.tensor
    if o.in_registers:
        layout = o.buffer.layout
        wanted = (own.spread, ACROSS) if o.along_k else (ACROSS, own.spread)
        if not forms.registers or not isinstance(layout, Fragment) or layout.spreads != wanted or i.k != 16:
            raise MatchError(
                f"operand '{name}' is in registers, where {i.family} reads only a left operand of 16-bit elements that "
                "is laid out like an accumulator",
                "let an equation in another layout read it too (it then goes through shared memory)",
            )
        return
    # (mma.sync loads f32 values one by one, so from tiles of either order; wgmma reads a tile as it lies)
    by_value = i.threads == 32 and o.buffer.dtype is DType.F32
    if (forms.along_k if o.along_k else forms.across_k) is None and not by_value:
        raise MatchError(
            f"operand '{name}' ({o.buffer.dtype}) lies in memory along {own.name}; "
            f"{i.family} reads it along {k.name} only",
            f"store it with {k.name} as its last index",
        )
    if o.factor.cast not in (None, o.buffer.dtype):
        raise MatchError(
            f"operand '{name}' is {o.buffer.dtype} in shared memory, where it cannot be cast to {o.factor.cast}",
            # (a staged tensor is copied as it is stored; only a temporary's tile is written in another type)
            f"store {name} in {o.factor.cast}" if staged else f"hold it in that type: cast {name} to {o.factor.cast}",
        )
    if i.threads == 128:
        last, width = (k if o.along_k else own), o.buffer.shape[-1] * o.buffer.dtype.bytes
        if not isinstance(o.buffer.layout, Swizzled) and width % 32:
            raise MatchError(
                f"operand '{name}' has rows of {width} bytes in its tile; {i.family} reads swizzled rows, multiples of "
                "32",
                f"choose a tile along {last.name} that is a multiple of {32 // o.buffer.dtype.bytes}",
            )
        if not isinstance(o.buffer.layout, Swizzled):
            plain = dict.fromkeys(
                _shown(x) for x in (o, other) if x is o or isinstance(x.buffer.layout, Pitched | RowMajor)
            )
            raise MatchError(
                f"operand '{name}' is not in a swizzled tile, which {i.family} reads in place",
                f"stage {'both' if len(plain) > 1 else 'it'} with swizzle: "
                f"stage {', '.join(plain)} in shared at {k.name} by tma",
            )
    elif isinstance(o.buffer.layout, Pitched | RowMajor):
        pitch = o.buffer.layout.pitch if isinstance(o.buffer.layout, Pitched) else o.buffer.shape[-1]
        if pitch * o.buffer.dtype.bytes % 16:
            raise MatchError(
                f"operand '{name}' has rows of {pitch * o.buffer.dtype.bytes} bytes; {i.family} needs multiples of 16",
                "leave out pad, or pad to 16 bytes",
            )


def _check_result(c: Compute, buffers: Mapping[str, Buffer], i: Instruction) -> None:
    target = buffers[c.target.tensor]
    if target.scope is not Scope.REGISTERS or target.dtype is not DType.F32:
        name, leaves, _ = target.name.partition(".out")
        where = "is not in registers"
        remedy = "let every equation that meets it divide it among warps and lanes in the same way"
        if target.scope is Scope.OPERAND or leaves:
            remedy = (
                f"let it be collected there: tile the loop that it sums over, {min(c.reduced)} -> pipe(64, 2) / mma"
            )
        if target.scope is Scope.REGISTERS:
            where = f"is {target.dtype}"
            remedy = "leave its cast out; what reads it may round it: cast y.acc to bf16, for an equation y of an acc"
        raise MatchError(f"the result '{name}' {where}; {i.family} adds up in f32 registers", remedy)


def _check_warpgroup(i: Instruction, result: str, m: Axis, n: Axis) -> None:
    s = m.spread
    if s is None or s.warp != "y" or s.warps % 4 or s.warp_tile * 4 != i.m:
        raise MatchError(
            f"loop '{m.name}' of '{result}' is not divided among warpgroups, as {i.family} needs its rows",
            f"map it with warpgroup({i.m}): {m.name} -> grid.y(128) / warpgroup({i.m}) / mma; its tile of {m.block} "
            f"must have {i.m} for each warpgroup of the block",
        )
    if m.block % i.m:
        raise MatchError(
            f"loop '{m.name}' has tiles of {m.block} rows; a warpgroup multiplies {i.m} at a time",
            f"choose a tile that is a multiple of {i.m}",
        )
    if n.spread is not None and n.spread.warp:
        raise MatchError(
            f"loop '{n.name}' is divided among warps; a warpgroup computes all columns of its rows",
            f"leave out its warp level: {n.name} -> grid.x(128) / mma",
        )
    pieces, least = -(-n.block // i.n[-1]), i.n[0]
    if n.block % (least * pieces):
        wanted = (
            f"multiples of {least}"
            if pieces == 1
            else f"{pieces} equal pieces of a multiple of {least}, at most {i.n[-1]} each"
        )
        raise MatchError(
            f"loop '{n.name}' has {n.block} columns; {i.family} takes {wanted}",
            f"choose a tile that is a multiple of {least * pieces}",
        )


def _check_extents(i: Instruction, result: str, m: Axis, n: Axis, k: Axis) -> None:
    if i.threads == 128:
        _check_warpgroup(i, result, m, n)
    for axis, part, multiple in (
        (m, m.spread.warp_tile if m.spread and m.spread.warp else m.block, 16),
        (n, n.spread.warp_tile if n.spread and n.spread.warp else n.block, 8),
        (k, k.block, i.k),
    ):
        if part % multiple:
            raise MatchError(
                f"loop '{axis.name}' gives a warp {part} values; {i.name} takes {multiple} at a time",
                f"choose tiles that are multiples of {multiple}",
            )
        if axis.spread is not None and axis.spread.warp and axis.block % part:
            raise MatchError(
                f"loop '{axis.name}' has tiles of {axis.block} values, no multiple of a warp's {part}",
                f"choose a tile that is a multiple of {part}",
            )
