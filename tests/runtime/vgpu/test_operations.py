"""Bit, permute, conversion and 16-bit instructions against small Python references; vector atomics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, UnknownInstruction, formats
from tests.runtime.vgpu.conftest import entry, launch

RNG = np.random.default_rng(29)
WORDS = np.concatenate([np.array([0, 1, 31, 32, 33, 0x80000000, 0xFFFFFFFF, 7], np.uint32),
                        RNG.integers(0, 2**32, 120, dtype=np.uint32)])  # fmt: skip
LOAD = ("mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; add.s64 %rd10, %rd1, %rd8; add.s64 %rd11, %rd2, %rd8;"
        "add.s64 %rd12, %rd3, %rd8; ld.global.b32 %r20, [%rd9]; ld.global.b32 %r21, [%rd10];"
        "ld.global.b32 %r22, [%rd11];")  # fmt: skip
SMALL = np.concatenate([np.arange(40, dtype=np.uint32), RNG.integers(0, 2**32, 88, dtype=np.uint32)])


def three(code: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """%r23 = code(%r20, %r21, %r22) for each element."""
    report, out = launch(LOAD + code + " st.global.b32 [%rd12], %r23;", a, b, c, np.zeros(len(a), np.uint32),
                         block=len(a))  # fmt: skip
    assert report.ok, report
    return out[3]


def bytes_of(a: int, b: int) -> list[int]:
    return [(b << 32 | a) >> 8 * n & 255 for n in range(8)]


def permute(mode: str) -> Callable[[int, int, int], int]:
    """From the ISA's table: for each selector the source of d.b3, d.b2, d.b1, d.b0."""
    table = {
        "f4e": ["3210", "4321", "5432", "6543"], "b4e": ["5670", "6701", "7012", "0123"],
        "rc8": ["0000", "1111", "2222", "3333"], "ecl": ["3210", "3211", "3222", "3333"],
        "ecr": ["0000", "1110", "2210", "3210"], "rc16": ["1010", "3232", "1010", "3232"],
    }  # fmt: skip

    def f(a: int, b: int, c: int) -> int:
        source = bytes_of(a, b)
        if mode:
            picked = [source[int(x)] for x in table[mode][c & 3]][::-1]
        else:
            picked = []
            for n in range(4):
                s = c >> 4 * n & 15
                byte = source[s & 7]
                picked.append((255 if byte & 128 else 0) if s & 8 else byte)
        return sum(byte << 8 * n for n, byte in enumerate(picked))

    return f


def fns(mask: int, base: int, offset: int) -> int:
    offset -= (offset >> 31) << 32
    if offset == 0:
        return base if mask >> base & 1 else 0xFFFFFFFF
    at, left, step = base, abs(offset) - 1, 1 if offset > 0 else -1
    while 0 <= at < 32:
        if mask >> at & 1:
            if not left:
                return at
            left -= 1
        at += step
    return 0xFFFFFFFF


def szext(mode: str, signed: bool) -> Callable[[int, int, int], int]:
    def f(a: int, b: int, _: int) -> int:
        n = b & 31
        large = b >= 32 and mode == "clamp"
        mask = 0 if large else 0xFFFFFFFF << n & 0xFFFFFFFF
        sign = signed and n and not large and a >> (n - 1) & 1
        return a & ~mask | (mask if sign else 0)

    return f


def bmsk(mode: str) -> Callable[[int, int, int], int]:
    def f(a: int, b: int, _: int) -> int:
        p, n = (min(x, 32) if mode == "clamp" else x & 31 for x in (a, b))
        return ((1 << n) - 1) << p & 0xFFFFFFFF

    return f


def signed(x: int, bits: int = 32) -> int:
    return x - (1 << bits) if x >> bits - 1 & 1 else x


def pack(kind: str, bits: int) -> Callable[[int, int, int], int]:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if kind == "s" else (0, (1 << bits) - 1)

    def f(a: int, b: int, c: int) -> int:
        ta, tb = (min(max(signed(x), low), high) & (1 << bits) - 1 for x in (a, b))
        return (tb | ta << bits | (c << 2 * bits if bits < 16 else 0)) & 0xFFFFFFFF

    return f


def pairs(f: Callable[[int, int], int], is_signed: bool) -> Callable[[int, int, int], int]:
    def g(a: int, b: int, _: int) -> int:
        out = 0
        for n in range(2):
            x, y = (v >> 16 * n & 0xFFFF for v in (a, b))
            out |= (f(signed(x, 16), signed(y, 16)) if is_signed else f(x, y)) % 65536 << 16 * n
        return out

    return g


