"""Hand-built tile kernels on the CPU against NumPy: maps, reductions, contractions, scatters, guards, tails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import Access, Binary, Call, DType, Expr, Name, Num, Unary
from tcomp.errors import UserError
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Pack, Panels, RowMajor, Scope, Statement
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.runtime.cpu.single import SingleKernel

LEVELS = ("avx512", "avx2", "sse2", "neon", "generic")
Arrays = dict[str, np.ndarray]


def _machines() -> list[CpuMachine]:
    found = []
    for level in LEVELS:
        try:
            found.append(detect(level))
        except UserError:
            continue
    return found


MACHINES = _machines()


@pytest.fixture(params=MACHINES, ids=lambda m: m.name)
def machine(request: pytest.FixtureRequest) -> CpuMachine:
    return request.param


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


# -------------------------------------------------------------------------------- building kernels


def operand(name: str, *shape: int, dtype: DType = DType.F32) -> Buffer:
    return Buffer(name, dtype, shape, Scope.OPERAND)


def scratch(name: str, *shape: int, layout: RowMajor | Panels = RowMajor(), dtype: DType = DType.F32) -> Buffer:
    return Buffer(name, dtype, shape, Scope.SCRATCH, layout)


def at(tensor: str, *subscripts: Expr | str | int) -> Access:
    return Access(tensor, tuple(ex(s) for s in subscripts))


def ex(e: Expr | str | float) -> Expr:
    if isinstance(e, str):
        return Name(e)
    return Num(e) if isinstance(e, (int, float)) else e


def op(o: str, a: Expr | str | float, b: Expr | str | float) -> Expr:
    return Binary(o, ex(a), ex(b))


def fn(name: str, *args: Expr | str | float) -> Expr:
    return Call(name, tuple(ex(a) for a in args))


def axis(name: str, extent: int, unroll: int = 1, lanes: int = 1) -> Axis:
    return Axis(name, Num(0), Num(extent), extent, unroll, lanes)


def tile_axis(name: str, block: int, limit: int, unroll: int = 1, lanes: int = 1) -> Axis:
    """start = name.0, stop = min(name.0 + block, limit)."""
    start = Name(name + ".0")
    return Axis(name, start, fn("min", op("+", start, block), limit), block, unroll, lanes)


def kernel(operands: list[Buffer], body: list[Statement], tiles: tuple[Buffer, ...] = ()) -> Kernel:
    names = frozenset(b.name for b in operands)
    return Kernel("test", tuple(operands), tiles, (tuple(body),), names, names)


def run(k: Kernel, machine: CpuMachine, objects: Path, inputs: Arrays, threads: int = 1) -> Arrays:
    with SingleKernel(k, machine, threads, objects) as single:
        for name, value in inputs.items():
            single.array(name)[...] = value
        single.run()
        return {b.name: single.array(b.name).copy() for b in k.operands}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ------------------------------------------------------------------------------------------- maps


@pytest.mark.parametrize("n", [1, 2, 7, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100])
def test_a_map_covers_every_remainder_and_nothing_else(n: int, machine: CpuMachine, objects: Path) -> None:
    m = 5
    lanes = machine.lanes_f32
    value = op("+", op("*", at("X", "i", "j"), 2.0), at("b", "j"))
    body = Compute(at("Y", "i", "j"), value, (axis("i", m, 2), axis("j", n, 3, lanes)))
    k = kernel([operand("X", m, n), operand("b", n), operand("Y", m, n)], [body])
    x, b = normal(m, n), normal(n, seed=1)
    out = run(k, machine, objects, {"X": x, "b": b})
    np.testing.assert_allclose(out["Y"], x * 2 + b, rtol=1e-6)


@pytest.mark.parametrize("n", range(1, 36))
def test_dynamic_extents_have_masked_tails(n: int, objects: Path) -> None:
    machine = MACHINES[0]
    lanes = machine.lanes_f32
    stop = at("n")
    del stop  # the extent is an expression of loop variables only: a tile that ends at min(j.0 + 24, n)
    j = tile_axis("j", 24, n, 2, lanes)
    body = Loop("j.0", Num(0), Num(n), 24, "seq", (Compute(at("Y", "j"), op("+", at("X", "j"), 1.0), (j,)),))
    k = kernel([operand("X", n), operand("Y", n), operand("Z", 64)], [body])
    x = normal(n)
    out = run(k, machine, objects, {"X": x, "Z": np.full(64, 7.0)})
    np.testing.assert_array_equal(out["Y"], x + 1)
    np.testing.assert_array_equal(out["Z"], np.full(64, 7.0))


def test_an_empty_domain_writes_nothing(machine: CpuMachine, objects: Path) -> None:
    j = Axis("j", Name("t"), fn("min", op("+", "t", 8), 5), 8, 1, machine.lanes_f32)
    body = Loop("t", Num(5), Num(12), 3, "seq", (Compute(at("Y", "j"), Num(1.0), (j,)),))
    out = run(kernel([operand("Y", 16)], [body]), machine, objects, {"Y": np.zeros(16)})
    np.testing.assert_array_equal(out["Y"], np.zeros(16))


def test_reversed_strided_and_divided_subscripts(machine: CpuMachine, objects: Path) -> None:
    n = 37
    j = axis("j", n, 2, machine.lanes_f32)
    body: list[Statement] = [
        Compute(at("R", "j"), at("X", op("-", n - 1, "j")), (j,)),
        Compute(at("S", "j"), at("X", op("//", "j", 3)), (j,)),
        Compute(at("T", "j"), at("X", op("%", "j", 5)), (j,)),
        Compute(at("U", op("*", "j", 2)), at("X", "j"), (j,)),
    ]
    names = [operand("X", n), operand("R", n), operand("S", n), operand("T", n), operand("U", 2 * n)]
    x = normal(n)
    out = run(kernel(names, body), machine, objects, {"X": x})
    np.testing.assert_array_equal(out["R"], x[::-1])
    np.testing.assert_array_equal(out["S"], x[np.arange(n) // 3])
    np.testing.assert_array_equal(out["T"], x[np.arange(n) % 5])
    np.testing.assert_array_equal(out["U"][::2], x)


def test_integers_comparisons_and_select(machine: CpuMachine, objects: Path) -> None:
    m, n = 6, 21
    axes = (axis("i", m), axis("j", n, 1, machine.lanes_f32))
    causal = fn("select", op("<=", "j", "i"), at("X", "i", "j"), op("-", 0.0, 1.0))
    hit = fn("select", op("and", op("==", "j", at("ids", "i")), Unary("not", op("<", "j", 2))), 1.0, 0.0)
    whole = op("+", op("*", at("ids", "i"), 3), op("//", "j", 2))
    body: list[Statement] = [
        Compute(at("Y", "i", "j"), causal, axes),
        Compute(at("H", "i", "j"), hit, axes),
        Compute(at("N", "i", "j"), whole, axes),
    ]
    operands = [
        operand("X", m, n), operand("ids", m, dtype=DType.I32), operand("Y", m, n), operand("H", m, n),
        operand("N", m, n, dtype=DType.I32),
    ]  # fmt: skip
    x, ids = normal(m, n), np.array([0, 5, 20, 3, 1, 2], np.int32)
    out = run(kernel(operands, body), machine, objects, {"X": x, "ids": ids})
    i, j = np.indices((m, n))
    np.testing.assert_array_equal(out["Y"], np.where(j <= i, x, -1))
    np.testing.assert_array_equal(out["H"], (j == ids[:, None]) & (j >= 2))
    np.testing.assert_array_equal(out["N"], ids[:, None] * 3 + j // 2)


def test_select_reads_only_the_arm_it_takes(machine: CpuMachine, objects: Path) -> None:
    n = 40
    j = axis("j", n, 1, machine.lanes_f32)
    shifted = fn("select", op(">", "j", 0), at("X", op("-", "j", 1)), 0.0)
    far = fn("select", op("<", "j", 3), at("X", op("*", "j", 100000000)), 5.0)
    k = kernel(
        [operand("X", 300000000), operand("Y", n), operand("Z", n)],
        [Compute(at("Y", "j"), shifted, (j,)), Compute(at("Z", "j"), far, (j,))],
    )
    with SingleKernel(k, machine, 1, objects) as single:
        x = normal(n)
        single.array("X")[:n] = x
        single.run()
        np.testing.assert_array_equal(single.array("Y"), np.concatenate([[0], x[:-1]]))
        assert (single.array("Z")[3:] == 5).all()


def test_bf16_storage_rounds_to_nearest_even(machine: CpuMachine, objects: Path) -> None:
    n = 50
    j = axis("j", n, 1, machine.lanes_f32)
    k = kernel(
        [operand("X", n), operand("B", n, dtype=DType.BF16), operand("Y", n)],
        [Compute(at("B", "j"), at("X", "j"), (j,)), Compute(at("Y", "j"), op("*", at("B", "j"), 2.0), (j,))],
    )
    x = normal(n)
    x[:4] = [np.inf, -np.inf, np.nan, np.float32(1 + 2**-8)]
    out = run(k, machine, objects, {"X": x})
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    rounded[2] = out["B"][2]
    np.testing.assert_array_equal(out["B"], rounded)
    assert np.isnan(out["Y"][2])
    expected = (out["B"].astype(np.uint32) << 16).view(np.float32) * 2
    np.testing.assert_array_equal(out["Y"], expected)


def test_powers(machine: CpuMachine, objects: Path) -> None:
    n = 33
    j = axis("j", n, 1, machine.lanes_f32)
    values: dict[str, tuple[Expr, Callable[[np.ndarray], np.ndarray]]] = {
        "cube": (op("**", at("X", "j"), 3), lambda x: x**3),
        "inverse": (op("**", at("X", "j"), -2), lambda x: x**-2.0),
        "root": (op("**", fn("abs", at("X", "j")), 0.5), lambda x: np.abs(x) ** 0.5),
        "rate": (op("**", 0.95, op("+", "j", 1)), lambda x: 0.95 ** (np.arange(n) + 1.0)),
        "whole": (op("**", at("X", "j"), "j"), lambda x: x ** np.arange(n)),
        "general": (op("**", fn("abs", at("X", "j")), 1.7), lambda x: np.abs(x) ** 1.7),
        "halves": (op("**", 128, -0.5), lambda x: np.full(n, 128**-0.5)),
    }
    body: list[Statement] = [Compute(at(name, "j"), e, (j,)) for name, (e, _) in values.items()]
    k = kernel([operand("X", n), *(operand(name, n) for name in values)], body)
    x = normal(n)
    out = run(k, machine, objects, {"X": x})
    for name, (_, expected) in values.items():
        np.testing.assert_allclose(out[name], expected(x.astype(np.float64)), rtol=1e-6, err_msg=name)


# -------------------------------------------------------------------------------------- reductions


@pytest.mark.parametrize("n", [1, 5, 16, 17, 64, 100, 257])
@pytest.mark.parametrize("unroll", [1, 4])
def test_reductions_over_the_vector_axis(n: int, unroll: int, machine: CpuMachine, objects: Path) -> None:
    m = 3
    axes = (axis("i", m), axis("j", n, unroll, machine.lanes_f32))
    reduced = frozenset("j")
    x = at("X", "i", "j")
    body: list[Statement] = [
        Compute(at("s", "i"), x, axes, reduced, "sum"),
        Compute(at("q", "i"), op("*", x, x), axes, reduced, "sum", accumulate=True),
        Compute(at("hi", "i"), x, axes, reduced, "max"),
        Compute(at("lo", "i"), x, axes, reduced, "min"),
    ]
    k = kernel([operand("X", m, n), *(operand(name, m) for name in ("s", "q", "hi", "lo"))], body)
    v = normal(m, n)
    out = run(k, machine, objects, {"X": v, "q": np.ones(m)})
    np.testing.assert_allclose(out["s"], v.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out["q"], 1 + (v.astype(np.float64) ** 2).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(out["hi"], v.max(1))
    np.testing.assert_array_equal(out["lo"], v.min(1))


@pytest.mark.parametrize("q", [0, 1, 15, 16, 40])
def test_a_guard_leaves_points_out(q: int, machine: CpuMachine, objects: Path) -> None:
    n = 41
    guard = op("<=", "j", "i")
    axes = (axis("i", n), axis("j", n, 2, machine.lanes_f32))
    body: list[Statement] = [
        Compute(at("s", "i"), at("X", "i", "j"), axes, frozenset("j"), "sum", guard=guard),
        Compute(at("m", "i"), at("X", "i", "j"), axes, frozenset("j"), "max", guard=op("==", "j", q)),
        Compute(at("Y", "i", "j"), at("X", "i", "j"), axes, guard=guard),
        Compute(at("z", "i"), at("X", "i", op("+", "i", 1)), (axis("i", n),), guard=op("<", "i", n - 1)),
    ]
    k = kernel([operand("X", n, n), operand("s", n), operand("m", n), operand("Y", n, n), operand("z", n)], body)
    x = normal(n, n)
    out = run(k, machine, objects, {"X": x, "Y": np.full((n, n), 9.0), "z": np.full(n, 9.0)})
    lower = np.tril(np.ones((n, n), bool))
    np.testing.assert_allclose(out["s"], np.where(lower, x, 0).sum(1, dtype=np.float64), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(out["m"], x[:, q])
    np.testing.assert_array_equal(out["Y"], np.where(lower, x, 9.0))
    np.testing.assert_array_equal(out["z"], np.append(np.diag(x, 1), 9.0))


def test_a_reduction_over_nothing_gives_its_identity(machine: CpuMachine, objects: Path) -> None:
    j = Axis("j", Num(0), op("-", "t", 3), 8, 1, machine.lanes_f32)
    body = Loop(
        "t", Num(3), Num(4), 1, "seq",
        (
            Compute(at("s", "i"), at("X", "j"), (axis("i", 4), j), frozenset("j"), "sum"),
            Compute(at("m", "i"), at("X", "j"), (axis("i", 4), j), frozenset("j"), "max"),
        ),
    )  # fmt: skip
    out = run(kernel([operand("X", 8), operand("s", 4), operand("m", 4)], [body]), machine, objects, {"s": 5, "m": 5})
    np.testing.assert_array_equal(out["s"], np.zeros(4))
    np.testing.assert_array_equal(out["m"], np.full(4, -np.inf))


def test_softmax_rows(machine: CpuMachine, objects: Path) -> None:
    m, n = 5, 77
    lanes = machine.lanes_f32
    i, j = axis("i", m), axis("j", n, 2, lanes)
    shifted = fn("exp", op("-", at("X", "i", "j"), at("mx", "i")))
    body: list[Statement] = [
        Compute(at("mx", "i"), at("X", "i", "j"), (i, j), frozenset("j"), "max"),
        Compute(at("l", "i"), shifted, (i, j), frozenset("j"), "sum"),
        Compute(at("Y", "i", "j"), op("/", shifted, at("l", "i")), (i, j)),
    ]
    k = kernel([operand("X", m, n), operand("Y", m, n)], body, (scratch("mx", m), scratch("l", m)))
    x = normal(m, n) * 10
    out = run(k, machine, objects, {"X": x})
    e = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    np.testing.assert_allclose(out["Y"], e / e.sum(1, keepdims=True), rtol=5e-6, atol=1e-30)


def test_several_reduced_axes_and_integer_sums(machine: CpuMachine, objects: Path) -> None:
    a, b, c = 3, 5, 19
    axes = (axis("c", c, 1, machine.lanes_f32), axis("a", a), axis("b", b, 2))
    k = kernel(
        [operand("X", a, b, c, dtype=DType.I32), operand("s", c, dtype=DType.I32)],
        [Compute(at("s", "c"), at("X", "a", "b", "c"), axes, frozenset("ab"), "sum")],
    )
    x = np.random.default_rng(0).integers(-99, 99, (a, b, c)).astype(np.int32)
    out = run(k, machine, objects, {"X": x})
    np.testing.assert_array_equal(out["s"], x.sum((0, 1)))


def test_f64_is_computed_in_f64(machine: CpuMachine, objects: Path) -> None:
    n = 29
    j = axis("j", n, 2, machine.lanes_f32)
    x64 = at("X", "j")
    body: list[Statement] = [
        Compute(at("Y", "j"), fn("exp", op("*", x64, 0.1)), (j,)),
        Compute(at("s"), op("*", x64, x64), (j,), frozenset("j"), "sum"),
    ]
    k = kernel(
        [operand("X", n, dtype=DType.F64), operand("Y", n, dtype=DType.F64), operand("s", dtype=DType.F64)], body
    )
    x = np.random.default_rng(0).standard_normal(n)
    out = run(k, machine, objects, {"X": x})
    np.testing.assert_allclose(out["Y"], np.exp(x * 0.1), rtol=1e-15)
    np.testing.assert_allclose(out["s"], (x * x).sum(), rtol=1e-14)


# ------------------------------------------------------------------------------------ contractions


def packed_matmul(
    m: int, n: int, k: int, lanes: int, mr: int, nv: int, mc: int, nc: int, kc: int, core: bool = True
) -> Kernel:
    """Y = X W^T as models/ops/linear.tc schedules it: n core / seq / unroll / vec, W packed at k."""
    n_stop: Expr = Name("n.c.stop") if core else Num(n)
    n_tile = Axis("n", Name("n.0"), fn("min", op("+", "n.0", nc), n_stop), nc, nv, lanes)
    m_tile, k_tile = tile_axis("m", mc, m, mr), tile_axis("k", kc, k)
    plain_n = Axis("n", n_tile.start, n_tile.stop, nc)
    product = op("*", at("X", "m", "k"), at("Wp", op("-", "n", "n.0"), op("-", "k", "k.0")))
    zero = Compute(at("Y", "m", "n"), Num(0.0), (m_tile, n_tile))
    add = Compute(at("Y", "m", "n"), product, (m_tile, n_tile, k_tile), frozenset("k"), "sum", accumulate=True)
    over_m = Loop("m.0", Num(0), Num(m), mc, "seq", (add,))
    over_k = Loop("k.0", Num(0), Num(k), kc, "seq", (Pack("Wp", (plain_n, k_tile), at("W", "n", "k")), over_m))
    clear = Loop("m.0", Num(0), Num(m), mc, "seq", (zero,))
    start: Expr = Name("n.c") if core else Num(0)
    body: Loop = Loop("n.0", start, n_stop, nc, "seq", (clear, over_k))
    if core:
        body = Loop("n.c", Num(0), Num(n), nv * lanes, "core", (body,), chunked=True)
    tile = scratch("Wp", nc, kc, layout=Panels(0, nv * lanes))
    return kernel([operand("X", m, k), operand("W", n, k), operand("Y", m, n)], [body], (tile,))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (5, 7, 3), (8, 48, 16), (13, 53, 29), (17, 96, 40), (40, 130, 67), (3, 200, 129)]
)
def test_a_packed_matmul_at_awkward_sizes(m: int, n: int, k: int, machine: CpuMachine, objects: Path) -> None:
    built = packed_matmul(m, n, k, machine.lanes_f32, mr=4, nv=2, mc=16, nc=4 * machine.lanes_f32, kc=24)
    x, w = normal(m, k), normal(n, k, seed=1)
    for threads in (1, 3):
        out = run(built, machine, objects, {"X": x, "W": w, "Y": np.full((m, n), 3.0)}, threads)
        np.testing.assert_allclose(out["Y"], x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_both_operands_packed_for_a_weight_gradient(machine: CpuMachine, objects: Path) -> None:
    rows, n, k = 37, 45, 70  # dW[n, k] = sum rows dY[rows, n] X[rows, k]
    lanes = machine.lanes_f32
    n_tile, k_tile, r = axis("n", n, 4), axis("k", k, 2, lanes), axis("r", rows)
    body: list[Statement] = [
        Pack("P", (axis("n", n), r), at("dY", "r", "n")),
        Pack("Q", (axis("k", k), r), at("X", "r", "k")),
        Compute(
            at("dW", "n", "k"), op("*", at("P", "n", "r"), at("Q", "k", "r")), (n_tile, k_tile, r), frozenset("r"),
            "sum",
        ),
    ]  # fmt: skip
    tiles = (
        scratch("P", n, rows, layout=Panels(0, 4)),
        scratch("Q", k, rows, layout=Panels(0, 2 * lanes)),
    )
    built = kernel([operand("dY", rows, n), operand("X", rows, k), operand("dW", n, k)], body, tiles)
    dy, x = normal(rows, n), normal(rows, k, seed=1)
    out = run(built, machine, objects, {"dY": dy, "X": x})
    np.testing.assert_allclose(out["dW"], dy.T.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [4, 8, 24, 48, 6])
def test_a_panel_is_read_right_by_tiles_of_any_other_width(width: int, machine: CpuMachine, objects: Path) -> None:
    n, k = 61, 9
    body: list[Statement] = [
        Pack("P", (axis("n", n), axis("k", k)), at("W", "n", "k")),
        Compute(at("Y", "k", "n"), at("P", "n", "k"), (axis("k", k, 2), axis("n", n, 3, machine.lanes_f32))),
        Compute(at("Z", "n", "k"), at("P", "n", "k"), (axis("n", n, 5), axis("k", k, 1, machine.lanes_f32))),
        Compute(at("R", "n"), at("P", op("-", n - 1, "n"), 0), (axis("n", n, 1, machine.lanes_f32),)),
    ]
    operands = [operand("W", n, k), operand("Y", k, n), operand("Z", n, k), operand("R", n)]
    built = kernel(operands, body, (scratch("P", n, k, layout=Panels(0, width)),))
    w = normal(n, k)
    out = run(built, machine, objects, {"W": w})
    np.testing.assert_array_equal(out["Y"], w.T)
    np.testing.assert_array_equal(out["Z"], w)
    np.testing.assert_array_equal(out["R"], w[::-1, 0])


# ----------------------------------------------------------------------------------------- packing


@pytest.mark.parametrize("shape", [(16, 16), (1, 1), (48, 40), (50, 33), (17, 100), (100, 17)])
@pytest.mark.parametrize("source", ["rows", "columns", "planes"])
@pytest.mark.parametrize("layout", ["panels", "rows"])
def test_packing_fills_the_whole_tile(
    shape: tuple[int, int], source: str, layout: str, machine: CpuMachine, objects: Path
) -> None:
    n, k = shape
    nc, kc = 50, 40  # the tile; its axes stop at the source's end
    width = 2 * machine.lanes_f32
    tile = scratch("P", nc, kc, layout=Panels(0, width) if layout == "panels" else RowMajor())
    axes = (tile_axis("n", nc, n), tile_axis("k", kc, k))
    shapes = {"rows": (n, k), "columns": (k, n), "planes": (n, k, 3)}
    access = {"rows": at("W", "n", "k"), "columns": at("W", "k", "n"), "planes": at("W", "n", "k", 1)}[source]
    whole = (axis("a", nc), axis("b", kc))
    copy = Compute(at("Y", op("+", "n.0", "a"), op("+", "k.0", "b")), at("P", "a", "b"), whole)
    inner = Loop(
        "k.0", Num(0), Num(k), kc, "seq", (Compute(at("P", "a", "b"), Num(9.0), whole), Pack("P", axes, access), copy)
    )
    body = Loop("n.0", Num(0), Num(n), nc, "seq", (inner,))
    rows, columns = -(-n // nc) * nc, -(-k // kc) * kc
    built = kernel([operand("W", *shapes[source]), operand("Y", rows, columns)], [body], (tile,))
    w = normal(*shapes[source])
    out = run(built, machine, objects, {"W": w})
    expected = np.zeros((rows, columns), np.float32)
    expected[:n, :k] = {"rows": w, "columns": w.T, "planes": w[..., 1] if w.ndim == 3 else w}[source]
    np.testing.assert_array_equal(out["Y"], expected)


# -------------------------------------------------------------------------------- gather and scatter


def test_rows_are_gathered_and_scattered_in_order(machine: CpuMachine, objects: Path) -> None:
    t, v, c = 30, 7, 21
    lanes = machine.lanes_f32
    row = at("ids", "t")
    axes = (axis("t", t), axis("c", c, 1, lanes))
    body: list[Statement] = [
        Compute(at("x", "t", "c"), op("+", at("W", row, "c"), at("P", "t", "c")), axes),
        Compute(at("dW", row, "c"), at("g", "t", "c"), axes, accumulate=True, reducer="sum", distinct=False),
        Compute(
            at("n", row), Num(1), (axis("t", t, 2, lanes),), accumulate=True, reducer="sum", distinct=False,
        ),
        Compute(at("top", "t"), at("W", row, 0), (axis("t", t, 1, lanes),)),
    ]  # fmt: skip
    operands = [
        operand("ids", t, dtype=DType.I32), operand("W", v, c), operand("P", t, c), operand("g", t, c),
        operand("x", t, c), operand("dW", v, c), operand("n", v, dtype=DType.I32), operand("top", t),
    ]  # fmt: skip
    ids = np.random.default_rng(0).integers(0, v, t).astype(np.int32)
    w, p, g = normal(v, c), normal(t, c, seed=1), normal(t, c, seed=2)
    start = normal(v, c, seed=3)
    out = run(kernel(operands, body), machine, objects, {"ids": ids, "W": w, "P": p, "g": g, "dW": start, "n": 0})
    np.testing.assert_array_equal(out["x"], w[ids] + p)
    expected = start.copy()
    for i, one in enumerate(ids):
        expected[one] += g[i]
    np.testing.assert_array_equal(out["dW"], expected)
    np.testing.assert_array_equal(out["n"], np.bincount(ids, minlength=v))
    np.testing.assert_array_equal(out["top"], w[ids, 0])


# -------------------------------------------------------------------------------------------- cores


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_nested_core_loops_share_all_iterations(threads: int, objects: Path) -> None:
    a, b, c = 3, 5, 10
    here = op("+", op("*", op("+", op("*", "i", b), "j"), 10), "k")
    body = Loop(
        "i", Num(0), Num(a), 1, "core",
        (Loop("j", Num(0), Num(b), 2, "core", (Compute(at("Y", "i", "j", "k"), here, (axis("k", c),)),)),),
    )  # fmt: skip
    k = kernel([operand("Y", a, b, c)], [body])
    out = run(k, MACHINES[0], objects, {"Y": np.full((a, b, c), -1.0)}, threads)
    i, j, kk = np.indices((a, b, c))
    np.testing.assert_array_equal(out["Y"], np.where(j % 2 == 0, (i * b + j) * 10 + kk, -1))


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 16, 47, 160])
def test_chunked_loops_cover_the_range_once(threads: int, n: int, objects: Path) -> None:
    machine = MACHINES[0]
    j = Axis("j", Name("s"), Name("s.stop"), n, 2, machine.lanes_f32)
    body = Loop(
        "s", Num(0), Num(n), 16, "core",
        (Compute(at("Y", "j"), Num(1.0), (j,), accumulate=True, reducer="sum"),), chunked=True,
    )  # fmt: skip
    out = run(kernel([operand("Y", n)], [body]), machine, objects, {"Y": np.zeros(n)}, threads)
    np.testing.assert_array_equal(out["Y"], np.ones(n))


def test_statements_outside_core_loops_run_once_and_phases_wait(objects: Path) -> None:
    machine = MACHINES[0]
    n, blocks = 64, 4
    j = Axis("j", Name("b"), op("+", "b", n // blocks), n // blocks, 1, machine.lanes_f32)
    partial = Compute(at("part", op("//", "b", n // blocks)), at("X", "j"), (j,), frozenset("j"), "sum")
    first = Loop("b", Num(0), Num(n), n // blocks, "core", (partial,))
    total = Compute(at("s"), at("part", "p"), (axis("p", blocks),), frozenset("p"), "sum", accumulate=True)
    part = Buffer("part", DType.F32, (blocks,), Scope.TEAM)
    names = frozenset(("X", "s"))
    k = Kernel("two", (operand("X", n), operand("s")), (part,), ((first,), (total,)), names, names)
    x = normal(n)
    for threads in (1, 2, 3):
        out = run(k, machine, objects, {"X": x, "s": 1.0}, threads)
        np.testing.assert_allclose(out["s"], 1 + x.sum(dtype=np.float64), rtol=1e-5)


# ------------------------------------------------------------------------------------- machine code


def inner_loop(text: str) -> list[str]:
    """The instructions of the loop with the most fused multiply-adds."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith(".LBB"):
            blocks.append([])
        elif line.startswith("\t") and not line.strip().startswith("."):
            blocks[-1].append(line.strip())
            if blocks[-1][-1].startswith("j"):
                blocks.append([])
    return max(blocks, key=lambda b: sum("vfmadd" in i for i in b))


@pytest.mark.skipif(not any(m.has_fma and m.name.startswith("avx") for m in MACHINES), reason="reads x86 assembly")
@pytest.mark.parametrize(("level", "mr", "nv"), [("avx512", 8, 3), ("avx512", 14, 2), ("avx2", 6, 2)])
def test_the_matmul_inner_loop_is_loads_and_fused_multiply_adds(level: str, mr: int, nv: int) -> None:
    found = [m for m in MACHINES if m.name == level]
    if not found:
        pytest.skip(f"no {level} here")
    built = packed_matmul(16 * mr, 768, 256, found[0].lanes_f32, mr, nv, mc=16 * mr, nc=192, kc=256)
    loop = inner_loop(kernel_assembly(built, found[0]))
    multiplications = sum("vfmadd" in i for i in loop)
    assert multiplications % (mr * nv) == 0
    moves = [i for i in loop if i.startswith(("vbroadcastss", "vmovups"))]
    assert not any("(%rsp" in i for i in loop), "a spill in the inner loop"
    assert len(moves) == multiplications // (mr * nv) * (mr + nv)
    assert len(loop) <= multiplications + len(moves) + 6
