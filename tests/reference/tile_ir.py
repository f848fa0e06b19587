"""Short constructors for tile IR that is built by hand."""

from __future__ import annotations

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num
from tcomp.ir.tile import Buffer, Scope


def operand(name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
    return Buffer(name, dtype, shape, Scope.OPERAND)


def at(tensor: str, *subscripts: Expr | str | int) -> Access:
    return Access(tensor, tuple(ex(s) for s in subscripts))


def ex(e: Expr | str | float) -> Expr:
    if isinstance(e, str):
        return Name(e)
    return Num(e) if isinstance(e, (int, float)) else e


def op(o: str, a: Expr | str | float, b: Expr | str | float) -> Expr:
    return Binary(o, ex(a), ex(b))


def fn(name: str, *args: Expr | str | float) -> Expr:
    return Call(name, tuple(ex(a) for a in args))
