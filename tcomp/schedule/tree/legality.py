"""What a schedule must not do, each with the counterexample that shows why and the directive that helps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import combinations, takewhile

from tcomp.dsl.ast import Access, Combine, Fuse, Name, Reduction, accesses_in
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_expression
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.tree.nest import JOINED, Leaf, LoopNode, Node, ancestors, conflict, depends, leaves_of, loops_below


def show(a: Access, values: dict[str, int]) -> str:
    """An access at concrete index values: `dg[0]`."""
    subs = [str(values.get(s.id, 0)) if isinstance(s, Name) else print_expression(s) for s in a.subscripts]
    return f"{a.tensor}[{', '.join(subs)}]" if subs else a.tensor


def remedy(plan: KernelPlan, tensor: str, over: str, otherwise: str) -> str:
    """What to do where no `combine` line joins a tensor's sums over a loop that is divided."""
    if any(c.over == over and tensor in c.names for c in plan.absent):
        return f"the line 'combine {tensor} over {over}' has a condition that does not hold here: write one that does"
    return otherwise


def cannot_combine(output: str, c: Combine, why: str, hint: str) -> TcError:
    """The error at a `combine` line that cannot be kept for an output (or a part of one)."""
    return TcError(f"{output} cannot be combined over {c.over} by {c.by}: {why}", c.span, hint)


def check_core_loops(roots: list[Node], plan: KernelPlan, extents: Mapping[str, int]) -> None:
    """Cores must not update the same element: no core loop over a reduced or scattered index.

    A reduced index may be divided among cores when `combine` says how the partial results are joined.
    """
    combined = {(n, c.over) for c in plan.combine if c.by != "private" for n in c.names}
    leaves = [x for r in roots for x in leaves_of(r)]
    for leaf in leaves:
        for loop in (x for x in ancestors(leaf) if x.level.parallel and x.level.index != leaf.partial_over):
            index = loop.level.index
            if index in leaf.reduced and not all((t, index) in combined for t in leaf.written):
                others = [x.writes()[0].tensor for x in leaves if index in x.reduced and not x.partial_over]
                raise _summed_over(
                    leaf, loop.level, plan, extents[index], [t for t in others if (t, index) not in combined]
                )
            if index in leaf.gathered and not leaf.atomic:
                raise _scattered_over(leaf, loop.level, extents[index])


def _among(level: TileLevel) -> str:
    return "cores" if level.kind == "core" else "blocks"


def _clash(level: TileLevel, extent: int) -> tuple[str, int, str]:
    """Two cores or blocks that meet: what they are called, the second one's first value, and when there is one."""
    if level.block is None:
        return "the first and the last core", max(extent - 1, 1), ""
    some = f", where '{level.index}' has more than {level.block}" if extent <= level.block else ""
    return "blocks 0 and 1", level.block, some


def _summed_over(leaf: Leaf, level: TileLevel, plan: KernelPlan, extent: int, sums: list[str]) -> TcError:
    """`sums` are all results that need a `combine` over the loop."""
    index, target, value = level.index, leaf.writes()[0], leaf.equation.value
    output = replace(target, tensor=target.tensor.removesuffix(JOINED))
    blocks = f"write: {index} -> {level.kind}(64), and" * (level.block is None)
    hint = f"map '{index}' to seq, or {blocks or 'add'}: combine {', '.join(sums)} over {index} by partials"
    if isinstance(value, Reduction) and value.key is not None:
        hint = f"map '{index}' to seq: partial results of '{value.reducer}' cannot be combined yet"
    hint = remedy(plan, output.tensor, index, hint)
    if any(c.by == "turns" and output.tensor in c.names for c in plan.combine):
        hint = f"leave '{index}' undivided: blocks that add by turns add their whole part at once"
    elif leaf.partial_over:
        hint = f"partial results are joined over one loop: reduce '{index}' in an equation of its own, before"
    who, second, some = _clash(level, extent)
    return TcError(
        f"loop '{index}' is divided among {_among(level)}, but '{output.tensor}' sums over it",
        level.span,
        hint,
        (f"{who} both update {show(output, {})} (at {index} = 0 and {index} = {second}{some})",),
    )


