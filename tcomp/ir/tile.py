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

import math
from dataclasses import dataclass, field
from enum import Enum

from tcomp.dsl.ast import NO_SPAN, Access, DType, Expr, Span
from tcomp.ir.blocks import Blocks
from tcomp.ir.layout import (
    SERIAL as SERIAL,
    SWIZZLE_PERIOD as SWIZZLE_PERIOD,
    Fragment as Fragment,
    Layout as Layout,
    Panels as Panels,
    Pitched as Pitched,
    RowMajor as RowMajor,
    Shifted as Shifted,
    Spread as Spread,
    Swizzled as Swizzled,
)
from tcomp.ir.origins import Origins


class Scope(Enum):
    """Where a buffer lives."""

    OPERAND = "operand"  # an argument of the kernel: device memory, address given at launch
    SCRATCH = "scratch"  # private to one core (CPU)
    TEAM = "team"  # one for all cores or blocks, lives across the kernel's phases (partials)
    WORDS = "words"  # GPU: the same, zero before the first launch, and left zero by each (whose turn it is)
    SHARED = "shared"  # GPU: one per block, in shared memory
    REGISTERS = "registers"  # GPU: spread over the block's threads, each thread its own elements (`Fragment`)


@dataclass(frozen=True, slots=True)
class Buffer:
    """A tensor or tile. `shape` in elements (before padding). `ring` copies exist of one that a pipe loop fills, or
    that is packed ahead: turn i of the loop uses copy i % ring. The copies of one `inside` a tile of that name are its
    panels, one by one, and take no room of their own. Of a sum in tensor memory so many `columns` are in registers at a
    time (0: all)."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    scope: Scope
    layout: Layout = RowMajor()
    ring: int = 1
    inside: str = ""
    columns: int = 0

    @property
    def elements(self) -> int:
        """Stored elements of one copy, padding included."""
        if isinstance(self.layout, Swizzled):
            panels = -(-self.shape[-1] * self.dtype.bytes // self.layout.width)
            return panels * self.layout.panel_rows(self.shape) * self.layout.width // self.dtype.bytes
        n = 1
        for i, s in enumerate(self.shape):
            if isinstance(self.layout, Panels) and self.layout.axis == i:
                s = -(-s // self.layout.width) * self.layout.width
            if isinstance(self.layout, Panels) and self.layout.grouped == i:
                s = -(-s // self.layout.group) * self.layout.group
            if isinstance(self.layout, Pitched) and i == len(self.shape) - 1:
                s = self.layout.pitch
            n *= s
        if isinstance(self.layout, Shifted):
            n += self.layout.room
        if isinstance(self.layout, Pitched):
            n += -(-self.rows // self.layout.group) * self.layout.skew
        return n

    @property
    def rows(self) -> int:
        """As `Pitched` counts them."""
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else self.shape[0]

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.bytes


@dataclass(frozen=True, slots=True)
class Axis:
    """An index of a Compute: start <= index < stop (expressions over loop variables and numbers).

    `block` bounds stop - start statically. `unroll` and `lanes` are the register tile along this axis:
    `unroll` vectors of `lanes` elements (lanes > 1 on at most one axis of a Compute), or `unroll` scalars.
    On a GPU `spread` says which thread takes which values instead.
    """

    name: str
    start: Expr
    stop: Expr
    block: int
    unroll: int = 1
    lanes: int = 1
    spread: Spread | None = None


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Memory that will be read soon, or `written`: `source` by the axes' names. A hint that no result depends on; it
    may lie outside the tensor."""

    source: Access
    axes: tuple[Axis, ...]
    written: bool = False


@dataclass(frozen=True, slots=True)
class Ahead:
    """What a Compute packs meanwhile, a piece per part of its reduction: `pack` fills the copy of its tile that the
    next turn of the loops around reads. It is written over `following`, names of their variables a turn later, each
    with the variable itself and that value."""

    pack: Pack
    following: tuple[tuple[str, str, Expr], ...]


