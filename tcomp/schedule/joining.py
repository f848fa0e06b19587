"""What the passes that join results of several blocks, or of several tiles, know of the op that they work on."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import Combine
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import ThreadShape
from tcomp.schedule.family import Family
from tcomp.schedule.kernel_plan import KernelPlan
from tcomp.schedule.symbols import Symbols


@dataclass(frozen=True)
class Joining:
    """An op instance on a machine's `family`. `temporaries` are the tensors that are no operands of it; `text` is the
    schedule's. With `deterministic`, what depends on the order in which blocks run is refused."""

    family: Family
    symbols: Symbols
    temporaries: frozenset[str]
    deterministic: bool
    text: str

    def shape(self, plan: KernelPlan) -> ThreadShape:
        """The threads of a kernel's blocks."""
        return self.family.shape(plan, self.symbols.extents, self.text)

    def error(self, c: Combine, message: str, hint: str, *notes: str) -> TcError:
        """What is wrong with a `combine` line."""
        return TcError(message, c.span, self.text, hint, notes)
