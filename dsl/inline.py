"""Expand user functions: after this only builtins and casts are called.

fn sq(x) = x * x
sq(a[i] + 1)  -->  (a[i] + 1) * (a[i] + 1)
"""

from __future__ import annotations

from tcomp.dsl.ast import Call, Expr, Function, Module, Reduction, children, rebuild, substitute
from tcomp.dsl.errors import TcError


def inline_functions(e: Expr, module: Module) -> Expr:
    """The expression with every call of a `fn` replaced by the function's body."""
    return _inline(e, module.functions, ())


def inline_value(value: Expr | Reduction, module: Module) -> Expr | Reduction:
    """The same for an equation's right-hand side, reductions included."""
    if not isinstance(value, Reduction):
        return inline_functions(value, module)
    return Reduction(
        value.reducer,
        value.indices,
        None if value.guard is None else inline_functions(value.guard, module),
        None if value.key is None else inline_functions(value.key, module),
        tuple(inline_functions(v, module) for v in value.values),
        value.span,
    )


def _inline(e: Expr, functions: dict[str, Function], active: tuple[str, ...]) -> Expr:
    old = children(e)
    if not old:
        return e
    new = tuple(_inline(c, functions, active) for c in old)
    if isinstance(e, Call) and e.function in functions:
        f = functions[e.function]
        if f.name in active:
            chain = " -> ".join((*active, f.name))
            raise TcError(
                f"fn '{f.name}' calls itself ({chain})", f.span, hint="functions are inlined and cannot recurse"
            )
        if len(new) != len(f.params):
            raise TcError(
                f"fn '{f.name}' takes {len(f.params)} arguments, not {len(new)}",
                e.span,
                hint="pass one for each parameter",
            )
        body = _inline(f.body, functions, (*active, f.name))
        return substitute(body, dict(zip(f.params, new, strict=True)))
    return e if all(a is b for a, b in zip(old, new, strict=True)) else rebuild(e, new)
