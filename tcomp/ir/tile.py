"""Tile IR: what a scheduled op is lowered to, and all that a code generator has to know.

A kernel is a list of phases (a barrier of all cores or blocks between two phases). A phase is a nest of
`Loop`s over tiles, and inside them `Compute` and `Pack` nodes that work on one tile each. A `Compute` says
what happens for every point of a small iteration domain (its axes), and how registers are tiled (unroll and
vector factors per axis); it never says in which instruction. One node covers pointwise maps, reductions,
contractions and scatters, because they differ only in their axes:

    map          Y[m, n] = P[m, n] * 2                    no reduced axis
    reduction    s[m] = sum c: X[m, c]                    reduced axis c
    contraction  acc[m, n] += sum k: X[m, k] * W[n, k]    reduced axis k, register tile over m and n
    scatter      dE[ids[t], c] += g[t, c]                 an access among the target's subscripts

Expressions are `dsl.ast` expressions. Names in them are axes (the index's value in the op's own
coordinates, not counted from the tile's start) and loop variables. A tile buffer is addressed by the op's
coordinates minus the tile's start, written out in the subscripts (`acc[m - m.0, n - n.0]`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from tcomp.dsl.ast import NO_SPAN, Access, DType, Expr, Span


class Scope(Enum):
    """Where a buffer lives."""

    OPERAND = "operand"  # an argument of the kernel: device memory, address given at launch
    SCRATCH = "scratch"  # private to one core (CPU) or block (GPU)
    TEAM = "team"  # one for all cores or blocks, lives across the kernel's phases (partials)


@dataclass(frozen=True, slots=True)
class RowMajor:
    """Elements in the order of the shape, last axis contiguous."""


@dataclass(frozen=True, slots=True)
class Panels:
    """`axis` cut in panels of `width`: [ceil(shape[axis] / width)][other axes in order][width].

    What a register-tiled contraction reads with unit stride; the rest of the last panel is zero.
    """

    axis: int
    width: int


Layout = RowMajor | Panels


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor or tile. `shape` in elements (before panel padding)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scope: Scope
    layout: Layout = RowMajor()

    @property
    def elements(self) -> int:
        """Stored elements, panel padding included."""
        n = 1
        for i, s in enumerate(self.shape):
            if isinstance(self.layout, Panels) and self.layout.axis == i:
                s = -(-s // self.layout.width) * self.layout.width
            n *= s
        return n

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class Axis:
    """An index of a Compute: start <= index < stop (expressions over loop variables and numbers).

    `block` bounds stop - start statically. `unroll` and `lanes` are the register tile along this axis:
    `unroll` vectors of `lanes` elements (lanes > 1 on at most one axis of a Compute), or `unroll` scalars.
    """

    name: str
    start: Expr
    stop: Expr
    block: int
    unroll: int = 1
    lanes: int = 1


@dataclass(frozen=True, slots=True)
class Compute:
    """target = value over the axes; with `reduced` axes, the reduction of the values by `reducer`.

    `reducer` is sum | max | min, or None for a plain assignment. With `accumulate`, the old target takes
    part: `target += value` for sum. Loops run in the order of `axes`, outermost first (register tiles
    innermost; a reduced axis runs inside all parallel ones, around the register tile). Points where `guard`
    is false contribute nothing (are not written, or add the reducer's identity).
    `distinct` is False when two points of the parallel axes may name the same target element (a scatter);
    then points run in order.
    """

    target: Access
    value: Expr
    axes: tuple[Axis, ...]
    reduced: frozenset[str] = frozenset()
    reducer: str | None = None
    accumulate: bool = False
    guard: Expr | None = None
    distinct: bool = True
    span: Span = field(default=NO_SPAN, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pack:
    """Fill the whole tile `buffer` from `source`, zero where an axis runs past its `stop`.

    `axes[i]` walks the buffer's i-th dimension from axis.start; `source` is an access by the axes' names.
    """

    buffer: str
    axes: tuple[Axis, ...]
    source: Access
    span: Span = field(default=NO_SPAN, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Loop:
    """for variable in range(start, stop, step): body.

    level "seq": in order. level "core" (CPU) or "grid" (GPU): the outermost loops of a phase, nested
    without anything between them; their flattened iterations are divided among cores in contiguous shares.
    With `chunked`, a single core loop whose range is cut into one contiguous share per core, each boundary
    a multiple of `step`; the body then sees `variable` (the share's start) and `variable + ".stop"` (its
    end) and covers that whole share.
    `levels` beyond these belong to GPUs (cluster, warpgroup, warp, pipe).
    """

    variable: str
    start: Expr
    stop: Expr
    step: int
    level: str
    body: tuple[Statement, ...]
    chunked: bool = False
    span: Span = field(default=NO_SPAN, compare=False, repr=False)


Statement = Loop | Compute | Pack


@dataclass(frozen=True, slots=True)
class Kernel:
    """A lowered kernel: one launch per phase, in order.

    `operands` in launch-argument order. `writes` names the operands written. `flops` and `bytes` count the
    arithmetic of the equations and the operands' sizes, for the roofline.
    """

    name: str
    operands: tuple[Buffer, ...]
    tiles: tuple[Buffer, ...]
    phases: tuple[tuple[Statement, ...], ...]
    reads: frozenset[str]
    writes: frozenset[str]
    inplace: frozenset[tuple[str, str]] = frozenset()
    """(output, input) pairs that may share memory: each point of the output is computed from the same point
    of the input, read before it is written and by no later reader."""
    flops: int = 0
    op: str = ""
    span: Span = field(default=NO_SPAN, compare=False, repr=False)

    def buffer(self, name: str) -> Buffer:
        """The operand or tile of that name; KeyError when there is none."""
        for b in self.operands + self.tiles:
            if b.name == name:
                return b
        raise KeyError(name)
