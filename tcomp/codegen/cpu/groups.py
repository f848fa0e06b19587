"""Tiles packed in groups of a summed index (`Panels.group`), as tiles of words: one word is a group, in bits.

    acc[m, n] += sum k: X.packed[m, k] * W.packed[n, k]
                                --> acc[m, n] += sum g: vdpbf16ps(X.words[m, g], W.words[n, g])

    X.packed = pack X[m, k]     --> X.words = pack X.words[m, g]     where k is X's contiguous axis: words move whole
                                    X.words[m, g] = pair(X[m, 2 g], X[m, 2 g + 1])    elsewhere, a vector of m at a time

An operand whose words lie whole in memory need not be packed.

So addresses, loops, tails, transposes and prefetches are those of any `Compute` and `Pack`; groups only say what a
word means. A group that begins before the axis's end is whole: zeros stand for what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcomp.codegen.cpu.beside import Beside
from tcomp.codegen.cpu.compute import ComputeGenerator
from tcomp.codegen.cpu.pack import (
    copied_axes,
    fill_zeros,
    generate_pack,
    generate_piece,
    next_rows,
    numbered,
    target_in,
)
from tcomp.codegen.llvm.bounds import integer_value
from tcomp.codegen.llvm.conditions import at_most_zero
from tcomp.codegen.llvm.domain import Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.expressions import PAIR, ROUNDED_PAIR
from tcomp.codegen.llvm.integers import affine_form, expression, length
from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num, children, conjuncts, substitute
from tcomp.instructions.matching import factors
from tcomp.instructions.vector_matching import groups_lie_whole, reduced_axis, tile_in_groups
from tcomp.ir.tile import Axis, Buffer, Compute, Pack, Panels

GROUP = 2
"""Elements of a word: pairs of 16 bits."""


def is_grouped(buffer: Buffer) -> bool:
    return isinstance(buffer.layout, Panels) and buffer.layout.group > 1


# -------------------------------------------------------------------------------------------------- reading


def generate_dots(em: Emitter, scope: Scope, node: Compute, beside: Beside | None = None) -> None:
    """Emit a Compute that an instruction computes: a sum over words."""
    k = reduced_axis(node)
    pair = factors(node.value)
    assert pair is not None
    with em.frame(), _Symbols(em, scope) as symbols:
        em.here()
        words = Axis(k.name, Num(0), symbols.bind(_groups(k), f"{k.name}.groups"), -(-k.block // GROUP), k.unroll)
        operands = tuple(_word_access(scope, symbols, f.access, k) for f in pair)
        value = Call(node.instruction, operands)
        axes = tuple(words if a is k else a for a in node.axes)
        region = None
        for c in (_by_groups(c, k) for c in conjuncts(node.region)):
            region = c if region is None else Binary("and", region, c)
        ComputeGenerator(em, scope, replace(node, value=value, axes=axes, region=region), beside).generate()


def _by_groups(condition: Expr, k: Axis) -> Expr:
    """A condition of the region by the number of a group: it holds where it does for an element of the group. (What is
    computed outside of the region contributes nothing.)"""
    form = at_most_zero(condition)
    later = form is not None and form.coefficient(k.name) < 0
    element = Binary("+", k.start, Binary("*", Num(GROUP), Name(k.name)))
    return substitute(condition, {k.name: Binary("+", element, Num(GROUP - 1)) if later else element})


def _word_access(scope: Scope, symbols: _Symbols, access: Access, k: Axis) -> Access:
    """The access by words, the first of the axis at number 0 of it."""
    buffer = scope.buffers[access.tensor]
    if isinstance(buffer.layout, Panels):
        grouped = buffer.layout.grouped
    else:
        grouped = len(buffer.shape) - 1
        whole = scope.facts.of(length(k)).multiple_of(GROUP) and groups_lie_whole(buffer, access, k.name, GROUP)
        if not whole and not tile_in_groups(buffer, access, k.name, GROUP):
            raise NotImplementedError(f"{access} in groups: they do not lie whole in memory")
    form, own = affine_form(access.subscripts[grouped]), affine_form(Name(k.name))
    start = affine_form(k.start)
    if form is None or own is None or start is None or form.coefficient(k.name) != 1:
        raise NotImplementedError(f"{access} in groups")
    first = expression(form - own + start)
    if not scope.facts.of(first).multiple_of(GROUP):
        raise NotImplementedError(f"{access} in groups: tiles of {k.name} do not begin at whole ones")
    at = symbols.bind(Binary("//", first, Num(GROUP)), f"{k.name}.{access.tensor}")
    subscripts = list(access.subscripts)
    subscripts[grouped] = Binary("+", Name(k.name), at)
    return Access(words(scope, buffer).name, tuple(subscripts), access.span)


# -------------------------------------------------------------------------------------------------- packing


def pack_groups(em: Emitter, scope: Scope, pack: Pack) -> None:
    """Emit the Pack of a tile in groups."""
    source, tile, k = _grouped(scope, pack)
    even = scope.facts.of(k.start).multiple_of(GROUP) and scope.facts.of(length(k)).multiple_of(GROUP)
    with em.frame(), _Symbols(em, scope) as symbols:
        em.here()
        moved = _moved(scope, symbols, pack)
        if moved is not None:
            generate_pack(em, scope, moved)
            return
        whole = symbols.bind(Binary("//", length(k), Num(GROUP)), f"{k.name}.whole")
        groups = whole if even else symbols.bind(_groups(k), f"{k.name}.groups")
        low, high = _pair(pack, k)
        _joined(em, scope, pack, k, tile, (Num(0), whole), Call(_join(scope, pack, source), (low, high)))
        if not even:
            last = Call(_join(scope, pack, source), (low, Num(0.0)))
            _joined(em, scope, pack, k, tile, (whole, groups), last)
        axes, _ = copied_axes(scope, _with(pack, k, Num(0), groups), tile)
        fill_zeros(em, scope, tile, axes, target_in(tile, axes))


def pack_piece_in_groups(em: Emitter, scope: Scope, pack: Pack, numbers: Sequence[Int]) -> None:
    """Emit a piece of a whole tile in groups (`pack.generate_piece`)."""
    source, tile, k = _grouped(scope, pack)
    with em.frame(), _Symbols(em, scope) as symbols:
        em.here()
        moved = _moved(scope, symbols, pack)
        if moved is not None:
            generate_piece(em, scope, moved, numbers)
            return
        with numbered(em, scope, pack, numbers):
            row = Name(f"number along {k.name}")
            value = Call(_join(scope, pack, source), _pair(pack, k))
            _joined(em, scope, pack, k, tile, (row, Binary("+", row, Num(1))), value, 1)


def _grouped(scope: Scope, pack: Pack) -> tuple[Buffer, Buffer, Axis]:
    """The source, the tile in words, and the axis whose groups are words."""
    buffer = scope.buffers[pack.buffer]
    assert isinstance(buffer.layout, Panels)
    return scope.buffers[pack.source.tensor], words(scope, buffer), pack.axes[buffer.layout.grouped]


def words_moved(scope: Scope, pack: Pack) -> Pack | None:
    """The pack by words, as many as its tile has, its axes else as they are; None where groups do not lie whole in the
    source."""
    source, tile, k = _grouped(scope, pack)
    even = scope.facts.of(k.start).multiple_of(GROUP) and scope.facts.of(length(k)).multiple_of(GROUP)
    if not even or not groups_lie_whole(source, pack.source, k.name, GROUP):
        return None
    moved = Access(words(scope, source).name, pack.source.subscripts, pack.span)
    axes = tuple(replace(a, block=-(-a.block // GROUP)) if a is k else a for a in pack.axes)
    return Pack(tile.name, axes, moved, span=pack.span)


def _moved(scope: Scope, symbols: _Symbols, pack: Pack) -> Pack | None:
    """The pack as one of words, where groups lie whole in the source."""
    moved = words_moved(scope, pack)
    if moved is None:
        return None
    _, _, k = _grouped(scope, pack)
    first = symbols.bind(Binary("//", k.start, Num(GROUP)), f"{k.name}.first")
    return replace(moved, axes=_with(pack, k, first, symbols.bind(_groups(k), f"{k.name}.groups")))


def _pair(pack: Pack, k: Axis) -> tuple[Expr, Expr]:
    """The two elements of the word whose number is the axis's name."""
    own = Binary("+", k.start, Binary("*", Num(GROUP), Name(k.name)))
    return substitute(pack.source, {k.name: own}), substitute(pack.source, {k.name: Binary("+", own, Num(1))})


