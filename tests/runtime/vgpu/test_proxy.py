"""Proxy fences: who must fence, when, and what does not need it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.runtime.vgpu.hopper import THREAD_BUF, init, launch, wait

OUT = np.zeros(64, np.uint32)
WRITE = THREAD_BUF + "st.shared.u32 [%r5], %r0;\n"
FENCE, BAR = "fence.proxy.async.shared::cta;\n", "bar.sync 0;\n"
STORE = ("@%p0 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], 256; @%p0 cp.async.bulk.commit_group; "
         "@%p0 cp.async.bulk.wait_group 0;\n")  # fmt: skip


def run(body: str, block: int = 64) -> Any:
    report, arrays = launch(body, np.arange(64, dtype=np.uint32), OUT, block=block)
    return report, arrays[1]


@pytest.mark.parametrize("body", [
    WRITE + FENCE + BAR + STORE,
    WRITE + "fence.proxy.async;" + BAR + STORE,
    WRITE + BAR + FENCE + STORE,  # the issuer fences what it has learnt of
    WRITE + BAR + "@%p0 fence.proxy.async;" + STORE,
    WRITE + FENCE + init(64) + "mbarrier.arrive.shared::cta.b64 _, [%r2];" + wait(0, "0", "W") + STORE,
    WRITE + FENCE + FENCE * 12 + BAR + STORE,
    "@%p0 bra FEW; " + WRITE + FENCE + "bra MEET; FEW: " + WRITE + FENCE + "MEET: " + BAR + STORE,
])  # fmt: skip
def test_fenced_writes_may_be_stored(body: str) -> None:
    report, out = run(body)
    assert report.ok, report
    assert (out == np.arange(64)).all()


@pytest.mark.parametrize("body", [
    WRITE + BAR + STORE,
    FENCE + WRITE + BAR + STORE,  # before the writes
    WRITE + "fence.proxy.async.global;" + BAR + STORE,  # the other space
    WRITE + "@%p0 fence.proxy.async;" + BAR + STORE,  # only one writer fences, before it knows of the others
    WRITE + BAR + "@!%p0 fence.proxy.async;" + STORE,  # the writers fence when it is too late
    WRITE + FENCE + BAR + "st.shared.u32 [%r5], 1;" + BAR + STORE,  # written again
    WRITE + "fence.acq_rel.gpu;" + BAR + STORE,  # not a proxy fence
])  # fmt: skip
def test_unfenced_writes_are_found(body: str) -> None:
    report, _ = run(body)
    assert "missing proxy fence" in report.kinds(), report
    found = next(f for f in report.findings if f.kind == "missing proxy fence")
    assert "cp.async.bulk" in found.source and found.lane == 0


LOAD = (
    init(1)
    + """
  @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 256;
  @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd0], 256, [%r2];
"""
)


def test_what_a_copy_has_brought_needs_no_fence_to_be_copied_on() -> None:
    report, out = run(LOAD + wait(0, "0", "W") + STORE)
    assert report.ok, report
    assert (out == np.arange(64)).all()


def test_a_load_over_ordinary_writes_needs_a_fence() -> None:
    assert "missing proxy fence" in run(WRITE + BAR + LOAD + wait(0, "0", "W"))[0].kinds()
    assert run(WRITE + FENCE + BAR + LOAD + wait(0, "0", "W"))[0].ok


def test_cp_async_writes_through_the_generic_proxy() -> None:
    copy = THREAD_BUF + "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8;\n"
    copy += "cp.async.ca.shared.global [%r5], [%rd9], 4; cp.async.wait_all;\n"
    assert "missing proxy fence" in run(copy + BAR + STORE)[0].kinds()
    assert run(copy + FENCE + BAR + STORE)[0].ok
