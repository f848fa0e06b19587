"""Clusters: coordinates, barriers, distributed shared memory, remote mbarriers, multicast, and their faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.errors import UserError
from tests.runtime.vgpu.hopper import LOAD, THREAD_BUF, init, launch, wait

X = np.arange(32, dtype=np.uint32) * 3 + 1
RANK = "mov.u32 %r20, %cluster_ctarank; xor.b32 %r21, %r20, 1; mov.u32 %r22, %ctaid.x;\n"
OUT = """
  shl.b32 %r30, %r22, 5; and.b32 %r31, %r0, 31; add.u32 %r30, %r30, %r31; mul.wide.u32 %rd8, %r30, 4;
  add.s64 %rd9, %rd1, %rd8; st.global.u32 [%rd9], %r10;
"""
MEET = "barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;\n"


def run(body: str, grid: int = 4, cluster: int | None = 2, **options: Any) -> tuple[Any, np.ndarray]:
    report, arrays = launch(RANK + body, X, np.zeros((grid, 32), np.uint32), grid=grid, cluster=cluster, **options)
    return report, arrays[1].reshape(grid, 32)


def test_special_registers_of_a_two_dimensional_cluster() -> None:
    body = """
      mov.u32 %r4, %cluster_ctaid.x; mov.u32 %r5, %cluster_ctaid.y; mov.u32 %r6, %cluster_ctarank;
      mov.u32 %r7, %clusterid.x; mov.u32 %r8, %clusterid.y; mov.u32 %r9, %nclusterid.x; mov.u32 %r11, %cluster_nctaid.x;
      mov.u32 %r12, %cluster_nctarank; mov.u32 %r13, %ctaid.x; mov.u32 %r14, %ctaid.y;
      mov.pred %p3, %is_explicit_cluster;
      selp.u32 %r15, 1, 0, %p3; mad.lo.u32 %r16, %r14, 4, %r13; mul.lo.u32 %r16, %r16, 36;
      cvt.u64.u32 %rd5, %r16; add.s64 %rd5, %rd0, %rd5;
      st.global.u32 [%rd5], %r4; st.global.u32 [%rd5+4], %r5; st.global.u32 [%rd5+8], %r6; st.global.u32 [%rd5+12], %r7;
      st.global.u32 [%rd5+16], %r8; st.global.u32 [%rd5+20], %r9; st.global.u32 [%rd5+24], %r11;
      st.global.u32 [%rd5+28], %r12; st.global.u32 [%rd5+32], %r15;
    """
    report, arrays = launch(body, np.zeros((4, 4, 9), np.uint32), grid=(4, 4), cluster=(2, 2), block=1)  # type: ignore[arg-type]
    assert report.ok, report
    for y, x in np.ndindex(4, 4):
        want = [x % 2, y % 2, x % 2 + 2 * (y % 2), x // 2, y // 2, 2, 2, 4, 1]
        assert arrays[0].reshape(4, 4, 9)[y, x].tolist() == want


STORE = THREAD_BUF + "mad.lo.u32 %r6, %r22, 100, %r0; st.shared.u32 [%r5], %r6;\n"
PEER = "mapa.shared::cluster.u32 %r7, %r5, %r21; ld.shared::cluster.u32 %r10, [%r7];\n"


def test_a_block_reads_its_peers_shared_memory_between_barriers() -> None:
    report, out = run(STORE + MEET + PEER + MEET + OUT)
    assert report.ok, report
    assert (out == (np.arange(4) ^ 1)[:, None] * 100 + np.arange(32)).all()


def test_a_block_stays_until_its_peers_have_done_with_it() -> None:
    """Also where all happen to end together."""
    report, out = run(STORE + MEET + PEER + OUT)
    assert report.kinds() == {"shared memory of an exited block"}
    assert (out == (np.arange(4) ^ 1)[:, None] * 100 + np.arange(32)).all()
    relaxed = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;\n"
    assert run(STORE + MEET + PEER + relaxed + OUT)[0].ok, "no memory has to be ordered"


def test_generic_addresses_and_ranks() -> None:
    body = (
        STORE
        + MEET
        + """
      cvt.u64.u32 %rd4, %r5; cvta.shared.u64 %rd4, %rd4; mapa.u64 %rd5, %rd4, %r21; ld.u32 %r10, [%rd5];
      getctarank.u64 %r8, %rd5; setp.ne.u32 %p1, %r8, %r21; @%p1 trap;
      isspacep.shared::cluster %p2, %rd5; @!%p2 trap; isspacep.shared %p2, %rd5; @%p2 trap;
      isspacep.shared::cta %p2, %rd4; @!%p2 trap; getctarank.shared::cluster.u32 %r9, %r5;
      setp.ne.u32 %p1, %r9, %r20; @%p1 trap;
    """
        + MEET
        + OUT
    )
    report, out = run(body)
    assert report.ok, report
    assert (out == (np.arange(4) ^ 1)[:, None] * 100 + np.arange(32)).all()


def test_atomics_and_stores_reach_another_block() -> None:
    body = (
        "@%p0 st.shared.u32 [%r1], 0; @%p0 st.shared.u32 [%r1+4], 0;\n"
        + MEET
        + """
      mapa.shared::cluster.u32 %r7, %r1, 0; red.relaxed.cluster.shared::cluster.add.u32 [%r7], %r0;
      atom.shared::cluster.add.u32 %r8, [%r7], 1;
      @%p0 mapa.shared::cluster.u32 %r9, %r1, %r21; @%p0 st.shared::cluster.u32 [%r9+4], %r22;
    """
        + MEET
        + "ld.shared.u32 %r10, [%r1]; ld.shared.u32 %r11, [%r1+4]; mad.lo.u32 %r10, %r11, 10000, %r10;\n"
        + OUT
    )
    report, out = run(body, grid=2)
    assert report.ok, report
    assert (out[0] == 10000 + 2 * 496 + 64).all() and (out[1] == 0).all()


FAULTS = {
    "shared memory race": STORE + PEER + MEET + OUT,
    "shared memory of an exited block": (
        STORE + MEET + "setp.eq.u32 %p1, %r20, 1; @%p1 exit; LATER: bar.sync 0;" + PEER + OUT),
    "out of bounds shared": STORE + MEET + PEER.replace("%r21;", "5;") + MEET + OUT,
    "cluster barrier misuse": "barrier.cluster.arrive.aligned;" + MEET + "mov.u32 %r10, 0;",
    "divergent barrier": "@%p0 barrier.cluster.arrive.aligned; @!%p0 barrier.cluster.arrive.aligned; "
                         "barrier.cluster.wait.aligned;",
    "deadlock": "setp.eq.u32 %p1, %r20, 0; @%p1 bra B; bar.sync 1, 64; B: " + MEET,
}  # fmt: skip


@pytest.mark.parametrize("kind", FAULTS)
def test_planted_fault_is_found(kind: str) -> None:
    report, _ = run(FAULTS[kind], grid=2)
    assert kind in report.kinds(), report


def test_shared_cta_does_not_reach_another_block() -> None:
    report, _ = run(STORE + MEET + PEER.replace("ld.shared::cluster", "ld.shared::cta") + MEET, grid=2)
    assert any("only its own block's" in f.message for f in report.findings)


def test_a_deadlock_at_the_cluster_barrier_says_who_is_missing() -> None:
    text = str(run(FAULTS["deadlock"], grid=2)[0])
    assert "cluster barrier: 32 of 64 threads" in text and "barrier 1: 32 of 64" in text


def test_a_relaxed_arrival_needs_a_fence() -> None:
    meet = "{} barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.acquire.aligned;\n"
    assert "shared memory race" in run(STORE + meet.format("") + PEER + MEET + OUT)[0].kinds()
    assert run(STORE + meet.format("fence.acq_rel.cluster;") + PEER + MEET + OUT)[0].ok


REMOTE = (
    STORE + init(64) + MEET + "mapa.shared::cluster.u32 %r7, %r2, 0;\n"
    "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r7];\n"
    "setp.ne.u32 %p1, %r20, 0; @%p1 bra END;\n"
    + wait(0, "0", "W").replace("try_wait.parity", "try_wait.parity.acquire.cluster")
    + PEER
    + OUT
    + "END: "
    + MEET
)


def test_remote_arrivals_order_the_clusters_shared_memory() -> None:
    report, out = run(REMOTE)
    assert report.ok, report
    assert (out[0] == 100 + np.arange(32)).all() and (out[2] == 300 + np.arange(32)).all()


def test_waiting_on_a_remote_mbarrier_is_refused() -> None:
    body = init(1) + MEET + "mapa.shared::cluster.u32 %r7, %r2, %r21;\n"
    body += "mbarrier.try_wait.parity.shared::cta.b64 %p9, [%r7], 1;\n" + MEET
    assert "out of bounds shared" in run(body, grid=2)[0].kinds()


MULTICAST = (
    init(1)
    + MEET
    + """
  @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
  shl.b32 %r4, %r20, 6; add.u32 %r5, %r1, %r4; cvt.u64.u32 %rd4, %r4; add.s64 %rd4, %rd0, %rd4; mov.u16 %h1, {mask};
  @%p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster
      [%r5], [%rd4], 64, [%r2], %h1;
