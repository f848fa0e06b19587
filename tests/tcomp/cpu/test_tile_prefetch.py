"""What register tiles read and write behind a long sum is asked for along it, line by line."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from tcomp.codegen.cpu import prefetch
from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.codegen.cpu.prefetch import TilePrefetcher, _grid
from tcomp.codegen.llvm.domain import AxisState
from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import I8, IrValue
from tcomp.dsl.load import load_text
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import LoweredOp, lower
from tests.tcomp.cpu.support import normal, run
from tests.tcomp.cpu.test_dot import ZEN4

TEXT = """
op f(X: f32[M, K], W: f32[K, N], R: f32[M, N]) -> P: f32[M, N], Y: f32[M, N]:
  acc[m, n] = sum k: X[m, k] * W[k, n]
  P[m, n] = acc[m, n] + 1.0
  Y[m, n] = P[m, n] * R[m, n]

schedule f on cpu:
  m -> core / unroll(4)
  n -> unroll(2) / vec
  k -> seq({block})
  order m, k, n
"""


def product(k: int, block: int, machine: CpuMachine, m: int = 13, n: int = 70) -> Kernel:
    module = load_text(TEXT.format(block=block), "f.tc")
    (made,) = lower(module.ops["f"], module, {"M": m, "N": n, "K": k}, machine).kernels
    return made


@pytest.mark.parametrize(("k", "block"), [(20, 20), (200, 200), (300, 150), (517, 129)])
def test_results_are_what_they_were(k: int, block: int, machine: CpuMachine, objects: Path) -> None:
    """Short sums, which ask for nothing, sums of one part and of several, and tiles cut by the ends of the tensors."""
    x, w, r = normal(13, k), normal(k, 70, seed=1), normal(13, 70, seed=2)
    out = run(product(k, block, machine), machine, objects, {"X": x, "W": w, "R": r})
    p = x.astype(np.float64) @ w + 1
    np.testing.assert_allclose(out["P"], p, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out["Y"], p * r, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86's assembly")
@pytest.mark.parametrize(("k", "inside"), [(64, 0), (512, 3)])
def test_requests_are_in_the_sums_loop_and_not_before_it(k: int, inside: int) -> None:
    """P, Y and R, one line of each a turn at most."""
    assembly = kernel_assembly(product(k, k, ZEN4, m=16, n=64), ZEN4)
    blocks = re.split(r"\n(?=\.LBB)", assembly)
    turning = [b for b in blocks if "vfmadd" in b and re.search(rf"\tj\w+\t{re.escape(b.split(':')[0])}\b", b)]
    assert turning and all(b.count("prefetch") == inside for b in turning)
    assert assembly.count("prefetch") == inside * len(turning)


@pytest.mark.parametrize(("k", "block"), [(256, 256), (512, 256)])
def test_all_lines_are_asked_for_in_the_first_half_of_the_last_part(
    k: int, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request leaves a mark where it points, if none is there: at which sixteenth of a part, counted through. Parts
    before the last ask for a tile's first line only."""
    here: list[IrValue] = []
    touch = TilePrefetcher.touch

    def noted(self: TilePrefetcher, state: AxisState, step: int) -> None:
        at, part = self.em.add(state.base, step), self.domain.scope.variables.get("k.0")
        here[:] = [self.em.i64(at if part is None else self.em.add(at, part))]
        touch(self, state, step)

    def mark(em: Emitter, pointer: IrValue, written: bool) -> None:
        b = em.here()
        first = b.add(b.trunc(b.udiv(here[0], em.i64(block // 16)), I8), ir.Constant(I8, 1))
        old = b.load(pointer, typ=I8)
        b.store(b.select(b.icmp_unsigned("==", old, ir.Constant(I8, 0)), first, old), pointer)

    monkeypatch.setattr(TilePrefetcher, "touch", noted)
    monkeypatch.setattr(prefetch, "touch", mark)
    monkeypatch.setattr("tcomp.codegen.cpu.compute.WIDE", 4)
    made, machine = product(k, block, detect(), m=8, n=64), detect()
    executor = CpuExecutor(single_op_step(LoweredOp((made,), ()), {}, guard=4096), machine, 1, tmp_path)
    for name in "XWR":
        executor.array(name)[...] = 0.0
    executor.run("run")
    marks = executor.array("R").view(np.uint8).reshape(-1, 64).max(-1).astype(int)
    behind = executor.array("guard.R").any()
    executor.close()
    last = 16 * (k // block - 1)
    assert marks.min() > 0 and marks.max() <= last + 8 and not behind
    assert (marks <= last).sum() <= 2 * 64 // (2 * machine.lanes_f32)


@pytest.mark.parametrize(
    ("offsets", "grid"),
    [([0], (1, 0, 0)), ([0, 64, 128], (1, 64, 0)), ([5, 69, 1005, 1069], (2, 1000, 64)), ([0, 64, 1000], None)],
)
def test_offsets_as_rows_and_columns(offsets: list[int], grid: tuple[int, int, int] | None) -> None:
    assert _grid(offsets) == grid
