"""mbarriers: every instruction of the family, and each way to misuse one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.runtime.vgpu.hopper import LOAD, THREAD_BUF, THREAD_OUT, init, launch, wait

X = np.arange(64, dtype=np.uint32) * 3
OUT = np.zeros(64, np.uint32)


def result(body: str, block: int = 32, **options):  # type: ignore[no-untyped-def]
    report, arrays = launch(body + THREAD_OUT, X[:block], OUT[:block], block=block, **options)
    return report, arrays[1]


def kinds(body: str, block: int = 32, **options) -> set[str]:  # type: ignore[no-untyped-def]
    return result(body, block, **options)[0].kinds()


EXCHANGE = (
    THREAD_BUF
    + "st.shared.u32 [%r5], %r0;\n{arrive}{wait}"
    + ("xor.b32 %r6, %r4, 128; add.u32 %r6, %r6, %r1; ld.shared.u32 %r10, [%r6];\n")
)


@pytest.mark.parametrize("form", ["try_wait", "test_wait"])
@pytest.mark.parametrize("semantics", ["", ".release.cta", ".release.cluster"])
def test_an_arrival_orders_what_came_before_it_for_those_who_wait(form: str, semantics: str) -> None:
    arrive = f"mbarrier.arrive{semantics}.shared::cta.b64 _, [%r2];\n"
    report, out = result(init(64) + EXCHANGE.format(arrive=arrive, wait=wait(0, "0", "W", form)), 64)
    assert report.ok, report
    assert (out == np.arange(64) ^ 32).all()


def test_a_relaxed_arrival_orders_nothing_without_a_fence() -> None:
    arrive = "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [%r2];\n"
    body = init(64) + EXCHANGE.format(arrive="{}" + arrive, wait=wait(0, "0", "W"))
    assert "shared memory race" in kinds(body.format(""), 64)
    assert not kinds(body.format("fence.acq_rel.cta;"), 64)


def test_a_wait_by_state_returns_when_the_phase_of_the_arrival_is_over() -> None:
    arrive = "mbarrier.arrive.shared::cta.b64 %rd5, [%r2];\n"
    loop = "W: mbarrier.try_wait.shared::cta.b64 %p9, [%r2], %rd5, 1000; @!%p9 bra W;\n"
    report, out = result(init(64) + EXCHANGE.format(arrive=arrive, wait=loop), 64)
    assert report.ok and (out == np.arange(64) ^ 32).all()


def test_the_first_wait_on_an_incomplete_phase_gives_false() -> None:
    body = init(33) + "mbarrier.arrive.shared::cta.b64 _, [%r2];\n"
    body += "mbarrier.try_wait.parity.shared::cta.b64 %p9, [%r2], 0; selp.u32 %r10, 1, 0, %p9;\n"
    report, out = result(body)
    assert report.ok and not out.any()


def test_parity_one_of_a_new_barrier_is_complete() -> None:
    body = init(1) + "mbarrier.test_wait.parity.shared::cta.b64 %p9, [%r2], 1; selp.u32 %r10, 1, 0, %p9;\n"
    report, out = result(body)
    assert report.ok and out.all()


def test_counts_pending_count_and_generic_addresses() -> None:
    body = (
        init(10)
        + """
      cvt.u64.u32 %rd4, %r2; cvta.shared.u64 %rd4, %rd4; mov.u32 %r10, 0;
      @!%p0 bra END;
      mbarrier.arrive.noComplete.b64 %rd5, [%rd4], 4;
      mbarrier.arrive.noComplete.b64 %rd6, [%rd4], 5;
      mbarrier.pending_count.b64 %r7, %rd5; mbarrier.pending_count.b64 %r8, %rd6;
      shl.b32 %r7, %r7, 8; or.b32 %r10, %r7, %r8;
      mbarrier.arrive.b64 _, [%rd4];
      W: mbarrier.test_wait.parity.b64 %p9, [%rd4], 0; @!%p9 bra W;
      END:
    """
    )
    report, out = result(body)
    assert report.ok, report
    assert out[0] == 10 << 8 | 6


def test_dropped_arrivals_are_not_expected_again() -> None:
    body = init(33) + "mbarrier.arrive.shared::cta.b64 _, [%r2]; @%p0 mbarrier.arrive_drop.shared::cta.b64 _, [%r2];\n"
    body += wait(0, "0", "A") + "mbarrier.arrive.shared::cta.b64 _, [%r2];\n" + wait(0, "1", "B") + "mov.u32 %r10, 7;\n"
    report, out = result(body)
    assert report.ok and (out == 7).all()


def test_expect_tx_and_complete_tx_balance() -> None:
    body = (
        init(1)
        + """
      @%p0 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r2], 48;
      @%p0 mbarrier.arrive.shared::cta.b64 _, [%r2];
      @%p0 mbarrier.complete_tx.shared::cta.b64 [%r2], 48;
    """
    )
    report, _ = result(body + wait(0, "0", "W") + "mov.u32 %r10, 0;\n")
    assert report.ok, report


def test_cp_async_arrives_when_its_copies_have_landed() -> None:
    copy = THREAD_BUF + "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8;\n"
    copy += "cp.async.ca.shared.global [%r5], [%rd9], 4;\n"
    read = "xor.b32 %r6, %r4, 4; add.u32 %r6, %r6, %r1; ld.shared.u32 %r10, [%r6];\n"
    for noinc, count in ((".noinc", 32), ("", 32)):
        arrive = f"cp.async.mbarrier.arrive{noinc}.shared::cta.b64 [%r2];\n"
        if not noinc:
            arrive += "mbarrier.arrive.shared::cta.b64 _, [%r2];\n"
        report, out = result(init(count) + copy + arrive + wait(0, "0", "W") + read)
        assert report.ok, report
        assert (out == X[:32][np.arange(32) ^ 1]).all()
        assert "missing cp.async wait" in kinds(init(count) + copy + arrive + read)


def test_a_barrier_may_be_invalidated_and_made_anew() -> None:
    body = (
        init(1)
        + "@%p0 mbarrier.arrive.shared::cta.b64 _, [%r2];\n"
        + wait(0, "0", "W")
        + """
      bar.sync 0; @%p0 mbarrier.inval.shared::cta.b64 [%r2]; @%p0 st.shared.u64 [%r2], 5;
      @%p0 mbarrier.init.shared::cta.b64 [%r2], 2; mov.u32 %r10, 0;
    """
    )
    assert result(body)[0].ok


ARRIVE = "@%p0 mbarrier.arrive.shared::cta.b64 _, [%r2];\n"
MISUSES = {
    "initialises a live mbarrier": init(1) + "@%p0 mbarrier.init.shared::cta.b64 [%r2], 1;",
    "no initialised mbarrier": "mbarrier.try_wait.parity.shared::cta.b64 %p9, [%r2], 0;",
    "a count of 0": "@%p0 mbarrier.init.shared::cta.b64 [%r2], 0;",
    "a count of 1048576": "@%p0 mbarrier.init.shared::cta.b64 [%r2], 1048576;",
    "arrives 3 times in a phase that has 2": init(2) + "@%p0 mbarrier.arrive.shared::cta.b64 _, [%r2], 3;",
    "arrives 1 times in a phase that has 0": (
        init(1) + "@%p0 mbarrier.expect_tx.shared::cta.b64 [%r2], 16;" + ARRIVE + ARRIVE),
    "no thread has waited for the phase before": init(1) + ARRIVE + ARRIVE,
    "a transaction count of": init(2) + "@%p0 mbarrier.expect_tx.shared::cta.b64 [%r2], 1048576;",
    "expect_tx does not count their bytes": (
        init(1) + LOAD.format(tx=0, bytes=128).splitlines()[1] + ARRIVE + wait(0, "0", "W")),
    "copies bring 128 bytes to a phase that expects 64": init(1) + LOAD.format(tx=64, bytes=128) + wait(0, "0", "W"),
    "an ordinary access to a live mbarrier": init(1) + "ld.shared.u64 %rd5, [%r2];",
    ".noComplete completes the phase": init(1) + "@%p0 mbarrier.arrive.noComplete.shared::cta.b64 %rd5, [%r2], 1;",
    "not what mbarrier.arrive.noComplete gave": "mov.u64 %rd5, 3; mbarrier.pending_count.b64 %r5, %rd5;",
    "not that of an arrival": init(1) + "mov.u64 %rd5, 3; mbarrier.test_wait.shared::cta.b64 %p9, [%r2], %rd5;",
    "inval while copies": init(1) + LOAD.format(tx=128, bytes=128) + "@%p0 mbarrier.inval.shared::cta.b64 [%r2];",
    "a parity of 2": init(1) + "mbarrier.test_wait.parity.shared::cta.b64 %p9, [%r2], 2;",
}  # fmt: skip


@pytest.mark.parametrize("text", MISUSES)
def test_misuse_is_found_with_its_line_and_lane(text: str) -> None:
    report, _ = result(MISUSES[text] + "\nmov.u32 %r10, 0;\n")
    found = [f for f in report.findings if f.kind == "mbarrier misuse" and text in f.message]
    assert found, report
    assert "mbarrier" in found[0].source or "cp.async.bulk" in found[0].source or "ld.shared" in found[0].source
    assert found[0].lane == 0


def test_an_mbarrier_used_before_its_initialisation_is_published_is_a_race() -> None:
    body = "@%p0 mbarrier.init.shared::cta.b64 [%r2], 64; {} mbarrier.arrive.shared::cta.b64 _, [%r2];\n"
    body += "mov.u32 %r10, 0;\n"
    assert "shared memory race" in kinds(body.format(""), 64)
    assert not kinds(body.format("bar.sync 0;"), 64)


def test_a_copy_needs_a_barrier_behind_another_warps_initialisation_but_no_proxy_fence() -> None:
    """Copies access mbarriers by the generic proxy, as everything does (PTX ISA 9.7.9.25.4.1)."""
    other = "setp.eq.u32 %p0, %r0, 32;\n" + LOAD.format(tx=64, bytes=64) + wait(0, "0", "W") + "mov.u32 %r10, 0;\n"
    assert not kinds(init(1) + other, 64)
    assert "shared memory race" in kinds(init(1).replace("bar.sync 0;", "") + other, 64)


def test_deadlock_names_the_line_the_mbarrier_and_what_its_phase_lacks() -> None:
    body = init(1, 3) + "@%p0 mbarrier.arrive.shared::cta.b64 _, [%r2+8];\n" + wait(8, "0", "W") + "mov.u32 %r10, 0;\n"
    report, _ = result(body, 64)
    found = next(f for f in report.findings if f.kind == "deadlock")
    text = str(found)
    assert found.source.startswith("W: mbarrier.try_wait")
    assert all(f"warp {w} at PTX line {found.line} waits on the mbarrier" in text for w in (0, 1))
    assert "mbarrier at shared address 0x1008, parity 0: its phase 0 lacks 2 of 3 arrivals" in text


def test_a_wait_that_gives_up_after_some_tries_is_no_deadlock() -> None:
    body = (
        init(1)
        + """
      mov.u32 %r10, 0;
      L: add.u32 %r10, %r10, 1; mbarrier.try_wait.parity.shared::cta.b64 %p9, [%r2], 0;
      setp.lt.and.u32 %p8, %r10, 6, !%p9; @%p8 bra L;
    """
    )
    report, out = result(body)
    assert report.ok and (out == 6).all()


def test_a_copy_lands_although_another_warp_spins_on_its_outcome() -> None:
    """Warp 1 polls a flag in global memory that warp 0 sets once its copy has arrived."""
    body = init(1) + "setp.ge.u32 %p1, %r0, 32; @%p1 bra POLL;\n" + LOAD.format(tx=64, bytes=64) + wait(0, "0", "W")
    body += "@%p0 st.release.gpu.global.u32 [%rd1], 7; bra END;\n"
    body += "POLL: ld.acquire.gpu.global.u32 %r10, [%rd1]; setp.ne.u32 %p2, %r10, 7; @%p2 bra POLL; END: bar.sync 0;\n"
    report, arrays = launch(body, X, OUT, block=64)
    assert report.ok, report
    assert arrays[1][0] == 7
