"""What emission asks of staging, on every kind of target."""

from __future__ import annotations

from typing import Protocol

from tcomp.dsl.ast import Access, Expr
from tcomp.ir.tile import Statement
from tcomp.schedule.tree.bounds import Env
from tcomp.schedule.tree.nest import LoopNode


class Stager(Protocol):
    """`staged` maps (id of an equation's leaf, access) to the tile it reads instead and what to subtract from
    each subscript (None: the subscript is dropped)."""

    staged: dict[tuple[int, Access], tuple[str, tuple[Expr | None, ...]]]

    def stage(self, node: LoopNode, env: Env) -> list[Statement]:
        """The `Pack`s at the start of this loop's body."""
        ...
