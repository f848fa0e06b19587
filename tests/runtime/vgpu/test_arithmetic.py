"""Instruction groups in hand-written PTX against NumPy and exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, UnknownInstruction, rounding
from tests.runtime.vgpu.conftest import entry, launch

RNG = np.random.default_rng(3)
INDEX = "mul.wide.u32 %rd8, %r0, {0}; add.s64 %rd9, %rd0, %rd8; add.s64 %rd10, %rd1, %rd8; add.s64 %rd11, %rd2, %rd8;\n"


def binary(opcode: str, t: str, a: np.ndarray, b: np.ndarray, out: str | None = None) -> np.ndarray:
    """d = opcode(a, b) over the arrays' elements, one thread each."""
    n, size = len(a), a.dtype.itemsize
    reg = {"f32": "%f", "f64": "%fd"}.get(t, {4: "%r", 8: "%rd", 2: "%h"}[size])
    body = INDEX.format(size) + (
        f"ld.global.{t} {reg}20, [%rd9]; ld.global.{t} {reg}21, [%rd10]; {opcode} {reg}22, {reg}20, {reg}21;"
        f" st.global.{t} [%rd11], {reg}22;"
    )
    report, arrays = launch(body, a, b, np.zeros_like(a), block=n)
    report.check()
    found: np.ndarray = arrays[2]
    return found


INTEGERS = np.array([0, 1, -1, 7, -7, 2**31 - 1, -(2**31), 123456789, -987654321, 32, 33, 31], np.int32)
PAIRS = np.array([(x, y) for x in INTEGERS for y in INTEGERS], np.int32)


@pytest.mark.parametrize(
    ("opcode", "f"),
    [
        ("add.s32", lambda x, y: x + y), ("sub.s32", lambda x, y: x - y), ("mul.lo.s32", lambda x, y: x * y),
        ("mul.hi.s32", lambda x, y: x * y >> 32), ("min.s32", min), ("max.s32", max),
        ("add.sat.s32", lambda x, y: max(-(2**31), min(2**31 - 1, x + y))),
        ("div.s32", lambda x, y: -1 if y == 0 else int(Fraction(x, y))),
        ("rem.s32", lambda x, y: x if y == 0 else x - y * int(Fraction(x, y))),
        ("shl.b32", lambda x, y: x << (y & 0xFFFFFFFF) if 0 <= y < 32 else 0),
        ("shr.s32", lambda x, y: x >> min(y & 0xFFFFFFFF, 31)),
        ("xor.b32", lambda x, y: x ^ y), ("and.b32", lambda x, y: x & y),
    ],
)  # fmt: skip
def test_integers(opcode: str, f) -> None:  # type: ignore[no-untyped-def]
    got = binary(opcode, "b32", PAIRS[:, 0].copy(), PAIRS[:, 1].copy())
    want = [f(int(x), int(y)) & 0xFFFFFFFF for x, y in PAIRS]
    assert got.view(np.uint32).tolist() == want


