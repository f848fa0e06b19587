"""The element type of an expression, by the language's promotion rules.

Integers: i32 operands, indices, dimensions and whole literals; `+ - * // %`, min, max, select and abs of
integers stay integers. `/`, `**` and the mathematical functions are real. Reals compute in f32, or in f64
when every real operand is f64; literals take the type of what they meet. A cast `bf16(x)` has its own type.
`real` computes in f32 whatever it is bound to.
"""

from __future__ import annotations

from collections.abc import Mapping

from tcomp.dsl.ast import BUILTINS, Access, Binary, Call, DType, Expr, Module, Name, Num, Unary, substitute

_KEEP_INTEGER = ("min", "max", "abs", "select")
CASTS = {d.value: d for d in DType}
STOCHASTIC = (DType.REAL.value, DType.BF16.value)
"""Casts that take a random number as a second argument, to round by it."""


def dtype_of(e: Expr, tensors: Mapping[str, DType], module: Module) -> DType:
    """The type the expression computes in: I32, F64 or F32 (or a cast's own type)."""
    kinds = _kinds(e, tensors, module)
    if kinds == {"int"}:
        return DType.I32
    return DType.F64 if "f64" in kinds and "f32" not in kinds else DType.F32


def widths_of(e: Expr, tensors: Mapping[str, DType], module: Module) -> set[str]:
    """Which of f64 and f32 (which all narrower reals compute in) meet in a value: neither in integers and literals."""
    return _kinds(e, tensors, module) & {"f64", "f32"}


def _kinds(e: Expr, tensors: Mapping[str, DType], module: Module) -> set[str]:
    """Which of int, f64, f32 and real (a literal of no particular type) meet in a value."""
    match e:
        case Num(value):
            return {"int"} if isinstance(value, int) else {"real"}
        case Name():
            return {"int"}
        case Access(tensor):
            d = tensors.get(tensor, DType.F32)
            return {"int"} if d is DType.I32 else {"f64"} if d is DType.F64 else {"f32"}
        case Unary("-", operand):
            return _kinds(operand, tensors, module)
        case Unary():
            return {"int"}
        case Binary(op, left, right):
            if op not in ("+", "-", "*", "/", "//", "%", "**"):
                return {"int"}
            return _join(_kinds(left, tensors, module) | _kinds(right, tensors, module), op in ("/", "**"))
        case Call(function, args):
            if function in CASTS:
                d = CASTS[function]
                return {"int"} if d is DType.I32 else {"f64"} if d is DType.F64 else {"f32"}
            if function == "random":
                return {"f32"}
            if function in module.functions:
                f = module.functions[function]
                if len(f.params) == len(args):
                    body = substitute(f.body, dict(zip(f.params, args, strict=True)))
                    return _kinds(body, tensors, module)
                return {"f32"}
            if function in BUILTINS:
                values = args[1:] if function == "select" else args
                kinds = set().union(*(_kinds(a, tensors, module) for a in values))
                return _join(kinds, function not in _KEEP_INTEGER)
            return {"f32"}


def _join(kinds: set[str], real: bool) -> set[str]:
    """Integers that meet a real take its type; `real` makes a real of integers alone."""
    floats = kinds - {"int"}
    if floats:
        return floats
    return {"real"} if real else {"int"}
