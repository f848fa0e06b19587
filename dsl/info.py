"""What the checker finds out about an op: its index ranges, temporaries and dimensions."""

from __future__ import annotations

from dataclasses import dataclass

from tcomp.dsl.ast import DType, Expr


@dataclass(frozen=True, slots=True)
class Temporary:
    """A tensor defined by an equation and neither parameter nor output; `indices` are its axes in order."""

    name: str
    dtype: DType
    indices: tuple[str, ...]


@dataclass(frozen=True)
class OpInfo:
    """`ranges`: index -> its extent, an expression of dimensions (an index runs over 0 <= i < extent).

    `dims` are all dimension names in order of first appearance. `equation_indices[i]` lists equation i's
    parallel indices (those of its left-hand sides, in order of appearance; a scatter's include the indices
    inside its subscripts). Reduced indices are in the equation's `Reduction`.
    """

    ranges: dict[str, Expr]
    temporaries: dict[str, Temporary]
    dims: tuple[str, ...]
    equation_indices: tuple[tuple[str, ...], ...]
