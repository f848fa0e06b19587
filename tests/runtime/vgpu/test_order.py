"""`Options.order`: blocks start and take turns in another order, the same one for a seed, and nobody waits for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tcomp.runtime.vgpu import Device, Options, Report
from tests.runtime.vgpu.conftest import entry

SEEDS = range(1, 9)
# Each block notes its number at the place that an atomic counter gives it.
TICKETS = """
mov.u32 %r9, %ctaid.x; atom.global.add.u32 %r5, [%rd0], 1; mul.wide.u32 %rd5, %r5, 4; add.u64 %rd5, %rd0, %rd5;
st.global.u32 [%rd5+4], %r9;"""
ADD = """
mov.u32 %r9, %ctaid.x; mul.wide.u32 %rd5, %r9, 4; add.u64 %rd5, %rd0, %rd5; ld.global.f32 %f0, [%rd5+4];
red.global.add.f32 [%rd0], %f0;"""
# Block n waits until n blocks have come, as a turn does; with the order reversed, until all of the later ones have.
TURN = """
mov.u32 %r9, %ctaid.x; {}
W: ld.acquire.gpu.global.u32 %r5, [%rd0]; setp.ne.u32 %p1, %r5, %r9; @%p1 bra W;
add.u32 %r5, %r5, 1; st.release.gpu.global.u32 [%rd0], %r5;"""


def run(body: str, array: Any, order: int, grid: int = 16, block: int = 1, **options: Any) -> tuple[Report, Any]:
    gpu = Device(options=Options(order=order, **options))
    at = gpu.upload(array)
    report = gpu.load(entry(body, "x")).launch("k", grid, block, [at])
    return report, gpu.download(at, array.dtype, array.size)


def tickets(order: int, **options: Any) -> tuple[int, ...]:
    report, found = run(TICKETS, np.zeros(17, np.uint32), order, **options)
    assert report.ok and found[0] == 16
    return tuple(found[1:].tolist())


def test_a_seed_is_an_order_of_all_blocks() -> None:
    found = [tickets(seed) for seed in SEEDS]
    assert tickets(0) == tuple(range(16)) and all(sorted(f) == list(range(16)) for f in found)
    assert len(set(found)) == len(SEEDS) and found == [tickets(seed) for seed in SEEDS]


def test_blocks_of_an_earlier_wave_come_first() -> None:
    for seed in SEEDS:
        found = tickets(seed, wave_threads=160)  # five blocks of a warp
        assert [n // 5 for n in found] == [n // 5 for n in range(16)]
    assert len({tickets(seed, wave_threads=160) for seed in SEEDS}) == len(SEEDS)


def test_a_sum_in_the_order_of_arrival_depends_on_it() -> None:
    numbers = np.random.default_rng(0).standard_normal(17).astype(np.float32)
    numbers[0] = 0
    found = [run(ADD, numbers, seed)[1][0] for seed in (0, *SEEDS)]
    assert len({f.tobytes() for f in found}) > 1
    np.testing.assert_allclose(found, numbers.sum(), rtol=1e-5)


@pytest.mark.parametrize("back", [False, True], ids=["forward", "backward"])
def test_blocks_that_wait_for_others_let_them_run(back: bool) -> None:
    for seed in SEEDS:
        report, found = run(TURN.format("sub.u32 %r9, 15, %r9;" if back else ""), np.zeros(1, np.uint32), seed)
        assert report.ok and found[0] == 16


def test_a_wait_for_nobody_is_a_deadlock_in_any_order() -> None:
    for seed in SEEDS:
        report, _ = run(TURN.format("add.u32 %r9, %r9, 1;"), np.zeros(1, np.uint32), seed)
        assert report.kinds() == {"deadlock"} and all(f"block {n} " in str(report) for n in range(16))


CLUSTER = """
mov.u32 %r9, %cluster_ctarank; mov.u32 %r8, %clusterid.x; mov.u32 %r7, %ctaid.x;
barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
mad.lo.u32 %r6, %r8, 4, %r9; sub.u32 %r6, %r6, %r7; setp.ne.u32 %p0, %r6, 0; @%p0 trap;
bar.sync 0; red.global.add.u32 [%rd0], 1;"""


def test_clusters_stay_whole_and_barriers_hold() -> None:
    """Also where a block is no whole number of warps."""
    for seed in SEEDS:
        gpu = Device(options=Options(order=seed))
        at = gpu.upload(np.zeros(1, np.uint32))
        gpu.load(entry(CLUSTER, "x")).launch("k", 16, 40, [at], cluster=4).check()
        assert gpu.download(at, np.uint32, 1)[0] == 16 * 40
