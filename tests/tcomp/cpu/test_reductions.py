"""Reductions on the CPU: tails, guards, identities, several axes, double precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.compile import kernel_ir
from tcomp.dsl.ast import DType, Num
from tcomp.ir.tile import Axis, Compute, Loop, Statement
from tcomp.machine.cpu import CpuMachine, detect
from tests.reference.tile_ir import at, fn, op, operand
from tests.tcomp.cpu.support import F32_MACHINES, axis, kernel, normal, run, scratch

ON = F32_MACHINES


@pytest.mark.parametrize("n", [1, 5, 16, 17, 64, 100, 257])
def test_reductions_over_the_vector_axis(n: int, machine: CpuMachine, objects: Path) -> None:
    """Each length by one vector at a time and by four, on one machine or another."""
    m, unroll = 3, (1, 4)[(n + ON.index(machine)) % 2]
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


@pytest.mark.parametrize(("m", "n"), [(16, 16), (37, 100), (48, 33)])
def test_rows_that_end_as_one_vector(m: int, n: int, machine: CpuMachine, objects: Path) -> None:
    """Blocks of as many rows as a vector has lanes; rows that are left; old values; rows cut by a condition."""
    axes = (axis("i", m), axis("j", n, 2, machine.lanes_f32))
    reduced, x, below = frozenset("j"), at("X", "i", "j"), op("<=", "j", "i")
    body: list[Statement] = [
        Compute(at("s", "i"), x, axes, reduced, "sum", accumulate=True),
        Compute(at("hi", "i"), x, axes, reduced, "max", accumulate=True),
        Compute(at("lo", "i"), x, axes, reduced, "min"),
        Compute(at("part", "i"), x, axes, reduced, "sum", guard=below),
        Compute(at("top", "i"), x, axes, reduced, "max", guard=below),
    ]
    names = ("s", "hi", "lo", "part", "top")
    v = normal(m, n)
    k = kernel([operand("X", m, n), *(operand(name, m) for name in names)], body)
    out = run(k, machine, objects, {"X": v, "s": np.arange(m), "hi": np.ones(m)})
    lower = np.tril(np.ones((m, n), bool))
    np.testing.assert_allclose(out["s"], np.arange(m) + v.sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out["hi"], np.maximum(1, v.max(1)))
    np.testing.assert_array_equal(out["lo"], v.min(1))
    np.testing.assert_allclose(out["part"], np.where(lower, v, 0).sum(1, dtype=np.float64), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(out["top"], np.where(lower, v, -np.inf).max(1))


def test_short_rows_are_stored_together() -> None:
    wide = replace(detect(), lanes_f32=16, vector_registers=32)
    found = {}
    for n in (64, 1024):
        body: list[Statement] = [
            Compute(at("s", "i"), at("X", "i", "j"), (axis("i", 32), axis("j", n, 4, 16)), frozenset("j"), "sum")
        ]
        text = kernel_ir(kernel([operand("X", 32, n), operand("s", 32)], body), wide)
        found[n] = "store <16 x float>" in text, "store float" in text
    assert found == {64: (True, False), 1024: (False, True)}


def contraction(q: int, k: int, d: int, lanes: int, target: str = "s") -> Compute:
    """s[q, k] = sum d: X[q, d] * W[k, d] with vectors along d, as many points at a time as they have lanes."""
    axes = (axis("k", k, lanes // 2), axis("q", q, 2), axis("d", d, 1, lanes))
    value = op("*", at("X", "q", "d"), at("W", "k", "d"))
    return Compute(at(target, "q", "k"), value, axes, frozenset("d"), "sum")


@pytest.mark.parametrize(("q", "k", "d"), [(4, 16, 64), (7, 21, 50), (1, 3, 5), (6, 40, 300)])
def test_a_contraction_along_vectors(q: int, k: int, d: int, machine: CpuMachine, objects: Path) -> None:
    """Register tiles whose sums end as one vector; what is left of either index; old values; points behind a region."""
    plain = contraction(q, k, d, machine.lanes_f32)
    body: list[Statement] = [
        plain,
        replace(plain, target=at("more", "q", "k"), accumulate=True),
        replace(plain, target=at("part", "q", "k"), region=op("<=", "k", "q")),
    ]
    names = ("s", "more", "part")
    built = kernel([operand("X", q, d), operand("W", k, d), *(operand(n, q, k) for n in names)], body)
    x, w = normal(q, d), normal(k, d, seed=1)
    out = run(built, machine, objects, {"X": x, "W": w, "more": np.ones((q, k))})
    product = x.astype(np.float64) @ w.T.astype(np.float64)
    np.testing.assert_allclose(out["s"], product, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["more"], 1 + product, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.tril(out["part"]), np.tril(product), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lanes", [2, 4])
def test_a_contraction_along_narrow_vectors(lanes: int, machine: CpuMachine, objects: Path) -> None:
    """Rows shorter than the machine's vectors have vectors of their own length."""
    built = kernel([operand("X", 4, 5), operand("W", 6, 5), operand("s", 4, 6)], [contraction(4, 6, 5, lanes)])
    x, w = normal(4, 5), normal(6, 5, seed=1)
    out = run(built, machine, objects, {"X": x, "W": w})
    np.testing.assert_allclose(out["s"], x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-5, atol=1e-5)


def test_sums_of_a_contraction_along_vectors_are_stored_side_by_side() -> None:
    """And a short one has no loop of its own."""
    body: list[Statement] = [contraction(8, 16, 64, 8)]
    built = kernel([operand("X", 8, 64), operand("W", 16, 64), operand("s", 8, 16)], body)
    text = kernel_ir(built, replace(detect("avx2"), lanes_f32=8, vector_registers=16))
    assert text.count("store <4 x float>") == 2 and "store float" not in text
    assert text.count("call <8 x float> @llvm.fma") + text.count('call <8 x float> @"llvm.fma') == 64


def test_a_guard_leaves_points_out(machine: CpuMachine, objects: Path) -> None:
    n, places = 41, (0, 1, 15, 16, 40)
    guard = op("<=", "j", "i")
    axes = (axis("i", n), axis("j", n, 2, machine.lanes_f32))
    body: list[Statement] = [
        Compute(at("s", "i"), at("X", "i", "j"), axes, frozenset("j"), "sum", guard=guard),
        Compute(at("Y", "i", "j"), at("X", "i", "j"), axes, guard=guard),
        Compute(at("z", "i"), at("X", "i", op("+", "i", 1)), (axis("i", n),), guard=op("<", "i", n - 1)),
        *(
            Compute(at(f"m{q}", "i"), at("X", "i", "j"), axes, frozenset("j"), "max", guard=op("==", "j", q))
            for q in places
        ),
    ]
    ones = [operand(f"m{q}", n) for q in places]
    k = kernel([operand("X", n, n), operand("s", n), *ones, operand("Y", n, n), operand("z", n)], body)
    x = normal(n, n)
    out = run(k, machine, objects, {"X": x, "Y": np.full((n, n), 9.0), "z": np.full(n, 9.0)})
    lower = np.tril(np.ones((n, n), bool))
    np.testing.assert_allclose(out["s"], np.where(lower, x, 0).sum(1, dtype=np.float64), rtol=1e-4, atol=1e-5)
    for q in places:
        np.testing.assert_array_equal(out[f"m{q}"], x[:, q])
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
