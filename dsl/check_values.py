"""Checks of scalar expressions: every name known, every call right, numbers and conditions kept apart.

A comparison gives a condition, and `and`, `or`, `not` work on conditions; `select(condition, a, b)` makes a
number of one. Everything else works on numbers.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from tcomp.dsl.ast import (
    BUILTINS,
    COMPARISONS,
    LOGIC,
    Access,
    Binary,
    Call,
    DType,
    Expr,
    Module,
    Name,
    Num,
    Span,
    Unary,
)
from tcomp.dsl.dtypes import CASTS, STOCHASTIC
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import count, did_you_mean
from tcomp.dsl.printer import print_expression


@dataclass(frozen=True)
class Scope:
    """What an expression may name. `indices` are those in force here, `every_index` those of the op;
    `defined` and `tensors` map tensors (already written; all of the op) to their number of axes.
    `argument` is set in a fn or monoid, where names are arguments and there are no tensors."""

    dims: frozenset[str]
    indices: frozenset[str]
    every_index: frozenset[str]
    defined: dict[str, int]
    tensors: dict[str, int]
    module: Module
    argument: bool = False


def check_number(e: Expr, scope: Scope) -> None:
    """TcError unless `e` is a number made of known things."""
    if is_condition(e):
        hint = f"turn it into a number: `select({print_expression(e)}, 1.0, 0.0)`"
        raise TcError("a condition stands where a number is needed", e.span, hint=hint)
    match e:
        case Num():
            return
        case Name(id):
            _check_name(e, id, scope)
        case Access(tensor, subscripts):
            _check_access(e, tensor, subscripts, scope)
        case Unary(_, operand):
            check_number(operand, scope)
        case Binary(_, left, right):
            check_number(left, scope)
            check_number(right, scope)
        case Call(function, args):
            _check_call(e, function, args, scope)


def check_condition(e: Expr, scope: Scope) -> None:
    """TcError unless `e` is a condition made of known things."""
    for number in compared(e, e.span):
        check_number(number, scope)


def compared(e: Expr, span: Span, conditions: Set[str] = frozenset()) -> tuple[Expr, ...]:
    """The numbers that a condition compares, whatever they name; TcError (at `span`, where `e` has no place of its own)
    unless `e` is a condition. `conditions` are names that stand for one."""
    match e:
        case Name(id) if id in conditions:
            return ()
        case Unary("not", operand):
            return compared(operand, span, conditions)
        case Binary(op, left, right) if op in LOGIC:
            return (*compared(left, span, conditions), *compared(right, span, conditions))
        case Binary(op, left, right) if op in COMPARISONS:
            return left, right
        case _:
            hint = f"compare it with something: `{print_expression(e)} != 0`"
            at = e.span if e.span.line else span
            raise TcError("a number stands where a condition is needed", at, hint=hint)


def is_condition(e: Expr, conditions: Set[str] = frozenset()) -> bool:
    """Is it a condition as a whole? `conditions` are names that stand for one."""
    logic = isinstance(e, Binary) and e.op in (*COMPARISONS, *LOGIC)
    return logic or (isinstance(e, Unary) and e.op == "not") or (isinstance(e, Name) and e.id in conditions)


def _check_name(e: Expr, id: str, scope: Scope) -> None:
    if id in scope.indices or id in scope.dims:
        return
    if scope.argument:
        hint = did_you_mean(id, sorted(scope.indices), "name")
        raise TcError(f"unknown name '{id}'", e.span, hint=hint)
    if id in scope.tensors:
        rank = scope.tensors[id]
        hint = f"write {id}[{', '.join('ijkl'[n] if n < 4 else '...' for n in range(rank))}] with its indices"
        raise TcError(f"tensor '{id}' has {axes(rank)} and needs as many subscripts", e.span, hint=hint)
    if id in scope.every_index:
        hint = f"put '{id}' on the left, or reduce over it: `sum {id}: ...`"
        raise TcError(f"index '{id}' is neither on the left of this equation nor reduced", e.span, hint=hint)
    known = [*scope.indices, *scope.dims, *scope.tensors]
    hint = did_you_mean(id, sorted(known), "name")
    if not hint.startswith("did"):
        hint = f"an index must stand on the left or be reduced: `sum {id}: ...`"
    raise TcError(f"unknown name '{id}'", e.span, hint=hint)


def _check_access(e: Expr, tensor: str, subscripts: tuple[Expr, ...], scope: Scope) -> None:
    if scope.argument:
        raise TcError("tensors cannot be read here", e.span, hint="pass the value as an argument")
    if tensor not in scope.tensors:
        hint = did_you_mean(tensor, sorted(scope.tensors), "tensor")
        raise TcError(f"unknown tensor '{tensor}'", e.span, hint=hint)
    if tensor not in scope.defined:
        hint = "equations run in order: move the one that writes it up"
        raise TcError(f"'{tensor}' is read before it is written", e.span, hint=hint)
    rank = scope.tensors[tensor]
    if rank != len(subscripts):
        raise TcError(f"'{tensor}' has {axes(rank)}, but {subscripted(len(subscripts))} here", e.span, hint=PER_AXIS)
    for s in subscripts:
        check_number(s, scope)


PER_AXIS = "give one subscript per axis"


def axes(rank: int) -> str:
    return "no axes" if rank == 0 else count(rank, "axis", "axes")


def subscripted(n: int) -> str:
    return "no subscript" if n == 0 else count(n, "subscript")


def _check_call(e: Expr, function: str, args: tuple[Expr, ...], scope: Scope) -> None:
    module = scope.module
    if function in module.functions:
        arity = len(module.functions[function].params)
    elif function == DType.REAL.value and scope.argument:
        hint = "a `fn` and a monoid have no storage type: cast where the op uses them"
        raise TcError("`real` is cast to outside an op", e.span, hint=hint)
    elif function in STOCHASTIC and len(args) == 2:
        arity = 2
    elif function in CASTS:
        arity = 1
    elif function in BUILTINS:
        arity = BUILTINS[function]
    elif function == "sum" or function in module.monoids:
        hint = f"a reduction is a whole right-hand side: `t[...] = {function} k: ...`"
        raise TcError(f"'{function}' is a reducer, not a function", e.span, hint=hint)
    elif function in scope.tensors:
        raise TcError(f"tensor '{function}' is called", e.span, hint=f"subscripts take brackets: {function}[...]")
    else:
        hint = did_you_mean(function, [*module.functions, *BUILTINS, *CASTS], "function")
        raise TcError(f"unknown function '{function}'", e.span, hint=hint or f"declare it: fn {function}(x) = ...")
    if len(args) != arity:
        names = module.functions[function].params if function in module.functions else "abc"[:arity]
        hint = f"write {function}({', '.join(names)})"
        raise TcError(f"'{function}' takes {count(arity, 'argument')}, not {len(args)}", e.span, hint=hint)
    numbers = args
    if function == "select":
        check_condition(args[0], scope)
        numbers = args[1:]
    for a in numbers:
        check_number(a, scope)
