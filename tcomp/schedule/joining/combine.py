"""How results of several blocks, or of several tiles, are joined: the equations of a kernel become leaves.

combine s over i by partials   each block leaves a partial sum, a second phase adds them in a fixed order:
                               `partials.py`, or `split_sum.py` where the sum is tiled again inside its blocks
combine s over i by turns      blocks add to one f32 sum, one after the other: `turn_sums.py`, `memory_sums.py`
combine E over t by atomic     blocks add at the same time; refused where runs must repeat: `memory_sums.py`
combine E over t by sorted     each block owns some rows of a scatter's target and walks t in order: `sorted_scatter.py`
combine s over i by private    the sum over tiles of i is collected in a private f32 tile and written once, as it is
                               anyway on a GPU, and wherever the output is narrower than f32: `private_sums.py`

A sum that lacks one of another's loops is computed in its blocks (`beside.py`). Here is the order: which equation comes
behind which join.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Combine, Equation, Expr, Name, Reduction, substitute, walk
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.adding import AddedSum
from tcomp.schedule.joining.again import again_in_blocks
from tcomp.schedule.joining.beside import Beside, BesideSums, beside_others, moved
from tcomp.schedule.joining.combine_lines import check_combine
from tcomp.schedule.joining.joining_loops import renamed
from tcomp.schedule.joining.memory_sums import added_sum, adds_up, atomic_sum
from tcomp.schedule.joining.partials import on_one_core, one_block, partial_results
from tcomp.schedule.joining.private_sums import private_sum
from tcomp.schedule.joining.sorted_scatter import sorted_scatter
from tcomp.schedule.joining.split_sum import DividedSum, divides, in_part, split_sum, splittable, undivided
from tcomp.schedule.joining.turn_sums import TurnSum, check_turns, sum_in_turns, unit_of
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.normal import called
from tcomp.schedule.tree.nest import Leaf, scatter_indices, sink_copies


@dataclass(frozen=True)
class Combined:
    """The leaves of a kernel in order, and its plan with the loops that joining adds."""

    leaves: list[Leaf]
    plan: KernelPlan
    sums: list[AddedSum]
    """what blocks add up in memory"""
    turns: list[TurnSum]
    """sums that the blocks of their parts add to in turns"""
    carried: list[str]
    """parts of sums that leave by the copy engine, which needs their address before the launch"""


def combined(instance: Instance, plan: KernelPlan, equations: Sequence[Equation]) -> Combined:
    """The equations of one kernel as leaves. The op's symbols gain the entries of what joining adds."""
    return _Combining(instance, plan).run(equations)


