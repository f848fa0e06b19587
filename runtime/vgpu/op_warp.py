"""Warp instructions: shfl, vote, match, redux, elect, activemask, bar.warp (PTX ISA 9.7.9.6, 9.7.13).

Each works for the lanes whose whole member mask has come here; the others wait, which is what the closure's
result says (the lanes that go on, or None for all).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, changes, every, ids, one_each, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Instr, Pair
from tcomp.runtime.vgpu.types import scalar

FULL = np.uint32(0xFFFFFFFF)


def complete(m: Machine, i: Instr, sel: Sel, mask: Source) -> tuple[Array, Any]:
    """(lanes that can go on, the masks of those); reports a lane that is not in its own mask."""
    lanes = ids(sel)
    members = one_each(mask(sel), len(lanes))
    if sel.__class__ is slice and not sel.start % 32 and not sel.stop % 32 and every(members == FULL):
        return lanes, members
    here = np.zeros(m.lanes, np.uint8)
    here[lanes] = 1
    present = np.packbits(here, bitorder="little").view(np.uint32)
    living = np.packbits(m.alive, bitorder="little").view(np.uint32)
    own = members >> m.lane_in_warp[lanes] & np.uint32(1) == 0
    if some(own):
        m.finding("lane outside its member mask", i, lanes[own], "the executing lane is not in the member mask")
    need = members & living[lanes >> 5]
    ready = need & ~present[lanes >> 5] == 0
    return lanes[ready], members[ready]


def _sync(d: Decoder, i: Instr, mask: Source, act: Callable[[Sel, Array, Array], None]) -> Run:
    m = d.m

    def run(sel: Sel) -> Any:
        lanes, members = complete(m, i, sel, mask)
        if not len(lanes):
            return lanes
        all_of_them = len(lanes) == len(ids(sel))
        act(sel if all_of_them else lanes, lanes, members)
        return None if all_of_them else lanes

    return run


@instruction("shfl")
def shuffle(d: Decoder, i: Instr) -> Run:
    m, mode = d.m, next(p for p in i.parts if p in ("up", "down", "bfly", "idx"))
    to = i.operands[0]
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    put, put2 = d.put(first, "b32"), d.put(second, "pred") if second is not None else None
    a, b, c = (d.source(o, "u32") for o in i.operands[1:4])
    mask = d.source(i.operands[4], "u32")
    buffer = np.zeros(m.lanes, np.uint32)

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        lane = m.lane_in_warp[sel].astype(np.int64)
        by, bound = (np.asarray(x(sel)).astype(np.int64) for x in (b, c))
        by, clamp, segment = by & 31, bound & 31, bound >> 8 & 31
        top = (lane & segment) | (clamp & ~segment)
        low = lane & segment
        if mode == "up":
            source = lane - by
            valid = source >= top
        elif mode == "down":
            source = lane + by
            valid = source <= top
        elif mode == "bfly":
            source = lane ^ by
            valid = source <= top
        else:
            source = low | (by & ~segment)
            valid = source <= top
        source = np.where(valid, source, lane)
        buffer[sel] = a(sel)
        if m.options.checks and len(lanes) % 32:
            outside = members >> source.astype(np.uint32) & np.uint32(1) == 0
            gone = ~m.alive[(lanes & ~31) + source]
            bad = outside | gone
            if some(bad):
                m.finding("shuffle from an absent lane", i, lanes[bad], "the source lane is not taking part")
        put(sel, buffer[(lanes & ~31) + source])
        if put2 is not None:
            put2(sel, valid)

    return _sync(d, i, mask, act)


def _ballot(m: Machine, lanes: Array, members: Array, p: Any) -> Array:
    """For each lane, the bits of the lanes of its mask where p holds."""
    bits = np.zeros(m.lanes, np.uint8)
    bits[lanes] = p
    found: Array = np.packbits(bits, bitorder="little").view(np.uint32)[lanes >> 5] & members
    return found


@instruction("vote")
def vote(d: Decoder, i: Instr) -> Run:
    m, mode = d.m, i.parts[2]
    ballot = mode == "ballot"
    put = d.put(i.operands[0], "b32" if ballot else "pred")
    p, mask = d.source(i.operands[1], "pred"), d.source(i.operands[2], "u32")

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        yes = _ballot(m, lanes, members, p(sel))
        if ballot:
            put(sel, yes)
        elif mode == "any":
            put(sel, yes != 0)
        else:
            all_ = yes == _ballot(m, lanes, members, True)
            put(sel, all_ if mode == "all" else all_ | (yes == 0))

    return _sync(d, i, mask, act)


@instruction("activemask")
def active_mask(d: Decoder, i: Instr) -> Run:
    m, put = d.m, d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        lanes = ids(sel)
        put(sel, _ballot(m, lanes, np.full(len(lanes), FULL), True))

    return run


@instruction("match")
def match(d: Decoder, i: Instr) -> Run:
    m, every = d.m, "all" in i.parts
    t = scalar(i.parts[-1], i.line)
    to = i.operands[0]
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    put, put2 = d.put(first, "b32"), d.put(second, "pred") if second is not None else None
    a, mask = d.source(i.operands[1], t), d.source(i.operands[2], "u32")

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        values = np.zeros(m.lanes, t.dtype)
        values[lanes] = a(sel)
        present = np.zeros(m.lanes, bool)
        present[lanes] = True
        base, r = lanes & ~31, np.zeros(len(lanes), np.uint32)
        for n in range(32):
            same = present[base + n] & (values[base + n] == values[lanes])
            r |= np.where(same, np.uint32(1 << n), np.uint32(0))
        r &= members
        if every:
            whole = r == _ballot(m, lanes, members, True)
            r = np.where(whole, r, np.uint32(0))
            if put2 is not None:
                put2(sel, whole)
        put(sel, r)

    return _sync(d, i, mask, act)


@instruction("redux")
def reduce_warp(d: Decoder, i: Instr) -> Run:
    _m, name = d.m, i.parts[2]
    t = scalar(i.parts[-1], i.line)
    if t.kind not in "usb":
        raise d.unknown(i)
    f = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
         "xor": np.bitwise_xor}[name]  # fmt: skip
    put, a, mask = d.put(i.operands[0], t), d.source(i.operands[1], t), d.source(i.operands[2], "u32")

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        value = one_each(a(sel), len(lanes))
        group = (lanes >> 5) << 32 | members.astype(np.int64)
        unique, inverse = np.unique(group, return_inverse=True)
        start = {"min": np.iinfo(t.dtype).max, "max": np.iinfo(t.dtype).min, "and": -1}.get(name, 0)
        total = np.array([start] * len(unique)).astype(t.dtype) if start != -1 else ~np.zeros(len(unique), t.dtype)
        f.at(total, inverse, value)
        put(sel, total[inverse])

    return _sync(d, i, mask, act)


@instruction("elect")
def elect(d: Decoder, i: Instr) -> Run:
    m, to = d.m, i.operands[0]
    assert isinstance(to, Pair)
    put, put2 = d.put(to.first, "b32"), d.put(to.second, "pred")
    mask = d.source(i.operands[1], "u32")

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        taking = _ballot(m, lanes, members, True)
        leader = np.bitwise_count((taking & (~taking + np.uint32(1))) - np.uint32(1)).astype(np.uint32)
        put(sel, leader)
        put2(sel, m.lane_in_warp[lanes] == leader)

    return _sync(d, i, mask, act)


@instruction("bar")
def warp_barrier(d: Decoder, i: Instr) -> Run:
    """bar.warp.sync: orders the memory accesses of the warp's lanes."""
    m = d.m
    if "warp" not in i.parts:
        raise d.unknown(i)

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        first = lanes[changes(lanes >> 5)]
        m.order.warp_sync(m.team[first], m.place[first], m.now)
        m.now += 1

    return _sync(d, i, d.source(i.operands[0], "u32"), act)
