"""Operand images for shared memory, written element by element from the layout rules, and kernels that use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu import Device, Options, Report, formats

WIDTHS = {0: 0, 1: 128, 2: 64, 3: 32}
RNG = np.random.default_rng(23)
A, B = 1024, 32768  # where the tiles are in shared memory
FENCE, COMMIT = "wgmma.fence.sync.aligned;", "wgmma.commit_group.sync.aligned;"
WAIT = "wgmma.wait_group.sync.aligned {};"
SIZES = {"f16": 2, "bf16": 2, "tf32": 4, "e4m3": 1, "e5m2": 1, "s8": 1, "u8": 1}
DEPTH = {"f16": 16, "bf16": 16, "tf32": 8, "e4m3": 32, "e5m2": 32, "s8": 32, "u8": 32}


def encode(x: np.ndarray, kind: str) -> np.ndarray:
    """Values -> raw bytes, shape (..., bytes)."""
    if kind in ("f16", "bf16"):
        raw = formats.to16(x.astype(np.float32), kind)
    elif kind == "tf32":
        raw = x.astype(np.float32)
    elif kind in ("e4m3", "e5m2"):
        raw = formats.to8(x, kind)
    else:
        raw = x.astype(np.int8 if kind == "s8" else np.uint8)
    return np.ascontiguousarray(raw).view(np.uint8).reshape(*x.shape, -1)


def swizzled(address: int, mode: int) -> int:
    return address ^ ((address >> 7) & {0: 0, 1: 7, 2: 3, 3: 1}[mode]) << 4


@dataclass
class Tile:
    """A tile at `base` in shared memory: `mode` is the descriptor's swizzle field, `leading` and `stride` in bytes."""

    base: int
    mode: int
    leading: int
    stride: int
    transposed: bool = False

    @property
    def descriptor(self) -> int:
        return (self.base & 0x3FFFF) >> 4 | self.leading >> 4 << 16 | self.stride >> 4 << 32 | self.mode << 62

    def address(self, row: int, k: int, size: int) -> int:
        """First byte of element (M or N index, k)."""
        width = WIDTHS[self.mode]
        if not self.transposed:
            column = k * size
            if width:
                at = row // 8 * self.stride + row % 8 * width + column
            else:
                at = row // 8 * self.stride + row % 8 * 16 + column // 16 * self.leading + column % 16
        elif width:
            across = width // size
            at = row // across * self.leading + row % across * size + k // 8 * self.stride + k % 8 * width
        else:
            across = 16 // size
            at = row // across * self.stride + row % across * size + k // 8 * self.leading + k % 8 * 16
        return swizzled(self.base + at, self.mode)

    def place(self, image: np.ndarray, raw: np.ndarray) -> None:
        """raw (rows, k, bytes) into the bytes of shared memory."""
        size = raw.shape[2]
        for row in range(raw.shape[0]):
            for k in range(raw.shape[1]):
                start = self.address(row, k, size)
                image[start : start + size] = raw[row, k]


