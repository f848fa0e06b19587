"""Values of expression nodes at a point of the register tile.

Each value is emitted once, in the outermost frame that it varies with (see emitter.py); a sum with a product
becomes a fused multiply-add. Arms of `select` and guarded values read memory only where their condition holds.
"""

from __future__ import annotations

from collections.abc import Hashable

from llvmlite import ir

from tcomp.codegen.cpu.addressing import Addressing, Place
from tcomp.codegen.cpu.memory import Memory
from tcomp.codegen.llvm import formats, vectormath
from tcomp.codegen.llvm.domain import Domain, Point, lane_numbers
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.types import F32, F64, I32, I64, IrValue, constant, kind_type, lanes_of, like
from tcomp.dsl.ast import DType

_MATH = {"exp", "log", "tanh", "sin", "cos", "sqrt", "rsqrt", "floor"}


class Evaluator:
    """Evaluates nodes of a Compute's graph."""

    def __init__(self, domain: Domain, graph: Graph, addressing: Addressing) -> None:
        self.domain = domain
        self.em = domain.emitter
        self.graph = graph
        self.memory = Memory(domain, addressing)
        self.held: dict[Place, IrValue] = {}
        """what is read at the current point from these places, and not from memory"""
        addressing.evaluator = self

    def varies(self, node: Node) -> bool:
        """True when lanes of a register hold different values."""
        return self.domain.vector is not None and self.domain.vector in node.deps

    def level(self, node: Node, condition: Node | None = None) -> int:
        deps = node.deps | condition.deps if condition is not None else node.deps
        return self.domain.level_of(deps)

    def value(self, node: Node, point: Point, condition: Node | None = None) -> IrValue:
        """The node's value at a point: a vector if it varies along the lanes, else a scalar.

        Where `condition` is false the result may be anything, but no memory outside buffers is read.
        """
        if not node.unsafe:
            condition = None
        if node.op == "num":
            assert isinstance(node.data, (int, float))
            return constant(kind_type(node.kind, 0), node.data)
        return self._remembered("value", node, point, condition)

    def vector(self, node: Node, point: Point, condition: Node | None = None) -> IrValue:
        """The node's value in every lane (as a scalar where the domain has no lanes)."""
        lanes = self.domain.lanes if self.domain.vector is not None else 0
        if lanes == 0 or self.varies(node):
            return self.value(node, point, condition)
        if node.op == "num":
            assert isinstance(node.data, (int, float))
            return constant(kind_type(node.kind, lanes), node.data)
        return self._remembered("splat", node, point, condition if node.unsafe else None)

    def _remembered(self, what: str, node: Node, point: Point, condition: Node | None) -> IrValue:
        deps = node.deps | condition.deps if condition is not None else node.deps
        level = self.domain.level_of(deps)
        key: Hashable = (what, id(node), self.domain.coordinates(deps, point), id(condition))
        found = self.em.frames[level].memo.get(key)
        if found is None:
            if what == "value":
                found = self._compute(node, point, condition, level)
            else:
                scalar = self.value(node, point, condition)
                self.em.at(level)
                found = self.splat(scalar)
            self.em.frames[level].memo[key] = found
        assert isinstance(found, ir.Value)
        return found

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

    # ------------------------------------------------------------------------------------- operations

    def _compute(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        match node.op:
            case "index":
                return self._index(node, point, level)
            case "variable":
                assert isinstance(node.data, str)
                return self.domain.scope.variables[node.data]
            case "load":
                return self._load(node, point, condition, level)
            case "select":
                return self._select(node, point, condition, level)
            case "and" if node.args[1].unsafe:
                return self._guarded_and(node, point, condition, level)
            case "add" | "sub" if node.kind in ("f32", "f64"):
                fused = self._fused(node, point, condition, level)
                if fused is not None:
                    return fused
        operands = self.operands(node, point, condition)
        self.em.at(level)
        return self._apply(node, operands)

    def operands(self, node: Node, point: Point, condition: Node | None) -> list[IrValue]:
        """The arguments' values, all scalars or all vectors as the node is."""
        get = self.vector if self.varies(node) else self.value
        return [get(a, point, condition) for a in node.args]

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
            return self.memory.load_scalar(place, point, scalar, level)
        mask = self.domain.mask(point)
        if condition is not None:
            wanted = self.vector(condition, point)
            b = self.em.at(level)
            mask = wanted if mask is None else b.and_(mask, wanted)
        return self.memory.load_vector(place, point, mask, level)

    def any_lane(self, condition: Node, point: Point, level: int) -> IrValue:
        """A scalar: does the condition hold in any lane."""
        value = self.value(condition, point)
        if not self.varies(condition):
            return value
        self.em.at(level)
        return self.em.intrinsic("llvm.vector.reduce.or", ir.IntType(1), [value], [value.type])

    def _select(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        which, yes, no = node.args
        get = self.vector if self.varies(node) else self.value
        a = get(yes, point, self._both(condition, which) if yes.unsafe else condition)
        negated = self.graph.node("not", "bool", (which,)) if no.unsafe else which
        c = get(no, point, self._both(condition, negated) if no.unsafe else condition)
        w = get(which, point, condition)
        return self.em.at(level).select(w, a, c)

    def _guarded_and(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        """What the second side reads, it reads where the first holds."""
        first, second = node.args
        get = self.vector if self.varies(node) else self.value
        a = get(first, point, condition)
        c = get(second, point, self._both(condition, first))
        return self.em.at(level).and_(a, c)

    def _both(self, a: Node | None, b: Node) -> Node:
        return b if a is None else self.graph.node("and", "bool", (a, b))

    def _fused(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue | None:
        """a * b + c, a * b - c, c - a * b in one rounding."""
        if not self.domain.scope.fma:
            return None
        x, y = node.args
        get = self.vector if self.varies(node) else self.value
        product, rest, first = (x, y, True) if x.op == "mul" else (y, x, False)
        if product.op != "mul":
            return None
        a, b = (get(n, point, condition) for n in product.args)
        c = get(rest, point, condition)
        builder = self.em.at(level)
        if node.op == "sub":
            if first:
                c = builder.fneg(c)
            else:
                a = builder.fneg(a)
        return self.em.intrinsic("llvm.fma", a.type, [a, b, c], [a.type])

    def _apply(self, node: Node, v: list[IrValue]) -> IrValue:
        """An operation on values of one shape, emitted where the builder stands."""
        b = self.em.builder
        op, kind = node.op, node.args[0].kind
        if op in ("and", "or", "not"):
            return {"and": b.and_, "or": b.or_}[op](v[0], v[1]) if op != "not" else b.not_(v[0])
        if op in ("<", "<=", ">", ">=", "==", "!="):
            if kind == "int":
                return b.icmp_signed(op, v[0], v[1])
            if kind == "bool":
                return b.icmp_unsigned(op, v[0], v[1])
            return b.fcmp_unordered(op, v[0], v[1]) if op == "!=" else b.fcmp_ordered(op, v[0], v[1])
        if op == "cast":
            return self._cast(v[0], kind, node.kind)
        if op == "round":
            assert isinstance(node.data, DType)
            return self.memory.round_to(v[0], node.data)
        if op in ("pair", "rounded pair"):
            low, high = v
            if op == "pair":
                word = formats.bf16_pair(b, low, high)
            else:
                word = formats.flushed_pair(self.em, low, high, self.domain.scope.features)
            return word if lanes_of(word.type) else b.sext(word, I64)
        if op == "stochastic":
            return formats.stochastic_bf16(b, v[0], v[1])
        if op == "random":
            return vectormath.random_uniform(self.em, v[0], v[1])
        if op == "short exp2":
            return vectormath.short_exp2(self.em, v[0], self.domain.scope.fma, self.domain.scope.features)
        if op == "narrow exp":
            return vectormath.exp_for_16_bits(self.em, v[0], self.domain.scope.fma, self.domain.scope.features)
        if op == "pow":
            return vectormath.power(self.em, v[0], v[1], self.domain.scope.fma)
        if op in _MATH:
            return vectormath.call(self.em, op, v[0], self.domain.scope.fma, self.domain.scope.features)
        if kind == "int":
            return self._integer(op, v)
        match op:
            case "neg":
                return b.fneg(v[0])
            case "add":
                return b.fadd(v[0], v[1])
            case "sub":
                return b.fsub(v[0], v[1])
            case "mul":
                return b.fmul(v[0], v[1])
            case "div":
                return b.fdiv(v[0], v[1])
            case "abs":
                return self.em.intrinsic("llvm.fabs", v[0].type, [v[0]], [v[0].type])
            case "min":
                return b.select(b.fcmp_ordered("<", v[0], v[1]), v[0], v[1])
            case "max":
                return b.select(b.fcmp_ordered(">", v[0], v[1]), v[0], v[1])
            case "floordiv":
                return vectormath.call(self.em, "floor", b.fdiv(v[0], v[1]), self.domain.scope.fma)
            case "mod":
                whole = vectormath.call(self.em, "floor", b.fdiv(v[0], v[1]), self.domain.scope.fma)
                return b.fsub(v[0], b.fmul(whole, v[1]))
        raise NotImplementedError(f"cannot generate code for {op} on {kind}")

    def _integer(self, op: str, v: list[IrValue]) -> IrValue:
        b = self.em.builder
        zero = constant(v[0].type, 0)
        match op:
            case "neg":
                return b.sub(zero, v[0])
            case "add":
                return b.add(v[0], v[1])
            case "sub":
                return b.sub(v[0], v[1])
            case "mul":
                return b.mul(v[0], v[1])
            case "abs":
                return b.select(b.icmp_signed("<", v[0], zero), b.sub(zero, v[0]), v[0])
            case "min":
                return b.select(b.icmp_signed("<", v[0], v[1]), v[0], v[1])
            case "max":
                return b.select(b.icmp_signed(">", v[0], v[1]), v[0], v[1])
            case "floordiv" | "mod":
                # Machine division rounds to zero; the language's rounds down. Lanes outside the domain may hold
                # a zero divisor, which must not trap.
                v[1] = b.select(b.icmp_signed("==", v[1], zero), constant(zero.type, 1), v[1])
                quotient, rest = b.sdiv(v[0], v[1]), b.srem(v[0], v[1])
                signs = b.icmp_signed("<", b.xor(v[0], v[1]), zero)
                down = b.and_(b.icmp_signed("!=", rest, zero), signs)
                if op == "floordiv":
                    return b.select(down, b.sub(quotient, constant(quotient.type, 1)), quotient)
                return b.select(down, b.add(rest, v[1]), rest)
        raise NotImplementedError(f"cannot generate code for {op} on integers")

    def _cast(self, x: IrValue, source: str, kind: str) -> IrValue:
        b = self.em.builder
        t = kind_type(kind, lanes_of(x.type))
        match source, kind:
            case "int", "f32" | "f64":
                return b.sitofp(x, t)
            case "bool", "int":
                return b.zext(x, t)
            case "bool", _:
                return b.uitofp(x, t)
            case "f32", "f64":
                return b.fpext(x, like(x.type, F64))
            case "f64", "f32":
                return b.fptrunc(x, like(x.type, F32))
            case _, "int":
                # An integer beyond the range of i32 (or NaN) has no meaning in the language.
                narrow = self.em.intrinsic("llvm.fptosi.sat", like(x.type, I32), [x], [like(x.type, I32), x.type])
                return narrow if lanes_of(x.type) else b.sext(narrow, I64)
        raise NotImplementedError(f"cannot convert {source} to {kind}")
