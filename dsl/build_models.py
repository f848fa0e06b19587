"""The rules of models: configurations, parameters, the forward statements, the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lark import Token

from tcomp.dsl import ast
from tcomp.dsl.ast import Expr
from tcomp.dsl.build_expressions import Children, ExpressionRules
from tcomp.dsl.resolve import resolve_model_arguments, resolve_update_arguments


class ModelRules(ExpressionRules):
    def assignment(self, c: Children) -> tuple[Token, Expr]:
        return c[0], c[1]

    def assignments(self, c: Children) -> tuple[tuple[Token, Expr], ...]:
        return tuple(c)

    def config(self, c: Children) -> ast.Config:
        return ast.Config(str(c[1] or ""), _pairs(c[2]), self._token_span(c[1] or c[0]))

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
        keyword, name, (dtype, shape, _), init, group, frozen = c
        span = self._span(keyword, frozen or group or init)
        return ast.ParamDecl(str(name), dtype, shape, init, str(group or ""), span, frozen is not None)

    def input_declaration(self, c: Children) -> ast.InputDecl:
        keyword, name, (dtype, shape, close), below = c
        return ast.InputDecl(str(name), dtype, shape, below, self._span(keyword, below or close))

    def state_declaration(self, c: Children) -> ast.StateDecl:
        keyword, name, (dtype, shape, _), init, op, precision = c
        span = self._span(keyword, precision or op)
        return ast.StateDecl(str(name), dtype, shape, init, str(op), str(precision or ""), span)

    def tie(self, c: Children) -> ast.Tie:
        keyword, name, to, where = c
        return ast.Tie(str(name), str(to), where, self._span(keyword, where or to))

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

    def alias(self, c: Children) -> ast.Alias:
        results, value, shape = c
        first = results[0]
        if len(results) > 1 or first.shape is not None or first.name == "_":
            hint = f"write one name on the left, and a view on the right: x = {value} as [...]"
            raise self._error(f"'{value}' is one tensor, to be given one name", first, hint)
        end = value if shape is None else shape[1]
        ref = ast.TensorRef(str(value), (), None if shape is None else shape[0], self._span(value, end))
        return ast.Alias(first.name, ref, self._span(first, end))

    def for_layers(self, c: Children) -> ast.ForLayers:
        keyword, index, extent, *body = c
        return ast.ForLayers(str(index), extent, tuple(body), self._span(keyword, extent))

    def forward(self, c: Children) -> tuple[str, Token, tuple[ast.ModelStatement, ...]]:
        return ("forward", c[0], tuple(c[1:]))

    def cache(self, c: Children) -> ast.Cache:
        keyword, name, (dtype, shape, close) = c
        return ast.Cache(str(name), dtype, shape, self._span(keyword, close))

    def replacement(self, c: Children) -> ast.Replacement:
        op, by, arguments = c
        for a in arguments or ():
            if isinstance(a, tuple) and a[0] == "keyword":
                raise self._error("an operand by name", a, "list the operands in the op's order")
        last = arguments[-1] if arguments else by
        return ast.Replacement(str(op), str(by), tuple(arguments or ()), self._span(op, last))

    def decode(self, c: Children) -> ast.Decode:
        keyword, dims, *lines = c
        return ast.Decode(
            tuple(map(str, dims or ())),
            tuple(x for x in lines if isinstance(x, ast.InputDecl)),
            tuple(x for x in lines if isinstance(x, ast.Cache)),
            tuple(x for x in lines if isinstance(x, ast.Replacement)),
            tuple(x[1] for x in _tagged(lines, "require")),
            self._token_span(keyword),
        )

    def hyper(self, c: Children) -> tuple[str, Any]:
        return ("hyper", c[1])

    def group(self, c: Children) -> ast.Group:
        _, name, params, op, values = c
        return ast.Group(
            str(name), _pairs(values or ()), tuple(map(str, params or ())), str(op or ""), span=self._token_span(name)
        )

    def lr_by(self, c: Children) -> tuple[str, Token]:
        return ("lr", c[1])

    def norm_by(self, c: Children) -> tuple[str, Token]:
        return ("norm", c[1])

    def under(self, c: Children) -> tuple[str, Token, Token | None, Token]:
        return ("under", c[1], c[2], c[3])

    def optimizer(self, c: Children) -> ast.Optimizer:
        keyword, name, of, *lines = c
        variants = _tagged(lines, "under")
        groups = [x for x in lines if isinstance(x, ast.Group)]
        for _, _, group, _ in variants:
            if group is not None and group not in [g.name for g in groups]:
                hint = "name one of the optimizer's groups, or none: `under PRECISION by OP`"
                raise self._error(f"there is no group '{group}'", group, hint)
        return ast.Optimizer(
            op=str(name),
            hyper=tuple(p for x in _tagged(lines, "hyper") for p in _pairs(x[1])),
            groups=tuple(
                replace(g, variants=tuple((str(p), str(op)) for _, p, own, op in variants if own == g.name))
                for g in groups
            ),
            schedule=self._single(lines, "lr", "lr by"),
            norm=self._single(lines, "norm", "norm by"),
            variants=tuple((str(p), str(op)) for _, p, own, op in variants if own is None),
            of=str(of or ""),
            places=(
                *self._places(lines, lr="lr by", norm="norm by"),
                *((str(n), self._token_span(n)) for x in _tagged(lines, "hyper") for n, _ in x[1]),
            ),
            span=self._span(keyword, of or name),
        )

    def update_call(self, c: Children) -> ast.OpCall:
        results, op, left, arguments, close, where = c
        return replace(self.op_call([results or (), op, left, arguments, close, None]), where=where)

    def update(self, c: Children) -> ast.Update:
        keyword, name, params, outputs, *lines = c
        span = self._span(keyword, name)
        requires = tuple(x[1] for x in _tagged(lines, "require"))
        signature = ast.Op(
            str(name), params or (), outputs or (), (), (), requires, (), doc=self._doc(keyword.line), span=span
        )
        body = tuple(x for x in lines if isinstance(x, ast.OpCall | ast.ForLayers))
        if not body:
            raise self._error(f"update '{name}' calls no op", name, "add a call, such as `w = step(p, g, lr)`")
        return resolve_update_arguments(ast.Update(signature, body, span))

    def _single(self, lines: Sequence[Any], tag: str, line: str) -> str | None:
        found = _tagged(lines, tag)
        if len(found) > 1:
            raise self._error(f"a second `{line}` line", found[1][1], "keep one of them")
        return str(found[0][1]) if found else None

    def _places(self, lines: Sequence[Any], **what: str) -> ast.Places:
        """Where the lines name what they do, by tag."""
        return tuple((text, self._token_span(x[1])) for tag, text in what.items() for x in _tagged(lines, tag))

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
        decodes = [x for x in lines if isinstance(x, ast.Decode)]
        if len(decodes) > 1:
            raise self._error("a second `decode` block", decodes[1], "put all lines in the first")
        of = next((x for x in optimizers if x.of), None)
        if of is not None:
            raise self._error(
                f"an optimizer of '{of.of}' in model '{name}'", of, "drop `of`, or move the block out of the model"
            )
        if len(optimizers) > 1:
            raise self._error("a second optimizer", optimizers[1], "a model has one; use groups for differences")
        return resolve_model_arguments(
            ast.Model(
                name=str(name),
                dims=tuple(map(str, dims or ())),
                configs=self._configs(lines),
                lets=tuple((x[1], x[2]) for x in _tagged(lines, "let")),
                requires=tuple(x[1] for x in _tagged(lines, "require")),
                params=tuple(x for x in lines if isinstance(x, ast.ParamDecl)),
                inputs=tuple(x for x in lines if isinstance(x, ast.InputDecl)),
                forward=forward[0][2],
                loss=loss,
                logits=self._single(lines, "logits", "logits"),
                optimizer=optimizers[0] if optimizers else None,
                precision=self._single(lines, "precision", "precision") or "f32",
                decode=decodes[0] if decodes else None,
                ties=tuple(x for x in lines if isinstance(x, ast.Tie)),
                states=tuple(x for x in lines if isinstance(x, ast.StateDecl)),
                doc=self._doc(keyword.line),
                places=self._places(lines, loss="loss", logits="logits", precision="precision"),
                span=self._span(keyword, name),
            )
        )

    def _configs(self, lines: Sequence[Any]) -> tuple[ast.Config, ...]:
        """The named configurations, each with the values of the nameless one that it does not give itself."""
        found = [x for x in lines if isinstance(x, ast.Config)]
        shared = [c for c in found if not c.name]
        named = tuple(c for c in found if c.name)
        if len(shared) > 1:
            raise self._error("a second `config:` line", shared[1], "put what all configurations share in the first")
        if not shared:
            return named
        if not named:
            hint = "give it a name, `config NAME: ...`"
            raise self._error("values for every configuration, but there is no configuration", shared[0], hint)
        return tuple(
            replace(c, values=c.values + tuple(v for v in shared[0].values if v[0] not in dict(c.values)))
            for c in named
        )


def _pairs(pairs: Iterable[tuple[Token, Expr]]) -> tuple[tuple[str, Expr], ...]:
    return tuple((str(n), e) for n, e in pairs)


def _tagged(lines: Sequence[Any], tag: str) -> list[Any]:
    return [x for x in lines if isinstance(x, tuple) and x[0] == tag]
