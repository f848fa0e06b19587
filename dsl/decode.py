"""A model's decoding form: its `forward` with the replacements of its `decode` block, as a model of its own.

    attention -> attention_at with keys[l], start
    a, _ = attention(qkv as [B, T, 3, H, D])     -->     a = attention_at(qkv as [B, T, 3, H, D], keys[l], start)

Everything that is checked and built for models then holds for it as it is.
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import (
    Alias,
    Decode,
    ForLayers,
    Model,
    ModelStatement,
    Module,
    Op,
    OpCall,
    Replacement,
    TensorRef,
    names_in,
)
from tcomp.dsl.errors import TcError
from tcomp.dsl.hints import did_you_mean, listing


def decoding(model: Model, module: Module) -> Model:
    """The decoding form of a model that has a `decode` block. TcError where a replacement does not fit."""
    decode = model.decode
    assert decode is not None
    _check_parameters(model)
    used: set[str] = set()
    forward = tuple(_statement(s, decode, module, used) for s in model.forward)
    for r in decode.replacements:
        if r.op not in used:
            hint = did_you_mean(r.op, sorted(_called(model.forward)), "op")
            raise TcError(f"`forward` calls no op '{r.op}'", r.span, hint=hint)
    return replace(
        model,
        dims=(*model.dims, *(d for d in decode.dims if d not in model.dims)),
        inputs=(*model.inputs, *decode.inputs),
        caches=decode.caches,
        requires=(*model.requires, *decode.requires),
        forward=forward,
        decode=None,
        optimizer=None,
    )


def _check_parameters(model: Model) -> None:
    """TcError for a parameter whose shape follows from a batch size or a length: decoding has others."""
    lets = dict(model.lets)
    for p in model.params:
        names = {n for e in p.shape for n in names_in(e)}
        while more := {n for name in names & lets.keys() for n in names_in(lets[name])} - names:
            names |= more
        for size in (d for d in model.dims if d in names):
            raise TcError(
                f"the shape of '{p.name}' follows from {size}, which is another in decoding than in training",
                p.span,
                hint=f"give it an extent that configs name (`S`), and say `require {size} <= S`; or leave out `decode`",
            )


def _statement(s: ModelStatement, decode: Decode, module: Module, used: set[str]) -> ModelStatement:
    if isinstance(s, ForLayers):
        return replace(s, body=tuple(_statement(b, decode, module, used) for b in s.body))
    if isinstance(s, Alias):
        return s
    r = next((r for r in decode.replacements if r.op == s.op), None)
    if r is None:
        return s
    used.add(r.op)
    op, by = _op(r.op, r, module), _op(r.by, r, module)
    results = dict(zip([o.name for o in op.outputs], s.results, strict=False))
    given = {o.name for o in by.outputs}
    lost = [n for n, result in results.items() if n not in given and result.name != "_"]
    if lost:
        raise TcError(
            f"op '{by.name}' does not give {listing(lost)}, which '{op.name}' gives and `forward` uses",
            r.span,
            hint=f"its results are {listing(sorted(given))}; results correspond by name",
        )
    kept = tuple(results.get(o.name, TensorRef("_", span=s.span)) for o in by.outputs)
    return replace(s, op=by.name, args=(*s.args, *r.args), results=kept)


def _op(name: str, r: Replacement, module: Module) -> Op:
    if name not in module.ops:
        hint = did_you_mean(name, [o for o in module.ops if "." not in o], "op")
        raise TcError(f"unknown op '{name}'", r.span, hint=hint)
    return module.ops[name]


def _called(body: tuple[ModelStatement, ...]) -> set[str]:
    inner = {n for s in body if isinstance(s, ForLayers) for n in _called(s.body)}
    return inner | {s.op for s in body if isinstance(s, OpCall)}