def test_multiply_high_64() -> None:
    a, b = (RNG.integers(-(2**63), 2**63, 64) for _ in range(2))
    assert binary("mul.hi.s64", "b64", a, b).tolist() == [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", ["add", "mul", "div"])
def test_f32_rounding_is_exact(name: str, mode: str) -> None:
    a, b = ((RNG.standard_normal(256) * 10.0 ** RNG.integers(-20, 18, 256)).astype(np.float32) for _ in range(2))
    got = binary(f"{name}.{mode}.f32", "f32", a, b)
    for x, y, r in zip(a, b, got, strict=True):
        fx, fy = Fraction(float(x)), Fraction(float(y))
        exact = fx + fy if name == "add" else fx * fy if name == "mul" else fx / fy
        assert correctly_rounded(exact, r, mode, np.float32), (x, y, r)


def correctly_rounded(exact: Fraction, r: np.floating, mode: str, dtype: type) -> bool:
    if not np.isfinite(r):
        return abs(exact) >= Fraction(float(np.finfo(dtype).max))
    low, high = (Fraction(float(np.nextafter(r, dtype(s)))) if np.isfinite(np.nextafter(r, dtype(s))) else None
                 for s in (-np.inf, np.inf))  # fmt: skip
    value = Fraction(float(r))
    if mode == "rn":
        return all(n is None or abs(exact - value) <= abs(exact - n) for n in (low, high))
    if mode == "rz":
        mode = "rm" if exact > 0 else "rp"
    if mode == "rm":
        return value <= exact and (high is None or high > exact)
    return value >= exact and (low is None or low < exact)


def test_f32_fma_rounds_once() -> None:
    """Cases where f64 arithmetic followed by a conversion rounds twice, and subnormal results."""
    a = np.array([1 + 2**-12, 1 + 2**-23, 2**-70, 3.0, 1e-30], np.float32)
    b = np.array([1 + 2**-12, 1 - 2**-24, 2**-79, 5.0, 1.3e-9], np.float32)
    c = np.array([2**-60, 2**-80, 2**-149, -15.0, 1e-44], np.float32)
    extra = [(RNG.standard_normal(4000) * 2.0 ** RNG.integers(-40, 40, 4000)).astype(np.float32) for _ in range(3)]
    a, b, c = (np.concatenate(p) for p in zip((a, b, c), extra, strict=True))
    for mode in ("rn", "rz", "rm", "rp"):
        got = rounding.fma32(a, b, c, mode)
        for x, y, z, r in zip(a, b, c, got, strict=True):
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
            assert correctly_rounded(exact, r, mode, np.float32), (mode, x, y, z, r)


def test_f64_fma_rounds_once() -> None:
    a, b, c = (RNG.standard_normal(1500) * 2.0 ** RNG.integers(-60, 60, 1500) for _ in range(3))
    for mode in ("rn", "rz", "rm", "rp"):
        for x, y, z, r in zip(a, b, c, rounding.fma64(a, b, c, mode), strict=True):
            assert correctly_rounded(Fraction(x) * Fraction(y) + Fraction(z), r, mode, np.float64), (mode, x, y, z, r)


def test_nan_is_canonical_and_min_ignores_it() -> None:
    a, b = np.array([np.nan, np.inf, 1, -0.0], np.float32), np.array([1, -np.inf, np.nan, 0.0], np.float32)
    assert binary("add.f32", "f32", a, b).view(np.uint32).tolist()[:3] == [0x7FFFFFFF] * 3
    assert binary("min.f32", "f32", a, b).tolist()[0] == 1
    assert np.signbit(binary("min.f32", "f32", a, b)[3])


def test_approximations_are_close_but_not_exact() -> None:
    x = RNG.uniform(0.1, 8, 512).astype(np.float32)
    exact = {"ex2": np.exp2, "rsqrt": lambda v: 1 / np.sqrt(v), "tanh": np.tanh}
    for name, f in exact.items():
        body = INDEX.format(4) + f"ld.global.f32 %f1, [%rd9]; {name}.approx.f32 %f2, %f1; st.global.f32 [%rd10], %f2;"
        got = launch(body, x, np.zeros_like(x), np.zeros_like(x), block=512)[1][1]
        error = np.abs(got / f(x.astype(np.float64)) - 1)
        assert 0 < error.max() <= (2**-10.9 if name == "tanh" else 2**-22)
        assert not np.array_equal(got, f(x.astype(np.float64)).astype(np.float32))


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("bfe.u32 %r5, 0xABCD1234, 8, 12;", 0xD12), ("bfe.s32 %r5, 0xF0, 4, 4;", 0xFFFFFFFF),
        ("bfi.b32 %r5, 0x5, 0xFFFFFFFF, 4, 4;", 0xFFFFFF5F), ("popc.b32 %r5, 0xF0F0;", 8), ("clz.b32 %r5, 0xFFFF;", 16),
        ("bfind.u32 %r5, 0x100;", 8), ("bfind.u32 %r5, 0;", 0xFFFFFFFF), ("brev.b32 %r5, 1;", 0x80000000),
        ("prmt.b32 %r5, 0x33221100, 0x77665544, 0x7531;", 0x77553311), ("lop3.b32 %r5, 0xF0, 0xCC, 0xAA, 0xE8;", 0xE8),
        ("shf.l.wrap.b32 %r5, 0x80000000, 1, 1;", 3), ("dp4a.u32.u32 %r5, 0x01020304, 0x01010101, 5;", 15),
        ("cvt.rni.s32.f32 %r5, 0f40200000;", 2), ("cvt.rzi.u32.f32 %r5, 0fBF800000;", 0),
        ("cvt.rn.bf16x2.f32 %r5, 0f3F800000, 0f40000000;", 0x3F804000),
        ("cvt.rna.tf32.f32 %r5, 0f3F801000;", 0x3F802000),
        ("cvt.rn.f16x2.f32 %r5, 0f7FC00000, 0f47800000;", 0x7FFF7C00),
        ("cvt.rn.satfinite.e4m3x2.f32 %h1, 0f43FA0000, 0f3F800000; cvt.u32.u16 %r5, %h1;", 0x7E38),
        ("mov.u32 %r6, 7; redux.sync.add.s32 %r5, %r6, -1;", 224), ("activemask.b32 %r5;", 0xFFFFFFFF),
        ("setp.lt.u32 %p0, %r0, 5; vote.sync.ballot.b32 %r5, %p0, -1;", 31),
        ("and.b32 %r6, %r0, 3; match.any.sync.b32 %r5, %r6, -1; shfl.sync.idx.b32 %r5, %r5, 0, 31, -1;", 0x11111111),
        ("elect.sync %r5|%p1, 240;", 4),
        ("add.cc.u32 %r6, -1, 2; addc.u32 %r5, 5, 6;", 12), ("sub.cc.u32 %r6, 1, 2; subc.u32 %r5, 9, 3;", 5),
        ("mad.lo.cc.u32 %r6, -1, -1, -1; madc.hi.u32 %r5, -1, -1, 0;", 0xFFFFFFFF),
    ],
)  # fmt: skip
def test_single_values(code: str, value: int) -> None:
    code = f"setp.ge.u32 %p9, %r0, 4; setp.lt.u32 %p8, %r0, 8; {code}" if "elect" not in code else (
        "setp.lt.u32 %p0, %r0, 4; @%p0 bra END; setp.ge.u32 %p1, %r0, 8; @%p1 bra END;" + code)  # fmt: skip
    store = "setp.eq.u32 %p5, %r0, 4; @%p5 st.global.u32 [%rd0], %r5; END: mov.u32 %r9, 0;"
    report, (out,) = launch(code + store, np.zeros(1, np.uint32))
    assert report.ok, report
    assert hex(int(out[0])) == hex(value)


def test_unknown_instruction_is_named_with_its_line() -> None:
    with pytest.raises(UnknownInstruction, match=r"PTX line \d+: unknown instruction `frobnicate.f32`"):
        Device().load(entry("frobnicate.f32 %f1, %f2;", "")).launch("k", 1, 32, [])
    with pytest.raises(UnknownInstruction, match="txq"):
        Device().load(entry("txq.width.b32 %r1, [%rd1];", "")).launch("k", 1, 32, [])


def test_runs_are_bitwise_the_same() -> None:
    body = INDEX.format(4) + "ld.global.f32 %f1, [%rd9]; red.global.add.f32 [%rd1], %f1;"
    x = RNG.standard_normal(256).astype(np.float32)
    results = [launch(body, x, np.zeros(1, np.float32), x, block=256)[1][1][0] for _ in range(3)]
    assert len(set(results)) == 1 and abs(results[0] - x.sum()) < 1e-4
