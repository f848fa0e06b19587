"""Parts of a tensor whose gradient is there at once: their backward runs ahead of the rest of the forward pass.

    z0 = matmul(h[rows 0..], w)                          z0 = matmul(h[rows 0..], w)
    loss[0..], dz0 = crossentropy_at_once(z0, ..)        loss[0..], dz0 = crossentropy_at_once(z0, ..)
    z1 = matmul(h[rows n..], w)                          dh[0..], dw = matmul.backward(dz0, ..)
    loss[n..], dz1 = crossentropy_at_once(z1, ..)   -->  z1 = matmul(h[rows n..], w)
    ...                                                  loss[n..], dz1 = crossentropy_at_once(z1, ..)
    dh[0..], dw = matmul.backward(dz0, ..)               dh[n..], dw += matmul.backward(dz1, ..)
    dh[n..], dw += matmul.backward(dz1, ..)              ...

So logits made in chunks (chunks.py) need one part and its gradient at a time, and no multiplication more. A forward
pass alone leaves those nodes out.
"""

from __future__ import annotations

from collections.abc import Iterable

from tcomp.model.graph import Node, Tensor

Nodes = tuple[Node, ...]


def ahead(forward: Nodes, backward: Nodes) -> tuple[Nodes, Nodes, frozenset[Node]]:
    """Both passes with the backward nodes of parts moved behind what makes their gradient, and the nodes that moved."""
    placed: list[Node] = []
    rest = list(backward)
    moved: set[Node] = set()
    for at, node in enumerate(forward):
        placed.append(node)
        if not node.part:
            continue
        given = _written([node])
        readers = [b for b in rest if b.incoming and given & _read([b])]
        before = rest[: rest.index(readers[-1])] if readers else []
        if _free(readers, [n for n in before if n not in readers], forward[at + 1 :]):
            placed += readers
            moved.update(readers)
            rest = [b for b in rest if b not in readers]
    return tuple(placed), tuple(rest), frozenset(moved)


def _free(nodes: list[Node], before: Iterable[Node], later: Iterable[Node]) -> bool:
    """May `nodes` run in front of the backward nodes `before` and the forward nodes `later`?"""
    passed = [*before, *later]
    return not (_written(passed) & (_read(nodes) | _written(nodes)) or _read(passed) & _written(nodes))


def _written(nodes: Iterable[Node]) -> set[Tensor]:
    return {v.tensor for n in nodes for v in n.writes.values()}


def _read(nodes: Iterable[Node]) -> set[Tensor]:
    return {v.tensor for n in nodes for v in n.reads.values()}
