"""mma.sync in every dense shape against NumPy, with the ISA's own formulas for who holds what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tcomp.runtime.vgpu import PtxError, formats
from tests.runtime.vgpu.conftest import launch

RNG = np.random.default_rng(11)
Place = Callable[[int, int, int], tuple[int, int]]


@dataclass
class Case:
    shape: str
    m: int
    k: int
    types: tuple[str, str, str]  # D and C, A, B
    a: Place  # (g, t, i) -> (row, k)
    b: Place  # (g, t, i) -> (n, k)
    extra: str = ""

    def __str__(self) -> str:
        return f"{self.shape}-{'-'.join(self.types)}{self.extra}"


BITS = {"f16": 16, "bf16": 16, "tf32": 32, "f64": 64, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "s4": 4, "u4": 4, "b1": 1}
F16_8: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 2 else g + 8, 2 * t + (i & 1)),
    lambda g, t, i: (g, 2 * t + i),
)
F16_16: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 2 or 4 <= i < 6 else g + 8, 2 * t + (i & 1) + (0 if i < 4 else 8)),
    lambda g, t, i: (g, 2 * t + (i & 1) + (0 if i < 2 else 8)),
)
TF32_4: tuple[Place, Place] = (lambda g, t, i: (g + 8 * i, t), lambda g, t, i: (g, t))
TF32_8: tuple[Place, Place] = (
    lambda g, t, i: (g if i in (0, 2) else g + 8, t if i < 2 else t + 4),
    lambda g, t, i: (g, t + 4 * i),
)
F64_16: tuple[Place, Place] = (
    lambda g, t, i: (g if i % 2 == 0 else g + 8, (2 * i if i % 2 == 0 else 2 * i - 2) + t),
    lambda g, t, i: (g, t + 4 * i),
)
I8_16: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 4 else g + 8, 4 * t + (i & 3)),
    lambda g, t, i: (g, 4 * t + i),
)
I8_32: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 4 or 8 <= i < 12 else g + 8, 4 * t + (i & 3) + (0 if i < 8 else 16)),
    lambda g, t, i: (g, 4 * t + (i & 3) + (0 if i < 4 else 16)),
)
I4_32: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 8 else g + 8, 8 * t + (i & 7)),
    lambda g, t, i: (g, 8 * t + i),
)
I4_64: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 8 or 16 <= i < 24 else g + 8, 8 * t + (i & 7) + (0 if i < 16 else 32)),
    lambda g, t, i: (g, 8 * t + (i & 7) + (0 if i < 8 else 32)),
)
B1_128: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 32 else g + 8, 32 * t + (i & 31)),
    lambda g, t, i: (g, 32 * t + i),
)
B1_256: tuple[Place, Place] = (
    lambda g, t, i: (g if i < 32 or 64 <= i < 96 else g + 8, 32 * t + (i & 31) + (0 if i < 64 else 128)),
    lambda g, t, i: (g, 32 * t + (i & 31) + (0 if i < 32 else 128)),
)
SMALL = lambda per: (lambda g, t, i: (g, per * t + i), lambda g, t, i: (g, per * t + i))  # noqa: E731

CASES = [
    Case("m16n8k8", 16, 8, ("f32", "f16", "f16"), *F16_8),
    Case("m16n8k8", 16, 8, ("f16", "f16", "f16"), *F16_8),
    Case("m16n8k8", 16, 8, ("f32", "bf16", "bf16"), *F16_8),
    Case("m16n8k16", 16, 16, ("f32", "f16", "f16"), *F16_16),
    Case("m16n8k16", 16, 16, ("f16", "f16", "f16"), *F16_16),
    Case("m16n8k16", 16, 16, ("f32", "bf16", "bf16"), *F16_16),
    Case("m16n8k4", 16, 4, ("f32", "tf32", "tf32"), *TF32_4),
    Case("m16n8k8", 16, 8, ("f32", "tf32", "tf32"), *TF32_8),
    Case("m8n8k4", 8, 4, ("f64", "f64", "f64"), *SMALL(1)),
    Case("m16n8k4", 16, 4, ("f64", "f64", "f64"), *TF32_4),
    Case("m16n8k8", 16, 8, ("f64", "f64", "f64"), *TF32_8),
    Case("m16n8k16", 16, 16, ("f64", "f64", "f64"), *F64_16),
    Case("m8n8k16", 8, 16, ("s32", "s8", "u8"), *SMALL(4)),
    Case("m16n8k16", 16, 16, ("s32", "u8", "u8"), *I8_16),
    Case("m16n8k32", 16, 32, ("s32", "u8", "s8"), *I8_32),
    Case("m16n8k16", 16, 16, ("f32", "e4m3", "e5m2"), *I8_16),
    Case("m16n8k32", 16, 32, ("f16", "e5m2", "e4m3"), *I8_32),
    Case("m8n8k32", 8, 32, ("s32", "s4", "s4"), *SMALL(8)),
    Case("m16n8k32", 16, 32, ("s32", "u4", "s4"), *I4_32),
    Case("m16n8k64", 16, 64, ("s32", "s4", "u4"), *I4_64),
    Case("m8n8k128", 8, 128, ("s32", "b1", "b1"), *SMALL(32), extra=".xor.popc"),
    Case("m16n8k128", 16, 128, ("s32", "b1", "b1"), *B1_128, extra=".and.popc"),
    Case("m16n8k256", 16, 256, ("s32", "b1", "b1"), *B1_256, extra=".xor.popc"),
]


def numbers(kind: str, shape: tuple[int, int]) -> np.ndarray:
    low, high = {"u8": (0, 9), "u4": (0, 16), "s4": (-8, 8), "b1": (0, 2)}.get(kind, (-4, 5))
    return RNG.integers(low, high, shape)


def pack(elements: np.ndarray, kind: str) -> np.ndarray:
    """(32 lanes, elements) -> (32, registers) bits, lowest element first."""
    if kind in ("f16", "bf16"):
        raw = formats.to16(elements.astype(np.float32), kind)
    elif kind in ("tf32", "f64"):
        raw = elements.astype(np.float32 if kind == "tf32" else np.float64)
    elif kind in ("e4m3", "e5m2"):
        raw = formats.to8(elements, kind)
    elif kind in ("s4", "u4", "b1"):
        bits = BITS[kind]
        per = 8 // bits
        small = (elements & ((1 << bits) - 1)).reshape(32, -1, per)
        raw = sum(small[:, :, n] << (bits * n) for n in range(per)).astype(np.uint8)
    else:
        raw = elements.astype(np.int8 if kind == "s8" else np.uint8)
    return np.ascontiguousarray(raw).view(np.uint64 if kind == "f64" else np.uint32).reshape(32, -1)


def fragment(matrix: np.ndarray, place: Place, kind: str) -> np.ndarray:
    count = matrix.size // 32
    places = [[place(lane >> 2, lane & 3, i) for i in range(count)] for lane in range(32)]
    assert len({p for row in places for p in row}) == matrix.size, "every element has one holder"
    return pack(np.array([[matrix[p] for p in row] for row in places]), kind)


def c_place(g: int, t: int, i: int) -> tuple[int, int]:
    return g if i < 2 else g + 8, 2 * t + (i & 1)


def accumulators(matrix: np.ndarray, kind: str) -> np.ndarray:
    count = matrix.size // 32
    values = np.array([[matrix[c_place(q >> 2, q & 3, i)] for i in range(count)] for q in range(32)])
    if kind == "f16":
        return values.astype(np.float16).view(np.uint32)
    return values.astype({"f32": np.float32, "s32": np.int32, "f64": np.float64}[kind])


def body(opcode: str, sizes: tuple[int, int, int], wide: bool) -> str:
    """Loads A, B, C from arrays 0 to 2 (a lane's registers together), multiplies, and stores D over C."""
    bytes_, bits, name = (8, 64, "%rd") if wide else (4, 32, "%r")
    text, start, groups = "", 10, []
    for n, count in enumerate(sizes):
        regs = [f"{name}{start + q}" for q in range(count)]
        start += count
        groups.append("{" + ", ".join(regs) + "}")
        text += f"mul.wide.u32 %rd5, %r0, {count * bytes_}; add.s64 %rd6, %rd{n}, %rd5;\n"
        text += "".join(f"ld.global.b{bits} {r}, [%rd6+{bytes_ * q}];\n" for q, r in enumerate(regs))
    text += f"{opcode} {groups[2]}, {groups[0]}, {groups[1]}, {groups[2]};\n"
    regs = groups[2].strip("{}").split(", ")
    return text + "".join(f"st.global.b{bits} [%rd6+{bytes_ * q}], {r};\n" for q, r in enumerate(regs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape(case: Case) -> None:
    td, ta, tb = case.types
    a, b, c = numbers(ta, (case.m, case.k)), numbers(tb, (8, case.k)), RNG.integers(-9, 10, (case.m, 8))
    fa, fb, fc = fragment(a, case.a, ta), fragment(b, case.b, tb), accumulators(c, td)
    opcode = f"mma.sync.aligned.{case.shape}.row.col.{td}.{ta}.{tb}.{td}{case.extra}"
    report, out = launch(body(opcode, (fa.shape[1], fb.shape[1], fc.shape[1]), ta == "f64"), fa, fb, fc)
    assert report.ok, report
    product = (a[:, None, :] ^ b[None, :, :]).sum(axis=2) if "xor" in case.extra else a @ b.T
    assert np.array_equal(out[2].view(fc.dtype).reshape(fc.shape), accumulators(product + c, td))


@pytest.mark.parametrize("saturate", [False, True])
def test_integers_wrap_or_saturate(saturate: bool) -> None:
    a, b = np.full((16, 32), 127), np.full((8, 32), 127)
    c = np.full((16, 8), 2**31 - 10)
    fa, fb, fc = fragment(a, I8_32[0], "s8"), fragment(b, I8_32[1], "s8"), accumulators(c, "s32")
    opcode = f"mma.sync.aligned.m16n8k32.row.col{'.satfinite' * saturate}.s32.s8.s8.s32"
    _, out = launch(body(opcode, (4, 2, 4), False), fa, fb, fc)
    want = 2**31 - 1 if saturate else 2**31 - 10 + 32 * 127 * 127 - 2**32
    assert (out[2].view(np.int32) == want).all()


def test_tf32_ignores_the_low_bits_of_its_operands() -> None:
    a, b = np.ones((16, 8)), np.eye(8)
    fa = fragment(a, TF32_8[0], "tf32") | np.uint32(0x1FFF)
    fb, fc = fragment(b, TF32_8[1], "tf32"), accumulators(np.zeros((16, 8)), "f32")
    _, out = launch(body("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", (4, 2, 4), False), fa, fb, fc)
    assert (out[2].view(np.float32) == 1).all()


def test_f32_sums_are_f32_sums() -> None:
    """2**24 + 1 + 1 + ... is lost in f32 and kept in f64: the model is not finer than the hardware."""
    a = np.ones((16, 16))
    b = np.ones((8, 16))
    c = np.full((16, 8), 2.0**25)
    fa, fb, fc = fragment(a, F16_16[0], "f16"), fragment(b, F16_16[1], "f16"), accumulators(c, "f32")
    _, out = launch(body("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", (4, 2, 4), False), fa, fb, fc)
    assert (out[2].view(np.float32) == 2.0**25 + 16).all()
    tiny = fragment(np.eye(16, 16), F16_16[0], "f16")
    _, out = launch(body("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", (4, 2, 4), False), tiny, fb, fc)
    assert (out[2].view(np.float32) == 2.0**25).all()


@pytest.mark.parametrize("types", [("f32", "f32"), ("f16", "f16"), ("f32", "f16")])
@pytest.mark.parametrize("layouts", ["row.col", "col.row", "row.row", "col.col"])
def test_f16_m8n8k4_is_four_products(types: tuple[str, str], layouts: str) -> None:
    td, tc = types
    a, b, c = (RNG.integers(-4, 5, (4, *s)) for s in ((8, 4), (8, 4), (8, 8)))
    la, lb = layouts.split(".")
    fa, fb = np.zeros((32, 4), np.float16), np.zeros((32, 4), np.float16)
    rows: dict[str, np.ndarray] = {t: np.zeros((32, 8), np.float32) for t in ("c", "d")}
    for lane in range(32):
        q, high = lane % 16 // 4, 4 * (lane >= 16)
        for i in range(4):
            fa[lane, i] = a[q, lane % 4 + high, i] if la == "row" else a[q, i + high, lane % 4]
            fb[lane, i] = b[q, lane % 4 + high, i] if lb == "col" else b[q, i + high, lane % 4]
        for name, kind, matrix in (("c", tc, c), ("d", td, np.matmul(a, b.swapaxes(1, 2)) + c)):
            for i in range(8):
                row = lane % 4 + high if kind == "f16" else (lane & 1) + (i & 2) + high
                col = i if kind == "f16" else (i & 4) + (lane & 2) + (i & 1)
                rows[name][lane, i] = matrix[q][row, col]
    nc, nd = (4 if t == "f16" else 8 for t in (tc, td))
    fc = rows["c"].astype(np.float16).view(np.uint32) if tc == "f16" else rows["c"].view(np.uint32)
    out = np.zeros((32, nd), np.uint32)
    cs, ds = [f"%r{20 + n}" for n in range(nc)], [f"%r{30 + n}" for n in range(nd)]
    text = f"""mul.wide.u32 %rd5, %r0, 8; add.s64 %rd6, %rd0, %rd5; ld.global.v2.b32 {{%r1, %r2}}, [%rd6];
    add.s64 %rd6, %rd1, %rd5; ld.global.v2.b32 {{%r3, %r4}}, [%rd6];
    mul.wide.u32 %rd5, %r0, {4 * nc}; add.s64 %rd6, %rd2, %rd5;
    {"".join(f"ld.global.b32 {r}, [%rd6+{4 * n}];" for n, r in enumerate(cs))}
    mma.sync.aligned.m8n8k4.{layouts}.{td}.f16.f16.{tc}
      {{{", ".join(ds)}}}, {{%r1, %r2}}, {{%r3, %r4}}, {{{", ".join(cs)}}};
    mul.wide.u32 %rd5, %r0, {4 * nd}; add.s64 %rd6, %rd3, %rd5;
    {"".join(f"st.global.b32 [%rd6+{4 * n}], {r};" for n, r in enumerate(ds))}"""
    report, got = launch(text, fa, fb, fc, out)
    assert report.ok, report
    want = rows["d"].astype(np.float16).view(np.uint32) if td == "f16" else rows["d"].view(np.uint32)
    assert np.array_equal(got[3].reshape(32, nd), want)


@pytest.mark.parametrize(
    ("opcode", "why"),
    [
        ("mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "sparse"),
        ("mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.e4m3.e4m3.f32", "needs sm_120a"),
        ("mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32", "has the shapes"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.bf16.bf16.f16", "accumulates in"),
        ("mma.sync.aligned.m16n8k16.col.col.f32.f16.f16.f32", "A is .row"),
    ],
)
def test_what_is_refused(opcode: str, why: str) -> None:
    with pytest.raises(PtxError, match=why):
        launch(f"{opcode} {{%r1, %r2, %r3, %r4}}, {{%r1, %r2, %r3, %r4}}, {{%r5, %r6}}, {{%r1, %r2, %r3, %r4}};")


def test_part_of_a_warp_is_a_finding() -> None:
    text = """setp.lt.u32 %p1, %r0, 16; mov.b32 %r1, 0; @%p1 bra GO; exit;
    GO: mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r2, %r3, %r4, %r5}, {%r1, %r1}, {%r1}, {%r1, %r1, %r1, %r1};
    """
    report, _ = launch(text)
    assert report.kinds() == {"partial warp"}
