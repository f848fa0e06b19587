"""An equation of a call's backward, computed where the gradient that it reads is made: `[early(dP)]` behind the call,
or `[early(dP, gpu)]` for what it is so on GPUs.

    u = linear_gelu(h, w, b) [early(dP)]
    y = linear(u, v, c)                     its backward:
      du = linear.backward(dy, ..)                   -->       du = linear.backward(dy, P, ..)
      dh = linear_gelu.backward(P, du, ..)                     dh = linear_gelu.backward(du, ..)

`tcomp.grad.early` says how the two ops change. The gradient's tensor, `du`, holds dP then: one pass over memory less,
and one tensor. It must be made by one op, and read by the call's backward alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import dimensions, infer
from tcomp.grad.early import NotEarly, Pointwise, extended, given, pointwise
from tcomp.model.graph import Early, Node, View, makers

Nodes = tuple[Node, ...]


@dataclass
class EarlyEquations:
    """The pass, for all programs of a model on a machine of these targets: equal pairs of ops are changed once."""

    module: Module
    targets: tuple[str, ...]
    changed: dict[tuple[object, ...], tuple[Op, Op, Pointwise, dict[str, str]]] = field(default_factory=dict)

    def __call__(self, forward: Nodes, backward: Nodes) -> Nodes:
        """The backward nodes with all annotated equations moved. TcError, at the annotation, where one cannot be."""
        while found := next(filter(None, map(self._meant, backward)), None):
            node, early = found
            try:
                backward = self._moved(node, early.equation, forward, backward)
            except NotEarly as e:
                message = f"'{early.equation}' cannot be computed early: {e}"
                hint = "leave the annotation out, or name the targets where it holds: early(dP, gpu)"
                raise TcError(message, early.span, hint, (f"in the backward of {node.label}",)) from None
        return backward

    def _meant(self, node: Node) -> tuple[Node, Early] | None:
        """The node and its annotation, where it has one that holds on this machine."""
        early = node.early
        return (node, early) if early is not None and (not early.on or set(early.on) & set(self.targets)) else None

    def _moved(self, node: Node, name: str, forward: Nodes, backward: Nodes) -> Nodes:
        found = pointwise(node.op, name, [p.name for p in node.op.params if p.name in node.incoming])
        view = node.operands[found.gradient]
        producer, result = _producer(view, node, forward, backward)
        others = tuple(node.operands[n] for n in found.others)
        at = backward.index(producer)
        first = _needed_before(others, backward, at)
        key = id(producer.op), result, id(node.op), name, tuple(node.dims.items())
        if key not in self.changed:
            form, names = extended(producer.op, result, found, node.op, node.dims)
            self._check(form)
            self.changed[key] = form, given(node.op, found), found, names
        form, rest, _, names = self.changed[key]
        new = replace(
            producer, op=form, operands=producer.operands | {own: node.operands[n] for own, n in names.items()}
        )
        operands = {o.name: view if o.name == name else node.operands[o.name] for o in rest.operands}
        dims = {d: node.dims[d] for d in dimensions(rest) if d in node.dims}
        reader = replace(node, op=rest, dims=dims, operands=operands, early=None)
        before = tuple(n for n in backward[:at] if n not in first)
        behind = tuple(reader if n is node else n for n in backward[at + 1 :] if n not in first)
        return (*before, *first, new, *behind)

    def _check(self, form: Op) -> None:
        try:
            infer(form, self.module)
        except TcError as e:
            raise NotEarly(f"in '{form.name}' it would be wrong, {e.message}") from None


def _producer(view: View, node: Node, forward: Nodes, backward: Nodes) -> tuple[Node, str]:
    """The node that makes the gradient that `node` reads, all of it and for nobody else, and its result's name."""
    everywhere = [(n, name) for n in (*forward, *backward) for name, v in n.operands.items() if v.tensor is view.tensor]
    users = [(n, name) for n, name in everywhere if n is not node]
    given_name = view.tensor.name
    if view.tensor.kind != "activation" or not users:
        raise NotEarly(f"no op of the backward pass makes '{given_name}'")
    others = sorted({n.op.name for n, _ in users[1:]})
    if others or len(everywhere) - len(users) != 1:
        raise NotEarly(f"'{given_name}' is used by {', '.join([users[0][0].op.name, *others])}, not made and read once")
    producer, result = users[0]
    made = producer.operands[result]
    if result not in {o.name for o in producer.op.outputs} or producer not in backward:
        raise NotEarly(f"'{producer.op.name}' does not make '{given_name}' alone")
    if made != view or not view.covers:
        raise NotEarly(f"'{given_name}' has another shape where '{producer.op.name}' makes it")
    return producer, result


def _needed_before(wanted: tuple[View, ...], backward: Nodes, at: int) -> Nodes:
    """The nodes from `at` on that make the `wanted` tensors (activations computed again): they move in front. NotEarly
    where they need what is computed at `at` or cannot move."""
    needed = makers((v.tensor for v in wanted), backward[at:])
    for t, nodes in needed.items():
        if any(n is backward[at] or any(p.inout for p in n.op.params) for n in nodes):
            raise NotEarly(f"'{t.name}' is not there yet where '{backward[at].op.name}' runs")
    found = {n for nodes in needed.values() for n in nodes}
    return tuple(n for n in backward[at:] if n in found)
