"""Published GPU kernels as descriptions, to hold the model against: what each is said to do, not how fast it is.

The ladder is the series of bf16 matrix products (4096 cubed, H100 SXM) of "Outperforming cuBLAS on H100" (fast.cu):
each rung changes one thing. The library kernels are described from their own sources. TFLOPS are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tcomp.autotune.gpu_model import (
    DRIFT,
    PERSISTENT_DRIFT,
    BlockWork,
    LaunchWork,
    Prediction,
    Ring,
    cached_traffic,
    predict,
    scaled,
    tensor_cycles,
)
from tcomp.machine.gpu import H100

Order = Callable[[int, int, int], tuple[int, int]]
"""(tile number, tiles along m, tiles along n) -> its place"""


@dataclass(frozen=True)
class Gemm:
    """One kernel's technique. Sizes in elements; `cluster` CTAs share the B tile by multicast. `arrivals` threads
    complete a stage's barrier; `store` is direct (stores from registers hold up the matrix unit), tuned (their order
    follows the layout, written through) or async (a bulk store in the background)."""

    name: str
    published: float
    bm: int = 128
    bn: int = 128
    bk: int = 64
    stages: int = 1
    consumers: int = 1
    resident: int = 1
    arrivals: int = 0
    cluster: int = 1
    persistent: bool = False
    order: str = "rows"  # rows | grouped | hilbert | chunks
    store: str = "direct"  # direct | tuned | async | stmatrix
    serialised: bool = False
    cuda_cores: bool = False
    sms: int | None = None


LADDER = (
    Gemm("1 CUDA cores", 32, cuda_cores=True, bk=16, resident=2),
    Gemm("2 TMA + wgmma, 64x64", 317, bm=64, bn=64, resident=8),
    Gemm("3 128x128", 423, resident=2),
    Gemm("4 producer and consumer, 5 stages", 498, stages=5, arrivals=257),
    Gemm("- 128x256 with one consumer: serialised", 123, bn=256, stages=3, arrivals=257, serialised=True),
    Gemm("5 128x256, two consumers", 631, bn=256, stages=3, consumers=2, arrivals=257),
    Gemm("6 persistent, chunks of tiles", 400, bn=256, stages=3, consumers=2, arrivals=257, persistent=True,
         order="chunks"),
    Gemm("6 tiles in groups of 16 x 8", 660, bn=256, stages=3, consumers=2, arrivals=257, persistent=True,
         order="grouped", sms=128),
    Gemm("7 parity mbarriers, few arrivals", 704, bn=256, stages=3, consumers=2, arrivals=3, persistent=True,
         order="grouped", sms=128),
    Gemm("8 clusters of 2, multicast", 734, bn=256, stages=3, consumers=2, arrivals=3, persistent=True,
         order="grouped", sms=128, cluster=2),
    Gemm("9 store order, write-through", 747, bn=256, stages=3, consumers=2, arrivals=3, persistent=True,
         order="grouped", sms=128, cluster=2, store="tuned"),
    Gemm("10 asynchronous store", 758, bn=256, stages=3, consumers=2, arrivals=3, persistent=True,
         order="grouped", sms=128, cluster=2, store="async"),
    Gemm("11 Hilbert order", 764, bn=256, stages=3, consumers=2, arrivals=3, persistent=True,
         order="hilbert", sms=128, cluster=2, store="async"),
    Gemm("12 stmatrix", 771, bn=256, stages=3, consumers=2, arrivals=3, persistent=True,
         order="hilbert", sms=128, cluster=2, store="stmatrix"),
)  # fmt: skip

CLASSES = (
    Gemm("cuBLAS class: 128x256, clusters, warp-specialised, persistent", 716, bn=256, stages=4, consumers=2,
         arrivals=3, cluster=2, persistent=True, order="hilbert", store="async"),
    Gemm("Triton, descriptors and warp specialisation", 564, bn=256, stages=3, consumers=2, arrivals=3,
         order="grouped"),
    Gemm("Triton, software pipeline", 490, bn=256, stages=3, arrivals=256, order="grouped"),
    Gemm("CUDA cores", 32, cuda_cores=True, bk=16, resident=2),
)  # fmt: skip
"""Not part of what the constants were chosen by. Published figures: cuBLAS 716 (fast.cu's runs), Triton's tutorial
matmul 450 to 527 and its warp-specialised form 564 (tutorial, TLX README; other shapes)."""

STORE_CYCLES = {"direct": 4600.0, "tuned": 2600.0, "async": 900.0, "stmatrix": 500.0}
"""Cycles that the matrix unit stands still for a 128 x 128 tile's stores: 4572 in a profile of the direct form; the
others from the instructions that write registers to shared memory."""


SIZE = 4096
"""Rows, columns and summed terms of the product."""


def launch_of(g: Gemm) -> LaunchWork:
    """The launch that a description stands for, bf16 with f32 accumulation, on an H100."""
    tiles_m, tiles_n = -(-SIZE // g.bm), -(-SIZE // g.bn)
    tiles = tiles_m * tiles_n
    turns = -(-SIZE // g.bk)
    flops_turn = 2.0 * g.bm * g.bn * g.bk
    loaded = 2.0 * g.bk * (g.bm + g.bn / g.cluster)
    if g.cuda_cores:
        multiply_adds = g.bm * g.bn * g.bk / 32
        work = BlockWork(
            issue=turns * multiply_adds * 1.3, fma=turns * multiply_adds,
            shared_bytes=turns * multiply_adds * 32 / 8 * 4 * 0.5, l2_bytes=turns * loaded, stores=4000.0,
            rings=(Ring(turns, loaded, 2, other=multiply_adds / 4 * 1.3),),
        )  # fmt: skip
    else:
        tensor = tensor_cycles(flops_turn, "bf16", H100)
        ring = Ring(
            turns, loaded, g.stages, tensor, consumers=g.consumers, arrivals=g.arrivals, serialised=g.serialised
        )
        issue = turns * g.bk / 16 * g.bm / 64 * 4 + turns * 40
        work = BlockWork(
            issue=issue, tensor=turns * tensor, l2_bytes=turns * loaded, rings=(ring,),
            shared_bytes=turns * 2.0 * g.bk * (g.bn * g.bm / 64 + g.bm), stores=_stores(g),
        )  # fmt: skip
    sms = g.sms or H100.sms
    running = min(tiles, sms * g.resident)
    hbm = _traffic(g, tiles_m, tiles_n, running, 2.0 * g.bm * SIZE, 2.0 * g.bn * SIZE) + 2.0 * SIZE * SIZE
    if g.persistent:
        per_block = -(-tiles // sms)
        return LaunchWork(g.name, sms, 1, scaled(work, per_block), hbm, 2.0 * SIZE**3)
    return LaunchWork(g.name, tiles, g.resident, work, hbm, 2.0 * SIZE**3)


def _stores(g: Gemm) -> float:
    return STORE_CYCLES[g.store] * math.sqrt(g.bm * g.bn / (128 * 128))


def _traffic(g: Gemm, tiles_m: int, tiles_n: int, running: int, a_bytes: float, b_bytes: float) -> float:
    """Bytes of A and B from device memory: wave by wave, what the running tiles read."""
    total = tiles_m * tiles_n
    waves = -(-total // running)
    place = ORDERS[g.order]
    out = 0.0
    for w in range(waves):
        if g.order == "chunks":
            numbers = [min(i * waves + w, total - 1) for i in range(running) if i * waves + w < total]
        else:
            numbers = list(range(w * running, min(total, (w + 1) * running)))
        places = [place(t, tiles_m, tiles_n) for t in numbers]
        unique = len({p[0] for p in places}) * a_bytes + len({p[1] for p in places}) * b_bytes
        if g.order == "chunks":  # blocks drift apart, and each then reads the next tile's panel of B
            unique += len({(p[1] + 1) % tiles_n for p in places} - {p[1] for p in places}) * b_bytes
        drift = PERSISTENT_DRIFT if g.persistent else DRIFT
        out += cached_traffic(unique, len(places) * (a_bytes + b_bytes), H100, drift)
    return out


def _rows(t: int, tiles_m: int, tiles_n: int) -> tuple[int, int]:
    return t // tiles_n, t % tiles_n


def _grouped(t: int, tiles_m: int, tiles_n: int) -> tuple[int, int]:
    """Groups of 16 x 8 tiles."""
    gm, gn = min(16, tiles_m), min(8, tiles_n)
    group, inside = divmod(t, gm * gn)
    across = max(1, tiles_n // gn)
    return group // across * gm + inside // gn, group % across * gn + inside % gn


def _hilbert(t: int, tiles_m: int, tiles_n: int) -> tuple[int, int]:
    """The t-th point inside the grid of a Hilbert curve that covers it."""
    return _hilbert_curve(tiles_m, tiles_n)[t]


@cache
def _hilbert_curve(tiles_m: int, tiles_n: int) -> list[tuple[int, int]]:
    """The curve's points inside the grid, in their order."""
    side = 1
    while side < max(tiles_m, tiles_n):
        side *= 2
    points = (_hilbert_point(side, d) for d in range(side * side))
    return [(x, y) for x, y in points if x < tiles_m and y < tiles_n]


def _hilbert_point(side: int, d: int) -> tuple[int, int]:
    x = y = 0
    s = 1
    while s < side:
        rx = 1 & (d // 2)
        ry = 1 & (d ^ rx)
        if ry == 0:
            if rx == 1:
                x, y = s - 1 - x, s - 1 - y
            x, y = y, x
        x, y = x + s * rx, y + s * ry
        d //= 4
        s *= 2
    return x, y


ORDERS: dict[str, Order] = {"rows": _rows, "chunks": _rows, "grouped": _grouped, "hilbert": _hilbert}


def ladder() -> list[tuple[Gemm, Prediction]]:
    """Every rung with its prediction."""
    return [(g, predict(launch_of(g), H100)) for g in LADDER]


def classes() -> list[tuple[Gemm, Prediction]]:
    """The library kernels with their predictions."""
    return [(g, predict(launch_of(g), H100)) for g in CLASSES]
