"""An operand that is quantised where it is made: `[fp8(linear_fp8, amax, quantised(MAKER, READER))]`.

    h, .. = layernorm(x, w, b)                   hr, ht, rh, .. = layernorm_cast_fp8(x, w, b, amax)
    y, ht, rh, .. = linear_fp8(h, .., amax)  -->  y, .. = linear_given_fp8(hr, .., amax)

MAKER takes the place of the op that makes the call's first operand, and READER the call's. Operands and results keep
their names. What MAKER gives or takes beyond its predecessor is the reader's: with its result's name, Y, where the
reader's operand has X, Yt is the reader's Xt and hY its h. A result of the call that READER does not give is MAKER's
then, and one that neither has is new, from MAKER to READER. READER may read MAKER's other results by their names. The
tensor between them is no more, so nobody else may read it. Of several such annotations the first is taken whose MAKER
finds its operands, and where MAKER's `require` lines do not hold the ops stay apart. A call whose results are computed
again reads it once more in the backward pass: there the ops stay apart, too. `tcomp check` of the model holds the step
against the ops apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Op, names_in
from tcomp.dsl.dims import bind, evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.model.graph import Node, Quantised, Tensor, View

Nodes = tuple[Node, ...]


def quantised(forward: Nodes, backward: Nodes, targets: Sequence[str]) -> Nodes:
    """The forward nodes with annotated operands quantised where they are made, on a machine of these targets. TcError,
    at the annotation, where that cannot be."""
    for node in [n for n in forward if n.quantised and not n.recompute]:
        refused = None
        for q in node.quantised:
            if not q.on or set(q.on) & set(targets):
                try:
                    forward, refused = _joined(node, q, forward, backward), None
                    break
                except NotHere as e:
                    refused = refused or refusal(node, q, "the first operand", "quantised", e)
        if refused is not None:
            raise refused
    return forward


class NotHere(Exception):
    """Why two ops cannot take the places of others."""


def refusal(node: Node, q: Quantised, what: str, annotation: str, reason: NotHere) -> TcError:
    """The error at an annotation that cannot be followed."""
    message = f"{what} of '{node.op.name}' cannot be quantised by '{q.maker.name}': {reason}"
    hint = f"leave `{annotation}` out, or name the targets where it holds: {annotation}(MAKER, READER, sm_90a)"
    return TcError(message, q.span, hint, (f"in {node.label}",))


def _joined(node: Node, q: Quantised, forward: Nodes, backward: Nodes) -> Nodes:
    operand = node.op.params[0].name
    view = node.operands[operand]
    makers = [n for n in forward for v in n.results.values() if v.tensor is view.tensor]
    others = [n for n in (*forward, *backward) if n not in makers and n is not node]
    if len(makers) != 1 or any(v.tensor is view.tensor for n in others for v in n.operands.values()):
        raise NotHere(f"'{view.tensor.name}' is not made by one op of the forward pass for this call alone")
    maker = makers[0]
    result = next(name for name, v in maker.results.items() if v.tensor is view.tensor)
    if maker.operands[result] != view:
        raise NotHere(f"'{view.tensor.name}' has another shape where '{maker.op.name}' makes it")

    if not all(evaluate_dim(e, maker.dims) for e in q.maker.requires if names_in(e) <= maker.dims.keys()):
        return forward
    if q.reader.operand(operand) is not None:
        raise NotHere(f"'{q.reader.name}' reads '{operand}' itself")

    pair = paired(q, maker, result, node, operand, view.tensor.name)
    operands, read = pair.made, pair.read
    for op, at in ((q.maker, operands), (q.reader, read)):
        check(op, at)
    lost = {o.name for n, op in ((maker, q.maker), (node, q.reader)) for o in n.op.outputs if not op.operand(o.name)}
    kept = {v.tensor for at in (operands, read) for v in at.values()}
    for n in (maker, node):
        for o in n.op.outputs:
            if o.name in lost and n.operands[o.name] != view and n.operands[o.name].tensor not in kept:
                raise NotHere(f"nobody gives '{o.name}' of '{n.op.name}'")
    first = replaced(maker, q.maker, operands)
    second = replaced(node, q.reader, read)
    return tuple(first if n is maker else second if n is node else n for n in forward)


@dataclass(frozen=True)
class Pair:
    """The views of MAKER's operands and of READER's; those of `taken` were the reader's."""

    made: dict[str, View]
    read: dict[str, View]
    taken: frozenset[str]


def paired(q: Quantised, maker: Node, result: str, node: Node, operand: str, label: str) -> Pair:
    """What takes the places of two nodes' operands where `result` of the one is `operand` of the other. New tensors are
    named `label`.NAME. NotHere where an operand is nobody's."""
    views: dict[str, View] = {}
    new: dict[str, View] = {}
    taken = set()
    owner = node.operands[operand].tensor.owner
    for o in q.maker.operands:
        if o.name in maker.operands and (o.name != result or o.inout):
            views[o.name] = maker.operands[o.name]
            continue
        name = _readers_name(o.name, result, operand, q.reader, node)
        if name in node.operands:
            views[o.name] = node.operands[name]
            taken.add(o.name)
        elif o in q.maker.outputs:
            shape = operand_shape(o, maker.dims)
            new[name] = views[o.name] = Tensor(f"{label}.{name}", o.dtype, shape, "activation", owner).whole()
        else:
            raise NotHere(f"neither '{maker.op.name}' nor '{node.op.name}' has its operand '{o.name}'")
    results = [o.name for o in q.maker.outputs]
    for i, name in enumerate(results):
        if other := next((n for n in results[:i] if views[n].meets(views[name])), None):
            raise NotHere(f"its results '{other}' and '{name}' would be one tensor")
    kept = {o.name: views[o.name] for o in q.maker.outputs if o.name in maker.operands}  # (results that stay its own)
    found = {o.name: new.get(o.name) or node.operands.get(o.name) or kept.get(o.name) for o in q.reader.operands}
    read = {name: v for name, v in found.items() if v is not None}
    lacking = [o.name for o in q.reader.operands if o.name not in read]
    if lacking:
        raise NotHere(f"'{q.reader.name}' has an operand '{lacking[0]}' that nobody gives")
    return Pair(views, read, frozenset(taken))


def _readers_name(name: str, result: str, operand: str, reader: Op, node: Node) -> str:
    """What the reader calls an operand or result of the maker: Xt for Yt, h for hY."""
    like = name.replace(result, operand, 1)
    plain = name.removesuffix(result)
    return plain if plain != name and plain in node.operands and reader.operand(like) is None else like


def check(op: Op, operands: dict[str, View]) -> None:
    """NotHere where an operand is of another type or rank than its view."""
    for o in op.operands:
        v = operands[o.name]
        if v.tensor.dtype is not o.dtype or len(v.shape) != len(o.shape):
            raise NotHere(f"'{o.name}' of '{op.name}' is {o.dtype} of {len(o.shape)} axes, what it would be is not")


def replaced(node: Node, op: Op, operands: dict[str, View]) -> Node:
    """The node with that op in the place of its own."""
    return replace(
        node,
        op=op,
        dims=bind(op, {p.name: operands[p.name].shape for p in op.params}, {}),
        operands=operands,
        label=node.label.replace(node.op.name, op.name, 1),
        recompute=frozenset(n for n in node.recompute if op.operand(n)),
        incoming=frozenset(n for n in node.incoming if op.operand(n)),
        quantised=(),
        quantised_gradient=None,
    )
