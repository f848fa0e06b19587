"""Random schedules on tensor cores for products with each operand order, legal by construction.

A product is M rows by N columns, summed over K. What is drawn: the instruction, the tile of a block, what a warp or a
warpgroup computes of it, the blocks of a cluster, the step along K and how many are in flight, how operands are copied,
who copies, how results leave, and of a divided sum how its parts are cut and joined.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from tcomp.dsl.ast import (
    Call,
    Combine,
    Directive,
    DType,
    Flag,
    KernelSchedule,
    Level,
    MapLoops,
    Name,
    Num,
    Schedule,
    Stage,
    Use,
)

TEXT = """
op plain(X: real[M, K], W: real[N, K], b: real[N]) -> Y: real[M, N]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n] + b[n]

op columns(X: real[M, K], W: real[K, N], b: real[N]) -> Y: real[M, N]:
  acc[m, n] = sum k: X[m, k] * W[k, n]
  Y[m, n] = acc[m, n] + b[n]

op both(X: real[K, M], W: real[K, N], b: real[N]) -> Y: real[M, N]:
  acc[m, n] = sum k: X[k, m] * W[k, n]
  Y[m, n] = acc[m, n] + b[n]

op residual(X: real[M, K], W: real[N, K], b: real[N], R: real[M, N]) -> Y: real[M, N]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n] + b[n] + R[m, n]

