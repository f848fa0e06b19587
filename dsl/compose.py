"""Ops that call ops: the called op's equations stand where it is called, under the caller's names.

op product(X: real[M, K], W: real[N, K]) -> acc: f32[M, N]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
op linear(A: real[M, K], W: real[N, K], b: real[N]) -> Y: real[M, N]:
  p = product(A, W)                     -->  p[m, n]: f32 = sum k: A[m, k] * W[n, k]
  Y[m, n] = p[m, n] + b[n]

Operands take the names of what is passed, results those of the targets, dimensions what the passed operands' shapes
say. Temporaries and indices keep their names: one schedule can speak of them in every op that makes the call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tcomp.dsl.ast import (
    Access,
    Call,
    DType,
    Equation,
    Expr,
    Module,
    Name,
    Op,
    Operand,
    Reduction,
    Span,
    Target,
    map_children,
)
from tcomp.dsl.build_expressions import DEEPEST
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean
from tcomp.dsl.infer import dimensions
from tcomp.dsl.printer import print_expression


def compose(op: Op, module: Module) -> Op:
    """The op without calls of ops. TcError at a call that does not fit the op it names."""
    return _compose(op, module, ())


def _compose(op: Op, module: Module, active: tuple[str, ...]) -> Op:
    if not any(_callee(q, module) for q in op.equations):
        return op
    if op.name in active:
        chain = " -> ".join((*active[active.index(op.name) :], op.name))
        hint = "ops are written out where they are called and cannot recurse"
        raise TcError(f"op '{op.name}' calls itself ({chain})", op.span, hint=hint)
    if len(active) > DEEPEST:
        first = module.ops[active[0]]
        hint = "write some of them out where they are called"
        raise TcError(f"op '{first.name}' calls ops more than {DEEPEST} levels deep", first.span, hint=hint)
    out = _Composed(op, module)
    for q in op.equations:
        callee = _callee(q, module)
        if callee is None:
            out.equations.append(q)
        else:
            out.call(q, _compose(callee, module, (*active, op.name)))
    return replace(
        op, equations=tuple(out.equations), ranges=tuple(out.ranges), requires=tuple(dict.fromkeys(out.requires))
    )


def _callee(q: Equation, module: Module) -> Op | None:
    """The op that an equation calls, if its whole right-hand side is such a call."""
    v = q.value
    if isinstance(v, Call) and v.function not in module.functions:
        return module.ops.get(v.function)
    return None


@dataclass
class _Composed:
    op: Op
    module: Module
    equations: list[Equation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ranges = list(self.op.ranges)
        self.requires = list(self.op.requires)
        own = (t.name for q in self.op.equations for t in q.targets if t.name != "_")
        self.taken = {o.name for o in self.op.operands} | set(own)

    def call(self, q: Equation, callee: Op) -> None:
        call = q.value
        assert isinstance(call, Call)
        if q.accumulate:
            raise TcError(f"`+=` with a call of op '{callee.name}'", q.span, hint="name its result, and add that")
        names = dict(self._operands(call, callee))
        names |= self._results(q, callee)
        kept = [t.name for e in callee.equations for t in e.targets if t.name not in names]
        for name in dict.fromkeys(kept):
            if name in self.taken:
                message = f"'{name}' is a tensor of '{self.op.name}' and of op '{callee.name}', which it calls"
                raise TcError(message, call.span, hint="rename one of them")
            self.taken.add(name)
        rename = _Rename(names, self._dims(call, callee), call.span)
        declared = {o.name for o in self.op.operands}
        types = {names[o.name]: o.dtype for o in callee.outputs}
        for e in callee.equations:
            targets = []
            for t in map(rename.target, e.targets):
                dtype = None if t.name in declared else types.get(t.name, t.dtype)
                declared.add(t.name)
                targets.append(replace(t, dtype=dtype))
            self.equations.append(replace(rename.equation(e), targets=tuple(targets)))
        self.ranges += [r for i, e in callee.ranges if (r := (i, rename.expr(e))) not in self.ranges]
        self.requires += map(rename.expr, callee.requires)

    def _operands(self, call: Call, callee: Op) -> Iterator[tuple[str, str]]:
        if len(call.args) != len(callee.params):
            wanted = ", ".join(p.name for p in callee.params)
            message = f"op '{callee.name}' takes {len(callee.params)} operands, not {len(call.args)}"
            raise TcError(message, call.span, hint=f"pass {wanted}")
        for p, a in zip(callee.params, call.args, strict=True):
            name = _plain(a)
            if name is None:
                message = f"operand '{p.name}' of op '{callee.name}' must be a tensor's name"
                raise TcError(message, a.span, hint="give the value a name in an equation before")
            if name not in self.taken:
                hint = did_you_mean(name, sorted(self.taken), "tensor")
                raise TcError(f"unknown tensor '{name}'", a.span, hint=hint)
            self._refuse_types(p, name, a.span, callee)
            yield p.name, name

    def _results(self, q: Equation, callee: Op) -> dict[str, str]:
        if len(q.targets) != len(callee.outputs):
            wanted = ", ".join(o.name for o in callee.outputs)
            message = f"op '{callee.name}' gives {len(callee.outputs)} results, not {len(q.targets)}"
            raise TcError(message, q.span, hint=f"name them all: {wanted} (`_` for what is not read)")
        for t in q.targets:
            if t.subscripts or t.dtype:
                hint = f"write `{t.name} = {callee.name}(...)`"
                raise TcError("the result of an op is a whole tensor, without subscripts or type", t.span, hint=hint)
        for o, t in zip(callee.outputs, q.targets, strict=True):
            self._refuse_types(o, t.name, t.span, callee)
        return {o.name: o.name if t.name == "_" else t.name for o, t in zip(callee.outputs, q.targets, strict=True)}

    def _dims(self, call: Call, callee: Op) -> dict[str, Expr]:
        """What the callee's dimensions are here, by the shapes of the operands that are passed on. (A temporary's shape
        is not known before the equations are: it gives no dimension.)"""
        passed = [(p, a, self.op.operand(_plain(a) or "")) for p, a in zip(callee.params, call.args, strict=True)]
        found: dict[str, Expr] = {}
        for p, a, own in passed:
            if own is None:
                continue
            if len(own.shape) != len(p.shape):
                message = f"operand '{p.name}' of op '{callee.name}' has {len(p.shape)} axes, '{own.name}' has "
                raise TcError(message + str(len(own.shape)), a.span, hint="pass a tensor of as many axes")
            for dim, extent in zip(p.shape, own.shape, strict=True):
                if isinstance(dim, Name) and found.setdefault(dim.id, extent) != extent:
                    message = f"dimension '{dim.id}' of op '{callee.name}' has two extents here"
                    raise TcError(message, a.span, hint="the operands' shapes must agree")
        for name in dimensions(callee):
            if name not in found:
                message = f"nothing passed to op '{callee.name}' says what its dimension '{name}' is"
                hint = f"pass an operand of '{self.op.name}' for one with '{name}' in its shape: a temporary gives none"
                raise TcError(message, call.span, hint=hint)
        rename = _Rename({}, found, call.span)
        for p, a, own in passed:
            for dim, extent in zip(p.shape, own.shape if own else (), strict=False):
                if rename.expr(dim) != extent:
                    wanted, here = print_expression(dim), print_expression(extent)
                    message = f"operand '{p.name}' of op '{callee.name}' is of extent {wanted}, '{_plain(a)}' of {here}"
                    raise TcError(message, a.span, hint="pass a tensor of that shape")
        return found

    def _refuse_types(self, theirs: Operand, name: str, span: Span, callee: Op) -> None:
        """TcError where a declared operand's elements are not of the callee's type. `real` is any float's."""
        own = self.op.operand(name)
        if own is None or own.dtype == theirs.dtype:
            return
        if DType.REAL in (own.dtype, theirs.dtype) and own.dtype.is_float and theirs.dtype.is_float:
            return
        message = f"'{theirs.name}' of op '{callee.name}' has elements of type {theirs.dtype}, '{name}' of {own.dtype}"
        raise TcError(message, span, hint="declare them alike, or convert in an equation of its own")


