"""Operands of bulk and tensor copies: where in shared memory, which mbarrier, which blocks, which reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import formats
from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.bulk import Combine
from tcomp.runtime.vgpu.decoder import Decoder, Source
from tcomp.runtime.vgpu.lanes import Array, Sel, ids, one_each
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.mbarrier import KIND, Mbarriers
from tcomp.runtime.vgpu.ptx import Addr, Instr, Operand
from tcomp.runtime.vgpu.types import SCALARS


def per_lane(source: Source, sel: Sel) -> Array:
    """One integer for each lane of `sel`."""
    found: Array = one_each(source(sel), len(ids(sel))).astype(np.int64)
    return found


class Place:
    """A shared-memory operand: for each lane the place in the wave's shared segment where its bytes begin."""

    def __init__(self, d: Decoder, i: Instr, o: Operand, cluster_wide: bool, align: int = 16) -> None:
        self.m, self.i, self.align = d.m, i, align
        self.access = Access(d, i, o, "shared", 16, 1, True)
        self.access.cluster_wide = cluster_wide

    def of(self, sel: Sel, size: Array, ok: Array) -> Iterator[tuple[int, int, int]]:
        """(position, lane, place) of those positions `ok` whose `size` bytes are in bounds and aligned."""
        m = self.m
        if not len(ok):
            return
        lanes = ids(sel)
        self.access.current = sel
        wanted = set(ok.tolist())
        for p in self.access.parts(sel):
            at = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
            for k, start in zip(at.tolist(), p.start.tolist(), strict=True):
                if k not in wanted:
                    continue
                offset, lane = start % m.shared_stride, int(lanes[k])
                if p.segment is not m.shared or offset + int(size[k]) > m.shared_size:
                    m.finding("out of bounds shared", self.i, np.array([lane]), f"a copy of {int(size[k])} bytes runs "
                              f"past the {m.shared_size} bytes of shared memory", offset)  # fmt: skip
                elif offset % self.align:
                    text = f"the shared address of a tensor copy must be a multiple of {self.align}"
                    m.finding("misaligned", self.i, np.array([lane]), text, offset)
                else:
                    yield k, lane, start


class Target:
    """The destination of a load: places and mbarriers, in one block or in all that a multicast mask names."""

    def __init__(self, d: Decoder, i: Instr, to: Operand, mbar: Operand, mask: Operand | None, align: int = 16) -> None:
        wide = "shared::cluster" in i.parts
        self.m, self.i = d.m, i
        self.place = Place(d, i, to, wide, align)
        self.barriers = Mbarriers.of(d.m)
        assert isinstance(mbar, Addr)
        self.mbar = Access(d, i, mbar, "shared", 8, 1, True)
        self.mbar.cluster_wide = wide
        self.mask = d.source(mask, "u16") if mask is not None else None
        self.paired = "cta_group::2" in i.parts
        if self.paired and mask is not None:
            raise d.unknown(i, "multicast by pairs of blocks (.cta_group::2) is not executed")

    def of(self, sel: Sel, size: Array, ok: Array) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """(position, lane, its targets: place in the shared segment and mbarrier, -1 where there is none)."""
        m, lanes = self.m, ids(sel)
        found = np.full(len(lanes), -1, np.int64)
        self.mbar.current = sel
        for p in self.mbar.parts(sel):
            at = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
            if p.segment is m.shared:
                self.mbar.race(p, "atomic", lanes[at])
                found[at] = p.start
        masks = per_lane(self.mask, sel) if self.mask is not None else None
        alive = m.running()
        for k, lane, start in self.place.of(sel, size, ok):
            if found[k] < 0:
                continue
            if masks is None:
                receives, told = start // m.shared_stride, int(found[k]) // m.shared_stride
                if told != receives and not (self.paired and told == receives ^ 1):
                    which = "in neither block of the pair" if self.paired else "not in the block"
                    m.finding(KIND, self.i, np.array([lane]), f"the mbarrier is {which} that receives the copy")
                yield k, lane, [(start, self._object(lane, int(found[k])))]
                continue
            yield k, lane, list(self._each(lane, start, int(found[k]), int(masks[k]), alive))

    def _each(self, lane: int, start: int, barrier: int, mask: int, alive: Array) -> Iterator[tuple[int, int]]:
        stride = self.m.shared_stride
        for base in multicast(self.m, self.i, lane, mask, alive, "bulk copy misuse"):
            self.mbar.reaches(base + barrier % stride, lane)
            yield base + start % stride, self._object(lane, base + barrier % stride)

    def _object(self, lane: int, start: int) -> int:
        at, objects = self.barriers.find(self.i, np.array([lane]), np.array([start]))
        return int(objects[0]) if len(at) else -1