op divided(X: real[K, M], W: real[K, N]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[k, m] * W[k, n]

op beside(X: real[K, M], W: real[K, N]) -> Y: f32[M, N], s: f32[M]:
  Y[m, n] = sum k: X[k, m] * W[k, n]
  s[m] = sum k: X[k, m]

op parts(X: real[M, K], W: real[N, K], b: real[N]) -> Y: real[M, N]:
  index g: (K + 63) // 64
  index j: 64
  Xp[m, g, j]: real = select(64 * g + j < K, X[m, 64 * g + j], 0.0)
  Wp[n, g, j]: real = select(64 * g + j < K, W[n, 64 * g + j], 0.0)
  part[g, m, n] = sum j: Xp[m, g, j] * Wp[n, g, j]
  acc[m, n] = sum g: part[g, m, n]
  Y[m, n] = acc[m, n] + b[n]

op narrow(X: e4m3[M, K], W: e5m2[N, K], b: f32[N]) -> Y: f32[M, N]:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = acc[m, n] + b[n]
"""
OPS = ("plain", "columns", "both", "residual", "divided", "beside", "parts", "narrow")
ACCUMULATORS = 128
"""accumulators a thread may have; a block has at most 16 warps"""


@dataclass(frozen=True)
class Drawn:
    """A schedule of an op, its target, and the extents it is run at."""

    schedule: Schedule
    target: str
    dims: dict[str, int]


def _level(kind: str, *args: int) -> Level:
    return Level(kind, tuple(map(Num, args)))


@st.composite
def schedules(draw: st.DrawFn, op: str, storage: DType) -> Drawn:
    group = draw(st.booleans())
    tma = group or draw(st.booleans())
    bytes_ = 1 if op == "narrow" else storage.bytes
    # Tensor copies take rows of multiples of 16 bytes; other copies take any.
    unit = 16 // bytes_ if tma else 1
    cluster = draw(st.sampled_from([1, 1, 2, 3, 4])) if tma and op != "parts" else 1
    longest = {"M": 150 * (1 + (cluster > 1)), "N": 150, "K": 140 * (1 + (cluster > 1))}
    dims = {d: unit * draw(st.integers(1, most // unit), label=d) for d, most in longest.items()}
    rows, columns = _tiles(draw, group, cluster)
    step = 32 // bytes_ * draw(st.sampled_from([1, 2, 4] if not group else [2, 4]))
    stages = draw(st.integers(2 if op == "beside" else 1, 4))
    how = "tma" if tma else draw(st.sampled_from(["cp.async", "copy"]))
    options = () if tma or (not draw(st.booleans())) else (Level("swizzle"),)
    pipe = _level("pipe", step, max(2, stages)) if stages > 1 else _level("seq", step)
    summed = [MapLoops(("k",), (), (pipe, Level("mma")))]
    operands, at, target = ("X", "W"), "k", "acc"
    joined: list[Directive] = []
    if op in ("divided", "beside"):
        target = "Y"
        by = draw(st.sampled_from(["turns", "partials"])) if tma else "partials"
        part = _level("grid.z", step * draw(st.integers(1, 3)))
        summed = [MapLoops(("k",), (), (part, pipe, Level("mma")))]
        joined = [Combine(("Y", "s") if op == "beside" else ("Y",), "k", by)]
        if op == "beside":
            warps = next(x for x in rows if x.kind in ("warpgroup", "warp.y"))
            joined.append(MapLoops(("m",), ("s",), (warps, Level("lane"), _level("vec", 4))))
            joined.append(MapLoops(("k",), ("s",), (_level("lane.y", step // 8),)))
            if by == "partials" and draw(st.booleans()):
                joined.append(Combine(("s",), "n", by))
        if by == "turns" or (tma and draw(st.booleans())):
            joined.append(Stage(("Y",), "shared", "n", "tma", ()))
    if op == "parts":
        summed = [MapLoops(("g",), (), (_level("pipe", 1, max(2, stages)),)), MapLoops(("j",), (), (Level("mma"),))]
        operands, at, target = ("Xp", "Wp"), "g", "part"
    body: list[Directive] = [
        MapLoops(("m",), (), rows), MapLoops(("n",), (), columns), *summed,
        Stage(operands, "shared", at, how, options),
        Use("wgmma" if group else "mma.sync", (target,)), *joined,
    ]  # fmt: skip
    if op == "residual" and tma and draw(st.booleans()):
        body.append(Stage(("b", "R"), "shared", "n", "tma", ()))
    if group and op not in ("parts", "divided", "beside") and draw(st.booleans()):
        body.append(Stage(("Y",), "shared", "n", "tma", ()))
    if tma and draw(st.booleans()):
        moved = group and draw(st.booleans())
        who = Call("warpgroup", (Num(draw(st.sampled_from([24, 40]))),)) if moved else Name("warp")
        body.append(Flag("producer", (who,)))
        ways = ["", "stagger", "pingpong"] if stages > 1 else ["", "stagger"]
        apart = draw(st.sampled_from(ways)) if group and op != "parts" else ""
        if apart:
            body.append(Flag(apart, ()))
    if "pingpong" in {f.name for f in body if isinstance(f, Flag)} or draw(st.booleans()):
        body.append(Flag("persistent"))
    flags = {f.name for f in body if isinstance(f, Flag)}
    turns = any(c.by == "turns" for c in body if isinstance(c, Combine))
    if turns and "persistent" in flags and "pingpong" not in flags and draw(st.booleans()):
        body.append(Flag("stream"))
    if draw(st.booleans()):
        body.append(Flag("raster", (Num(draw(st.integers(1, 4))),)))
    kernels = [KernelSchedule(("Y", "s") if op == "beside" else ("Y",), tuple(body))]
    if op == "parts":
        own = MapLoops(("j",), (), (Level("lane"), _level("vec", 2)))
        kernels = [
            KernelSchedule((t,), (MapLoops((i,), (), (_level("grid", 1),)), own)) for t, i in (("Xp", "m"), ("Wp", "n"))
        ] + kernels
    return Drawn(Schedule(op, "sm_90a", (), tuple(kernels)), "sm_90a", dims)


def _tiles(draw: st.DrawFn, group: bool, cluster: int) -> tuple[tuple[Level, ...], tuple[Level, ...]]:
    """The levels of rows and columns, with so many blocks' rows to a cluster."""

    def blocks(rows: int) -> tuple[Level, ...]:
        together = (_level("cluster", rows),) if cluster > 1 else ()
        return (_level("grid.y", rows * cluster), *together)

    if group:
        groups, columns = draw(st.integers(1, 3)), 16 * draw(st.integers(1, 12))
        return (*blocks(64 * groups), _level("warpgroup", 64), Level("mma")), (_level("grid.x", columns), Level("mma"))
    own_m, own_n = 16 * draw(st.integers(1, 4)), 16 * draw(st.integers(1, 4))
    warps_m, warps_n = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    assert own_m * own_n // 32 <= ACCUMULATORS
    return (
        (*blocks(own_m * warps_m), _level("warp.y", own_m), Level("mma")),
        (_level("grid.x", own_n * warps_n), _level("warp.x", own_n), Level("mma")),
    )
