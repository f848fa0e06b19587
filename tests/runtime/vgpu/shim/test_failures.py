"""Kernels that fail: the sticky code that a user sees, with the virtual GPU's report beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Options
from tcomp.runtime.vgpu.device import Loaded
from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import code, function, kernel, launch, ok, upload

WAIT_FOREVER = "mov.u32 %r1, %tid.x; setp.eq.u32 %p0, %r1, 0; @%p0 bra SKIP; bar.sync 1, 64; SKIP:"
RACE = "shl.b32 %r1, %r0, 0; mov.u32 %r2, s; st.shared.u32 [%r2], %r0;"
SHARED = ".shared .align 16 .b8 s[128];"

FAULTS = [
    ("ld.global.u32 %r1, [%rd0+4096];", "", "ILLEGAL_ADDRESS", "out of bounds global"),
    ("mov.u32 %r2, s; st.shared.u32 [%r2+128], %r0;", SHARED, "ILLEGAL_ADDRESS", "out of bounds shared"),
    ("ld.global.u32 %r1, [%rd0+2];", "", "MISALIGNED_ADDRESS", "misaligned"),
    ("trap;", "", "LAUNCH_FAILED", "trap"),
    (WAIT_FOREVER, "", "LAUNCH_TIMEOUT", "deadlock"),
]


@pytest.mark.parametrize(("body", "around", "error", "finding"), FAULTS, ids=[f[3] for f in FAULTS])
def test_a_failed_kernel_loses_the_context(
    driver: VirtualDriver,
    cuda: Any,
    capfd: pytest.CaptureFixture[str],
    body: str,
    around: str,
    error: str,
    finding: str,
) -> None:
    a = upload(cuda, np.zeros(32, np.uint32))
    f = function(cuda, kernel(body, around=around))
    ok(launch(cuda, f, a))  # the call itself knows nothing
    assert code(cuda.cuCtxSynchronize()) == error
    for call in (
        lambda: cuda.cuMemAlloc(4), lambda: cuda.cuCtxSynchronize(), lambda: launch(cuda, f, a),
        lambda: cuda.cuStreamCreate(0), lambda: cuda.cuMemFree(a),
    ):  # fmt: skip
        assert code(call()) == error
    assert finding in {x.kind for x in driver.findings}
    said = capfd.readouterr().err
    assert said.count(f"in kernel `k`, grid (1, 1, 1), block (32, 1, 1): {finding}") == 1 and "PTX line" in said
    assert code(cuda.cuDeviceGetCount()) == "CUDA_SUCCESS"
    ok(cuda.cuDevicePrimaryCtxReset(0))
    ok(cuda.cuCtxSetCurrent(ok(cuda.cuDevicePrimaryCtxRetain(0))))
    ok(cuda.cuMemAlloc(4))


def test_what_was_queued_behind_a_failure_does_not_run(driver: VirtualDriver, cuda: Any) -> None:
    a = upload(cuda, np.zeros(32, np.uint32))
    ok(launch(cuda, function(cuda, kernel("trap;")), a))
    ok(launch(cuda, function(cuda, kernel("st.global.u32 [%rd0], %r0;")), a, block=1))
    assert code(cuda.cuStreamSynchronize(0)) == "LAUNCH_FAILED"
    assert len(driver.reports) == 1


def test_an_interrupted_kernel_loses_the_context(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has done a part of its work, and words that say whose turn it is are left anyhow: it does not run again."""
    runs = []

    def interrupted(*_: object, **__: object) -> None:
        runs.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loaded, "launch", interrupted)
    f, a = function(cuda, kernel("st.global.u32 [%rd0], %r0;")), upload(cuda, np.zeros(32, np.uint32))
    ok(launch(cuda, f, a))
    assert code(cuda.cuCtxSynchronize()) == "LAUNCH_FAILED"
    assert code(cuda.cuCtxSynchronize()) == code(launch(cuda, f, a)) == "LAUNCH_FAILED"
    assert len(runs) == 1


def test_another_context_is_not_lost(cuda: Any) -> None:
    primary = ok(cuda.cuCtxGetCurrent())
    own = ok(cuda.cuCtxCreate(None, 0, 0))
    ok(launch(cuda, function(cuda, kernel("trap;", params=""))))
    assert code(cuda.cuCtxSynchronize()) == "LAUNCH_FAILED"
    ok(cuda.cuCtxSetCurrent(primary))
    ok(cuda.cuMemAlloc(4))
    ok(cuda.cuCtxDestroy(own))


def test_assertions(cuda: Any) -> None:
    body = """{ .param .b64 p0; .param .b64 p1; .param .b32 p2; .param .b64 p3; .param .b64 p4;
    call.uni __assertfail, (p0, p1, p2, p3, p4); }"""
    around = (".extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e)"
              " .attribute(.noreturn);").replace(" .attribute(.noreturn)", "")  # fmt: skip
    ok(launch(cuda, function(cuda, kernel(body, params="", around=around)), block=1))
    assert code(cuda.cuCtxSynchronize()) == "ASSERT"


def test_a_race_is_recorded_and_the_kernel_goes_on(driver: VirtualDriver, cuda: Any) -> None:
    ok(launch(cuda, function(cuda, kernel(RACE, params="", around=SHARED)), block=64))
    ok(cuda.cuCtxSynchronize())
    assert {f.kind for f in driver.findings} == {"shared memory race"}
    driver.clear()
    assert driver.findings == []


def test_strict_makes_it_an_error(virtual: Callable[..., VirtualDriver]) -> None:
    virtual(strict=True)
    from cuda.bindings import driver as cuda

    ok(launch(cuda, function(cuda, kernel(RACE, params="", around=SHARED)), block=64))
    assert code(cuda.cuCtxSynchronize()) == "LAUNCH_FAILED"


def test_checks_can_be_off(virtual: Callable[..., VirtualDriver]) -> None:
    made = virtual(strict=True, device=Options(checks=False, profile=False))
    from cuda.bindings import driver as cuda

    ok(launch(cuda, function(cuda, kernel(RACE, params="", around=SHARED)), block=64))
    ok(cuda.cuCtxSynchronize())
    assert len(made.reports) == 1 and not made.findings


def test_invalid_handles(cuda: Any) -> None:
    assert code(cuda.cuStreamSynchronize(cuda.CUstream(0x1234))) == "INVALID_HANDLE"
    assert code(cuda.cuEventRecord(cuda.CUevent(0x1234), 0)) == "INVALID_HANDLE"
    assert code(launch(cuda, cuda.CUfunction(0x1234))) == "INVALID_HANDLE"
    stream = ok(cuda.cuStreamCreate(0))
    ok(cuda.cuStreamDestroy(stream))
    assert code(cuda.cuStreamQuery(stream)) == "INVALID_HANDLE"


def test_an_instruction_that_is_not_modelled(cuda: Any, capfd: pytest.CaptureFixture[str]) -> None:
    ok(launch(cuda, function(cuda, kernel("frobnicate.b32 %r1, %r0;", params=""))))
    assert code(cuda.cuCtxSynchronize()) == "ILLEGAL_INSTRUCTION"
    assert "frobnicate" in capfd.readouterr().err
