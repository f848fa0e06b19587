"""Partial results of blocks: each leaves what it has of a sum, and a second phase joins them in order.

    combine s over i by partials
    s[n] = sum i: x[i, n]
    -->
    s.partial[block, n] = sum i in block: x[i, n]
    s[n'] = sum block: s.partial[block, n']                              a phase of its own

On a GPU, and where n is divided among the cores too, that phase has loops of its own for n'. (`split_sum.py` has sums
that are tiled again inside their blocks.)
"""

from __future__ import annotations

from dataclasses import replace

from tcomp.dsl.ast import Binary, Combine, Name, Num, Reduction
from tcomp.dsl.errors import TcError
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.joining_loops import into, join_of, joining_cores, joining_loops, with_loops
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.tree.nest import PARTIAL, Leaf


def one_block(instance: Instance, plan: KernelPlan, c: Combine) -> bool:
    """Is there one block of the index only, on a CPU?"""
    core = [t for t in plan.sequence if t.index == c.over and t.parallel]
    one = bool(core) and core[0].block is not None and instance.symbols.extents[c.over] <= core[0].block
    return instance.family.level == "core" and c.by == "partials" and one


def on_one_core(plan: KernelPlan, over: str) -> KernelPlan:
    """The plan where one core takes the whole sum: what would divide it is a loop of one turn."""

    def whole(tiles: tuple[TileLevel, ...]) -> tuple[TileLevel, ...]:
        return tuple(replace(t, kind="seq") if t.index == over and t.parallel else t for t in tiles)

    own = plan.loops[over]
    loops = {**plan.loops, over: replace(own, tiles=whole(own.tiles))}
    return replace(plan, loops=loops, sequence=whole(plan.sequence))


def partial_results(
    instance: Instance, plan: KernelPlan, leaf: Leaf, c: Combine, group: str
) -> tuple[Leaf, Leaf, KernelPlan]:
    """The equations of the blocks and of their join, and the plan with its loops, which sums of one `group` share."""
    eq, value = leaf.equation, leaf.equation.value
    family, symbols = instance.family, instance.symbols
    core = [t for t in plan.sequence if t.index == c.over and t.parallel]
    if c.over in leaf.gathered:
        way = ", or divide a loop that stands bare on the left instead"
        if family.level == "grid":
            way = f", and combine {eq.target.name} over {c.over} by sorted"
        message = f"'{eq.target.name}' is scattered over {c.over}: blocks leave no parts of a sum to be joined"
        raise TcError(message, c.span, f"map '{c.over}' to seq{way}")
    if c.by != "partials" or not core or core[0].block is None or not isinstance(value, Reduction):
        tiles = plan.loops[c.over].tiles if c.over in plan.loops else ()  # (a line may name a loop that no line maps)
        within = next((t for t in tiles if t.block is not None and not t.parallel), None)
        levels = f"{family.level}(65536)"
        if within is not None and within.block is not None:
            levels = f"{family.level}({4 * within.block}) / {within.kind}({within.block}) / ..."
        raise TcError(
            f"combine over {c.over} by {c.by} needs partial sums of equal blocks",
            c.span,
            f"write: {c.over} -> {levels}, and: combine {', '.join(c.names)} over {c.over} by partials",
        )
    if value.reducer not in ("sum", "max", "min"):
        message = f"partial results of '{value.reducer}' cannot be combined yet"
        raise TcError(message, c.span, f"map '{c.over}' to seq")
    level = core[0]
    assert level.block is not None
    name, index = eq.target.name + PARTIAL, f"{c.over}.block"
    symbols.extents[index] = count = -(-symbols.extents[c.over] // level.block)
    symbols.add(name, symbols.sum_type(eq.target.name), leaf.parallel, (count,))
    number = Binary("//", Name(level.variable), Num(level.block))
    rows = [Name(i) for i in leaf.parallel]
    first = into(eq, name, (number, *rows))
    joined = {i: i for i in leaf.parallel}
    if rows and (family.level == "grid" or any(t.parallel and t.index in leaf.parallel for t in plan.sequence)):
        joined = symbols.indices_like(leaf.parallel, group)
        indices = list(joined.values())
        if not set(indices) <= set(plan.loops):  # (else another of the group has brought them)
            if family.level == "grid":
                maps = joining_loops(indices, instance.shape(plan), level, (index, count))
            else:
                maps = joining_cores(indices, symbols.extents, level)
            plan = with_loops(plan, maps)
    elif (mapped := family.partial_loop(index)) is not None:
        plan = replace(plan, loops={**plan.loops, index: mapped})
    parts = Leaf(first, leaf.number, leaf.parallel, leaf.reduced, frozenset(), c.over, sums_for=(eq.target.name,))
    return parts, join_of(leaf, name, joined, (index,)), plan
