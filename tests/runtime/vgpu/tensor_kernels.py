"""Kernels with tcgen05, written by hand: a product of two tiles that all threads write to shared memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu import Device, Options, Report
from tests.runtime.vgpu.wgmma_kernels import SIZES, A, B, Tile, encode, numbers, tile

SHARED = 65536
CODES = {0: 0, 1: 2, 2: 4, 3: 6}
"""wgmma's swizzle codes -> those of tcgen05"""
KINDS = {"f16": ("f16", 0), "bf16": ("f16", 1), "tf32": ("tf32", 2), "e4m3": ("f8f6f4", 0), "e5m2": ("f8f6f4", 1)}
COLUMNS = 256

ALLOC = """
@%p1 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [place], {columns};
@%p1 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
@%p0 mbarrier.init.shared::cta.b64 [bar], 1; @%p0 mbarrier.init.shared::cta.b64 [bar+8], 1;
"""
COPY = """
mov.u32 %r1, %r0; mov.u32 %r7, %ntid.x;
COPY: setp.ge.u32 %p3, %r1, {chunks}; @%p3 bra COPIED;
  mul.wide.u32 %rd6, %r1, 16; add.s64 %rd7, %rd0, %rd6; shl.b32 %r2, %r1, 4;
  ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%rd7]; st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}};
  add.u32 %r1, %r1, %r7; bra.uni COPY;
COPIED:
"""
PROXY = "fence.proxy.async.shared::cta;\n"
BEFORE, AFTER = "tcgen05.fence::before_thread_sync;\n", "tcgen05.fence::after_thread_sync;\n"
SYNC = "bar.sync 0;\n"
ADDRESS = "ld.shared.b32 %r10, [place];\nand.b32 %r11, %r0, 0x60; shl.b32 %r11, %r11, 16; add.u32 %r12, %r10, %r11;\n"
COMMIT = "@%p0 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [bar];\n"
WAIT = "WAIT{n}: mbarrier.try_wait.parity.shared::cta.b64 %p5, [bar{at}], {parity}; @!%p5 bra WAIT{n};\n"
WAITED = WAIT.format(n=0, at="", parity=0)
LOADED, STORED = "tcgen05.wait::ld.sync.aligned;\n", "tcgen05.wait::st.sync.aligned;\n"
DEALLOC = "@%p1 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r10, {columns};\n"


def registers(n: int, first: int = 0) -> str:
    return "{" + ", ".join(f"%d{first + e}" for e in range(n)) + "}"


def load(n: int, shape: str = "32x32b", times: int = 0, offset: str = "", at: str = "%r12") -> str:
    return f"tcgen05.ld.sync.aligned.{shape}.x{times or n}.b32 {registers(n)}, [{at}]{offset};\n"


def store(n: int, shape: str = "32x32b", times: int = 0, offset: str = "", at: str = "%r12") -> str:
    return f"tcgen05.st.sync.aligned.{shape}.x{times or n}.b32 [{at}]{offset}, {registers(n)};\n"


def out(n: int) -> str:
    return (f"mul.wide.u32 %rd8, %r0, {4 * n}; add.s64 %rd9, %rd1, %rd8;\n"
            + "".join(f"st.global.b32 [%rd9+{4 * e}], %d{e};\n" for e in range(n)))  # fmt: skip


def kernel(body: str, n: int = 64, columns: int = COLUMNS, setup: str = "", end: str = "") -> str:
    """Parameters: image of shared memory, result (threads, n). %p0 is thread 0, %p1 warp 0; after `setup` the address
    in tensor memory is in %r10, in %r12 with the warp's lanes."""
    return f""".version 8.6
.target sm_100a
.address_size 64
.visible .entry k(.param .u64 image, .param .u64 dst)
{{
.reg .pred %p<10>; .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .b32 %d<{n}>;
.shared .align 1024 .b8 buf[{SHARED}]; .shared .align 8 .b64 bar[2]; .shared .align 4 .b32 place;
  ld.param.u64 %rd0, [image]; ld.param.u64 %rd1, [dst]; mov.u32 %r0, %tid.x;
  setp.eq.u32 %p0, %r0, 0; setp.lt.u32 %p1, %r0, 32; mov.pred %p4, -1;
{setup or ALLOC.format(columns=columns) + COPY.format(chunks=SHARED // 16) + PROXY + SYNC + ADDRESS}
{body}
{end or BEFORE + SYNC + DEALLOC.format(columns=columns)}
  ret;
}}
"""


