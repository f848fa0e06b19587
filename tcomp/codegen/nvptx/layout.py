"""Where tiles lie: offsets in a block's shared memory, phase by phase, and in the region that all blocks share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.evaluation import value_kind
from tcomp.codegen.nvptx.join import exchange_bytes
from tcomp.codegen.nvptx.plan import accesses_of, exchange_lanes, joins_warps, plan_of, reads_of, sharing_of
from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.ir.tile import (
    SWIZZLE_PERIOD,
    Buffer,
    Compute,
    Kernel,
    Loop,
    Pack,
    Scope,
    Statement,
    Swizzled,
    ThreadShape,
    Unpack,
)

ALIGNMENT = 128
RING_BYTES = 16
"""of shared memory for the two mbarriers of one copy in a ring"""
TEAM_ALIGNMENT = 256


@dataclass(frozen=True)
class Successor:
    """A result's tile in the place of the tile `of`, from the statement at `path` of the phase on. (A barrier before
    that statement says that all threads are done with `of`.)"""

    of: str
    path: tuple[int, ...]


@dataclass
class SharedLayout:
    """Byte offsets from the start of the block's shared memory. `stages` is, for a pipe loop (by its number), the
    distance between the copies that it fills; `rings` are the mbarriers of what the copy engine fills, of what a
    producer's warp delivers, and of `last_turns`, which wait for it."""

    offsets: dict[str, int] = field(default_factory=dict)
    own: dict[str, int] = field(default_factory=dict)
    """of the tiles that each side of a block has for itself, one behind the other, the bytes of one side's"""
    exchange: dict[int, int] = field(default_factory=dict)
    stages: dict[int, int] = field(default_factory=dict)
    rings: dict[int, int] = field(default_factory=dict)
    successors: dict[str, Successor] = field(default_factory=dict)
    bytes: int = 0


def statements_in(body: Sequence[Statement]) -> Iterator[Statement]:
    """All statements, outer ones first."""
    for s in body:
        yield s
        if isinstance(s, Loop):
            yield from statements_in(s.body)


def leading_packs(loop: Loop) -> tuple[Pack, ...]:
    found: list[Pack] = []
    for s in loop.body:
        if not isinstance(s, Pack):
            break
        found.append(s)
    return tuple(found)


def pipe_stages(loop: Loop) -> int:
    """Copies that a pipe loop really keeps: one where nothing is copied in the background."""
    if loop.level != "pipe" or not any(p.by != "copy" for p in leading_packs(loop)):
        return 1
    return max(1, loop.stages)


def rings_of(body: Sequence[Statement]) -> Iterator[tuple[Loop | Pack, int]]:
    """What the copy engine fills: pipe loops, and Packs that begin none; with the copies of each."""
    for s in body:
        if isinstance(s, Loop):
            packs = leading_packs(s) if s.level == "pipe" else ()
            if any(p.by == "tma" for p in packs):
                yield s, pipe_stages(s)
                yield from rings_of(s.body[len(packs) :])
            else:
                yield from rings_of(s.body)
        elif isinstance(s, Pack) and s.by == "tma":
            yield s, 1


def ring_copies(filled: Loop | Pack, count: int, sides: int) -> int:
    """The copies of a ring of `rings_of`: each side has a tile on its own for itself."""
    return count if isinstance(filled, Loop) else count * sides


def panels_in(body: Sequence[Statement]) -> Iterator[tuple[Unpack, int]]:
    """The deliveries of panel loops, with the copies of each one's tile."""
    for s in statements_in(body):
        if isinstance(s, Loop) and s.level == "panel":
            yield from ((u, s.stages) for u in s.body if isinstance(u, Unpack))


def handed_over(phase: Sequence[Statement], kernel: Kernel) -> list[Unpack]:
    """What a warp of the producer delivers: results that are added to memory in every turn of a pipe loop."""
    if kernel.producer is None or kernel.producer.warps < 2 or kernel.cluster is not None or kernel.sides > 1:
        return []
    loops = [s for s, _ in rings_of(phase) if isinstance(s, Loop)]
    return [u for loop in loops for u in loop.body if isinstance(u, Unpack) and u.add and u.groups == 1]


