"""Float arithmetic (PTX ISA 9.7.3 to 9.7.5): f32, f64, f16, bf16 and packed pairs, in every rounding mode.

f16 and bf16 compute in f32, which is wide enough that rounding twice equals rounding once for + - x, and
fma in f64 rounded to odd. Approximate functions are computed exactly and then rounded to fewer bits than
f32 has: within PTX's stated error, and visibly not exact.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import formats, rounding
from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, some
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.types import Scalar, scalar

MODES = ("rn", "rz", "rm", "rp")
_KNOWN = {*MODES, "ftz", "sat", "approx", "full", "NaN", "xorsign", "abs", "relu"}


def canonical(r: Array) -> Array:
    """f32 results: every NaN becomes 0x7fffffff, as the hardware gives it."""
    bad = np.isnan(r)
    if some(bad):
        r = np.where(bad, rounding.CANONICAL32, r)
    return r


def flush(x: Array) -> Array:
    """Subnormal f32 -> zero of the same sign."""
    return np.where(np.abs(x) < np.float32(1.1754943508222875e-38), np.copysign(np.float32(0), x), x)


def arithmetic(d: Decoder, i: Instr, t: Scalar) -> Run:
    base, modifiers = i.parts[0], i.parts[1:-1]
    if "oob" in modifiers:
        raise d.unknown(i, "the NaN that .oob looks for is not documented")
    if set(modifiers) - _KNOWN:
        raise d.unknown(i)
    mode = next((x for x in modifiers if x in MODES), "rn")
    if t.name in ("f32", "f64"):
        if (t.name == "f32" and not modifiers) or modifiers == ["rn"]:
            plain = {"add": np.add, "sub": np.subtract, "mul": np.multiply}.get(base)
            if plain is not None and t.name == "f32":
                return in_place(d, i, t, plain)
        f = _wide(base, t, mode, modifiers)
    elif t.name in ("f16", "bf16", "f16x2", "bf16x2"):
        return half(d, i, t, base, modifiers)
    else:
        raise d.unknown(i)
    if f is None:
        raise d.unknown(i)
    return apply(d, i, t, f, "ftz" in modifiers, "sat" in modifiers, base not in ("abs", "neg"))


def in_place(d: Decoder, i: Instr, t: Scalar, f: Callable[..., Any]) -> Run:
    run, row = d.binary(i, t, f), d.target_row(i.operands[0], t)
    if row is None:
        return apply(d, i, t, f, False, False)

    def checked(sel: Sel) -> None:
        run(sel)
        r = row[sel]
        bad = np.isnan(r)
        if some(bad):
            row[sel] = np.where(bad, rounding.CANONICAL32, r)

    return checked


def apply(d: Decoder, i: Instr, t: Scalar, f: Callable[..., Any], ftz: bool, sat: bool, nan: bool = True) -> Run:
    sources: list[Source] = [d.source(o, t) for o in i.operands[1:]]
    put = d.put(i.operands[0], t)
    is32 = t.name == "f32"

    def run(sel: Sel) -> None:
        values = [s(sel) for s in sources]
        if ftz and is32:
            values = [flush(v) for v in values]
        r = f(*values)
        if ftz and is32:
            r = flush(r)
        if sat:
            r = np.where(np.isnan(r), t.dtype.type(0), np.clip(r, t.dtype.type(0), t.dtype.type(1)))
        put(sel, canonical(r) if is32 and nan else r)

    return run


_ROUNDED: dict[bool, tuple[Callable[..., Array], ...]] = {
    True: (rounding.sum32, rounding.product32, rounding.fma32, rounding.quotient32),
    False: (rounding.sum64, rounding.product64, rounding.fma64, rounding.quotient64),
}
"""Sum, product, fma and quotient in a rounding mode, of f32 and of f64."""


def _wide(base: str, t: Scalar, mode: str, modifiers: list[str]) -> Callable[..., Any] | None:
    add, product, fma, quotient = _ROUNDED[t.name == "f32"]
    if base in ("add", "sub"):
        if mode == "rn":
            return np.add if base == "add" else np.subtract
        return (lambda a, b: add(a, b, mode)) if base == "add" else (lambda a, b: add(a, -b, mode))
    if base == "mul":
        return np.multiply if mode == "rn" else (lambda a, b: product(a, b, mode))
    if base in ("fma", "mad"):
        return lambda a, b, c: fma(a, b, c, mode)
    if base == "div":
        if "approx" in modifiers or "full" in modifiers:
            return lambda a, b: approximate(np.divide(a, b, dtype=np.float64), 22)
        return lambda a, b: quotient(a, b, mode)
    if base in ("min", "max"):
        return extreme(base, modifiers)
    if base == "abs":
        return lambda a: np.abs(a)
    if base == "neg":
        return lambda a: np.negative(a)
    return None


def extreme(base: str, modifiers: list[str]) -> Callable[..., Any]:
    """min/max: NaN loses unless .NaN; -0 is below +0; three operands on sm_100."""
    pick = np.fmin if base == "min" else np.fmax
    strict = np.minimum if base == "min" else np.maximum

    def f(a: Array, b: Array, *more: Array) -> Array:
        if "xorsign" in modifiers:
            sign = np.signbit(a) != np.signbit(b)
            r = pick(np.abs(a), np.abs(b))
            return np.where(sign, -r, r)
        r = strict(a, b) if "NaN" in modifiers else pick(a, b)
        both = (a == 0) & (b == 0)
        if some(both):
            negative = np.signbit(a) | np.signbit(b) if base == "min" else np.signbit(a) & np.signbit(b)
            r = np.where(both, np.where(negative, -np.zeros_like(r), np.zeros_like(r)), r)
        return f(r, *more) if more else r

    return f


# --- 16-bit and packed
def unpack(value: Any, t: Scalar) -> Array:
    """Bits of f16/bf16 (or pairs) -> f32 of shape (lanes,) or (lanes, 2)."""
    bits = np.atleast_1d(value)
    if t.name.endswith("x2"):
        return formats.from16(np.ascontiguousarray(bits).view(np.uint16).reshape(-1, 2), t.name[:-2])
    return formats.from16(np.ascontiguousarray(bits).view(np.uint16), t.name)


def pack(value: Array, t: Scalar) -> Array:
    kind = t.name[:-2] if t.name.endswith("x2") else t.name
    bits = np.ascontiguousarray(formats.to16(value, kind))
    if t.name.endswith("x2"):
        return bits.view(np.uint32).reshape(-1)
    return bits.view(np.float16) if t.name == "f16" else bits


def flush16(x: Array, kind: str) -> Array:
    """Subnormal f16 values (held as f32 or f64) -> zero of the same sign."""
    if kind.startswith("bf16"):
        return x
    return np.where(np.abs(x) < 6.103515625e-05, np.copysign(x.dtype.type(0), x), x)


def half(d: Decoder, i: Instr, t: Scalar, base: str, modifiers: list[str]) -> Run:
    sat, relu, ftz = "sat" in modifiers, "relu" in modifiers, "ftz" in modifiers
    if relu and base != "fma":
        raise d.unknown(i, ".relu is for fma")
    if {"rz", "rm", "rp"} & set(modifiers) or (t.name.startswith("bf16") and (ftz or sat)):
        raise d.unknown(i, "16-bit floats round to nearest; bf16 has neither .ftz nor .sat")
    if base in ("abs", "neg"):
        return half_sign(d, i, t, base, ftz)
    sources = [d.source(o, t) for o in i.operands[1:]]
    put = d.put(i.operands[0], t)
    f: Callable[..., Array]
    if base in ("fma", "mad"):

        def f(a: Array, b: Array, c: Array) -> Array:
            s, e = rounding.two_sum(np.multiply(a, b, dtype=np.float64), c.astype(np.float64))
            shape = s.shape
            return rounding.to_odd(np.ascontiguousarray(s).reshape(-1), e.reshape(-1)).reshape(shape)
    elif base in ("min", "max"):
        f = extreme(base, modifiers)
    elif base in ("add", "sub", "mul"):
        f = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[base]
    else:
        raise d.unknown(i)

    def run(sel: Sel) -> None:
        values = [unpack(s(sel), t) for s in sources]
        if ftz:
            values = [flush16(v, t.name) for v in values]
        r = f(*values)
        if sat:
            r = np.where(np.isnan(r), 0, np.clip(r, 0, 1)).astype(r.dtype)
        if relu:
            r = np.where(r <= 0, 0, r).astype(r.dtype)
        if ftz:
            r = flush16(unpack(pack(r, t), t), t.name)
        put(sel, pack(r, t))

    return run


def half_sign(d: Decoder, i: Instr, t: Scalar, base: str, ftz: bool) -> Run:
    bits = scalar(f"b{t.bits}")
    a, put = d.source(i.operands[1], bits), d.put(i.operands[0], bits)
    mask = bits.dtype.type(0x80008000 if t.bits == 32 else 0x8000)

    def sign(x: Any) -> Any:
        if ftz:
            x = np.asarray(pack(flush16(unpack(x, t), t.name), t)).view(bits.dtype)
        return x & ~mask if base == "abs" else x ^ mask

    return lambda sel: put(sel, sign(a(sel)))


# --- functions
def approximate(x: Array, bits: int) -> Array:
    """f64 -> f32 with only `bits` fraction bits, rounded once: the error is at most 2**-(bits + 1) of the result."""
    wide = np.atleast_1d(x)
    drop = np.uint64(52 - bits)
    raw = wide.view(np.uint64)
    rounded = ((raw + (np.uint64(1) << (drop - np.uint64(1)))) >> drop << drop).view(np.float64)
    return np.where(np.isfinite(wide), rounded, wide).astype(np.float32)


def _in64(f: Callable[[Array], Array], bits: int) -> Callable[[Array], Array]:
    return lambda x: approximate(f(np.asarray(x, np.float64)), bits)


_APPROX = {
    "ex2": _in64(np.exp2, 22),
    "lg2": _in64(np.log2, 22),
    "sin": _in64(np.sin, 21),
    "cos": _in64(np.cos, 21),
    "rsqrt": _in64(lambda x: 1 / np.sqrt(x), 22),
    "sqrt": _in64(np.sqrt, 22),
    "rcp": _in64(lambda x: 1 / x, 22),
    "tanh": _in64(np.tanh, 10),
}


@instruction("ex2", "lg2", "sin", "cos", "rsqrt", "sqrt", "rcp", "tanh")
def function(d: Decoder, i: Instr) -> Run:
    t, base, modifiers = scalar(i.parts[-1], i.line), i.parts[0], i.parts[1:-1]
    if set(modifiers) - _KNOWN:
        raise d.unknown(i)
    ftz = "ftz" in modifiers
    if t.name in ("f16", "bf16", "f16x2", "bf16x2"):
        g = _APPROX[base]
        a, put = d.source(i.operands[1], t), d.put(i.operands[0], t)
        return lambda sel: put(sel, pack(g(unpack(a(sel), t)).astype(np.float32), t))
    mode = next((x for x in modifiers if x in MODES), None)
    if t.name == "f64" and "approx" in modifiers and not ftz:  # software on hardware too: accurate
        if base != "rsqrt":
            raise d.unknown(i)
        return apply(d, i, t, lambda x: 1 / np.sqrt(x), False, False)
    if t.name == "f64" and "approx" in modifiers:  # rcp/rsqrt.approx.ftz.f64: 20 fraction bits kept
        table64: dict[str, Callable[[Array], Array]] = {"rcp": lambda x: 1 / x, "rsqrt": lambda x: 1 / np.sqrt(x)}
        f64 = table64[base]
        return apply(d, i, t, lambda x: np.float64(1) * approximate(f64(x), 20), False, False)
    if mode is None:
        f = _APPROX[base]
    elif base == "sqrt":
        root = rounding.root32 if t.name == "f32" else rounding.root64
        f = lambda x: root(x, mode)  # noqa: E731
    elif base == "rcp":
        quotient = rounding.quotient32 if t.name == "f32" else rounding.quotient64
        one: Array = np.ones(1, t.dtype)
        f = lambda x: quotient(one, x, mode)  # noqa: E731
    else:
        raise d.unknown(i)
    return apply(d, i, t, f, ftz, False)


@instruction("testp")
def test_property(d: Decoder, i: Instr) -> Run:
    t, what = scalar(i.parts[-1], i.line), i.parts[1]
    tiny = np.finfo(t.dtype).tiny
    tests: dict[str, Callable[[Array], Any]] = {
        "finite": np.isfinite, "infinite": np.isinf, "number": lambda x: ~np.isnan(x), "notanumber": np.isnan,
        "normal": lambda x: np.isfinite(x) & (np.abs(x) >= tiny), "subnormal": lambda x: (x != 0) & (np.abs(x) < tiny),
    }  # fmt: skip
    a, put, f = d.source(i.operands[1], t), d.put(i.operands[0], "pred"), tests[what]
    return lambda sel: put(sel, f(a(sel)))


@instruction("copysign")
def copy_sign(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, b, put = d.source(i.operands[1], t), d.source(i.operands[2], t), d.put(i.operands[0], t)
    return lambda sel: put(sel, np.copysign(b(sel), a(sel)))
