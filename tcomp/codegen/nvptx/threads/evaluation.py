"""Values of expression nodes at one point of a thread's tile: scalars.

Integers are i32. Loads go through groups: neighbouring values along the axis on which an access moves by one element
are read together, up to 128 bits, where their alignment is proven.
"""

from __future__ import annotations

from collections.abc import Iterator

from llvmlite import ir

from tcomp.codegen.llvm.conditions import at_most_zero
from tcomp.codegen.llvm.emitter import Int
from tcomp.codegen.llvm.evaluation import Evaluator
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.integers import Affine
from tcomp.codegen.llvm.types import F32, F64, I32, IrValue, kind_of, kind_type
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.threads import formats, mathematics
from tcomp.codegen.nvptx.threads.addressing import Addressing, Place, begins_aligned
from tcomp.codegen.nvptx.threads.domain import GpuDomain, Point, same_sharing
from tcomp.dsl.ast import Binary, DType, Expr, Name
from tcomp.ir.tile import Fragment, Scope

FP8 = (DType.E4M3, DType.E5M2)


def value_kind(dtype: DType) -> str:
    """The kind that elements of this type are computed in."""
    return "f32" if dtype in FP8 else kind_of(dtype)


def scalar_type(kind: str) -> ir.Type:
    return I32 if kind == "int" else kind_type(kind, 0)


class GpuGraph(Graph):
    """Expression nodes, with casts to narrow formats, the approximate functions of lowering, and affine conditions."""

    def condition(self, e: Expr) -> Node:
        """The node of a condition on which no reads depend that could leave their buffers. Where it is asked past an
        axis's end the answer is thrown away, so indices need not be kept inside: an affine comparison is one of a
        sum that all points share with a number."""
        plain = self.cast(self.build(e), "bool")
        if plain.unsafe:  # what it reads may depend on its own first part
            return plain
        if isinstance(e, Binary) and e.op in ("and", "or"):
            return self.node(e.op, "bool", (self.condition(e.left), self.condition(e.right)))
        form = at_most_zero(e)
        if form is None or not any(n in self.axes for n, _ in form.terms):
            return plain
        indices = tuple(self.build(Name(n)) for n, _ in form.terms)
        return self.node("at most zero", "bool", indices, form)

    def _call(self, name: str, args: tuple[Expr, ...]) -> Node:
        if name in mathematics.APPROXIMATE:
            return self.node(name, "f32", tuple(self.cast(self.build(a), "f32") for a in args))
        if name == "select" and not any(self.build(a).unsafe for a in args[1:]):
            a, b = self._common(self.build(args[1]), self.build(args[2]))
            return self.node("select", a.kind, (self.condition(args[0]), a, b))
        return super()._call(name, args)

    def _dtype_cast(self, x: Node, dtype: DType) -> Node:
        if dtype in FP8:
            return self.node("round", "f32", (self.cast(x, "f32"),), dtype)
        return super()._dtype_cast(x, dtype)


