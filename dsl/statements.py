"""The syntax tree of what models and updates are made of: calls of ops, and loops around them."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.expressions import Call, Expr, Span, no_span


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor in a model's text: `x`, `w[l]` (a layer's slice), `x as [B * T, C]` (a reshaped view)."""

    name: str
    subscripts: tuple[Expr, ...] = ()
    shape: tuple[Expr, ...] | None = None
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class OpCall:
    """`y, _ = layernorm(x, w[l], b[l], V=V)`: outputs (`_` drops one), operands, static dims and scalars.

    `results` may carry a view (`y as [B, T, C]`), which reshapes the result that the name is bound to.
    An operand may be a TensorRef or, for a scalar operand `f32[]`, any expression of dims and hyperparameters.
    `annotations` follow the call in brackets: `[recompute]`. In an update the call counts only `where` a condition
    on dimensions holds.
    """

    results: tuple[TensorRef, ...]
    op: str
    args: tuple[TensorRef | Expr, ...]
    keywords: tuple[tuple[str, Expr], ...]
    annotations: tuple[Call, ...] = ()
    span: Span = no_span()
    where: Expr | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """`x = e`, `x = e as [B * T, C]`: a further name for what `e` means here, of the same memory."""

    name: str
    value: TensorRef
    span: Span = no_span()


@dataclass(frozen=True, slots=True)
class ForLayers:
    """`for l in L:` a block repeated with l = 0 .. L-1; names bound in it carry from one turn to the next."""

    index: str
    extent: Expr
    body: tuple[ModelStatement, ...]
    span: Span = no_span()


ModelStatement = OpCall | Alias | ForLayers
