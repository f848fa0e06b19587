"""Sets of lanes: a slice while they are contiguous (no copies), else a sorted index array.

`Sel` indexes a register row directly in both forms. A lane's number is its place in the running wave of
blocks: block slot x threads rounded up to whole warps + thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:  # what NumPy's own function calls, which takes several times as long to begin with
    from numpy._core.multiarray import count_nonzero
except ImportError:
    from numpy import count_nonzero

Array = np.ndarray[Any, Any]
Sel = Any  # slice | Array


# NumPy's own any(), all(), max(), unique() and the like take microseconds to begin with; most arrays here are a few
# warps long, for which the methods that these use take a fraction of that.


def some(mask: Array) -> bool:
    """Does any element hold (or differ from zero)?"""
    return bool(count_nonzero(mask))


def every(mask: Array) -> bool:
    """Do all elements hold?"""
    return bool(count_nonzero(mask) == mask.size)


def indices(mask: Array) -> Array:
    """The places at which a mask of one dimension holds, in rising order."""
    found: Array = mask.nonzero()[0]
    return found


def least(values: Array) -> int:
    """The least of integers in one dimension, of which there is one at least."""
    return int(values[values.argmin()])


def greatest(values: Array) -> int:
    """The greatest of integers in one dimension, of which there is one at least."""
    return int(values[values.argmax()])


def one_each(value: Any, n: int) -> Array:
    """An array of n values, of one for all or one for each: not to be written to."""
    found = np.asarray(value)
    if found.shape == (n,):
        return found
    out = np.empty(n, found.dtype)
    out[:] = found
    return out


def distinct(values: Array) -> Array:
    """The values in rising order, each once."""
    ordered = values.flatten()
    ordered.sort()
    return ordered if len(ordered) < 2 else ordered[changes(ordered)]


def changes(values: Array) -> Array:
    """Where in one dimension a value is another than that before it (the first is)."""
    new = np.empty(len(values), bool)
    new[:1] = True
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return new


def count(sel: Sel) -> int:
    return int(sel.stop - sel.start) if sel.__class__ is slice else len(sel)


def ids(sel: Sel) -> Array:
    return np.arange(sel.start, sel.stop) if sel.__class__ is slice else sel


def compact(lanes: Array) -> Sel | None:
    """The smallest form of a sorted index array; None when empty."""
    n = len(lanes)
    if not n:
        return None
    if int(lanes[-1]) - int(lanes[0]) + 1 == n:
        return slice(int(lanes[0]), int(lanes[-1]) + 1)
    return lanes


def narrow(sel: Sel, mask: Array) -> Sel | None:
    """The lanes of `sel` where `mask` (one value per lane of `sel`) holds."""
    if mask.ndim == 0:
        return sel if mask else None
    if every(mask):
        return sel
    at = indices(mask)
    if sel.__class__ is slice:
        return compact(at + sel.start)
    return compact(sel[at])


def merge(a: Sel, b: Sel) -> Sel:
    if a.__class__ is slice and b.__class__ is slice and (a.stop == b.start or b.stop == a.start):
        return slice(min(a.start, b.start), max(a.stop, b.stop))
    both = np.concatenate([ids(a), ids(b)])
    both.sort()
    found = compact(both)
    assert found is not None
    return found


def warps(sel: Sel) -> int:
    """How many warps have a lane in `sel`."""
    if sel.__class__ is slice:
        return int((sel.stop - 1 >> 5) - (sel.start >> 5) + 1)
    w = sel >> 5
    return int(count_nonzero(w[1:] != w[:-1])) + 1
