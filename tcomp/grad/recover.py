"""Forward temporaries that an output gives back, so that backward need not compute them again.

    O[b, q, h, e] = o[b, h, q, e] / l[b, h, q]    -->   o[b, h, q, e] is O[b, q, h, e] * l[b, h, q]
    L[b, h, q] = m[b, h, q] + log(l[b, h, q])     -->   m[b, h, q] is L[b, h, q] - log(l[b, h, q])

With these, exp(s - m) / l in the gradient of attention becomes exp(s - L): the row sums l cancel.

What a product has lost no quotient gives back: of `Y[m] = t[m] * a` t is not Y / a, as `a` may be zero. Nor does a
difference what a sum has: of `Y[m] = t[m] + a` t is not Y - a, as `a` may be large, or infinite. An output of 16 bits
has still less of a sum, and one of 8 bits gives nothing back.
"""

from __future__ import annotations

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num, Reduction, Unary, accesses_in, substitute, walk
from tcomp.grad.forward import Forward
from tcomp.grad.simplify import ONE, rewrite, simplify

Recovered = dict[str, tuple[tuple[str, ...], Expr]]
"""temporary -> (its indices, its value by outputs and other temporaries)"""
MODERATE = 1000.0
"""a number up to which a sum in f32 has room for what it is added to"""
_EXACT = (DType.F64, DType.F32)
_GIVING = (*_EXACT, DType.REAL, DType.BF16, DType.F16)


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
        if len(writers) != 1 or o.name not in pointwise or o.dtype not in _GIVING:
            continue
        eq = writers[0]
        assert not isinstance(eq.value, Reduction)
        if not forward.covers(o.name, eq.target.subscripts):
            continue
        left = {s.id for s in eq.target.subscripts if isinstance(s, Name)}
        used = {a.tensor for _, e in out.values() for a in accesses_in(e)}
        for a in forward.differentiable(eq.value):
            name = a.tensor
            if name not in forward.info.temporaries or name in pointwise or name in out or name in used:
                continue
            if not forward.covers(name, a.subscripts) or {s.id for s in a.subscripts if isinstance(s, Name)} != left:
                continue
            if sum(isinstance(n, Access) and n.tensor == name for n in walk(eq.value)) != 1:
                continue
            by_sums = o.dtype in _EXACT
            solved = solve(eq.value, a, Access(o.name, eq.target.subscripts), frozenset(forward.info.dims), by_sums)
            if solved is not None and not any(a.tensor in out for a in accesses_in(solved)):
                indices = tuple(s.id for s in a.subscripts if isinstance(s, Name))
                out[name] = (indices, simplify(solved))
                break
    return out


def solve(e: Expr, a: Access, value: Expr, dims: frozenset[str], by_sums: bool) -> Expr | None:
    """The `a` for which `e`, in which it stands once, equals `value`; None where that is not simple, or where it would
    divide by what may be zero, or take away what may be large. `dims` are the names of dimensions. Without `by_sums`
    the value has too few bits for what a difference or exp would make of them."""

    def has(x: Expr) -> bool:
        return any(n == a for n in walk(x))

    while e != a:
        match e:
            case Unary("-", x):
                e, value = x, Unary("-", value)
            case Binary("+", x, y) if by_sums and has(x) and moderate(y, dims):
                e, value = x, Binary("-", value, y)
            case Binary("+", x, y) if by_sums and has(y) and moderate(x, dims):
                e, value = y, Binary("-", value, x)
            case Binary("-", x, y) if by_sums and has(x) and moderate(y, dims):
                e, value = x, Binary("+", value, y)
            case Binary("-", x, y) if by_sums and has(y) and moderate(x, dims):
                e, value = y, Binary("-", x, value)
            case Binary("*", x, y) if has(x) and never_zero(y, dims):
                e, value = x, Binary("/", value, y)
            case Binary("*", x, y) if has(y) and never_zero(x, dims):
                e, value = y, Binary("/", value, x)
            case Binary("/", x, y) if has(x):
                e, value = x, Binary("*", value, y)
            case Binary("/", x, y) if never_zero(x, dims):
                e, value = y, Binary("/", x, value)
            case Call("log", (x,)) if by_sums:
                e, value = x, Call("exp", (value,))
            case Call("rsqrt", (x,)):
                e, value = x, Binary("/", ONE, Binary("*", value, value))
            case Call("sqrt", (x,)):
                e, value = x, Binary("*", value, value)
            case _:
                return None
    return value


def never_zero(e: Expr, dims: frozenset[str]) -> bool:
    """Numbers, dimensions (at least 1), and what is made of them by products and powers. (Of exponentials some are zero
    in f32.)"""
    match e:
        case Num(number):
            return number != 0
        case Name(name):
            return name in dims
        case Unary("-", x):
            return never_zero(x, dims)
        case Binary("**", x, Num() | Unary("-", Num())):
            return never_zero(x, dims)
        case Binary("*" | "/", x, y):
            return never_zero(x, dims) and never_zero(y, dims)
    return False


def moderate(e: Expr, dims: frozenset[str]) -> bool:
    """Never so large that what it is added to would be lost: numbers, dimensions, logarithms (of f32 at most 104)."""
    large = any(isinstance(n, Num) and abs(n.value) > MODERATE for n in walk(e))
    return not large and (never_zero(e, dims) or (isinstance(e, Call) and e.function in ("log", "tanh", "sin", "cos")))


def substitute_recovered(e: Expr, recovered: Recovered) -> Expr:
    """Accesses of recovered temporaries replaced by what gives them back."""

    def value(x: Expr) -> Expr | None:
        if isinstance(x, Access) and x.tensor in recovered:
            indices, known = recovered[x.tensor]
            return substitute(known, dict(zip(indices, x.subscripts, strict=True)))
        return None

    return rewrite(e, value)
