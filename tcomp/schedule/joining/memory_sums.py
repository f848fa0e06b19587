"""Sums that blocks add up in memory: the equations behind `by atomic` and `by turns`.

    combine E over t by atomic     E[ids[t], n] += X[t, n]              blocks add to the target at the same time

    combine dQ over k by turns     dQ[q, d] = sum k: ds[q, k] * K[k, d]
    -->
    dQ.joined[q, d] += sum k in block: ds[q, k] * K[k, d]               all blocks of k, in f32 (`adding.py`)
    dQ[q', d'] = dQ.joined[q', d']                                      a phase of its own

`by atomic` is refused where runs must repeat; into an output narrower than f32, where adding up would lose bits, it
takes the second form, too.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tcomp.dsl.ast import Combine, DType, Name, Reduction
from tcomp.dsl.errors import TcError
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.adding import AddedSum
from tcomp.schedule.joining.joining_loops import into, join_of, joining_loops, mapped_alike, with_loops
from tcomp.schedule.joining.split_sum import splittable
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import part_of
from tcomp.schedule.tree.legality import cannot_combine
from tcomp.schedule.tree.nest import JOINED, Leaf


def atomic_sum(instance: Instance, leaf: Leaf, c: Combine) -> Leaf:
    """The equation adding to its target from many blocks at once."""
    eq, value = leaf.equation, leaf.equation.value
    if instance.family.level != "grid":
        raise TcError("atomic sums exist on GPUs only", c.span, f"combine {c.over} by partials")
    if instance.deterministic:
        raise TcError(
            f"atomic sums into '{eq.target.name}' would depend on the order in which blocks run",
            c.span,
            f"combine by {'sorted' if c.over in leaf.gathered else 'partials'}, "
            "or give `tcomp build`, `tcomp train` or `tcomp check` --nondeterministic",
            (f"two runs may round {eq.target.name} differently",),
        )
    sums = eq.accumulate if not isinstance(value, Reduction) else value.reducer == "sum"
    if not sums or eq.target.name in instance.temporaries:
        message = f"only sums into an output can be atomic, not '{eq.target.name}'"
        raise TcError(message, c.span, "combine by partials")
    over = c.over if c.over in leaf.reduced else None
    added = replace(eq, accumulate=True)
    return Leaf(added, leaf.number, leaf.parallel, leaf.reduced, leaf.gathered, over, atomic=True)


def adds_up(instance: Instance, leaf: Leaf, c: Combine) -> bool:
    """Is it an atomic sum into an output that is narrower than f32, where adding up would lose bits?"""
    narrow = instance.symbols.dtypes[leaf.equation.target.name].bytes < 4
    return c.by == "atomic" and narrow and c.over in leaf.reduced and not instance.deterministic


def added_sum(instance: Instance, plan: KernelPlan, leaf: Leaf, c: Combine) -> tuple[Leaf, Leaf, AddedSum, KernelPlan]:
    """The equation that all blocks add by, the one that reads what they have added, and the plan with its loops."""
    eq, value, symbols = leaf.equation, leaf.equation.value, instance.symbols
    output = part_of(eq.target)
    grid = [t for t in plan.sequence if t.index == c.over and t.parallel]
    fault, hint = "", f"map '{c.over}' to grid, or combine by partials"
    if (
        not splittable(eq) or not isinstance(value, Reduction) or value.reducer != "sum"
        or c.over not in leaf.reduced or eq.target.name in instance.temporaries or eq.accumulate
    ):  # fmt: skip
        fault, hint = f"it is no sum over {c.over} into plain indices of an output", "leave the line out"
    elif instance.family.level != "grid":
        fault, hint = "it needs blocks of a GPU", "combine by partials"
    elif not grid:
        fault = f"'{c.over}' is not divided among blocks"
    elif symbols.dtypes[eq.target.name] in (DType.F64, DType.I32):
        fault, hint = "blocks add sums in f32 alone", "combine by partials"
    if fault:
        raise cannot_combine(output, c, fault, hint)
    name, flags = output + JOINED, f"{output}.turns" if c.by == "turns" else ""
    symbols.add(name, DType.F32, leaf.parallel)
    if flags:
        symbols.add(flags, DType.I32, (), (math.prod(symbols.shapes[name][:-1]),))
    first = into(eq, name, [Name(i) for i in leaf.parallel], accumulate=True)
    new = symbols.indices_like(leaf.parallel, output)
    order = sorted(list(new.values())[:-1], key=lambda i: symbols.extents[i]) + list(new.values())[-1:]
    plan = with_loops(mapped_alike(plan, name, output), joining_loops(order, instance.shape(plan), grid[0]))
    adds = Leaf(
        first, leaf.number, leaf.parallel, leaf.reduced, leaf.gathered, c.over, sums_for=(eq.target.name,), atomic=True
    )
    return adds, join_of(leaf, name, new), AddedSum(name, output, c, grid[0], flags), plan
