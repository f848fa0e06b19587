"""cp.async.bulk.tensor, cp.reduce.async.bulk.tensor and tensor prefetches in tile mode (PTX ISA 9.7.9.27.1, 5.5).

A box of the tensor, described by a tensor map and the coordinates of its first element, moves between global
memory and a dense box in shared memory, whose 16-byte chunks may be swizzled by their address:
chunk ^= line (of 128 bytes) mod 8, 4 or 2. A box must begin at a multiple of 16 bytes in memory: Hopper
takes any other first coordinate for an illegal instruction, in loads, stores and reductions, inside the tensor or
before it, which the PTX ISA does not say (measured; also triton-lang/triton #7385 and tile-ai/tilelang #2527). A box
that lies wholly outside is legal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.async_global import piece
from tcomp.runtime.vgpu.bulk import BulkStores, load
from tcomp.runtime.vgpu.bulk_operands import Place, Target, combiner, flush, per_lane
from tcomp.runtime.vgpu.decoder import Decoder, Run
from tcomp.runtime.vgpu.errors import UnknownInstruction
from tcomp.runtime.vgpu.lanes import Array, Sel, ids, indices
from tcomp.runtime.vgpu.ptx import Addr, Instr, Vec
from tcomp.runtime.vgpu.tensor_map import ALIGN, SIZE, TYPES, TensorMap, decode

REDUCTIONS = ("add", "min", "max", "inc", "dec", "and", "or", "xor")
_LINES = {0: 0, 1: 1, 2: 3, 3: 7}  # swizzle mode -> which bits of the line number move a chunk
_NAN = {2: np.uint16(0x7FFF), 4: np.uint32(0x7FFFFFFF), 8: np.uint64(0x7FFFFFFFFFFFFFFF)}
ALIGNMENT = 128
BEGINS = 16
"""bytes of which the place in memory where a box begins is a multiple"""
BLANK = np.zeros(0, np.int64)
KEPT = 128
"""boxes whose bytes an instruction remembers"""


@dataclass
class Box:
    """`inside`: which bytes of the box are in the tensor; `offsets`: where those are, from the tensor's address."""

    size: int
    inside: Array
    offsets: Array


def box_of(t: TensorMap, coordinates: list[int]) -> Box:
    """The bytes of the box at these coordinates, in the order in which they lie in shared memory, unswizzled."""
    e, counts = t.element_bytes, t.counts
    rows, ok = np.zeros(1, np.int64), np.ones(1, bool)
    for n in range(1, t.rank):
        at = coordinates[n] + np.arange(counts[n]) * t.element_strides[n]
        rows = (at[:, None] * t.strides[n - 1] + rows[None, :]).reshape(-1)
        ok = (((at >= 0) & (at < t.dims[n]))[:, None] & ok[None, :]).reshape(-1)
    first = coordinates[0] + np.arange(counts[0])
    inner = np.repeat((first >= 0) & (first < t.dims[0]), e)
    columns = (first[:, None] * e + np.arange(e)[None, :]).reshape(-1)
    inside = (ok[:, None] & inner[None, :]).reshape(-1)
    offsets = (rows[:, None] + columns[None, :]).reshape(-1)[inside]
    return Box(len(inside), inside, offsets)


def swizzled(offset: Array, mode: int) -> Array:
    """Addresses in a block's shared memory -> where the swizzle of this mode puts those bytes."""
    moved: Array = offset ^ ((offset >> 7 & _LINES[mode]) << 4)
    return moved


class TensorOperand:
    """`[map, {coordinates}]`: the map that each lane names, and where its box begins."""

    def __init__(self, d: Decoder, i: Instr, o: Addr) -> None:
        self.m, self.i = d.m, i
        self.access = Access(d, i, o, "generic", ALIGN, 1, False)
        self.rank = int(next(p for p in i.parts if p in ("1d", "2d", "3d", "4d", "5d"))[0])
        if any(p.startswith(("im2col", "tile::")) for p in i.parts):
            raise d.unknown(i, "of the access modes only .tile is executed")
        vector = o.coords[0]
        items = vector.items if isinstance(vector, Vec) else (vector,)
        if len(items) != self.rank:
            raise d.unknown(i, f"{self.rank} coordinates are needed, {len(items)} given")
        self.coordinates = [d.source(c, "s32") for c in items]
        self.known: dict[bytes, TensorMap | None] = {}
        self.found: dict[tuple[int, ...], Box] = {}  # by map and coordinates: several blocks come for each

    def maps(self, sel: Sel) -> dict[int, tuple[TensorMap, list[int]]]:
        """Position in `sel` -> its map and coordinates; lanes whose map cannot be used are reported and left out."""
        lanes = ids(sel)
        self.access.current = sel
        at_of = np.stack([per_lane(c, sel) for c in self.coordinates], axis=1)
        out = {}
        for p in self.access.parts(sel):
            at = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
            for k, start in zip(at.tolist(), p.start.tolist(), strict=True):
                t = self._map(int(lanes[k]), p.segment.space, p.segment.data[start : start + SIZE].tobytes())
                if t is not None and self._aligned(int(lanes[k]), t, int(at_of[k][0])):
                    out[k] = (t, at_of[k].tolist())
        return out

    def _aligned(self, lane: int, t: TensorMap, first: int) -> bool:
        """Does a box with this innermost coordinate begin where one may? Reported where not."""
        if first * t.element_bytes % BEGINS == 0:
            return True
        text = (f"the box begins at element {first} of {t.element_bytes} bytes along dimension 0: "
                f"it must be at a multiple of {BEGINS} bytes")  # fmt: skip
        self.m.finding("unaligned box", self.i, np.array([lane]), text)
        return False

    def boxes(self, sel: Sel) -> tuple[dict[int, tuple[TensorMap, list[int], Box]], Array, Array]:
        """Position in `sel` -> its map, coordinates and box; the bytes of each lane's box; the positions in order."""
        found = {k: (t, at, self._box(t, at)) for k, (t, at) in self.maps(sel).items()}
        sizes = np.zeros(len(ids(sel)), np.int64)
        for k, (_, _, box) in found.items():
            sizes[k] = box.size
        return found, sizes, np.array(sorted(found), np.int64)

    def _box(self, t: TensorMap, coordinates: list[int]) -> Box:
        key = (id(t), *coordinates)  # (maps are kept)
        if key not in self.found:
            if len(self.found) >= KEPT:
                self.found.clear()
            self.found[key] = box_of(t, coordinates)
        return self.found[key]

    def _map(self, lane: int, space: str, raw: bytes) -> TensorMap | None:
        if raw not in self.known:
            self.known[raw] = decode(raw) if len(raw) == SIZE else None
        t, text = self.known[raw], ""
        if t is not None:
            text = t.problem()
        if t is None:
            text = f"the {SIZE} bytes in {space} memory are no tensor map"
        elif t.rank != self.rank:
            text = f"a tensor map of rank {t.rank} in an instruction for {self.rank}"
        if text:
            self.m.finding("bad tensor map", self.i, np.array([lane]), text)
            return None
        assert t is not None
        reason = t.unmodelled()
        if reason:
            raise UnknownInstruction(self.i.opcode, self.i.line, f"a tensor map with {reason} is not modelled")
        return t


