"""Derivatives of ops: an op's own `backward` where it has one, else one derived from its equations."""

from __future__ import annotations

from tcomp.dsl.ast import Module, Op
from tcomp.grad.derive import derive

__all__ = ["backward_of", "derive"]

_CACHE: dict[tuple[int, str, frozenset[str] | None], tuple[Op, Module, Op | None]] = {}


def backward_of(op_name: str, module: Module, outputs: frozenset[str] | None = None) -> Op | None:
    """The backward op of a forward op, when gradients of `outputs` exist (None: of every float output).

    An op's own `backward` is given as it is, whatever `outputs` are. None when the op has no float parameter
    or no float output. TcError when the op cannot be differentiated.
    """
    own = module.ops.get(f"{op_name}.backward")
    if own is not None:
        return own
    op = module.ops[op_name]
    key = (id(module), op_name, outputs)
    known = _CACHE.get(key)
    if known is not None and known[0] is op and known[1] is module:
        return known[2]
    able = any(p.dtype.is_float for p in op.params) and any(o.dtype.is_float for o in op.outputs)
    result = derive(op, module, outputs) if able else None
    _CACHE[key] = (op, module, result)
    return result
