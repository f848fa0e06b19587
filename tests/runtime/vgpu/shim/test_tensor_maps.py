"""cuTensorMapEncodeTiled: what it accepts and what it refuses."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu.shim.driver import VirtualDriver
from tests.runtime.vgpu.shim.conftest import code, download, function, kernel, ok, upload

COPY_BOX = """
mov.u32 %r1, box; mov.u32 %r2, bar; setp.ne.u32 %p0, %r0, 0;
@%p0 bra WAIT;
mbarrier.init.shared::cta.b64 [%r2], 1; fence.mbarrier_init.release.cluster; fence.proxy.async;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 2048;
mov.b64 %rd1, map; cvta.param.u64 %rd1, %rd1; mov.u32 %r3, 32; mov.u32 %r4, 16;
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r3, %r4}], [%r2];
WAIT: bar.sync 0;
AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r2], 0; @!%p1 bra AGAIN;
shl.b32 %r5, %r0, 2; add.u32 %r6, %r1, %r5; ld.shared.f32 %f0, [%r6];
cvt.u64.u32 %rd2, %r5; add.u64 %rd2, %rd0, %rd2; st.global.f32 [%rd2], %f0;
"""


def encode(cuda: Any, address: int, **changes: Any) -> tuple[Any, ...]:
    """A map of a 256 x 128 f32 matrix in boxes of 32 x 16, with changes."""
    a = {"rank": 2, "sizes": (128, 256), "strides": (512,), "box": (32, 16), "steps": (1, 1), "swizzle": 0, **changes}
    u32, u64 = cuda.cuuint32_t, cuda.cuuint64_t
    result: tuple[Any, ...] = cuda.cuTensorMapEncodeTiled(
        cuda.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_FLOAT32, a["rank"], address,
        [u64(n) for n in a["sizes"]], [u64(n) for n in a["strides"]], [u32(n) for n in a["box"]],
        [u32(n) for n in a["steps"]], cuda.CUtensorMapInterleave(0), cuda.CUtensorMapSwizzle(a["swizzle"]),
        cuda.CUtensorMapL2promotion(0), cuda.CUtensorMapFloatOOBfill(0),
    )  # fmt: skip
    return result


def test_a_map_is_encoded(cuda: Any) -> None:
    a = ok(cuda.cuMemAlloc(256 * 512))
    assert ok(encode(cuda, int(a))) is not None
    assert ok(encode(cuda, int(a), swizzle=3)) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"box": (257, 16)}, {"box": (32, 0)}, {"strides": (500,)}, {"sizes": (0, 256)},
        {"steps": (1, 9)}, {"swizzle": 3, "box": (64, 16)}, {"box": (3, 16)},
    ],
)  # fmt: skip
def test_rules(cuda: Any, changes: dict[str, Any]) -> None:
    a = ok(cuda.cuMemAlloc(256 * 512))
    assert code(encode(cuda, int(a), **changes)) == "INVALID_VALUE"


def test_the_address_is_aligned(cuda: Any) -> None:
    a = ok(cuda.cuMemAlloc(256 * 512))
    assert code(encode(cuda, int(a) + 8)) == "INVALID_VALUE"


def test_a_kernel_copies_by_a_map_that_it_gets_by_value(driver: VirtualDriver, cuda: Any) -> None:
    matrix = np.arange(256 * 128, dtype=np.float32).reshape(256, 128)
    a, out = upload(cuda, matrix), upload(cuda, np.zeros(64, np.float32))
    tensor_map = ok(encode(cuda, int(a)))
    f = function(cuda, kernel(COPY_BOX, target="sm_90", params=".param .u64 x, .param .align 64 .b8 map[128]",
                              around=".shared .align 128 .b8 box[2048];\n.shared .align 8 .b64 bar;"))  # fmt: skip
    ok(cuda.cuLaunchKernel(f, 1, 1, 1, 64, 1, 1, 0, 0, ((int(out), tensor_map), (ctypes.c_uint64, None)), 0))
    assert download(cuda, out, 64).tolist() == matrix[16:18, 32:64].reshape(-1).tolist()
    assert not driver.findings


def test_before_hopper(virtual: Callable[..., VirtualDriver]) -> None:
    virtual("a100")
    from cuda.bindings import driver as cuda

    assert code(encode(cuda, int(ok(cuda.cuMemAlloc(256 * 512))))) == "NOT_SUPPORTED"
