"""cvt in all its forms, and the address-space conversions cvta and isspacep (PTX ISA 9.7.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import formats, memory, rounding
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.op_float import canonical, flush
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.types import Scalar, scalar

_INTEGER_ROUNDING: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip


_LATER = ("e2m1x2", "e2m3x2", "e3m2x2", "ue8m0x2", "s2f6x2", "e4m3x4", "e5m2x4", "e2m1x4", "e2m3x4", "e3m2x4")
_ROUNDING = ("rn", "rz", "rm", "rp", "rna")
_LARGEST = {"f16": 65504.0, "bf16": 3.3895313892515355e38, "tf32": 3.4011621342146535e38}


@instruction("cvt")
def convert(d: Decoder, i: Instr) -> Run:
    if "pack" in i.parts:
        return pack_integers(d, i)
    if "rs" in i.parts or any(p in _LATER for p in i.parts):
        raise d.unknown(i, "stochastic rounding and 4-bit, 6-bit and scale formats belong to sm_100 and later")
    to, source, modifiers = scalar(i.parts[-2], i.line), scalar(i.parts[-1], i.line), i.parts[1:-2]
    left = set(modifiers) - {*_ROUNDING, *_INTEGER_ROUNDING, "ftz", "sat", "relu", "satfinite"}
    if left:
        raise d.unknown(i, f"cvt has no .{min(left)}")
    mode = next((x for x in modifiers if x in _ROUNDING), "rn")
    if to.name in ("f16x2", "bf16x2") and source.name == "f32":
        return pair_from_f32(d, i, to, mode, modifiers)
    if "x2" in to.name or "x2" in source.name:
        return eight_bit(d, i, to, source, modifiers)
    if to.name == "tf32":
        if source.name != "f32" or mode not in ("rn", "rna", "rz"):
            raise d.unknown(i)
        a32, put32 = d.source(i.operands[1], "f32"), d.put(i.operands[0], "b32")
        adjust = clamp("tf32", "relu" in modifiers, "satfinite" in modifiers)
        return lambda sel: put32(sel, formats.to_tf32(adjust(np.atleast_1d(a32(sel))), mode))
    if mode == "rna":
        raise d.unknown(i, ".rna is for tf32")
    f = converter(d, i, to, source, mode, modifiers)
    a, put = d.source(i.operands[1], source), d.put(i.operands[0], to)
    return lambda sel: put(sel, f(np.atleast_1d(a(sel))))


def clamp(kind: str, relu: bool, satfinite: bool) -> Callable[[Array], Array]:
    """.relu (negative -> 0) and .satfinite (beyond the format's largest -> the largest); NaN stays NaN."""
    largest = _LARGEST[kind]

    def f(x: Array) -> Array:
        if relu:
            x = np.where(x <= 0, x.dtype.type(0), x)
        if satfinite:
            x = np.clip(x, x.dtype.type(-largest), x.dtype.type(largest))
        return x

    return f


def pack_integers(d: Decoder, i: Instr) -> Run:
    """cvt.pack.sat: a and b saturated to a narrow type and put side by side, above them the low bits of c."""
    parts = [p for p in i.parts[1:] if p not in ("pack", "sat")]
    kind, bits = parts[0][:1], int(parts[0][1:])
    if kind not in "us" or bits not in (2, 4, 8, 16) or parts[1] != "s32" or (bits == 16) != (len(parts) == 2):
        raise d.unknown(i)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind == "s" else (0, (1 << bits) - 1)
    a, b = d.source(i.operands[1], "s32"), d.source(i.operands[2], "s32")
    c = d.source(i.operands[3], "b32") if bits < 16 else None
    put, mask = d.put(i.operands[0], "b32"), (1 << bits) - 1

    def run(sel: Sel) -> None:
        ta, tb = (np.clip(np.asarray(x(sel)).astype(np.int64), low, high) & mask for x in (a, b))
        r = tb | ta << bits
        if c is not None:
            r = r | np.asarray(c(sel)).astype(np.int64) << 2 * bits
        put(sel, (r & 0xFFFFFFFF).astype(np.uint32))

    return run


def converter(d: Decoder, i: Instr, to: Scalar, source: Scalar, mode: str, modifiers: list[str]) -> Callable[..., Any]:
    ftz, sat, relu = "ftz" in modifiers, "sat" in modifiers, "relu" in modifiers
    if (relu or "satfinite" in modifiers) and (to.name not in _LARGEST or source.name != "f32"):
        raise d.unknown(i, ".relu and .satfinite convert f32 to f16, bf16, tf32 and 8-bit floats")
    adjust = clamp(to.name, relu, "satfinite" in modifiers) if to.name in _LARGEST else None
    integral = next((x for x in modifiers if x in _INTEGER_ROUNDING), None)
    floats = ("f16", "bf16", "f32", "f64")
    from_float, to_float = source.name in floats, to.name in floats
    if not from_float and not to_float:
        return integer_to_integer(to, source, sat)

    def widen(x: Array) -> Array:
        if source.name in ("f16", "bf16"):
            return formats.from16(np.ascontiguousarray(x).view(np.uint16), source.name)
        return flush(x) if ftz and source.name == "f32" else x

    if from_float and not to_float:
        if integral is None:
            raise d.unknown(i, "float to integer needs a rounding")
        return lambda x: to_integer(_INTEGER_ROUNDING[integral](widen(x)), to)

    def finish(x: Array) -> Array:
        if integral is not None:
            x = _INTEGER_ROUNDING[integral](x)
        if adjust is not None:
            x = adjust(x)
        if sat:
            x = np.where(np.isnan(x), 0, np.clip(x, 0, 1)).astype(x.dtype)
        if to.name == "f64":
            return x.astype(np.float64)
        if to.name == "f32":
            if x.dtype != np.float32:
                x = rounding.narrow(x, mode)
            return canonical(flush(x) if ftz else x)
        bits = formats.to16(x, to.name, mode)
        return np.ascontiguousarray(bits).view(np.float16) if to.name == "f16" else bits

    if from_float:
        return lambda x: finish(widen(x))
    return lambda x: finish(integer_to_odd(x, to, mode))


def integer_to_odd(x: Array, to: Scalar, mode: str) -> Array:
    """Integer -> f64, to odd where inexact and narrower results follow, in `mode` where f64 itself is the result."""
    r = x.astype(np.float64)
    if x.dtype.itemsize < 8:
        return r
    inside = np.abs(r) < 2.0**63
    back = np.where(inside, r, 0).astype(np.int64 if x.dtype.kind == "i" else np.uint64)
    big = np.where(r >= 2.0**63, r - 2.0**63, 0).astype(np.uint64) + np.uint64(1 << 63)
    if x.dtype.kind == "u":
        back = np.where(inside, back, np.where(r >= 2.0**64, np.uint64(0), big))
        error = (x - back).view(np.int64).astype(np.float64)
    else:
        error = np.where(inside, (x - back).astype(np.float64), -1.0)
        error = np.where(~inside & (x == np.iinfo(np.int64).min), 0.0, error)
    if to.name == "f64":
        return rounding.directed(r, error, mode, np.float64)
    return rounding.to_odd(r, error)


def to_integer(x: Array, to: Scalar) -> Array:
    """Rounded float -> integer, clamped to the range; NaN is 0 for 32 bits and below, 0x80...0 for 64."""
    info = np.iinfo(to.dtype)
    nan = np.isnan(x)
    x = x.astype(np.float64)
    low, high = x <= float(info.min), x >= float(info.max)
    r = np.where(nan | low | high, 0, x).astype(to.dtype)
    r = np.where(low, info.min, r).astype(to.dtype)
    r = np.where(high, to.dtype.type(info.max), r)
    odd = np.array(1 << 63, np.uint64).view(to.dtype) if to.bits == 64 else to.dtype.type(0)
    return np.where(nan, odd, r).astype(to.dtype)


def integer_to_integer(to: Scalar, source: Scalar, sat: bool) -> Callable[[Array], Array]:
    info = np.iinfo(to.dtype)

    def f(x: Array) -> Array:
        if sat:
            s = np.iinfo(x.dtype)
            x = np.clip(x, x.dtype.type(max(info.min, s.min)), x.dtype.type(min(info.max, s.max)))
        return x.astype(to.dtype)

    return f


def pair_from_f32(d: Decoder, i: Instr, to: Scalar, mode: str, modifiers: list[str]) -> Run:
    """cvt.bf16x2.f32 d, a, b: a goes to the upper half."""
    a, b, put = d.source(i.operands[1], "f32"), d.source(i.operands[2], "f32"), d.put(i.operands[0], "b32")
    kind = to.name[:-2]
    adjust = clamp(kind, "relu" in modifiers, "satfinite" in modifiers)

    def half(x: Array) -> Array:
        return formats.to16(adjust(np.atleast_1d(x)), kind, mode).astype(np.uint32)

    return lambda sel: put(sel, (half(a(sel)) << np.uint32(16)) | half(b(sel)))


def eight_bit(d: Decoder, i: Instr, to: Scalar, source: Scalar, modifiers: list[str]) -> Run:
    relu = "relu" in modifiers
    if to.name in ("e4m3x2", "e5m2x2") and ("satfinite" not in modifiers or "rn" not in modifiers):
        raise d.unknown(i, "conversion to 8-bit floats needs .rn.satfinite")
    if to.name in ("e4m3x2", "e5m2x2"):
        kind, put = to.name[:-2], d.put(i.operands[0], "b16")
        if source.name == "f32":
            a, b = d.source(i.operands[1], "f32"), d.source(i.operands[2], "f32")

            def run(sel: Sel) -> None:
                hi, lo = (np.maximum(x(sel), 0) if relu else x(sel) for x in (a, b))
                put(sel, formats.to8(hi, kind).astype(np.uint16) << np.uint16(8) | formats.to8(lo, kind))

            return run
        if source.name != "f16x2":
            raise d.unknown(i, "from .bf16x2 belongs to sm_100 and later")
        c = d.source(i.operands[1], "b32")

        def run16(sel: Sel) -> None:
            x = formats.from16(
                np.ascontiguousarray(np.atleast_1d(c(sel))).view(np.uint16).reshape(-1, 2), source.name[:-2]
            )
            code = formats.to8(np.maximum(x, 0) if relu else x, kind)
            put(sel, np.ascontiguousarray(code).view(np.uint16).reshape(-1))

        return run16
    if source.name in ("e4m3x2", "e5m2x2") and to.name == "f16x2":
        kind, put = source.name[:-2], d.put(i.operands[0], "b32")
        e = d.source(i.operands[1], "b16")

        def widen(sel: Sel) -> None:
            code = np.ascontiguousarray(np.atleast_1d(e(sel))).view(np.uint8).reshape(-1, 2)
            x = formats.from8(code, kind)
            x = np.maximum(x, 0) if relu else x
            put(sel, np.ascontiguousarray(formats.to16(x, to.name[:-2])).view(np.uint32).reshape(-1))

        return widen
    raise d.unknown(i)


_WINDOWS = {"shared": memory.SHARED_WINDOW, "local": memory.LOCAL_WINDOW, "param": 0, "global": 0, "const": 0}


@instruction("cvta")
def address(d: Decoder, i: Instr) -> Run:
    """Adds the space's window to make a generic address; `cvta.to.` takes it away."""
    t = scalar(i.parts[-1], i.line)
    space = next(p.split("::")[0] for p in i.parts if p.split("::")[0] in _WINDOWS)
    window = np.array(_WINDOWS[space], np.uint64).astype(t.dtype)[()]
    a, put = d.source(i.operands[1], t), d.put(i.operands[0], t)
    if space == "param" and "to" not in i.parts:

        def widen(sel: Sel) -> None:
            """Variables' addresses are generic already, but `mov.b32` keeps only the place among the parameters."""
            x = a(sel)
            put(sel, np.where(x >> t.dtype.type(32) == 0, x + t.dtype.type(memory.PARAM_WINDOW), x))

        if t.size == 8:
            return widen
    if not window:
        return lambda sel: put(sel, a(sel))
    return (lambda sel: put(sel, a(sel) - window)) if "to" in i.parts else (lambda sel: put(sel, a(sel) + window))


@instruction("isspacep")
def is_space(d: Decoder, i: Instr) -> Run:
    space = i.parts[1].split("::")[0]
    a, put = d.source(i.operands[1], "u64"), d.put(i.operands[0], "pred")
    if space in ("shared", "local"):
        low = np.uint64(_WINDOWS[space])
        if space == "local" or i.parts[1] == "shared::cluster":
            return lambda sel: put(sel, (a(sel) >= low) & (a(sel) < low + np.uint64(memory.WINDOW)))
        rank, step = d.m.rank.astype(np.uint64) + np.uint64(1), np.uint64(memory.CLUSTER_STEP)

        def own(sel: Sel) -> None:
            """The block's own memory has two addresses: without its number in the cluster, and with it."""
            part = (a(sel) - low) // step
            put(sel, (a(sel) >= low) & ((part == 0) | (part == rank[sel])))

        return own
    if space == "param":
        first = np.uint64(memory.PARAM_WINDOW)
        return lambda sel: put(sel, (a(sel) >= first) & (a(sel) < first + np.uint64(memory.WINDOW)))
    if space not in ("global", "const"):
        raise d.unknown(i)
    spans = [(s.base, s.end) for s in d.m.memory.segments if s.read_only]

    def run(sel: Sel) -> None:
        x = np.atleast_1d(a(sel))
        constant = np.zeros(len(x), bool)
        for low, high in spans:
            constant |= (x >= np.uint64(low)) & (x < np.uint64(high))
        heap = (x >= np.uint64(memory.GLOBAL_BASE)) & ~constant
        put(sel, constant if space == "const" else heap)

    return run