def run(text: str, image: np.ndarray, n: int, threads: int = 128, grid: int = 1, dtype: str = "<f4",
        options: Options | None = None) -> tuple[Report, np.ndarray]:  # fmt: skip
    gpu = Device(sm=100, options=options)
    at = gpu.upload(np.zeros((threads, n), np.uint32))
    report = gpu.load(text).launch("k", grid, threads, [gpu.upload(image), at])
    return report, gpu.download(at, np.dtype(dtype), threads * n).reshape(threads, n)


def descriptor(t: Tile) -> int:
    return t.descriptor & ~(3 << 62) | CODES[t.mode] << 61 | 1 << 46


@dataclass(frozen=True)
class Product:
    """An instruction descriptor: M and N, element types, whether operands lie across k, f32 or f16 sums."""

    m: int = 128
    n: int = 64
    a: str = "bf16"
    b: str = ""
    across: tuple[bool, bool] = (False, False)
    d: str = "f32"
    negative: tuple[bool, bool] = (False, False)

    @property
    def kind(self) -> str:
        return KINDS[self.a][0]

    @property
    def code(self) -> int:
        types = KINDS[self.a][1] << 7 | KINDS[self.b or self.a][1] << 10
        signs = self.negative[0] << 13 | self.negative[1] << 14 | self.across[0] << 15 | self.across[1] << 16
        return (self.d == "f32") << 4 | types | signs | self.n >> 3 << 17 | self.m >> 4 << 24

    def text(self, a: str = "%rd20", keep: str = "%p4", to: str = "%r10", tail: str = "", who: str = "@%p0") -> str:
        return (f"mov.b32 %r20, {self.code:#x};\n{who} tcgen05.mma.cta_group::1.kind::{self.kind} [{to}], {a}, %rd21, "
                f"%r20, {keep}{tail};\n")  # fmt: skip


def operands(p: Product, k: int, modes: tuple[int, int] = (1, 1)
             ) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:  # fmt: skip
    """A (m, k) and B (n, k) of small integers, the image of shared memory with both, and the code for descriptors."""
    a, b = numbers(p.a, (p.m, k)), numbers(p.b or p.a, (p.n, k))
    kinds = p.a, p.b or p.a
    places = zip((A, B), modes, (p.m, p.n), p.across, kinds, strict=True)
    tiles = [tile(at, mode, rows, across, size=SIZES[kind]) for at, mode, rows, across, kind in places]
    image = np.zeros(SHARED, np.uint8)
    for t, x, kind in zip(tiles, (a, b), kinds, strict=True):
        t.place(image, encode(x, kind))
    code = f"mov.b64 %rd20, {descriptor(tiles[0]):#x}; mov.b64 %rd21, {descriptor(tiles[1]):#x};\n"
    return a, b, image, code


FIRST = "setp.ne.u32 %p4, 0, 0;\n"
THEN = "mov.pred %p4, -1;\n"
NEXT = "add.s64 %rd20, %rd20, 2; add.s64 %rd21, %rd21, 2;\n"


def steps(p: Product, count: int = 4) -> str:
    """`count` products along 128-byte wide panels, the first of which sets the accumulator."""
    return FIRST + (p.text() + THEN + NEXT) * count


READ = COMMIT + WAITED + AFTER + load(64) + LOADED + out(64)
"""the end of a correct kernel"""
