"""Parts of a tensor's gradient, and the equations that write them: `=` where it is safe, else `+=`.

Adjoints are expressions whose names .0, .1, ... stand for the tensor's axes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Binary, Call, Equation, Expr, Name, Num, Reduction, Span, Target, substitute
from tcomp.grad.parts import disjoint, injective
from tcomp.grad.simplify import ZERO, polynomial


@dataclass(frozen=True)
class Contribution:
    """A part of a tensor's gradient: tensor[subscripts] += sum over `reduced` where `guard` of `value`."""

    subscripts: tuple[Expr, ...]
    indices: tuple[str, ...]
    """the indices of the subscripts"""
    reduced: tuple[str, ...]
    guard: Expr | None
    value: Expr
    span: Span


def joined(parts: list[Contribution]) -> list[Contribution]:
    """Pointwise contributions to the whole tensor become one; reductions come first."""
    sums = [c for c in parts if c.reduced]
    points = [c for c in parts if not c.reduced]
    if len(points) > 1:
        first = points[0]
        value = first.value
        for c in points[1:]:
            names = {s.id: t for s, t in zip(c.subscripts, first.subscripts, strict=True) if isinstance(s, Name)}
            value = Binary("+", value, substitute(c.value, names))
        points = [replace(first, value=value)]
    return [*points, *sums]


def writes(name: str, parts: list[Contribution], before: list[tuple[Expr, ...]]) -> list[Equation]:
    """The equations of contributions: `=` where no earlier one can have touched the elements, else `+=`."""
    out: list[Equation] = []
    done = list(before)
    for c in parts:
        free = injective(c.subscripts, c.indices) and all(
            len(b) == len(c.subscripts) and disjoint(b, c.subscripts) for b in done
        )
        value: Expr | Reduction = c.value
        if c.reduced:
            value = Reduction("sum", c.reduced, c.guard, None, (c.value,), c.span)
        out.append(Equation((Target(name, c.subscripts),), not free, value, c.span))
        done.append(c.subscripts)
    return out


def diagonal(subscripts: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """`[i, i]` written as `[i, i + 0]`: on the left, a bare index that stands twice is refused as a slip."""
    return tuple(
        Binary("+", s, Num(0)) if s in subscripts[:n] and isinstance(s, Name) else s for n, s in enumerate(subscripts)
    )


def axes(rank: int) -> tuple[Expr, ...]:
    """The names of a tensor's axes in its adjoint: .0, .1, ..."""
    return tuple(Name(f".{n}") for n in range(rank))


def at(e: Expr, subscripts: tuple[Expr, ...]) -> Expr:
    """An adjoint at these subscripts."""
    return substitute(e, {f".{n}": s for n, s in enumerate(subscripts)})


def guarded(e: Expr, guard: Expr | None) -> Expr:
    """The expression where the guard holds, zero elsewhere."""
    return e if guard is None or e == ZERO else Call("select", (guard, e, ZERO))


def costly(e: Expr) -> bool:
    """Is it more than a product of a few values?"""
    p = polynomial(e)
    if len(p) != 1:
        return True
    ((m, _),) = p.items()
    if any(not isinstance(a, Access | Name) for a, _ in m):
        return True
    return bool(sum(abs(float(x)) for a, x in m if isinstance(a, Access)) > 3)