def last_turns(phase: Sequence[Statement]) -> list[Loop]:
    """Loops that read what blocks have added up in turns (`schedule/last_turn.py`), in the block whose turn is last."""
    sums = {s.target.tensor for s in statements_in(phase) if isinstance(s, Unpack) and s.turns is not None}
    body = phase
    while len(body) == 1 and isinstance(body[0], Loop) and body[0].level == "grid":
        body = body[0].body

    def reads(s: Statement) -> bool:
        inside = (c for c in statements_in((s,)) if isinstance(c, Compute))
        return any(a.tensor in sums for c in inside for a in reads_of(c))

    return [s for s in body if isinstance(s, Loop) and reads(s)]


def successors(phase: Sequence[Statement], kernel: Kernel) -> dict[str, Successor]:
    """Tiles that results leave from which can lie where a tile lies that the copy engine has filled once, and that
    nothing reads any more when the result is written: attention's output in the place of its queries. Not in blocks
    that take tile after tile, nor in clusters: there the next tile is on its way, or a neighbour's."""
    if kernel.order.persistent or kernel.sides > 1 or kernel.cluster is not None:
        return {}
    path: tuple[int, ...] = ()
    body = phase
    while len(body) == 1 and isinstance(body[0], Loop) and body[0].level == "grid":
        body, path = body[0].body, (*path, 0)
    uses: dict[str, list[int]] = {}
    inside = {b.name: b.inside for b in kernel.tiles if b.inside}
    for i, outer in enumerate(body):
        for s in statements_in((outer,)):
            for name in names_used(s):
                uses.setdefault(inside.get(name, name), []).append(i)
    sizes = {b.name: b.bytes for b in kernel.tiles}
    panels = {u.buffer: n for u, n in panels_in(phase)}
    results = [s.buffer for s in statements_in(phase) if isinstance(s, Unpack) and s.buffer not in inside]
    free = [s.buffer for s in body if isinstance(s, Pack) and s.by == "tma"]
    found: dict[str, Successor] = {}
    for r in results:
        room = [f for f in free if uses[f][-1] < uses[r][0] and sizes[f] >= sizes[r] * panels.get(r, 1)]
        if room and sum(r == x for x in results) == 1:
            found[r] = Successor(min(room, key=lambda f: sizes[f]), (*path, uses[r][0]))
            free.remove(found[r].of)
    return found


def names_used(s: Statement) -> set[str]:
    match s:
        case Compute():
            return {a.tensor for a in accesses_of(s)}
        case Pack():
            return {s.buffer, s.source.tensor}
        case Unpack():
            return {s.buffer, s.target.tensor}
    return set()


def shared_layout(phase: Sequence[Statement], kernel: Kernel, threads: ThreadShape, limit: int) -> SharedLayout:
    """The shared memory of one phase. Where it is more than `limit` bytes, results take the places of tiles that are
    done with (`successors`); UserError with the tiles' sizes where that does not help."""
    layout, sizes = _placed(phase, kernel, threads, {})
    if layout.bytes > limit and (later := successors(phase, kernel)):
        layout, sizes = _placed(phase, kernel, threads, later)
    if layout.bytes > limit:
        listing = ", ".join(f"{n} {size:,}" for n, size in sorted(sizes, key=lambda x: -x[1]))
        raise UserError(
            f"{kernel.span}: kernel '{kernel.name}' needs {layout.bytes:,} bytes of shared memory; "
            f"a block has {limit:,}",
            f"take smaller tiles or fewer stages ({listing})",
        )
    return layout


