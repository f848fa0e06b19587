"""Bits (PTX ISA 9.7.1 and 9.7.8): logic, shifts, fields, counts, mov and packing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import wide
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, some
from tcomp.runtime.vgpu.ptx import Instr, Operand, Reg, Vec
from tcomp.runtime.vgpu.types import Scalar, scalar

_LOGIC: dict[str, Any] = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


@instruction("and", "or", "xor")
def logic(d: Decoder, i: Instr) -> Run:
    return d.binary(i, scalar(i.parts[-1], i.line), _LOGIC[i.parts[0]])


@instruction("not", "cnot")
def inverse(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, put = d.source(i.operands[1], t), d.put(i.operands[0], t)
    if i.parts[0] == "cnot":
        return lambda sel: put(sel, np.equal(a(sel), 0).astype(t.dtype))
    return lambda sel: put(sel, ~a(sel))


@instruction("mov")
def move(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    to, source = i.operands
    if t.name == "b128":
        return move_wide(d, i, to, source)
    if isinstance(to, Vec):
        return split(d, t, to, source)
    if isinstance(source, Vec):
        return join(d, t, to, source)
    if isinstance(source, Reg) and source.name in d.m.flow.tracked and isinstance(to, Reg):
        return move_tracked(d, t, to, source)
    a, put = d.source(source, t), d.put(to, t)
    return lambda sel: put(sel, a(sel))


def move_wide(d: Decoder, i: Instr, to: Operand, source: Operand) -> Run:
    """mov.b128 between two registers, or to and from two of 64 bits."""
    if any(isinstance(o, Vec) and len(o.items) != 2 for o in (to, source)):
        raise d.unknown(i, "a .b128 is two .b64")
    gets = [d.source(o, "b64") for o in source.items] if isinstance(source, Vec) else wide.sources(d, source)
    puts = [d.put(o, "b64") for o in to.items] if isinstance(to, Vec) else wide.puts(d, to)

    def run(sel: Sel) -> None:
        values = [np.array(get(sel)) for get in gets]
        for put, value in zip(puts, values, strict=True):
            put(sel, value)

    return run


def move_tracked(d: Decoder, t: Scalar, to: Reg, source: Reg) -> Run:
    """Copying an unwritten register is no read of it: the copy is as unwritten as the original."""
    if to.name not in d.m.flow.tracked:
        a, put = d.source(source, t), d.put(to, t)
        return lambda sel: put(sel, a(sel))
    a, put = d.source(source, t, plain_move=True), d.put(to, t)
    old, new = d.m.defined[source.name], d.m.defined[to.name]

    def run(sel: Sel) -> None:
        put(sel, a(sel))
        new[sel] = old[sel]

    return run


def split(d: Decoder, t: Scalar, to: Vec, source: Any) -> Run:
    part = scalar(f"b{t.bits // len(to.items)}")
    a, puts = d.source(source, scalar(f"b{t.bits}")), [d.put(o, part) for o in to.items]

    def run(sel: Sel) -> None:
        value = a(sel)
        for n, put in enumerate(puts):
            put(sel, (value >> value.dtype.type(n * part.bits)).astype(part.dtype))

    return run


def join(d: Decoder, t: Scalar, to: Any, source: Vec) -> Run:
    part, whole = scalar(f"b{t.bits // len(source.items)}"), scalar(f"b{t.bits}")
    parts, put = [d.source(o, part) for o in source.items], d.put(to, whole)

    def run(sel: Sel) -> None:
        value: Any = whole.dtype.type(0)
        for n, a in enumerate(parts):
            value = value | (a(sel).astype(whole.dtype) << whole.dtype.type(n * part.bits))
        put(sel, value)

    return run


@instruction("shl", "shr")
def shift(d: Decoder, i: Instr) -> Run:
    """Shift amounts above the width are clamped to it."""
    t = scalar(i.parts[-1], i.line)
    a, b, put = d.source(i.operands[1], t), d.source(i.operands[2], "u32"), d.put(i.operands[0], t)
    bits, kind = t.bits, t.dtype.type
    left = i.parts[0] == "shl"

    def run(sel: Sel) -> None:
        value, by = a(sel), np.asarray(b(sel))
        over = by >= bits
        if not some(over):
            put(sel, value << by.astype(t.dtype) if left else value >> by.astype(t.dtype))
            return
        amount = np.minimum(by, bits - 1).astype(t.dtype)
        if left or not t.signed:
            r = value << amount if left else value >> amount
            put(sel, np.where(over, kind(0), r))
        else:
            put(sel, value >> amount)

    return run


@instruction("shf")
def funnel(d: Decoder, i: Instr) -> Run:
    left, wrap = "l" in i.parts, "wrap" in i.parts
    lo, hi, by = (d.source(o, "u32") for o in i.operands[1:4])
    put = d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        both = (np.asarray(hi(sel)).astype(np.uint64) << np.uint64(32)) | lo(sel)
        n = by(sel)
        amount = (n & np.uint32(31) if wrap else np.minimum(n, np.uint32(32))).astype(np.uint64)
        r = both << amount >> np.uint64(32) if left else both >> amount
        put(sel, r.astype(np.uint32))

    return run


@instruction("bfe")
def extract(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, pos, length = d.source(i.operands[1], t), d.source(i.operands[2], "u32"), d.source(i.operands[3], "u32")
    put, bits = d.put(i.operands[0], t), t.bits

    def run(sel: Sel) -> None:
        value = np.atleast_1d(a(sel))
        p, n = (np.asarray(x(sel)).astype(np.int64) & 0xFF for x in (pos, length))
        raw = value.view(f"u{t.size}").astype(np.uint64)
        shifted = np.where(p < bits, raw >> np.minimum(p, bits - 1).astype(np.uint64), np.uint64(0))
        mask = np.where(n >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(n, 63).astype(np.uint64)) - np.uint64(1))
        r = shifted & mask
        if t.signed:
            at = np.minimum(p + n - 1, bits - 1)
            sign = (n > 0) & (raw >> np.maximum(at, 0).astype(np.uint64) & np.uint64(1) != 0)
            have = np.maximum(np.minimum(n, bits - p), 0)
            keep = np.where(
                have >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(have, 63).astype(np.uint64)) - np.uint64(1)
            )
            r = np.where(sign, r | ~keep, r)
        put(sel, r.astype(f"u{t.size}").view(t.dtype))

    return run


@instruction("bfi")
def insert(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, b = d.source(i.operands[1], t), d.source(i.operands[2], t)
    pos, length, put = d.source(i.operands[3], "u32"), d.source(i.operands[4], "u32"), d.put(i.operands[0], t)

    def run(sel: Sel) -> None:
        p, n = (np.asarray(x(sel)).astype(np.int64) & 0xFF for x in (pos, length))
        ones = np.where(n >= 64, ~np.uint64(0), (np.uint64(1) << np.minimum(n, 63).astype(np.uint64)) - np.uint64(1))
        inside = p < t.bits
        by = np.minimum(p, 63).astype(np.uint64)
        mask = np.where(inside, ones << by, np.uint64(0))
        field = np.where(inside, np.asarray(a(sel)).astype(np.uint64) << by, np.uint64(0))
        put(sel, ((np.asarray(b(sel)).astype(np.uint64) & ~mask) | (field & mask)).astype(t.dtype))

    return run


def leading(x: Array, bits: int) -> Array:
    """Position of the highest set bit, -1 for zero."""
    r = np.full(x.shape, -1, np.int64)
    v = x.astype(np.uint64)
    top = np.zeros(x.shape, np.int64)
    for step in (32, 16, 8, 4, 2, 1):
        big = v >> np.uint64(step) != 0
        top = np.where(big, top + step, top)
        v = np.where(big, v >> np.uint64(step), v)
    return np.where(x != 0, top, r)


_COUNT: dict[str, Callable[[Array, int], Array]] = {
    "popc": lambda x, bits: np.bitwise_count(x),
    "clz": lambda x, bits: bits - 1 - leading(x, bits),
}


@instruction("popc", "clz")
def count_bits(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, put, f = d.source(i.operands[1], t), d.put(i.operands[0], "u32"), _COUNT[i.parts[0]]
    return lambda sel: put(sel, np.asarray(f(np.atleast_1d(a(sel)), t.bits)).astype(np.uint32))


@instruction("bfind")
def find_bit(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, put = d.source(i.operands[1], t), d.put(i.operands[0], "u32")

    def run(sel: Sel) -> None:
        x = np.atleast_1d(a(sel))
        x = np.where(x < 0, ~x, x) if t.signed else x
        r = leading(x.view(f"u{t.size}"), t.bits)
        if "shiftamt" in i.parts:
            r = np.where(r >= 0, t.bits - 1 - r, r)
        put(sel, r.astype(np.int32).view(np.uint32))

    return run


@instruction("brev")
def reverse(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, put = d.source(i.operands[1], t), d.put(i.operands[0], t)
    table = np.array([int(f"{n:08b}"[::-1], 2) for n in range(256)], np.uint8)

    def run(sel: Sel) -> None:
        raw = np.ascontiguousarray(np.atleast_1d(a(sel))).view(np.uint8).reshape(-1, t.size)
        put(sel, np.ascontiguousarray(table[raw[:, ::-1]]).view(t.dtype).reshape(-1))

    return run
