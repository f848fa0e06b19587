"""`stage ... by prefetch`: the next turn's memory is named on the reduction and touched by the code; results stay."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llvmlite import ir

from tcomp.codegen.cpu import prefetch
from tcomp.codegen.cpu.compile import kernel_ir
from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import IrValue
from tcomp.dsl.ast import DType, Num
from tcomp.dsl.errors import TcError
from tcomp.dsl.files import library
from tcomp.dsl.load import load, load_text
from tcomp.dsl.printer import print_expression
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Kernel, Prefetch
from tcomp.ir.walk import computes
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower

PRODUCT = """
op product(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule product on cpu:
  n -> core / seq(NC) / unroll(2) / vec
  m -> seq(24) / unroll(4)
  k -> seq(16)
  order n, m, k
  tune NC = 48
  stage W in packed at k BY
"""
AVX512 = CpuMachine("avx512", (), 16, 32, 49152, 2 << 20, 32 << 20, 2)


def product_kernel(by: str, machine: CpuMachine, m: int = 50, n: int = 100, k: int = 33) -> Kernel:
    """The scheduled product with that ending of its `stage` line."""
    module = load_text(PRODUCT.replace("BY", by).replace("NC = 48", "NC = 96"))
    (kernel,) = lower(module.ops["product"], module, {"M": m, "N": n, "K": k}, machine).kernels
    return kernel


def prefetches(kernel: Kernel) -> list[Prefetch]:
    return [p for phase in kernel.phases for c in computes(phase) for p in c.prefetch]


def test_the_next_turn_wraps_into_the_loops_around() -> None:
    """After the last block of k comes the first one of the next block of m, and then of n."""
    (found,) = prefetches(product_kernel("by prefetch", AVX512))
    text = print_kernel(product_kernel("by prefetch", AVX512))
    assert "prefetch W[n, k]" in text
    starts = {a.name: a.start for a in found.axes}
    values = {"k.0": 16, "m.0": 24, "n.0": 0, "n.1": 0, "n.0.stop": 100}

    def at(**variables: int) -> tuple[int, int]:
        names = {name.replace("_", "."): v for name, v in variables.items()}
        return tuple(evaluate(starts[i], values | names) for i in ("n", "k"))  # type: ignore[return-value]

    assert at(k_0=0) == (0, 16)
    assert at(k_0=32, m_0=0) == (0, 0)
    assert at(k_0=32, m_0=48) == (96, 0)
    assert at(k_0=32, m_0=48, n_1=96)[0] == 96  # the very last: nothing beyond it is asked for


def evaluate(e: object, values: dict[str, int]) -> int:
    """A little evaluator of the bounds that the pass writes."""
    from tcomp.dsl.printer import print_expression

    text = print_expression(e)  # type: ignore[arg-type]
    for name in sorted(values, key=len, reverse=True):
        text = text.replace(name, str(values[name]))
    return int(eval(text, {"select": lambda c, a, b: a if c else b, "min": min, "max": max}))


def test_without_the_word_there_is_no_prefetch() -> None:
    assert not prefetches(product_kernel("", AVX512))
    assert "llvm.prefetch" not in kernel_ir(product_kernel("", AVX512), AVX512)


def test_a_step_of_the_reduction_touches_the_region_once() -> None:
    """However many products it adds up: 4 x 2 of them in a full register tile."""
    text = kernel_ir(product_kernel("by prefetch", AVX512, m=24, n=192, k=16), AVX512)
    steps = text.count('call void @"llvm.prefetch.p0"')
    assert steps >= 1
    assert text.count("fmul") >= 8 * steps


def test_wide_vectors_fetch_all_of_a_tile_with_more_rows_than_register_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prefetch leaves a mark where it points; W's first tile is the only one that is not fetched ahead."""

    def mark(em: Emitter, pointer: IrValue, written: bool) -> None:
        em.here().store(ir.Constant(ir.IntType(8), 1), pointer)

    monkeypatch.setattr(prefetch, "touch", mark)
    monkeypatch.setattr(prefetch, "WIDE", 4)
    machine, dims = detect(), {"M": 24, "N": 288, "K": 64}
    module = load_text(PRODUCT.replace("BY", "by prefetch").replace("NC = 48", "NC = 96"))
    lowered = lower(module.ops["product"], module, dims, machine)
    executor = CpuExecutor(single_op_step(lowered, dims, guard=4096), machine, 1, tmp_path)
    executor.array("W")[...] = 0.0
    executor.run("run")
    lines = executor.array("W").view(np.uint8).reshape(288, 4, 64).any(-1)  # 16 values a line, as many as a tile of k
    executor.close()
    assert lines[:96, 1:].all() and lines[96:].all()


CAUSAL = """
op causal(S: f32[H, T, T], V: f32[H, T, E]) -> O: f32[H, T, E]:
  O[h, q, e] = sum k where REGION: S[h, q, k] * V[h, k, e]

schedule causal on cpu:
  h -> core(1)
  q -> seq(64) / unroll(4)
  k -> seq(64)
  e -> unroll(2) / vec
  stage V in packed at h by prefetch
"""


SCORES = """
op scores(Q, V, E: f32[H, T, T]) -> O: f32[H, T, T]:
  s[h, q, k] = sum d: Q[h, q, d] * V[h, k, d]
  O[h, q, e] = sum k where REGION: s[h, q, k] * E[h, k, e]

schedule scores on cpu:
  h -> core(1)
  q -> seq(64) / unroll(lanes // 4)
  k -> seq(64) / unroll(4)
  d, e -> vec
  fuse s, O at k
  stage V in packed at h by prefetch
"""


@pytest.mark.parametrize(
    ("text", "region", "t", "least"),
    [
        (CAUSAL, "k <= q", 64, 1.0), (CAUSAL, "q <= k", 64, 1.0), (CAUSAL, "k < q", 64, 1.0),
        (CAUSAL, "k + 32 <= q", 64, 0.2), (SCORES, "k <= q", 64, 1.0), (SCORES, "k <= q", 48, 1.0),
    ],
)  # fmt: skip
def test_a_sum_that_a_condition_cuts_fetches_all_of_the_next_tile(
    text: str, region: str, t: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its register tiles have from few to all of the sum's steps, or there are fewer of them, and together half of the
    steps, along vectors or not; each prefetch leaves a mark where it points. Of a sum with fewer steps a part of the
    tile: register tiles that have none take nothing from the others' count."""

    def mark(em: Emitter, pointer: IrValue, written: bool) -> None:
        em.here().store(ir.Constant(ir.IntType(8), 1), pointer)

    monkeypatch.setattr(prefetch, "touch", mark)
    monkeypatch.setattr("tcomp.codegen.cpu.counted_prefetch.WIDE", 4)
    machine, module = detect(), load_text(text.replace("REGION", region))
    (op,) = module.ops.values()
    dims = {"H": 3, "T": t, "E": t}
    lowered = lower(op, module, dims, machine)
    executor = CpuExecutor(single_op_step(lowered, dims, guard=4096), machine, 1, tmp_path)
    executor.array("V")[...] = 0.0
    executor.run("run")
    lines = executor.array("V").view(np.uint8).reshape(3, t * t // 16, 64).any(-1)
    behind = executor.array("guard.V").any()
    executor.close()
    assert lines[1:].mean() >= least and not lines[0].any() and not behind


def test_rows_that_begin_within_a_line_are_fetched_to_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """152 bytes of every 304: some of four lines."""

    def mark(em: Emitter, pointer: IrValue, written: bool) -> None:
        em.here().store(ir.Constant(ir.IntType(8), 1), pointer)

    monkeypatch.setattr(prefetch, "touch", mark)
    monkeypatch.setattr("tcomp.codegen.cpu.counted_prefetch.WIDE", 4)
    text = CAUSAL.replace("V: f32[H, T, E]", "V: f32[H, T, 2 * E]").replace("REGION", "k <= q")
    machine, dims, module = detect(), {"H": 2, "T": 64, "E": 38}, load_text(text)
    lowered = lower(module.ops["causal"], module, dims, machine)
    executor = CpuExecutor(single_op_step(lowered, dims, guard=4096), machine, 1, tmp_path)
    executor.array("V")[...] = 0.0
    executor.run("run")
    marks = executor.array("V").view(np.uint8).reshape(-1)
    executor.close()
    fetched = {int(at) // 64 for at in np.flatnonzero(marks)}
    for row in range(64, 128):
        assert fetched.issuperset(range(304 * row // 64, (304 * row + 151) // 64 + 1))


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_what_a_short_sum_reads_is_fetched_beside_a_product(dtype: DType) -> None:
    """Attention's delta walks a row in one step: the products fetch its rows, as many parts each as the others. Rows
    that are read where they lie and packed besides (bf16) are fetched, too."""
    module = load("models/ops/attention.tc")
    backward = backward_of("attention", module)
    assert backward is not None
    machine = replace(AVX512, features=("avx512bf16",))
    (kernel,) = lower(bound(backward, dtype), module, {"B": 1, "T": 64, "H": 12, "D": 64}, machine).kernels
    beside = [(c, p.source) for phase in kernel.phases for c in computes(phase) for p in c.prefetch]
    assert all(len(c.axes) == 3 for c, _ in beside)
    parts = sorted(a.tensor + (print_expression(a.subscripts[2]) if a.tensor == "QKV" else "") for _, a in beside)
    assert parts == ["O", "QKV0", "QKV1", "QKV2", "dO"]


@pytest.mark.parametrize("sizes", [(50, 100, 33), (1, 1, 1), (24, 96, 16), (7, 193, 64)])
def test_a_prefetched_product_is_the_same_to_the_bit(sizes: tuple[int, int, int], tmp_path: Path) -> None:
    m, n, k = sizes
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    results = []
    for by in ("", "by prefetch"):
        machine = detect()
        module = load_text(PRODUCT.replace("BY", by))
        dims = {"M": m, "N": n, "K": k}
        executor = CpuExecutor(
            single_op_step(lower(module.ops["product"], module, dims, machine), dims), machine, 1, tmp_path
        )
        executor.array("X")[...], executor.array("W")[...] = x, w
        executor.run("run")
        results.append(executor.array("Y").copy())
        executor.close()
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_allclose(results[1], x.astype(np.float64) @ w.T.astype(np.float64), rtol=1e-4, atol=1e-4)


def test_what_a_sum_writes_is_fetched_in_its_own_turn() -> None:
    """One line a turn of the sum's loop, as the machine's caches have it."""
    text = PRODUCT.replace("stage W in packed at k BY", "STAGE").replace("seq(16)", "seq(256)")
    text = text.replace("NC = 48", "NC = 96")
    kernels = []
    for stage in ("", "stage Y in cache at n when(l1 < 48KB)", "stage Y in cache at n when(l1 < 64KB)"):
        module = load_text(text.replace("STAGE", stage))
        (kernel,) = lower(module.ops["product"], module, {"M": 24, "N": 192, "K": 256}, AVX512).kernels
        kernels.append(kernel)
    assert [len(prefetches(k)) for k in kernels] == [0, 0, 1]
    assert "prefetch Y[m, n], to be written" in print_kernel(kernels[2])
    module = load_text(text.replace("STAGE", "stage Y in cache at n"))  # loops over m and k lie between
    (cut,) = lower(module.ops["product"], module, {"M": 50, "N": 192, "K": 300}, AVX512).kernels
    assert [p.written for p in prefetches(cut)] == [True]
    asked = [line for line in kernel_ir(kernels[2], AVX512).splitlines() if "call" in line and "llvm.prefetch" in line]
    assert len(asked) == 1 and "i32 1, i32 3" in asked[0]


def test_a_layout_cannot_be_chosen_on_a_cpu() -> None:
    with pytest.raises(TcError, match="no choice of layouts on cpu"):
        load_text(PRODUCT.replace("BY", "swizzle(64)"))


SOFTMAX = """
monoid expsum by m:
  m = max(a.m, b.m)
  x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

op rows(X: f32[M, N]) -> y: f32[M]:
  mx[m], z[m] = expsum n by X[m, n]: 1
  y[m] = mx[m] + log(z[m])

schedule rows on cpu:
  m -> core(1)
  n -> seq(64) / unroll(2) / vec
  stage X in cache at n BY
"""


def test_the_last_reader_of_a_tile_fetches_the_next_one() -> None:
    module = load_text(SOFTMAX.replace("BY", ""))
    (kernel,) = lower(module.ops["rows"], module, {"M": 3, "N": 200}, AVX512).kernels
    readers = [c for phase in kernel.phases for c in computes(phase) if c.reduced]
    assert [len(c.prefetch) for c in readers] == [0, 1]
    assert not any(b.name.startswith("X.") for b in kernel.tiles)
    text = kernel_ir(kernel, AVX512)
    assert text.count('call void @"llvm.prefetch.p0"') == text.count("llvm.prefetch.p0") - 1 >= 1


def test_where_the_loop_has_one_turn_the_next_one_of_the_loop_around_is_fetched() -> None:
    module = load_text(SOFTMAX.replace("BY", ""))
    (kernel,) = lower(module.ops["rows"], module, {"M": 3, "N": 64}, AVX512).kernels
    assert [len(c.prefetch) for phase in kernel.phases for c in computes(phase) if c.reduced] == [0, 1]
    assert "prefetch X[select(m.0 + 32 < 3, m.0 + 32, m.0), n]" in print_kernel(kernel)


def test_two_copies_of_one_source_are_fetched_once() -> None:
    """Attention's backward pass copies keys along either axis where rows lie pages apart; values have one copy."""
    module = load("models/ops/attention.tc")
    dims = {"B": 1, "T": 256, "H": 12, "D": 64}
    (kernel,) = lower(backward_of("attention", module), module, dims, AVX512).kernels
    assert sum(s.startswith("pack QKV") for s in map(str.strip, print_kernel(kernel).splitlines())) == 3
    parts = [p.source.subscripts[2] for p in prefetches(kernel) if p.source.tensor == "QKV"]
    assert sorted(part.value for part in parts if isinstance(part, Num)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stage X in cache at n by copy", "is not copied"),
        ("stage y in cache at n", "no equation in the loop over n names"),
    ],
)
def test_what_cannot_be_staged_in_cache(line: str, message: str) -> None:
    module = load_text(SOFTMAX.replace("stage X in cache at n BY", line))
    with pytest.raises(TcError, match=message):
        lower(module.ops["rows"], module, {"M": 3, "N": 200}, AVX512)


@pytest.mark.parametrize(("dtype", "packed"), [("f32", False), ("bf16", True)])
def test_by_widening_copies_what_is_narrow_only(dtype: str, packed: bool) -> None:
    text = PRODUCT.replace("W in packed at k BY", "X in packed at k by widening").replace("f32[", f"{dtype}[")
    module = load_text(text)
    (kernel,) = lower(module.ops["product"], module, {"M": 50, "N": 100, "K": 33}, AVX512).kernels
    assert [t.name.startswith("X.packed") for t in kernel.tiles if ".packed" in t.name] == [True] * packed
    assert ("by widening" in print_kernel(kernel)) is packed


SCALED = """
op scaled(X: TYPE[M, 2, N], w: TYPE[N]) -> Y: TYPE[M, N]:
  t[m, n] = X[m, 0, n] * w[n]
  Y[m, n] = t[m, n] * X[m, 1, n] + X[m, 0, n]

schedule scaled on cpu:
  m -> core(1)
  n -> unroll(2) / vec
  STAGE
"""


@pytest.mark.parametrize(("n", "turns"), [(768, 3), (2047, 2), (2048, 1), (5000, 1)])
def test_short_rows_are_fetched_several_turns_ahead(n: int, turns: int) -> None:
    module = load_text(SCALED.replace("TYPE", "bf16").replace("STAGE", "stage X in cache at m"))
    (kernel,) = lower(module.ops["scaled"], module, {"M": 50, "N": n}, AVX512).kernels
    assert f"prefetch X[select(m.0 + {turns} < 50, m.0 + {turns}, m.0), 1, n]" in print_kernel(kernel)


def test_the_last_statement_that_names_a_part_fetches_it_for_a_later_turn() -> None:
    module = load_text(SCALED.replace("TYPE", "f32").replace("STAGE", "stage X, Y in cache at m"))
    (kernel,) = lower(module.ops["scaled"], module, {"M": 3, "N": 96}, AVX512).kernels
    first, second = [c for phase in kernel.phases for c in computes(phase)]
    assert not first.prefetch
    assert sorted((p.source.tensor, p.written) for p in second.prefetch) == [("X", False), ("X", False), ("Y", True)]
    text = kernel_ir(kernel, AVX512)
    assert "prefetch Y[select(m.0 + 22 < 3, m.0 + 22, m.0), n], to be written" in print_kernel(kernel)
    # 32 floats a register tile are two lines of each of the three; a remainder would have its own.
    assert text.count('call void @"llvm.prefetch.p0"') == 6


def test_registers_that_share_a_line_ask_for_it_once() -> None:
    """32 values of bf16."""
    module = load_text(SCALED.replace("TYPE", "bf16").replace("STAGE", "stage X, Y in cache at m"))
    (kernel,) = lower(module.ops["scaled"], module, {"M": 3, "N": 96}, AVX512).kernels
    assert kernel_ir(kernel, AVX512).count('call void @"llvm.prefetch.p0"') == 3


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("n", [5, 100])
def test_a_map_with_prefetches_is_the_same_to_the_bit(dtype: str, n: int, tmp_path: Path) -> None:
    results = []
    machine = detect()
    for stage in ("", "stage X, w, Y in cache at m"):
        module = load_text(SCALED.replace("TYPE", dtype).replace("STAGE", stage))
        dims = {"M": 3, "N": n}
        executor = CpuExecutor(
            single_op_step(lower(module.ops["scaled"], module, dims, machine), dims), machine, 2, tmp_path
        )
        rng = np.random.default_rng(1)
        for name in ("X", "w"):
            array = executor.array(name)
            values = rng.standard_normal(array.shape, np.float32)
            array[...] = values if dtype == "f32" else (values.view(np.uint32) >> 16).astype(np.uint16)
        executor.run("run")
        results.append(executor.array("Y").copy())
        executor.close()
    assert results[0].any()
    np.testing.assert_array_equal(results[0], results[1])


def test_a_sum_collected_before_it_is_written_is_no_reason_to_refuse() -> None:
    """Of bf16 results over more rows than a tile has the shipped gradients of weights end as maps. Of one row there is
    no sum."""
    file = library() / "ops" / "linear.tc"
    module = load_text(file.read_text(), str(file))
    backward = backward_of("linear", module)
    assert backward is not None
    op = bound(backward, DType.BF16)
    for rows in (300, 1):
        lower(op, module, {"M": rows, "N": 129, "K": 1024}, replace(AVX512, l1_bytes=32 * 1024))
