"""Maps behind a sum run on its register tiles: where they may, with the same results, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import Access, Expr, Name, Num
from tcomp.dsl.load import load, load_text
from tcomp.grad import backward_of
from tcomp.ir.print import print_kernel
from tcomp.ir.tile import Compute, Kernel
from tcomp.ir.walk import computes
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower
from tcomp.schedule.tree.epilogue import with_epilogues
from tests.reference.tile_ir import at, op
from tests.tcomp.cpu.support import axis, scratch
from tests.tcomp.tile_interpreter import Interpreter

LAYER = """
op layer(X: real[M, K], W: real[N, K], b: real[N], R: real[M, N]) -> P: real[M, N], Y: real[M, N]MORE:
  acc[m, n] = sum k: X[m, k] * W[n, k]
  P[m, n] = acc[m, n] + b[n]
  Y[m, n] = tanh(P[m, n]) + R[m, n]
  EQUATION

schedule layer on cpu:
  n -> core / seq(48) / unroll(2) / vec
  m -> seq(24) / unroll(4)
  k -> seq(KC)
  order m, n, k
  stage W in packed at k by prefetch
"""
AVX512 = CpuMachine("avx512", (), 16, 32, 49152, 2 << 20, 32 << 20, 2)
LEVELS = ("native", "sse2")


def text_of(kc: int = 160, dtype: str = "f32", more: str = "", equation: str = "") -> str:
    text = LAYER.replace("KC", str(kc)).replace("real", dtype).replace("MORE", more)
    return text.replace("  EQUATION\n", f"  {equation}\n" if equation else "")


def layer_kernel(text: str, k: int = 160, machine: CpuMachine = AVX512) -> Kernel:
    module = load_text(text)
    (kernel,) = lower(module.ops["layer"], module, {"M": 50, "N": 100, "K": k}, machine).kernels
    return kernel


def reductions(kernel: Kernel) -> list[Compute]:
    return [c for phase in kernel.phases for c in computes(phase) if c.reduced]


def test_the_whole_chain_moves_into_the_sum() -> None:
    kernel = layer_kernel(text_of())
    (product,) = reductions(kernel)
    assert [m.target.tensor for m in product.epilogue] == ["P", "Y"]
    assert product.last is None
    assert "each register tile:" in print_kernel(kernel)


def test_behind_a_sum_in_parts_it_waits_for_the_last_one() -> None:
    kernel = layer_kernel(text_of(kc=64))
    (product,) = reductions(kernel)
    assert len(product.epilogue) == 2
    assert "each register tile where k.0 + 64 >= 160:" in print_kernel(kernel)


@pytest.mark.parametrize(
    ("more", "equation", "left"),
    [
        (", Z: f32[M, N]", "Z[m, n] = sum k: acc[m, n] * X[m, k]", []),  # somebody else needs the sums
        (", Z: f32[M, N]", "Z[m, n] = acc[m, n] * Y[m, n]", ["P", "Y", "Z"]),
        (", Z: f32[M, N]", "Z[m, n] = sum k: Y[m, n] * X[m, k]", ["P", "Y"]),
        (", Z: f32[M, N]", "Z[m, n] = select(n <= m, acc[m, n], 0.0)", ["P", "Y", "Z"]),
        (", Z: f32[M, N]", "Z[m, n] = R[m, n] * 2.0", ["P", "Y"]),  # nothing to do with the sums
    ],
)
def test_what_moves_and_what_does_not(more: str, equation: str, left: list[str], tmp_path: Path) -> None:
    text = text_of(64, "f32", more, equation)
    kernels = lower(*_bound(text, "layer", 160), AVX512).kernels
    product = next(c for c in reductions(kernels[0]) if c.target.tensor == "acc")
    assert [m.target.tensor for m in product.epilogue] == left
    check(text, (50, 100, 160), detect(), 2, tmp_path)


def moved(
    beside: Expr, value: Expr, inplace: frozenset[tuple[str, str]] = frozenset(), parts: tuple[int, int] | None = None
) -> tuple[str, ...]:
    """The maps that move into `acc[m, n] = sum k: X[m, k] * W[n, k]` of `twice = beside; Y = value` behind it. With
    `parts`, both are parts of Y."""
    m, n = axis("m", 8, unroll=4), axis("n", 32, unroll=2, lanes=16)
    k = axis("k", 8)
    product = op("*", at("X", "m", "k"), at("W", "n", "k"))
    acc = Compute(at("acc", "m", "n"), product, (m, n, k), frozenset({"k"}), "sum")
    first, second = ("twice", "Y") if parts is None else ("Y", "Y")
    targets = [
        Access(name, (*(() if parts is None else (Num(part),)), Name("m"), Name("n")))
        for name, part in zip((first, second), parts or (0, 0), strict=True)
    ]
    body = (acc, Compute(targets[0], beside, (m, n)), Compute(targets[1], value, (m, n)))
    tiles = {t: scratch(t, 8, 32) for t in ("acc", "twice")}
    (out, *_), *_ = with_epilogues([body], tiles, inplace)
    assert isinstance(out, Compute)
    return tuple(c.target.tensor for c in out.epilogue)


def test_a_map_passes_statements_that_have_nothing_to_do_with_it_and_no_others() -> None:
    double, sums = op("*", at("R", "m", "n"), Num(2.0)), at("acc", "m", "n")
    assert moved(double, sums) == ("Y",)
    assert moved(double, op("+", sums, at("twice", "m", "n"))) == ()  # it reads what the other writes
    assert moved(op("*", at("Y", "m", "n"), Num(2.0)), sums) == ()  # it writes what the other reads
    assert moved(double, sums, frozenset({("Y", "R")})) == ()  # which may be one memory
    assert moved(double, sums, parts=(0, 1)) == ("Y",)
    assert moved(double, sums, parts=(1, 1)) == ()


def attention_sums(backward: bool, length: int) -> dict[str, list[str]]:
    """Each product's maps in the shipped attention of one head: the reductions' targets -> the maps' targets."""
    module = load("models/ops/attention.tc")
    op = backward_of("attention", module) if backward else module.ops["attention"]
    (kernel,) = lower(op, module, {"B": 1, "T": length, "H": 2, "D": 64}, AVX512).kernels
    every = [c for phase in kernel.phases for c in computes(phase) if c.reduced]
    return {c.target.tensor: [m.target.tensor for m in c.epilogue] for c in every}


