"""The values of expressions at all points of an iteration domain, as broadcast NumPy arrays.

Every index is an axis. Real values are float64 and integers int64, whatever the types of the tensors are;
only a cast rounds. An access is checked only at points that need it: under `select`, `and`, `or` the others
may lie outside their tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num, Span, Unary
from tcomp.dsl.errors import TcError
from tcomp.numeric import random_uniform, round_stochastic, round_to

Array = NDArray[Any]
CASTS = {d.value: d for d in DType}

_BINARY = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "//": np.floor_divide, "%": np.mod,
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal, "==": np.equal,
    "!=": np.not_equal,
}  # fmt: skip
_CALLS = {
    "exp": np.exp, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "abs": np.abs, "sin": np.sin,
    "cos": np.cos, "floor": np.floor, "min": np.minimum, "max": np.maximum,
}  # fmt: skip


@dataclass(frozen=True)
class Points:
    """The points of an equation: `indices` in order of axes, each over ranges[i] = (start, stop).

    Values of expressions are arrays that broadcast to `shape`, one axis per index.
    """

    indices: tuple[str, ...]
    ranges: Mapping[str, tuple[int, int]]
    arrays: dict[str, Array]
    dims: Mapping[str, int]
    axis: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.axis.update({n: a for a, n in enumerate(self.indices)})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.ranges[i][1] - self.ranges[i][0] for i in self.indices)

    def over(self, indices: tuple[str, ...]) -> Points:
        """The same ranges, only over these indices."""
        return Points(indices, self.ranges, self.arrays, self.dims)

    def at(self, values: Mapping[str, int]) -> Points:
        """Some indices held at one value; their axes remain, of length 1."""
        held = {i: (v, v + 1) for i, v in values.items()}
        return Points(self.indices, {**self.ranges, **held}, self.arrays, self.dims)

    def value(self, e: Expr, active: Array | bool = True) -> Array:
        """The expression at every point. Accesses are checked only where `active` holds."""
        match e:
            case Num(v):
                return np.asarray(v)
            case Name(id) if id in self.axis:
                start, stop = self.ranges[id]
                shape = [1] * len(self.indices)
                shape[self.axis[id]] = stop - start
                return np.arange(start, stop).reshape(shape)
            case Name(id):
                if id not in self.dims:
                    raise TcError(
                        f"'{id}' is neither an index of this equation nor a dimension", e.span, hint="name one of them"
                    )
                return np.asarray(self.dims[id])
            case Access(tensor, subscripts):
                return self._read(tensor, subscripts, e.span, active)
            case Unary("-", operand):
                return np.asarray(-self.number(operand, active))
            case Unary(_, operand):
                return ~self.truth(operand, active)
            case Binary("and", left, right):
                a = self.truth(left, active)
                return a & self.truth(right, active & a)
            case Binary("or", left, right):
                a = self.truth(left, active)
                return a | self.truth(right, active & ~a)
            case Binary("**", left, right):
                return _power(self.number(left, active), self.number(right, active))
            case Binary(op, left, right):
                return np.asarray(_BINARY[op](self.number(left, active), self.number(right, active)))
            case Call("select", (condition, left, right)):
                c = self.truth(condition, active)
                return np.where(c, self.number(left, active & c), self.number(right, active & ~c))
            case Call("random", (seed, counter)):
                return random_uniform(self.value(seed, active), self.value(counter, active))
            case Call("rsqrt", (x,)):
                return np.asarray(1.0 / np.sqrt(self.value(x, active)))
            case Call(function, (x,)) if function in CASTS:
                return round_to(self.value(x, active), CASTS[function])
            case Call(function, (x, u)) if function in CASTS:
                return round_stochastic(self.value(x, active), self.value(u, active), CASTS[function])
            case Call("floor", (x,)):
                whole = self.number(x, active)
                return whole if whole.dtype.kind == "i" else np.asarray(np.floor(whole))
            case Call(function, args) if function in _CALLS:
                return np.asarray(_CALLS[function](*(self.number(a, active) for a in args)))
        raise TcError("this expression has no value here", e.span)

    def truth(self, e: Expr, active: Array | bool = True) -> Array:
        """A condition as booleans."""
        return np.asarray(self.value(e, active), dtype=bool)

    def number(self, e: Expr, active: Array | bool = True) -> Array:
        """A value for arithmetic: truth is 0 or 1."""
        v = self.value(e, active)
        return v.astype(np.int64) if v.dtype.kind == "b" else v

    def _read(self, tensor: str, subscripts: tuple[Expr, ...], span: Span, active: Array | bool) -> Array:
        array = self.arrays[tensor]
        names = [s.id for s in subscripts if isinstance(s, Name) and s.id in self.axis]
        simple = len(set(names)) == len(names) and all(
            self._whole(s, n) for s, n in zip(subscripts, array.shape, strict=True)
        )
        if not simple:
            return np.asarray(array[self.positions(tensor, subscripts, span, active)])
        part = array[tuple(self._basic(s) for s in subscripts)]
        order = sorted(range(len(names)), key=lambda i: self.axis[names[i]])
        part = part.transpose(order)
        shape = [1] * len(self.indices)
        for i in order:
            shape[self.axis[names[i]]] = self.ranges[names[i]][1] - self.ranges[names[i]][0]
        return np.asarray(part.reshape(shape))

    def _whole(self, s: Expr, extent: int) -> bool:
        """A plain index within the axis, or a constant of the axis."""
        if isinstance(s, Num):
            return isinstance(s.value, int) and 0 <= s.value < extent
        return isinstance(s, Name) and s.id in self.axis and self.ranges[s.id][1] <= extent

    def _basic(self, s: Expr) -> Any:
        return slice(*self.ranges[s.id]) if isinstance(s, Name) else s.value if isinstance(s, Num) else None

    def positions(
        self, tensor: str, subscripts: tuple[Expr, ...], span: Span, active: Array | bool
    ) -> tuple[Array, ...]:
        """The subscripts at every point, those of inactive points moved inside the tensor."""
        shape = self.arrays[tensor].shape
        if len(shape) != len(subscripts):
            raise TcError(f"'{tensor}' has {len(shape)} axes, not {len(subscripts)}", span)
        at: list[Array] = []
        for axis, (s, extent) in enumerate(zip(subscripts, shape, strict=True)):
            x = self.value(s, active)
            if x.dtype.kind not in "iub":
                raise TcError(f"subscript {axis} of '{tensor}' is not an integer", s.span)
            x = x.astype(np.int64)
            outside = (x < 0) | (x >= extent)
            if np.any(outside & active):
                raise TcError(
                    f"'{tensor}' is accessed outside its extent {extent} on axis {axis}",
                    span,
                    hint="guard the read with `select`, or bound what the index is read from",
                    notes=(self._where(outside & active, x),),
                )
            at.append(np.clip(x, 0, max(extent - 1, 0)))
        if at and 0 in shape:
            at = [np.zeros((0,), np.int64)] * len(at) if 0 in self.shape else at
        return tuple(at)

    def _where(self, wrong: Array, subscript: Array) -> str:
        full = np.broadcast_to(wrong, np.broadcast_shapes(wrong.shape, (1,) * len(self.indices)))
        first = np.argwhere(full)[0]
        point = {
            i: int(v) + self.ranges[i][0]
            for i, v in zip(self.indices, first, strict=True)
            if full.shape[self.axis[i]] > 1
        }
        worst = int(np.broadcast_to(subscript, full.shape)[tuple(first)])
        place = ", ".join(f"{i} = {v}" for i, v in point.items())
        return f"the subscript is {worst}" + (f" at {place}" if place else "")


def _power(x: Array, y: Array) -> Array:
    """x ** y in reals; whole exponents of a negative base keep their sign."""
    return np.asarray(np.power(x.astype(np.float64), y.astype(np.float64)))


class WholeArrays(Points):
    """Points at which a tensor's name stands for its whole array."""

    def _read(self, tensor: str, subscripts: tuple[Expr, ...], span: Span, active: Array | bool) -> Array:
        return self.arrays[tensor]
