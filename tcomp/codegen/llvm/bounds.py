"""Loop bounds and axis limits: integer expressions of loop variables and integer scalars, as machine values."""

from __future__ import annotations

from tcomp.codegen.llvm.domain import Scope
from tcomp.codegen.llvm.emitter import Emitter, Int
from tcomp.codegen.llvm.expressions import fold
from tcomp.codegen.llvm.types import I32, IrValue
from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Unary


def condition_value(em: Emitter, e: Expr, scope: Scope) -> IrValue:
    """A condition on loop variables (comparisons of integers, joined by `and`) as a machine value."""
    match e:
        case Binary("and", x, y):
            p, q = condition_value(em, x, scope), condition_value(em, y, scope)
            return em.builder.and_(p, q)
        case Binary("==" | "!=" | "<" | "<=" | ">" | ">=" as op, x, y):
            a, b = integer_value(em, x, scope), integer_value(em, y, scope)
            return em.builder.icmp_signed(op, em.i64(a), em.i64(b))
    raise NotImplementedError(f"not a condition on loop variables: {e}")


def integer_value(em: Emitter, e: Expr, scope: Scope) -> Int:
    """An integer expression of loop variables at the builder's place; a number where it is one."""
    e = fold(e)
    b = em.builder
    match e:
        case Num(v):
            return int(v)
        case Name(name):
            return scope.variables[name]
        case Access(tensor, ()):
            held = b.load(scope.roots[tensor], typ=I32, align=4)
            return held if em.word == I32 else b.sext(held, em.word)
        case Unary("-", x):
            return em.mul(integer_value(em, x, scope), -1)
        case Binary(op, x, y):
            p, q = integer_value(em, x, scope), integer_value(em, y, scope)
            match op:
                case "+":
                    return em.add(p, q)
                case "-":
                    return em.add(p, em.mul(q, -1))
                case "*":
                    return em.mul(p, q)
                case "//" | "%":
                    positive = isinstance(y, Num) and y.value > 0 and (scope.facts.of(x).lo or -1) >= 0
                    quotient = b.sdiv(em.i64(p), em.i64(q))
                    rest = b.srem(em.i64(p), em.i64(q))
                    if positive:
                        return quotient if op == "//" else rest
                    zero = em.i64(0)
                    signs = b.icmp_signed("<", b.xor(em.i64(p), em.i64(q)), zero)
                    down = b.and_(b.icmp_signed("!=", rest, zero), signs)
                    if op == "//":
                        return b.select(down, b.sub(quotient, em.i64(1)), quotient)
                    return b.select(down, b.add(rest, em.i64(q)), rest)
        case Call("select", (Binary("<", x, y), chosen, other)):
            p, q = em.i64(integer_value(em, x, scope)), em.i64(integer_value(em, y, scope))
            values = [em.i64(integer_value(em, v, scope)) for v in (chosen, other)]
            return b.select(b.icmp_signed("<", p, q), *values)
        case Call("min" | "max" as op, (x, y)):
            p, q = em.i64(integer_value(em, x, scope)), em.i64(integer_value(em, y, scope))
            return b.select(b.icmp_signed("<" if op == "min" else ">", p, q), p, q)
    raise NotImplementedError(f"not an integer expression of loop variables: {e}")
