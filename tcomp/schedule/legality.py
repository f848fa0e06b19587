"""What a schedule must not do, each with the counterexample that shows why and the directive that helps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tcomp.dsl.ast import Access, Combine, Name, Reduction, accesses_in
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_expression
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.nest import JOINED, Leaf, LoopNode, Node, ancestors, conflict


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


def check_core_loops(roots: list[Node], plan: KernelPlan) -> None:
    """Cores must not update the same element: no core loop over a reduced or scattered index.

    A reduced index may be divided among cores when `combine` says how the partial results are joined.
    """
    combined = {(n, c.over) for c in plan.combine if c.by != "private" for n in c.names}

    def visit(node: Node) -> None:
        if isinstance(node, LoopNode):
            for c in node.children:
                visit(c)
            return
        for loop in ancestors(node):
            if not loop.level.parallel:
                continue
            among = "cores" if loop.level.kind == "core" else "blocks"
            index = loop.level.index
            target = node.writes()[0]
            if index == node.partial_over:
                continue
            if index in node.reduced and not all((t, index) in combined for t in node.written):
                second = loop.level.block or 1
                output = replace(target, tensor=target.tensor.removesuffix(JOINED))
                hint = f"map '{index}' to seq, or add: combine {output.tensor} over {index} by partials"
                hint = remedy(plan, output.tensor, index, hint)
                if any(c.by == "turns" and output.tensor in c.names for c in plan.combine):
                    hint = f"leave '{index}' undivided: blocks that add by turns add their whole part at once"
                elif node.partial_over:
                    hint = (
                        f"partial results are joined over one loop: reduce '{index}' in an equation of its own, before"
                    )
                raise TcError(
                    f"loop '{index}' is divided among {among}, but '{output.tensor}' sums over it",
                    loop.level.span,
                    hint,
                    (f"blocks 0 and 1 both update {show(output, {})} (at {index} = 0 and {index} = {second})",),
                )
            if index in node.gathered and not node.atomic:
                shown = print_expression(target)
                gather = any(accesses_in(x) for x in target.subscripts)
                when = (
                    f"the gathered values at {index} = 0 and {index} = 1 are equal"
                    if gather
                    else "the other indices make up for the difference"
                )
                raise TcError(
                    f"loop '{index}' is divided among {among}, but '{target.tensor}' is scattered over it",
                    loop.level.span,
                    f"divide a loop that stands bare on the left instead, and map '{index}' to seq",
                    (f"blocks 0 and 1 both update an element of {shown} when {when}",),
                )

    for r in roots:
        visit(r)


def check_nesting(roots: list[Node]) -> None:
    """Loops divided among cores or blocks enclose everything of their phase: nothing may run between two of them."""

    def visit(node: LoopNode) -> None:
        inner = [c for c in node.children if isinstance(c, LoopNode) and any(_parallel_within(c))]
        if not inner or not node.level.parallel:
            return
        if len(node.children) > 1:
            loop = next(x for x in _parallel_within(inner[0]))
            between = next(x for c in node.children if c is not inner[0] for x in _leaves_of(c))
            word = "cores" if loop.level.kind == "core" else "blocks"
            name = between.known_as[0] if between.known_as else between.written[0]
            raise TcError(
                f"loop '{loop.level.index}' is divided among {word}, but '{name}', which has no loop "
                f"'{loop.level.index}', shares the loop '{node.level.index}' around it",
                loop.level.span,
                f"compute '{name}' in a kernel of its own (kernel {name}:), or again where it is read (inline {name})",
            )
        visit(inner[0])

    for r in roots:
        if isinstance(r, LoopNode):
            visit(r)


def _parallel_within(node: LoopNode) -> Iterator[LoopNode]:
    if node.level.parallel:
        yield node
    for c in node.children:
        if isinstance(c, LoopNode):
            yield from _parallel_within(c)


def _leaves_of(node: Node) -> Iterator[Leaf]:
    if isinstance(node, Leaf):
        yield node
    else:
        yield from node.leaves()


def check_fuse(leaves: list[Leaf], plan: KernelPlan) -> None:
    """`fuse a, b at k` must hold: the named equations really share the loop over k."""
    for f in plan.fuse:
        named = [x for x in leaves if any(w in f.names for w in x.known_as)]
        known = {w for x in leaves for w in x.known_as}
        for n in f.names:
            if n not in known and n not in plan.inline:
                raise TcError(
                    f"fuse names '{n}', which this kernel does not compute",
                    f.span,
                    f"it computes: {', '.join(sorted(known))}",
                )
        for leaf in named:
            if f.at not in leaf.domain:
                w = leaf.known_as[0]
                raise TcError(
                    f"'{w}' has no loop '{f.at}', so it cannot be fused at it",
                    f.span,
                    f"leave '{w}' out of this line, or fuse at one of: {', '.join(sorted(leaf.domain))}",
                )
        for i, first in enumerate(named):
            for second in named[i + 1 :]:
                c = conflict(f.at, first, second)
                if c is not None:
                    a, b = c
                    if f.at in first.reduced:
                        note = (
                            f"at {f.at} = 0, {show(b, {})} would be read when {show(a, {})} holds "
                            f"only the part of {f.at} = 0"
                        )
                        hint = f"leave '{second.written[0]}' out: it runs after the loop over {f.at}"
                    else:
                        note = (
                            f"turn {f.at} = 0 writes {show(a, {f.at: 0})}, and "
                            f"{print_expression(b)} belongs to another turn"
                        )
                        hint = f"leave '{second.written[0]}' out of this line"
                    raise TcError(
                        f"'{first.written[0]}' and '{second.written[0]}' cannot share the loop over {f.at}",
                        f.span,
                        hint,
                        (note,),
                    )
        loops = [{id(n) for n in ancestors(x) if n.level.index == f.at} for x in named]
        if loops and not set.intersection(*loops) and any(loops):
            raise TcError(
                f"these equations do not end up in one loop over '{f.at}'",
                f.span,
                "map the loops around it (order) so that they can share it",
            )


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