def _placed(
    phase: Sequence[Statement], kernel: Kernel, threads: ThreadShape, later: dict[str, Successor]
) -> tuple[SharedLayout, list[tuple[str, int]]]:
    """All tiles in a row but those that have a predecessor's place; and the name and bytes of each."""
    buffers = {b.name: b for b in kernel.operands + kernel.tiles}
    used = {n for s in statements_in(phase) for n in names_used(s)}
    layout = SharedLayout(successors=later)
    sizes: list[tuple[str, int]] = []

    def place(name: str, size: int, alignment: int = ALIGNMENT) -> int:
        at = -(-layout.bytes // alignment) * alignment
        layout.bytes = at + -(-size // alignment) * alignment
        sizes.append((name, size))
        return at

    for s in statements_in(phase):
        if isinstance(s, Loop) and s.level == "pipe" and pipe_stages(s) > 1:
            tiles = [buffers[p.buffer] for p in leading_packs(s)]
            widest = max(alignment_of(t) for t in tiles)
            start = layout.bytes = -(-layout.bytes // widest) * widest
            for t in tiles:
                layout.offsets[t.name] = place(t.name, t.bytes, alignment_of(t))
            layout.bytes = -(-layout.bytes // widest) * widest
            stage = layout.stages[id(s)] = layout.bytes - start
            layout.bytes += stage * (pipe_stages(s) - 1)
            sizes.append(
                (f"{pipe_stages(s) - 1} more copies for the pipe over {s.variable}", layout.bytes - start - stage)
            )
    panels = {s.buffer: n for s, n in panels_in(phase)}
    ringed = {p.buffer for s, _ in rings_of(phase) if isinstance(s, Loop) for p in leading_packs(s)}
    shared = [b for b in kernel.tiles if b.scope is Scope.SHARED and b.name in used]
    for b in shared:
        if not b.inside and b.name not in layout.offsets and b.name not in later:
            size, sides = b.bytes * panels.get(b.name, 1), 1 if b.name in ringed else kernel.sides
            if sides > 1:
                size = layout.own[b.name] = -(-size // alignment_of(b)) * alignment_of(b)
            layout.offsets[b.name] = place(b.name, size * sides, alignment_of(b))
    layout.offsets |= {name: layout.offsets[s.of] for name, s in later.items()}
    for b in shared:
        if b.inside:
            layout.offsets[b.name] = layout.offsets[b.inside]
            layout.own |= {b.name: layout.own[b.inside]} if b.inside in layout.own else {}
    for s in statements_in(phase):
        if isinstance(s, Compute):
            sharing = sharing_of(s, threads)
            if joins_warps(sharing):
                wide = any(value_kind(buffers[a.tensor].dtype) == "f64" for a in accesses_of(s)) or _casts_to_f64(s)
                shape = (threads.warps, exchange_lanes(sharing, threads))
                size = exchange_bytes(plan_of(s, buffers).points, shape, wide)
                if kernel.sides > 1:
                    result = s.target.tensor.partition(".")[0]
                    raise Unsupported(
                        f"the warps of each side would join '{result}'", kernel.span,
                        f"leave `pingpong` out, or compute {result} in a kernel of its own",
                    )  # fmt: skip
                layout.exchange[id(s)] = place(f"joining warps of {s.target.tensor}", size)
    for filled, count in rings_of(phase):
        layout.rings[id(filled)] = place("mbarriers", RING_BYTES * ring_copies(filled, count, kernel.sides))
    handed: list[Unpack | Loop] = list(handed_over(phase, kernel))
    for node in (*handed, *(last_turns(phase) if handed else ())):
        layout.rings[id(node)] = place("mbarriers", RING_BYTES)
    return layout, sizes


def alignment_of(tile: Buffer) -> int:
    """Bytes that the tile's address must be a multiple of."""
    return SWIZZLE_PERIOD if isinstance(tile.layout, Swizzled) else ALIGNMENT


def _casts_to_f64(c: Compute) -> bool:
    return DType.F64.value in str(c.value)


def team_layout(tiles: Sequence[Buffer], scope: Scope = Scope.TEAM) -> tuple[dict[str, int], int]:
    """Offsets of the tiles that all blocks share, and the region's bytes; of `Scope.WORDS` those of the words that are
    zero between launches."""
    offsets: dict[str, int] = {}
    end = 0
    for t in tiles:
        if t.scope is scope:
            offsets[t.name] = end
            end += -(-t.bytes // TEAM_ALIGNMENT) * TEAM_ALIGNMENT
    return offsets, end
