"""Syntax tree to text: every printed expression, op or item parses again to an equal tree.

Parentheses are printed only where precedence needs them. `**` binds tighter than a minus on its left and
takes a minus on its right (`-x ** -0.5` is -(x ** (-0.5))).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tcomp.dsl import ast
from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Reduction, Unary

WIDTH = 110

_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT, _NEGATION, _POWER, _ATOM = range(1, 10)
_LEVEL = {"or": _OR, "and": _AND, "+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT, "//": _PRODUCT}
_LEVEL |= {"%": _PRODUCT, "**": _POWER, **dict.fromkeys(ast.COMPARISONS, _COMPARE)}


def print_expression(e: Expr) -> str:
    """The expression as .tc text."""
    return _expression(e, _OR)


def _expression(e: Expr, context: int) -> str:
    """Text of `e` where the grammar takes expressions of precedence `context` or tighter."""
    match e:
        case Num(value):
            text, level = _number(value), _ATOM
            if text.startswith("-"):
                level = _NEGATION
        case Name(id):
            return id
        case Access(tensor, subscripts):
            return f"{tensor}[{_list(subscripts)}]" if subscripts else tensor
        case Call(function, args):
            return f"{function}({_list(args)})"
        case Unary("not", operand):
            text, level = f"not {_expression(operand, _NOT)}", _NOT
        case Unary(_, operand):
            inner = _expression(operand, _NEGATION)
            if isinstance(operand, Num | Unary):
                inner = f"({print_expression(operand)})"  # -2 alone would be a literal
            text, level = f"-{inner}", _NEGATION
        case Binary("**", left, right):
            text, level = f"{_expression(left, _ATOM)} ** {_expression(right, _NEGATION)}", _POWER
        case Binary(op, left, right):
            level = _LEVEL[op]
            left_context = level + 1 if level == _COMPARE else level
            text = f"{_expression(left, left_context)} {op} {_expression(right, level + 1)}"
    return f"({text})" if level < context else text


def _number(value: int | float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(float(value))


def _list(es: Iterable[Expr]) -> str:
    return ", ".join(print_expression(e) for e in es)


# ------------------------------------------------------------------------------------------------ ops


def print_reduction(r: Reduction) -> str:
    """`sum k where k <= q: X[q, k]`."""
    where = f" where {print_expression(r.guard)}" if r.guard is not None else ""
    by = f" by {print_expression(r.key)}" if r.key is not None else ""
    return f"{r.reducer} {', '.join(r.indices)}{where}{by}: {_list(r.values)}"


def print_equation(q: ast.Equation) -> str:
    """One equation, without indentation."""
    value = print_reduction(q.value) if isinstance(q.value, Reduction) else print_expression(q.value)
    return f"{', '.join(map(_target, q.targets))} {'+=' if q.accumulate else '='} {value}"


def _target(t: ast.Target) -> str:
    subscripts = f"[{_list(t.subscripts)}]" if t.subscripts else ""
    return f"{t.name}{subscripts}" + (f": {t.dtype}" if t.dtype is not None else "")


def _type(dtype: ast.DType, shape: tuple[Expr, ...]) -> str:
    return f"{dtype}[{_list(shape)}]"


def _declared(o: ast.Operand) -> tuple[object, ...]:
    return o.dtype, o.shape, o.inout, o.state


def _operands(operands: Sequence[ast.Operand]) -> list[str]:
    """Neighbours of one type share it: `Q, K: f32[T, D]`."""
    groups: list[list[ast.Operand]] = []
    for o in operands:
        if groups and _declared(groups[-1][0]) == _declared(o):
            groups[-1].append(o)
        else:
            groups.append([o])
    return [
        ("inout " if g[0].inout else "state " if g[0].state else "")
        + ", ".join(o.name for o in g)
        + f": {_type(g[0].dtype, g[0].shape)}"
        for g in groups
    ]


def print_op(op: ast.Op) -> str:
    """The op with its doc comment, header and lines."""
    lines = _header(op, f"backward {op.backward_of}" if op.backward_of else f"op {op.name}")
    lines += [f"  index {n}: {print_expression(e)}" for n, e in op.ranges]
    lines += [f"  {print_equation(q)}" for q in op.equations]
    return "\n".join(lines) + "\n"


def _header(op: ast.Op, what: str) -> list[str]:
    """The comment, operands, results and requirements of an op or update."""
    start = f"{what}("
    params = ", ".join(_operands(op.params)) + (f"; {', '.join(op.dims)}" if op.dims else "") + ")"
    outputs = f"-> {', '.join(_operands(op.outputs))}:" if op.outputs else ""
    lines = _comment(op.doc)
    if not outputs:
        lines += _wrap(start, params + ":")
    elif len(start + params + " " + outputs) <= WIDTH:
        lines.append(f"{start}{params} {outputs}")
    else:
        lines += [*_wrap(start, params), f"    {outputs}"]
    return lines + [f"  require {print_expression(e)}" for e in op.requires]


def _comment(doc: str) -> list[str]:
    return [f"# {line}".rstrip() for line in doc.split("\n")] if doc else []


def _wrap(start: str, rest: str) -> list[str]:
    """Break a long header inside its brackets, after a comma that ends an operand."""
    lines: list[str] = []
    current = start
    for piece in rest.replace("], ", "],\n").split("\n"):
        gap = "" if current.endswith(("(", "    ")) else " "
        if len(current + gap + piece) > WIDTH and current.strip() != start:
            lines.append(current)
            current, gap = "    ", ""
        current += gap + piece
    return [*lines, current]


def print_function(f: ast.Function) -> str:
    return f"fn {f.name}({', '.join(f.params)}) = {print_expression(f.body)}\n"


def print_monoid(m: ast.Monoid) -> str:
    key, carried = print_expression(m.key), print_expression(m.carried)
    return f"monoid {m.name} by {m.key_name}:\n  {m.key_name} = {key}\n  {m.carried_name} = {carried}\n"


# ------------------------------------------------------------------------------------------ schedules


def _level(v: ast.Level) -> str:
    return f"{v.kind}({_list(v.args)})" if v.args else v.kind


def _when(condition: ast.Expr | None) -> str:
    return "" if condition is None else f" when({print_expression(condition)})"


def print_directive(d: ast.Directive) -> str:
    """One line of a schedule, without indentation."""
    match d:
        case ast.MapLoops(loops, of, levels, condition):
            restricted = f" of {', '.join(of)}" if of else ""
            return f"{', '.join(loops)}{restricted} -> {' / '.join(map(_level, levels))}{_when(condition)}"
        case ast.Order(loops):
            return f"order {', '.join(loops)}"
        case ast.Fuse(names, at):
            return f"fuse {', '.join(names)} at {at}"
        case ast.Stage(tensors, space, at, by, options):
            text = f"stage {', '.join(tensors)} in {space} at {at}" + (f" by {by}" if by else "")
            return " ".join([text, *map(_level, options)])
        case ast.Use(instruction, names):
            return f"use {instruction} for {', '.join(names)}"
        case ast.Cast(what, dtype):
            return f"cast {what} to {dtype}"
        case ast.Combine(names, over, by, condition):
            return f"combine {', '.join(names)} over {over} by {by}{_when(condition)}"
        case ast.Tune(name, default, choices):
            return f"tune {name} = {print_expression(default)}" + (f" from {_choices(choices)}" if choices else "")
        case ast.Where(conditions):
            return "where " + " and ".join(_expression(c, _NOT) for c in conditions)
        case ast.Flag(name, args):
            return f"{name} {_list(args)}" if args else name


def _choices(choices: tuple[Expr, ...]) -> str:
    """`2..6`, where they are more than four numbers in a row."""
    values = [c.value for c in choices if isinstance(c, Num) and isinstance(c.value, int)]
    if len(values) == len(choices) > 4 and values == list(range(values[0], values[0] + len(values))):
        return f"{values[0]}..{values[-1]}"
    return _list(choices)


def print_schedule(s: ast.Schedule) -> str:
    lines = [f"schedule {s.op} on {s.target}:"]
    lines += [f"  {print_directive(d)}" for d in s.shared]
    for k in s.kernels:
        indent = "  "
        if k.outputs:
            lines.append(f"  kernel {', '.join(k.outputs)}:")
            indent = "    "
        lines += [f"{indent}{print_directive(d)}" for d in k.directives]
    return "\n".join(lines) + "\n"


# --------------------------------------------------------------------------------------------- models


def _assignments(values: Iterable[tuple[str, Expr]]) -> str:
    return ", ".join(f"{n} = {print_expression(e)}" for n, e in values)


def _call(c: Call) -> str:
    return f"{c.function}({_list(c.args)})" if c.args else c.function


def print_tensor_ref(t: ast.TensorRef) -> str:
    subscripts = f"[{_list(t.subscripts)}]" if t.subscripts else ""
    return f"{t.name}{subscripts}" + (f" as [{_list(t.shape)}]" if t.shape is not None else "")


def print_statement(s: ast.ModelStatement) -> list[str]:
    """The lines of a model statement, without outer indentation."""
    if isinstance(s, ast.ForLayers):
        body = [f"  {line}" for b in s.body for line in print_statement(b)]
        return [f"for {s.index} in {print_expression(s.extent)}:", *body]
    if isinstance(s, ast.Alias):
        return [f"{s.name} = {print_tensor_ref(s.value)}"]
    args = [print_tensor_ref(a) if isinstance(a, ast.TensorRef) else print_expression(a) for a in s.args]
    args += [f"{n} = {print_expression(e)}" for n, e in s.keywords]
    notes = f" [{', '.join(map(_call, s.annotations))}]" if s.annotations else ""
    where = f" where {print_expression(s.where)}" if s.where is not None else ""
    results = f"{', '.join(map(print_tensor_ref, s.results))} = " if s.results else ""
    return [f"{results}{s.op}({', '.join(args)}){notes}{where}"]


def print_model(m: ast.Model) -> str:
    lines = [*_comment(m.doc), f"model {m.name}({', '.join(m.dims)}):"]
    lines += [f"  config {c.name}: {_assignments(c.values)}" for c in m.configs]
    lines += [f"  let {n} = {print_expression(e)}" for n, e in m.lets]
    lines += [f"  require {print_expression(e)}" for e in m.requires]
    if m.precision != "f32":
        lines.append(f"  precision {m.precision}")
    for p in m.params:
        group = f" in {p.group}" * bool(p.group) + " frozen" * p.frozen
        lines.append(f"  param {p.name}: {_type(p.dtype, p.shape)} = {_call(p.init)}{group}")
    for t in m.ties:
        where = f" where {print_expression(t.where)}" if t.where is not None else ""
        lines.append(f"  tie {t.name} to {t.to}{where}")
    for x in m.states:
        only = f" under {x.precision}" if x.precision else ""
        lines.append(f"  state {x.name}: {_type(x.dtype, x.shape)} = {_call(x.init)} by {x.op}{only}")
    lines += [f"  {_input(i)}" for i in m.inputs]
    lines.append("  forward:")
    lines += [f"    {line}" for s in m.forward for line in print_statement(s)]
    if m.decode:
        lines += _decode(m.decode)
    lines.append(f"  loss {m.loss}")
    if m.logits:
        lines.append(f"  logits {m.logits}")
    if m.optimizer:
        lines += _optimizer(m.optimizer)
    return "\n".join(lines) + "\n"


def _decode(d: ast.Decode) -> list[str]:
    lines = [f"  decode({', '.join(d.dims)}):"]
    lines += [f"    require {print_expression(e)}" for e in d.requires]
    lines += [f"    {_input(i)}" for i in d.inputs]
    lines += [f"    cache {c.name}: {_type(c.dtype, c.shape)}" for c in d.caches]
    for r in d.replacements:
        args = ", ".join(print_tensor_ref(a) if isinstance(a, ast.TensorRef) else print_expression(a) for a in r.args)
        lines.append(f"    {r.op} -> {r.by}" + (f" with {args}" if args else ""))
    return lines


def _input(i: ast.InputDecl) -> str:
    below = f" below {print_expression(i.below)}" if i.below is not None else ""
    return f"input {i.name}: {_type(i.dtype, i.shape)}{below}"


def _optimizer(o: ast.Optimizer) -> list[str]:
    lines = [f"  optimizer {o.op}{f' of {o.of}' * bool(o.of)}:"]
    if o.hyper:
        lines.append(f"    hyper {_assignments(o.hyper)}")
    for g in o.groups:
        how = f" of {', '.join(g.params)}" * bool(g.params) + f" by {g.op}" * bool(g.op)
        lines.append(f"    group {g.name}{how}" + f": {_assignments(g.values)}" * bool(g.values))
    if o.schedule:
        lines.append(f"    lr by {o.schedule}")
    if o.norm:
        lines.append(f"    norm by {o.norm}")
    lines += [f"    under {precision} by {op}" for precision, op in o.variants]
    lines += [f"    under {precision} {g.name} by {op}" for g in o.groups for precision, op in g.variants]
    return lines


def print_update(u: ast.Update) -> str:
    """An update with its doc comment, header and statements."""
    lines = _header(u.signature, f"update {u.name}")
    lines += [f"  {line}" for s in u.body for line in print_statement(s)]
    return "\n".join(lines) + "\n"


def print_item(item: ast.Item) -> str:
    """Any top-level item as .tc text."""
    match item:
        case ast.Op():
            return print_op(item)
        case ast.Function():
            return print_function(item)
        case ast.Monoid():
            return print_monoid(item)
        case ast.Schedule():
            return print_schedule(item)
        case ast.Update():
            return print_update(item)
        case ast.Model():
            return print_model(item)
        case ast.Optimizer():
            return "".join(f"{line[2:]}\n" for line in _optimizer(item))
        case ast.Import(path, precision):
            return f"import {path}" + (f" under {precision}" if precision else "") + "\n"
