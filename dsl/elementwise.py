"""Which ops of vectors do with each element what they would do with it alone: AdamW, but not what sums or shifts.

Such an op may be given any part of its vectors: a share of them (ZeRO-1), all tensors of a group side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

from tcomp.dsl.ast import Access, Binary, Expr, Name, Op, Reduction, children


def elementwise(op: Op) -> bool:
    """Whether each element of an update depends on the same element of its vectors alone, and on its place by the
    random number of `first + i` only, so that a part of the vectors can be updated by itself."""
    for eq in op.equations:
        found = {s for t in eq.targets for s in t.subscripts}
        if isinstance(eq.value, Reduction) or len(found) > 1 or any(len(t.subscripts) > 1 for t in eq.targets):
            return False
        at = next(iter(found), None)
        if at is not None and not isinstance(at, Name):
            return False
        if not pointwise(eq.value, "" if at is None else at.id):
            return False
    return not (op.requires or op.ranges)


def pointwise(e: Expr, index: str) -> bool:
    """Whether an expression reads tensors at `index` alone, and speaks of it otherwise as `first + index` only."""
    return all(
        x.subscripts in ((), (Name(index),)) and x.tensor != "first" if isinstance(x, Access) else False
        for x in _leaves(e, index)
    )


def _leaves(e: Expr, index: str) -> Iterator[Expr]:
    """Accesses and names in an expression, without those of `first + index`."""
    if isinstance(e, Binary) and e.op == "+" and {_called(e.left), _called(e.right)} == {"first", index}:
        return
    if isinstance(e, Access):
        yield e
        return
    if isinstance(e, Name):
        yield e
    for child in children(e):
        yield from _leaves(child, index)


def _called(e: Expr) -> str:
    return e.id if isinstance(e, Name) else e.tensor if isinstance(e, Access) and not e.subscripts else ""