def lop3(a: int, b: int, c: int) -> int:
    return (a & b | c) ^ a


CASES: list[tuple[str, Callable[[int, int, int], int], str]] = [
    *[(f"prmt.b32{'.' + m if m else ''} %r23, %r20, %r21, %r22;", permute(m), "any")
      for m in ("", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16")],
    *[(f"szext.{m}.{t} %r23, %r20, %r21;", szext(m, t == "s32"), "small b") for m in ("clamp", "wrap")
      for t in ("u32", "s32")],
    *[(f"bmsk.{m}.b32 %r23, %r20, %r21;", bmsk(m), "small both") for m in ("clamp", "wrap")],
    ("and.b32 %r21, %r21, 31; fns.b32 %r23, %r20, %r21, %r22;", lambda a, b, c: fns(a, b & 31, c), "offsets"),
    *[(f"cvt.pack.sat.{k}{n}.s32.b32 %r23, %r20, %r21, %r22;", pack(k, n), "any") for k in "us" for n in (2, 4, 8)],
    *[(f"cvt.pack.sat.{k}16.s32 %r23, %r20, %r21;", pack(k, 16), "any") for k in "us"],
    ("add.u16x2 %r23, %r20, %r21;", pairs(lambda x, y: x + y, False), "any"),
    ("min.s16x2 %r23, %r20, %r21;", pairs(min, True), "any"), ("max.u16x2 %r23, %r20, %r21;", pairs(max, False), "any"),
    ("max.relu.s16x2 %r23, %r20, %r21;", pairs(lambda x, y: max(x, y, 0), True), "any"),
    ("min.relu.s32 %r23, %r20, %r21;", lambda a, b, c: max(0, min(signed(a), signed(b))), "any"),
    ("mul24.hi.u32 %r23, %r20, %r21;", lambda a, b, c: (a & 0xFFFFFF) * (b & 0xFFFFFF) >> 16 & 0xFFFFFFFF, "any"),
    ("mad24.lo.s32 %r23, %r20, %r21, %r22;",
     lambda a, b, c: signed(a & 0xFFFFFF, 24) * signed(b & 0xFFFFFF, 24) + c & 0xFFFFFFFF, "any"),
    ("setp.lt.u32 %p2, %r20, %r21; lop3.and.b32 %r24|%p1, %r20, %r21, %r22, 0x1a, %p2; selp.b32 %r23, %r24, 5, %p1;",
     lambda a, b, c: lop3(a, b, c) if lop3(a, b, c) and a < b else 5, "any"),
    ("setp.lt.u32 %p2, %r20, %r21; lop3.or.b32 _|%p1, %r20, %r21, 0, 0x80, %p2; selp.b32 %r23, 1, 0, %p1;",
     lambda a, b, c: int(a < b), "any"),
    ("shf.l.wrap.b32 %r23, %r20, %r21, %r22;", lambda a, b, c: (b << 32 | a) << (c & 31) >> 32 & 0xFFFFFFFF, "small c"),
    ("shf.r.clamp.b32 %r23, %r20, %r21, %r22;", lambda a, b, c: (b << 32 | a) >> min(c, 32) & 0xFFFFFFFF, "small c"),
]  # fmt: skip


def name_of(code: str) -> str:
    return next(part for part in reversed(code.split("; ")) if not part.startswith("selp")).split()[0]


@pytest.mark.parametrize(("code", "f", "inputs"), CASES, ids=[name_of(c[0]) for c in CASES])
def test_words(code: str, f: Callable[[int, int, int], int], inputs: str) -> None:
    a, b, c = (RNG.permutation(WORDS) for _ in range(3))
    if inputs == "small both":
        a = RNG.permutation(SMALL)
    if inputs.startswith("small"):
        b, c = SMALL, SMALL
    if inputs == "offsets":
        c = RNG.integers(-6, 7, len(WORDS)).astype(np.int32).view(np.uint32)
    got = three(code, a, b, c).tolist()
    assert got == [f(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)]


# --- floats
SPECIAL = np.array([0.0, -0.0, 1.0, -1.5, 65519.0, 65520.0, 1e6, -1e6, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan, 6e-8,
                    -6e-8, 448.0, 449.0, 57344.0], np.float32)  # fmt: skip


def convert(opcode: str, x: np.ndarray, wide: bool = False) -> np.ndarray:
    """cvt of f32 values, one thread each, to 16 bits, or to 32 when `wide`."""
    to = "%r1" if wide else "%h1"
    code = f"""mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; ld.global.f32 %f1, [%rd9];
    {opcode} {to}, %f1; {"" if wide else "cvt.u32.u16 %r1, %h1;"} add.s64 %rd9, %rd1, %rd8;
    st.global.b32 [%rd9], %r1;"""
    report, out = launch(code, x, np.zeros(len(x), np.uint32), block=len(x))
    assert report.ok, report
    return out[1]


@pytest.mark.parametrize(("kind", "largest"), [("f16", 65504.0), ("bf16", 2.0**128 - 2.0**120)])
def test_satfinite_and_relu(kind: str, largest: float) -> None:
    got = formats.from16(convert(f"cvt.rn.satfinite.{kind}.f32", SPECIAL).astype(np.uint16), kind)
    finite = ~np.isnan(SPECIAL)
    assert (np.abs(got[finite]) <= largest).all() and np.isnan(got[~finite]).all()
    assert got[np.isposinf(SPECIAL)].tolist() == [largest] and got[np.isneginf(SPECIAL)].tolist() == [-largest]
    got = formats.from16(convert(f"cvt.rn.relu.{kind}.f32", SPECIAL).astype(np.uint16), kind)
    with np.errstate(over="ignore"):
        plain = formats.from16(formats.to16(SPECIAL, kind), kind)
    assert np.array_equal(got, np.where(np.isnan(plain), plain, np.maximum(plain, 0)), equal_nan=True)
    assert not np.signbit(got[SPECIAL < 0]).any()


@pytest.mark.parametrize(("mode", "up"), [("rna", 0x1000), ("rz", 0), ("rn", None)])
def test_tf32(mode: str, up: int | None) -> None:
    x = np.array([1.0, 1 + 2**-11, 1 + 2**-11 + 2**-20, 1 + 3 * 2**-11, -1 - 2**-11, 2.0**-126, np.inf], np.float32)
    got = convert(f"cvt.{mode}.tf32.f32", x, wide=True)
    raw = x.view(np.uint32)
    want = raw + np.uint32(up) if up is not None else raw + np.uint32(0xFFF) + (raw >> np.uint32(13) & np.uint32(1))
    want = np.where(np.isinf(x), raw, want & np.uint32(0xFFFFE000))
    assert got.tolist() == want.tolist()


def test_sm_100_conversions_say_so() -> None:
    with pytest.raises(UnknownInstruction, match=r"sm_100|8-bit floats needs .rn.satfinite"):
        launch("cvt.rn.e4m3x2.f32 %h1, %f1, %f2;")


@pytest.mark.parametrize("ftz", [False, True])
def test_f16_flushes_only_with_ftz(ftz: bool) -> None:
    """2**-20 + 2**-20 is subnormal in f16."""
    code = f"""mov.b16 %h1, 0x0010; add{".ftz" * ftz}.f16 %h2, %h1, %h1; neg{".ftz" * ftz}.f16 %h3, %h1;
    mov.b32 %r1, {{%h2, %h3}}; st.global.b32 [%rd0], %r1;"""
    _, (out,) = launch(code, np.zeros(1, np.uint32))
    assert hex(int(out[0])) == ("0x80000000" if ftz else "0x80100020")


@pytest.mark.parametrize(
    ("opcode", "operands", "value"),
    [
        ("set.lt.f16.f16", "%h1, %h2", 0x3C00), ("set.gt.bf16.f16", "%h1, %h2", 0),
        ("set.lt.bf16.f16", "%h1, %h2", 0x3F80),
        ("set.lt.u16.f16", "%h1, %h2", 0xFFFF),
    ],
)  # fmt: skip
def test_set_of_halves(opcode: str, operands: str, value: int) -> None:
    code = f"""mov.b16 %h1, 0x3C00; mov.b16 %h2, 0x4000; {opcode} %h3, {operands}; cvt.u32.u16 %r1, %h3;
    st.global.b32 [%rd0], %r1;"""
    assert launch(code, np.zeros(1, np.uint32))[1][0][0] == value


@pytest.mark.parametrize(("opcode", "value"), [("set.lt.f16x2.f16x2", 0x00003C00), ("set.lt.u32.f16x2", 0x0000FFFF),
                                               ("set.nan.f16x2.f16x2", 0x3C000000)])  # fmt: skip
def test_set_of_pairs(opcode: str, value: int) -> None:
    code = f"""mov.b32 %r1, 0x7E003C00; mov.b32 %r2, 0x40004000; {opcode} %r3, %r1, %r2; st.global.b32 [%rd0], %r3;"""
    assert launch(code, np.zeros(1, np.uint32))[1][0][0] == value


# --- vector and 16-bit atomics
@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize(
    ("kind", "width"), [("f32", 2), ("f32", 4), ("f16", 8), ("bf16", 4), ("f16x2", 2), ("bf16x2", 4)]
)
def test_vector_add(kind: str, width: int, returns: bool) -> None:
    """64 threads add 1, 2, ... to one vector; what they are given back are the running sums."""
    size = 2 if kind in ("f16", "bf16") else 4
    reg = "%h" if size == 2 else "%f" if kind == "f32" else "%r"
    values = np.arange(1, width * (2 if kind.endswith("x2") else 1) + 1, dtype=np.float32)
    raw = values if kind == "f32" else formats.to16(values, kind.removesuffix("x2"))
    regs = [f"{reg}{10 + n}" for n in range(width)]
    back = [f"{reg}{20 + n}" for n in range(width)]
    noftz = "" if kind == "f32" else ".noftz"
    op = "atom" if returns else "red"
    to = f"{{{', '.join(back)}}}, " if returns else ""
    code = "".join(f"ld.global.b{8 * size} {r}, [%rd0+{size * n}];" for n, r in enumerate(regs))
    code += f"{op}.global.v{width}.{kind}.add{noftz} {to}[%rd1], {{{', '.join(regs)}}};"
    if returns:
        code += f"mul.wide.u32 %rd8, %r0, {width * size}; add.s64 %rd8, %rd2, %rd8;"
        code += "".join(f"st.global.b{8 * size} [%rd8+{size * n}], {r};" for n, r in enumerate(back))
    zeros = np.zeros(len(raw), raw.dtype)
    report, out = launch(code, raw, zeros, np.zeros(64 * len(raw), raw.dtype), block=64)
    assert report.ok, report

    def numbers(x: np.ndarray) -> np.ndarray:
        return x if kind == "f32" else formats.from16(x, kind.removesuffix("x2"))

    want = np.zeros(len(values), np.float32)
    seen = []
    for _ in range(64):
        seen.append(want)
        want = want + values if kind == "f32" else numbers(formats.to16(want + values, kind.removesuffix("x2")))
    assert np.array_equal(numbers(out[1]), want)
    if returns:
        assert np.array_equal(numbers(out[2]).reshape(64, -1), np.array(seen))


def test_vector_max_and_alignment() -> None:
    body = "mov.b16 %h1, 0x4000; mov.b16 %h2, 0xC000; red.global.v2.f16.max.noftz [%rd0+{}], {{%h1, %h2}};"
    report, (out,) = launch(body.format(0), np.array([1, 1, 3, 3], np.float16))
    assert report.ok and out.tolist() == [2, 1, 3, 3]
    report, _ = launch(body.format(2), np.zeros(4, np.float16))
    assert report.kinds() == {"misaligned"}


def test_compare_and_swap_of_16_bits() -> None:
    body = """cvt.u16.u32 %h1, %r0; add.u16 %h2, %h1, 1; atom.global.cas.b16 %h3, [%rd0], %h1, %h2;"""
    report, (out,) = launch(body, np.zeros(2, np.uint16))
    assert report.ok and out.tolist() == [32, 0]


def test_f32_sums_flush_subnormals_in_global_memory_only() -> None:
    body = """mov.b32 %f1, 0f00000010; red.global.add.f32 [%rd0], %f1; mov.u32 %r1, buf; st.shared.b32 [%r1], 0;
    bar.warp.sync -1; atom.shared.add.f32 %f2, [%r1], %f1; bar.warp.sync -1; ld.shared.b32 %r2, [%r1];
    st.global.b32 [%rd1], %r2;"""
    report, (there, here) = launch(body, np.zeros(1, np.uint32), np.zeros(1, np.uint32), shared=16)
    assert there[0] == 0 and here[0] == 32 * 16, report


def test_128_bit_values_move_and_swap() -> None:
    """Each thread swaps its own number in; only the thread that finds 5 compares equal."""
    body = """.reg .b128 %q<4>; mul.wide.u32 %rd8, %r0, 16; add.s64 %rd9, %rd1, %rd8; cvt.u64.u32 %rd10, %r0;
    mov.b64 %rd11, 7; mov.b128 %q0, {%rd10, %rd11}; atom.global.exch.b128 %q1, [%rd0], %q0; mov.b128 %q3, %q1;
    st.global.b128 [%rd9], %q3; mov.b64 %rd12, 5; mov.b128 %q2, {%rd12, %rd11};
    add.s64 %rd13, %rd0, 16; st.global.b128 [%rd13], %q2; atom.global.cas.b128 %q1, [%rd13], %q2, %q0;
    ld.global.b128 %q2, [%rd9]; mov.b128 {%rd14, %rd15}, %q2; add.u64 %rd14, %rd14, 1; st.global.b64 [%rd9], %rd14;"""
    report, (place, seen) = launch(body, np.zeros(4, np.uint64), np.zeros(64, np.uint64))
    assert report.ok, report
    assert place.tolist()[:2] == [31, 7]
    assert place.tolist()[2:] == [0, 7]
    assert seen.reshape(32, 2).tolist() == [[1, 0], *[[n, 7] for n in range(1, 32)]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("red.global.add.f16 [%rd0], %h1;", "needs .noftz"),
        ("red.global.v8.f32.add [%rd0], {%f1, %f2, %f3, %f4, %f5, %f6, %f7, %f8};", "no .v8 of .f32"),
        ("red.global.exch.b32 [%rd0], %r1;", "red has no .exch"),
        ("red.global.v2.f32.min [%rd0], {%f1, %f2};", ".min has no type .f32"),
        ("atom.global.add.b32 %r1, [%rd0], %r2;", "no type .b32"),
    ],
)
def test_atomics_that_there_are_not(text: str, why: str) -> None:
    with pytest.raises(UnknownInstruction, match=why):
        launch(text, np.zeros(16, np.float32))


def test_cp_async_may_ignore_its_source_and_takes_a_cache_policy() -> None:
    body = """mov.u32 %r1, buf; shl.b32 %r2, %r0, 4; add.u32 %r1, %r1, %r2; mul.wide.u32 %rd8, %r0, 16;
    add.s64 %rd9, %rd0, %rd8; add.s64 %rd10, %rd1, %rd8; setp.lt.u32 %p1, %r0, 8;
    createpolicy.fractional.L2::evict_last.b64 %rd11, 1.0;
    cp.async.cg.shared.global [%r1], [%rd9], 16, %p1;
    cp.async.cg.shared.global.L2::cache_hint [%r1+512], [%rd9], 16, %rd11;
    cp.async.wait_all; ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r1]; ld.shared.v4.b32 {%r8, %r9, %r10, %r11}, [%r1+512];
    st.global.v4.b32 [%rd10], {%r4, %r5, %r6, %r7}; st.global.v4.b32 [%rd10+512], {%r8, %r9, %r10, %r11};"""
    x = np.arange(1, 129, dtype=np.uint32)
    report, (_, out) = launch(body, x, np.zeros(256, np.uint32), shared=1024)
    assert report.ok, report
    assert np.array_equal(out[:128], np.where(np.arange(128) < 32, 0, x)) and np.array_equal(out[128:], x)


def test_addresses_of_parameters_in_32_bits() -> None:
    """LLVM moves a parameter's address into a 32-bit register, and converts or loads from there."""
    body = """
      mov.b32 %r1, y; cvt.u64.u32 %rd5, %r1; cvta.param.u64 %rd6, %rd5; ld.b64 %rd7, [%rd6];
      ld.param.u64 %rd8, [%r1]; mov.b64 %rd9, y; cvta.param.u64 %rd9, %rd9; ld.u64 %rd10, [%rd9];
      xor.b64 %rd7, %rd7, %rd1; xor.b64 %rd8, %rd8, %rd1; xor.b64 %rd10, %rd10, %rd1;
      st.global.u64 [%rd0], %rd7; st.global.u64 [%rd0+8], %rd8; st.global.u64 [%rd0+16], %rd10;
      isspacep.param %p1, %rd6; selp.u64 %rd11, 1, 0, %p1; st.global.u64 [%rd0+24], %rd11;
    """
    gpu = Device()
    x, y = gpu.upload(np.full(4, 9, np.uint64)), gpu.upload(np.zeros(1, np.uint64))
    gpu.load(entry(body)).launch("k", 1, 1, [x, y]).check()
    assert gpu.download(x, np.uint64, 4).tolist() == [0, 0, 0, 1]
