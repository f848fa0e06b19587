"""tcgen05.commit to the blocks of a cluster: each waits for what all have read."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Report
from tests.runtime.vgpu.tensor_kernels import (
    ADDRESS,
    AFTER,
    ALLOC,
    COMMIT,
    COPY,
    LOADED,
    PROXY,
    SHARED,
    WAITED,
    Product,
    kernel,
    load,
    operands,
    out,
    steps,
)

P = Product()
A, B, IMAGE, CODE = operands(P, 64)
ALL = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;\n"
SETUP = ALLOC.format(columns=256).replace("[bar], 1", "[bar], {arrivals}") + COPY.format(chunks=SHARED // 16) + PROXY
EVERYWHERE = ("mov.b16 %h0, {mask};\n@%p0 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster"
          ".multicast::cluster.b64 [bar], %h0;\n")  # fmt: skip
OWN = "mov.u32 %r30, %ctaid.x; mad.lo.u32 %r0, %r30, 128, %r0;\n"
"""each block's threads have rows of their own"""


def launched(
    mask: int = 3, arrivals: int = 2, before: str = "", blocks: int = 2, commit: str = EVERYWHERE, meet: str = ALL
) -> tuple[Report, np.ndarray]:
    setup = SETUP.replace("{arrivals}", str(arrivals)) + meet + ADDRESS
    body = CODE + before + steps(P) + commit.format(mask=mask) + WAITED + AFTER + load(64) + LOADED + OWN + out(64)
    text = kernel(body, setup=setup).replace(".reg .pred", ".reg .b16 %h<4>; .reg .pred", 1)
    text = text.replace("  ret;\n}", ALL + "  ret;\n}")
    gpu = Device(sm=100)
    at = gpu.upload(np.zeros((128 * blocks, 64), np.uint32))
    report = gpu.load(text).launch("k", blocks, 128, [gpu.upload(IMAGE), at], cluster=2)
    return report, gpu.download(at, np.dtype("<f4"), 128 * blocks * 64).reshape(blocks, 128, 64)


@pytest.mark.parametrize("blocks", [2, 4])
def test_each_block_hears_of_the_products_of_all(blocks: int) -> None:
    report, found = launched(blocks=blocks)
    assert report.ok, str(report)
    for block in found:
        assert np.array_equal(block, A.astype(np.float32) @ B.astype(np.float32).T)


def test_clusters_that_share_tensor_memory_may_wait_for_each_other() -> None:
    """Three of these blocks fit an SM by all but columns, of which two have all there are."""
    report, _ = launched(blocks=6)
    assert report.kinds() == {"tensor memory misuse"} and "a block of another cluster" in report.findings[0].message


FAULTS = {
    "a block that there is not": ({"mask": 4}, "mbarrier misuse"),
    "no block": ({"mask": 0}, "mbarrier misuse"),
    "an arrival that is not counted": ({"arrivals": 1}, "tensor memory before completion"),
    "an arrival too few": ({"mask": 1, "arrivals": 2}, "deadlock"),
    "nobody waits in another block, which may have ended": (
        {"arrivals": 1, "commit": EVERYWHERE.replace("[bar]", "[bar+8]") + COMMIT}, "copy in flight at exit"),
    "the other block's mbarrier was made, but nobody knows": (
        {"meet": "bar.sync 0; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;\n"},
        "shared memory race"),
    "a block that has ended": (
        {"before": "mov.u32 %r30, %cluster_ctarank; setp.eq.u32 %p6, %r30, 1; @%p6 exit; nanosleep.u32 100;\n"},
        "shared memory of an exited block"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str) -> None:
    given, kind = FAULTS[fault]
    report, _ = launched(**given)  # type: ignore[arg-type]
    assert kind in report.kinds(), str(report)
