"""The levels of a loop on a GPU, and what they say of a block's threads.

    m -> grid.y(128) / warp.y(64) / lane.y(8) / vec(4)     a block takes 128 rows; of these each warp 64, each lane 8
    k -> pipe(16, 3) / vec(4)                              16 at a time, three tiles in flight; read 4 at a time
    m -> grid.y(128) / warpgroup(64) / mma                 each warpgroup 64 rows, by matrix instructions

The number in brackets is the tile handed inward. Lanes along x are those that lanes along y leave over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tcomp.dsl.ast import Span
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import ThreadShape
from tcomp.machine.gpu import GpuMachine
from tcomp.schedule.kernel_plan import KernelPlan, LaneLevel, LoopMap, TileLevel, WarpLevel
from tcomp.schedule.resolve import ResolvedLevel
from tcomp.schedule.tree.cpu_levels import add_tile

ORDER = ("grid", "cluster", "seq", "pipe", "warpgroup", "warp", "lane", "mma", "unroll", "vec")
MAX_WARPS = 32
MOST_BLOCKS = 8
"""blocks of a cluster on every machine that has them"""
GROUP_ROWS = (64, 128)
"""rows of a warpgroup's matrix instructions: of wgmma, of tcgen05"""
LANES_Y = 8
"""lanes along rows where matrix instructions say how a warp is divided"""


class GpuLevels:
    """Facts: smem (bytes a block may have), regs (per thread), sms, l2 (bytes), lanes (of a warp), vector (how many
    of the op's narrowest elements, of `itemsize` bytes, are 128 bits), early (1 where the op computes an equation of
    the op behind it)."""

    def __init__(self, machine: GpuMachine, itemsize: int = 4, early: bool = False) -> None:
        self.vector = 16 // itemsize
        self.facts: dict[str, int | float] = {
            "smem": machine.shared_per_block,
            "regs": 255,
            "sms": machine.sms,
            "l2": machine.l2_bytes,
            "lanes": 32,
            "vector": self.vector,
            "early": int(early),
        }

    def loop(self, name: str, levels: Sequence[ResolvedLevel], span: Span) -> LoopMap:
        tiles: list[TileLevel] = []
        warp: WarpLevel | None = None
        lane: LaneLevel | None = None
        grain, mma = 1, False
        _check_order(name, levels)
        for level in levels:
            kind, _, place = level.kind.partition(".")
            args = _arguments(kind, level)
            match kind:
                case "cluster":
                    tiles[-1:] = [_clustered(name, tiles, args[0], level.span)]
                case "grid" | "pipe" | "seq" if args:
                    stages = args[1] if len(args) == 2 else 2 if kind == "pipe" else 1
                    add_tile(tiles, TileLevel(name, len(tiles), kind, args[0], level.span, stages, place))
                case "warp":
                    warp = WarpLevel(place or "x", args[0], args[1] if len(args) == 2 else MAX_WARPS)
                case "warpgroup":
                    warp = _warpgroup(args, level.span)
                case "mma":
                    mma = True
                case "lane":
                    lane = _lane(place or "x", args, level.span)
                case "unroll" | "vec":
                    grain = _grain(kind, args[0] if args else self.vector, level.span)
        if mma and (lane is not None or grain > 1 or (warp is not None and warp.tile % 16)):
            raise TcError(
                f"loop '{name}' ends in mma, which shares a warp's tile of multiples of 16 out among its lanes",
                span,
                "leave out lane and vec, and give each warp a multiple of 16",
            )
        return LoopMap(name, tuple(tiles), warp=warp, lane=lane, grain=grain, mma=mma, span=span)


def _check_order(name: str, levels: Sequence[ResolvedLevel]) -> None:
    """TcError where a loop has a level that a GPU has not, or one inside of which it belongs."""
    before = ""
    for level in levels:
        kind = level.kind.partition(".")[0]
        if kind not in ORDER:
            raise TcError(
                f"level '{level.kind}' of loop '{name}' cannot be lowered yet",
                level.span,
                f"levels in use, outermost first: {', '.join(ORDER)}",
            )
        if before and not _may_follow(before, kind):
            raise TcError(
                f"level '{level.kind}' of loop '{name}' comes too late",
                level.span,
                "write levels outermost first: grid(...) / seq(...) / pipe(...) / warp(...) / lane / vec(...)",
            )
        before = kind