def tensor(d: Decoder, i: Instr) -> Run:
    if "prefetch" in i.parts:
        return prefetch(d, i)
    shared = next(n for n, p in enumerate(i.parts) if p.startswith("shared::"))
    return store(d, i) if i.parts.index("global") < shared else get(d, i)


def get(d: Decoder, i: Instr) -> Run:
    m = d.m
    to, what, mbar = i.operands[:3]
    assert isinstance(what, Addr)
    operand = TensorOperand(d, i, what)
    target = Target(d, i, to, mbar, i.operands[3] if "multicast::cluster" in i.parts else None, ALIGNMENT)

    def run(sel: Sel) -> None:
        boxes, sizes, lanes = operand.boxes(sel)
        for k, lane, targets in target.of(sel, sizes, lanes):
            t, _, box = boxes[k]
            source = piece(m, i, lane, t.address, box.offsets)
            chunks = np.arange(0, box.size, 16)
            places = []
            for start, barrier in targets:
                base = start // m.shared_stride * m.shared_stride
                places.append((base + swizzled(start - base + chunks, t.swizzle), barrier))
            place = indices(box.inside) if source is not None else BLANK

            def arrange(data: Array, t: TensorMap = t, outside: Array = ~box.inside) -> Array:
                return filled(t, data, outside)

            load(m, i, lane, source, place, places, box.size, arrange)

    return run


def filled(t: TensorMap, data: Array, outside: Array) -> Array:
    """Out-of-bounds elements get the map's fill; f32 types that flush or round do so."""
    e = t.element_bytes
    if t.oob_fill:
        data.view(f"u{e}")[outside[::e]] = _NAN[e]
    name = TYPES[t.type]
    if name in ("f32_ftz", "tf32_ftz"):
        data = flush(data.view(np.float32)).view(np.uint8)
    if name in ("tf32", "tf32_ftz"):
        bits = data.view(np.uint32)
        number = bits & np.uint32(0x7F800000) != np.uint32(0x7F800000)
        rounded = bits + np.uint32(0xFFF) + (bits >> np.uint32(13) & np.uint32(1)) & np.uint32(0xFFFFE000)
        data = np.where(number, rounded, bits).astype(np.uint32).view(np.uint8)
    return data


def store(d: Decoder, i: Instr) -> Run:
    m = d.m
    what, source = i.operands[:2]
    assert isinstance(what, Addr)
    operand, place, stores = TensorOperand(d, i, what), Place(d, i, source, False, ALIGNMENT), BulkStores.of(d.m)
    reduction = next((p for p in i.parts if p in REDUCTIONS), None) if i.parts[1] == "reduce" else None

    def run(sel: Sel) -> None:
        boxes, sizes, lanes = operand.boxes(sel)
        for k, lane, start in place.of(sel, sizes, lanes):
            t, at, box = boxes[k]
            if min(at) < 0:
                m.finding("out of bounds global", i, np.array([lane]),
                          f"a tensor store at the negative coordinates {tuple(at)}")  # fmt: skip
                continue
            to = piece(m, i, lane, t.address, box.offsets)
            if to is None:
                continue
            base = start // m.shared_stride * m.shared_stride
            bytes_ = start - base + indices(box.inside)
            combine = None
            if reduction is not None:
                name = TYPES[t.type].split("_")[0]
                name = name.replace("u", "b").replace("s", "b") if reduction in ("and", "or", "xor") else name
                combine = combiner(d, i, reduction, "f32" if name == "tf32" else name)
            stores.begin(i, lane, base + swizzled(bytes_, t.swizzle), to, combine)
            m.traffic("shared async").bytes_read += len(bytes_)
            m.traffic("global async").bytes_written += len(bytes_)

    return run


def prefetch(d: Decoder, i: Instr) -> Run:
    what = i.operands[0]
    assert isinstance(what, Addr)
    operand = TensorOperand(d, i, what)

    def run(sel: Sel) -> None:
        operand.maps(sel)

    return run
