"""Producer warps, persistent blocks and rasters: alone and together, on the virtual GPU and through the assembler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.whole_program import whole_program_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.grid import Turns, turns_of
from tcomp.dsl.ast import DType, Num
from tcomp.dsl.errors import TcError
from tcomp.ir.blocks import GridOrder, Producer, ThreadShape
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel, Loop
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu.report import KernelFault
from tests.tcomp.nvptx import support
from tests.tcomp.nvptx.gemm import product
from tests.tcomp.nvptx.support import given, launch, run

RNG = np.random.default_rng(2)
FEW = replace(H100, sms=2)
BLOCK = ThreadShape(2, 2, 8, 4)


def gemm(
    m: int, n: int, k: int, producer: Producer | None = None, order: GridOrder = GridOrder(), s: int = 2
) -> Kernel:
    made = product(m, n, k, "tma", s, DType.BF16, (32, 32, 32), BLOCK, (4, 2), swizzle=64)
    return replace(made, blocks=replace(made.gpu, producer=producer, order=order))


@pytest.mark.parametrize(
    "m,n,k,producer,order",
    [
        (32, 32, 160, Producer(1), GridOrder()),
        (37, 40, 72, Producer(4), GridOrder()),
        (70, 64, 96, None, GridOrder(True)),
        (64, 72, 72, Producer(1), GridOrder(True, 2)),
        (5, 8, 8, Producer(1), GridOrder(True)),
    ],
)
def test_products(m: int, n: int, k: int, producer: Producer | None, order: GridOrder) -> None:
    kernel = gemm(m, n, k, producer, order)
    ptx, reports = run(kernel, given(kernel, RNG), FEW, tolerance=1e-4)
    assert reports[0].grid[0] == min(2, -(-m // 32) * -(-n // 32)) or not order.persistent
    assert reports[0].block[0] == 128 + (32 * producer.warps if producer else 0)
    # Only what follows the initialisation of the mbarriers is a barrier of the whole block.
    assert ptx.count("bar.sync \t0;") == 1


def test_a_consumer_that_does_not_release_is_found() -> None:
    """The tests above would notice: without the arrivals at `empty` the ring stands still."""
    kernel = gemm(32, 32, 160, Producer(1))
    gpu = compile_kernel(kernel, H100)
    broken = replace(gpu, ptx=gpu.ptx.replace("mbarrier.arrive.shared::cta.b64 _", "prefetch.global.L2 [0]; //"))
    assert broken.ptx != gpu.ptx
    with pytest.raises(KernelFault, match="deadlock"):
        launch(kernel, broken, given(kernel, RNG))


def test_barriers_of_a_computing_thread_leave_the_producer_out() -> None:
    """A sum over k divided among warps meets in shared memory, behind barriers of 128 of 160 threads."""
    text = """
op f(X: bf16[M, K], w: bf16[K]) -> y: f32[M]:
  y[m] = sum k: X[m, k] * w[k]

schedule f on sm_90a:
  m -> grid(8)
  k -> pipe(128, 2) / warp(32) / lane
  stage X, w in shared at k by tma
  producer warp
  persistent
"""
    k = support.lowered(text, {"M": 29, "K": 328}, FEW)
    ptx, reports = run(k, given(k, RNG), FEW, tolerance=1e-4)
    assert "barrier.sync \t1, 128" in ptx or "bar.sync \t1, 128" in ptx
    assert reports[0].grid[0] == 2 and reports[0].block[0] == 160
    assert "producer of 1 more warps" in print_kernel(k) and "persistent blocks" in print_kernel(k)


def test_registers_move_from_the_producer_to_the_others() -> None:
    made = product(256, 128, 128, "tma", 3, DType.BF16, (128, 64, 64), ThreadShape(2, 4, 8, 4), (4, 4), swizzle=128)
    kernel = replace(made, blocks=replace(made.gpu, producer=Producer(4, 40)))
    gpu = compile_kernel(kernel, H100)
    assert "setmaxnreg.dec.sync.aligned.u32 \t40" in gpu.ptx and "setmaxnreg.inc.sync.aligned.u32 \t232" in gpu.ptx
    if whole_program_tool(gpu.ptx) is None:
        pytest.skip("ptxas is not installed, and nvJitLink moves no registers")
    assembled = assemble(gpu.ptx, "sm_90a")
    (found,) = assembled.resources
    assert not assembled.findings and found.registers == 168
    assert found.spill_store_bytes == found.spill_load_bytes == found.stack_bytes == 0


@pytest.mark.parametrize("rows,columns,band", [(7, 5, 3), (8, 4, 4), (2, 9, 8), (1, 6, 2), (6, 1, 4)])
def test_a_raster_visits_every_tile_once_band_by_band(rows: int, columns: int, band: int) -> None:
    loops = [Loop(v, Num(0), Num(n * 16), 16, "grid", ()) for v, n in (("b", 3), ("m", rows), ("n", columns))]
    turns: Turns = turns_of(loops)

    class NoEmitter:
        def add(self, a: int, b: int) -> int:
            return a + b

        def mul(self, a: int, b: int) -> int:
            return a * b

    order = GridOrder(raster=band)
    seen = [tuple(turns.values(NoEmitter(), t, order)) for t in range(turns.total)]  # type: ignore[arg-type]
    assert len(set(seen)) == turns.total == 3 * rows * columns
    first = {m // 16 for _, m, _ in seen[: min(band, rows) * columns]}
    assert first == set(range(min(band, rows))), "the first band is done before the next begins"


TEXT = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  m -> grid.y(32) / warp.y(16) / lane.y(4)
  n -> grid.x(32) / warp.x({w}) / lane.x / vec(2)
  k -> pipe(64, 3) / vec(4)
  stage X, W in shared at k by {by}
  {flag}
"""


def lowered(flag: str, by: str = "tma", w: int = 16) -> Kernel:
    return support.lowered(TEXT.format(flag=flag, by=by, w=w), {"M": 64, "N": 96, "K": 128})


def test_flags_become_facts_of_the_kernel() -> None:
    assert lowered("producer warp").gpu.producer == Producer(1)
    assert lowered("producer warpgroup").gpu.producer == Producer(4)
    assert lowered("producer warpgroup(40)").gpu.producer == Producer(4, 40)
    assert lowered("producer warpgroup(0)").gpu.producer is None
    assert lowered("persistent\n  raster(8)").gpu.order == GridOrder(True, 8)


@pytest.mark.parametrize(
    "flag,by,w,message",
    [
        ("producer warp", "cp.async", 16, "the producer would have nothing to do"),
        ("producer warpgroup(40)", "tma", 32, "this kernel computes with 2 warps"),
        ("producer warpgroup(41)", "tma", 16, "cannot keep 41 registers"),
        ("producer lanes", "tma", 16, "`producer` takes the warps that copy"),
        ("raster", "tma", 16, "`raster` takes one whole number"),
        ("persistent(2)", "tma", 16, "`persistent` takes no number"),
        ("persistent\n  persistent", "tma", 16, "`persistent` is said twice"),
    ],
)
def test_refused(flag: str, by: str, w: int, message: str) -> None:
    with pytest.raises(TcError) as e:
        lowered(flag, by, w)
    assert message in e.value.message and e.value.hint and e.value.span.line in (10, 11)
