"""wmma.load, wmma.mma and wmma.store: every shape, type, layout and space against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import UnknownInstruction, formats
from tcomp.runtime.vgpu.op_wmma import matrix
from tests.runtime.vgpu.conftest import launch

RNG = np.random.default_rng(17)
SHAPES = {"m16n16k16": (16, 16, 16), "m8n32k16": (8, 32, 16), "m32n8k16": (32, 8, 16), "m16n16k8": (16, 16, 8),
          "m8n8k4": (8, 8, 4), "m8n8k32": (8, 8, 32), "m8n8k128": (8, 8, 128)}  # fmt: skip
CASES = [
    *[(s, "f16", td, tc) for s in ("m16n16k16", "m8n32k16", "m32n8k16") for td, tc in
      (("f32", "f32"), ("f16", "f16"), ("f32", "f16"), ("f16", "f32"))],
    *[(s, "bf16", "f32", "f32") for s in ("m16n16k16", "m8n32k16", "m32n8k16")],
    *[(s, t, "s32", "s32") for s in ("m16n16k16", "m8n32k16", "m32n8k16") for t in ("s8", "u8")],
    ("m16n16k8", "tf32", "f32", "f32"), ("m8n8k4", "f64", "f64", "f64"),
    *[("m8n8k32", t, "s32", "s32") for t in ("s4", "u4")], ("m8n8k128", "b1", "s32", "s32"),
]  # fmt: skip
DTYPES = {"f16": np.float16, "f32": np.float32, "tf32": np.float32, "f64": np.float64, "s8": np.int8, "u8": np.uint8,
          "s32": np.int32}  # fmt: skip


def memory(x: np.ndarray, kind: str) -> np.ndarray:
    """Values in row-major memory order -> bytes."""
    if kind == "bf16":
        return formats.to16(x.astype(np.float32), kind)
    if kind in ("s4", "u4", "b1"):
        per = 2 if kind != "b1" else 8
        small = (x & (15 if per == 2 else 1)).reshape(-1, per)
        return sum(small[:, n] << (8 // per * n) for n in range(per)).astype(np.uint8)
    return np.ascontiguousarray(x.astype(DTYPES[kind]))


def registers(use: str, kind: str, m: int, n: int, k: int) -> int:
    return matrix(use, kind, m, n, k).registers


def vector(first: int, count: int, wide: bool) -> str:
    return "{" + ", ".join(f"%{'rd' if wide else 'r'}{first + q}" for q in range(count)) + "}"


@pytest.mark.parametrize("layouts", ["row.col", "col.row"])
@pytest.mark.parametrize(("shape", "kind", "td", "tc"), CASES)
def test_multiply(shape: str, kind: str, td: str, tc: str, layouts: str) -> None:
    m, n, k = SHAPES[shape]
    la, lb = layouts.split(".")
    small = kind in ("s4", "u4", "b1")
    if small and layouts != "row.col":
        pytest.skip("4-bit and 1-bit matrices have one layout")
    low, high = {"u8": (0, 9), "u4": (0, 16), "s4": (-8, 8), "b1": (0, 2)}.get(kind, (-4, 5))
    a, b, c = RNG.integers(low, high, (m, k)), RNG.integers(low, high, (k, n)), RNG.integers(-9, 10, (m, n))
    wide = kind == "f64"
    na, nb, nc, nd = (registers(u, t, m, n, k) for u, t in zip("abcd", (kind, kind, tc, td), strict=True))
    va, vb, vc = vector(10, na, wide), vector(20, nb, wide), vector(30, nc, wide)
    vd = vector(30, nd, wide) if not wide else vector(34, nd, wide)
    types = f"{td}.{tc}" if kind == "f16" else f"{td}.{kind}.{kind}.{tc}"
    op = ".xor.popc" if kind == "b1" else ""
    lc, ld_ = ("row", "col") if la == "row" else ("col", "row")
    body = f"""wmma.load.a.sync.aligned.{la}.{shape}.global.{kind} {va}, [%rd0];
    wmma.load.b.sync.aligned.{lb}.{shape}.global.{kind} {vb}, [%rd1], {k if lb == "col" else n};
    wmma.load.c.sync.aligned.{lc}.{shape}.{tc} {vc}, [%rd2];
    wmma.mma{op}.sync.aligned.{la}.{lb}.{shape}.{types} {vd}, {va}, {vb}, {vc};
    wmma.store.d.sync.aligned.{ld_}.{shape}.global.{td} [%rd3], {vd};"""
    out = np.zeros(m * n, DTYPES[td])
    ma = memory(a if la == "row" else a.T, kind)
    mb = memory(b.T if lb == "col" else b, kind)
    report, got = launch(body, ma, mb, memory(c if lc == "row" else c.T, tc), out)
    assert report.ok, report
    product = (a[:, :, None] ^ b[None]).sum(axis=1) if kind == "b1" else a @ b
    want = (product + c).astype(DTYPES[td])
    assert np.array_equal(got[3], (want if ld_ == "row" else want.T).reshape(-1))


@pytest.mark.parametrize("use", "abcd")
@pytest.mark.parametrize(("shape", "kind"), [("m16n16k16", "f16"), ("m32n8k16", "s8"), ("m8n32k16", "bf16"),
                                             ("m16n16k8", "tf32"), ("m8n8k4", "f64"), ("m8n8k128", "b1")])  # fmt: skip
def test_every_element_has_one_place(shape: str, kind: str, use: str) -> None:
    if use in "cd":
        kind = {"f16": "f16", "f64": "f64"}.get(kind, "f32")
    x = matrix(use, kind, *SHAPES[shape])
    row, column = x.places()
    assert len(set(zip(row.ravel().tolist(), column.ravel().tolist(), strict=True))) == x.rows * x.columns
    assert row.max() < x.rows and column.max() < x.columns


def test_a_tile_of_a_larger_matrix_in_shared_memory() -> None:
    x = RNG.integers(-9, 10, (16, 32)).astype(np.float32)
    body = f"""mov.u32 %r1, buf; mul.wide.u32 %rd5, %r0, 64; add.s64 %rd6, %rd0, %rd5; shl.b32 %r2, %r0, 6;
    add.u32 %r2, %r2, %r1;
    {"".join(f"ld.global.b32 %r5, [%rd6+{4 * n}]; st.shared.b32 [%r2+{4 * n}], %r5;" for n in range(16))}
    bar.warp.sync -1;
    wmma.load.c.sync.aligned.row.m16n16k16.shared.f32 {vector(10, 8, False)}, [%r1+64], 32;
    wmma.store.d.sync.aligned.row.m16n16k16.global.f32 [%rd1], {vector(10, 8, False)}, 16;"""
    report, got = launch(body, x, np.zeros(256, np.float32), shared=2048)
    assert report.ok, report
    assert np.array_equal(got[1].reshape(16, 16), x[:, 16:])


@pytest.mark.parametrize(
    ("operands", "kind"),
    [("[%rd0+16]", "misaligned"), ("[%rd0], 20", "misaligned"), ("[%rd0], 8", "wmma stride too small"),
     ("[%rd5]", "wmma operands differ"), ("[%rd0+512]", "out of bounds global")],
)  # fmt: skip
def test_faults(operands: str, kind: str) -> None:
    body = f"""mul.wide.u32 %rd5, %r0, 32; add.s64 %rd5, %rd0, %rd5;
    wmma.load.a.sync.aligned.row.m16n16k16.global.f16 {vector(10, 8, False)}, {operands};"""
    report, _ = launch(body, np.zeros(2048 if kind == "wmma operands differ" else 384, np.float16))
    assert kind in report.kinds()


def test_shapes_that_are_not_there() -> None:
    with pytest.raises(UnknownInstruction, match=r"m16n16k8 multiplies \.tf32"):
        launch("wmma.load.a.sync.aligned.row.m16n16k8.global.f16 {%r1, %r2, %r3, %r4}, [%rd0];", np.zeros(4))
