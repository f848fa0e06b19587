"""One op instance in normal form: functions expanded, dimensions bound, marked temporaries inlined.

xhat[m, c] = (X[m, c] - mean[m]) * rstd[m]
dw[c] = sum m: dY[m, c] * xhat[m, c]    -->    dw[c] = sum m: dY[m, c] * ((X[m, c] - mean[m]) * rstd[m])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    Equation,
    Expr,
    Module,
    Name,
    Op,
    Reduction,
    Target,
    children,
    rebuild,
    substitute,
)
from tcomp.dsl.errors import TcError
from tcomp.dsl.inline import inline_functions
from tcomp.schedule.fold import bind_dims, reads


def map_expressions(eq: Equation, f: Callable[[Expr], Expr]) -> Equation:
    """Apply `f` to every expression of an equation, target subscripts included."""
    targets = tuple(replace(t, subscripts=tuple(f(s) for s in t.subscripts)) for t in eq.targets)
    v = eq.value
    if isinstance(v, Reduction):
        new: Expr | Reduction = replace(
            v,
            guard=None if v.guard is None else f(v.guard),
            key=None if v.key is None else f(v.key),
            values=tuple(f(x) for x in v.values),
        )
    else:
        new = f(v)
    return replace(eq, targets=targets, value=new)


def normalise(op: Op, module: Module, dims: dict[str, int]) -> tuple[Equation, ...]:
    """The op's equations with user functions expanded and dimensions replaced by numbers."""
    return tuple(map_expressions(eq, lambda e: bind_dims(inline_functions(e, module), dims)) for eq in op.equations)


def inline_temporaries(
    equations: tuple[Equation, ...], names: frozenset[str], temporaries: frozenset[str], text: str
) -> tuple[Equation, ...]:
    """Substitute the pointwise temporaries `names` into their readers and drop their equations."""
    bodies: dict[str, tuple[Target, Expr]] = {}
    out: list[Equation] = []
    for eq in equations:
        eq = map_expressions(eq, lambda e: _expand(e, bodies))
        name = eq.target.name
        if name in names:
            plain = all(isinstance(s, Name) for s in eq.target.subscripts)
            if name not in temporaries or isinstance(eq.value, Reduction) or not plain:
                raise TcError(
                    f"'{name}' cannot be inlined: only temporaries defined point by point can",
                    eq.span,
                    text,
                    f"remove '{name}' from the schedule's inline line",
                )
            bodies[name] = (eq.target, eq.value)
        else:
            out.append(eq)
    return tuple(out)


def _expand(e: Expr, bodies: dict[str, tuple[Target, Expr]]) -> Expr:
    kids = tuple(_expand(k, bodies) for k in children(e))
    e = rebuild(e, kids) if kids else e
    if isinstance(e, Access) and e.tensor in bodies:
        target, body = bodies[e.tensor]
        names = {t.id: s for t, s in zip(target.subscripts, e.subscripts, strict=True) if isinstance(t, Name)}
        return substitute(body, names)
    return e


def needed(equations: tuple[Equation, ...], outputs: frozenset[str], available: frozenset[str]) -> tuple[Equation, ...]:
    """The equations that compute `outputs`, and the temporaries they need that are not `available`."""
    wanted = set(outputs)
    keep: list[Equation] = []
    for eq in reversed(equations):
        if any(t.name in wanted for t in eq.targets):
            keep.append(eq)
            exprs = [s for t in eq.targets for s in t.subscripts]
            v = eq.value
            if isinstance(v, Reduction):
                exprs += [
                    *v.values,
                    *([v.key] if v.key is not None else []),
                    *([v.guard] if v.guard is not None else []),
                ]
            else:
                exprs.append(v)
            wanted |= {a.tensor for e in exprs for a in reads(e)} - available
    return tuple(reversed(keep))
