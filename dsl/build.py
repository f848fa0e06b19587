"""From grammar rules to syntax tree: one method per rule of grammar.lark, called as the parser reduces it.

Each method takes the rule's children (tokens and nodes already built) and gives the node, with its span.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lark import Token

from tcomp.dsl import ast
from tcomp.dsl.ast import DType, Expr, Span
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean
from tcomp.dsl.resolve import resolve_model_arguments, resolve_scalars

_DTYPES = {d.value: d for d in DType}
_SIZES = {"KB": 1024, "MB": 1024**2, "GB": 1024**3}
_SPACES = ("shared", "registers", "packed")
_COMBINATIONS = ("partials", "sorted", "atomic")

Children = list[Any]


class Builder:
    """lark's embedded transformer. `begin` must be called with the text before each parse."""

    def __init__(self) -> None:
        self._file = ""
        self._text = ""
        self._lines: list[str] = []
        self._parenthesised: set[int] = set()
        self._indices: list[tuple[str, Expr]] = []

    def begin(self, file: str, text: str) -> None:
        self._file = file
        self._text = text
        self._lines = text.splitlines()
        self._parenthesised = set()

    # ------------------------------------------------------------------------------------- helpers

    def _token_span(self, t: Token) -> Span:
        return Span(self._file, t.line or 0, t.column or 0, t.end_line or 0, t.end_column or 0)

    def _span(self, first: Any, last: Any) -> Span:
        """From the start of one token or node to the end of another."""
        a = self._token_span(first) if isinstance(first, Token) else first.span
        b = self._token_span(last) if isinstance(last, Token) else last.span
        return Span(self._file, a.line, a.column, b.end_line, b.end_column)

    def _error(self, message: str, where: Any, hint: str = "") -> TcError:
        span = self._token_span(where) if isinstance(where, Token) else where.span
        return TcError(message, span, self._text, hint)

    def _dtype(self, t: Token) -> DType:
        d = _DTYPES.get(str(t))
        if d is None:
            raise self._error(f"unknown element type '{t}'", t, did_you_mean(str(t), _DTYPES, "element type"))
        return d

    def _doc(self, line: int) -> str:
        """The comment block directly above a line."""
        block: list[str] = []
        i = line - 2
        while i >= 0 and self._lines[i].startswith("#"):
            block.append(self._lines[i][1:].removeprefix(" ").rstrip())
            i -= 1
        return "\n".join(reversed(block))

    # --------------------------------------------------------------------------------- expressions

    def expression(self, c: Children) -> Expr:
        return c[0]  # type: ignore[no-any-return]

    def binary(self, c: Children) -> Expr:
        left, op, right = c
        return ast.Binary(str(op), left, right, self._span(left, right))

    def unary(self, c: Children) -> Expr:
        op, operand = c
        if op == "-" and isinstance(operand, ast.Num) and id(operand) not in self._parenthesised:
            return ast.Num(-operand.value, self._span(op, operand))
        return ast.Unary(str(op), operand, self._span(op, operand))

    def integer(self, c: Children) -> Expr:
        return ast.Num(int(c[0]), self._token_span(c[0]))

    def real(self, c: Children) -> Expr:
        return ast.Num(float(c[0]), self._token_span(c[0]))

    def size(self, c: Children) -> Expr:
        return ast.Num(int(c[0][:-2]) * _SIZES[c[0][-2:]], self._token_span(c[0]))

    def name(self, c: Children) -> Expr:
        return ast.Name(str(c[0]), self._token_span(c[0]))

    def access(self, c: Children) -> Expr:
        name, _, subscripts, close = c
        return ast.Access(str(name), subscripts or (), self._span(name, close))

    def call(self, c: Children) -> Expr:
        name, _, args, close = c
        return ast.Call(str(name), args or (), self._span(name, close))

    def parenthesised(self, c: Children) -> Expr:
        e: Expr = replace(c[1], span=self._span(c[0], c[2]))
        self._parenthesised.add(id(e))
        return e

    def expressions(self, c: Children) -> tuple[Expr, ...]:
        return tuple(c)

    def names(self, c: Children) -> tuple[Token, ...]:
        return tuple(c)

    def dotted(self, c: Children) -> Token:
        return c[0]  # type: ignore[no-any-return]

    def dotted_names(self, c: Children) -> tuple[Token, ...]:
        return tuple(c)

    def type(self, c: Children) -> tuple[DType, tuple[Expr, ...], Token]:
        name, _, shape, close = c
        return self._dtype(name), shape or (), close

    # ----------------------------------------------------------------------------------------- ops

    def param(self, c: Children) -> list[ast.Operand]:
        inout, names, (dtype, shape, close) = c
        start = inout or names[0]
        return [
            ast.Operand(str(n), dtype, shape, inout is not None, self._span(start if n is names[0] else n, close))
            for n in names
        ]

    def output(self, c: Children) -> list[ast.Operand]:
        return self.param([None, *c])

    def params(self, c: Children) -> tuple[ast.Operand, ...]:
        return tuple(o for group in c for o in group)

    outputs = params

    def index(self, c: Children) -> tuple[str, Token, Expr]:
        return ("index", c[1], c[2])

    def require(self, c: Children) -> tuple[str, Expr]:
        return ("require", c[1])

    def target(self, c: Children) -> ast.Target:
        name, _, subscripts, close, dtype = c
        d = self._dtype(dtype) if dtype is not None else None
        return ast.Target(str(name), subscripts or (), d, self._span(name, dtype or close or name))

    def reduction(self, c: Children) -> ast.Reduction:
        reducer, indices, guard, key, values = c
        span = self._span(reducer, values[-1])
        return ast.Reduction(str(reducer), tuple(map(str, indices)), guard, key, values, span)

    def equation(self, c: Children) -> ast.Equation:
        *targets, sign, value = c
        return ast.Equation(tuple(targets), sign == "+=", value, self._span(targets[0], value))

    def op(self, c: Children) -> ast.Op:
        keyword, name, params, dims, outputs, *lines = c
        return resolve_scalars(
            ast.Op(
                name=str(name),
                params=params or (),
                outputs=outputs or (),
                dims=tuple(map(str, dims or ())),
                ranges=tuple((str(x[1]), x[2]) for x in lines if isinstance(x, tuple) and x[0] == "index"),
                requires=tuple(x[1] for x in lines if isinstance(x, tuple) and x[0] == "require"),
                equations=tuple(x for x in lines if isinstance(x, ast.Equation)),
                doc=self._doc(keyword.line),
                span=self._span(keyword, name),
            )
        )

    def backward(self, c: Children) -> ast.Op:
        op = self.op(c)
        return replace(op, name=op.name + ".backward", backward_of=op.name)

    def function(self, c: Children) -> ast.Function:
        keyword, name, params, body = c
        return ast.Function(str(name), tuple(map(str, params or ())), body, self._span(keyword, name))

    def monoid_line(self, c: Children) -> tuple[Token, Expr]:
        return c[0], c[1]

    def monoid(self, c: Children) -> ast.Monoid:
        keyword, name, key_name, *lines = c
        keys = [line for line in lines if line[0] == key_name]
        carried = [line for line in lines if line[0] != key_name]
        if not keys:
            hint = f"add `{key_name} = ...`, from `a.{key_name}` and `b.{key_name}`, as the first line"
            raise self._error(f"monoid '{name}' does not say how its key '{key_name}' combines", name, hint)
        if len(keys) > 1:
            raise self._error(f"'{key_name}' is combined twice", keys[1][0], "keep one of the two lines")
        if not carried:
            hint = "add `x = ...`, from `a.x` and `b.x`; a monoid of its key alone is `max` or `min`"
            raise self._error(f"monoid '{name}' carries no field", name, hint)
        if len(carried) > 1:
            hint = f"one line for '{carried[0][0]}' holds for every carried field"
            raise self._error(f"monoid '{name}' has more than one carried line", carried[1][0], hint)
        (field, body) = carried[0]
        return ast.Monoid(str(name), str(key_name), keys[0][1], str(field), body, self._span(keyword, name))

    # ----------------------------------------------------------------------------------- schedules

    def level_call(self, c: Children) -> ast.Level:
        kind, _, args, close = c
        return ast.Level(str(kind), args or (), self._span(kind, close or kind))

    def level_number(self, c: Children) -> ast.Level:
        kind, number = c
        return ast.Level(str(kind), (self.integer([number]),), self._span(kind, number))

    def map_loops(self, c: Children) -> ast.MapLoops:
        loops, of, *levels = c
        span = self._span(loops[0], levels[-1])
        return ast.MapLoops(tuple(map(str, loops)), tuple(map(str, of or ())), tuple(levels), span)

    def order(self, c: Children) -> ast.Order:
        return ast.Order(tuple(map(str, c[1])), self._span(c[0], c[1][-1]))

    def fuse(self, c: Children) -> ast.Fuse:
        return ast.Fuse(tuple(map(str, c[1])), str(c[2]), self._span(c[0], c[2]))

    def stage(self, c: Children) -> ast.Stage:
        keyword, tensors, space, at, by, *options = c
        if space not in _SPACES:
            raise self._error(f"unknown space '{space}'", space, did_you_mean(str(space), _SPACES, "space"))
        last = options[-1] if options else (by or at)
        return ast.Stage(
            tuple(map(str, tensors)),
            str(space),
            str(at),
            None if by is None else str(by),
            tuple(options),
            self._span(keyword, last),
        )

    def use(self, c: Children) -> ast.Use:
        return ast.Use(str(c[1]), tuple(map(str, c[2])), self._span(c[0], c[2][-1]))

    def cast(self, c: Children) -> ast.Cast:
        return ast.Cast(str(c[1]), self._dtype(c[2]), self._span(c[0], c[2]))

    def combine(self, c: Children) -> ast.Combine:
        keyword, names, over, by = c
        if by not in _COMBINATIONS:
            hint = did_you_mean(str(by), _COMBINATIONS, "way to combine")
            raise self._error(f"unknown way to combine '{by}'", by, hint)
        return ast.Combine(tuple(map(str, names)), str(over), str(by), self._span(keyword, by))

    def choice(self, c: Children) -> tuple[Expr, ...]:
        first, last, step = c
        if last is None:
            return (first,)
        ends = []
        for e in (first, last, step):
            if e is not None and not (isinstance(e, ast.Num) and isinstance(e.value, int)):
                raise self._error("a range of choices needs whole numbers", e, "write them out: `64, 128`")
            ends.append(None if e is None else e.value)
        low, high, stride = ends[0], ends[1], 1 if ends[2] is None else ends[2]
        if stride <= 0 or high < low:
            raise self._error("an empty range of choices", first, "write it upwards: `64..512 step 64`")
        span = self._span(first, step or last)
        return tuple(ast.Num(v, span) for v in range(low, high + 1, stride))

    def tune(self, c: Children) -> ast.Tune:
        keyword, name, default, *choices = c
        flat = tuple(e for choice in choices if choice is not None for e in choice)
        return ast.Tune(str(name), default, flat, self._span(keyword, flat[-1] if flat else default))

    def where(self, c: Children) -> ast.Where:
        return ast.Where(tuple(_conjuncts(c[1])), self._span(c[0], c[1]))

    def flag(self, c: Children) -> ast.Flag:
        name, args = c
        return ast.Flag(str(name), args or (), self._span(name, args[-1] if args else name))

    def kernel(self, c: Children) -> ast.KernelSchedule:
        keyword, outputs, *directives = c
        return ast.KernelSchedule(tuple(map(str, outputs)), tuple(directives), self._span(keyword, outputs[-1]))

    def schedule(self, c: Children) -> list[ast.Schedule]:
        keyword, ops, target, *lines = c
        shared: list[ast.Directive] = []
        kernels: list[ast.KernelSchedule] = []
        for line in lines:
            if isinstance(line, ast.KernelSchedule):
                kernels.append(line)
            elif kernels:
                hint = "directives for all kernels come before the first `kernel` line"
                raise self._error("a directive after a kernel block", line, hint)
            else:
                shared.append(line)
        if not kernels:
            kernels, shared = [ast.KernelSchedule((), tuple(shared), self._span(keyword, target))], []
        return [ast.Schedule(str(op), str(target), tuple(shared), tuple(kernels), self._token_span(op)) for op in ops]

    # -------------------------------------------------------------------------------------- models

    def assignment(self, c: Children) -> tuple[Token, Expr]:
        return c[0], c[1]

    def assignments(self, c: Children) -> tuple[tuple[Token, Expr], ...]:
        return tuple(c)

    def config(self, c: Children) -> ast.Config:
        return ast.Config(str(c[1]), _pairs(c[2]), self._token_span(c[1]))

    def let(self, c: Children) -> tuple[str, str, Expr]:
        return ("let", str(c[1]), c[2])

    def model_require(self, c: Children) -> tuple[str, Expr]:
        return ("require", c[1])

    def precision(self, c: Children) -> tuple[str, Token]:
        return ("precision", c[1])

    def initialiser(self, c: Children) -> ast.Call:
        name, _, args, close = c
        return ast.Call(str(name), args or (), self._span(name, close or name))

    def param_declaration(self, c: Children) -> ast.ParamDecl:
        keyword, name, (dtype, shape, _), init, group = c
        span = self._span(keyword, group or init)
        return ast.ParamDecl(str(name), dtype, shape, init, str(group or ""), span)

    def input_declaration(self, c: Children) -> ast.InputDecl:
        keyword, name, (dtype, shape, close), below = c
        return ast.InputDecl(str(name), dtype, shape, below, self._span(keyword, below or close))

    def loss(self, c: Children) -> tuple[str, Token]:
        return ("loss", c[1])

    def logits(self, c: Children) -> tuple[str, Token]:
        return ("logits", c[1])

    def shape(self, c: Children) -> tuple[tuple[Expr, ...], Token]:
        return c[1] or (), c[2]

    def result(self, c: Children) -> ast.TensorRef:
        name, shape = c
        if shape is None:
            return ast.TensorRef(str(name), (), None, self._token_span(name))
        return ast.TensorRef(str(name), (), shape[0], self._span(name, shape[1]))

    def results(self, c: Children) -> tuple[ast.TensorRef, ...]:
        return tuple(c)

    def positional(self, c: Children) -> ast.TensorRef | Expr:
        e, shape = c
        if shape is None:
            if isinstance(e, ast.Access):
                return ast.TensorRef(e.tensor, e.subscripts, None, e.span)
            return e  # type: ignore[no-any-return]
        span = self._span(e, shape[1])
        if isinstance(e, ast.Access):
            return ast.TensorRef(e.tensor, e.subscripts, shape[0], span)
        if isinstance(e, ast.Name):
            return ast.TensorRef(e.id, (), shape[0], span)
        raise self._error("only a tensor can be viewed `as` another shape", e, "bind the value to a name first")

    def keyword(self, c: Children) -> tuple[str, Token, Expr]:
        return ("keyword", c[0], c[1])

    def arguments(self, c: Children) -> Children:
        return c

    def annotation(self, c: Children) -> ast.Call:
        return self.initialiser(c)

    def annotations(self, c: Children) -> tuple[ast.Call, ...]:
        return tuple(x for x in c if isinstance(x, ast.Call))

    def op_call(self, c: Children) -> ast.OpCall:
        results, op, _, arguments, close, annotations = c
        args: list[Any] = []
        keywords: list[tuple[str, Expr]] = []
        for a in arguments or ():
            if isinstance(a, tuple) and a[0] == "keyword":
                keywords.append((str(a[1]), a[2]))
            elif keywords:
                raise self._error("an operand after a keyword argument", a, "put `name = value` arguments last")
            else:
                args.append(a)
        span = self._span(op, close)
        return ast.OpCall(results, str(op), tuple(args), tuple(keywords), annotations or (), span)

    def for_layers(self, c: Children) -> ast.ForLayers:
        keyword, index, extent, *body = c
        return ast.ForLayers(str(index), extent, tuple(body), self._span(keyword, extent))

    def forward(self, c: Children) -> tuple[str, Token, tuple[ast.ModelStatement, ...]]:
        return ("forward", c[0], tuple(c[1:]))

    def hyper(self, c: Children) -> tuple[str, Any]:
        return ("hyper", c[1])

    def group(self, c: Children) -> ast.Group:
        return ast.Group(str(c[1]), _pairs(c[2]), self._token_span(c[1]))

    def lr_by(self, c: Children) -> tuple[str, Token]:
        return ("lr", c[1])

    def norm_by(self, c: Children) -> tuple[str, Token]:
        return ("norm", c[1])

    def optimizer(self, c: Children) -> ast.Optimizer:
        keyword, name, *lines = c
        return ast.Optimizer(
            op=str(name),
            hyper=tuple(p for x in _tagged(lines, "hyper") for p in _pairs(x[1])),
            groups=tuple(x for x in lines if isinstance(x, ast.Group)),
            schedule=self._single(lines, "lr", "lr by"),
            norm=self._single(lines, "norm", "norm by"),
            span=self._span(keyword, name),
        )

    def _single(self, lines: Sequence[Any], tag: str, line: str) -> str | None:
        found = _tagged(lines, tag)
        if len(found) > 1:
            raise self._error(f"a second `{line}` line", found[1][1], "keep one of them")
        return str(found[0][1]) if found else None

    def model(self, c: Children) -> ast.Model:
        keyword, name, dims, *lines = c
        forward = _tagged(lines, "forward")
        optimizers = [x for x in lines if isinstance(x, ast.Optimizer)]
        loss = self._single(lines, "loss", "loss")
        if not forward:
            raise self._error(f"model '{name}' has no `forward:` block", name, "say how its tensors are computed")
        if len(forward) > 1:
            raise self._error("a second `forward:` block", forward[1][1], "put all statements in the first")
        if loss is None:
            hint = "add a line `loss NAME`, naming the f32[] tensor to minimise"
            raise self._error(f"model '{name}' does not name its loss", name, hint)
        if len(optimizers) > 1:
            raise self._error("a second optimizer", optimizers[1], "a model has one; use groups for differences")
        return resolve_model_arguments(
            ast.Model(
                name=str(name),
                dims=tuple(map(str, dims or ())),
                configs=tuple(x for x in lines if isinstance(x, ast.Config)),
                lets=tuple((x[1], x[2]) for x in _tagged(lines, "let")),
                requires=tuple(x[1] for x in _tagged(lines, "require")),
                params=tuple(x for x in lines if isinstance(x, ast.ParamDecl)),
                inputs=tuple(x for x in lines if isinstance(x, ast.InputDecl)),
                forward=forward[0][2],
                loss=loss,
                logits=self._single(lines, "logits", "logits"),
                optimizer=optimizers[0] if optimizers else None,
                precision=self._single(lines, "precision", "precision") or "f32",
                doc=self._doc(keyword.line),
                span=self._span(keyword, name),
            )
        )

    # ---------------------------------------------------------------------------------------- file

    def import_item(self, c: Children) -> ast.Import:
        return ast.Import(str(c[1]), self._token_span(c[1]))

    def file(self, c: Children) -> tuple[ast.Item, ...]:
        items: list[ast.Item] = []
        for x in c:
            if isinstance(x, list):
                items.extend(x)
            else:
                items.append(x)
        return tuple(items)


def _pairs(pairs: Iterable[tuple[Token, Expr]]) -> tuple[tuple[str, Expr], ...]:
    return tuple((str(n), e) for n, e in pairs)


def _tagged(lines: Sequence[Any], tag: str) -> list[Any]:
    return [x for x in lines if isinstance(x, tuple) and x[0] == tag]


def _conjuncts(e: Expr) -> list[Expr]:
    if isinstance(e, ast.Binary) and e.op == "and":
        return _conjuncts(e.left) + _conjuncts(e.right)
    return [e]