def _plain(e: Expr) -> str | None:
    """The tensor that an argument names: `X`, or the scalar `s`."""
    if isinstance(e, Name):
        return e.id
    return e.tensor if isinstance(e, Access) and not e.subscripts else None


@dataclass(frozen=True)
class _Rename:
    """Tensors and dimensions of the callee under the caller's names. Messages about what comes from another file point
    at the call."""

    tensors: dict[str, str]
    dims: dict[str, Expr]
    call: Span

    def span(self, own: Span) -> Span:
        return own if own.file == self.call.file else self.call

    def expr(self, e: Expr) -> Expr:
        if isinstance(e, Name):
            return self.dims[e.id] if e.id in self.dims else replace(e, span=self.span(e.span))
        e = map_children(e, self.expr)
        e = replace(e, tensor=self.tensors.get(e.tensor, e.tensor)) if isinstance(e, Access) else e
        return replace(e, span=self.span(e.span))

    def target(self, t: Target) -> Target:
        subscripts = tuple(map(self.expr, t.subscripts))
        return replace(t, name=self.tensors.get(t.name, t.name), subscripts=subscripts, span=self.span(t.span))

    def equation(self, q: Equation) -> Equation:
        v = q.value
        value: Expr | Reduction
        if isinstance(v, Reduction):
            value = replace(
                v,
                guard=None if v.guard is None else self.expr(v.guard),
                key=None if v.key is None else self.expr(v.key),
                values=tuple(map(self.expr, v.values)),
                span=self.span(v.span),
            )
        else:
            value = self.expr(v)
        return replace(q, value=value, span=self.span(q.span))
