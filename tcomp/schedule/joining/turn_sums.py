"""A long sum divided among blocks that add their parts in turns: no workspace of parts, no launch that joins them.

    dW[n, k] = sum m: dY[m, n] * X[m, k]     m -> grid.z(8192) / pipe(64, 4)     combine dW over m by turns
    -->
    dW[n, k] = sum m in m.part * 8192 .. : dY[m, n] * X[m, k]                    blocks add one after the other

The parts leave by the copy engine, which adds them in memory (`gpu/unpacking.py`): the first stores, and each of the
others waits for the one before. Words in memory say whose turn it is, and the last puts them back to zero, so a launch
needs no other. What is narrower than f32 is summed in a workspace, which a second equation reads.

    stream                                                                       (stream-K)
    -->
    dW[n, k] = sum m in m.from .. m.to: dY[m, n] * X[m, k]

Then a part is what a block's equal share of all tiles' sums has of this tile's (`ir.blocks.Stream`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tcomp.dsl.ast import Access, Binary, Combine, DType, Name, Num, Reduction
from tcomp.ir.blocks import Stream
from tcomp.ir.tile import Turns
from tcomp.schedule.instance import Instance
from tcomp.schedule.joining.joining_loops import computed_alike, into, join_of, joining_loops, with_loops
from tcomp.schedule.joining.split_sum import DividedSum
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.symbols import Symbols
from tcomp.schedule.tree.legality import cannot_combine
from tcomp.schedule.tree.nest import JOINED, Leaf


@dataclass(frozen=True)
class TurnSum:
    """A sum that blocks add to `name` in turns: those of the parts that `part`, a grid loop's variable, counts from 0
    to `count`, or those that a `stream` makes. `words` names the tile that says whose turn it is, `index` is the sum's
    last one. One that is computed `beside` another is added by the threads that have its values."""

    name: str
    part: str
    count: int
    words: str
    directive: Combine
    index: str
    stream: Stream | None = None
    beside: bool = False

    def turns(self, place: Access, stores: bool) -> Turns:
        """A part's turns at the word `place`. Words count the parts that have had theirs; of a stream, whose parts come
        from the sum's end to its beginning, they say where the last one began. The last part leaves zero."""
        if self.stream is not None:
            start, stop = Name(self.stream.start), Name(self.stream.stop)
            end = Num(self.stream.units * self.stream.unit)
            return Turns(place, start, stop, ((Num(0), stop, end),), stores)
        part = Name(self.part)
        following = Binary("%", Binary("+", part, Num(1)), Num(self.count))
        return Turns(place, following, part, ((Num(1), part, Num(self.count)),), stores)


def unit_of(plan: KernelPlan, over: str) -> int:
    """Terms that a stream's shares are whole multiples of: the ring of the `undivided` loop once round, so that each
    part of a sum begins at the ring's first place."""
    tile = plan.loops[over].tiles[0]
    return (tile.block or 1) * tile.stages


def check_turns(instance: Instance, s: DividedSum, others: bool) -> None:
    """TcError for a divided sum that blocks cannot add in turns. `others`: the kernel has such a sum already."""
    target, value = s.leaf.equation.target.name, s.leaf.equation.value
    assert isinstance(value, Reduction)
    fault, hint = "", "combine by partials"
    if value.reducer != "sum" or instance.symbols.dtypes[target] in (DType.F64, DType.I32):
        fault = "the copy engine adds up sums in f32 alone"
    elif target in instance.temporaries:
        fault = "it is no output"
    elif others:
        fault, hint = "a kernel's blocks take turns at one sum", "give the other sum a kernel of its own"
    if fault:
        raise cannot_combine(target, s.directive, fault, hint)


def sum_in_turns(
    plan: KernelPlan, s: DividedSum, symbols: Symbols, group: str = ""
) -> tuple[list[Leaf], TurnSum, KernelPlan]:
    """The equation whose parts are added in turns, behind it the one that reads a sum too wide for its output, and the
    plan (which is `undivided`) with their loops. Of a sum beside another, whose parts are there, `group` names those in
    which that one's is read ("" for none)."""
    leaf, eq = s.leaf, s.leaf.equation
    target = eq.target
    name = target.name if symbols.dtypes[target.name] is DType.F32 else target.name + JOINED
    taken = TurnSum(name, "", 0, f"{target.name}.turns", s.directive, leaf.parallel[-1], beside=bool(leaf.beside))
    level = s.level()
    if plan.flags.stream:
        stream = Stream(f"{s.over}.from", f"{s.over}.to", symbols.extents[s.over], unit_of(plan, s.over))
        taken = replace(taken, stream=stream)
        plan = replace(plan, streams={**plan.streams, s.over: stream})
        first = Leaf(eq, leaf.number, leaf.parallel, leaf.reduced, beside=leaf.beside)
    else:
        symbols.extents[s.part] = count = s.count(symbols)
        taken = replace(taken, part=level.variable, count=count)
        plan = replace(plan, parts={**plan.parts, s.over: (s.part, s.size)})
        first = Leaf(eq, leaf.number, (s.part, *leaf.parallel), leaf.reduced, beside=leaf.beside)
    leaves = [first]
    if name != target.name:
        symbols.add(name, DType.F32, leaf.parallel)
        new = symbols.indices_like(leaf.parallel, group or target.name)
        beside = frozenset(f"{i}.{group}" for i in leaf.beside) if group else frozenset[str]()
        maps = [] if group else joining_loops(list(new.values()), s.shape, s.outer)
        plan = with_loops(computed_alike(plan, name, target.name), maps)
        whole = into(eq, name, [Name(i) for i in leaf.parallel])
        leaves = [replace(first, equation=whole), join_of(leaf, name, new, beside=beside)]
    if taken.stream is None:  # the loop over parts is the outermost
        plan = replace(plan, sequence=(level, *(t for t in plan.sequence if t != level)))
    return leaves, taken, plan
