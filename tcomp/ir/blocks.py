"""How a GPU runs a kernel: the threads of its blocks, what they do beside each other, and the order of the blocks.

These are facts of the whole kernel, not of its loops. Nothing here names an instruction.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ThreadShape:
    """The threads of a GPU block. thread = 32 * warp + lane, warp = warp_y * warps_x + warp_x, and
    lane = lane_y * lanes_x + lane_x with lanes_x * lanes_y = 32."""

    warps_x: int = 1
    warps_y: int = 1
    lanes_x: int = 32
    lanes_y: int = 1

    @property
    def warps(self) -> int:
        return self.warps_x * self.warps_y

    @property
    def threads(self) -> int:
        return 32 * self.warps


@dataclass(frozen=True, slots=True)
class Producer:
    """Warps of a block beside its `ThreadShape`, which issue its tensor copies and do nothing else. With `registers`,
    each of their threads gives up all but so many, and the others share what is left (whole warpgroups only)."""

    warps: int
    registers: int = 0


@dataclass(frozen=True, slots=True)
class Cluster:
    """`blocks` neighbours along the grid loop of that variable run together and share what they all read. `paired`: two
    of which one issues the products of both."""

    variable: str
    blocks: int
    paired: bool = False


@dataclass(frozen=True, slots=True)
class Stream:
    """How the loops that are bounded by the variables `start` and `stop`, of a sum of `extent` terms in each turn of
    the grid loops, are shared out into as many shares of whole `unit` terms as blocks (or clusters) run at a time. The
    first shares are parts of one size, as many of each turn's sum as fit: those of one place, which run beside each
    other, read the same operands. What is left of the sums lies one behind the other, cut into equal shares. One of
    these so has the end of one turn's sum, and maybe whole ones and the beginning of another's. The blocks with the
    lowest numbers have the last shares: whoever has the end of a sum computes it first, and adds it first."""

    start: str
    stop: str
    extent: int
    unit: int

    @property
    def units(self) -> int:
        """Of one sum."""
        return -(-self.extent // self.unit)

    def parts(self, sums: int, shares: int) -> tuple[int, int]:
        """How many parts of one size each of so many sums has, and their units."""
        count, size = shares // sums, -(-self.units * sums // shares)
        return (count, size) if 0 < count * size < self.units and count * sums < shares else (0, 0)


@dataclass(frozen=True, slots=True)
class GridOrder:
    """How blocks come to the turns of the grid loops. `persistent`: as many blocks as there are multiprocessors take
    turns one after the other. `raster`: of the two innermost loops, bands of so many turns of the outer one are walked
    column by column, so that blocks running at a time share operands in L2; 0: row by row. Loops whose variable is
    `reversed` are walked from their end: the longest blocks of a triangle first. Phases with loops of a `stream` are
    shared out by it."""

    persistent: bool = False
    raster: int = 0
    reversed: frozenset[str] = frozenset()
    stream: Stream | None = None


@dataclass(frozen=True, slots=True)
class Blocks:
    """The blocks of a kernel. `shape` are the threads that compute: of a persistent block `sides` times as many, which
    take its tiles in turn. `staggered`: warpgroups go through pipe loops a turn apart."""

    shape: ThreadShape = ThreadShape()
    sides: int = 1
    producer: Producer | None = None
    order: GridOrder = GridOrder()
    cluster: Cluster | None = None
    staggered: bool = False
