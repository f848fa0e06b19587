"""A gradient that is quantised where it is made: `[fp8(linear_residual_fp8, amax, quantised_gradient(MAKER, READER))]`.

    layernorm.backward(.., inout dx)                     MAKER(.., inout dx) -> .., Dr, Dt, rD, db
    linear_residual_fp8.backward(.., dx) -> .., db  -->  READER(.., Dr, Dt, rD) -> ..

MAKER takes the place of the op that adds to the call's incoming gradient last, READER that of the call's backward.
Operands are named as in `quantised.py`, for the gradient dY of the call and the result dX of the op before. The
gradient stays, as others read it too. Where nothing was there to be added to (the last layer), or what MAKER takes of
the reader is not there so early (computed again in between), or one of the two gives the gradient of
what is not trained, the ops stay apart. `tcomp check` of the model holds the step against the ops apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tcomp.model.autodiff import Variants
from tcomp.model.graph import Node, Quantised, Tensor
from tcomp.model.quantised import NotHere, check, paired, refusal, replaced

Nodes = tuple[Node, ...]


def quantised_gradients(backward: Nodes, targets: Sequence[str], variants: Variants, news: Collection[Tensor]) -> Nodes:
    """The backward nodes with annotated gradients quantised where they are made, on a machine of these targets; `news`
    are the states' next values. TcError, at the annotation, where that cannot be."""
    for node in backward:
        q = node.quantised_gradient
        if q is not None and (not q.on or set(q.on) & set(targets)):
            try:
                backward = _joined(node, q, backward, variants, news)
            except NotHere as e:
                raise refusal(node, q, "the gradient", "quantised_gradient", e) from None
    return backward


def _joined(node: Node, q: Quantised, backward: Nodes, variants: Variants, news: Collection[Tensor]) -> Nodes:
    if len(node.incoming) != 1:
        raise NotHere(f"'{node.op.name}' has {len(node.incoming)} of them")
    (operand,) = node.incoming
    view = node.operands[operand]
    at = backward.index(node)
    writers = [i for i, n in enumerate(backward[:at]) if any(view.meets(v) for v in n.writes.values())]
    if not writers:
        raise NotHere(f"'{view.tensor.name}' is not made in the backward pass")
    maker = backward[writers[-1]]
    result = next(name for name, v in maker.writes.items() if view.meets(v))
    if result in {o.name for o in maker.op.outputs}:  # (it begins here)
        return backward
    if any(o.name in n.unwanted for n, op in ((maker, q.maker), (node, q.reader)) for o in op.outputs):
        return backward
    own = q.maker.operand(result)
    if maker.operands[result] != view or own is None or not own.inout:
        raise NotHere(f"it does not add to '{result}' of '{maker.op.name}', of the same shape")
    pair = paired(q, maker, result, node, operand, node.label)
    results = {o.name for o in q.maker.outputs}
    for n in backward[writers[-1] : at]:
        for name in pair.taken:
            touched = n.operands if name in results else n.writes
            if any(pair.made[name].meets(v) for v in touched.values()):
                return backward
    added = [n.operands[p.name] for n in (maker, node) for p in n.op.params if p.inout]
    places = {}
    for n, op, views in ((maker, q.maker, pair.made), (node, q.reader, pair.read)):
        dtypes = {o.name: views[o.name].tensor.dtype for o in op.outputs}
        adding = frozenset(name for name in dtypes if views[name] in added)
        form = variants.form(op, dtypes, adding, frozenset(name for name in dtypes if views[name].tensor in news))
        check(form, views)
        places[n] = replaced(n, form, views)
    given = [v for n in places.values() for v in n.writes.values()]
    lost = [name for n in places for name, v in n.writes.items() if v not in given]
    if lost:
        raise NotHere(f"nobody gives '{lost[0]}'")
    return tuple(places.get(n, n) for n in backward)
