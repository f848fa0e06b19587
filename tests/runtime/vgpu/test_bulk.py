"""Bulk copies in both directions, their groups, and what must be waited for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.vgpu.hopper import LOAD, THREAD_BUF, THREAD_OUT, init, launch, wait

X = np.arange(32, dtype=np.uint32) * 3 + 1
OUT = np.zeros(32, np.uint32)
READ = THREAD_BUF + "ld.shared.u32 %r10, [%r5];\n" + THREAD_OUT
FILL = THREAD_BUF + "mul.lo.u32 %r6, %r0, 5; st.shared.u32 [%r5], %r6; {fence} bar.sync 0;\n"
FENCE = "fence.proxy.async.shared::cta;"
STORE = "@%p0 cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], 128;\n"
COMMIT = "@%p0 cp.async.bulk.commit_group;\n"
WAIT = "@%p0 cp.async.bulk.wait_group{} 0;\n"


def run(body: str, x=X, out=OUT, **options):  # type: ignore[no-untyped-def]
    report, arrays = launch(body, x, out, **options)
    return report, arrays[1]


def test_a_load_arrives_with_its_mbarrier() -> None:
    report, out = run(init(1) + LOAD.format(tx=128, bytes=128) + wait(0, "0", "W") + READ)
    assert report.ok, report
    assert (out == X).all()
    assert report.traffic["global async"].bytes_read == 128


def test_the_cache_hint_and_the_cta_form_change_nothing() -> None:
    load = LOAD.format(tx=128, bytes=128).replace("bytes [%r1]", "bytes.L2::cache_hint [%r1]").replace(
        "128, [%r2];", "128, [%r2], %rd6;").replace("shared::cluster.global", "shared::cta.global")  # fmt: skip
    policy = "createpolicy.fractional.L2::evict_first.b64 %rd6, 1.0; cp.async.bulk.prefetch.L2.global [%rd0], 128;\n"
    report, out = run(policy + init(1) + load + wait(0, "0", "W") + READ)
    assert report.ok, report
    assert (out == X).all()


def test_a_load_that_nobody_waits_for_is_seen_by_its_reader_and_at_exit() -> None:
    report, _ = run(init(1) + LOAD.format(tx=128, bytes=128) + "bar.sync 0;\n" + READ)
    assert report.kinds() == {"read before completion", "copy in flight at exit"}


def test_a_single_wait_that_is_not_looped_reads_too_early() -> None:
    once = wait(0, "0", "W").replace("@!%p9 bra W;", "")
    assert "read before completion" in run(init(1) + LOAD.format(tx=128, bytes=128) + once + READ)[0].kinds()


def test_another_warp_must_wait_or_meet_someone_who_did() -> None:
    load = init(1) + LOAD.format(tx=128, bytes=128)
    other = "setp.ge.u32 %p1, %r0, 32; @%p1 bra R;\n" + wait(0, "0", "W") + "R: {}" + (
        "and.b32 %r4, %r0, 31; shl.b32 %r4, %r4, 2; add.u32 %r5, %r1, %r4; ld.shared.u32 %r10, [%r5];\n")  # fmt: skip
    assert run(load + other.format("bar.sync 0;\n"), block=64)[0].ok
    assert run(load + other.format(""), block=64)[0].kinds() & {"shared memory race", "read before completion"}


def test_a_store_arrives_in_global_memory() -> None:
    report, out = run(FILL.format(fence=FENCE) + STORE + COMMIT + WAIT.format(""))
    assert report.ok, report
    assert (out == np.arange(32) * 5).all()


def test_a_store_that_only_its_read_was_waited_for_arrives_by_the_end() -> None:
    report, out = run(FILL.format(fence=FENCE) + STORE + COMMIT + WAIT.format(".read"))
    assert report.ok and (out == np.arange(32) * 5).all()


REUSE = "bar.sync 0; st.shared.u32 [%r5], 9;\n"
FAULTS = {
    "missing proxy fence": FILL.format(fence="") + STORE + COMMIT + WAIT.format(""),
    "missing bulk wait": FILL.format(fence=FENCE) + STORE + COMMIT,
    "write before completion": FILL.format(fence=FENCE) + STORE + COMMIT + REUSE + WAIT.format(""),
    "misaligned": FILL.format(fence=FENCE) + STORE.replace("128;", "24;") + COMMIT + WAIT.format(""),
    "out of bounds global": FILL.format(fence=FENCE) + STORE.replace("[%rd1]", "[%rd1+16]") + COMMIT + WAIT.format(""),
    "out of bounds shared": FILL.format(fence=FENCE) + STORE.replace("[%r1]", "[%r1+4080]") + COMMIT + WAIT.format(""),
    "uninitialised read of shared memory": STORE + COMMIT + WAIT.format(""),
    "shared memory race": FILL.format(fence=FENCE).replace("bar.sync 0;", "") + STORE + COMMIT + WAIT.format(""),
    "read before completion": (
        FILL.format(fence=FENCE) + STORE + COMMIT + WAIT.format(".read") + "@%p0 ld.global.u32 %r9, [%rd1];"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_fault_is_found(kind: str) -> None:
    report, _ = run(FAULTS[kind], block=64 if kind == "shared memory race" else 32)
    assert kind in report.kinds(), report
    assert all(f.line > 0 for f in report.findings)


def test_an_uncommitted_store_is_not_waited_for() -> None:
    report, _ = run(FILL.format(fence=FENCE) + STORE + WAIT.format(""))
    assert "missing bulk wait" in report.kinds()


def test_a_wait_leaves_the_newest_groups() -> None:
    two = STORE + COMMIT + STORE.replace("[%rd1]", "[%rd1+128]").replace("[%r1]", "[%r1+128]") + COMMIT
    fill = FILL.format(fence=FENCE) + "st.shared.u32 [%r5+128], %r0; " + FENCE + " bar.sync 0;\n"
    after = "bar.sync 0; st.shared.u32 [%r5{}], 9; @%p0 cp.async.bulk.wait_group 0;\n"
    out = np.zeros(64, np.uint32)
    first = fill + two + "@%p0 cp.async.bulk.wait_group.read 1;\n"
    report, got = run(first + after.format(""), out=out)
    assert report.ok, report
    assert (got[:32] == np.arange(32) * 5).all() and (got[32:] == np.arange(32)).all()
    assert "write before completion" in run(first + after.format("+128"), out=out)[0].kinds()


@pytest.mark.parametrize(("op", "kind", "expected"), [
    ("add.u32", np.uint32, lambda a, b: a + b),
    ("max.s32", np.int32, np.maximum),
    ("xor.b32", np.uint32, np.bitwise_xor),
    ("inc.u32", np.uint32, lambda a, b: np.where(a >= b, 0, a + 1)),
    ("add.f32", np.float32, lambda a, b: a + b),
    ("add.noftz.f16", np.float16, lambda a, b: a + b),
    ("add.u64", np.uint64, lambda a, b: a + b),
])  # fmt: skip
def test_reductions_into_global_memory(op: str, kind, expected) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(3)
    n = 128 // np.dtype(kind).itemsize
    x, out = (rng.integers(0, 100, n).astype(kind) for _ in range(2))
    body = init(1) + LOAD.format(tx=128, bytes=128) + wait(0, "0", "W")
    body += f"@%p0 cp.reduce.async.bulk.global.shared::cta.bulk_group.{op} [%rd1], [%r1], 128;\n"
    report, got = run(body + COMMIT + WAIT.format(""), x, out)
    assert report.ok, report
    assert (got == expected(out, x).astype(kind)).all()


def test_reductions_of_several_blocks_add_up_and_plain_stores_race() -> None:
    body = FILL.format(fence=FENCE) + STORE.replace("cp.async.bulk", "cp.reduce.async.bulk").replace(
        "bulk_group", "bulk_group.add.u32") + COMMIT + WAIT.format("")  # fmt: skip
    report, out = run(body, grid=5)
    assert report.ok, report
    assert (out == np.arange(32) * 25).all()
    assert "global memory race" in run(FILL.format(fence=FENCE) + STORE + COMMIT + WAIT.format(""), grid=2)[0].kinds()


def test_a_source_overwritten_during_the_copy_is_found() -> None:
    body = init(1) + LOAD.format(tx=128, bytes=128) + "@%p0 st.global.u32 [%rd0], 77;\n" + wait(0, "0", "W") + READ
    report, _ = run(body)
    assert "write before completion" in report.kinds()


def test_global_memory_written_in_the_kernel_needs_a_proxy_fence_before_a_bulk_load() -> None:
    body = init(1) + "@%p0 st.global.u32 [%rd0], 77; {}\n" + LOAD.format(tx=128, bytes=128) + wait(0, "0", "W") + READ
    assert "missing proxy fence" in run(body.format(""))[0].kinds()
    report, out = run(body.format("fence.proxy.async.global;"))
    assert report.ok and out[0] == 77


@pytest.mark.parametrize(
    ("before", "after", "texts"),
    [
        ("bar.sync 0;", "bar.sync 0;", []),
        ("", "bar.sync 0;", ["an earlier read by another warp of the block"]),
        ("bar.sync 0;", "", ["of whose end nothing told it"]),
    ],
)
def test_warps_of_a_block_meet_before_and_after_one_of_them_adds_to_global_memory(
    before: str, after: str, texts: list[str]
) -> None:
    """Warp 1 reads what was there, and what warp 0 lets the copy engine make of it."""
    add = STORE.replace("cp.async.bulk", "cp.reduce.async.bulk").replace("bulk_group", "bulk_group.add.u32")
    look = "setp.ge.u32 %p1, %r0, 32; @%p1 ld.global.u32 %r10, [%rd1];\n"
    body = FILL.format(fence=FENCE) + look + before + add + COMMIT + WAIT.format("") + after + look
    report, _ = run(body, block=64)
    assert report.ok == (not texts), report
    assert all(any(t in f.message for f in report.findings) for t in texts), report


@pytest.mark.parametrize(("there", "here"), [(True, False), (False, True), (False, False)])
def test_what_another_block_has_stored_is_added_to_behind_a_proxy_fence_of_either(there: bool, here: bool) -> None:
    """Causality alone orders the copy engine's work in two blocks only by a proxy fence (PTX ISA 8.9.5)."""
    fence = "fence.proxy.async.global;\n"
    turn = "mov.u32 %r10, %ctaid.x; setp.ne.u32 %p2, %r10, 0; @%p2 bra SECOND;\n"
    first = STORE + COMMIT + WAIT.format("") + there * fence + "@%p0 st.release.gpu.global.u32 [%rd0], 1; bra END;\n"
    add = STORE.replace("cp.async.bulk", "cp.reduce.async.bulk").replace("bulk_group", "bulk_group.add.u32")
    second = "SECOND: ld.acquire.gpu.global.u32 %r10, [%rd0]; setp.ne.u32 %p3, %r10, 1; @%p3 bra SECOND;\n"
    body = FILL.format(fence=FENCE) + turn + first + second + here * fence + add + COMMIT + WAIT.format("") + "END:"
    report, out = run(body, np.zeros(32, np.uint32), grid=2)
    assert (out == np.arange(32) * 10).all()
    assert report.kinds() == (set() if there or here else {"missing proxy fence"}), report


def test_traffic_of_blocks_is_counted_once_each() -> None:
    report, _ = run(init(1) + LOAD.format(tx=128, bytes=128) + wait(0, "0", "W"), grid=3)
    assert report.ok and report.traffic["global async"].bytes_read == 3 * 128
