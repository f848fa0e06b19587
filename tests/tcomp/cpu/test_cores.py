"""Core loops on the CPU: every iteration on one thread, statements outside them once, phases in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Name, Num
from tcomp.ir.tile import Axis, Buffer, Compute, Kernel, Loop, Scope
from tests.reference.tile_ir import at, op, operand
from tests.tcomp.cpu.support import MACHINES, axis, kernel, normal, run


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
