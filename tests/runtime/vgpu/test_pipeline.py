"""Whole kernels in the Hopper style: warp-specialised rings of tensor copies, alone and with multicast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu.tensor_map import encode_tiled
from tests.runtime.vgpu.hopper import launch

STAGES, ROWS, COLS, STEPS = 3, 8, 32, 10  # a stage is 8 rows of 32 f32: one swizzled kilobyte
BYTES = ROWS * COLS * 4
# Warps 0-3 produce, warps 4-7 consume: each adds up its element of every tile, undoing the swizzle.
# Full barriers are the first three, empty ones the next three (128 consumers' warps arrive by one lane each).
RING = """
@%p0 mbarrier.init.shared::cta.b64 [%r2], 1; @%p0 mbarrier.init.shared::cta.b64 [%r2+8], 1;
@%p0 mbarrier.init.shared::cta.b64 [%r2+16], 1; @%p0 mbarrier.init.shared::cta.b64 [%r2+24], {empty};
@%p0 mbarrier.init.shared::cta.b64 [%r2+32], {empty}; @%p0 mbarrier.init.shared::cta.b64 [%r2+40], {empty};
@%p0 fence.mbarrier_init.release.cluster; bar.sync 0; {meet}
mov.u32 %r20, 0; mov.u32 %r21, 0; mov.u32 %r22, 0; mov.u32 %r23, %ctaid.x; mov.u32 %r40, %cluster_ctarank;
setp.ge.u32 %p1, %r3, 4; @%p1 bra CONSUMER;
setmaxnreg.dec.sync.aligned.u32 40;
setp.ne.u32 %p1, %r3, 0; @%p1 bra DONE;
elect.sync _|%p2, 0xffffffff; @!%p2 bra DONE;
PRODUCE:
  shl.b32 %r24, %r21, 3; add.u32 %r25, %r2, %r24;
  xor.b32 %r26, %r22, 1;
  {try_empty}
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r25], {bytes};
  shl.b32 %r27, %r21, 10; add.u32 %r28, %r1, %r27;
  mad.lo.u32 %r29, %r23, {blockrows}, %r20; shl.b32 %r29, %r29, 3;
  {load}
  add.u32 %r20, %r20, 1; add.u32 %r21, %r21, 1; setp.eq.u32 %p4, %r21, {stages};
  @%p4 xor.b32 %r22, %r22, 1; @%p4 mov.u32 %r21, 0;
  setp.lt.u32 %p5, %r20, {steps}; @%p5 bra PRODUCE;
bra DONE;
CONSUMER:
setmaxnreg.inc.sync.aligned.u32 216;
mov.f32 %f1, 0f00000000; mov.f32 %f2, 0f00000000; sub.u32 %r30, %r0, 128;
shl.b32 %r31, %r30, 2; shr.u32 %r32, %r31, 7; and.b32 %r32, %r32, 7; shl.b32 %r32, %r32, 4; xor.b32 %r31, %r31, %r32;
add.u32 %r33, %r31, 512;  // four rows further on: the swizzle's line differs
xor.b32 %r33, %r33, 64;
CONSUME:
  shl.b32 %r24, %r21, 3; add.u32 %r25, %r2, %r24;
  FULL: mbarrier.try_wait.parity{acquire}.shared::cta.b64 %p3, [%r25], %r22; @!%p3 bra FULL;
  shl.b32 %r27, %r21, 10; add.u32 %r28, %r1, %r27; add.u32 %r34, %r28, %r31; add.u32 %r35, %r28, %r33;
  {early}
  ld.shared.f32 %f3, [%r34]; ld.shared.f32 %f4, [%r35]; add.f32 %f1, %f1, %f3; add.f32 %f2, %f2, %f4;
  {sync}
  elect.sync _|%p2, 0xffffffff;
  {release}
  add.u32 %r20, %r20, 1; add.u32 %r21, %r21, 1; setp.eq.u32 %p4, %r21, {stages};
  @%p4 xor.b32 %r22, %r22, 1; @%p4 mov.u32 %r21, 0;
  setp.lt.u32 %p5, %r20, {steps}; @%p5 bra CONSUME;
