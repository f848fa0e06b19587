"""Forward temporaries that an output gives back, so that backward need not compute them again.

    O[b, q, h, e] = o[b, h, q, e] / l[b, h, q]    -->   o[b, h, q, e] is O[b, q, h, e] * l[b, h, q]
    L[b, h, q] = m[b, h, q] + log(l[b, h, q])     -->   m[b, h, q] is L[b, h, q] - log(l[b, h, q])

With these, exp(s - m) / l in the gradient of attention becomes exp(s - L): the row sums l cancel.

What a product has lost no quotient gives back: of `Y[m] = t[m] * a` t is not Y / a, as `a` may be zero.
"""

from __future__ import annotations

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Reduction, Unary, substitute, walk
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
            solved = solve(eq.value, a, Access(o.name, eq.target.subscripts), frozenset(forward.info.dims))
            if solved is not None and not any(isinstance(n, Access) and n.tensor in out for n in walk(solved)):
                indices = tuple(s.id for s in a.subscripts if isinstance(s, Name))
                out[name] = (indices, simplify(solved))
                break
    return out


def solve(e: Expr, a: Access, value: Expr, dims: frozenset[str]) -> Expr | None:
    """The `a` for which `e`, in which it stands once, equals `value`; None where that is not simple, or where it would
    divide by what may be zero. `dims` are the names of dimensions."""

    def has(x: Expr) -> bool:
        return any(n == a for n in walk(x))

    while e != a:
        match e:
            case Unary("-", x):
                e, value = x, Unary("-", value)
            case Binary("+", x, y) if has(x):
                e, value = x, Binary("-", value, y)
            case Binary("+", x, y):
                e, value = y, Binary("-", value, x)
            case Binary("-", x, y) if has(x):
                e, value = x, Binary("+", value, y)
            case Binary("-", x, y):
                e, value = y, Binary("-", x, value)
            case Binary("*", x, y) if has(x) and never_zero(y, dims):
                e, value = x, Binary("/", value, y)
            case Binary("*", x, y) if has(y) and never_zero(x, dims):
                e, value = y, Binary("/", value, x)
            case Binary("/", x, y) if has(x):
                e, value = x, Binary("*", value, y)
            case Binary("/", x, y) if never_zero(x, dims):
                e, value = y, Binary("/", x, value)
            case Call("log", (x,)):
                e, value = x, Call("exp", (value,))
            case Call("rsqrt", (x,)):
                e, value = x, Binary("/", ONE, Binary("*", value, value))
            case Call("sqrt", (x,)):
                e, value = x, Binary("*", value, value)
            case _:
                return None
    return value


def never_zero(e: Expr, dims: frozenset[str]) -> bool:
    """Numbers, dimensions (at least 1), what is made of them by products and powers, and exponentials."""
    match e:
        case Num(number):
            return number != 0
        case Name(name):
            return name in dims
        case Unary("-", x) | Binary("**", x, _):
            return never_zero(x, dims)
        case Binary("*" | "/", x, y):
            return never_zero(x, dims) and never_zero(y, dims)
        case Call("exp", _):
            return True
    return False


def substitute_recovered(e: Expr, recovered: Recovered) -> Expr:
    """Accesses of recovered temporaries replaced by what gives them back."""

    def value(x: Expr) -> Expr | None:
        if isinstance(x, Access) and x.tensor in recovered:
            indices, known = recovered[x.tensor]
            return substitute(known, dict(zip(indices, x.subscripts, strict=True)))
        return None

    return rewrite(e, value)
