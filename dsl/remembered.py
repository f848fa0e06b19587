"""What is known of an op from before: texts that import the same files have the same ops, which are looked at once.

An op is itself, an object that nothing changes, and so are the functions and monoids beside it and the op that it is
the backward of: together all that is looked at. Errors are not kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import wraps

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.info import OpInfo

KEPT = 1024
"""ops, of each of the functions that remember"""


def remembered(find: Callable[[Op, Module], OpInfo]) -> Callable[[Op, Module], OpInfo]:
    """The same function, which looks at an op once. What it gives is the caller's own."""
    kept: OrderedDict[tuple[int, ...], tuple[tuple[object, ...], OpInfo]] = OrderedDict()

    @wraps(find)
    def known(op: Op, module: Module) -> OpInfo:
        forward = module.ops.get(op.backward_of) if op.backward_of else None
        given = (op, forward, *module.functions.values(), *module.monoids.values())
        key = tuple(map(id, given))  # (of objects that are kept beside it, so nothing else gets their numbers)
        if key not in kept:
            kept[key] = given, find(op, module)
        kept.move_to_end(key)
        while len(kept) > KEPT:
            kept.popitem(last=False)
        info = kept[key][1]
        return OpInfo(dict(info.ranges), dict(info.temporaries), info.dims, info.equation_indices)

    return known
