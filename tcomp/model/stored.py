"""What an optimizer gives as `w`, the parameters as the model reads them, is `p`, the master copies that it leaves.

    w[i] = p[i]                     refused: the model would read the parameters of a step before
    p[i] = p[i] - lr * g[i]

The op is evaluated at some numbers, so whatever way it computes the two counts, and no other.
"""

from __future__ import annotations

import numpy as np

from tcomp.dsl.ast import DType, Module, Op, TensorRef
from tcomp.dsl.dims import bind, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import dimensions
from tcomp.dsl.updates import calls
from tcomp.oracle import evaluate

_EXTENT = 4
_ROUNDING = 2.0**-6
"""of `w` where the op says which narrow type it is"""


def check_stored(name: str, module: Module) -> None:
    """TcError where the op or update of that name gives a `w` that is not `p`. (Of an update the last call that gives
    `w` is looked at, if it takes `p`.)"""
    if name not in module.updates:
        _check(module.ops[name], "p", "w", module)
        return
    giving = [c for c in calls(module.updates[name].body) if any(r.name == "w" for r in c.results)]
    for c in giving[-1:]:
        op = module.ops[c.op]
        taken = [p.name for p, a in zip(op.params, c.args, strict=True) if isinstance(a, TensorRef) and a.name == "p"]
        given = [o.name for o, r in zip(op.outputs, c.results, strict=True) if r.name == "w"]
        for p in taken[:1]:
            _check(op, p, given[0], module)


def _check(op: Op, p: str, w: str, module: Module) -> None:
    copy, own = op.operand(w), op.operand(p)
    if copy is None or own is None or copy.shape != own.shape:
        return
    try:
        dims = bind(op, {}, dict.fromkeys(sorted(dimensions(op)), _EXTENT))
    except TcError:
        return  # only of other extents
    random = np.random.default_rng(0)
    shapes = {o.name: operand_shape(o, dims) for o in op.params}
    given = {
        o.name: np.full(shapes[o.name], 3) if o.dtype is DType.I32 else random.uniform(0.5, 1.5, shapes[o.name])
        for o in op.params
    }
    found = evaluate(op, module, given, dims)
    after = found.get(p, given[p])
    if np.allclose(found[w], after, rtol=_ROUNDING, equal_nan=True):
        return
    last = [q for q in op.equations if any(t.name == w for t in q.targets)][-1]
    late = any(t.name == p for q in op.equations[op.equations.index(last) :] for t in q.targets)
    raise TcError(
        f"'{w}' of '{op.name}' is not '{p}', so the model would read other parameters than are kept",
        last.span,
        f"write this equation{' last' if late else ''}, as `{w}[..] = {p}[..]`",
    )
