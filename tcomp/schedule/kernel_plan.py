"""What a schedule says about one kernel, all numbers resolved: `resolve` gives it, every pass of lowering reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tcomp.dsl.ast import Combine, DType, Fuse, Span, Stage, Use
from tcomp.instructions import IN_TENSOR_MEMORY
from tcomp.ir.blocks import Stream
from tcomp.ir.origins import Origins
from tcomp.schedule.gpu.launch_flags import LaunchFlags


@dataclass(frozen=True)
class TileLevel:
    """One generated loop: `block` values of `index` per turn; a chunked core level has no fixed block."""

    index: str
    number: int
    kind: str  # core | grid | seq | pipe
    block: int | None
    span: Span
    stages: int = 1
    """copies in flight of what a pipe level stages"""
    place: str = ""
    """x, y or z of a grid level"""
    cluster: int = 1
    """neighbouring blocks of a grid level that run as one cluster"""
    kept: bool = field(default=False, compare=False)
    """is it a loop also where it has one turn?"""

    @property
    def parallel(self) -> bool:
        """Its turns are divided among cores or blocks."""
        return self.kind in ("core", "grid")

    @property
    def variable(self) -> str:
        return f"{self.index}.{self.number}"


@dataclass(frozen=True)
class WarpLevel:
    """`warp.y(64, 4)`: tiles of 64 for each warp along y, at most 4 warps. With `group`, warps come in fours."""

    place: str
    tile: int
    limit: int
    group: bool = False


@dataclass(frozen=True)
class LaneLevel:
    """`lane.y(8)`: as many lanes along y as give each 8 values; x takes the lanes that are left (tile 0)."""

    place: str
    tile: int


@dataclass(frozen=True)
class LoopMap:
    """How one index is mapped: its tile levels, then its register tile (unroll x vector lanes on a CPU; warps,
    lanes and `grain` consecutive values per thread on a GPU, or with `mma` as matrix instructions have it)."""

    index: str
    tiles: tuple[TileLevel, ...] = ()
    unroll: int = 1
    vec: bool = False
    warp: WarpLevel | None = None
    lane: LaneLevel | None = None
    grain: int = 1
    mma: bool = False
    span: Span = field(default_factory=lambda: Span("<default>", 0, 0, 0, 0))


@dataclass(frozen=True)
class Named:
    """An equation on an `overlap` or `promote` line, with the number in brackets behind it (0: it is not meant)."""

    name: str
    number: int | None
    span: Span


@dataclass(frozen=True)
class KernelPlan:
    """Everything one kernel's lowering needs to know from its schedule, all numbers resolved."""

    outputs: tuple[str, ...]
    loops: dict[str, LoopMap]
    sequence: tuple[TileLevel, ...]
    """tile levels, outermost first"""
    fuse: tuple[Fuse, ...]
    stages: tuple[Stage, ...]
    combine: tuple[Combine, ...]
    inline: Mapping[str, Span]
    """tensor that is computed again where it is read -> where the schedule says so"""
    special: dict[tuple[str, str], LoopMap]
    """(index, target) -> the mapping of `index of target -> ...`"""
    values: dict[str, int | float]
    span: Span
    uses: dict[str, Use] = field(default_factory=dict)
    """equation -> the instruction it is computed with"""
    casts: dict[str, DType] = field(default_factory=dict)
    """tensor, or equation.tensor for its reads in one equation -> the type it is held in (rounded to)"""
    flags: LaunchFlags = LaunchFlags()
    overlap: dict[str, Named] = field(default_factory=dict)
    """equation whose matrix product runs beside the loop's next turn -> where that is said"""
    promote: dict[str, Named] = field(default_factory=dict)
    """equation whose sum goes from the matrix unit to f32 after each turn -> where that is said"""
    parts: dict[str, tuple[str, int]] = field(default_factory=dict)
    """index -> the index that counts its parts, and the values in one part (`joining/split_sum.py`)"""
    streams: dict[str, Stream] = field(default_factory=dict)
    """index -> how its sums are shared out, where parts may begin and end anywhere"""
    origins: Origins = Origins()
    """the lines that findings about the assembled kernel are told at"""
    absent: tuple[Combine, ...] = ()
    """the `combine` lines whose condition does not hold"""

    @property
    def levels(self) -> tuple[TileLevel, ...]:
        """The tile levels of loops to be generated. A sum in tensor memory goes on in a pipe loop, of one turn too."""
        collected = any(u.instruction in IN_TENSOR_MEMORY for u in self.uses.values())
        return tuple(replace(t, kept=True) if collected and t.kind == "pipe" else t for t in self.sequence)

    def mapping(self, index: str, names: Iterable[str]) -> LoopMap | None:
        """The mapping of a loop in the equation that is known by these names."""
        own = (self.special.get((index, n)) for n in names)
        return next((m for m in own if m is not None), self.loops.get(index))