mad.lo.u32 %r36, %r23, 256, %r30; mul.wide.u32 %rd8, %r36, 4; add.s64 %rd9, %rd1, %rd8;
st.global.f32 [%rd9], %f1; st.global.f32 [%rd9+512], %f2;
DONE: {meet}
"""
PLAIN: dict[str, Any] = {
    "empty": 4, "meet": "", "acquire": "", "bytes": BYTES, "blockrows": STEPS, "stages": STAGES, "steps": STEPS,
    "load": "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
            "[%r28], [%rd20, {0, %r29}], [%r25];",
    "try_empty": "EMPTY: mbarrier.try_wait.parity{acquire}.shared::cta.b64 %p3, [%r25+24], %r26; @!%p3 bra EMPTY;",
    "early": "",
    "sync": "bar.warp.sync 0xffffffff;",
    "release": "@%p2 mbarrier.arrive.shared::cta.b64 _, [%r25+24];",
}  # fmt: skip


def swizzled_map(addresses: list[int]) -> bytes:
    rows = 4096
    return encode_tiled(7, 2, addresses[0], (COLS, rows), (COLS * 4,), (COLS, ROWS), (1, 1), 0, 3)


def half_map(addresses: list[int]) -> bytes:
    return encode_tiled(7, 2, addresses[0], (COLS, 4096), (COLS * 4,), (COLS, ROWS // 2), (1, 1), 0, 3)


def data() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 100, (4096, COLS)).astype(np.float32)


def run(grid: int, cluster: int | None = None, maps: Any = swizzled_map, **parts: Any) -> Any:
    parts = {**PLAIN, **parts}
    parts["try_empty"] = parts["try_empty"].format(**parts)
    x = data()
    report, arrays = launch(
        RING.format(**parts), x, np.zeros((grid, 256), np.float32), block=256, grid=grid, cluster=cluster, maps=[maps],
        directives=".reqntid 256, 1, 1", registers=128,
    )  # fmt: skip
    return report, arrays[1].reshape(grid, ROWS, COLS), x


def sums(x: np.ndarray, block: int) -> np.ndarray:
    first = block * STEPS * ROWS
    found: np.ndarray = x[first : first + STEPS * ROWS].reshape(STEPS, ROWS, COLS).sum(axis=0)
    return found


def test_a_warp_specialised_ring_of_swizzled_tensor_copies() -> None:
    report, out, x = run(4)
    assert report.ok, report
    for b in range(4):
        assert (out[b] == sums(x, b)).all()


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("deadlock", {"release": ""}),
    ("read before completion", {"bytes": 0}),
    ("mbarrier misuse", {"bytes": BYTES // 2}),
    ("mbarrier misuse", {"empty": 1}),
    ("write before completion", {"try_empty": ""}),
    ("shared memory race", {"early": f"elect.sync _|%p2, 0xffffffff; {PLAIN['release']}", "release": ""}),
]


@pytest.mark.parametrize(("kind", "fault"), FAULTS)
def test_a_fault_in_the_ring_is_found(kind: str, fault: dict[str, Any]) -> None:
    report, _, _ = run(2, **fault)
    assert kind in report.kinds(), report


def test_the_deadlock_of_a_ring_names_both_sides() -> None:
    text = str(run(1, release="")[0])
    assert "warp 0 at PTX line" in text and "lacks 4 of 4 arrivals" in text
    assert "warp 4 at PTX line" in text and "lacks 1 of 1 arrivals" in text


MEET = "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;"
SHARED: dict[str, Any] = {
    # both blocks of a cluster work on the same tiles; each loads one half into both
    "empty": 8, "meet": MEET, "acquire": ".acquire.cluster", "maps": half_map,
    "load": """
      shr.u32 %r37, %r23, 1; mad.lo.u32 %r29, %r37, 10, %r20; shl.b32 %r29, %r29, 3; shl.b32 %r38, %r40, 2;
      add.u32 %r29, %r29, %r38; shl.b32 %r38, %r40, 9; add.u32 %r28, %r28, %r38; mov.u16 %h1, 3;
      cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster
        [%r28], [%rd20, {0, %r29}], [%r25], %h1;""",
    "release": """
      add.u32 %r41, %r25, 24; mapa.shared::cluster.u32 %r42, %r41, 0; mapa.shared::cluster.u32 %r43, %r41, 1;
      @%p2 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r42];
      @%p2 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r43];""",
}  # fmt: skip


def test_a_cluster_of_two_shares_its_loads_by_multicast() -> None:
    report, out, x = run(4, 2, **SHARED)
    assert report.ok, report
    for b in range(4):
        assert (out[b] == sums(x, b // 2)).all()


def test_a_producer_that_does_not_wait_for_the_peers_consumers_is_found() -> None:
    own = {"empty": 4, "release": PLAIN["release"]}
    report, _, _ = run(2, 2, **{**SHARED, **own})
    assert report.kinds() & {"shared memory race", "mbarrier misuse", "write before completion"}, report
