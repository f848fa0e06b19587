"""Scatters in a fixed order: each block owns some rows of the target, walks all contributions and takes its own.

    combine E over t by sorted
    E[ids[t], n] += X[t, n]
    -->
    E[ids[t], n] += X[t, n]   where ids[t] // rows of a block == E.rows     E.rows -> grid

So every element is summed in the order of t, by as many blocks as the machine has room for.
"""

from __future__ import annotations

import math
from dataclasses import replace

from tcomp.dsl.ast import Binary, Combine, Name, Num, names_in
from tcomp.dsl.errors import TcError
from tcomp.schedule.instance import Instance
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.tree.nest import Leaf

BLOCKS_PER_SM = 8
"""of a sorted scatter: each owns rows, and waits for memory at every contribution to one of them"""


def sorted_scatter(instance: Instance, plan: KernelPlan, leaf: Leaf, c: Combine) -> tuple[Leaf, KernelPlan]:
    """The equation with its owners, and the plan with their loop."""
    eq, family, symbols = leaf.equation, instance.family, instance.symbols
    name = eq.target.name
    gathers = [d for d, s in enumerate(eq.target.subscripts) if c.over in names_in(s)]
    if family.level != "grid" or c.over not in leaf.gathered or not gathers or not eq.accumulate:
        raise TcError(
            f"combine {name} over {c.over} by sorted needs a scatter `{name}[ids[...]] += ...` on a GPU",
            c.span,
            f"leave the line out and map '{c.over}' to seq"
            + ("" if c.over in leaf.gathered else ", or combine by partials"),
        )
    mapped = plan.loops.get(c.over)
    if mapped is not None and (any(t.parallel for t in mapped.tiles) or mapped.lane or mapped.warp):
        raise TcError(
            f"a sorted scatter walks '{c.over}' in order, so it cannot be divided",
            mapped.span,
            f"map '{c.over}' to seq: the rows of {name} are what is divided",
        )
    rows = symbols.shapes[name][gathers[0]]
    blocks = math.prod(-(-symbols.extents[t.index] // (t.block or 1)) for t in plan.sequence if t.parallel)
    count = max(1, min(rows, BLOCKS_PER_SM * int(family.rules.facts["sms"]) // blocks))
    size = -(-rows // count)
    index = f"{name}.rows"
    symbols.extents[index] = -(-rows // size)
    level = TileLevel(index, 0, family.level, 1, c.span)
    owner = Binary("==", Binary("//", eq.target.subscripts[gathers[0]], Num(size)), Name(index))
    own = Leaf(eq, leaf.number, (*leaf.parallel, index), leaf.reduced, leaf.gathered, guard=owner)
    return own, replace(plan, sequence=(level, *plan.sequence))