def tile(base: int, mode: int, rows: int, transposed: bool, spread: int = 1, size: int = 2) -> Tile:
    """The densest legal tile of `rows` (times `spread` between its groups); `size`: bytes of a transposed one's
    elements."""
    width = WIDTHS[mode]
    if not transposed:
        return Tile(base, mode, 128 * spread if not width else 16, (8 * width if width else 256 * spread) * spread)
    if width:
        groups = 8 * width * spread
        return Tile(base, mode, 4 // size * groups, groups, True)
    return Tile(base, mode, 128 * (rows * size // 16) * spread, 128 * spread, True)


def d_place(thread: int, e: int) -> tuple[int, int]:
    lane = thread & 31
    return 16 * (thread >> 5) + (lane >> 2) + 8 * (e >> 1 & 1), 8 * (e >> 2) + 2 * (lane & 3) + (e & 1)


A_PLACES: dict[int, Callable[[int, int, int], tuple[int, int]]] = {
    2: lambda g, t, e: (g + 8 * (e >> 1 & 1), 2 * t + (e & 1) + 8 * (e >> 2)),
    4: lambda g, t, e: (g + 8 * (e & 1), t + 4 * (e >> 1)),
    1: lambda g, t, e: (g + 8 * (e >> 2 & 1), 4 * t + (e & 3) + 16 * (e >> 3)),
}


def a_place(thread: int, e: int, size: int) -> tuple[int, int]:
    lane = thread & 31
    row, k = A_PLACES[size](lane >> 2, lane & 3, e)
    return 16 * (thread >> 5) + row, k


def a_registers(raw: np.ndarray) -> np.ndarray:
    """raw (64, K, bytes) -> (128 threads, 4) uint32."""
    size = raw.shape[2]
    out = np.zeros((128, 16 // size, size), np.uint8)
    for thread in range(128):
        for e in range(16 // size):
            out[thread, e] = raw[a_place(thread, e, size)]
    return out.reshape(128, 16).view(np.uint32)


def matrix_of(registers: np.ndarray, n: int) -> np.ndarray:
    """(128, N/2) elements -> (64, N)."""
    out = np.zeros((64, n), registers.dtype)
    for thread in range(128):
        for e in range(n // 2):
            out[d_place(thread, e)] = registers[thread, e]
    return out


def registers_of(matrix: np.ndarray) -> np.ndarray:
    n = matrix.shape[1]
    return np.array([[matrix[d_place(t, e)] for e in range(n // 2)] for t in range(128)], matrix.dtype)


SETUP = """
  mov.u32 %r0, %tid.x; cvta.to.global.u64 %rd0, %rd0;
  mul.wide.u32 %rd5, %r0, 16; mov.u32 %r1, %r0;
COPY: setp.ge.u32 %p0, %r1, {chunks}; @%p0 bra COPIED;
  mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd0, %rd6; shl.b32 %r2, %r1, 4;
  ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%rd7]; st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}};
  add.u32 %r1, %r1, {threads}; bra.uni COPY;
COPIED:
  fence.proxy.async; bar.sync 0;
"""


def kernel(body: str, n: int, shared: int, threads: int = 128, setup: str = SETUP, extra: str = "") -> str:
    """Parameters: image of shared memory, accumulators in and out (threads, n registers), A registers (threads, 4).
    `body` runs between loading d0..d{n-1} and a0..a3 and storing d."""
    d = [f"%d{e}" for e in range(n)]
    load = "".join(f"ld.global.b32 {r}, [%rd8+{4 * e}];" for e, r in enumerate(d))
    store = "".join(f"st.global.b32 [%rd8+{4 * e}], {r};" for e, r in enumerate(d))
    return f""".version 8.4
.target sm_90a
.address_size 64
.visible .entry k(.param .u64 image, .param .u64 dst, .param .u64 areg)
{{
.reg .pred %p<10>; .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .b32 %d<{n}>; .reg .b32 %a<4>; {extra}
.shared .align 1024 .b8 buf[{shared}];
  ld.param.u64 %rd0, [image]; ld.param.u64 %rd1, [dst]; ld.param.u64 %rd2, [areg];
{setup.format(chunks=shared // 16, threads=threads)}
  mul.wide.u32 %rd6, %r0, {4 * n}; add.s64 %rd8, %rd1, %rd6;
  add.s64 %rd9, %rd2, %rd5; ld.global.v4.b32 {{%a0, %a1, %a2, %a3}}, [%rd9];
{load}
{body}
{store}
  ret;
}}
"""


def run(
    text: str, image: np.ndarray, start: np.ndarray, a: np.ndarray, threads: int = 128, grid: int = 1,
    options: Options | None = None,
) -> tuple[Report, np.ndarray]:  # fmt: skip
    gpu = Device(options=options)
    x, d, r = gpu.upload(image), gpu.upload(start), gpu.upload(a)
    report = gpu.load(text).launch("k", grid, threads, [x, d, r])
    return report, gpu.download(d, start.dtype, start.size).reshape(start.shape)


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


WHOLE = FENCE + steps() + COMMIT + WAIT.format(0)
"""A correct kernel: four instructions, committed and waited for."""
