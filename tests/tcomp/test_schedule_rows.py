"""Kernels bound by memory: rows staged ahead or in registers, and sums over rows that stay in a block's registers.

X.shared, dY.shared = rows of the next turns        copied while this turn's are used, by all equations that read them
dw.partial.sum[c] += ...                            a part of the rows in each block, joined in a phase of its own
"""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.threads.plan import plan_of
from tcomp.dsl.ast import Access, DType, walk
from tcomp.dsl.load import load, load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.tile import Compute, Kernel, Loop, Pack, Scope
from tcomp.ir.walk import computes
from tcomp.machine.gpu import A100, B200, H100, GpuMachine
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.tcomp.test_schedule_gpu import assert_keeps_results
from tests.test_fp8_tensor_cores import inputs_of
from tests.test_ops_gpu import execute

ROWS = {"M": 2048, "C": 768}


def kernel_of(file: str, name: str, dims: dict[str, int], machine: GpuMachine = H100) -> Kernel:
    module = load(f"models/ops/{file}.tc")
    op = module.ops[name] if name in module.ops else backward_of(name.removesuffix(".backward"), module)
    assert op is not None
    (kernel,) = lower(bound(op, DType.BF16), module, dims, machine).kernels
    return kernel


def read_in(kernel: Kernel, phase: int) -> set[str]:
    """What the computations of a phase read."""
    found = (n for c in computes(kernel.phases[phase]) for n in walk(c.value))
    return {n.tensor for n in found if isinstance(n, Access)}


@pytest.mark.parametrize(
    ("file", "name", "sums", "columns"),
    [("layernorm", "layernorm.backward", 2, 768), *(("rmsnorm", "rmsnorm.backward", 1, c) for c in (768, 4096))],
)
def test_the_weights_gradients_are_summed_beside_dx_in_one_pass_over_rows_copied_ahead(
    file: str, name: str, sums: int, columns: int
) -> None:
    kernel = kernel_of(file, name, ROWS | {"C": columns})
    assert len(kernel.phases) == 2
    (block,) = kernel.phases[0]
    assert isinstance(block, Loop) and block.level == "grid"
    (turns,) = (s for s in block.body if isinstance(s, Loop))
    assert turns.level == "pipe" and turns.stages == 2
    assert {s.source.tensor for s in turns.body if isinstance(s, Pack)} >= {"X", "dY", "rstd"}
    written = {s.target.tensor for s in turns.body if isinstance(s, Compute)}
    assert "dX" in written
    kept = [t for t in kernel.tiles if t.name in written and ".partial.sum" in t.name]
    assert len(kept) == sums and all(t.scope is Scope.REGISTERS for t in kept)
    assert not read_in(kernel, 0) & {"X", "dY", "rstd"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16], ids=str)
@pytest.mark.parametrize("name", ["rmsnorm", "rmsnorm.backward"])
def test_rows_of_the_widest_llama_fit_registers_and_shared_memory(name: str, dtype: DType) -> None:
    module, dims = load("models/ops/rmsnorm.tc"), {"M": 5, "C": 4096}
    op = bound(module.ops[name], dtype)
    (kernel,) = lower(op, module, dims, H100).kernels
    assert not assemble(compile_kernel(kernel, H100).ptx, H100.target).findings
    inputs = inputs_of(op, dims)
    found = execute(lower(op, module, dims, H100), op, inputs)
    for output, x in evaluate(op, module, inputs, dims).items():
        np.testing.assert_allclose(found[output], x, rtol=2.0**-7, atol=2.0**-7 * np.abs(x).max(), err_msg=output)


def test_columns_that_each_thread_sums_need_no_join_among_warps() -> None:
    kernel = kernel_of("layernorm", "layernorm.backward", ROWS)
    sums = [c for c in computes(kernel.phases[0]) if ".partial.sum" in c.target.tensor and c.reduced]
    assert len(sums) == 2
    for c in sums:
        assert all(a.spread is None or not (a.spread.lane or a.spread.warp) for a in c.axes if a.name in c.reduced)


def test_parts_of_a_row_are_joined_by_many_blocks_and_all_warps() -> None:
    kernel = kernel_of("layernorm", "layernorm.backward", ROWS)
    (block,) = kernel.phases[1]
    assert isinstance(block, Loop) and block.step == 32
    join = next(iter(computes(kernel.phases[1])))
    parts = next(a for a in join.axes if a.name in join.reduced)
    assert parts.spread is not None and parts.spread.warps == 8


def test_a_row_of_logits_is_copied_once_for_all_that_read_it_and_the_longest_reader_says_how_much() -> None:
    kernel = kernel_of("crossentropy", "crossentropy_at_once", {"M": 7, "P": 50304, "V": 50257})
    (pack,) = (s for s in _statements(kernel) if isinstance(s, Pack))
    assert [a.block for a in pack.axes] == [50304]
    direct = [n for c in computes(kernel.phases[0]) for n in walk(c.value) if isinstance(n, Access) and n.tensor == "X"]
    assert len(direct) == 1  # the target's own, at an index from memory


