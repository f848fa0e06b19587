"""Gradients of what is read at sums of indices, gathered where they would be scattered.

    Y[t, n] = sum k, c: X[t + k, c] * W[k, n, c]          Of X's gradient a point (t, k) knows a part:
    dX[t + k, c] += sum n: dY[t, n] * W[k, n, c]
    -->
    dX[u, c] = sum n, k where 0 <= u - k and u - k < T: dY[u - k, n] * W[k, n, c]

So each element is summed by itself, in one place, and elements are shared out among threads. The index that goes runs
as far as the axis does, or is the one of the forward equation's left-hand side: what is left to sum over is the window.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tcomp.dsl.ast import Access, Binary, Call, Expr, Name, Num, accesses_in, names_in, substitute
from tcomp.dsl.extents import Affine, affine, bounds, never_negative, same
from tcomp.grad.forward import Forward
from tcomp.grad.parts import both, fresh
from tcomp.grad.simplify import rewrite, simplify


@dataclass(frozen=True)
class Inverse:
    """The subscript at `axis` solved for `index`, which is `place` where the subscript is the `new` index: there
    `inside` must hold."""

    axis: int
    index: str
    new: str
    place: Expr
    inside: Expr | None


@dataclass(frozen=True)
class Gathers:
    """The indices that gather gradients in one derivation: `new` has one for each tensor and axis that needs it."""

    forward: Forward
    taken: set[str]
    new: dict[tuple[str, int], str] = field(default_factory=dict)

    def gather(
        self, a: Access, indices: tuple[str, ...], condition: Expr | None, value: Expr, parallel: Collection[str]
    ) -> tuple[tuple[Expr, ...], tuple[str, ...], Expr | None, Expr]:
        """Subscripts, indices, condition and value of a part of the gradient of `a`, which is added to at each point of
        the indices where the condition holds: gathered where that can be. `parallel` are the indices of the forward
        equation's left-hand side; without any nothing is."""
        subscripts, ranges = a.subscripts, self.forward.info.ranges
        while parallel and (found := self._inverse(a.tensor, subscripts, parallel, condition is None)):
            if condition is not None and any(found.index in names_in(x) for x in accesses_in(condition)):
                break  # at the new index it could read outside
            subscripts = (*subscripts[: found.axis], Name(found.new), *subscripts[found.axis + 1 :])
            indices = tuple(found.new if i == found.index else i for i in indices)
            value = _moved(value, found, ranges)
            kept = None if condition is None else uncertain(_moved(condition, found, ranges), ranges)
            condition = both(kept, found.inside)
        return subscripts, indices, condition, value

    def _inverse(
        self, tensor: str, subscripts: tuple[Expr, ...], parallel: Collection[str], everywhere: bool
    ) -> Inverse | None:
        """How to gather by the first subscript for which that can be, or None: a sum of indices, each once, and a
        constant; of one index only where it may lie outside (not `everywhere`). Others than that which goes may have
        factors (a dilated window) where that one runs as far as the axis: else what each element gathers could be far
        more than what is scattered."""
        ranges = self.forward.info.ranges
        for axis, (s, extent) in enumerate(zip(subscripts, self.forward.extents(tensor), strict=True)):
            found = affine(s, ranges)
            if found is None or isinstance(s, Name) or not _of_dimensions(Affine(found.terms, {})):
                continue
            once = [i for i, p in found.terms.items() if p in ({(): 1}, {(): -1})]
            if not found.terms or (len(found.terms) == 1 and everywhere):
                continue
            elsewhere = {n for i, t in enumerate(subscripts) if i != axis for n in names_in(t)}
            own = [i for i in found.terms if i in parallel]
            alone = own if len(own) == 1 and len(once) == len(found.terms) else []
            chosen = [i for i in once if same(ranges[i], extent)] or alone
            for index in (i for i in chosen if i not in elsewhere):
                new, one = self._index(tensor, axis, extent), found.terms[index] == {(): 1}
                rest = Binary("-" if one else "+", s, Name(index))
                place = _whole(simplify(Binary("-", Name(new), rest) if one else Binary("-", rest, Name(new))))
                inside = both(Binary("<=", Num(0), place), Binary("<", place, ranges[index]))
                return Inverse(axis, index, new, place, uncertain(inside, ranges))
        return None

    def _index(self, tensor: str, axis: int, extent: Expr) -> str:
        """The index over an axis. (Other derivations of the same op have theirs in the same ranges.)"""
        if (tensor, axis) not in self.new:
            name, ranges = fresh("u", self.taken), self.forward.info.ranges
            while ranges.setdefault(name, extent) != extent:
                name = fresh("u", self.taken)
            self.new[tensor, axis] = name
        return self.new[tensor, axis]


def _moved(e: Expr, inverse: Inverse, ranges: Mapping[str, Expr]) -> Expr:
    """An expression at the new index in the place of the old one, without conditions that always hold."""

    def taken(x: Expr) -> Expr | None:
        always = isinstance(x, Call) and x.function == "select" and uncertain(x.args[0], ranges) is None
        return rewrite(x.args[1], taken) if always and isinstance(x, Call) else None

    return rewrite(substitute(e, {inverse.index: inverse.place}), taken)


def uncertain(condition: Expr | None, ranges: Mapping[str, Expr]) -> Expr | None:
    """The condition without what holds for all values of the indices."""
    match condition:
        case Binary("and", a, b):
            return both(uncertain(a, ranges), uncertain(b, ranges))
        case Binary("<=" | "<" | ">" | ">=" as op, a, b):
            gap = affine(Binary("-", b, a) if op[0] == "<" else Binary("-", a, b), ranges)
            low = None if gap is None or not _of_dimensions(gap) else bounds(gap, ranges)
            least = None if low is None else {**low[0], (): low[0].get((), 0) - (len(op) == 1)}
            return None if least is not None and never_negative(least) else condition
    return condition


def _of_dimensions(form: Affine) -> bool:
    """Whether its coefficients are of dimensions and numbers alone: a scalar operand may have any sign."""
    return not any(isinstance(atom, Expr) for p in (form.constant, *form.terms.values()) for m in p for atom in m)


def _whole(e: Expr) -> Expr:
    """A subscript with its numbers as integers."""
    return rewrite(e, lambda x: Num(int(x.value)) if isinstance(x, Num) and x.value == int(x.value) else None)
