"""Where tiles lie in a block's shared memory, phase by phase."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.threads.dealing import dealing
from tcomp.codegen.nvptx.threads.evaluation import value_kind
from tcomp.codegen.nvptx.threads.join import exchange_bytes
from tcomp.codegen.nvptx.threads.plan import exchange_lanes, joins_warps, plan_of, sharing_of
from tcomp.dsl.ast import DType
from tcomp.errors import UserError
from tcomp.instructions import IN_TENSOR_MEMORY
from tcomp.ir.tile import SWIZZLE_PERIOD, Buffer, Compute, Kernel, Loop, Pack, Scope, Statement, Swizzled, Unpack
from tcomp.ir.walk import accesses_of, grid_nest, reads_of, statements_in

ALIGNMENT = 128
RING_BYTES = 16
"""of shared memory for the two mbarriers of one copy in a ring"""


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
    accumulators: dict[int, int] = field(default_factory=dict)
    """the mbarriers of two accumulators in tensor memory, for each loop whose sum is there"""
    pieces: dict[int, int] = field(default_factory=dict)
    """the mbarriers of all warpgroups, for each product by way of tensor memory beside other statements"""
    tensor_address: int = 0
    """where the address of the block's tensor memory is"""
    bytes: int = 0


def leading_packs(loop: Loop) -> tuple[Pack, ...]:
    """The Packs that a loop's turn begins with: in a pipe loop those that run ahead."""
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


def summed_in_tensor_memory(s: Statement) -> Compute | None:
    """The product whose sum is in tensor memory, where it is all that a pipe loop does with what it copies, but for
    sums of the same tiles by threads."""
    if not isinstance(s, Loop) or s.level != "pipe":
        return None
    packs = leading_packs(s)
    product, *others = s.body[len(packs) :] or (None,)
    if not isinstance(product, Compute) or product.instruction not in IN_TENSOR_MEMORY or not product.accumulate:
        return None
    tiles = {p.buffer for p in packs}
    for o in others:
        if not isinstance(o, Compute) or o.instruction or not o.accumulate:
            return None
        if not {a.tensor for a in accesses_of(o)} <= {o.target.tensor, *tiles} - {product.target.tensor}:
            return None
    return product


def pieces_in_tensor_memory(phase: Sequence[Statement]) -> list[Compute]:
    """The products whose home is tensor memory, but those that are all their pipe loop does: their results come to
    registers piece by piece (`products/tensor_group.py`)."""
    whole = [summed_in_tensor_memory(s) for s in statements_in(phase)]
    found = (s for s in statements_in(phase) if isinstance(s, Compute) and s.instruction in IN_TENSOR_MEMORY)
    return [s for s in found if not any(s is w for w in whole)]


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
    blocks = kernel.gpu
    if blocks.producer is None or blocks.producer.warps < 2 or blocks.cluster is not None or blocks.sides > 1:
        return []
    loops = [s for s, _ in rings_of(phase) if isinstance(s, Loop)]
    return [u for loop in loops for u in loop.body if isinstance(u, Unpack) and u.add and u.groups == 1]


def last_turns(phase: Sequence[Statement]) -> list[Loop]:
    """Loops that read what blocks have added up in turns (`joining/last_turn.py`), in the block whose turn is last."""
    sums = {s.target.tensor for s in statements_in(phase) if isinstance(s, Unpack) and s.turns is not None}

    def reads(s: Statement) -> bool:
        inside = (c for c in statements_in((s,)) if isinstance(c, Compute))
        return any(a.tensor in sums for c in inside for a in reads_of(c))

    return [s for s in grid_nest(phase)[1] if isinstance(s, Loop) and reads(s)]


def successors(phase: Sequence[Statement], kernel: Kernel) -> dict[str, Successor]:
    """Tiles that results leave from which can lie where a tile lies that the copy engine has filled once, and that
    nothing reads any more when the result is written: attention's output in the place of its queries. Not in blocks
    that take tile after tile, nor in clusters: there the next tile is on its way, or a neighbour's."""
    if kernel.gpu.order.persistent or kernel.gpu.sides > 1 or kernel.gpu.cluster is not None:
        return {}
    nest, body = grid_nest(phase)
    path = (0,) * len(nest)
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
    """Buffers that a statement itself reads or writes."""
    match s:
        case Compute():
            return {a.tensor for a in accesses_of(s)}
        case Pack():
            return {s.buffer, s.source.tensor}
        case Unpack():
            return {s.buffer, s.target.tensor}
    return set()


def shared_layout(phase: Sequence[Statement], kernel: Kernel, limit: int, wanted: int = 0) -> SharedLayout:
    """The shared memory of one phase. Where it is more than `limit` bytes, results take the places of tiles that are
    done with (`successors`), and where it so becomes as small as `wanted`; UserError with the tiles' sizes where that
    does not help."""
    placing = _Placing(phase, kernel, {})
    if placing.layout.bytes > (wanted or limit) and (later := successors(phase, kernel)):
        packed = _Placing(phase, kernel, later)
        if packed.layout.bytes <= (wanted or limit) or placing.layout.bytes > limit:
            placing = packed
    layout = placing.layout
    if layout.bytes > limit:
        listing = ", ".join(f"{n} {size:,}" for n, size in sorted(placing.sizes, key=lambda x: -x[1]))
        raise UserError(
            f"{kernel.span}: kernel '{kernel.name}' needs {layout.bytes:,} bytes of shared memory; "
            f"a block has {limit:,}",
            f"take smaller tiles or fewer stages ({listing})",
        )
    return layout