def _join(scope: Scope, pack: Pack, source: Buffer) -> str:
    return PAIR if source.dtype is scope.buffers[pack.buffer].dtype else ROUNDED_PAIR


def _joined(
    em: Emitter,
    scope: Scope,
    pack: Pack,
    k: Axis,
    tile: Buffer,
    span: tuple[Expr, Expr],
    value: Expr,
    most: int | None = None,
) -> None:
    """Words from `span[0]` up to `span[1]`, at `most` so many, each of two elements of the source."""
    local = _with(pack, k, Num(0), span[1])
    target = target_in(tile, local)
    part = tuple(
        replace(a, start=span[0], block=a.block if most is None else most) if a.name == k.name else a for a in local
    )
    _, copy = copied_axes(scope, part, tile)
    ahead = next_rows(pack, tile, copy, children(value)) if most is None else ()
    ComputeGenerator(em, scope, Compute(target, value, copy, prefetch=ahead, span=pack.span)).generate()


def _with(pack: Pack, k: Axis, first: Expr, count: Expr) -> tuple[Axis, ...]:
    """The pack's axes, its grouped one counted in words."""
    words_of_k = Axis(k.name, first, Binary("+", first, count), -(-k.block // GROUP))
    return tuple(words_of_k if a is k else a for a in pack.axes)


# -------------------------------------------------------------------------------------------------- words


def words(scope: Scope, buffer: Buffer) -> Buffer:
    """The buffer as words, known to the scope by a name of its own."""
    name = f"{buffer.name}.words"
    if name not in scope.buffers:
        grouped = len(buffer.shape) - 1
        layout = buffer.layout
        if isinstance(layout, Panels):
            grouped, layout = layout.grouped, Panels(layout.axis, layout.width)
        shape = tuple(-(-n // GROUP) if i == grouped else n for i, n in enumerate(buffer.shape))
        scope.buffers[name] = Buffer(name, DType.I32, shape, buffer.scope, layout)
    scope.roots[name] = scope.roots[buffer.name]  # a tile's other copy may have its turn
    return scope.buffers[name]


def _groups(k: Axis) -> Expr:
    """How many groups the axis has, the last one perhaps in part."""
    return Binary("//", Binary("+", length(k), Num(GROUP - 1)), Num(GROUP))


class _Symbols:
    """Integers that stand as loop variables for a while, so that subscripts with them stay affine."""

    def __init__(self, em: Emitter, scope: Scope) -> None:
        self.em, self.scope = em, scope
        self.bound: list[str] = []

    def __enter__(self) -> _Symbols:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.bound:
            del self.scope.variables[name], self.scope.facts.symbols[name]

    def bind(self, e: Expr, name: str) -> Expr:
        """A number, or the name of the expression's value."""
        known = self.scope.facts.of(e)
        if known.value is not None:
            return Num(known.value)
        if name not in self.scope.variables:
            self.scope.variables[name] = self.em.i64(integer_value(self.em, e, self.scope))
            self.scope.facts.symbols[name] = known
            self.bound.append(name)
        return Name(name)
