"""wgmma against NumPy: every type, swizzle, transposition, N and scale; then every rule broken once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tcomp.runtime.vgpu import Options, PtxError, Report, UnknownInstruction
from tcomp.runtime.vgpu.matrix_numbers import truncated_sum
from tests.runtime.vgpu.wgmma_kernels import (
    DEPTH,
    SIZES,
    Tile,
    a_place,
    a_registers,
    d_place,
    encode,
    kernel,
    matrix_of,
    registers_of,
    run,
    tile,
)

RNG = np.random.default_rng(23)
A, B = 1024, 32768  # where the tiles are in shared memory
FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned {};"


def vector(n: int, first: int = 0, name: str = "d") -> str:
    return "{" + ", ".join(f"%{name}{first + e}" for e in range(n)) + "}"


def instruction(n: int, kind: str = "bf16", other: str = "", td: str = "f32", a: str = "%rd20", b: str = "%rd21",
                scale: str = "1", tail: str = "", d: str = "") -> str:  # fmt: skip
    registers = n // 4 if td == "f16" else n // 2
    if not tail and td != "s32":
        tail = ", 1, 1" + (", 0" * (1 if a.startswith("{") else 2) if kind in ("f16", "bf16") else "")
    return (f"wgmma.mma_async.sync.aligned.m64n{n}k{DEPTH[kind]}.{td}.{kind}.{other or kind} "
            f"{d or vector(registers)}, {a}, {b}, {scale}{tail};")  # fmt: skip


def descriptors(a: Tile, b: Tile) -> str:
    return f"mov.b64 %rd20, {a.descriptor:#x}; mov.b64 %rd21, {b.descriptor:#x};\n"


def numbers(kind: str, shape: tuple[int, int]) -> np.ndarray:
    return RNG.integers(0, 8, shape) if kind == "u8" else RNG.integers(-4, 5, shape)


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


def chain(kind: str, body: str, n: int = 64, threads: int = 128, grid: int = 1, checks: bool = True,
          registers: int = 0) -> tuple[Report, np.ndarray, np.ndarray]:  # fmt: skip
    """`body` between loading the accumulators (1.0) and storing them; A and B are 64 x 64 and n x 64 panels."""
    k = 128 // SIZES[kind]
    a, b = numbers(kind, (64, k)), numbers(kind, (n, k))
    tile_a, tile_b = tile(A, 1, 64, False), tile(B, 1, n, False)
    image = np.zeros(49152, np.uint8)
    tile_a.place(image, encode(a, kind))
    tile_b.place(image, encode(b, kind))
    start = np.ones((grid * threads, registers or n // 2), np.float32)
    extra = ".reg .b32 %e<64>; .reg .b32 %g<8>;"
    text = kernel(descriptors(tile_a, tile_b) + body, registers or n // 2, len(image), threads, extra=extra)
    if grid > 1:
        number = f"mov.u32 %r7, %ctaid.x; mad.lo.u32 %r8, %r7, {threads}, %r0; "
        text = text.replace(f"mul.wide.u32 %rd6, %r0, {2 * n}", f"{number} mul.wide.u32 %rd6, %r8, {2 * n}")
    report, out = run(text, image, start, np.zeros((threads, 4), np.uint32), threads, grid,
                      Options(checks=checks))  # fmt: skip
    return report, out, a @ b.T + 1


def steps(kind: str = "bf16", n: int = 64) -> str:
    """Four instructions along a 128-byte wide panel."""
    out = ""
    for _ in range(4):
        out += instruction(n, kind) + "add.s64 %rd20, %rd20, 2; add.s64 %rd21, %rd21, 2;"
    return out


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


def test_registers_hold_nothing_until_the_wait() -> None:
    body = FENCE + steps() + COMMIT + "mov.b32 %e0, %d0;" + WAIT.format(0) + "mov.b32 %d0, %e0;"
    report, out, want = chain("bf16", body)
    assert report.kinds() == {"wgmma register in flight"}
    assert np.isnan(out[:, 0]).all()
    assert np.array_equal(out[:, 1:], registers_of(want)[:, 1:])


def test_a_row_is_not_reused_while_its_register_is_in_flight() -> None:
    """%a registers die at the mma_async for the program, but not for the hardware; results that nobody reads may
    not land in registers that others have by now."""
    text = instruction(64, a="{%a0, %a1, %a2, %a3}", d=vector(32, 0, "e"), scale="0")
    fill = "".join(f"mov.b32 %g{e}, {e + 7};" for e in range(8))
    use = "".join(f"add.s32 %d{e}, %g{e}, 0;" for e in range(8))
    body = f"{FENCE} {text} {COMMIT} {fill} {WAIT.format(0)} {use}"
    report, out, _ = chain("bf16", body)
    assert report.ok, report
    assert out.view(np.int32)[:, :8].tolist() == [[e + 7 for e in range(8)]] * 128


WHOLE = FENCE + steps() + COMMIT + WAIT.format(0)
FAULTS = {
    "no fence at all": (steps() + COMMIT + WAIT.format(0), "missing wgmma.fence"),
    "accumulator written after the fence": (FENCE + "mov.b32 %d3, 0;" + steps() + COMMIT + WAIT.format(0),
                                            "missing wgmma.fence"),
    "accumulator read after the fence": (FENCE + "mov.b32 %e1, %d3;" + steps() + COMMIT + WAIT.format(0),
                                         "missing wgmma.fence"),
    "A registers written after the fence": (
        FENCE + "mov.b32 %a1, 0;" + instruction(64, a="{%a0, %a1, %a2, %a3}") + COMMIT + WAIT.format(0),
        "missing wgmma.fence"),
    "another shape without a fence": (
        FENCE + instruction(64) + instruction(64, "tf32") + COMMIT + WAIT.format(0), "missing wgmma.fence"),
    "accumulator read in flight": (FENCE + steps() + COMMIT + "mov.b32 %e1, %d3;" + WAIT.format(0),
                                   "wgmma register in flight"),
    "accumulator written in flight": (FENCE + steps() + COMMIT + "add.f32 %d31, %d31, %d31;" + WAIT.format(0),
                                      "wgmma register in flight"),
    "no wait": (FENCE + steps() + COMMIT, "wgmma register in flight"),
    "no commit": (FENCE + steps() + WAIT.format(0), "wgmma register in flight"),
    "wait for too few": (FENCE + steps() + COMMIT + WAIT.format(1), "wgmma register in flight"),
    "A registers written in flight": (
        FENCE + instruction(64, a="{%a0, %a1, %a2, %a3}") + COMMIT + "mov.b32 %a0, 0;" + WAIT.format(0),
        "wgmma register in flight"),
    "accumulators overlap another fragment in flight": (
        FENCE + instruction(64) + instruction(32, d=vector(16, 8)) + COMMIT + WAIT.format(0),
        "wgmma register in flight"),
    "shared operand overwritten before the wait": (
        FENCE + steps() + COMMIT + "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0;" + WAIT.format(0),
        "write before completion"),
    "one warp elsewhere for good": ("setp.lt.u32 %p5, %r0, 96; @!%p5 bra OUT;" + WHOLE + "OUT: bar.sync 0;",
                                    "deadlock"),
    "one warp has left": ("setp.lt.u32 %p5, %r0, 96; @!%p5 bra OUT; bra GO; OUT: exit; GO:" + WHOLE,
                          "partial warpgroup"),
    "descriptors differ": ("setp.eq.u32 %p5, %r0, 40; @%p5 add.s64 %rd20, %rd20, 64;" + WHOLE,
                           "wgmma operands differ"),
    "scale-d differs": (
        f"setp.eq.u32 %p5, %r0, 40; {FENCE}" + instruction(64, scale="%p5") + COMMIT + WAIT.format(0),
        "wgmma operands differ"),
    "operand outside shared memory": ("add.s64 %rd21, %rd21, 800;" + WHOLE, "out of bounds shared"),
    "a generic address in the descriptor": ("or.b64 %rd20, %rd20, 0x8000;" + WHOLE, "malformed wgmma descriptor"),
    "generic write without a proxy fence": (
        "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0; bar.sync 0;" + WHOLE, "missing proxy fence"),
    "no barrier after a generic write": (
        "shl.b32 %r9, %r0, 2; st.shared.b32 [%r9+32768], %r0; fence.proxy.async;" + WHOLE, "shared memory race"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found(name: str) -> None:
    body, kind = FAULTS[name]
    report, _, _ = chain("bf16", body)
    assert kind in report.kinds(), report
    found = next(f for f in report.findings if f.kind == kind)
    assert found.line > 0 and (0 <= found.lane < 32)


def test_uninitialised_operand() -> None:
    tile_a, tile_b = tile(A, 1, 64, False), tile(B, 1, 64, False)
    body = descriptors(tile_a, tile_b) + FENCE + instruction(64) + COMMIT + WAIT.format(0)
    text = kernel(body, 32, 49152, setup="mov.u32 %r0, %tid.x; mul.wide.u32 %rd5, %r0, 16;")
    report, _ = run(text, np.zeros(16, np.uint8), np.ones((128, 32), np.float32), np.zeros((128, 4), np.uint32))
    assert report.kinds() == {"uninitialised read of shared memory"}


CLEAN = {
    "zeroed accumulators before the fence": "".join(f"mov.b32 %d{e}, 0f3F800000;" for e in range(32)) + WHOLE,
    "fence, proxy fence and barrier after a write": (
        "ld.shared.b32 %r8, [32768]; bar.sync 0; setp.eq.u32 %p5, %r0, 5; @%p5 st.shared.b32 [32768], %r8;"
        " fence.proxy.async; bar.sync 0;" + WHOLE),
    "reuse of a shared operand after the wait": WHOLE + "bar.sync 0; shl.b32 %r9, %r0, 2; st.shared.b32 [%r9], %r0;",
    "accumulators used between two rounds": (
        FENCE + instruction(64, scale="0") + COMMIT + WAIT.format(0) + "add.f32 %d0, %d0, 0f00000000;"
        "".join(f"mov.b32 %d{e}, 0f3F800000;" for e in range(32)) + WHOLE),
}  # fmt: skip


@pytest.mark.parametrize("name", CLEAN)
def test_clean_kernels_are_silent(name: str) -> None:
    report, out, want = chain("bf16", CLEAN[name])
    assert report.ok, report
    assert np.array_equal(matrix_of(out, 64), want)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (instruction(64).replace("mma_async", "mma_async.sp"), "sparse"),
        (instruction(64).replace("m64n64", "m64n60"), "multiples of 8"),
        (instruction(64).replace(vector(32), vector(30)), "takes 32"),
        (instruction(64, "tf32", tail=", 1, 1, 0, 0"), "2 immediates follow"),
        (instruction(64, tail=", 2, 1, 0, 0"), "scales are 1 or -1"),
        (instruction(64).replace(".f32.bf16", ".f16.bf16"), "accumulates in .f32"),
        (instruction(64).replace(".bf16.bf16", ".bf16.f16"), "multiplies"),
        (instruction(40, "s8", td="s32"), "then of 16"),
    ],
)
def test_what_is_refused(text: str, why: str) -> None:
    with pytest.raises(UnknownInstruction, match=why):
        chain("bf16", FENCE + text + COMMIT + WAIT.format(0))


def test_plain_sm_90_has_no_wgmma() -> None:
    text = kernel(FENCE, 32, 49152).replace("sm_90a", "sm_90")
    with pytest.raises(PtxError, match="needs sm_90a"):
        run(text, np.zeros(49152, np.uint8), np.ones((128, 32), np.float32), np.zeros((128, 4), np.uint32))


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
