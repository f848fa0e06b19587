"""Values of expression nodes at a point of the register tile: vectors where they vary along its lanes."""

from __future__ import annotations

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Addressing, Place
from tcomp.codegen.cpu.memory import Memory
from tcomp.codegen.llvm import evaluation, formats, vectormath
from tcomp.codegen.llvm.domain import Domain, Point, lane_numbers
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.types import I32, I64, IrValue, constant, kind_type, lanes_of
from tcomp.dsl.ast import DType

_MATH = {"exp", "log", "tanh", "sin", "cos", "sqrt", "rsqrt", "floor"}


class Evaluator(evaluation.Evaluator):
    """Evaluates nodes of a Compute's graph."""

    def __init__(self, domain: Domain, graph: Graph, addressing: Addressing) -> None:
        super().__init__(domain, graph)
        self.memory = Memory(domain, addressing)
        self.held: dict[Place, IrValue] = {}
        """what is read at the current point from these places, and not from memory"""
        addressing.evaluator = self

    def vector(self, node: Node, point: Point, condition: Node | None = None) -> IrValue:
        lanes = self.domain.lanes if self.domain.vector is not None else 0
        if lanes == 0 or self.varies(node):
            return self.value(node, point, condition)
        if node.op == "num":
            assert isinstance(node.data, (int, float))
            return constant(kind_type(node.kind, lanes), node.data)
        if not node.unsafe:
            condition = None

        def splat(level: int) -> IrValue:
            scalar = self.value(node, point, condition)
            self.em.at(level)
            return self.splat(scalar)

        return self._once("splat", node, point, condition, splat)

    def splat(self, scalar: IrValue) -> IrValue:
        """A scalar in all lanes (integers become i32), emitted where the builder stands."""
        b = self.em.builder
        if scalar.type == I64:
            scalar = b.trunc(scalar, I32)
        t = ir.VectorType(scalar.type, self.domain.lanes)
        if isinstance(scalar, ir.Constant):
            return constant(t, scalar.constant)
        first = b.insert_element(ir.Constant(t, ir.Undefined), scalar, ir.Constant(I32, 0))
        zeros = ir.Constant(ir.VectorType(I32, self.domain.lanes), None)
        return b.shuffle_vector(first, ir.Constant(t, ir.Undefined), zeros)

    def _index(self, node: Node, point: Point, level: int) -> IrValue:
        assert isinstance(node.data, str)
        name = node.data
        state = self.domain.states[name]
        em = self.em
        em.at(level)
        number, step = point[name] * state.lanes, 1
        if state.interleaved:
            number, step = point[name] // 2 * 2 * state.lanes + point[name] % 2, 2
        first = em.add(em.add(self.domain.starts[name], state.base), number)
        if self.domain.vector != name:
            return em.i64(first)
        return em.builder.add(self.splat(em.i64(first)), lane_numbers(self.domain.lanes, step))

    def _load(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        place = node.data
        assert isinstance(place, Place)
        if place in self.held:
            return self.held[place]
        if not self.varies(node):
            scalar = None if condition is None else self.any_lane(condition, point, level)
            return self.memory.load_scalar(place, point, scalar, level, condition)
        mask = self.domain.mask(point)
        if condition is not None:
            wanted = self.vector(condition, point)
            b = self.em.at(level)
            mask = wanted if mask is None else b.and_(mask, wanted)
        return self.memory.load_vector(place, point, mask, level, condition)

    def any_lane(self, condition: Node, point: Point, level: int) -> IrValue:
        """A scalar: does the condition hold in any lane."""
        value = self.value(condition, point)
        if not self.varies(condition):
            return value
        self.em.at(level)
        return self.em.intrinsic("llvm.vector.reduce.or", ir.IntType(1), [value], [value.type])

    def _function(self, node: Node, v: list[IrValue]) -> IrValue | None:
        em, op, fma, features = self.em, node.op, self.domain.scope.fma, self.domain.scope.features
        if op == "round":
            assert isinstance(node.data, DType)
            return self.memory.round_to(v[0], node.data)
        if op in ("pair", "rounded pair"):
            low, high = v
            plain = op == "pair"
            word = formats.bf16_pair(em.builder, low, high) if plain else formats.flushed_pair(em, low, high, features)
            return word if lanes_of(word.type) else em.builder.sext(word, I64)
        if op == "short exp2":
            return vectormath.short_exp2(em, v[0], fma, features)
        if op == "narrow exp":
            return vectormath.exp_for_16_bits(em, v[0], fma, features)
        if op == "pow":
            return vectormath.power(em, v[0], v[1], fma)
        return vectormath.call(em, op, v[0], fma, features) if op in _MATH else None

    def _floor(self, x: IrValue) -> IrValue:
        return vectormath.call(self.em, "floor", x, self.domain.scope.fma)
