"""The symbol table of one op instance: what the names in its equations stand for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tcomp.dsl.ast import DType


@dataclass(frozen=True)
class Symbols:
    """Extents of indices, element types and shapes of tensors. A pass that makes an index or a tensor enters it."""

    extents: dict[str, int]
    dtypes: dict[str, DType]
    shapes: dict[str, tuple[int, ...]]

    def add(self, name: str, dtype: DType, indices: Iterable[str], parts: Iterable[int] = ()) -> None:
        """Enter a tensor with an axis for each of `parts` (their numbers), and behind them one for each index."""
        self.dtypes[name], self.shapes[name] = dtype, (*parts, *(self.extents[i] for i in indices))

    def indices_like(self, indices: Iterable[str], suffix: str) -> dict[str, str]:
        """Enter indices that walk the same values in loops of their own, `n` --> `n.suffix`."""
        new = {i: f"{i}.{suffix}" for i in indices}
        self.extents.update({other: self.extents[i] for i, other in new.items()})
        return new

    def sum_type(self, tensor: str) -> DType:
        """The type in which partial sums of a tensor are held: f32, or its own where that is f64 or i32."""
        own = self.dtypes[tensor]
        return own if own in (DType.F64, DType.I32) else DType.F32
