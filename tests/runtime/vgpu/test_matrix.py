"""ldmatrix, movmatrix, stmatrix and mma.sync against NumPy; layouts written here element by element."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import formats
from tests.runtime.vgpu.conftest import launch

RNG = np.random.default_rng(5)


def encode(x: np.ndarray, kind: str) -> np.ndarray:
    if kind in ("f16", "bf16"):
        return formats.to16(x, kind)
    if kind == "tf32":
        return formats.to_tf32(x, "rna")
    return formats.to8(x, kind) if kind in ("e4m3", "e5m2") else x.astype(np.int8).view(np.uint8)


def a_place(lane: int, e: int, kind: str) -> tuple[int, int]:
    g, t = lane >> 2, lane & 3
    if kind in ("f16", "bf16"):
        return g + 8 * (e >> 1 & 1), 2 * t + (e & 1) + 8 * (e >> 2)
    if kind == "tf32":
        return g + 8 * (e & 1), t + 4 * (e >> 1)
    return g + 8 * (e >> 2 & 1), 4 * t + (e & 3) + 16 * (e >> 3)


def b_place(lane: int, e: int, kind: str) -> tuple[int, int]:
    g, t = lane >> 2, lane & 3
    if kind in ("f16", "bf16"):
        return 2 * t + (e & 1) + 8 * (e >> 1), g
    return (t + 4 * e, g) if kind == "tf32" else (4 * t + (e & 3) + 16 * (e >> 2), g)


@pytest.mark.parametrize(
    ("kind", "k"), [("f16", 16), ("bf16", 16), ("tf32", 8), ("e4m3", 32), ("e5m2", 32), ("s8", 32)]
)
def test_mma(kind: str, k: int) -> None:
    integer = kind == "s8"
    a, b = RNG.integers(-4, 5, (16, k)).astype(np.float32), RNG.integers(-4, 5, (k, 8)).astype(np.float32)
    ea, eb = encode(a, kind), encode(b, kind)
    fa = np.array([[ea[a_place(q, e, kind)] for e in range(k // 2)] for q in range(32)]).view(np.uint32)
    fb = np.array([[eb[b_place(q, e, kind)] for e in range(k // 4)] for q in range(32)]).view(np.uint32)
    t = "s32" if integer else "f32"
    body = f"""mul.wide.u32 %rd5, %r0, 16; add.s64 %rd6, %rd0, %rd5;
    mul.wide.u32 %rd7, %r0, 8; add.s64 %rd8, %rd1, %rd7;
    add.s64 %rd9, %rd2, %rd5;
    ld.global.v4.b32 {{%r1, %r2, %r3, %r4}}, [%rd6]; ld.global.v2.b32 {{%r5, %r6}}, [%rd8];
    ld.global.v4.b32 {{%r7, %r8, %r9, %r10}}, [%rd9];
    mma.sync.aligned.m16n8k{k}.row.col.{t}.{kind}.{kind}.{t} {{%r11, %r12, %r13, %r14}}, {{%r1, %r2, %r3, %r4}},
      {{%r5, %r6}}, {{%r7, %r8, %r9, %r10}};
    st.global.v4.b32 [%rd9], {{%r11, %r12, %r13, %r14}};"""
    start = np.full((32, 4), 3, np.int32 if integer else np.float32)
    report, out = launch(body, fa, fb, start)
    assert report.ok, report
    got = out[2].reshape(32, 4)
    for lane in range(32):
        for e in range(4):
            row, col = (lane >> 2) + 8 * (e >> 1), 2 * (lane & 3) + (e & 1)
            assert got[lane, e] == (a @ b)[row, col] + 3


@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_and_stmatrix(trans: str) -> None:
    x = np.arange(256, dtype=np.uint16)
    body = f"""mul.wide.u32 %rd5, %r0, 16; add.s64 %rd6, %rd0, %rd5; mov.u32 %r1, buf; shl.b32 %r2, %r0, 4;
    add.u32 %r3, %r1, %r2; ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd6];
    st.shared.v4.b32 [%r3], {{%r4, %r5, %r6, %r7}}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{%r10, %r11, %r12, %r13}}, [%r3];
    add.s64 %rd7, %rd1, %rd5; st.global.v4.b32 [%rd7], {{%r10, %r11, %r12, %r13}};
    movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r10;
    movmatrix.sync.aligned.m8n8.trans.b16 %r10, %r10; bar.warp.sync -1;
    stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [%r3], {{%r10, %r11, %r12, %r13}}; bar.warp.sync -1;
    ld.shared.v4.b32 {{%r4, %r5, %r6, %r7}}, [%r3]; st.global.v4.b32 [%rd6], {{%r4, %r5, %r6, %r7}};"""
    report, (back, got) = launch(body, x, np.zeros_like(x), shared=512)
    assert report.ok, report
    assert np.array_equal(back, x)
    got, tiles = got.reshape(32, 4, 2), x.reshape(4, 8, 8)
    for lane in range(32):
        for q in range(4):
            g, t = lane >> 2, lane & 3
            tile = tiles[q].T if trans else tiles[q]
            assert got[lane, q].tolist() == tile[g, 2 * t : 2 * t + 2].tolist()
