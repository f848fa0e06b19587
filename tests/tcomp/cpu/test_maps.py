"""Pointwise statements on the CPU: tails, empty domains, subscripts, types, powers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Expr, Name, Num, Unary
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Axis, Compute, Loop, Statement
from tcomp.machine.cpu import CpuMachine
from tcomp.runtime.cpu.single import SingleKernel
from tcomp.schedule.lower import lower
from tests.reference.tile_ir import at, fn, op, operand
from tests.tcomp.cpu.support import MACHINES, axis, kernel, normal, run, tile_axis


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
    far = fn("select", op("<", "j", 3), at("X", op("*", "j", 1000000)), 5.0)
    k = kernel(
        [operand("X", 3000000), operand("Y", n), operand("Z", n)],
        [Compute(at("Y", "j"), shifted, (j,)), Compute(at("Z", "j"), far, (j,))],
    )
    with SingleKernel(k, machine, 1, objects) as single:
        x = normal(n)
        single.array("X")[:n], single.array("X")[[1000000, 2000000]] = x, x[1:3]
        single.run()
        np.testing.assert_array_equal(single.array("Y"), np.concatenate([[0], x[:-1]]))
        np.testing.assert_array_equal(single.array("Z"), [*x[:3], *[5] * (n - 3)])


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


@pytest.mark.parametrize("narrow", ["bf16", "e4m3"])
def test_an_inlined_tensor_is_read_as_it_would_have_been_rounded(
    narrow: str, machine: CpuMachine, objects: Path
) -> None:
    text = f"""
op f(X: f32[M], c: f32[M]) -> P: {narrow}[M], Y: f32[M]:
  t[m]: {narrow} = X[m] * c[m]
  P[m] = t[m] * 1.5
  Y[m] = P[m] * 3.0 + t[m]

schedule f on cpu:
  m -> core / vec
"""
    found = []
    for schedule in (text, text + "  inline t, P\n"):
        module = load_text(schedule, "f.tc")
        (k,) = lower(module.ops["f"], module, {"M": 70}, machine).kernels
        out = run(k, machine, objects, {"X": normal(70), "c": normal(70, seed=1)})
        found.append(out["P"].tobytes() + out["Y"].tobytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.E4M3, DType.E5M2, DType.I32], ids=lambda t: t.value)
def test_narrow_tails_of_any_length_end_where_they_end(dtype: DType, machine: CpuMachine, objects: Path) -> None:
    """Of one lane as well, which LLVM 22.1.0 stores untruncated, by 4 bytes, where a masked store is left to it."""
    if dtype is DType.F16 and "sse2" in machine.features:
        pytest.skip("f16 needs F16C")
    lanes = machine.lanes_f32
    for count in {1, 2, 3, lanes - 1, lanes + 1, 2 * lanes + 1} - {0}:
        room = 4 * lanes
        x = operand("X", room, dtype=DType.I32 if dtype is DType.I32 else DType.F32)
        body = Compute(at("Y", "n"), at("X", "n"), (axis("n", count, 2, lanes),))
        built = kernel([x, operand("Y", room, dtype=dtype)], [body])
        kept, value = 0x55, 2.0
        with SingleKernel(built, machine, 1, objects) as single:
            single.array("X")[...] = value
            raw = single.array("Y").view(np.uint8)
            raw[...] = kept
            single.run()
            size = dtype.bytes * count
            assert (raw[size:] == kept).all(), f"{count} elements: what lies behind them was written"
            assert (raw[:size].reshape(count, -1) == raw[: dtype.bytes]).all() and (raw[:size] != kept).any()