@pytest.mark.parametrize(("row", "copied"), [(100352, True), (128256, False)])
def test_of_longer_rows_there_is_one_a_multiprocessor_copied_if_shared_memory_holds_it(row: int, copied: bool) -> None:
    kernel = kernel_of("crossentropy", "crossentropy_at_once", {"M": 7, "P": row, "V": row})
    assert kernel.gpu.shape.threads == H100.threads_per_block
    assert any(isinstance(s, Pack) for s in _statements(kernel)) == copied


@pytest.mark.parametrize("machine", [A100, H100], ids=lambda m: m.name)
def test_a_row_is_read_once_into_registers(machine: GpuMachine) -> None:
    kernel = kernel_of("layernorm", "layernorm", ROWS, machine)
    readers = [
        c for c in computes(kernel.phases[0]) if any(isinstance(n, Access) and n.tensor == "X" for n in walk(c.value))
    ]
    assert len(readers) == 1
    tile = kernel.buffer(readers[0].target.tensor)
    assert tile.scope is Scope.REGISTERS


def _statements(kernel: Kernel) -> list[object]:
    found: list[object] = []

    def visit(body: object) -> None:
        for s in body:  # type: ignore[attr-defined]
            found.append(s)
            if isinstance(s, Loop):
                visit(s.body)

    for phase in kernel.phases:
        visit(phase)
    return found


TEXT = """
op f(X: f32[M, N], w: f32[N]) -> Y: f32[M, N], d: f32[N]:
  s[m] = sum n: X[m, n] * w[n]
  Y[m, n] = X[m, n] * s[m]
  d[n] = sum m: X[m, n] * s[m]

schedule f on gpu:
  m -> grid(12) / pipe(4, 2) / warp.y(1)
  n -> lane / vec(4)
  m of d -> seq
  n of d -> warp.y(32) / lane / vec(1)
  stage X in shared at m by cp.async
  combine d over m by partials
"""


@pytest.mark.parametrize("m", [1, 12, 13, 50])
def test_parts_of_any_size_keep_the_results(m: int) -> None:
    module = load_text(TEXT, "f.tc")
    dims = {"M": m, "N": 70}
    assert_keeps_results(module.ops["f"], module, dims, lower(module.ops["f"], module, dims, H100))


def test_a_part_s_own_loops_are_written_by_its_block_alone() -> None:
    """What else is computed for each m shares the block of its part, and the loop that copies rows ahead."""
    module = load_text(TEXT, "f.tc")
    (kernel,) = lower(module.ops["f"], module, {"M": 50, "N": 70}, H100).kernels
    assert len(kernel.phases) == 2
    first = {c.target.tensor for c in computes(kernel.phases[0])}
    assert {"s", "Y"} <= first


def test_loads_of_several_turns_are_on_their_way_where_their_number_has_no_divisor() -> None:
    module = load_text(
        "op t(X: f32[N]) -> y: f32[]:\n  y = sum n: X[n]\n\nschedule t on gpu:\n  n -> lane / vec(4)\n", "t.tc"
    )
    (kernel,) = lower(module.ops["t"], module, {"N": 13 * 128}, H100).kernels
    c = next(iter(computes(kernel.phases[0])))
    assert plan_of(c, {b.name: b for b in (*kernel.operands, *kernel.tiles)}).turns["n"] == 8


def test_a_result_that_a_later_kernel_of_the_op_reads_is_collected_in_registers() -> None:
    module = load("models/ops/fp8.tc")
    op = backward_of("linear_gelu_fp8", module)
    assert op is not None
    first = lower(bound(op, DType.BF16), module, {"M": 128, "N": 256, "K": 128, "H": 16}, H100).kernels[0]
    assert any(t.name.startswith("rD.sum") and t.scope is Scope.REGISTERS for t in first.tiles)


@pytest.mark.parametrize(
    ("file", "name", "row"),
    [("layernorm", "layernorm.backward", "C"), ("rmsnorm", "rmsnorm.backward", "C"),
     ("crossentropy", "crossentropy_at_once", "P")],
)  # fmt: skip
def test_blackwell_has_room_as_hopper(file: str, name: str, row: str) -> None:
    kernel = kernel_of(file, name, {"M": 2048, row: 768} | ({"V": 700} if row == "P" else {}), B200)
    assert any(isinstance(s, Pack) and s.source.tensor == "X" and s.by == "cp.async" for s in _statements(kernel))
    assert all(r.spill_store_bytes == 0 for r in assemble(compile_kernel(kernel, B200).ptx, B200.target).resources)


def test_machines_without_room_keep_their_schedules() -> None:
    kernel = kernel_of("layernorm", "layernorm.backward", ROWS, A100)
    assert not any(isinstance(s, Pack) for s in _statements(kernel))
