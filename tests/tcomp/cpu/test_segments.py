"""Conditions that are affine in a Compute's axes cut its loops; what comes out does not depend on where."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.cpu.segments import singles_of
from tcomp.dsl.ast import Binary, Call, DType, Expr, Name, Num
from tcomp.ir.tile import Compute, Loop
from tcomp.machine.cpu import CpuMachine
from tests.reference.tile_ir import at, op, operand
from tests.tcomp.cpu.support import F32_MACHINES, axis, dealt, kernel, normal, run, shown

ON = F32_MACHINES

Tile = tuple[tuple[int, int], tuple[int, int]]
Q, K = 21, 45
CONDITIONS: dict[str, Expr] = {
    "diagonal": Binary("<=", Name("k"), Name("q")),
    "behind": Binary(">", op("+", "k", 3), Name("q")),
    "mirrored": Binary("<", Name("k"), op("-", 30, "q")),
    "steep": Binary("<=", Name("k"), op("*", 2, "q")),
    "start": Binary("<", Name("k"), Num(19)),
    "end": Binary(">=", Name("k"), Num(40)),
    "always": Binary("<", Name("k"), Num(100)),
    "never": Binary("<", Name("k"), Num(0)),
    "both": Binary("and", Binary("<=", Name("k"), op("+", "q", 9)), Binary(">=", Name("k"), Name("q"))),
}
TILES: list[Tile] = [((3, 1), (2, 8)), ((2, 4), (5, 1))]
"""(unroll, lanes) of q and k"""
X, Y, S = operand("X", Q, K), operand("Y", Q, K), operand("S", Q)
READ = at("X", "q", "k")


def truth(condition: Expr) -> np.ndarray:
    q, k = np.mgrid[0:Q, 0:K]
    found = {
        "diagonal": k <= q, "behind": k + 3 > q, "mirrored": k < 30 - q, "steep": k <= 2 * q, "start": k < 19,
        "end": k >= 40, "always": k < 100, "never": k < 0, "both": (k <= q + 9) & (k >= q),
    }  # fmt: skip
    return found[next(n for n, c in CONDITIONS.items() if c is condition)]


@pytest.mark.parametrize(("name", "machine"), dealt(list(CONDITIONS), ON), ids=shown)
def test_where_a_condition_holds(name: str, machine: CpuMachine, objects: Path) -> None:
    condition, holds = CONDITIONS[name], truth(CONDITIONS[name])
    tile = TILES[list(CONDITIONS).index(name) % 2]
    x = normal(Q, K)
    rows, columns = tile
    axes = (axis("q", Q, *rows), axis("k", K, *columns))
    chosen = Compute(at("Y", "q", "k"), Call("select", (condition, READ, Num(-1.0))), axes)
    guarded = Compute(at("Y", "q", "k"), READ, axes, guard=condition)
    partial = replace(guarded, guard=None, region=condition)
    summed = Compute(at("S", "q"), READ, axes, frozenset({"k"}), "sum", guard=condition)
    zeros = replace(summed, value=Call("select", (condition, READ, Num(0.0))), guard=None, region=condition)
    start = {"X": x, "Y": np.full((Q, K), 7, np.float32), "S": np.zeros(Q, np.float32)}
    cases = {"chosen": chosen, "guarded": guarded, "partial": partial, "summed": summed, "zeros": zeros}
    found = {n: run(kernel([X, Y, S], [c]), machine, objects, start) for n, c in cases.items()}
    np.testing.assert_array_equal(found["chosen"]["Y"], np.where(holds, x, np.float32(-1)))
    np.testing.assert_array_equal(found["guarded"]["Y"], np.where(holds, x, np.float32(7)))
    np.testing.assert_array_equal(found["partial"]["Y"][holds], x[holds])
    for n in ("summed", "zeros"):
        np.testing.assert_allclose(found[n]["S"], np.where(holds, x, 0).sum(1, dtype=np.float64), atol=1e-5)


def test_tiles_behind_a_region_are_left_out(machine: CpuMachine, objects: Path) -> None:
    axes = (axis("q", 16, 2), axis("k", 16, 1, 4))
    c = Compute(at("Y", "q", "k"), Num(1.0), axes, region=Binary("<=", Name("k"), Name("q")))
    found = run(kernel([operand("Y", 16, 16)], [c]), machine, objects, {"Y": np.zeros((16, 16), np.float32)})
    q, k = np.mgrid[0:16, 0:16]
    np.testing.assert_array_equal(found["Y"] == 1, k // 4 * 4 <= q // 2 * 2 + 1)


@pytest.mark.parametrize("rows", [8, 4])
@pytest.mark.parametrize("order", ["qk", "kq"])
def test_the_last_tile_before_a_region_ends_has_the_vectors_that_are_needed(
    order: str, rows: int, machine: CpuMachine, objects: Path
) -> None:
    """Where one vector of eight rows hides the latency; four rows stay two vectors wide."""
    axes = {"q": axis("q", 32, rows), "k": axis("k", 48, 2, 8)}
    product = op("*", at("A", "q", "d"), at("W", "d", "k"))
    domain = (*(axes[n] for n in order), axis("d", 5))
    scores = Compute(at("Y", "q", "k"), product, domain, frozenset({"d"}), "sum", region=CONDITIONS["diagonal"])
    operands = [operand("A", 32, 5), operand("W", 5, 48), operand("Y", 32, 48)]
    start = {"A": normal(32, 5), "W": normal(5, 48, seed=1), "Y": np.full((32, 48), 7, np.float32)}
    got = run(kernel(operands, [Loop("i", Num(0), Num(1), 1, "core", (scores,))]), machine, objects, start)["Y"]
    q, k = np.mgrid[0:32, 0:48]
    np.testing.assert_allclose(got[k <= q], (start["A"] @ start["W"])[k <= q], rtol=1e-5, atol=1e-5)
    needed = (q // 8 + 1) * 8 if rows == 8 else -(-(q // 4 + 1) * 4 // 16) * 16
    assert (got[k >= needed] == 7).all()
    if order == "qk":
        assert (got[k < needed] != 7).all()


@pytest.mark.parametrize("tile", [*TILES, ((1, 1), (1, 8))])
def test_an_equality_with_one_place_is_tested_in_its_tile_alone(tile: Tile, machine: CpuMachine, objects: Path) -> None:
    """Places before the first, in every lane of a tile, in the last partial tile, and behind the end."""
    x, places = normal(Q, K), np.array([-9, -1, *range(10), 39, 40, 41, 43, 44, 45, 46, 47, 99], np.int32)
    rows, columns = tile
    condition = Binary("==", Name("k"), at("P", "q"))
    value = Call(
        "select", (Binary("<", Name("k"), Num(42)), Call("select", (condition, op("-", READ, 1.0), READ)), READ)
    )
    c = Compute(at("Y", "q", "k"), value, (axis("q", Q, *rows), axis("k", K, *columns)))
    inner = Compute(at("Y", "q", "k"), value, (axis("k", K, *columns),))
    loop = Loop("q", Num(0), Num(Q), 1, "seq", (inner,))
    start = {"X": x, "P": places, "Y": np.zeros((Q, K), np.float32)}
    k = np.arange(K)
    wanted = np.where((k == places[:, None]) & (k < 42), x - np.float32(1), x)
    for body in ([c], [loop]):
        found = run(kernel([X, Y, operand("P", Q, dtype=DType.I32)], body), machine, objects, start)
        np.testing.assert_array_equal(found["Y"], wanted)


def test_an_equality_is_cut_out_where_its_place_is_the_same_for_the_whole_loop() -> None:
    condition = Binary("==", Name("k"), at("P", "q"))
    value = Call("select", (condition, op("-", READ, 1.0), READ))
    inner = Compute(at("Y", "q", "k"), value, (axis("k", 64, 1, 8),))
    assert [s.axis for s in singles_of(inner)] == ["k"]
    assert not singles_of(replace(inner, axes=(axis("q", 4), *inner.axes)))  # the place moves with an axis
    assert not singles_of(replace(inner, target=at("P", "k")))  # the place is overwritten meanwhile


def test_what_an_index_is_compared_with_is_read_under_its_guard_only(tmp_path: Path) -> None:
    """`t[m - 90000000]` lies outside of this process's memory."""
    text = """
op f(X: f32[M, P], t: i32[M]) -> Y: f32[M, P]:
  Y[m, p] = select(m >= 90000000, select(p == t[m - 90000000], X[m, p] - 1.0, X[m, p]), 2.0)

schedule f on cpu:
  m -> core(1)
  p -> unroll(2) / vec
"""
    (tmp_path / "far.tc").write_text(text)
    command = [sys.executable, "-m", "tcomp", "check", "far.tc"]  # a process of its own: a fault would end this one
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, (found.returncode, found.stdout, found.stderr)


GATHER = """
import sys
from pathlib import Path
import numpy as np
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower

text = "op f(X: f32[N], t: i32[M]) -> Y: f32[M]:\\n  Y[m] = select(t[m] >= 0 and t[m] < N, X[t[m]], 7.0)\\n"
for schedule in ("m -> core(5)", "m -> vec"):
    module = load_text(text + "schedule f on cpu:\\n  " + schedule + "\\n")
    dims = {"N": 6, "M": 20}
    lowered = lower(module.ops["f"], module, dims, detect(), threads=1)
    executor = CpuExecutor(single_op_step(lowered, dims), detect(), 1, Path(sys.argv[1]))
    t = np.resize(np.array([0, 5, -(2**31), 6, 2**31 - 1, -1, 3], np.int32), 20)
    executor.array("t")[...], executor.array("X")[...] = t, range(6)
    executor.run("run")
    assert list(executor.array("Y")) == [x if 0 <= x < 6 else 7 for x in t], schedule
    executor.close()
"""


def test_a_gather_reads_under_its_guard_only(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GATHER, str(tmp_path)]  # a process of its own: a fault would end this one
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, (found.returncode, found.stdout, found.stderr)
