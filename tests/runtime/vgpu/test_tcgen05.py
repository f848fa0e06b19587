"""tcgen05 computes what it says: operand types, layouts of shared and tensor memory, shapes of loads and stores."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tcomp.runtime.vgpu import Options, UnknownInstruction, formats
from tests.runtime.vgpu.conftest import find_nvcc
from tests.runtime.vgpu.tensor_kernels import (
    AFTER,
    BEFORE,
    COMMIT,
    FIRST,
    LOADED,
    READ,
    STORED,
    SYNC,
    WAIT,
    WAITED,
    Product,
    kernel,
    load,
    operands,
    out,
    run,
    steps,
    store,
)
from tests.runtime.vgpu.wgmma_kernels import DEPTH

NUMBERED = "".join(f"shl.b32 %d{e}, %r0, 8; add.u32 %d{e}, %d{e}, {e};\n" for e in range(32))
"""%d of a thread: 256 times its number, and the register's"""


@pytest.mark.parametrize(
    "p",
    [
        Product(a="f16"),
        Product(n=256),
        Product(a="tf32", n=16),
        Product(a="e4m3"),
        Product(a="e5m2", b="e4m3", n=32),
        Product(across=(True, False)),
        Product(across=(False, True), a="f16"),
        Product(across=(True, True), a="e4m3"),
        Product(negative=(True, False)),
        Product(negative=(True, True), a="tf32"),
        Product(a="f16", d="f16"),
        Product(a="e5m2", d="f16", n=16),
        Product(m=64, n=8),
        Product(n=8),
        Product(a="e4m3", n=24),
    ],
    ids=str,
)
@pytest.mark.parametrize("modes", [(1, 1), (2, 3), (0, 0)], ids=str)
def test_one_product(p: Product, modes: tuple[int, int]) -> None:
    """D = A B of 32 bytes along k, at every swizzle."""
    a, b, image, code = operands(p, DEPTH[p.a], modes)
    n = min(p.n, 64)
    text = kernel(code + FIRST + p.text() + COMMIT + WAITED + AFTER + load(n) + LOADED + out(n), n)
    report, found = run(text, image, n, dtype="<u4")
    want = (a @ b.T)[:, :n] * (-1 if p.negative[0] != p.negative[1] else 1)
    values = found.view(np.float32) if p.d == "f32" else formats.from16(found.astype(np.uint16), "f16")
    if p.m == 64:
        values = values.reshape(4, 32, n)[:, :16].reshape(64, n)
        assert report.kinds() == {"uninitialised read of tensor memory"}  # the lanes between have no rows
    else:
        assert report.ok, str(report)
    assert np.array_equal(values, want)


def test_products_add_up_in_several_blocks() -> None:
    p = Product()
    a, b, image, code = operands(p, 64)
    report, found = run(kernel(code + steps(p) + READ), image, 64, grid=3)
    assert report.ok, str(report)
    assert np.array_equal(found, a @ b.T)
    report, found = run(kernel(code + steps(p) + READ), image, 64, options=Options(checks=False))
    assert np.array_equal(found, a @ b.T)


@pytest.mark.parametrize(("columns", "waiting"), [(128, 0), (256, 2), (512, 4)])
def test_blocks_of_an_sm_share_its_columns(columns: int, waiting: int) -> None:
    """By shared memory three of these blocks fit an SM: the others wait until columns are given back."""
    p = Product()
    a, b, image, code = operands(p, 64)
    report, found = run(kernel(code + steps(p) + READ, columns=columns), image, 64, grid=6)
    assert report.ok and report.waited_for_columns == waiting, str(report)
    assert np.array_equal(found, a @ b.T)


def test_the_sum_that_a_product_starts_from_may_be_scaled() -> None:
    p = Product(n=16)
    a, b, image, code = operands(p, 16)
    twice = FIRST + p.text() + "mov.pred %p4, -1;\n" + p.text(tail=", 3")
    report, found = run(kernel(code + twice + COMMIT + WAITED + AFTER + load(16) + LOADED + out(16), 16), image, 16)
    assert report.ok, str(report)
    assert np.array_equal(found, a @ b.T * 1.125)


@pytest.mark.parametrize("kind", ["bf16", "tf32", "e4m3"])
def test_the_left_operand_in_tensor_memory(kind: str) -> None:
    """Row r of A is in lane r, its 32 bytes in eight columns."""
    p = Product(a=kind, n=32)
    a, b, image, code = operands(p, DEPTH[kind], (0, 1))
    half = "".join(
        f"ld.shared.b32 %d{4 * c + e}, [%r15+{1024 + 128 * c + 4 * e}];\n" for c in range(2) for e in range(4)
    )
    rows = (
        "shr.u32 %r13, %r0, 3; and.b32 %r14, %r0, 7; shl.b32 %r13, %r13, 8; mad.lo.u32 %r15, %r14, 16, %r13;\n" + half
    )
    text = kernel(code + rows + "add.u32 %r16, %r12, 64; add.u32 %r17, %r10, 64;\n" + store(8, at="%r16") + STORED
                  + BEFORE + SYNC + AFTER + FIRST + p.text("[%r17]") + COMMIT + WAITED + AFTER + load(32) + LOADED
                  + out(32))  # fmt: skip
    report, found = run(text, image, 32)
    assert report.ok, str(report)
    assert np.array_equal(found, a @ b.T)


