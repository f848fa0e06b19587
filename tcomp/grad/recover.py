"""Forward temporaries that an output gives back, so that backward need not compute them again.

    O[b, q, h, e] = o[b, h, q, e] / l[b, h, q]    -->   o[b, h, q, e] is O[b, q, h, e] * l[b, h, q]
    L[b, h, q] = m[b, h, q] + log(l[b, h, q])     -->   m[b, h, q] is L[b, h, q] - log(l[b, h, q])

With these, exp(s - m) / l in the gradient of attention becomes exp(s - L): the row sums l cancel.
"""

from __future__ import annotations

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Reduction, Unary, substitute, walk
from tcomp.grad.forward import Forward
from tcomp.grad.simplify import ONE, rewrite, simplify

Recovered = dict[str, tuple[tuple[str, ...], Expr]]
"""temporary -> (its indices, its value by outputs and other temporaries)"""


def recoverable(forward: Forward) -> Recovered:
    """What each output's defining equation can be solved for; at most one temporary per output."""
    out: Recovered = {}
    pointwise = {
        eq.target.name
        for eq in forward.equations
        if len(eq.targets) == 1 and not isinstance(eq.value, Reduction) and not eq.accumulate
    }
    for o in forward.op.outputs:
        writers = [eq for eq in forward.equations if any(t.name == o.name for t in eq.targets)]
        if len(writers) != 1 or o.name not in pointwise or not o.dtype.is_float:
            continue
        eq = writers[0]
        assert not isinstance(eq.value, Reduction)
        if not forward.covers(o.name, eq.target.subscripts):
            continue
        left = {s.id for s in eq.target.subscripts if isinstance(s, Name)}
        used = {n.tensor for _, e in out.values() for n in walk(e) if isinstance(n, Access)}
        for a in forward.differentiable(eq.value):
            name = a.tensor
            if name not in forward.info.temporaries or name in pointwise or name in out or name in used:
                continue
            if not forward.covers(name, a.subscripts) or {s.id for s in a.subscripts if isinstance(s, Name)} != left:
                continue
            if sum(isinstance(n, Access) and n.tensor == name for n in walk(eq.value)) != 1:
                continue
            solved = solve(eq.value, a, Access(o.name, eq.target.subscripts))
            if solved is not None and not any(isinstance(n, Access) and n.tensor in out for n in walk(solved)):
                indices = tuple(s.id for s in a.subscripts if isinstance(s, Name))
                out[name] = (indices, simplify(solved))
                break
    return out


def solve(e: Expr, a: Access, value: Expr) -> Expr | None:
    """The `a` for which `e`, in which it stands once, equals `value`; None where that is not simple."""
    if e == a:
        return value

    def has(x: Expr) -> bool:
        return any(n == a for n in walk(x))

    match e:
        case Unary("-", x):
            return solve(x, a, Unary("-", value))
        case Binary("+", x, y):
            return solve(x, a, Binary("-", value, y)) if has(x) else solve(y, a, Binary("-", value, x))
        case Binary("-", x, y):
            return solve(x, a, Binary("+", value, y)) if has(x) else solve(y, a, Binary("-", x, value))
        case Binary("*", x, y):
            return solve(x, a, Binary("/", value, y)) if has(x) else solve(y, a, Binary("/", value, x))
        case Binary("/", x, y):
            return solve(x, a, Binary("*", value, y)) if has(x) else solve(y, a, Binary("/", x, value))
        case Call("log", (x,)):
            return solve(x, a, Call("exp", (value,)))
        case Call("rsqrt", (x,)):
            return solve(x, a, Binary("/", ONE, Binary("*", value, value)))
        case Call("sqrt", (x,)):
            return solve(x, a, Binary("*", value, value))
    return None


def substitute_recovered(e: Expr, recovered: Recovered) -> Expr:
    """Accesses of recovered temporaries replaced by what gives them back."""

    def value(x: Expr) -> Expr | None:
        if isinstance(x, Access) and x.tensor in recovered:
            indices, known = recovered[x.tensor]
            return substitute(known, dict(zip(indices, x.subscripts, strict=True)))
        return None

    return rewrite(e, value)