class GpuEvaluator(Evaluator):
    """Evaluates nodes of one domain's graph."""

    def __init__(self, domain: GpuDomain, graph: Graph, addressing: Addressing) -> None:
        super().__init__(domain, graph)
        self.domain: GpuDomain = domain
        self.gpu, self.addressing = domain.gpu, addressing
        addressing.evaluator = self

    def scalar_type(self, kind: str) -> ir.Type:
        return scalar_type(kind)

    def _index(self, node: Node, point: Point, level: int) -> IrValue:
        assert isinstance(node.data, str)
        offset = self.domain.offset(node.data, point[node.data])
        self.em.at(level)
        return self.em.i64(self.em.add(self.domain.starts[node.data], offset))

    def _compute(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        if node.op == "at most zero":
            return self._at_most_zero(node, point, level)
        return super()._compute(node, point, condition, level)

    def _at_most_zero(self, node: Node, point: Point, level: int) -> IrValue:
        form, em, domain = node.data, self.gpu, self.domain
        assert isinstance(form, Affine)
        own = {n: domain.places[n] for n, _ in form.terms if n in domain.axes}
        number = form.constant + sum(c * own[n].offsets[point[n]] for n, c in form.terms if n in own)

        def add() -> Int:
            total: Int = 0
            for n, c in form.terms:
                value: Int = domain.scope.variables[n] if n not in own else em.add(domain.starts[n], own[n].thread)
                if n in own:
                    value = em.add(value, own[n].base)
                total = em.add(total, em.mul(value, c))
            return total

        bases = tuple(p.base if isinstance(p.base, int) else id(p.base) for p in own.values())
        varying = em.once(level, ("varying", id(node), bases), add)
        em.at(level)
        return em.builder.icmp_signed("<=", em.i64(varying), em.i64(-number))

    # ------------------------------------------------------------------------------------------- loads

    def _load(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        place = node.data
        assert isinstance(place, Place)
        if place.in_registers:
            slot = self.element(place, point)
            return self.em.at(level).load(slot, typ=slot_type(place.buffer.dtype))
        if condition is None:
            for axis, first, n in self.groups(place, point):
                start = {**point, axis: first}
                key = ("group", id(place), axis, n, self.domain.coordinates(place.deps, start))

                def load(start: Point = start, axis: str = axis, n: int = n) -> list[IrValue]:
                    return self.read(place, start, axis, n, level)

                return self.gpu.once(level, key, load)[point[axis] - first]
            return self.read(place, point, None, 1, level)[0]
        wanted = self.value(condition, point)
        pointer = self.addressing.pointer(place, point, condition=condition)
        b = self.em.at(level)
        constant, dtype = self._constant(place), place.buffer.dtype
        if place.buffer.scope in (Scope.OPERAND, Scope.TEAM) and not constant:
            return formats.load_where(self.gpu, wanted, pointer, dtype)
        # One load for all points costs less than a branch. Where the condition is false it reads the first element,
        # which is there whatever the sizes, and which nobody writes meanwhile: of an operand that the kernel only
        # reads, or of a tile of the block's own, whose writers stand behind another barrier.
        pointer = b.select(wanted, pointer, self.domain.scope.roots[place.buffer.name])
        return formats.load(self.gpu, pointer, dtype, 1, constant)[0]

    def read(self, place: Place, point: Point, axis: str | None, n: int, level: int) -> list[IrValue]:
        """n neighbouring elements, read now in the given frame."""
        pointer = self.addressing.pointer(place, point, axis, n)
        self.em.at(level)
        return formats.load(self.gpu, pointer, place.buffer.dtype, n, self._constant(place))

    def _constant(self, place: Place) -> bool:
        return place.buffer.name in self.domain.block.constant

    def groups(self, place: Place, point: Point) -> Iterator[tuple[str, int, int]]:
        """Proven groups around a point, the widest first: their axis, first position and size."""
        for axis in place.unit_axes():
            n = formats.WIDEST // place.buffer.dtype.bytes
            while n > 1:
                first = self.domain.run(axis, point[axis], n, place.roomy)
                if first is not None:
                    start = {**point, axis: first}
                    fixed = begins_aligned(place.buffer, n) and all(stride % n == 0 for _, stride in place.gathered)
                    if fixed and self.domain.aligned(place.form, start, axis, n, place.roomy):
                        yield axis, first, n
                n //= 2

    def element(self, place: Place, point: Point) -> IrValue:
        """The stack slot (a register, after LLVM's passes) of a register tile's element at a point."""
        buffer = place.buffer
        assert isinstance(buffer.layout, Fragment)
        number = 0
        for size, spread, e in zip(buffer.shape, buffer.layout.spreads, place.elements, strict=True):
            per_thread = spread.per_thread(size)
            if isinstance(e, int):
                if spread.lane or spread.warp:
                    raise Unsupported(f"'{buffer.name}' is spread over threads: it has no fixed subscript {e}")
                number = number * per_thread + e
                continue
            at = self.domain.places[e.axis]
            own = at.numbers[point[e.axis]]
            # (A shift is whole turns of the lanes, or of the warps.)
            turn = spread.warps * spread.warp_tile if spread.warp else spread.lanes * spread.grain
            turns, rest = divmod(e.shift, turn)
            each = spread.per_thread(turn)
            found = per_thread if own is None or rest else own + turns * each
            if not same_sharing(at.spread, spread) or not 0 <= found < per_thread:
                raise Unsupported(
                    f"'{buffer.name}' in registers is not shared out like the index '{e.axis}' that walks it"
                )
            number = number * per_thread + found
        return self.domain.block.fragments[buffer.name][number]

    # ------------------------------------------------------------------------------------- operations

    def _function(self, node: Node, v: list[IrValue]) -> IrValue | None:
        op, kind = node.op, node.args[0].kind
        if op == "round":
            assert isinstance(node.data, DType)
            return formats.round_to(self.gpu, v[0], node.data)
        if op in mathematics.APPROXIMATE:
            return mathematics.APPROXIMATE[op](self.gpu, *v)
        if op == "div" and kind == "f32" and not self.gpu.calls:
            return mathematics.divided(self.gpu, v[0], v[1])
        if op == "pow":
            return mathematics.power(self.gpu, v[0], v[1])
        return mathematics.call(self.gpu, op, v[0]) if op in mathematics.FUNCTIONS else None

    def _floor(self, x: IrValue) -> IrValue:
        return mathematics.call(self.gpu, "floor", x)

    def _cast(self, x: IrValue, source: str, kind: str) -> IrValue:
        b = self.em.builder
        match source, kind:
            case "bool", "int":
                return b.zext(x, I32)
            case "f32" | "f64", "int":
                return self.em.intrinsic("llvm.fptosi.sat", I32, [x], [I32, x.type])
            case "int", _:
                return b.sitofp(x, scalar_type(kind))
        return super()._cast(x, source, kind)


def slot_type(dtype: DType) -> ir.Type:
    """What an element of a register tile is kept as: its kind's type (narrow floats are rounded, then kept in f32)."""
    return {"f32": F32, "f64": F64, "int": I32}[value_kind(dtype)]