def _scattered_over(leaf: Leaf, level: TileLevel, extent: int) -> TcError:
    index, target = level.index, leaf.writes()[0]
    who, second, some = _clash(level, extent)
    when = "the other indices make up for the difference"
    if any(accesses_in(x) for x in target.subscripts):
        when = f"the gathered values at {index} = 0 and {index} = {second}{some} are equal"
    return TcError(
        f"loop '{index}' is divided among {_among(level)}, but '{target.tensor}' is scattered over it",
        level.span,
        f"divide a loop that stands bare on the left instead, and map '{index}' to seq",
        (f"{who} both update an element of {print_expression(target)} when {when}",),
    )


def check_nesting(roots: list[Node]) -> None:
    """Loops divided among cores or blocks enclose everything of their phase: nothing may run between two of them."""

    for node in roots:
        while isinstance(node, LoopNode) and node.level.parallel:
            inner = [c for c in node.children if isinstance(c, LoopNode) and _parallel_within(c)]
            if inner and len(node.children) > 1:
                between = next(x for c in node.children if c is not inner[0] for x in leaves_of(c))
                raise _between(between, node.level, _parallel_within(inner[0])[0].level)
            if not inner:
                break
            node = inner[0]


def _between(leaf: Leaf, outer: TileLevel, inner: TileLevel) -> TcError:
    name = leaf.known_as[0] if leaf.known_as else leaf.written[0]
    hint = f"compute '{name}' in a kernel of its own (kernel {name}:)"
    if leaf.readers and (not leaf.reduced or outer.kind == "grid"):
        hint += f", or again where it is read (inline {name})"
    return TcError(
        f"loop '{inner.index}' is divided among {_among(inner)}, but '{name}', which has no loop "
        f"'{inner.index}', shares the loop '{outer.index}' around it",
        inner.span,
        hint,
    )


def _parallel_within(node: LoopNode) -> list[LoopNode]:
    """The loop and those in it that are divided among cores or blocks, outer ones first."""
    return [x for x in (node, *loops_below(node)) if x.level.parallel]


def check_fuse(leaves: list[Leaf], plan: KernelPlan) -> None:
    """`fuse a, b at k` must hold: the named equations really share the loop over k."""
    known = {w for x in leaves for w in x.known_as}
    for f in plan.fuse:
        named = [x for x in leaves if any(w in f.names for w in x.known_as)]
        _check_named(f, named, known, plan.inline)
        for first, second in combinations(named, 2):
            if (met := conflict(f.at, first, second)) is not None:
                raise _not_fused(f, first, second, *met)
            if (between := _needs_whole(f.at, first, second, leaves)) is not None:
                raise _fused_across(f, first, between, second)
        loops = [{id(n) for n in ancestors(x) if n.level.index == f.at} for x in named]
        if loops and not set.intersection(*loops) and any(loops):
            raise _apart(f, named, leaves, plan)


def _apart(f: Fuse, named: list[Leaf], leaves: list[Leaf], plan: KernelPlan) -> TcError:
    """The error for equations that could share the loop, and do not: one between them, or a loop around, is why."""
    last = max(named, key=lambda x: x.number)
    for first in named:
        for x in leaves:
            if first.number < x.number < last.number and x not in named and conflict(f.at, first, x) is not None:
                a, b, c = ((y.known_as or y.written)[0] for y in (first, x, last))
                return TcError(
                    f"'{a}' and '{c}' do not end up in one loop over '{f.at}': '{b}' stands between them, and needs "
                    f"'{a}' of all turns",
                    f.span,
                    f"write the equation of '{b}' behind that of '{c}'",
                )
    message, hint = f"these equations do not end up in one loop over '{f.at}'", "map the loops around it alike"
    for level in takewhile(lambda t: t.index != f.at, plan.levels):
        inside = [x for x in named if level.index in x.walked]
        outside = [x for x in named if x not in inside]
        if inside and outside:
            a, b, n = inside[0].written[0], outside[0].written[0], level.index
            message += f": '{a}' is in a loop over '{n}' around it, and '{b}', which has no '{n}', is not"
            hint = f"put it outside: order {f.at}, {n}"
            if level.parallel:
                hint = f"do not divide '{n}' among {_among(level)}, or compute '{b}' in a kernel of its own"
            if level.kind == "grid" and outside[0].reduced and outside[0].readers:
                hint = f"let each block sum it (inline {b}), or compute it in a kernel of its own"
            break
    return TcError(message, f.span, hint)