class _Placing:
    """All tiles in a row but those that have a predecessor's place (`later`); `sizes` are names and bytes of all."""

    def __init__(self, phase: Sequence[Statement], kernel: Kernel, later: dict[str, Successor]) -> None:
        self.phase, self.kernel = phase, kernel
        self.buffers = kernel.buffers
        self.layout = SharedLayout(successors=later)
        self.sizes: list[tuple[str, int]] = []
        for s in statements_in(phase):
            if isinstance(s, Loop) and s.level == "pipe" and pipe_stages(s) > 1:
                self._pipe(s)
        self._tiles()
        for s in statements_in(phase):
            if isinstance(s, Compute):
                self._exchange(s)
        for filled, count in rings_of(phase):
            size = RING_BYTES * ring_copies(filled, count, kernel.gpu.sides)
            self.layout.rings[id(filled)] = self._place("mbarriers", size)
        for s in statements_in(phase):
            if summed_in_tensor_memory(s) is not None:
                self.layout.accumulators[id(s)] = self._place("mbarriers", 2 * RING_BYTES)
        for c in pieces_in_tensor_memory(phase):
            self.layout.pieces[id(c)] = self._place("mbarriers", RING_BYTES * max(1, kernel.gpu.shape.warps // 4))
        if self.layout.accumulators or self.layout.pieces:
            self.layout.tensor_address = self._place("address of tensor memory", 4)
        handed: list[Unpack | Loop] = list(handed_over(phase, kernel))
        for node in (*handed, *(last_turns(phase) if handed else ())):
            self.layout.rings[id(node)] = self._place("mbarriers", RING_BYTES)

    def _place(self, name: str, size: int, alignment: int = ALIGNMENT) -> int:
        """Room for so many bytes at the end; where it begins."""
        at = self._align(alignment)
        self.layout.bytes = at + -(-size // alignment) * alignment
        self.sizes.append((name, size))
        return at

    def _align(self, alignment: int) -> int:
        self.layout.bytes = -(-self.layout.bytes // alignment) * alignment
        return self.layout.bytes

    def _pipe(self, loop: Loop) -> None:
        """What a pipe loop fills: as many copies of all its tiles as it has stages."""
        layout, stages = self.layout, pipe_stages(loop)
        tiles = [self.buffers[p.buffer] for p in leading_packs(loop)]
        widest = max(alignment_of(t) for t in tiles)
        start = self._align(widest)
        for t in tiles:
            layout.offsets[t.name] = self._place(t.name, t.bytes, alignment_of(t))
        stage = layout.stages[id(loop)] = self._align(widest) - start
        layout.bytes += stage * (stages - 1)
        self.sizes.append((f"{stages - 1} more copies for the pipe over {loop.variable}", stage * (stages - 1)))

    def _tiles(self) -> None:
        """All other tiles; panels lie in the tile that they are of."""
        layout = self.layout
        used = {n for s in statements_in(self.phase) for n in names_used(s)}
        panels = {s.buffer: n for s, n in panels_in(self.phase)}
        ringed = {p.buffer for s, _ in rings_of(self.phase) if isinstance(s, Loop) for p in leading_packs(s)}
        shared = [b for b in self.kernel.tiles if b.scope is Scope.SHARED and b.name in used]
        for b in shared:
            if not b.inside and b.name not in layout.offsets and b.name not in layout.successors:
                size, alignment = b.bytes * panels.get(b.name, 1), alignment_of(b)
                sides = 1 if b.name in ringed else self.kernel.gpu.sides
                if sides > 1:
                    size = layout.own[b.name] = -(-size // alignment) * alignment
                layout.offsets[b.name] = self._place(b.name, size * sides, alignment)
        layout.offsets |= {name: layout.offsets[s.of] for name, s in layout.successors.items()}
        for b in shared:
            if b.inside:
                layout.offsets[b.name] = layout.offsets[b.inside]
                layout.own |= {b.name: layout.own[b.inside]} if b.inside in layout.own else {}

    def _exchange(self, s: Compute) -> None:
        """Where warps leave the parts of sums that they join."""
        threads = self.kernel.gpu.shape
        sharing = sharing_of(s, threads)
        if not joins_warps(sharing):
            return
        wide = any(value_kind(self.buffers[a.tensor].dtype) == "f64" for a in accesses_of(s)) or _casts_to_f64(s)
        shape = (threads.warps, exchange_lanes(sharing, threads))
        points = plan_of(s, self.buffers).points
        dealt = dealing(points, sharing, threads)
        size = max(exchange_bytes(points, shape, wide), dealt.bytes if dealt is not None else 0)
        if self.kernel.gpu.sides > 1:
            result = s.target.tensor.partition(".")[0]
            raise Unsupported(
                f"the warps of each side would join '{result}'", self.kernel.span,
                f"leave `pingpong` out, or compute {result} in a kernel of its own",
            )  # fmt: skip
        self.layout.exchange[id(s)] = self._place(f"joining warps of {s.target.tensor}", size)


def alignment_of(tile: Buffer) -> int:
    """Bytes that the tile's address must be a multiple of."""
    return SWIZZLE_PERIOD if isinstance(tile.layout, Swizzled) else ALIGNMENT


def _casts_to_f64(c: Compute) -> bool:
    return DType.F64.value in str(c.value)
