"""One statement of an equation on a tile, before registers are chosen for it: what the emitter makes a `Compute` of."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import Access, Expr, Reduction
from tcomp.schedule.tree.nest import Leaf


@dataclass(frozen=True)
class Assignment:
    """`target (reducer)= value` for each point of the `parallel` indices, over all of the `reduced` ones, on behalf of
    an equation; in the op's coordinates. The rest is as in `ir.tile.Compute`."""

    leaf: Leaf
    target: Access
    value: Expr
    parallel: tuple[str, ...]
    reduced: tuple[str, ...] = ()
    reducer: str | None = None
    accumulate: bool = False
    guard: Expr | None = None
    region: Expr | None = None
    only: Expr | None = None

    @property
    def indices(self) -> tuple[str, ...]:
        return (*self.parallel, *self.reduced)


def whole(leaf: Leaf, target: Access, parallel: tuple[str, ...], value: Expr | None = None) -> Assignment:
    """An equation's result from (by default) the expression whose accesses decide its register tile."""
    if value is None:
        v = leaf.equation.value
        value = v.values[-1] if isinstance(v, Reduction) else v
    return Assignment(leaf, target, value, parallel, leaf.reduced)
