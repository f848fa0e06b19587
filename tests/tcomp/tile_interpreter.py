"""Runs tile IR on NumPy arrays: what a kernel means, independent of any code generator.

Takes a kernel and arrays for its operands (changed in place), simulating a number of cores one after the
other. Slow and exact about indices: reading outside a tile or operand is an IndexError, scratch starts as NaN,
and what a `region` leaves out is NaN. Blocks run in the order of their numbers, which the words of `Turns` must keep:
one that would wait for a later block, or add to a place twice, is an `OutOfTurn`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, Unary, conjuncts, names_in
from tcomp.ir.blocks import GridOrder, Stream
from tcomp.ir.reducers import IDENTITY
from tcomp.ir.tile import Axis, Compute, Kernel, Loop, Pack, Scope, Statement, Turns, Unpack
from tcomp.ir.walk import streams

PARALLEL = ("core", "grid")
SHARED = (Scope.TEAM, Scope.WORDS)
Values = dict[str, Any]

NOWHERE = -(1 << 40)
"""What stands outside of a tensor of integers: as a subscript it is outside of every tensor."""
_BINARY = {
    "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "//": np.floor_divide,
    "%": np.mod, "**": np.power, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
    "==": np.equal, "!=": np.not_equal, "and": np.logical_and, "or": np.logical_or,
}  # fmt: skip
_CALLS: dict[str, Any] = {
    "exp": np.exp, "exp2": np.exp2, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x),
    "abs": np.abs, "sin": np.sin, "cos": np.cos, "floor": np.floor, "min": np.minimum, "max": np.maximum,
}  # fmt: skip
_REDUCE: dict[str, Any] = {"sum": np.sum, "max": np.max, "min": np.min}
_JOIN = {"sum": np.add, "max": np.maximum, "min": np.minimum}


SHARES = 5
"""of a stream: as many blocks as a small GPU might run"""


def _shares(points: list[Values], stream: Stream) -> Iterator[Values]:
    """The turns of the grid loops, each as often as shares have parts of it, in the order in which blocks take them."""
    n, unit = len(points), stream.unit
    shares = min(SHARES, n * stream.units)
    parts, size = stream.parts(n, shares)
    rest, units = shares - parts * n, stream.units - parts * size
    for share in reversed(range(rest)):
        at, end = n * units * share // rest, n * units * (share + 1) // rest
        while at < end:
            number, first = divmod(at, units)
            last = min(units, first + end - at)
            first, last, at = first + parts * size, last + parts * size, at + last - first
            yield {**points[number], stream.start: first * unit, stream.stop: last * unit}
    for part in reversed(range(parts)):
        for point in reversed(points):
            yield {**point, stream.start: part * size * unit, stream.stop: (part + 1) * size * unit}


class OutOfTurn(AssertionError):
    """A kernel whose blocks would wait for ever, or add in another order than their turns say."""


class Interpreter:
    """One run of a kernel over `arrays` (operand name -> array)."""

    def __init__(self, kernel: Kernel, arrays: dict[str, np.ndarray], threads: int = 1) -> None:
        self.kernel, self.threads = kernel, threads
        self.order = kernel.blocks.order if kernel.blocks is not None else GridOrder()
        self.arrays: dict[str, np.ndarray] = dict(arrays)
        self.taken: set[tuple[str, tuple[int, ...]]] = set()  # the words at which the running block has had its turn
        for b in kernel.tiles:
            if b.scope in SHARED:
                self.arrays[b.name] = np.full(b.shape, np.nan if b.scope is Scope.TEAM else 0)

    def run(self) -> None:
        for phase in self.kernel.phases:
            for thread in range(self.threads):
                self._forget()
                for statement in phase:
                    self._core(statement, [], thread)
        for b in self.kernel.tiles:
            if b.scope is Scope.WORDS and self.arrays[b.name].any():
                raise OutOfTurn(f"{self.kernel.name}: words of {b.name} are not zero at the end")

    def _forget(self) -> None:
        """Private tiles start undefined on every core and in every block."""
        for b in self.kernel.tiles:
            if b.scope not in SHARED:
                self.arrays[b.name] = np.full(b.shape, np.nan)

    def _core(self, s: Statement, loops: list[Loop], thread: int) -> None:
        """Collect the nested core loops of a phase and run this thread's share of them."""
        if isinstance(s, Loop) and s.level in PARALLEL and not s.chunked:
            nested = [b for b in s.body if isinstance(b, Loop) and b.level in PARALLEL]
            if len(s.body) == 1 and nested:
                return self._core(s.body[0], [*loops, s], thread)
            loops = [*loops, s]
            points: list[Values] = [{}]
            for loop in loops:
                points = [{**p, loop.variable: v} for p in points for v in self._walked(loop, p)]
            if (stream := self.order.stream) is not None and streams(s, stream):
                points = list(_shares(points, stream))
            n = len(points)
            for p in points[n * thread // self.threads : n * (thread + 1) // self.threads]:
                if s.level == "grid":
                    self._forget()
                    self.taken.clear()
                for b in s.body:
                    self._run(b, p)
            return None
        if isinstance(s, Loop) and s.chunked:
            start, stop = self.integer(s.start, {}), self.integer(s.stop, {})
            granules = -(-(stop - start) // s.step)
            per = -(-granules // self.threads) * s.step
            low, high = min(stop, start + per * thread), min(stop, start + per * (thread + 1))
            if low < high:
                for b in s.body:
                    self._run(b, {s.variable: low, s.variable + ".stop": high})
            return None
        raise ValueError(f"a phase of {self.kernel.name} starts with something other than a core loop")

    def _run(self, s: Statement, names: Values) -> None:
        match s:
            case Loop():
                for v in range(self.integer(s.start, names), self.integer(s.stop, names), s.step):
                    for b in s.body:
                        self._run(b, {**names, s.variable: v})
            case Compute():
                self._compute(s, names)
                if s.last is None or self.value(s.last, names):
                    for follower in s.epilogue:
                        self._compute(follower, names)
            case Pack():
                self._pack(s, names)
            case Unpack():
                grid, shape = self._grid(s.axes, names)
                at = tuple(np.broadcast_to(np.asarray(self.value(x, grid)), shape) for x in s.target.subscripts)
                self._inside(self.arrays[s.target.tensor], at, s.target)
                tile = self.arrays[s.buffer][tuple(slice(0, n) for n in shape)]
                adds = s.add and (s.turns is None or self._take_turn(s.turns, names) or not s.turns.stores)
                self.arrays[s.target.tensor][at] = self.arrays[s.target.tensor][at] + tile if adds else tile

    def _walked(self, loop: Loop, names: Values) -> range:
        """The loop's turns in the order in which blocks take them."""
        turns = range(self.integer(loop.start, names), self.integer(loop.stop, names), loop.step)
        return turns[::-1] if loop.variable in self.order.reversed else turns

    def _take_turn(self, turns: Turns, names: Values) -> bool:
        """The running block's turn at a place. Was there a block before it?"""
        word = (turns.flag.tensor, tuple(self.integer(x, names) for x in turns.flag.subscripts))
        number = self.integer(turns.number, names)
        where = f"{self.kernel.name}: block {number} at {word[0]}[{', '.join(str(x) for x in word[1])}]"
        if word in self.taken:
            raise OutOfTurn(f"{where} has a second turn")
        self.taken.add(word)
        met = all(
            self.integer(low, names) <= self.integer(value, names) < self.integer(stop, names)
            for low, value, stop in turns.met
        )
        before = self.integer(turns.before, names) if met else 0
        held = int(self.arrays[word[0]][word[1]])
        if held != before:
            raise OutOfTurn(f"{where} waits for {before or 'nobody'}, but the last was {held or 'nobody'}")
        self.arrays[word[0]][word[1]] = number
        return met

    def integer(self, e: Expr, names: Values) -> int:
        return int(self.value(e, names))

    def _grid(self, axes: tuple[Axis, ...], names: Values) -> tuple[Values, tuple[int, ...]]:
        ranges = [np.arange(self.integer(a.start, names), self.integer(a.stop, names)) for a in axes]
        for a, r in zip(axes, ranges, strict=True):
            if len(r) > a.block:
                raise IndexError(f"{self.kernel.name}: axis {a.name} has {len(r)} values, more than {a.block}")
        mesh = np.meshgrid(*ranges, indexing="ij", sparse=True) if ranges else []  # (each along its own axis alone)
        shape = tuple(len(r) for r in ranges)
        return {**names, **{a.name: m for a, m in zip(axes, mesh, strict=True)}}, shape

    def _compute(self, s: Compute, names: Values) -> None:
        grid, shape = self._grid(s.axes, names)
        if (0 in shape and not s.reduced) or not (s.only is None or self.value(s.only, names)):
            return
        value = np.broadcast_to(np.asarray(self.value(s.value, grid)), shape)
        mask = np.ones(shape, bool) if s.guard is None else np.broadcast_to(self.value(s.guard, grid), shape)
        target = self.arrays[s.target.tensor]
        for g in conjuncts(s.region):
            needed = np.broadcast_to(self.value(g, grid), shape)
            if names_in(g) & s.reduced:
                mask = mask & needed
            else:  # nobody may read it: code generators may leave it out, and add nothing where many points meet
                own = {x.id for x in s.target.subscripts if isinstance(x, Name)}
                meets = s.accumulate and (len(own) < len(s.target.subscripts) or not names_in(g) <= own)
                value = np.where(needed, value, 0.0 if meets else np.nan)
        if s.reduced:
            assert s.reducer is not None
            dims = tuple(d for d, a in enumerate(s.axes) if a.name in s.reduced)
            outer = tuple(a for a in s.axes if a.name not in s.reduced)
            value = np.where(mask, value, IDENTITY[s.reducer])
            value = np.asarray(_REDUCE[s.reducer](value, axis=dims, initial=IDENTITY[s.reducer]))
            grid, shape = self._grid(outer, names)
            mask = np.ones(shape, bool)
        at = tuple(np.broadcast_to(np.asarray(self.value(x, grid)), shape)[mask] for x in s.target.subscripts)
        self._inside(target, at, s.target)
        adds = s.accumulate
        if s.turns is not None:
            adds = self._take_turn(s.turns, names) or not s.turns.stores
        if not at:
            value = value.reshape(())
        else:
            value = value[mask]
        if not s.distinct:
            np.add.at(target, at, value)
        elif adds:
            target[at] = _JOIN[s.reducer or "sum"](target[at], value)
        else:
            target[at] = value

    def _inside(self, array: np.ndarray, at: tuple[Any, ...], access: Access) -> None:
        for d, x in enumerate(at):
            if np.size(x) and (np.min(x) < 0 or np.max(x) >= array.shape[d]):
                raise IndexError(f"{self.kernel.name}: {access.tensor} axis {d} at {np.max(x)}")

    def _pack(self, s: Pack, names: Values) -> None:
        buffer = self.arrays[s.buffer]
        buffer[...] = 0.0
        grid, shape = self._grid(s.axes, names)
        value = np.broadcast_to(np.asarray(self.value(s.source, grid)), shape)
        buffer[tuple(slice(0, n) for n in shape)] = value

    def value(self, e: Expr, names: Values) -> Any:
        """The value of an expression on the whole grid of index values."""
        match e:
            case Num(v):
                return v
            case Name(n):
                return names[n]
            case Access(tensor, subscripts):
                array = self.arrays[tensor]
                at = tuple(np.asarray(self.value(x, names)) for x in subscripts)
                if all(not x.size or (x.min() >= 0 and x.max() < n) for x, n in zip(at, array.shape, strict=True)):
                    return array[at] if at else array[()]
                clipped = tuple(np.clip(x, 0, n - 1) for x, n in zip(at, array.shape, strict=True))
                found = array[clipped]
                bad = np.zeros(np.shape(found), bool)
                for x, c in zip(at, clipped, strict=True):
                    bad |= x != c
                return np.where(bad, np.nan if array.dtype.kind == "f" else NOWHERE, found)
            case Unary("-", x):
                return -self.value(x, names)
            case Unary("not", x):
                return np.logical_not(self.value(x, names))
            case Binary(op, x, y):
                with np.errstate(all="ignore"):
                    return _BINARY[op](self.value(x, names), self.value(y, names))
            case Call("select", (c, x, y)):
                return np.where(self.value(c, names), self.value(x, names), self.value(y, names))
            case Call(f, args):
                if f not in _CALLS:
                    return self.value(args[0], names)  # casts: the interpreter is about indices
                with np.errstate(all="ignore"):
                    return _CALLS[f](*(self.value(a, names) for a in args))
        raise TypeError(e)
