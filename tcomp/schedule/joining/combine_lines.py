"""Whether a schedule's `combine` lines mean something: each says how one sum is joined over one loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tcomp.dsl.ast import Combine
from tcomp.dsl.errors import TcError
from tcomp.grad.parts import reads
from tcomp.schedule.joining.beside import Beside
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import called
from tcomp.schedule.tree.nest import Leaf


def check_combine(plan: KernelPlan, leaves: Sequence[Leaf], beside: Mapping[int, Beside]) -> None:
    """TcError for a `combine` line over a loop that one of its tensors does not sum (or scatter) over, and is not
    computed in the blocks of, and for a second one that says how the blocks of a loop are joined."""
    said: set[tuple[str, str]] = set()
    for c in plan.combine:
        for name in c.names:
            if c.by != "private" and (name, c.over) in said:
                message = f"how {name} is combined over {c.over} is said twice"
                raise TcError(message, c.span, "keep one line for it")
            said |= {(name, c.over)} if c.by != "private" else set()
            named = [x for x in leaves if called(x.equation, (name,))]
            if named and not any(c.over in _summed(x, beside) for x in named):
                raise _no_sum(c, name, named, leaves)


def _summed(leaf: Leaf, beside: Mapping[int, Beside]) -> frozenset[str]:
    """The indices of which several values, or blocks, have parts of one element of the equation's target."""
    lacking = beside[leaf.number].lacking if leaf.number in beside else ()
    return leaf.gathered | frozenset((*leaf.reduced, *lacking))


def _no_sum(c: Combine, name: str, named: Sequence[Leaf], leaves: Sequence[Leaf]) -> TcError:
    others = dict.fromkeys(i for x in named for i in (*x.reduced, *sorted(x.gathered)))
    more = "".join(f", or name a loop that it sums over: combine {name} over {i} by {c.by}" for i in list(others)[:1])
    if any(c.over in x.parallel for x in named):
        message = f"{name} is no sum over '{c.over}': that loop walks its elements, each of them in one tile"
        return TcError(message, c.span, f"leave the line out{more}")
    read = (x for x in leaves if c.over in x.reduced and any(set(x.written) & reads(n.equation) for n in named))
    hint = next((f"name the sum that it reads: combine {x.written[0]} over {c.over} by {c.by}" for x in read), None)
    return TcError(
        f"{name} has no loop '{c.over}' over which to combine it, and is not computed in the blocks of another "
        "sum that has",
        c.span,
        hint or "leave the line out, or put both in one kernel, with a pipe loop that they share",
    )
