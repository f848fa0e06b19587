"""Values of expression nodes at a point of a Compute's domain, as far as CPUs and GPUs write them alike.

Each value is emitted once, in the outermost frame that it varies with (see emitter.py); a sum with a product
becomes a fused multiply-add. Arms of `select` and guarded values read memory only where their condition holds. What an
index, a load and a function are is a target's own (`cpu/evaluation.py`: vectors; `threads/evaluation.py`: scalars).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable

from llvmlite import ir

from tcomp.codegen.llvm.domain import Domain, Point
from tcomp.codegen.llvm.expressions import Graph, Node
from tcomp.codegen.llvm.formats import stochastic_bf16
from tcomp.codegen.llvm.random_numbers import random_uniform
from tcomp.codegen.llvm.types import F32, F64, I32, I64, IrValue, constant, kind_type, lanes_of, like


class Evaluator(ABC):
    """Evaluates nodes of a Compute's graph."""

    def __init__(self, domain: Domain, graph: Graph) -> None:
        self.domain, self.em, self.graph = domain, domain.emitter, graph

    def varies(self, node: Node) -> bool:
        """True when lanes of a register hold different values."""
        return self.domain.vector is not None and self.domain.vector in node.deps

    def value(self, node: Node, point: Point, condition: Node | None = None) -> IrValue:
        """The node's value at a point: a vector if it varies along the lanes, else a scalar.

        Where `condition` is false the result may be anything, but no memory outside buffers is read.
        """
        if node.op == "num":
            assert isinstance(node.data, (int, float))
            return constant(self.scalar_type(node.kind), node.data)
        if not node.unsafe:
            condition = None
        return self._once("value", node, point, condition, lambda level: self._compute(node, point, condition, level))

    def vector(self, node: Node, point: Point, condition: Node | None = None) -> IrValue:
        """The node's value in every lane (as a scalar where the domain has no lanes)."""
        return self.value(node, point, condition)

    def scalar_type(self, kind: str) -> ir.Type:
        """The type of a number of that kind."""
        return kind_type(kind, 0)

    def _once(
        self, what: str, node: Node, point: Point, condition: Node | None, make: Callable[[int], IrValue]
    ) -> IrValue:
        """What `make` emits in the frame that it is given, or has emitted there before."""
        deps = node.deps | condition.deps if condition is not None else node.deps
        level = self.domain.level_of(deps)
        key: Hashable = (what, id(node), self.domain.coordinates(deps, point), id(condition))
        memo = self.em.frames[level].memo
        found = memo.get(key)
        if found is None:
            found = memo[key] = make(level)
        assert isinstance(found, ir.Value)
        return found

    @abstractmethod
    def _index(self, node: Node, point: Point, level: int) -> IrValue:
        """The value of an axis's index."""

    @abstractmethod
    def _load(self, node: Node, point: Point, condition: Node | None, level: int) -> IrValue:
        """What an access reads."""

    @abstractmethod
    def _function(self, node: Node, v: list[IrValue]) -> IrValue | None:
        """A function (`exp`, `pow`, a rounding), emitted where the builder stands; None where the node's operation is
        none, or one that targets share."""

    @abstractmethod
    def _floor(self, x: IrValue) -> IrValue:
        """The largest whole number up to each of these floats."""

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
        if op == "stochastic":
            return stochastic_bf16(b, v[0], v[1])
        if op == "random":
            return random_uniform(self.em, v[0], v[1])
        found = self._function(node, v)
        if found is not None:
            return found
        return self._integer(op, v) if kind == "int" else self._float(op, v)

    def _float(self, op: str, v: list[IrValue]) -> IrValue:
        b = self.em.builder
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
            case "floordiv" | "mod":
                whole = self._floor(b.fdiv(v[0], v[1]))
                return whole if op == "floordiv" else self.em.builder.fsub(v[0], self.em.builder.fmul(whole, v[1]))
        raise NotImplementedError(f"cannot generate code for {op} on floats")

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
