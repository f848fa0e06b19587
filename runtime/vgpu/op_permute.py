"""Byte permutes, bit tables and masks (PTX ISA 9.7.1.17 to .22, 9.7.8.6, 9.7.9.7): fns, prmt, lop3, szext, bmsk."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Sel
from tcomp.runtime.vgpu.ptx import Imm, Instr, Pair
from tcomp.runtime.vgpu.types import scalar


@instruction("fns")
def nth_set(d: Decoder, i: Instr) -> Run:
    """The offset-th set bit of the mask from `base` on: upward, or downward when negative. None: all ones."""
    if i.parts[1:] != ["b32"]:
        raise d.unknown(i)
    mask, base, offset = d.source(i.operands[1], "u32"), d.source(i.operands[2], "u32"), d.source(i.operands[3], "s32")
    put = d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        x, start, n = np.broadcast_arrays(np.atleast_1d(mask(sel)), base(sel), offset(sel))
        place = np.arange(32)[None, :]
        bits = (x[:, None] >> place.astype(np.uint32) & np.uint32(1)) != 0
        first = start[:, None].astype(np.int64)
        up = bits & (place >= first)
        down = (bits & (place <= first))[:, ::-1]
        count = np.abs(n.astype(np.int64))[:, None]
        hit_up, hit_down = (c & (np.cumsum(c, axis=1) == count) for c in (up, down))
        at_up = np.where(hit_up.any(axis=1), hit_up.argmax(axis=1), -1)
        at_down = np.where(hit_down.any(axis=1), 31 - hit_down.argmax(axis=1), -1)
        here = np.where((bits & (place == first)).any(axis=1), start.astype(np.int64), -1)
        found = np.where(n == 0, here, np.where(n > 0, at_up, at_down))
        put(sel, found.astype(np.int32).view(np.uint32))

    return run


# prmt modes: the bytes taken for each value of the two selecting bits, lowest result byte first
_PERMUTES = {
    "f4e": [[n + k for k in range(4)] for n in range(4)],
    "b4e": [[n - k & 7 for k in range(4)] for n in range(4)],
    "rc8": [[n] * 4 for n in range(4)],
    "ecl": [[max(n, k) for k in range(4)] for n in range(4)],
    "ecr": [[min(n, k) for k in range(4)] for n in range(4)],
    "rc16": [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]],
}


@instruction("prmt")
def permute(d: Decoder, i: Instr) -> Run:
    """Four of the eight bytes of a and b; the general form may spread a byte's sign instead."""
    modes = [p for p in i.parts[1:] if p != "b32"]
    if len(modes) > 1 or (modes and modes[0] not in _PERMUTES):
        raise d.unknown(i)
    table = np.array(_PERMUTES[modes[0]], np.uint64) if modes else None
    a, b, c = (d.source(o, "b32") for o in i.operands[1:4])
    put = d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        both = (np.asarray(b(sel)).astype(np.uint64) << np.uint64(32)) | a(sel)
        pick = np.asarray(c(sel))
        r: Any = np.uint32(0)
        for n in range(4):
            s = pick >> np.uint32(4 * n)
            which = (s & np.uint32(7)).astype(np.uint64) if table is None else table[pick & np.uint32(3), n]
            byte = (both >> (which * np.uint64(8)) & np.uint64(255)).astype(np.uint32)
            if table is None:
                sign = np.where(byte >= 128, np.uint32(255), np.uint32(0))
                byte = np.where(s & np.uint32(8) != 0, sign, byte)
            r = r | (byte << np.uint32(8 * n))
        put(sel, r)

    return run


@instruction("lop3")
def lookup(d: Decoder, i: Instr) -> Run:
    """Any function of three bits, by its table; `.and` and `.or` also fold (result != 0) with a predicate."""
    fold = next((p for p in i.parts[1:] if p in ("and", "or")), None)
    if [p for p in i.parts[1:] if p != fold] != ["b32"]:
        raise d.unknown(i)
    to = i.operands[0]
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    if (fold is None) != (second is None):
        raise d.unknown(i, "d|p goes with .and or .or")
    a, b, c = (d.source(o, "b32") for o in i.operands[1:4])
    chosen = i.operands[4]
    if not isinstance(chosen, Imm):
        raise d.unknown(i, "the table is an immediate")
    table = int(chosen.value)
    put = d.put(first, "b32")
    put_p = d.put(second, "pred") if second is not None else None
    q = d.source(i.operands[5], "pred") if fold else None

    def run(sel: Sel) -> None:
        x, y, z = a(sel), b(sel), c(sel)
        r = np.zeros_like(np.atleast_1d(x | y | z))
        for n in range(8):
            if table >> n & 1:
                r |= (x if n & 4 else ~x) & (y if n & 2 else ~y) & (z if n & 1 else ~z)
        if put_p is not None and q is not None:
            p = (r != 0) & q(sel) if fold == "and" else (r != 0) | q(sel)
            put_p(sel, p)
        put(sel, r)

    return run


@instruction("szext")
def sign_extend(d: Decoder, i: Instr) -> Run:
    """Keeps the low b bits of a, extended by sign (s32) or zeros (u32) to 32."""
    t, clamp = scalar(i.parts[-1], i.line), "clamp" in i.parts
    if t.bits != 32 or i.parts[1] not in ("clamp", "wrap"):
        raise d.unknown(i)
    a, b, put = d.source(i.operands[1], "u32"), d.source(i.operands[2], "u32"), d.put(i.operands[0], "u32")

    def run(sel: Sel) -> None:
        n = np.asarray(b(sel)).astype(np.uint64)
        n = np.minimum(n, np.uint64(32)) if clamp else n & np.uint64(31)
        mask = (np.uint64(1) << n) - np.uint64(1)
        r = np.asarray(a(sel)).astype(np.uint64) & mask
        if t.signed:
            negative = (n > 0) & (r >> np.maximum(n, np.uint64(1)) - np.uint64(1) & np.uint64(1) != 0)
            r = np.where(negative, r | ~mask, r)
        put(sel, r.astype(np.uint32))

    return run


@instruction("bmsk")
def bit_mask(d: Decoder, i: Instr) -> Run:
    a, b, put = d.source(i.operands[1], "u32"), d.source(i.operands[2], "u32"), d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        clamp = "clamp" in i.parts
        p, n = (np.asarray(x(sel)).astype(np.uint64) for x in (a, b))
        p, n = (np.minimum(x, np.uint64(32)) if clamp else x & np.uint64(31) for x in (p, n))
        put(sel, (((np.uint64(1) << n) - np.uint64(1)) << p).astype(np.uint32))

    return run
