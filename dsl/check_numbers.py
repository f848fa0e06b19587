"""Checks of a model's numbers: sizes, configurations, `let`s, requirements, and expressions of them."""

from __future__ import annotations

from tcomp.dsl.ast import Access, Expr, Model, Name, Span, walk
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean, listing

TRAINING = "training"
"""The number that is 1 while a step trains, and 0 in evaluation and generation: for scalar operands of `forward`."""

BATCH_NUMBER = "batch_number"
"""The i32[] tensor that counts batches: the micro-batches of a run, of all its processes, or those of an evaluation."""


def check_numbers(model: Model) -> frozenset[str]:
    """Names of numbers, each given once; every configuration gives the same ones."""
    known: dict[str, str] = {}

    def declare(name: str, what: str, span: Span) -> None:
        if name in known:
            raise TcError(f"'{name}' is {known[name]} and {what}", span, hint="rename one of them")
        known[name] = what

    for d in model.dims:
        declare(d, "a size given at build time", model.span)
    every = list(dict.fromkeys(n for c in model.configs for n, _ in c.values))
    for n in every:
        declare(n, "a configuration value", model.configs[0].span)
    for number, c in enumerate(model.configs):
        if any(c.name == other.name for other in model.configs[:number]):
            raise TcError(f"config '{c.name}' stands twice", c.span, hint="rename one of them")
        given = [n for n, _ in c.values]
        for n in given:
            if given.count(n) > 1:
                raise TcError(f"config '{c.name}' gives '{n}' twice", c.span, hint="keep one value")
        missing = [n for n in every if n not in given]
        if missing:
            other = next(o for o in model.configs if missing[0] in dict(o.values))
            hint = f"add {', '.join(f'{n} = ...' for n in missing)}"
            notes = (f"config '{other.name}' has it",)
            raise TcError(f"config '{c.name}' gives no value for {listing(missing)}", c.span, notes=notes, hint=hint)
        for _, e in c.values:
            check_number(e, frozenset(), "a configuration value")
    for n, e in model.lets:
        check_number(e, frozenset(known), f"the value of '{n}'")
        declare(n, "a `let`", e.span)
    for e in model.requires:
        check_number(e, frozenset(known), "a `require`")
    return frozenset(known)


def check_number(e: Expr, known: frozenset[str], where: str) -> None:
    """TcError for a tensor, or a name that is no known number, in an expression that must be a number."""
    for n in walk(e):
        if isinstance(n, Access):
            raise TcError(f"'{n.tensor}' stands in {where}, which must be a number", n.span, hint="use dimensions")
        if isinstance(n, Name) and n.id not in known:
            if n.id == TRAINING:
                hint = "only a scalar operand of a call in `forward` may be another number in evaluation"
                raise TcError(f"'{TRAINING}' stands in {where}", n.span, hint=hint)
            if n.id == BATCH_NUMBER:
                hint = "it is a tensor: pass it by itself for an operand of type i32[], and let the op reckon with it"
                raise TcError(f"'{BATCH_NUMBER}' stands in {where}, which must be a number", n.span, hint=hint)
            hint = did_you_mean(n.id, sorted(known), "dimension")
            if not hint.startswith("did"):
                hint = f"give it in every config ({n.id} = ...), as `let {n.id} = ...`, or as a size of the model"
            raise TcError(f"unknown dimension '{n.id}' in {where}", n.span, hint=hint)