def test_sums_up_to_the_diagonal_have_maps_too_where_one_tile_has_the_whole_sum() -> None:
    assert attention_sums(False, 64)["o"] == ["O"]
    assert attention_sums(False, 576)["o"] == []  # (the loop over keys ends at the diagonal)
    gradients = attention_sums(True, 64)
    assert [maps for name, maps in gradients.items() if name.startswith("dQKV.sum")] == [["dQKV"]] * 3


def test_maps_of_points_that_a_region_leaves_out_stay_apart() -> None:
    text = (
        "op f(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N], z: f32[M]:\n"
        "  acc[m, n] = sum k: X[m, k] * W[n, k]\n"
        "  Y[m, n] = select(n <= m, acc[m, n], 0.0)\n"
        "  z[m] = sum n where n <= m: Y[m, n]\n"
        "schedule f on cpu:\n"
        "  m -> core(16) / unroll(4)\n"
        "  n -> unroll(2) / vec\n"
        "  fuse acc, Y, z at m\n"
    )
    module = load_text(text)
    (kernel,) = lower(module.ops["f"], module, {"M": 64, "N": 64, "K": 8}, AVX512).kernels
    product = next(c for c in reductions(kernel) if c.target.tensor == "acc")
    assert product.region is not None
    assert product.epilogue == ()


def _bound(text: str, name: str, k: int) -> tuple:  # type: ignore[type-arg]
    module = load_text(text)
    return module.ops[name], module, {"M": 50, "N": 100, "K": k}


def check(text: str, sizes: tuple[int, int, int], machine: CpuMachine, threads: int, objects: Path) -> None:
    """Compiled code and the interpreted tile IR against the oracle."""
    module = load_text(text)
    op = module.ops["layer"]
    dims = dict(zip(("M", "N", "K"), sizes, strict=True))
    lowered = lower(op, module, dims, machine, threads=threads)
    executor = CpuExecutor(single_op_step(lowered, dims), machine, threads, objects)
    rng = np.random.default_rng(1)
    inputs = {p.name: rng.standard_normal(executor.array(p.name).shape, np.float32) for p in op.params}
    narrow = "bf16" in text
    for name, value in inputs.items():
        inputs[name] = value = _rounded(value) if narrow else value
        executor.array(name)[...] = (value.view(np.uint32) >> 16).astype(np.uint16) if narrow else value
    executor.run("run")
    expected = evaluate(op, module, inputs, dims)
    arrays = {n: v.astype(np.float64) for n, v in inputs.items()}
    arrays |= {o.name: np.full(executor.array(o.name).shape, np.nan) for o in op.outputs}
    for kernel in lowered.kernels:
        Interpreter(kernel, arrays, threads=threads).run()
    for o in op.outputs:
        found = executor.array(o.name)
        wide = (found.astype(np.uint32) << 16).view(np.float32) if found.dtype == np.uint16 else found
        np.testing.assert_allclose(wide, expected[o.name], rtol=2e-2 if narrow else 1e-4, atol=1e-4 * sizes[2] ** 0.5)
        if not narrow:
            np.testing.assert_allclose(arrays[o.name], expected[o.name], rtol=1e-9, atol=1e-9)
    executor.close()


def _rounded(x: np.ndarray) -> np.ndarray:
    """f32 cut to bf16."""
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("sizes", "kc"), [((50, 100, 160), 160), ((50, 100, 160), 64), ((1, 7, 300), 128), ((25, 97, 5), 64)]
)
def test_results_are_the_oracles(sizes: tuple[int, int, int], kc: int, dtype: str, level: str, tmp_path: Path) -> None:
    check(text_of(kc, dtype), sizes, detect() if level == "native" else detect(level), 2, tmp_path)
