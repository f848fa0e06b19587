"""From accesses to addresses: element strides along axes and loop variables, added up in the outermost frame possible.

The part of an address that depends only on the thread is computed once at the kernel's entry, the parts of loop
variables in their loops; an inner loop keeps one base per buffer and constant displacements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llvmlite import ir

from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.integers import Affine, affine_form
from tcomp.codegen.llvm.types import I8, I64, IrValue
from tcomp.codegen.nvptx.emitter import GpuEmitter
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.swizzle import PATTERN_ROWS, column_bytes, granule_of
from tcomp.codegen.nvptx.threads.domain import GpuDomain, Point
from tcomp.codegen.nvptx.threads.turns import walked
from tcomp.dsl.ast import Access, Binary, DType, Expr, Name, Num
from tcomp.ir.tile import Axis, Buffer, Pitched, Scope, Shifted, Swizzled

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.threads.evaluation import GpuEvaluator


@dataclass(frozen=True)
class Walk:
    """A dimension of a register tile that follows an axis, from the value `shift` on."""

    axis: str
    shift: int = 0


@dataclass(frozen=True, eq=False)
class Place:
    """An access taken apart. `form` counts elements in symbols: a' is axis a counted from its start, other names are
    loop variables. `gathered` are subscripts read from memory, with their strides. `elements` are, for a tile in
    registers, what each dimension follows (or its number); `column` is, for a tile that is not row-major, the part of
    `form` along the last dimension. `roomy`: what lies past the axes' ends is there too, and has been filled."""

    buffer: Buffer
    form: Affine
    gathered: tuple[tuple[Node, int], ...]
    in_bounds: bool
    deps: frozenset[str]
    elements: tuple[Walk | int, ...] = ()
    column: Affine = Affine()
    roomy: bool = False

    @property
    def in_registers(self) -> bool:
        return self.buffer.scope is Scope.REGISTERS

    def unit_axes(self) -> list[str]:
        """Axes along which the access moves by one element."""
        return [n[:-1] for n, c in self.form.terms if c == 1 and n.endswith("'")
                and not any(n[:-1] in node.deps for node, _ in self.gathered)]  # fmt: skip


@dataclass(frozen=True)
class Term:
    """One addend of an address in elements, value times stride, computed once in the frame `level`."""

    level: int
    key: object
    value: Callable[[], Int]
    stride: int


