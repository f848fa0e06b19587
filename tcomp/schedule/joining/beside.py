"""Sums in the blocks of another equation that has one loop more: what both read is copied once.

    dW[n, k] = sum m: dY[m, n] * X[m, k]     n -> grid.y(128)    k -> grid.x(256)    m -> grid.z(8192) / pipe(64, 4)
    db[n] = sum m: dY[m, n]                  combine dW, db over m by partials       combine db over k by partials

`db` has no k, so of the blocks along k, which all read the same tiles of dY, the first sums them, or with a `combine`
over k each those of some turns, dealt in order. Each part of the sum is summed so, its results are parts of db, and
where parts of dW are joined they are joined beside them:

    db.partial[m.part, k.0 // 256, n] = sum m in the part, where m.1 // 64 % blocks == k.0 // 256: dY[m, n]
    db[n'] = sum m.block, k.block: db.partial[m.block, k.block, n']                         in the first block along k'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tcomp.dsl.ast import Binary, Combine, DType, Equation, Expr, Name, Num, Reduction
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import ThreadShape
from tcomp.schedule.joining.joining_loops import into, join_of, joining_loops, mapped_alike, with_loops
from tcomp.schedule.joining.split_sum import DividedSum, divides, splittable, undivided
from tcomp.schedule.joining.turn_sums import TurnSum, sum_in_turns
from tcomp.schedule.kernel_plan import KernelPlan, TileLevel
from tcomp.schedule.normal import called, part_of
from tcomp.schedule.symbols import Symbols
from tcomp.schedule.tree.legality import cannot_combine, remedy
from tcomp.schedule.tree.nest import PART, PARTIAL, Dealt, Leaf, depends


@dataclass(frozen=True)
class Beside:
    """A sum and the equation in whose blocks it is computed, of which it lacks the indices `lacking`."""

    leaf: Leaf
    host: Leaf
    lacking: tuple[str, ...]


def beside_others(plan: KernelPlan, leaves: Sequence[Leaf], temporaries: frozenset[str]) -> dict[int, Beside]:
    """By their numbers, the sums that are computed in the blocks of another equation: they have some of its loops
    over blocks and share a pipe loop with it, but lack another, and nothing in the kernel needs their results."""
    grid = [t.index for t in plan.sequence if t.parallel]
    pipes = {t.index for t in plan.sequence if t.kind == "pipe"}
    found: dict[int, Beside] = {}
    for leaf in leaves:
        own = leaf.domain & set(grid)
        written = set(leaf.written)
        used = any(written & ({a.tensor for a in x.reads()} | set(x.written)) for x in leaves if x is not leaf)
        divided = all(divides(plan, i) for i in own & set(leaf.reduced))
        passing = written & temporaries - set(plan.outputs)
        if used or not own or not divided or not splittable(leaf.equation) or passing:
            continue
        for host in leaves:
            lacking = tuple(i for i in grid if i in host.domain and i not in own)
            shared = pipes & set(leaf.reduced) & set(host.reduced)
            if lacking and shared and own <= host.domain and leaf.domain <= host.domain and not host.gathered:
                found[leaf.number] = Beside(leaf, host, lacking)
                break
    return {n: b for n, b in found.items() if b.host.number not in found and _stays_in_order(leaves, b)}


def moved(leaves: Sequence[Leaf], beside: Mapping[int, Beside]) -> list[Leaf]:
    """The leaves in an order in which those beside others follow these at once. (Nothing needs their results.)"""
    out: list[Leaf] = []
    for leaf in leaves:
        if leaf.number not in beside:
            out.append(leaf)
            out += [b.leaf for b in beside.values() if b.host is leaf]
    return out


def _stays_in_order(leaves: Sequence[Leaf], b: Beside) -> bool:
    """Does nothing between the two equations write what the sum reads?"""
    low, high = sorted((b.leaf.number, b.host.number))
    return not any(depends(b.leaf, x) or depends(x, b.leaf) for x in leaves[low : high + 1] if x is not b.leaf)


class BesideSums:
    """Makes the leaves of such sums; `symbols` gain the entries of what joining adds."""

    def __init__(self, symbols: Symbols) -> None:
        self.symbols = symbols

    def leaves(
        self, plan: KernelPlan, given: KernelPlan, b: Beside, shape: ThreadShape, group: str
    ) -> tuple[list[Leaf], KernelPlan, TurnSum | None]:
        """The sum, and its join where it has parts; how these are added in turns. `given` is the plan before anything
        was divided; `group` names the loops that join (or read) the host's ("" for none)."""
        leaf = replace(b.leaf, beside=frozenset(b.lacking))
        eq, parts = leaf.equation, list[tuple[Expr, str, int]]()
        joined = [c for c in plan.combine if c.over in {*leaf.domain, *b.lacking} and called(eq, c.names)]
        in_turns = self._in_turns(b, joined)
        for t in given.sequence:
            if t.parallel and t.index in leaf.reduced:
                plan = undivided(plan, t.index, t)
                if in_turns is not None:
                    if t.index not in plan.streams and t.index not in plan.parts:
                        continue  # one part takes the whole sum
                    made, taken, plan = sum_in_turns(plan, DividedSum(leaf, in_turns, t, shape), self.symbols, group)
                    return made, plan, taken
                if plan.flags.stream:
                    raise self._in_stream(b, t)
                count = -(-self.symbols.extents[t.index] // (t.block or 1))
                if count > 1:
                    self._needs_line(given, eq, t, joined)
                    plan = replace(plan, parts={**plan.parts, t.index: (t.index + PART, t.block or 1)})
                    self.symbols.extents[t.index + PART] = self.symbols.extents[f"{t.index}.block"] = count
                    parts.append((Name(t.index + PART), f"{t.index}.block", count))
                    leaf = replace(leaf, parallel=(t.index + PART, *leaf.parallel))
        for c in joined:
            if c.over not in b.lacking:
                continue
            level = next(t for t in given.sequence if t.parallel and t.index == c.over)
            count = -(-self.symbols.extents[c.over] // (level.block or 1))
            turns = next(t for t in given.sequence if t.kind == "pipe" and t.index in leaf.reduced)
            if leaf.dealt is not None:
                raise cannot_combine(
                    part_of(eq.target), c, "its turns are dealt along another loop already", "keep one of the lines"
                )
            if count > 1 and self.symbols.extents[turns.index] > (turns.block or 1):  # (one turn is the first block's)
                leaf = replace(leaf, dealt=Dealt(turns, level, count))
                self.symbols.extents[f"{c.over}.block"] = count
                number = Binary("//", Name(level.variable), Num(level.block or 1))
                parts.append((number, f"{c.over}.block", count))
        if not parts:
            return [leaf], plan, None
        return *self._joined(plan, b, leaf, parts, shape, group), None

    def _in_turns(self, b: Beside, joined: Sequence[Combine]) -> Combine | None:
        """The line by which its parts are added in turns, by the blocks that have all of a part: the first ones."""
        eq = b.leaf.equation
        for c in joined:
            if c.by not in ("partials", "turns") or (c.by == "turns" and c.over in b.lacking):
                raise cannot_combine(
                    part_of(eq.target), c, f"a sum beside '{b.host.written[0]}' leaves parts", "write: by partials"
                )
        found = next((c for c in joined if c.by == "turns"), None)
        if found is not None:
            for c in (c for c in joined if c is not found):
                why = f"its parts over {found.over} are added in turns, each as the whole that one block has of it"
                raise cannot_combine(
                    part_of(eq.target), c, why, f"leave the line out, or combine it over {found.over} by partials"
                )
            value = eq.value
            assert isinstance(value, Reduction)
            if value.reducer != "sum" or self.symbols.dtypes[eq.target.name] in (DType.F64, DType.I32):
                raise cannot_combine(part_of(eq.target), found, "blocks add sums in f32 alone", "write: by partials")
        return found

    def _joined(
        self,
        plan: KernelPlan,
        b: Beside,
        leaf: Leaf,
        parts: Sequence[tuple[Expr, str, int]],
        shape: ThreadShape,
        group: str,
    ) -> tuple[list[Leaf], KernelPlan]:
        """The parts of a sum (what numbers those of an index, the index that counts them, how many) and their join."""
        eq, rows = leaf.equation, b.leaf.parallel
        name = eq.target.name + PARTIAL
        self.symbols.add(name, self.symbols.sum_type(eq.target.name), rows, (n for _, _, n in parts))
        first = replace(leaf, equation=into(eq, name, (*(e for e, _, _ in parts), *(Name(i) for i in rows))))
        plan = mapped_alike(plan, name, eq.target.name)
        new = {i: f"{i}.{group or eq.target.name}" for i in rows}
        beside = frozenset(f"{i}.{group}" for i in b.lacking) if group else frozenset[str]()
        counted = tuple(index for _, index, _ in parts)
        if not group and new:
            self.symbols.indices_like(rows, eq.target.name)
            outer = next(t for t in plan.sequence if t.parallel)
            maps = joining_loops(list(new.values()), shape, outer, (counted[-1], parts[-1][2]))
            plan = with_loops(plan, maps)
        join = join_of(b.leaf, name, new, counted, copies=False, beside=beside)
        return [first, join], plan

    def _in_stream(self, b: Beside, level: TileLevel) -> TcError:
        name, host = b.leaf.written[0], b.host.written[0]
        return TcError(
            f"'{name}' is summed in the blocks of '{host}', and a `stream` cuts '{level.index}' elsewhere for each",
            level.span,
            f"write: combine {name} over {level.index} by turns; or leave `stream` out",
        )

    def _needs_line(self, plan: KernelPlan, eq: Equation, level: TileLevel, joined: Sequence[Combine]) -> None:
        if not any(c.over == level.index for c in joined):
            name = part_of(eq.target)
            raise TcError(
                f"loop '{level.index}' is divided among blocks, but '{name}' sums over it",
                level.span,
                remedy(plan, name, level.index, f"add: combine {name} over {level.index} by partials"),
            )