def _check_named(f: Fuse, named: list[Leaf], computed: set[str], inlined: Collection[str]) -> None:
    """TcError for a name of no equation, and for an equation without the loop."""
    for n in f.names:
        if n not in computed and n not in inlined:
            hint = f"it computes: {', '.join(sorted(computed))}"
            raise TcError(f"fuse names '{n}', which this kernel does not compute", f.span, hint)
    for leaf in named:
        if f.at not in leaf.domain:
            w = leaf.known_as[0]
            own = sorted(n for n in leaf.domain if "." not in n)  # (of parts of sums, loops have other names)
            hint = f"leave '{w}' out of this line" + (f", or fuse at one of: {', '.join(own)}" if own else "")
            raise TcError(f"'{w}' has no loop '{f.at}', so it cannot be fused at it", f.span, hint)


def _needs_whole(index: str, first: Leaf, second: Leaf, leaves: list[Leaf]) -> Leaf | None:
    """An equation that `second` needs, perhaps by way of others, and that can only run after all turns of `first`."""
    late: list[tuple[Leaf, Leaf]] = []
    for x in sorted(leaves, key=lambda leaf: leaf.number):
        if not first.number < x.number <= second.number:
            continue
        cause = next((c for y, c in late if depends(x, y)), None)
        if x is second:
            return cause
        if cause is not None or conflict(index, first, x) is not None:
            late.append((x, cause or x))
    return None


def _fused_across(f: Fuse, first: Leaf, between: Leaf, second: Leaf) -> TcError:
    """The error for two equations between which one needs all turns of the first."""
    a, b, c = (x.written[0] for x in (first, between, second))
    return TcError(
        f"'{a}' and '{c}' cannot share the loop over {f.at}: '{c}' needs '{b}', which needs '{a}' of all turns",
        f.span,
        f"leave '{c}' out of this line: it runs in a loop of its own, after '{b}'",
        (f"at {f.at} = 0, '{b}' would be computed when '{a}' holds only the part of {f.at} = 0",),
    )


def _not_fused(f: Fuse, first: Leaf, second: Leaf, a: Access, b: Access) -> TcError:
    """The error for two equations whose accesses would meet in different turns."""
    if f.at in first.reduced:
        note = f"at {f.at} = 0, {show(b, {})} would be read when {show(a, {})} holds only the part of {f.at} = 0"
        hint = f"leave '{second.written[0]}' out: it runs after the loop over {f.at}"
    else:
        note = f"turn {f.at} = 0 writes {show(a, {f.at: 0})}, and {print_expression(b)} belongs to another turn"
        hint = f"leave '{second.written[0]}' out of this line"
    message = f"'{first.written[0]}' and '{second.written[0]}' cannot share the loop over {f.at}"
    return TcError(message, f.span, hint, (note,))


def check_registers(accumulators: int, registers: int, leaf: Leaf, plan: KernelPlan) -> None:
    """The register tile must fit: accumulators plus one vector per operand."""
    if accumulators + 2 > registers:
        value = leaf.equation.value
        span = plan.span if not isinstance(value, Reduction) else leaf.equation.span
        tiled = next(
            (plan.loops[i] for i in (*leaf.parallel, *leaf.reduced) if i in plan.loops and plan.loops[i].unroll > 1),
            None,
        )
        raise TcError(
            f"the register tile of '{leaf.written[0]}' needs {accumulators} accumulators and two operands, "
            f"but there are {registers} vector registers",
            tiled.span if tiled else span,
            "lower the unroll factors",
        )