@pytest.mark.parametrize(
    ("shape", "times", "offset"),
    [("32x32b", 32, ""), ("16x128b", 16, ""), ("16x256b", 8, ""), ("16x32bx2", 16, ", 16")],
)
def test_stores_and_loads_are_inverse(shape: str, times: int, offset: str) -> None:
    n = 32 if not offset else 16
    clear = "".join(f"mov.b32 %d{e}, 0;\n" for e in range(n))
    text = kernel(NUMBERED + store(n, shape, times, offset) + STORED + clear + load(n, shape, times, offset) + LOADED
                  + out(n))  # fmt: skip
    report, found = run(text, np.zeros(65536, np.uint8), n, dtype="<u4")
    assert report.ok, str(report)
    assert np.array_equal(found, np.arange(128)[:, None] * 256 + np.arange(n))


def test_fragments_of_16_lanes_are_those_of_mma() -> None:
    """.16x256b: a thread has pairs of columns in rows t / 4 and t / 4 + 8, as accumulators of mma.m16n8."""
    text = kernel(NUMBERED + store(32) + STORED + load(8, "16x256b", 2) + LOADED + out(8))
    report, found = run(text, np.zeros(65536, np.uint8), 8, dtype="<u4")
    assert report.ok, str(report)
    t, e = np.arange(128)[:, None], np.arange(8)[None, :]
    row = t // 32 * 32 + t % 32 // 4 + e // 2 % 2 * 8
    assert np.array_equal(found, row * 256 + t % 4 * 2 + e % 2 + e // 4 * 8)


def test_a_ring_of_commits() -> None:
    """The issuer commits to one mbarrier more often than anyone waits in between, and another after each."""
    p = Product(n=16)
    a, b, image, code = operands(p, 64)
    other = COMMIT.replace("[bar]", "[bar+8]")
    each = "".join((FIRST if not k else "mov.pred %p4, -1;\n") + p.text() + other
                   + f"@!%p0 bra SKIP{k};\n" + WAIT.format(n=k + 1, at="+8", parity=k % 2) + f"SKIP{k}:\n"
                   + "add.s64 %rd20, %rd20, 2; add.s64 %rd21, %rd21, 2;\n" for k in range(4))  # fmt: skip
    report, found = run(kernel(code + each + other + COMMIT + WAITED + AFTER + load(16) + LOADED + out(16)), image, 16)
    assert report.ok, str(report)
    assert np.array_equal(found, a @ b.T)


UNKNOWN = {
    "the same .cta_group": "tcgen05.mma.cta_group::2.kind::f16 [%r10], %rd20, %rd21, %r20, %p4;",
    "dense products": "tcgen05.mma.cta_group::1.kind::i8 [%r10], %rd20, %rd21, %r20, %p4;",
    "disable-output-lane": "tcgen05.mma.cta_group::1.kind::f16 [%r10], %rd20, %rd21, %r20, {%r1, %r1, %r1, %r1}, %p4;",
    "not executed": "tcgen05.cp.cta_group::1.128x256b [%r10], %rd20;",
    ".16x64b": "tcgen05.ld.sync.aligned.16x64b.x1.b32 {%d0}, [%r12];",
    "packing": "tcgen05.ld.sync.aligned.32x32b.x1.pack::16b.b32 {%d0}, [%r12];",
    "takes 2": "tcgen05.ld.sync.aligned.32x32b.x2.b32 {%d0}, [%r12];",
    "transposed tf32": Product(a="tf32", across=(True, False)).text(),
    "scale-input-d": Product(a="e4m3").text(tail=", 3"),
    "sparse": Product().text().replace("mov.b32 %r20, 0x", "mov.b32 %r20, 0x4 | 0x"),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_is_not_executed_is_named(why: str) -> None:
    _, _, image, code = operands(Product(), 16)
    with pytest.raises(UnknownInstruction, match=why):
        run(kernel(code + "mov.b32 %r20, 0;" + UNKNOWN[why]), image, 1)


@pytest.mark.slow
def test_ptxas_takes_these_kernels(tmp_path: Path) -> None:
    nvcc = find_nvcc()
    ptxas = Path(nvcc).with_name("ptxas") if nvcc else None
    if ptxas is None or not ptxas.exists():
        pytest.skip("no ptxas")
    p = Product()
    moves = load(16, "16x256b", 4) + LOADED + store(16, "16x128b", 8) + STORED + load(8, "16x32bx2", 8, ", 16")
    text = kernel(operands(p, 64)[3] + steps(p) + p.text("[%r10]", tail=", 3") + READ + moves + LOADED)
    (tmp_path / "k.ptx").write_text(text)
    command = [ptxas, "-arch=sm_100a", "k.ptx", "-o", "k.cubin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
