"""What a model's text says for one precision only, put in the place of what it says otherwise.

    y = linear(x, w[l], b[l]) [fp8_block(linear_fp8_block)]        under fp8_block -->
    y, _, _ = linear_fp8_block(x, w[l], b[l])                      (results beyond the call's own are dropped)
    optimizer adamw: under bf16_stochastic by adamw_stochastic     under bf16_stochastic -->
    optimizer adamw_stochastic:
    state scales: f32[L, 3, 16] = zeros by history under fp8       under any other: left out

The arguments of the annotation behind the op are operands that it takes after the call's own. `[early(dP)]` speaks of
the backward of the call's own op, and falls away with it; `quantised(..)` and `quantised_gradient(..)` among the
arguments speak of the op that takes its place, and become annotations of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tcomp.dsl.ast import (
    Access,
    Alias,
    Call,
    Expr,
    ForLayers,
    Group,
    Model,
    ModelStatement,
    Module,
    Name,
    OpCall,
    Optimizer,
    TensorRef,
)
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean
from tcomp.dsl.recipes import RECIPES

QUANTISED = ("quantised", "quantised_gradient")
"""annotations of the op that takes the call's place, among the arguments of the one that names it"""
SEVERAL = QUANTISED[:1]
"""of which the first that fits holds"""


def mentioned(model: Model) -> tuple[str, ...]:
    """The precisions that the text has a variant for."""
    names = [a.function for c in _calls(model.forward) for a in c.annotations if a.function in RECIPES]
    names += [x.precision for x in model.states if x.precision in RECIPES]
    if model.optimizer is not None:
        names += [p for p, _ in all_variants(model.optimizer)]
    return tuple(dict.fromkeys(names))


def all_variants(o: Optimizer) -> tuple[tuple[str, str], ...]:
    """The precisions that an optimizer speaks of, each with the op that it names for it."""
    return o.variants + tuple(v for g in o.groups for v in g.variants)


def under(model: Model, precision: str, module: Module) -> Model:
    """The model as it is under a precision: no variants are left in it. TcError for a variant that names no op."""
    optimizer = model.optimizer
    if optimizer is not None:
        groups = tuple(
            replace(g, op=_trainer(g.op, g, precision, module), variants=()) if g.variants else g
            for g in optimizer.groups
        )
        if optimizer.variants:
            optimizer = replace(optimizer, op=_trainer(optimizer.op, optimizer, precision, module), variants=())
        optimizer = replace(optimizer, groups=groups)
    body = tuple(_statement(s, precision, module) for s in model.forward)
    states = tuple(replace(x, precision="") for x in model.states if x.precision in ("", precision))
    return replace(model, forward=body, optimizer=optimizer, states=states)


def _trainer(op: str, of: Optimizer | Group, precision: str, module: Module) -> str:
    """The op or update that trains under a precision. TcError where there is none of its name."""
    op = dict(of.variants).get(precision, op)
    if op and op not in module.ops and op not in module.updates:
        hint = did_you_mean(op, [o for o in (*module.ops, *module.updates) if "." not in o], "op")
        raise TcError(f"`under {precision} by {op}` names an unknown op", of.span, hint=hint)
    return op


def _statement(s: ModelStatement, precision: str, module: Module) -> ModelStatement:
    if isinstance(s, ForLayers):
        return replace(s, body=tuple(_statement(b, precision, module) for b in s.body))
    if isinstance(s, Alias):
        return s
    chosen = [a for a in s.annotations if a.function == precision]
    kept = tuple(a for a in s.annotations if a.function not in RECIPES)
    if not chosen:
        return s if len(kept) == len(s.annotations) else replace(s, annotations=kept)
    if len(chosen) > 1:
        raise TcError(f"two variants for {precision}", chosen[1].span, hint="keep one of them")
    own = tuple(a for a in kept if a.function != "early")  # it speaks of the backward of the op that is replaced
    inner = tuple(e for e in chosen[0].args[1:] if isinstance(e, Call) and e.function in QUANTISED)
    return replace(_variant(s, chosen[0], module), annotations=(*own, *inner))


def _variant(s: OpCall, a: Call, module: Module) -> OpCall:
    """The call to the op that an annotation names."""
    if not a.args or not isinstance(a.args[0], Name):
        hint = f"write {a.function}(OP), or {a.function}(OP, further operands)"
        raise TcError(f"'{a.function}' does not say which op takes the place of '{s.op}'", a.span, hint=hint)
    name = a.args[0].id
    op = module.ops.get(name)
    if op is None:
        hint = did_you_mean(name, [o for o in module.ops if "." not in o], "op")
        raise TcError(f"unknown op '{name}'", a.args[0].span, hint=hint)
    more = max(0, len(op.outputs) - len(s.results))
    dropped = tuple(TensorRef("_", span=a.span) for _ in range(more))
    further = [e for e in a.args[1:] if not (isinstance(e, Call) and e.function in QUANTISED)]
    args = (*s.args, *map(_operand, further))
    return replace(s, op=name, args=args, results=(*s.results, *dropped))


def _operand(e: Expr) -> TensorRef | Expr:
    if isinstance(e, Access):
        return TensorRef(e.tensor, e.subscripts, None, e.span)
    return TensorRef(e.id, (), None, e.span) if isinstance(e, Name) else e


def _calls(body: tuple[ModelStatement, ...]) -> Iterator[OpCall]:
    for s in body:
        if isinstance(s, ForLayers):
            yield from _calls(s.body)
        elif isinstance(s, OpCall):
            yield s
