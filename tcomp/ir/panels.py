"""The turns of a panel loop, written out: its variable becomes `start + number`, so that places in tiles are numbers.

panel n.panel in n.0 .. n.0 + 128 step 64: S(n.panel)    -->    S(n.0); S(n.0 + 64)
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Binary, Call, Expr, Num, substitute
from tcomp.ir.rewrite import map_expressions
from tcomp.ir.tile import Compute, Loop, Statement, Unpack


def written_out(loop: Loop) -> list[tuple[Statement, ...]]:
    """The bodies of a panel loop's turns, without its variable."""
    assert isinstance(loop.stop, Binary) and isinstance(loop.stop.right, Num)
    turns = range(0, int(loop.stop.right.value), loop.step)
    return [tuple(placed(s, loop.variable, _later(loop.start, t)) for s in loop.body) for t in turns]


def _later(e: Expr, n: int) -> Expr:
    match e:
        case Num(value):
            return Num(int(value) + n)
        case Binary("+", x, Num(value)):
            return _later(x, int(value) + n)
    return Binary("+", e, Num(n)) if n else e


def placed(s: Statement, variable: str, value: Expr) -> Statement:
    """A statement of a panel loop with that value for the loop's variable."""
    names = {variable: value}

    def moved(e: Expr) -> Expr:
        match e:
            case Call("min", args) as c:
                return replace(c, args=tuple(_later(a, 0) for a in args))
        return _later(e, 0)

    assert isinstance(s, Compute | Unpack)
    s = map_expressions(s, lambda e: substitute(e, names))
    return replace(s, axes=tuple(replace(a, start=moved(a.start), stop=moved(a.stop)) for a in s.axes))
