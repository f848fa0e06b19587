"""tcgen05 of pairs of blocks (.cta_group::2): 256 rows, of which each block has half, as of the columns of B."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, PtxError, Report
from tcomp.runtime.vgpu.errors import UnknownInstruction
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.targets import check_instructions
from tests.runtime.vgpu.tensor_kernels import (
    ADDRESS,
    AFTER,
    ALLOC,
    BEFORE,
    COPY,
    DEALLOC,
    FIRST,
    LOADED,
    NEXT,
    PROXY,
    SHARED,
    THEN,
    WAITED,
    Product,
    descriptor,
    kernel,
    load,
    out,
)
from tests.runtime.vgpu.wgmma_kernels import SIZES, A, B, encode, numbers, tile

ALL = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
RANK = "mov.u32 %r30, %cluster_ctarank; setp.eq.u32 %p6, %r30, ISSUER; and.pred %p6, %p6, %p0;\n"
OWN_IMAGE = f"mul.wide.u32 %rd30, %r30, {SHARED}; add.s64 %rd0, %rd0, %rd30;\n"
TOGETHER = ("mov.b16 %h0, {mask};\n@%p6 tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster"
            ".multicast::cluster.b64 [bar], %h0;\n")  # fmt: skip
OWN_ROWS = "mad.lo.u32 %r0, %r30, 128, %r0;\n"
SETUP = RANK + OWN_IMAGE + ALLOC.format(columns=256) + COPY.format(chunks=SHARED // 16) + PROXY + ALL + ADDRESS
END = BEFORE + ALL + DEALLOC.format(columns=256)


def given(kind: str, across: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """A (256, K), B (64, K), the two blocks' images of shared memory, the code for descriptors."""
    k = 128 // SIZES[kind]
    a, b = numbers(kind, (256, k)), numbers(kind, (64, k))
    image = np.zeros((2, SHARED), np.uint8)
    for rank in range(2):
        mine = tile(A, 1, 128, across, size=SIZES[kind]), tile(B, 1, 32, across, size=SIZES[kind])
        mine[0].place(image[rank], encode(a[128 * rank : 128 * rank + 128], kind))
        mine[1].place(image[rank], encode(b[32 * rank : 32 * rank + 32], kind))
    first, second = (descriptor(t) for t in mine)
    return a, b, image, f"mov.b64 %rd20, {first:#x}; mov.b64 %rd21, {second:#x};\n"


def launched(
    kind: str = "bf16", across: bool = False, issuer: int = 0, mask: int = 3, m: int = 256, before: str = "",
    setup: str = SETUP, cluster: int = 2, end: str = END,
) -> tuple[Report, np.ndarray, np.ndarray]:  # fmt: skip
    a, b, image, code = given(kind, across)
    product = Product(m=m, n=64, a=kind, across=(across, across)).text(who="@%p6")
    products = FIRST + product if across else FIRST + (product + THEN + NEXT) * 4
    body = code + before + products + TOGETHER.format(mask=mask) + WAITED + AFTER + load(64) + LOADED + OWN_ROWS
    text = kernel(body + out(64), setup=setup.replace("ISSUER", str(issuer)), end=end)
    text = (
        text.replace("cta_group::1", "cta_group::2")
        .replace("cta_group::ONE", "cta_group::1")
        .replace(".reg .pred", ".reg .b16 %h<4>; .reg .pred", 1)
    )
    gpu = Device(sm=100)
    at = gpu.upload(np.zeros((256, 64), np.uint32))
    report = gpu.load(text).launch("k", 2, 128, [gpu.upload(image), at], cluster=cluster)
    depth = 32 // SIZES[kind] if across else len(a[0])
    wanted = a[:, :depth].astype(np.float32) @ b[:, :depth].astype(np.float32).T
    return report, gpu.download(at, np.dtype("<f4"), 256 * 64).reshape(256, 64), wanted


@pytest.mark.parametrize(("kind", "across", "issuer"), [("bf16", False, 0), ("bf16", True, 1), ("e4m3", False, 0)])
def test_each_block_gets_the_sums_of_its_rows(kind: str, across: bool, issuer: int) -> None:
    report, found, wanted = launched(kind, across, issuer)
    assert report.ok, str(report)
    assert np.array_equal(found, wanted)


ONE = SETUP.replace("@%p1 tcgen05.alloc", "setp.lt.u32 %p7, %r30, 1; and.pred %p7, %p7, %p1;\n@%p7 tcgen05.alloc")
OTHER = ("mov.u32 %r31, 256; setp.eq.u32 %p7, %r30, 1; @%p7 mov.u32 %r31, 128;\n"
         + ALLOC.format(columns="%r31"))  # fmt: skip
EARLY = (
    "setp.eq.u32 %p7, %r30, 1; and.pred %p8, %p7, %p1; setp.ne.u32 %p7, %r30, 1; and.pred %p1, %p7, %p1;\n"
    + BEFORE
    + DEALLOC.format(columns=256).replace("@%p1", "@%p8")
    + ALL
    + DEALLOC.format(columns=256)
)
"""PTX ISA 9.7.16.5, table 48: the second block waits for the first to give back with it, or does not"""
FAULTS = {
    "only one block hears of the products": ({"mask": 1}, "deadlock"),
    "a block that has ended": ({"before": "setp.eq.u32 %p7, %r30, 1; @%p7 exit; nanosleep.u32 100;\n"},
                               "shared memory of an exited block"),
    "only one block allocates": ({"setup": ONE}, "deadlock"),
    "one block gives back before the other can": ({"end": EARLY}, "deadlock"),
    "blocks allocate differently": ({"setup": SETUP.replace(ALLOC.format(columns=256), OTHER)}, "tensor memory misuse"),
    "no barrier between stores of the other block and the products": (
        {"setup": SETUP.replace(ALL, "bar.sync 0;\n")}, "shared memory race"),
    "the other block's stores are not fenced": ({"setup": SETUP.replace(PROXY, "")}, "missing proxy fence"),
    "rows of one block": ({"m": 64}, "malformed tcgen05 descriptor"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str) -> None:
    changes, kind = FAULTS[fault]
    report, _, _ = launched(**changes)  # type: ignore[arg-type]
    assert kind in report.kinds(), str(report)


UNKNOWN = {
    "products of 128 rows of two blocks": {"m": 128},
    "the same .cta_group": {"before": "@%p6 tcgen05.commit.cta_group::ONE.mbarrier::arrive::one.b64 [bar];\n"},
    "needs pairs of blocks": {"cluster": 1},
}  # fmt: skip


@pytest.mark.parametrize("why", UNKNOWN)
def test_what_is_not_executed_is_named(why: str) -> None:
    with pytest.raises(UnknownInstruction, match=why):
        launched(**UNKNOWN[why])  # type: ignore[arg-type]


def test_copies_that_tell_the_other_block_need_the_same_targets() -> None:
    opcode = "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.cta_group::2"
    copy = [Instr(opcode, (), 1)]
    for target in ("sm_100a", "sm_110a"):
        check_instructions(copy, target, "9.0")
    for target in ("sm_90a", "sm_100"):
        with pytest.raises(PtxError, match="needs sm_100a"):
            check_instructions(copy, target, "9.0")