def multicast(m: Machine, i: Instr, lane: int, mask: int, alive: Array, kind: str) -> Iterator[int]:
    """Where the shared memory of each block begins that a lane's multicast mask names; a finding of that kind for
    a mask that names none or too many, and one for a block that has ended."""
    if mask == 0 or mask >> m.ranks:
        m.finding(kind, i, np.array([lane]), f"a multicast mask of {mask:#x} in a cluster of {m.ranks} blocks")
    for rank in range(m.ranks):
        if not mask >> rank & 1:
            continue
        slot = int(m.team[lane]) * m.ranks + rank
        if not alive[slot]:
            m.finding("shared memory of an exited block", i, np.array([lane]),
                      f"block rank {rank} of the cluster has ended")  # fmt: skip
            continue
        yield slot * m.shared_stride


_INTEGERS: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, a: np.where(old >= a, np.zeros_like(old), old + old.dtype.type(1)),
    "dec": lambda old, a: np.where((old == 0) | (old > a), a, old - old.dtype.type(1)),
}  # fmt: skip
_ALLOWED = {
    "add": ("u32", "s32", "u64", "f32", "f64", "f16", "bf16"), "min": ("u32", "s32", "u64", "s64", "f16", "bf16"),
    "max": ("u32", "s32", "u64", "s64", "f16", "bf16"), "inc": ("u32",), "dec": ("u32",),
    "and": ("b32", "b64"), "or": ("b32", "b64"), "xor": ("b32", "b64"),
}  # fmt: skip


def combiner(d: Decoder, i: Instr, name: str, type_name: str) -> Combine:
    """Element by element: the destination's bytes and the source's -> the destination's new bytes."""
    if type_name not in _ALLOWED[name]:
        raise d.unknown(i, f"a reduction .{name} of .{type_name} does not exist")
    if type_name in ("f16", "bf16"):
        return _half(name, type_name)
    dtype: Any = SCALARS[type_name].dtype
    if type_name == "f32":
        return _single
    f = _INTEGERS[name]

    def combine(old: Array, new: Array) -> Array:
        result: Array = np.ascontiguousarray(f(old.view(dtype), new.view(dtype)).astype(dtype)).view(np.uint8)
        return result

    return combine


def _single(old: Array, new: Array) -> Array:
    """f32 addition with subnormals flushed, as cp.reduce.async.bulk does it."""
    with np.errstate(all="ignore"):
        total = flush(flush(old.view(np.float32)) + flush(new.view(np.float32)))
    result: Array = np.ascontiguousarray(total).view(np.uint8)
    return result


def flush(x: Array) -> Array:
    """Subnormal f32 -> zero of the same sign."""
    tiny = np.abs(x) < np.float32(1.1754943508222875e-38)
    found: Array = np.where(tiny, np.copysign(np.float32(0), x), x).astype(np.float32)
    return found


def _half(name: str, kind: str) -> Combine:
    def combine(old: Array, new: Array) -> Array:
        a, b = (formats.from16(np.ascontiguousarray(x).view(np.uint16), kind) for x in (old, new))
        with np.errstate(all="ignore"):
            r = a + b if name == "add" else np.fmin(a, b) if name == "min" else np.fmax(a, b)
        result: Array = np.ascontiguousarray(formats.to16(r, kind)).view(np.uint8)
        return result

    return combine
