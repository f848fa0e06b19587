"""A call and its backward as one: `[at_once(OP)]` behind a call whose gradient waits for nothing but the call itself.

    losses, _ = crossentropy(logits, t) [at_once(crossentropy_at_once)]     loss_gradient -> dlosses  (mean.backward)
    loss = mean(losses)                                              -->    losses, dlogits = crossentropy_at_once(
    ...                                                                         logits, t, dlosses)
    dlosses = mean.backward(..); dlogits = crossentropy.backward(..)        loss = mean(losses)

What the incoming gradient follows from moves in front of the call. That is possible where it depends on nothing that
the call or later ones compute, as for a mean of losses. Where it is not (results that others need), forward and
backward stay apart. What the backward alone would compute again (logits made in chunks) need not be, then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.infer import dimensions
from tcomp.dsl.storage import bound
from tcomp.model.graph import Node, Tensor, View, makers, tensors_of

Nodes = tuple[Node, ...]


def at_once(forward: Nodes, backward: Nodes, module: Module) -> tuple[Nodes, Nodes]:
    """The forward and the backward nodes with annotated calls joined."""
    for node in [n for n in forward if n.at_once]:
        forward, backward = _joined(node, bound(module.ops[node.at_once], node.real), forward, backward)
    return forward, backward


def _joined(node: Node, op: Op, forward: Nodes, backward: Nodes) -> tuple[Nodes, Nodes]:
    copies = _copies(forward, backward)
    own = [b for b in backward if _is_backward(b, node, copies)]
    others = [n for n in (*forward, *backward) if n is not node and n not in own]
    operands = {**own[0].operands, **node.operands} if own else {}
    given = {o.name for o in op.outputs}
    if len(own) != 1 or not _fits(op, operands) or any(p.inout for p in own[0].op.params):
        return forward, backward
    lost = [operands[o.name] for o in (*node.op.outputs, *own[0].op.outputs) if o.name not in given]
    if any(v.meets(w) for n in others for v in n.operands.values() for w in lost):
        return forward, backward
    at = forward.index(node)
    incoming = {operands[p.name].tensor for p in op.params if p.name not in node.operands}
    known = {v.tensor for n in forward[at:] for v in n.results.values()}
    moved = _before(incoming, backward, known)
    if moved is None:
        return forward, backward
    dims = {**own[0].dims, **node.dims}
    joined = replace(
        node,
        op=op,
        dims={d: dims[d] for d in dimensions(op)},
        operands={o.name: operands[o.name] for o in op.operands},
        label=node.label.replace(node.op.name, op.name, 1),
    )
    rest = tuple(b for b in backward if b is not own[0] and b not in moved)
    return (*forward[:at], *moved, joined, *forward[at + 1 :]), _without_unread(rest, copies)


def _without_unread(backward: Nodes, copies: dict[Tensor, Tensor]) -> Nodes:
    """The backward nodes without those that compute again what nobody reads."""
    read = {v.tensor for b in backward for v in b.reads.values()}
    unread = copies.keys() - read
    made = {b: tensors_of(b.results) for b in backward}
    return tuple(b for b in backward if not made[b] or not made[b] <= unread)


def _copies(forward: Nodes, backward: Nodes) -> dict[Tensor, Tensor]:
    """What the backward pass computes again -> the tensor of the forward pass."""
    made = {(n.op.name, *n.reads.values()): n for n in forward}
    found: dict[Tensor, Tensor] = {}
    for b in backward:
        n = made.get((b.op.name, *b.reads.values()))
        if n is not None:
            found |= {v.tensor: n.operands[name].tensor for name, v in b.results.items()}
    return found


def _is_backward(b: Node, node: Node, copies: dict[Tensor, Tensor]) -> bool:
    """Is it the backward of this very call, and reads what the call reads, or a copy of it?"""
    same = [n for n in b.operands if n in node.operands]
    operands = {n: v.of(copies.get(v.tensor, v.tensor)) for n, v in b.operands.items()}
    return b.op.name == f"{node.op.name}.backward" and bool(same) and all(operands[n] == node.operands[n] for n in same)


def _fits(op: Op, operands: dict[str, View]) -> bool:
    """Are all of the op's operands there, of its types?"""
    return all(o.name in operands and operands[o.name].tensor.dtype is o.dtype for o in op.operands)


def _before(wanted: set[Tensor], backward: Sequence[Node], later: set[Tensor]) -> Nodes | None:
    """The backward nodes that make `wanted`, in order; None where they need one of the `later` tensors."""
    adding = {n.operands[p.name].tensor for n in backward for p in n.op.params if p.inout}
    needed = makers(wanted, backward)
    if needed.keys() & (later | adding):
        return None
    found = {n for nodes in needed.values() for n in nodes}
    return tuple(n for n in backward if n in found)
