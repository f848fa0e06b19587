"""wgmma against NumPy: every type, swizzle, transposition, N and scale; chains, several blocks and warpgroups."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tcomp.runtime.vgpu import Report
from tcomp.runtime.vgpu.matrix_numbers import truncated_sum
from tests.runtime.vgpu.wgmma_kernels import (
    COMMIT,
    DEPTH,
    FENCE,
    RNG,
    WAIT,
    WHOLE,
    A,
    B,
    Tile,
    a_place,
    a_registers,
    chain,
    d_place,
    descriptors,
    encode,
    instruction,
    kernel,
    matrix_of,
    numbers,
    registers_of,
    run,
    steps,
    tile,
    vector,
)


def multiply(
    kind: str = "bf16", n: int = 64, td: str = "f32", other: str = "", modes: tuple[int, int] = (1, 1),
    transposed: tuple[bool, bool] = (False, False), from_registers: bool = False, scale_d: int = 1,
    scales: tuple[int, int] = (1, 1), spread: int = 1,
) -> tuple[Report, np.ndarray, np.ndarray]:  # fmt: skip
    """One mma_async of whole numbers; (report, D as computed, D as it should be)."""
    k, other = DEPTH[kind], other or kind
    a, b, c = numbers(kind, (64, k)), numbers(other, (n, k)), RNG.integers(-9, 10, (64, n))
    tile_a, tile_b = tile(A, modes[0], 64, transposed[0], spread), tile(B, modes[1], n, transposed[1], spread)
    image = np.zeros(98304, np.uint8)
    tile_a.place(image, encode(a, kind))
    tile_b.place(image, encode(b, other))
    start = registers_of(c.astype(np.int32 if td == "s32" else np.float32))
    if td == "f16":
        start = start.astype(np.float16).view(np.uint32)
    source = "{%a0, %a1, %a2, %a3}" if from_registers else "%rd20"
    tail = "" if td == "s32" else f", {scales[0]}, {scales[1]}"
    if kind in ("f16", "bf16"):
        tail += "".join(f", {int(t)}" for t in (transposed[1:] if from_registers else transposed))
    body = descriptors(tile_a, tile_b) + f"setp.ne.u32 %p1, {scale_d}, 0; {FENCE}"
    body += instruction(n, kind, other, td, source, scale="%p1", tail=tail) + COMMIT + WAIT.format(0)
    report, out = run(kernel(body, start.shape[1], len(image)), image, start, a_registers(encode(a, kind)))
    got = matrix_of(out.view(np.float16).astype(np.float32) if td == "f16" else out, n)
    return report, got, scales[0] * scales[1] * (a @ b.T) + scale_d * c


def check(**options: object) -> None:
    report, got, want = multiply(**options)  # type: ignore[arg-type]
    assert report.ok, report
    assert np.array_equal(got, want)


MODES = list(itertools.product(range(4), (False, True)))


@pytest.mark.parametrize(("mode", "transposed"), MODES)
def test_layouts_of_a(mode: int, transposed: bool) -> None:
    check(modes=(mode, 1), transposed=(transposed, False))


@pytest.mark.parametrize(("mode", "transposed"), MODES)
@pytest.mark.parametrize("spread", [1, 2])
def test_layouts_of_b(mode: int, transposed: bool, spread: int) -> None:
    check(modes=(1, mode), transposed=(False, transposed), n=128, spread=spread)


TYPES = [("f16", "", "f16"), ("f16", "", "f32"), ("bf16", "", "f32"), ("tf32", "", "f32"), ("e4m3", "e5m2", "f32"),
         ("e5m2", "e4m3", "f16"), ("e4m3", "", "f32"), ("s8", "", "s32"), ("u8", "", "s32"),
         ("s8", "u8", "s32")]  # fmt: skip


@pytest.mark.parametrize("from_registers", [False, True])
@pytest.mark.parametrize(("kind", "other", "td"), TYPES)
def test_types(kind: str, other: str, td: str, from_registers: bool) -> None:
    for scale_d, scales in ((1, (1, 1)), (0, (1, 1) if td == "s32" else (-1, 1))):
        check(kind=kind, other=other, td=td, from_registers=from_registers, modes=(2, 3), scale_d=scale_d,
              scales=scales, n=96)  # fmt: skip


@pytest.mark.parametrize("n", [8, 16, 24, 72, 200, 256])
def test_widths(n: int) -> None:
    check(n=n, scales=(1, -1))


def test_transposed_b_with_a_in_registers() -> None:
    check(from_registers=True, transposed=(False, True), modes=(0, 1), n=64)


def test_register_layouts_are_bijections() -> None:
    for size, k in ((2, 16), (4, 8), (1, 32)):
        places = {a_place(t, e, size) for t in range(128) for e in range(16 // size)}
        assert places == set(itertools.product(range(64), range(k)))
    assert {d_place(t, e) for t in range(128) for e in range(128)} == set(itertools.product(range(64), range(256)))


def test_layouts_are_bijections_of_bytes() -> None:
    for (mode, transposed), rows in itertools.product(MODES, (64, 128, 256)):
        t = tile(A, mode, rows, transposed)
        size = 2
        starts = {t.address(r, k, size) for r in range(rows) for k in range(16)}
        assert len(starts) == rows * 16


def test_base_offset_moves_the_pattern() -> None:
    """A pattern that starts at line 3 of eight: the chunk of row r is exchanged by r, not by its address."""
    t = Tile(A + 3 * 128, 1, 16, 1024)
    a, b = numbers("bf16", (64, 16)), numbers("bf16", (64, 16))
    image = np.zeros(65536, np.uint8)
    raw = encode(a, "bf16").reshape(64, 2, 16)
    for row in range(64):
        for chunk in range(2):
            start = t.base + row // 8 * 1024 + row % 8 * 128 + (chunk ^ row % 8) * 16
            image[start : start + 16] = raw[row, chunk]
    other = tile(B, 1, 64, False)
    other.place(image, encode(b, "bf16"))
    body = f"mov.b64 %rd20, {t.descriptor | 3 << 49:#x}; mov.b64 %rd21, {other.descriptor:#x};"
    body += FENCE + instruction(64, scale="0") + COMMIT + WAIT.format(0)
    start = np.zeros((128, 32), np.float32)
    report, out = run(kernel(body, 32, len(image)), image, start, np.zeros((128, 4), np.uint32))
    assert report.ok, report
    assert np.array_equal(matrix_of(out, 64), a @ b.T)


@pytest.mark.parametrize("satfinite", [False, True])
def test_integer_overflow(satfinite: bool) -> None:
    one = np.full((64, 32), 127)
    tile_a, tile_b = tile(A, 1, 64, False), tile(B, 1, 64, False)
    image = np.zeros(65536, np.uint8)
    tile_a.place(image, encode(one, "s8"))
    tile_b.place(image, encode(one, "s8"))
    text = instruction(64, "s8", td="s32").replace(".m64n64k32", ".m64n64k32" + ".satfinite" * satfinite)
    start = np.full((128, 32), 2**31 - 5, np.int32)
    body = descriptors(tile_a, tile_b) + FENCE + text + COMMIT + WAIT.format(0)
    _, out = run(kernel(body, 32, len(image)), image, start, np.zeros((128, 4), np.uint32))
    assert (out == (2**31 - 1 if satfinite else 2**31 - 5 + 32 * 127 * 127 - 2**32)).all()


@pytest.mark.parametrize("kind", ["bf16", "tf32", "e4m3"])
def test_chain_along_k_in_two_groups(kind: str) -> None:
    half = steps(kind)[: len(steps(kind)) // 2]
    report, out, want = chain(kind, FENCE + half + COMMIT + WAIT.format(1) + half + COMMIT + WAIT.format(0))
    assert report.ok, report
    assert np.array_equal(matrix_of(out, 64), want)


def test_many_blocks_and_two_warpgroups_at_once() -> None:
    report, out, want = chain("bf16", FENCE + steps() + COMMIT + WAIT.format(0), threads=256, grid=3)
    assert report.ok, report
    for group in out.reshape(6, 128, 32):
        assert np.array_equal(matrix_of(group, 64), want)


def test_a_block_with_a_warp_more() -> None:
    """Four warps multiply, the fifth goes by; blocks of 160 threads."""
    report, out, want = chain("bf16", f"setp.ge.u32 %p5, %r0, 128; @%p5 bra BY; {WHOLE} BY:", threads=160, grid=2)
    assert report.ok, report
    for block in out.reshape(2, 160, 32):
        assert np.array_equal(matrix_of(block[:128], 64), want)
        assert (block[128:] == 1).all()


def test_single_bits() -> None:
    a, b = RNG.integers(0, 2, (64, 256)), RNG.integers(0, 2, (16, 256))
    tile_a, tile_b = tile(A, 1, 64, False), tile(B, 1, 16, False)
    image = np.zeros(65536, np.uint8)
    for t, x in ((tile_a, a), (tile_b, b)):
        t.place(image, np.packbits(x, axis=1, bitorder="little")[:, :, None])
    body = descriptors(tile_a, tile_b) + FENCE
    body += f"wgmma.mma_async.sync.aligned.m64n16k256.s32.b1.b1.and.popc {vector(8)}, %rd20, %rd21, 1;"
    start = np.full((128, 8), 3, np.int32)
    text = kernel(body + COMMIT + WAIT.format(0), 8, len(image))
    report, out = run(text, image, start, np.zeros((128, 4), np.uint32))
    assert report.ok, report
    assert np.array_equal(matrix_of(out, 16), a @ b.T + 3)


def test_warpgroups_that_go_different_ways() -> None:
    """The second warpgroup does its work later and negated."""
    negated = steps().replace("1, 1, 1, 0, 0;", "1, -1, 1, 0, 0;")
    body = f"""setp.ge.u32 %p5, %r0, 128; @%p5 bra SECOND;
    {FENCE} {steps()} {COMMIT} {WAIT.format(0)} bra DONE;
    SECOND: {FENCE} {negated} {COMMIT} {WAIT.format(0)}
    DONE:"""
    report, out, want = chain("bf16", body, threads=256)
    assert report.ok, report
    assert np.array_equal(matrix_of(out[:128], 64), want)
    assert np.array_equal(matrix_of(out[128:], 64), 2 - want)


def test_fp8_sums_keep_fourteen_bits() -> None:
    big, small = np.float32(2**14), np.float32(1.5)
    assert truncated_sum(big, small, 14) == 2**14
    assert truncated_sum(np.float32(2**12), small, 14) == 2**12 + 1.5
    assert truncated_sum(-big, -small, 14) == -(2**14)
    assert truncated_sum(np.float32(0), np.float32(0), 14) == 0


@pytest.mark.parametrize(("start", "kept"), [(2.0**12, True), (2.0**20, False)])
def test_fp8_chains_lose_small_addends(start: float, kept: bool) -> None:
    """One instruction adds 32 x 1: below the fourteenth bit of 2**20, where f32 would keep it."""
    ones = np.ones((64, 32))
    tile_a, tile_b = tile(A, 1, 64, False), tile(B, 1, 64, False)
    for kind, keeps in (("e4m3", kept), ("s8", True)):
        image = np.zeros(65536, np.uint8)
        tile_a.place(image, encode(ones, kind))
        tile_b.place(image, encode(ones, kind))
        d = np.full((128, 32), start, np.int32 if kind == "s8" else np.float32)
        step = instruction(64, kind, td="s32" if kind == "s8" else "f32")
        text = kernel(descriptors(tile_a, tile_b) + FENCE + step * 4 + COMMIT + WAIT.format(0), 32, len(image))
        report, out = run(text, image, d, np.zeros((128, 4), np.uint32))
        assert report.ok, report
        assert (out == start + (128 if keeps else 0)).all()


def test_without_checks_results_are_the_same() -> None:
    report, out, want = chain("bf16", WHOLE, checks=False)
    assert report.ok and np.array_equal(matrix_of(out, 64), want)