class Addressing:
    """Places and pointers within one domain."""

    def __init__(self, domain: GpuDomain) -> None:
        self.domain = domain
        self.evaluator: GpuEvaluator | None = None
        self._places: dict[Access, Place] = {}

    # ------------------------------------------------------------------------------------------ places

    def load_node(self, access: Access, graph: Graph) -> Node:
        place = self.place(access, graph)
        narrow = place.buffer.dtype in (DType.E4M3, DType.E5M2)
        node = graph.load(place, DType.F16 if narrow else place.buffer.dtype, place.deps)
        node.unsafe = not place.in_bounds and not place.in_registers
        return node

    def place(self, access: Access, graph: Graph) -> Place:
        """The access taken apart."""
        found = self._places.get(access)
        if found is None:
            found = self._places[access] = self._place(access, graph)
        return found

    def _place(self, access: Access, graph: Graph) -> Place:
        buffer = self.domain.scope.buffers[access.tensor]
        if buffer.scope is Scope.REGISTERS:
            elements = tuple(self._element(access, s) for s in access.subscripts)
            walked = frozenset(e.axis for e in elements if isinstance(e, Walk))
            return Place(buffer, Affine(), (), True, walked, elements)
        total, column = Affine(), Affine()
        gathered: list[tuple[Node, int]] = []
        deps: set[str] = set()
        in_bounds = True
        for subscript, stride, size in zip(access.subscripts, strides(buffer), buffer.shape, strict=True):
            form = affine_form(subscript, self.domain.forms)
            if form is None and (counter := counted(subscript, self.domain.axes)) is not None:
                form = Affine(((f"{counter}'", 1),))
            in_bounds = in_bounds and self._inside(subscript, form, size)
            if form is not None:
                deps.update(n[:-1] for n, _ in form.terms if n.endswith("'"))
                total, column = total + form.scaled(stride), form
            else:
                node = graph.cast(graph.build(subscript), "int")
                deps |= node.deps
                gathered.append((node, stride))
        if gathered and (isinstance(buffer.layout, Swizzled) or skew_of(buffer)):
            raise Unsupported(f"the swizzled tile '{buffer.name}' is read at an index from memory", access.span)
        roomy = buffer.name in self.domain.block.filled and has_room(access, buffer, self.domain.axes)
        return Place(buffer, total, tuple(gathered), in_bounds, frozenset(deps), column=column, roomy=roomy)

    def _element(self, access: Access, subscript: Expr) -> Walk | int:
        """The axis along which a register tile's dimension is walked, or a fixed index."""
        form = affine_form(subscript, self.domain.forms)
        if form is None:
            counter = counted(subscript, self.domain.axes)
            if counter is not None:
                return Walk(counter)
        elif not form.terms:
            return form.constant
        elif len(form.terms) == 1 and form.constant >= 0:
            name, c = form.terms[0]
            if c == 1 and name.endswith("'"):
                return Walk(name[:-1], form.constant)
        raise Unsupported(
            f"'{access.tensor}' is in registers, where a subscript can only be an index counted within its tile",
            access.span,
        )

    def _inside(self, subscript: Expr, form: Affine | None, size: int) -> bool:
        """True when the subscript surely lies in 0 .. size-1. An index read from memory is trusted only where the
        access's guard holds: `select(ids[m] >= 0, X[ids[m]], 0.0)`."""
        facts = self.domain.facts
        whole = facts.of(subscript)
        if whole.lo is not None and whole.hi is not None and whole.lo >= 0 and whole.hi < size:
            return True
        if form is None:
            return False
        known = facts.of_affine(form)
        return known.lo is not None and known.hi is not None and known.lo >= 0 and known.hi < size

    # ---------------------------------------------------------------------------------------- pointers

    def pointer(
        self, place: Place, point: Point, along: str | None = None, n: int = 1, condition: Node | None = None
    ) -> IrValue:
        """The address of the element at a point, the first of `n` along the axis `along`. Indices from memory are read
        where `condition` holds; elsewhere the address may be any."""
        if isinstance(place.buffer.layout, Swizzled):
            return self._swizzled(place, place.buffer.layout, point, along, n)
        terms, constant = self._terms(place, place.form, point, along, n, condition)
        if isinstance(place.buffer.layout, Pitched) and place.buffer.layout.skew:
            term, further = self._skew(place, place.buffer.layout, point, along, n)
            terms, constant = [*terms, term], constant + further
        em, scope = self.domain.gpu, self.domain.block
        name = place.buffer.name
        level = scope.levels.get(name, 0)
        pointer = scope.roots[name]
        key: tuple[object, ...] = ("pointer", name, id(pointer))
        for depth in sorted({max(t.level, level) for t in terms}):
            here = [t for t in terms if max(t.level, level) == depth]
            key = (*key, *(t.key for t in here))
            wide = place.buffer.elements >= 1 << 31
            values = [em.once(t.level, ("term", wide, t.key), partial(self._scaled, place, t)) for t in here]
            pointer = em.once(depth, key, partial(self._step, pointer, place.buffer, values))
            level = depth
        if constant == 0:
            return pointer
        return em.once(level, (*key, constant), lambda: self._step(pointer, place.buffer, [constant]))

    def _skew(self, place: Place, layout: Pitched, point: Point, along: str | None, n: int) -> tuple[Term, int]:
        """What a row's group adds to an address, and the part of it that is a number."""
        em = self.domain.gpu
        level, key, row, beyond = self._sum(place, self._row(place), point, along, n, layout.group)

        def group() -> Int:
            value = row()
            if isinstance(value, int):
                return value // layout.group
            return em.at(level).ashr(value, ir.Constant(value.type, layout.group.bit_length() - 1))

        return Term(level, ("group", layout.group, key), group, layout.skew), beyond // layout.group * layout.skew

    def _row(self, place: Place) -> Affine:
        """The place's row in a tile whose rows are not simply one after the other; of a vector the element."""
        if len(place.buffer.shape) == 1:
            return place.form
        buffer, rows = place.buffer, place.form - place.column
        pitch = buffer.layout.pitch if isinstance(buffer.layout, Pitched) else buffer.shape[-1]
        return Affine(tuple((s, c // pitch) for s, c in rows.terms), rows.constant // pitch)

    def _swizzled(self, place: Place, layout: Swizzled, point: Point, along: str | None, n: int) -> IrValue:
        """The address in a swizzled tile: the row's part, then the column's, which depends on the row. Rows that lie
        whole patterns apart share all but a displacement, which is a number."""
        em, scope, buffer = self.domain.gpu, self.domain.block, place.buffer
        row_level, row_key, row, beyond = self._sum(place, self._row(place), point, along, n, PATTERN_ROWS)
        level, column_key, column, _ = self._sum(place, place.column, point, along, n)
        level = max(level, row_level)

        def of_row() -> tuple[Int, Int]:
            value = row()
            em.at(row_level)
            return em.mul(value, layout.width), granule_of(em, layout, value)

        def displacement() -> Int:
            value = column()
            parts = em.once(row_level, ("swizzle", layout, row_key), of_row)
            em.at(level)
            return em.add(parts[0], column_bytes(em, buffer, layout, value, parts[1]))

        key = (layout, buffer.shape, buffer.dtype, row_key, column_key)
        offset: Int = em.once(level, ("swizzled", key), displacement)
        root = scope.roots[buffer.name]
        final = max(level, scope.levels.get(buffer.name, 0))

        def pointer() -> IrValue:
            return root if offset == 0 else em.builder.gep(root, [em.i64(offset)], source_etype=I8)

        found: IrValue = em.once(final, ("pointer", buffer.name, id(root), key), pointer)
        if not beyond:
            return found
        further: IrValue = em.once(
            final,
            ("pointer", buffer.name, id(root), key, beyond),
            lambda: em.builder.gep(found, [em.i64(beyond * layout.width)], source_etype=I8),
        )
        return further

    def _sum(
        self, place: Place, form: Affine, point: Point, along: str | None, n: int, period: int = 0
    ) -> tuple[int, object, Callable[[], Int], int]:
        """An affine form's value at a point: the frame it belongs to, a key that names it, and how to make it. Where
        something else is added to its constant, whole periods of that are left out, and the last thing given."""
        terms, constant = self._terms(place, form, point, along, n)
        beyond = constant // period * period if period and terms else 0
        constant -= beyond
        em = self.domain.gpu
        level = max((t.level for t in terms), default=0)
        key = ("sum", constant, *(t.key for t in terms))

        def add() -> Int:
            total: Int = constant
            for t in terms:
                value: Int = em.once(t.level, ("term", False, t.key), partial(_times, em, t))
                em.at(level)
                total = em.add(total, value)
            return total

        return level, key, lambda: em.once(level, key, add), beyond

    def _step(self, pointer: IrValue, buffer: Buffer, parts: list[Int]) -> IrValue:
        em = self.domain.gpu
        total: Int = 0
        for p in parts:
            if isinstance(total, ir.Value) and isinstance(p, ir.Value) and p.type != total.type:
                p, total = (em.builder.sext(x, I64) if x.type != I64 else x for x in (p, total))
            total = em.add(total, p)
        if isinstance(total, int):
            if total == 0:
                return pointer
            return em.builder.gep(pointer, [ir.Constant(I64, total * buffer.dtype.bytes)], source_etype=I8)
        element = ir.IntType(8 * buffer.dtype.bytes)
        return em.builder.gep(pointer, [total], source_etype=element)

    def _terms(
        self, place: Place, form: Affine, point: Point, along: str | None, n: int, condition: Node | None = None
    ) -> tuple[list[Term], int]:
        domain = self.domain
        constant = form.constant
        terms: list[Term] = []
        for name, c in form.terms:
            if not name.endswith("'"):
                level = domain.level if name.endswith("@start") else domain.block.levels.get(name, 0)
                terms.append(Term(level, (name, c), partial(domain.symbol, name), c))
                continue
            axis = name[:-1]
            at, position = domain.places[axis], point[axis]
            if at.checked[position] and not place.roomy:
                group = n if axis == along else 1
                key = ("inside", domain.inside_key(axis, position, group), c)
                terms.append(Term(at.level, key, partial(domain.kept, axis, position, group), c))
                constant += c * at.offsets[position]
                continue
            constant += c * at.offsets[position]
            if not (isinstance(at.thread, int) and at.thread == 0):
                terms.append(Term(0, ("thread", at.spread, c), partial(_same, at.thread), c))
            if not (isinstance(at.base, int) and at.base == 0):
                terms.append(Term(at.level, ("base", id(at.base), c), partial(_same, at.base), c))
        for node, stride in place.gathered:
            guard = condition if node.unsafe else None
            deps = node.deps | guard.deps if guard is not None else node.deps
            level = domain.level_of(deps)
            gathered_key = (id(node), domain.coordinates(deps, point), stride, id(guard))

            def value(node: Node = node, guard: Node | None = guard) -> IrValue:
                assert self.evaluator is not None
                return self.evaluator.value(node, point, guard)

            terms.append(Term(level, gathered_key, value, stride))
        return terms, constant

    def _scaled(self, place: Place, term: Term) -> Int:
        """The term's value times its stride, in 64 bits only where the buffer needs them."""
        em = self.domain.gpu
        x = term.value()
        b = em.at(term.level)
        if place.buffer.elements >= 1 << 31 and isinstance(x, ir.Value):
            return b.mul(b.sext(x, I64), ir.Constant(I64, term.stride))
        return em.mul(x, term.stride)


def counted(subscript: Expr, axes: Mapping[str, Axis]) -> str | None:
    """The axis that `axis - start` counts from its start."""
    match subscript:
        case Binary("-", Name(a), start) if a in axes and axes[a].start == start:
            return a
    return None


def has_room(access: Access, buffer: Buffer, axes: Mapping[str, Axis]) -> bool:
    """Is the tile large enough for all values of all threads, also for those that lie past an axis's end?"""

    def fits(subscript: Expr, size: int) -> bool:
        if isinstance(subscript, Name) and subscript.id in axes and axes[subscript.id].start == Num(0):
            return walked(axes[subscript.id]) <= size
        axis = counted(subscript, axes)
        return axis is not None and walked(axes[axis]) <= size

    return all(fits(s, size) for s, size in zip(access.subscripts, buffer.shape, strict=True))


def _same(x: Int) -> Int:
    return x


def _times(em: GpuEmitter, term: Term) -> Int:
    value = term.value()
    em.at(term.level)
    return em.mul(value, term.stride)


def skew_of(buffer: Buffer) -> int:
    """Elements that lie between groups of rows."""
    return buffer.layout.skew if isinstance(buffer.layout, Pitched) else 0


def begins_aligned(buffer: Buffer, n: int) -> bool:
    """Does what its rows' numbers do not count (gaps between rows, a beginning anywhere) keep groups of n aligned?"""
    return skew_of(buffer) % n == 0 and (n == 1 or not isinstance(buffer.layout, Shifted))


def strides(buffer: Buffer) -> list[int]:
    """Elements per step of each subscript."""
    found: list[int] = []
    stride = 1
    for i, size in reversed(list(enumerate(buffer.shape))):
        found.append(stride)
        last = i == len(buffer.shape) - 1
        stride *= buffer.layout.pitch if last and isinstance(buffer.layout, Pitched) else size
    return found[::-1]
