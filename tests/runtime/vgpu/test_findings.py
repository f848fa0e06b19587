"""Each check: a kernel with the fault planted is reported, and its clean twin stays silent."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Options
from tests.runtime.vgpu.conftest import entry, launch

ADDRESS = "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8;\n"
SHARED = "mov.u32 %r1, buf; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2;\n"
BLOCK = "mov.u32 %r9, %ctaid.x;\n"


def floats(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)


CASES = {
    "out of bounds global": (
        ADDRESS + "ld.global.f32 %f0, [%rd9+{}]; st.global.f32 [%rd9], %f0;", ("4", "0"), {"block": 32}, 32),
    "out of bounds shared": (
        SHARED + "st.shared.u32 [%r3+{}], %r0;", ("4", "0"), {"block": 32, "shared": 128}, 1),
    "out of bounds local": (
        ".local .align 4 .b8 depot[16]; mov.u64 %rd5, depot; st.local.u32 [%rd5+{}], %r0;", ("16", "12"), {}, 1),
    "misaligned": (
        "mul.wide.u32 %rd8, %r0, 16; add.s64 %rd9, %rd0, %rd8; ld.global.v2.f32 {{%f0, %f1}}, [%rd9+{}];",
        ("4", "8"), {}, 256),
    "uninitialised read of shared memory": (
        SHARED + "{} bar.sync 0; ld.shared.u32 %r5, [%r3];", ("", "st.shared.u32 [%r3], %r0;"), {"shared": 128}, 1),
    "uninitialised read of local memory": (
        ".local .align 4 .b8 depot[16]; mov.u64 %rd5, depot; {} ld.local.u32 %r5, [%rd5];",
        ("", "st.local.u32 [%rd5], %r0;"), {}, 1),
    "uninitialised register": (
        "{} add.u32 %r6, %r5, 1;", ("", "mov.u32 %r5, 3;"), {}, 1),
    "shared memory race": (
        SHARED + "st.shared.u32 [%r3], %r0; {} xor.b32 %r4, %r2, 128; add.u32 %r4, %r4, %r1; ld.shared.u32 %r5, [%r4];",
        ("", "bar.sync 0;"), {"block": 64, "shared": 256}, 1),
    "global memory race": (
        BLOCK + "{} [%rd0], %r9;", ("st.global.u32", "red.global.add.u32"), {"grid": 4}, 4),
    "divergent barrier": (
        "setp.lt.u32 %p0, %r0, {}; @!%p0 bra OTHER; bar.sync 0; bra END; OTHER: bar.sync 0; END: mov.u32 %r5, 0;",
        ("16", "32"), {"block": 64}, 1),
    "missing cp.async wait": (
        SHARED + "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; cp.async.ca.shared.global [%r3], [%rd9], 4;"
        " cp.async.commit_group; {} ld.shared.u32 %r5, [%r3];", ("", "cp.async.wait_group 0;"), {"shared": 128}, 32),
    "deadlock": (
        "setp.lt.u32 %p0, %r0, 32; @{}%p0 bra END; bar.sync 1, {}; END: mov.u32 %r5, 0;",
        (("", "64"), ("", "32")), {"block": 64}, 1),
    "trap": ("setp.eq.u32 %p0, %r0, {}; @%p0 trap;", ("5", "99"), {}, 1),
    "shuffle from an absent lane": (
        "setp.lt.u32 %p0, %r0, 16; @!%p0 bra END; shfl.sync.idx.b32 %r5, %r0, {}, 31, 65535; END: mov.u32 %r6, 0;",
        ("20", "3"), {}, 1),
}  # fmt: skip


def run(case: str, which: int):  # type: ignore[no-untyped-def]
    body, fills, options, size = CASES[case]
    fill = fills[which]
    return launch(body.format(*(fill if isinstance(fill, tuple) else (fill,))), floats(size), **options)[0]


@pytest.mark.parametrize("case", CASES)
def test_planted_fault_is_found(case: str) -> None:
    report = run(case, 0)
    found = [f for f in report.findings if f.kind == case]
    assert found, report
    assert found[0].line > 0 and found[0].source


@pytest.mark.parametrize("case", CASES)
def test_clean_twin_is_silent(case: str) -> None:
    assert run(case, 1).ok, run(case, 1)


def test_deadlock_names_each_warp_and_what_it_waits_for() -> None:
    text = str(run("deadlock", 0))
    assert "warp 1" in text and "barrier 1" in text and "32 of 64 threads" in text


def test_finding_names_lane_block_and_address() -> None:
    report, _ = launch(
        ADDRESS + BLOCK + "setp.eq.u32 %p0, %r9, 1; @%p0 ld.global.f32 %f0, [%rd9+4];", floats(32), grid=2
    )
    (f,) = report.findings
    assert f.thread == (31, 0, 0) and f.lane == 31 and f.block == (1, 0, 0) and f.count == 1 and f.address


def test_uninitialised_global_memory() -> None:
    from tcomp.runtime.vgpu import Device
    from tests.runtime.vgpu.conftest import entry

    gpu = Device()
    module = gpu.load(entry(ADDRESS + "ld.global.f32 %f0, [%rd9];", "x"))
    fresh = gpu.allocate(128)
    assert module.launch("k", 1, 32, [fresh]).kinds() == {"uninitialised read of global memory"}
    gpu.write(fresh, floats(32))
    assert module.launch("k", 1, 32, [fresh]).ok


def test_fence_and_atomic_order_blocks() -> None:
    """The last block to arrive may read what the others wrote before their fence; without the fence it is a race."""
    body = (
        BLOCK
        + """
    mul.wide.u32 %rd8, %r9, 4; add.s64 %rd9, %rd0, %rd8;
    st.global.u32 [%rd9], %r9; {}
    atom.global.add.u32 %r10, [%rd1], 1; {}
    setp.ne.u32 %p0, %r10, 3; @%p0 bra END;
    ld.global.u32 %r11, [%rd0]; ld.global.u32 %r12, [%rd0+4]; ld.global.u32 %r13, [%rd0+8];
    END: mov.u32 %r5, 0;"""
    )
    data = np.zeros(4, np.uint32), np.zeros(1, np.uint32)
    fence = "membar.gl;"
    assert launch(body.format(fence, fence), *data, grid=4, block=1)[0].ok
    assert launch(body.format("", ""), *data, grid=4, block=1)[0].kinds() == {"global memory race"}


def test_bank_conflicts_and_sectors_are_counted() -> None:
    body = "mov.u32 %r1, buf; mul.lo.u32 %r2, %r0, {}; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %r0;"
    assert launch(body.format(4), shared=4096)[0].traffic["shared"].bank_conflicts == 0
    assert launch(body.format(8), shared=4096)[0].traffic["shared"].bank_conflicts == 1
    assert launch(body.format(128), shared=4096)[0].traffic["shared"].bank_conflicts == 31
    body = "mul.wide.u32 %rd8, %r0, {}; add.s64 %rd9, %rd0, %rd8; ld.global.f32 %f0, [%rd9];"
    assert launch(body.format(4), floats(1024))[0].traffic["global"].sectors_per_request == 4
    assert launch(body.format(32), floats(1024))[0].traffic["global"].sectors_per_request == 32


def test_bank_conflicts_beyond_a_bound_are_found() -> None:
    body = "mov.u32 %r1, buf; mul.lo.u32 %r2, %r0, {}; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %r0;"
    found = {}
    for step, bound in ((4, 0.0), (8, 0.0), (8, 1.0), (16, 1.0)):
        gpu = Device(options=Options(conflicts=bound))
        found[step, bound] = gpu.load(entry(body.format(step), "", 4096)).launch("k", 1, 32, []).kinds()
    assert found == {(4, 0.0): set(), (8, 0.0): {"bank conflict"}, (8, 1.0): set(), (16, 1.0): {"bank conflict"}}


def test_addresses_in_32_bits_wrap() -> None:
    """LLVM puts the constant part of an address in the offset, and what is left may be negative."""
    body = "shl.b32 %r2, %r0, 2; st.shared.u32 [%r2], %r0; sub.u32 %r4, %r2, 512; ld.shared.u32 %r5, [%r4+512];"
    report = launch(body, floats(1), block=32, shared=128)[0]
    assert report.ok, report