class _Combining:
    """One kernel's leaves while they are made."""

    def __init__(self, instance: Instance, plan: KernelPlan) -> None:
        self.instance, self.given, self.plan = instance, plan, plan
        self.leaves: list[Leaf] = []
        self.joins: list[Leaf] = []
        self.ends: list[Leaf] = []
        """of sums in memory: they wait for all blocks, so other equations come first"""
        self.groups: dict[tuple[str, ...], str] = {}
        """the sums that `joins` belong to: of each its loops, and the name of the loops that join it"""
        self.ended: dict[tuple[str, ...], str] = {}
        """the same of `ends`"""
        self.sums: list[AddedSum] = []
        self.turns: list[TurnSum] = []
        self.carried: list[str] = []

    def run(self, equations: Sequence[Equation]) -> Combined:
        plan = self.plan
        plain = again_in_blocks(plan, [self._leaf(eq, i) for i, eq in enumerate(equations)], self.instance.temporaries)
        beside = beside_others(plan, plain, self.instance.temporaries) if self.instance.family.level == "grid" else {}
        check_combine(plan, plain, beside)
        for leaf in moved(plain, beside):
            inside, leaf = beside.get(leaf.number), replace(leaf, number=len(self.leaves))
            if inside is not None:
                self._beside(replace(inside, leaf=leaf))
            elif (sunk := self._beside_join(leaf)) is not None:
                self.joins.append(sunk)
            else:
                self._own(leaf)
        leaves = _numbered([in_part(self.plan, x) for x in (*self.leaves, *self.joins, *self.ends)])
        private = [x for leaf in leaves for x in private_sum(self.instance, self.plan, leaf)]
        leaves = sink_copies(private, {x.number: self._depth(x) for x in private if not x.copies})
        return Combined(leaves, self.plan, self.sums, self.turns, self.carried)

    def _leaf(self, eq: Equation, number: int) -> Leaf:
        reduced = eq.value.indices if isinstance(eq.value, Reduction) else ()
        gathered = scatter_indices(eq, self.instance.symbols.extents)
        return Leaf(eq, number, self._parallel(eq), tuple(reduced), gathered)

    def _parallel(self, eq: Equation) -> tuple[str, ...]:
        """Left-hand indices in order; of a monoid, those of its key field (the loops all fields share)."""
        seen: list[str] = []
        for s in eq.target.subscripts:
            for n in walk(s):
                if isinstance(n, Name) and n.id in self.instance.symbols.extents and n.id not in seen:
                    seen.append(n.id)
        return tuple(seen)

    def _depth(self, leaf: Leaf) -> int:
        """The place of the outermost tile loop that a sum runs over: those over inner loops are complete first."""
        sequence = self.plan.sequence
        return min((i for i, t in enumerate(sequence) if t.index in leaf.reduced), default=len(sequence))

    # ------------------------------------------------------------------------------------ one equation

    def _beside(self, b: Beside) -> None:
        """A sum in another's blocks."""
        in_turns = any(c.by == "turns" and called(b.leaf.equation, c.names) for c in self.plan.combine)
        loops = (self.ended if in_turns else self.groups).get(_group(b.host), "")
        sums = BesideSums(self.instance.symbols)
        made, self.plan, taken = sums.leaves(self.plan, self.given, b, self.instance.shape(self.plan), loops)
        self.leaves += made[:1]
        if taken is None:
            self.joins += made[1:]
        else:
            self.turns.append(taken)
            self.carried += made[0].written if made[1:] else ()
            self.ends += made[1:]

    def _beside_join(self, leaf: Leaf) -> Leaf | None:
        """`acc[n', k'] = sum block: ...; Y[n, k] = acc[n, k] * s` --> `Y[n', k'] = acc[n', k'] * s`: what computes one
        value from a joined sum takes the join's loops, so that the sum stays in registers. None for other leaves."""
        read = [a for a in leaf.reads() if any(a.tensor in j.written for j in self.joins)]
        makers = [j for j in self.joins if any(a.tensor in j.written for a in read)]
        if (
            not makers
            or leaf.reduced
            or leaf.gathered
            or not {t for j in makers for t in j.written} <= self.instance.temporaries
        ):
            return None
        plain = tuple(Name(i) for i in leaf.parallel)
        loops = {j.parallel for j in makers}
        if len(loops) != 1 or any(a.subscripts != plain for a in read):
            return None
        new = dict(zip(leaf.parallel, next(iter(loops)), strict=True))
        value = leaf.equation.value
        assert not isinstance(value, Reduction)
        named: dict[str, Expr] = {old: Name(i) for old, i in new.items()}
        targets = tuple(replace(t, subscripts=renamed(t.subscripts, new)) for t in leaf.equation.targets)
        equation = replace(leaf.equation, targets=targets, value=substitute(value, named))
        return Leaf(equation, leaf.number, tuple(new.values()), (), copies=True)

    def _own(self, leaf: Leaf) -> None:
        """An equation in blocks of its own, behind the joins that it reads."""
        if self.joins and (_group(leaf) not in self.groups or _reads(leaf, self.joins)):
            self.leaves, self.joins, self.groups = _numbered([*self.leaves, *self.joins]), [], {}
        lines = [c for c in self.plan.combine if c.over in leaf.domain and called(leaf.equation, c.names)]
        directive = next((c for c in lines if c.by != "private"), None)
        if _reads(leaf, self.ends):
            self.leaves, self.ends = _numbered([*self.leaves, *self.ends]), []
        leaf = replace(leaf, number=len(self.leaves))
        if directive is None:
            self.leaves.append(leaf)
        elif directive.by in ("partials", "turns") and self._divided(leaf, directive.over):
            self._parts(leaf, directive)
        else:
            self._joined(leaf, directive)

    def _divided(self, leaf: Leaf, over: str) -> bool:
        """Is it a sum in tiles inside of blocks, on a GPU: one that stays in registers until its part is done?"""
        grid = [t for t in self.given.sequence if t.index == over and t.parallel]
        on_gpu = self.instance.family.level == "grid"
        return on_gpu and bool(grid) and divides(self.given, over) and splittable(leaf.equation)

    def _parts(self, leaf: Leaf, c: Combine) -> None:
        """A `_divided` sum: parts with loops of their own."""
        symbols = self.instance.symbols
        outer = self.given.loops[c.over].tiles[0]
        self.plan = undivided(self.plan, c.over, outer)
        streamed = c.by == "turns" and self.plan.flags.stream
        if symbols.extents[c.over] <= (unit_of(self.plan, c.over) if streamed else outer.block or 0):
            self.leaves.append(leaf)  # one part takes the whole sum
            return
        divided = DividedSum(leaf, c, outer, self.instance.shape(self.plan))
        target = leaf.equation.target.name
        if c.by == "turns":
            check_turns(self.instance, divided, bool(self.turns))
            made, taken, self.plan = sum_in_turns(self.plan, divided, symbols)
            self.turns.append(taken)
            self.leaves += made[:1]
            self.ends += made[1:]
            if taken.name != target:
                self.carried.append(taken.name)
                self.ended[_group(leaf)] = target
            return
        group = self.groups.setdefault(_group(leaf), target)
        first, join, self.plan = split_sum(self.plan, divided, symbols, group)
        self.leaves.append(first)
        self.joins.append(join)
        if any(s.by == "tma" and s.space == "shared" and target in s.tensors for s in self.plan.stages):
            self.carried.append(first.written[0])

    def _joined(self, leaf: Leaf, c: Combine) -> None:
        """Any other result of several blocks."""
        if c.by == "turns" or adds_up(self.instance, leaf, c):
            adds, end, added, self.plan = added_sum(self.instance, self.plan, leaf, c)
            self.sums.append(added)
            self.leaves.append(adds)
            self.ends.append(end)
        elif c.by == "atomic":
            self.leaves.append(atomic_sum(self.instance, leaf, c))
        elif c.by == "sorted":
            owned, self.plan = sorted_scatter(self.instance, self.plan, leaf, c)
            self.leaves.append(owned)
        elif one_block(self.instance, self.given, c):
            self.plan = on_one_core(self.plan, c.over)
            self.leaves.append(leaf)
        else:
            group = self.groups.setdefault(_group(leaf), leaf.equation.target.name)
            first, join, self.plan = partial_results(self.instance, self.plan, leaf, c, group)
            self.leaves.append(first)
            self.joins.append(join)


def _group(leaf: Leaf) -> tuple[str, ...]:
    """What sums that are joined by the same loops have in common."""
    return (*leaf.parallel, "over", *leaf.reduced)


def _reads(leaf: Leaf, joins: Sequence[Leaf]) -> bool:
    return any(a.tensor in j.written for a in leaf.reads() for j in joins)


def _numbered(leaves: list[Leaf]) -> list[Leaf]:
    """Leaves with their places as numbers."""
    return [replace(leaf, number=i) for i, leaf in enumerate(leaves)]
