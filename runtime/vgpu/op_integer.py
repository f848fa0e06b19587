"""Integer arithmetic (PTX ISA 9.7.1 and 9.7.2): add, sub, mul, mad, div, rem, min, max, abs, neg, sad, dp4a."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import op_float, op_mixed
from tcomp.runtime.vgpu.decoder import INSTRUCTIONS, Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.types import Scalar, scalar

_SIMPLE = {"add": np.add, "sub": np.subtract, "min": np.minimum, "max": np.maximum}


@instruction("add", "sub", "mul", "min", "max", "abs", "neg", "mad", "div", "rem", "fma")
def arithmetic(d: Decoder, i: Instr) -> Run:
    """Shared names: floats go to op_float. nvcc writes `max.s32.relu` where the PTX ISA has `max.relu.s32`."""
    if i.parts[-1] == "relu":
        i = replace(i, opcode=".".join([i.parts[0], "relu", *i.parts[1:-1]]))
    t = scalar(i.parts[-1], i.line)
    if t.name in ("u16x2", "s16x2"):
        return pairs(d, i, t)
    if t.name == "f32x2":
        return op_mixed.pairs(d, i)
    if op_mixed.is_mixed(i):
        return op_mixed.mixed(d, i)
    return integer(d, i, t) if t.kind in "usb" else op_float.arithmetic(d, i, t)


def pairs(d: Decoder, i: Instr, t: Scalar) -> Run:
    """add, min and max of two 16-bit integers in a register; .relu clamps s16x2 below at zero."""
    f = {"add": np.add, "min": np.minimum, "max": np.maximum}.get(i.parts[0])
    relu = i.parts[1:-1] == ["relu"] and t.name == "s16x2" and i.parts[0] != "add"
    if f is None or (i.parts[1:-1] and not relu):
        raise d.unknown(i)
    half = np.int16 if t.name == "s16x2" else np.uint16
    a, b, put = d.source(i.operands[1], "b32"), d.source(i.operands[2], "b32"), d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        x, y = (np.ascontiguousarray(np.atleast_1d(s(sel))).view(half).reshape(-1, 2) for s in (a, b))
        r = f(x, y)
        if relu:
            r = np.maximum(r, half(0))
        put(sel, np.ascontiguousarray(r).view(np.uint32).reshape(-1))

    return run


def integer(d: Decoder, i: Instr, t: Scalar) -> Run:
    base, modifiers = i.parts[0], i.parts[1:-1]
    if "cc" in modifiers:
        return INSTRUCTIONS["addc"](d, i)
    if base in _SIMPLE:
        if "sat" in modifiers and t.name == "s32":
            return saturating(d, i, _SIMPLE[base])
        if modifiers == ["relu"] and t.name == "s32" and base in ("min", "max"):
            f, a2, b2 = _SIMPLE[base], d.source(i.operands[1], t), d.source(i.operands[2], t)
            put2 = d.put(i.operands[0], t)
            return lambda sel: put2(sel, np.maximum(f(a2(sel), b2(sel)), np.int32(0)))
        if modifiers:
            raise d.unknown(i)
        return d.binary(i, t, _SIMPLE[base])
    if base in ("abs", "neg"):
        a, put1 = d.source(i.operands[1], t), d.put(i.operands[0], t)
        f1 = np.abs if base == "abs" else np.negative
        return lambda sel: put1(sel, f1(a(sel)))
    if base in ("div", "rem"):
        return divide(d, i, t, base == "div")
    if base in ("mul", "mad"):
        return multiply(d, i, t, modifiers)
    raise d.unknown(i)


def saturating(d: Decoder, i: Instr, f: Any) -> Run:
    a, b, put = d.source(i.operands[1], "s32"), d.source(i.operands[2], "s32"), d.put(i.operands[0], "s32")
    return lambda sel: put(sel, np.clip(f(a(sel).astype(np.int64), b(sel)), -(1 << 31), (1 << 31) - 1))


def multiply(d: Decoder, i: Instr, t: Scalar, modifiers: list[str]) -> Run:
    mode = next((x for x in modifiers if x in ("lo", "hi", "wide")), None)
    if mode is None:
        raise d.unknown(i)
    mad = i.parts[0] == "mad"
    if mode == "lo" and not mad:
        return d.binary(i, t, np.multiply)
    out = scalar(f"{t.kind}{t.bits * 2}") if mode == "wide" else t
    a, b = d.source(i.operands[1], t), d.source(i.operands[2], t)
    c = d.source(i.operands[3], out) if mad else None
    put = d.put(i.operands[0], out)
    if mode == "lo":
        assert c is not None
        return lambda sel: put(sel, a(sel) * b(sel) + c(sel))
    if mode == "wide":
        wide = out.dtype
        if c is None:
            return lambda sel: put(sel, np.multiply(a(sel), b(sel), dtype=wide))
        return lambda sel: put(sel, np.multiply(a(sel), b(sel), dtype=wide) + c(sel))
    saturate = "sat" in modifiers

    def run(sel: Sel) -> None:
        high = high_half(np.asarray(a(sel)), np.asarray(b(sel)), t)
        if c is not None and saturate:
            high = np.clip(high.astype(np.int64) + c(sel), -(1 << 31), (1 << 31) - 1)
        elif c is not None:
            high = high + c(sel)
        put(sel, high)

    return run


def high_half(a: Array, b: Array, t: Scalar) -> Array:
    if t.bits < 64:
        wide = np.int64 if t.signed else np.uint64
        return (np.multiply(a, b, dtype=wide) >> wide(t.bits)).astype(t.dtype)
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    m, s = np.uint64(0xFFFFFFFF), np.uint64(32)
    al, ah, bl, bh = ua & m, ua >> s, ub & m, ub >> s
    mid = ah * bl + (al * bl >> s)
    mid2 = al * bh + (mid & m)
    high: Array = ah * bh + (mid >> s) + (mid2 >> s)
    if t.signed:
        high = high - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    return high.view(t.dtype)


def divide(d: Decoder, i: Instr, t: Scalar, quotient: bool) -> Run:
    """Truncating division; by zero the quotient is all ones and the remainder the dividend, as on hardware."""
    a, b, put = d.source(i.operands[1], t), d.source(i.operands[2], t), d.put(i.operands[0], t)

    def run(sel: Sel) -> None:
        x, y = np.broadcast_arrays(np.atleast_1d(a(sel)), b(sel))
        zero = y == 0
        y = np.where(zero, t.dtype.type(1), y)
        q = x // y
        if t.signed:
            q = q + ((x - q * y != 0) & ((x < 0) != (y < 0)))
            q = np.where(y == -1, -x, q)
        q = q.astype(t.dtype)
        if quotient:
            put(sel, np.where(zero, t.dtype.type(-1) if t.signed else t.dtype.type(np.iinfo(t.dtype).max), q))
        else:
            put(sel, np.where(zero, x, x - q * y))

    return run


@instruction("mul24", "mad24")
def short_multiply(d: Decoder, i: Instr) -> Run:
    """The 48-bit product of two 24-bit numbers: its low 32 bits (.lo), or bits 16 to 47 (.hi)."""
    t = scalar(i.parts[-1], i.line)
    high, saturate, mad = i.parts[1] == "hi", "sat" in i.parts, i.parts[0] == "mad24"
    if i.parts[1] not in ("lo", "hi") or t.bits != 32 or (saturate and not (high and mad and t.signed)):
        raise d.unknown(i)
    shift, wide = t.dtype.type(8), np.int64 if t.signed else np.uint64
    a, b = d.source(i.operands[1], t), d.source(i.operands[2], t)
    c = d.source(i.operands[3], t) if mad else None
    put = d.put(i.operands[0], t)

    def run(sel: Sel) -> None:
        x, y = (np.asarray(s(sel) << shift >> shift).astype(wide) for s in (a, b))
        r = x * y >> wide(16) if high else x * y
        if c is not None:
            r = r + np.asarray(c(sel)).astype(wide)
        if saturate:
            r = np.clip(r, -(1 << 31), (1 << 31) - 1)
        put(sel, r.astype(t.dtype))

    return run


@instruction("sad")
def absolute_difference(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, b, c = (d.source(o, t) for o in i.operands[1:4])
    put = d.put(i.operands[0], t)

    def run(sel: Sel) -> None:
        x, y = a(sel), b(sel)
        put(sel, c(sel) + np.where(x < y, y - x, x - y))

    return run


@instruction("dp4a", "dp2a")
def dot_product(d: Decoder, i: Instr) -> Run:
    """dp4a.atype.btype: four bytes each; dp2a.lo|hi: two halves of a by two bytes of b."""
    pair = i.parts[0] == "dp2a"
    ta, tb = scalar(i.parts[-2], i.line), scalar(i.parts[-1], i.line)
    out = scalar("s32" if ta.signed or tb.signed else "u32")
    a, b = d.source(i.operands[1], "b32"), d.source(i.operands[2], "b32")
    c, put = d.source(i.operands[3], out), d.put(i.operands[0], out)
    first = 2 if pair and "hi" in i.parts else 0
    width = 2 if pair else 1

    def run(sel: Sel) -> None:
        x = np.atleast_1d(a(sel)).view(f"{'i' if ta.signed else 'u'}{width}").reshape(-1, 4 // width).astype(np.int64)
        y = np.atleast_1d(b(sel)).view("i1" if tb.signed else "u1").reshape(-1, 4).astype(np.int64)
        y = y[:, first : first + 4 // width]
        total = (x * y).sum(axis=1) + np.asarray(c(sel)).astype(np.int64)
        put(sel, total.astype(out.dtype))

    return run