"""
    + wait(0, "0", "W")
    + THREAD_BUF
    + "ld.shared.u32 %r10, [%r5];\n"
    + OUT
    + "{end}"
)


def test_multicast_puts_each_half_into_both_blocks() -> None:
    report, out = run(MULTICAST.format(mask=3, end=MEET))
    assert report.ok, report
    assert (out == X).all()


RELAXED = "{} barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;\n"


@pytest.mark.parametrize("fence", ["fence.mbarrier_init.release.cluster;", ""])
def test_multicast_needs_the_other_blocks_initialisations_released(fence: str) -> None:
    body = MULTICAST.replace(MEET, RELAXED.format(fence), 1).format(mask=3, end=MEET)
    found = run(body)[0].kinds()
    assert found == set() if fence else "shared memory race" in found


def test_a_multicast_mask_beyond_the_cluster_is_found() -> None:
    assert "bulk copy misuse" in run(MULTICAST.format(mask=7, end=MEET))[0].kinds()


def test_multicast_to_one_block_leaves_the_other_waiting() -> None:
    text = str(run(MULTICAST.format(mask=1, end=MEET), grid=2)[0])
    assert "deadlock" in text and "128 bytes" in text


def test_a_copy_between_blocks() -> None:
    body = (
        STORE
        + "fence.proxy.async.shared::cta;"
        + init(1)
        + MEET
        + """
      @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
      mapa.shared::cluster.u32 %r7, %r1, %r21; mapa.shared::cluster.u32 %r8, %r2, %r21;
      @%p0 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r7+1024], [%r1], 128, [%r8];
    """
        + wait(0, "0", "W")
        + "ld.shared.u32 %r10, [%r5+1024];\n"
        + OUT
        + MEET
    )
    report, out = run(body)
    assert report.ok, report
    assert (out == (np.arange(4) ^ 1)[:, None] * 100 + np.arange(32)).all()


def test_asynchronous_stores_and_reductions() -> None:
    body = (
        "st.shared.u32 [%r1+512], 1000;"
        + THREAD_BUF
        + init(1)
        + MEET
        + """
      @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 256;
      mapa.shared::cluster.u32 %r7, %r5, %r21; mapa.shared::cluster.u32 %r8, %r2, %r21;
      mapa.shared::cluster.u32 %r9, %r1, %r21; mad.lo.u32 %r6, %r22, 100, %r0;
      st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r7], %r6, [%r8];
      red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r9+512], 1, [%r8];
    """
        + wait(0, "0", "W")
        + "ld.shared.u32 %r10, [%r5]; ld.shared.u32 %r11, [%r1+512]; add.u32 %r10, %r10, %r11;\n"
    )
    report, out = run(body + OUT + MEET)
    assert report.ok, report
    assert (out == (np.arange(4) ^ 1)[:, None] * 100 + np.arange(32) + 1032).all()
    early = body.replace(wait(0, "0", "W"), "")
    assert "read before completion" in run(early + OUT + MEET)[0].kinds()


@pytest.mark.parametrize(("directives", "cluster", "grid", "text"), [
    (".reqnctapercluster 2", 4, 4, "requires clusters"),
    (".explicitcluster", None, 4, "explicitcluster"),
    (".maxclusterrank 2", 4, 4, "allows 2 blocks"),
    ("", 2, 3, "no whole number"),
    ("", 32, 32, "takes 1 to 8"),
])  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(directives: str, cluster: Any, grid: int, text: str) -> None:
    with pytest.raises(UserError, match=text):
        run("mov.u32 %r10, 0;", grid, cluster, directives=directives)


def test_a_required_shape_is_the_default() -> None:
    report, out = run("mov.u32 %r10, %cluster_nctarank;" + OUT, 4, None, directives=".reqnctapercluster 2, 1, 1")
    assert report.ok and (out == 2).all()


def test_clusters_in_several_waves() -> None:
    report, out = run(STORE + MEET + PEER + MEET + OUT, grid=1040)
    assert report.ok and (out[:, 0] == (np.arange(1040) ^ 1) * 100).all()


def test_a_load_into_a_block_that_nobody_waits_for_is_found() -> None:
    body = init(1) + LOAD.format(tx=128, bytes=128)
    assert "copy in flight at exit" in run(body)[0].kinds()