def _warpgroup(args: Sequence[int], span: Span) -> WarpLevel:
    """`warpgroup(64)`, or `warpgroup(64, 2)` for two of them."""
    if args[0] not in GROUP_ROWS:
        raise TcError(
            f"warpgroup({args[0]}): a warpgroup takes 64 rows at a time, 16 for each warp, or 128 (tcgen05)",
            span,
            "write warpgroup(64); what is left over its warpgroups take in turns",
        )
    groups = args[1] if len(args) == 2 else MAX_WARPS // 4
    return WarpLevel("y", args[0] // 4, 4 * groups, True)


def _lane(place: str, args: Sequence[int], span: Span) -> LaneLevel:
    """`lane`, `lane.x` or `lane.y(8)`."""
    if (place == "y") != bool(args and args[0]):
        raise TcError(
            "lane.y takes the number of values per lane, and lane or lane.x none",
            span,
            "lanes along x are those that lanes along y leave over: write lane.y(8) and lane.x",
        )
    return LaneLevel(place, args[0] if args else 0)


def _grain(kind: str, values: int, span: Span) -> int:
    """The consecutive values of a thread, a power of two."""
    if values & (values - 1) or values > 16:
        raise TcError(
            f"{kind}({values}): a thread takes 1, 2, 4, 8 or 16 consecutive values",
            span,
            "write vec(4): 128 bits of f32",
        )
    return values


def padded_extents(plan: KernelPlan, extents: Mapping[str, int], itemsize: int) -> dict[str, int]:
    """Extents for the sizes of tiles: loops that end in mma have room for whole instructions (32 bytes of k, 16 rows
    or columns, a warpgroup's rows), and loops that threads turn in shared memory for all that their lanes cover either
    way: with fewer, lanes past a narrow tile's end would meet in the banks of its last row or column."""
    out = dict(extents)
    for (index, _), m in plan.special.items():
        own = plan.loops.get(index)
        if own is not None and _turned(own, m):
            out[index] = max(extents[index], min((t.block for t in own.tiles if t.block is not None), default=1))
    for m in (*plan.loops.values(), *plan.special.values()):
        if m.mma:
            unit = max(16, 32 // itemsize, m.warp.tile if m.warp is not None else 1)
            unit = max(unit, 4 * m.warp.tile) if m.warp is not None and m.warp.group else unit
            out[m.index] = max(out[m.index], -(-extents[m.index] // unit) * unit)
    return out


def _turned(one: LoopMap, other: LoopMap) -> bool:
    """Do lanes along one dimension of a warp share the loop out in one equation, and along the other in another?"""
    return one.lane is not None and other.lane is not None and one.lane.place != other.lane.place


def _clustered(name: str, tiles: Sequence[TileLevel], block: int, span: Span) -> TileLevel:
    """`grid.y(256) / cluster(128)`: blocks of 128, two of which are a cluster."""
    outer = tiles[-1].block if tiles and tiles[-1].kind == "grid" else None
    count = (outer or 0) // block
    if outer is None or outer % block or not 2 <= count <= MOST_BLOCKS:
        raise TcError(
            f"cluster({block}) of loop '{name}' needs a grid tile around it, of 2 to {MOST_BLOCKS} times {block}",
            span,
            f"write {name} -> grid.y({2 * block}) / cluster({block})",
        )
    return replace(tiles[-1], block=block, cluster=count)


def _may_follow(before: str, kind: str) -> bool:
    a, b = ORDER.index(before), ORDER.index(kind)
    return b > a or (kind == before and kind in ("seq", "pipe"))


def _arguments(kind: str, level: ResolvedLevel) -> tuple[int, ...]:
    least, most, example = {
        "cluster": (1, 1, "cluster(128)"),
        "grid": (1, 1, "grid(64)"),
        "seq": (0, 1, "seq(64)"),
        "pipe": (1, 2, "pipe(64, 3)"),
        "warpgroup": (1, 2, "warpgroup(64)"),
        "warp": (1, 2, "warp(32)"),
        "mma": (0, 0, "mma"),
        "lane": (0, 1, "lane.y(8)"),
        "unroll": (1, 1, "unroll(4)"),
        "vec": (0, 1, "vec(4)"),
    }[kind]
    if not least <= len(level.args) <= most:
        takes = "one number" if least == most == 1 else "a number" if most == 1 else "one or two numbers"
        takes = "no number" if most == 0 else takes
        raise TcError(f"{level.kind} takes {takes}", level.span, f"write {example}")
    return level.args


def thread_shape(plan: KernelPlan, extents: Mapping[str, int]) -> ThreadShape:
    """The threads of a kernel's blocks, from the largest demand along each dimension."""
    loops = [*plan.loops.values(), *plan.special.values()]
    inner = {m.index: inner_block(plan, m.index, extents) for m in loops}
    wanted = {m.index: _power(-(-_warp_part(m, inner) // m.lane.tile)) for m in loops if m.lane and m.lane.tile}
    lanes_y = max([1, *wanted.values()])
    if any(m.mma for m in loops):
        for m in loops:
            if wanted.get(m.index, LANES_Y) > LANES_Y:
                raise TcError(
                    f"loop '{m.index}' asks for {wanted[m.index]} lanes along y; with mma a warp has {LANES_Y}",
                    m.span,
                    "give each lane more values",
                )
        lanes_y = LANES_Y
    if lanes_y > 32:
        m = next(m for m in loops if wanted.get(m.index) == lanes_y)
        raise TcError(
            f"loop '{m.index}' asks for {lanes_y} lanes along y; a warp has 32",
            m.span,
            "give each lane more values, or divide the loop among warps",
        )
    warps = {"x": 1, "y": 1}
    divided = any(m.warp is not None and m.warp.group for m in plan.loops.values())
    for m in loops:
        if m.warp is not None and m.warp.group and divided and m not in plan.loops.values():
            continue  # an equation of its own takes the warpgroups that there are, in turns
        if m.warp is not None:
            unit = 4 if m.warp.group else 1
            count = min(m.warp.limit, -(-inner[m.index] // (m.warp.tile * unit)) * unit)
            warps[m.warp.place] = max(warps[m.warp.place], count)
    if warps["x"] * warps["y"] > MAX_WARPS:
        m = next(m for m in loops if m.warp is not None)
        raise TcError(
            f"the schedule asks for {warps['x']} x {warps['y']} warps; a block has at most {MAX_WARPS}",
            m.span,
            "give each warp a larger tile, or limit their number: warp(32, 8)",
        )
    return ThreadShape(warps["x"], warps["y"], 32 // lanes_y, lanes_y)


def inner_block(plan: KernelPlan, index: str, extents: Mapping[str, int]) -> int:
    """Values of an index in its innermost tile."""
    own = plan.loops.get(index)
    blocks = [t.block for t in own.tiles if t.block is not None] if own is not None else []
    return min([extents[index], *blocks])


def _warp_part(m: LoopMap, inner: Mapping[str, int]) -> int:
    return min(inner[m.index], m.warp.tile) if m.warp is not None else inner[m.index]


def _power(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