@dataclass(frozen=True, slots=True)
class Compute:
    """target = value over the axes; with `reduced` axes, the reduction of the values by `reducer`.

    `reducer` is sum | max | min, or None for a plain assignment. With `accumulate`, the old target takes
    part: `target += value` for sum. Loops run in the order of `axes`, outermost first (register tiles
    innermost; a reduced axis runs inside all parallel ones, around the register tile). Points where `guard`
    is false contribute nothing (are not written, or add the reducer's identity).
    With `atomic`, blocks add to the target at the same time (sums only); the order, and so the rounding, varies.
    With `prefetch`, that memory is brought nearer meanwhile, and with `ahead` another tile is packed (CPU).
    `instruction` names the family of instructions that a contraction is computed with ("" for none). With
    `late` it may run beside the next turn of the loop around, up to the first statement that needs its result.
    `region` says where the result is needed (CPU): what is computed outside is read by nobody, or, for a reduction over
    an index of it, contributes nothing. Code may leave it out, and need not.
    `epilogue` (CPU) are maps over the parallel axes, in order, that follow on each register tile while it is in
    registers, in the turn of the loop around in which `last` holds (in each, without it). Nobody else reads a sum's
    target after them, so it need not be written then; a map's is.
    `only` (GPU) is a condition on the variables of the loops around: where it does not hold nothing is computed.
    With `turns` (GPU), blocks write to the target one after the other: each adds to what those before it left. A warp
    of a block only follows that of the same number in another, and has a word of its own, from the turns' `flag` on.
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
    atomic: bool = False
    instruction: str = ""
    span: Span = field(default=NO_SPAN, compare=False, repr=False)
    prefetch: tuple[Prefetch, ...] = ()
    late: bool = False
    region: Expr | None = None
    epilogue: tuple[Compute, ...] = ()
    last: Expr | None = None
    only: Expr | None = None
    turns: Turns | None = None
    ahead: Ahead | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Fill the whole tile `buffer` from `source`, zero where an axis runs past its `stop`.

    `axes[i]` walks the buffer's i-th dimension from axis.start; `source` is an access by the axes' names. `by` is
    how a GPU block copies: "copy" (through registers) or "cp.async" (in the background, awaited before use). On a CPU
    "prefetch" says that what the next turn packs shall be prefetched while this one's tile is used, "ahead" that this
    tile has two copies, of which the one is packed by a Compute that reads the other (`Compute.ahead`); only the first
    turn's is packed here.
    """

    buffer: str
    axes: tuple[Axis, ...]
    source: Access
    by: str = "copy"
    span: Span = field(default=NO_SPAN, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Turns:
    """The order in which blocks add to one place: a block waits until the word `flag` holds `before`, what the block
    that has its turn before it puts there, and in the end puts its own `number` there. Nobody is before it where one of
    `met` (low, value, stop) has not low <= value < stop: such a block does not wait. With `stores` it stores instead of
    adding, and so nothing need be there before. Words are zero before the first block's turn; where `flag` is a tile of
    `Scope.WORDS`, the last block puts zero there. Groups of warps that deliver rows of their own have a word each, from
    `flag` on."""

    flag: Access
    number: Expr
    before: Expr
    met: tuple[tuple[Expr, Expr, Expr], ...]
    stores: bool = True


@dataclass(frozen=True, slots=True)
class Unpack:
    """GPU: write the tile `buffer` to `target` by the copy engine, in the background; the reverse of a `Pack` by tma.
    What lies past an axis's `stop` is not written. With `add`, it is added to what other blocks leave there: in any
    order, or in that of `turns`. With `groups`, so many groups of warps each write and hand over rows of their own."""

    buffer: str
    axes: tuple[Axis, ...]
    target: Access
    span: Span = field(default=NO_SPAN, compare=False, repr=False)
    add: bool = False
    turns: Turns | None = None
    groups: int = 1

    @property
    def reversed(self) -> Pack:
        """The Pack that would fill the tile from there: it has the same tensor map."""
        return Pack(self.buffer, self.axes, self.target, "tma", span=self.span)


@dataclass(frozen=True, slots=True)
class Loop:
    """for variable in range(start, stop, step): body.

    level "seq": in order. level "core" (CPU) or "grid" (GPU): the outermost loops of a phase, nested
    without anything between them; their flattened iterations are divided among cores in contiguous shares.
    With `chunked`, a single core loop whose range is cut into one contiguous share per core, each boundary
    a multiple of `step`; the body then sees `variable` (the share's start) and `variable + ".stop"` (its
    end) and covers that whole share.
    Nested grid loops are flattened into one grid of blocks, the innermost loop fastest.
    level "pipe" (GPU): like seq, but the body's leading `Pack`s run ahead: `stages` copies of what they fill exist
    (`Buffer.ring`), and the packs of turn i + stages - 1 are issued while turn i is computed.
    level "panel" (GPU): from `start` to `start` plus a number; turns are written out. The body has, for one result or
    several, the `Compute` of a tile with `stages` copies, and its `Unpack`; or `Compute`s alone, which read a sum in
    tensor memory by columns.
    """

    variable: str
    start: Expr
    stop: Expr
    step: int
    level: str
    body: tuple[Statement, ...]
    chunked: bool = False
    stages: int = 1
    span: Span = field(default=NO_SPAN, compare=False, repr=False)


Statement = Loop | Compute | Pack | Unpack


@dataclass(frozen=True, slots=True)
class Kernel:
    """A lowered kernel: one launch per phase, in order.

    `operands` in launch-argument order. `writes` names the operands written. `flops`, `traffic` (bytes), `gathered`
    (those of them that lie in rows chosen by data, by the bytes of such a row) and `functions` (evaluations of exp and
    the like, by name) are what the equations ask for, for the roofline. `blocks` are a GPU's, None on a CPU. `of` names
    the kernel of one place that this one is for many of (`ir/batch.py`). `span` and `origins` say where its schedule
    stands, and are no part of what it is.
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
    blocks: Blocks | None = None
    traffic: int = 0
    functions: tuple[tuple[str, int], ...] = ()
    gathered: tuple[tuple[int, int], ...] = ()
    of: str = ""
    span: Span = field(default=NO_SPAN, compare=False, repr=False)
    origins: Origins = field(default=Origins(), compare=False, repr=False)

    @property
    def gpu(self) -> Blocks:
        """The blocks of a kernel that was lowered for a GPU."""
        assert self.blocks is not None, f"kernel '{self.name}' was lowered for a CPU"
        return self.blocks

    def buffer(self, name: str) -> Buffer:
        """The operand or tile of that name; KeyError when there is none."""
        for b in self.operands + self.tiles:
            if b.name == name:
                return b
        raise KeyError(name)

    @property
    def buffers(self) -> dict[str, Buffer]:
        """Operands and tiles by their names."""
        return {b.name: b for b in self.operands + self.tiles}
