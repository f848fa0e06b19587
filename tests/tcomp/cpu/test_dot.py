"""vdpbf16ps: its meaning bit for bit, as the instruction where this CPU has it; the shipped products that use it, with
operands in pairs, against PyTorch; and the loops that come of them on CPUs that have it."""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.load import load, load_text
from tcomp.dsl.storage import bound
from tcomp.errors import UserError
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating, held, restricted
from tcomp.ir.tile import Kernel, Loop, Statement
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.numeric import round_to
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.values import values
from tcomp.schedule.lower import lower
from tests.reference.op_cases import assert_close
from tests.tcomp.cpu.support import MACHINES

SMALLEST = np.float32(2.0**-126)
Arrays = dict[str, np.ndarray]


def emulating() -> CpuMachine:
    """The best level that this CPU has without the instruction, which is written out by its meaning."""
    plain = next(m for m in MACHINES if m.name != "avx512bf16")
    return detect(f"{plain.name}+avx512bf16")


def native() -> CpuMachine | None:
    try:
        return detect("avx512bf16")
    except UserError:
        return None


def loops_in(statements: Iterable[Statement]) -> Iterator[Loop]:
    for s in statements:
        if isinstance(s, Loop):
            yield s
            yield from loops_in(s.body)


HOSTS = [
    pytest.param(emulating(), id="meaning"),
    pytest.param(native(), id="instruction", marks=pytest.mark.skipif(native() is None, reason="no AVX512-BF16 here")),
]


EITHER = native() or emulating()
"""For what the instruction is used in: its meaning takes ten times as long to compile."""


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load("models/gpt2.tc")


def run(op: Op, module: Module, dims: dict[str, int], given: Arrays, machine: CpuMachine, objects: Path) -> Arrays:
    """Every output and changed operand of an op, real values in and out."""
    lowered = lower(op, module, dims, machine, threads=2)
    executor = CpuExecutor(single_op_step(lowered, dims, guard=256), machine, 2, objects)
    try:
        for name, value in given.items():
            executor.write(name, value)
        executor.run("run")
        names = [o.name for o in op.outputs] + [p.name for p in op.params if p.inout]
        types = {o.name: o.dtype for o in op.operands}
        return {n: np.array(values(executor.read(n), types[n]), np.float64) for n in names}
    finally:
        executor.close()


# ------------------------------------------------------------------------------------------- its meaning


def fused(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of f32 values rounded once: the exact product of two bf16 values, a float64 sum rounded to odd, then
    to f32."""
    p, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    s = p + c
    error = (p - (s - (s - p))) + (c - (s - p))
    even = (s.view(np.int64) & 1) == 0
    inexact = np.isfinite(s) & np.isfinite(error) & (error != 0)
    odd = np.where(inexact & even, np.nextafter(s, np.where(error > 0, np.inf, -np.inf)), s)
    return odd.astype(np.float32)


def flushed(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < SMALLEST, np.copysign(np.float32(0), x), x)


def meaning(acc: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """acc[m, n] + one pair of products of x[m, 2] and y[n, 2], as the manual says: the second product first."""
    acc = flushed(acc)
    for element in (1, 0):
        a, b = (flushed(v[..., element]) for v in (x[:, None], y[None]))
        acc = flushed(fused(a, b, acc))
    return acc


PRODUCT = """
op f(X: bf16[M, K], W: bf16[N, K], inout Y: f32[M, N]):
  Y[m, n] += sum k: X[m, k] * W[n, k]

schedule f on cpu.avx512bf16:
  m -> core(8) / seq(8) / unroll(4)
  n -> seq(64) / unroll(2) / vec
  k -> seq(16)
  stage X, W in packed at k
  use vdpbf16ps for Y
"""


def random_bf16(rng: np.random.Generator, shape: tuple[int, ...], exponents: tuple[int, int]) -> np.ndarray:
    """bf16 values over so many powers of two, some of them zero, subnormal, infinite or NaN."""
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(*exponents, shape)
    special = np.array([0.0, -0.0, 2.0**-130, -(2.0**-133), np.inf, -np.inf, np.nan, 3e38, -3e38])
    chosen = rng.random(shape) < 0.1
    return round_to(np.where(chosen, rng.choice(special, shape), x).astype(np.float32), DType.BF16).astype(np.float32)


@pytest.mark.parametrize("machine", HOSTS)
@pytest.mark.parametrize("exponents", [(-3, 3), (-75, -55), (55, 66)], ids=["ordinary", "tiny", "huge"])
@pytest.mark.parametrize("n", [64, 8, 4, 1], ids=lambda n: f"{n} columns")
def test_one_group_is_two_multiply_adds_with_subnormals_flushed(
    n: int, exponents: tuple[int, int], machine: CpuMachine, objects: Path
) -> None:
    """The summed index has two values, so every sum is one instruction. All bits are compared; of the instruction
    itself, which nobody has seen run with this code, a few roundings of what is neither huge nor tiny."""
    rng = np.random.default_rng(n)
    m = 64
    x, w = (random_bf16(rng, (r, 2), exponents) for r in (m, n))
    y = np.where(rng.random((m, n)) < 0.1, 1e-40, rng.standard_normal((m, n)) * 2.0 ** (2 * exponents[0]))
    y = y.astype(np.float32)
    module = load_text(PRODUCT, "dot.tc")
    got = run(module.ops["f"], module, {"M": m, "N": n, "K": 2}, {"X": x, "W": w, "Y": y}, machine, objects)["Y"]
    with np.errstate(all="ignore"):
        want = meaning(y, x, w)
        terms = np.abs(y) + np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T
    if not machine.emulated:
        plain = np.isfinite(want) & (terms > 2.0**-100)
        assert (np.abs(got[plain] - want[plain]) <= 2.0**-22 * terms[plain]).all()
        return
    assert (np.isnan(want) | (np.abs(want) >= SMALLEST) | (want == 0)).all()
    np.testing.assert_array_equal(got, want.astype(np.float64))
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


PARTS = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on cpu.avx512bf16:
  k -> core(6)
  m -> seq(16) / unroll(4)
  n -> core(16) / unroll(2) / vec
  combine Y over k by partials
  stage X, W in packed at m
  use vdpbf16ps for Y
"""


@pytest.mark.parametrize("result", ["f32", "bf16"])
@pytest.mark.parametrize("block", [6, 64])
def test_a_sum_divided_among_cores_uses_it_in_its_parts(block: int, result: str, objects: Path) -> None:
    """Also where one part is the whole sum."""
    text = PARTS.replace("core(6)", f"core({block})").replace("Y: f32", f"Y: {result}")
    module, rng = load_text(text, "parts.tc"), np.random.default_rng(2)
    x, w = (round_to(rng.standard_normal(s).astype(np.float32), DType.BF16) for s in ((33, 29), (21, 29)))
    got = run(module.ops["f"], module, {"M": 33, "N": 21, "K": 29}, {"X": x, "W": w}, EITHER, objects)["Y"]
    tolerance = 1e-5 if result == "f32" else 2**-8
    np.testing.assert_allclose(got, x.astype(np.float64) @ w.astype(np.float64).T, rtol=tolerance, atol=1e-5)


TWO = """
op f(X: bf16[M, J, K], W: bf16[N, J, K]) -> Y: f32[M, N]:
  Y[m, n] = sum j, k: X[m, j, k] * W[n, j, k]

schedule f on cpu.avx512bf16:
  m -> core(4) / unroll(2)
  n -> seq(16) / unroll(2) / vec
  j -> seq(1)
  k -> seq(6)
  order m, n, j, k
  stage X, W in packed at k
  use vdpbf16ps for Y
"""


def test_of_two_summed_indices_the_inner_one_goes_in_groups(objects: Path) -> None:
    module, rng = load_text(TWO, "two.tc"), np.random.default_rng(4)
    x, w = (round_to(rng.standard_normal(s).astype(np.float32), DType.BF16) for s in ((9, 3, 13), (21, 3, 13)))
    dims = {"M": 9, "N": 21, "J": 3, "K": 13}
    got = run(module.ops["f"], module, dims, {"X": x, "W": w}, emulating(), objects)["Y"]
    want = np.einsum("mjk,njk->mn", x.astype(np.float64), w.astype(np.float64))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------- the shipped products

SHAPES = [(1, 1, 1), (5, 7, 3), (1, 48, 770), (33, 1, 64), (40, 130, 67), (61, 193, 97), (9, 49, 1601), (1031, 24, 33)]


@pytest.mark.slow
@pytest.mark.parametrize("machine", HOSTS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_products_forward_backward_and_added_to_gradients(
    shape: tuple[int, int, int], machine: CpuMachine, gpt2: Module, objects: Path
) -> None:
    """Summed indices of odd length, shorter than a vector, longer than a tile; dW in f32, added to what is there."""
    m, n, k = shape
    dims = dict(zip("MNK", shape, strict=True))
    x, w, b, dy = (torch.randn(s, generator=torch.Generator().manual_seed(i)).bfloat16().double().requires_grad_(i < 3)
                   for i, s in enumerate([(m, k), (n, k), (n,), (m, n)]))  # fmt: skip
    y = torch.nn.functional.linear(x, w, b)
    y.backward(dy)
    numbers = {name: t.detach().numpy() for name, t in {"X": x, "W": w, "b": b, "dY": dy}.items()}
    op = bound(gpt2.ops["linear"], DType.BF16)
    got = run(op, gpt2, dims, {n: numbers[n] for n in ("X", "W", "b")}, machine, objects)
    near(got["Y"], y.detach().numpy(), k)
    backward = backward_of("linear", gpt2)
    assert backward is not None and x.grad is not None and w.grad is not None
    gradient = accumulating(held(bound(backward, DType.BF16), {"dW": DType.F32}), frozenset({"dW"}))
    old = np.random.default_rng(3).standard_normal((n, k)).astype(np.float32)
    got = run(gradient, gpt2, dims, {**{p: numbers[p] for p in ("X", "W", "dY")}, "dW": old}, machine, objects)
    near(got["dX"], x.grad.numpy(), n)
    assert_close({"dW": got["dW"]}, {"dW": w.grad.numpy() + old}, m, "torch, added to what was there")


def near(got: np.ndarray, want: np.ndarray, terms: int) -> None:
    """Equal but for a rounding to bf16, and f32 sums of so many terms."""
    np.testing.assert_allclose(got, want, rtol=2.0**-8, atol=1e-6 * terms)


@pytest.mark.parametrize(("name", "rows"), [("matmul", 37), ("linear_gelu", 37), ("linear_gelu", 1)])
def test_they_agree_with_the_oracle_and_are_what_is_used(name: str, rows: int, gpt2: Module, objects: Path) -> None:
    """Also of one row, where GELU's gradient is a vector, and its pairs are read where they lie."""
    dims, machine = {"M": rows, "N": 70, "K": 51}, EITHER
    rng = np.random.default_rng(5)
    for op in (gpt2.ops[name], backward_of(name, gpt2)):
        assert op is not None
        op = bound(op, DType.BF16)
        sizes = {p.name: tuple(dims[d.id] for d in p.shape) for p in op.params}  # type: ignore[attr-defined]
        given = {p: round_to(rng.standard_normal(s).astype(np.float32), DType.BF16) for p, s in sizes.items()}
        kernels = lower(op, gpt2, dims, machine, threads=2).kernels
        assert sum("vdpbf16ps" in str(k.phases) for k in kernels) == (1 if op.name == name else 2)
        got = run(op, gpt2, dims, given, machine, objects)
        want = evaluate(op, gpt2, {p: v.astype(np.float64) for p, v in given.items()}, dims)
        for output in op.outputs:
            # `cast dP to real` rounds the GELU's argument's gradient before two of the sums.
            np.testing.assert_allclose(got[output.name], want[output.name], rtol=2.0**-7, atol=0.06)


@pytest.mark.parametrize(
    ("n", "parts"), [(97, [97]), (960, [960]), (1152, [576, 576]), (2304, [768, 768, 768]), (2560, [854, 854, 852])]
)
def test_gradients_of_inputs_sum_over_parts_of_one_length(n: int, parts: list[int], gpt2: Module) -> None:
    backward = backward_of("matmul", gpt2)
    assert backward is not None
    op = bound(restricted(backward, frozenset({"dX"})), DType.BF16)
    (kernel,) = lower(op, gpt2, {"M": 256, "N": n, "K": 576}, emulating()).kernels
    steps = [s.step for phase in kernel.phases for s in loops_in(phase) if s.variable.startswith("n.")]
    length = steps[0] if steps else n
    assert [min(length, n - at) for at in range(0, n, length)] == parts


@pytest.mark.parametrize("machine", [m for m in MACHINES if m.name in ("avx512", "avx2")][:1])
def test_without_the_instruction_bf16_products_widen_as_they_are_packed(machine: CpuMachine, gpt2: Module) -> None:
    for precision, target in ((DType.BF16, machine), (DType.F32, emulating())):
        (kernel,) = lower(bound(gpt2.ops["matmul"], precision), gpt2, {"M": 64, "N": 96, "K": 64}, target).kernels
        assert not any("vdpbf16ps" in str(p) for p in kernel.phases)
        assert {t.dtype for t in kernel.tiles} == {DType.F32}


@pytest.mark.parametrize(("k", "packed"), [(64, ["W"]), (63, ["X", "W"])], ids=["even rows", "odd rows"])
def test_by_widening_an_operand_stays_where_its_pairs_lie_whole(k: int, packed: list[str], objects: Path) -> None:
    """A pair is read as a word of X's row, unless rows begin within words."""
    text = PRODUCT.replace("stage X, W in packed at k", "stage X in packed at k by widening\n  stage W in packed at k")
    module, dims, rng = load_text(text, "stays.tc"), {"M": 37, "N": 70, "K": k}, np.random.default_rng(6)
    (kernel,) = lower(module.ops["f"], module, dims, emulating()).kernels
    assert [t.name.partition(".")[0] for t in kernel.tiles] == packed
    x, w, y = (rng.integers(-9, 10, s).astype(np.float32) for s in ((37, k), (70, k), (37, 70)))
    got = run(module.ops["f"], module, dims, {"X": x, "W": w, "Y": y}, emulating(), objects)
    np.testing.assert_array_equal(got["Y"], x @ w.T + y)


# ----------------------------------------------------------------------------------------------- any schedule

RANDOM = """
op f(X: bf16[{x}], W: bf16[{w}], inout Y: f32[M, N]):
  Y[m, n] += sum k: X[{x_at}] * W[{w_at}]

schedule f on cpu.avx512bf16:
  m -> core({core}) / seq({mc}) / unroll({mr})
  n -> seq({nc}) / unroll({nv}) / vec
  k -> seq({kc})
  order {order}
  stage X in packed at {x_stage}{x_by}
  stage W in packed at {w_stage} by prefetch
  use vdpbf16ps for Y
"""


@given(st.data())
@settings(max_examples=14, deadline=None)
def test_any_tiling_of_any_product_is_right(objects: Path, data: st.DataObject) -> None:
    """Either operand's rows along the summed index or across it, whatever is divisible by what."""
    draw = data.draw
    m, n, k = (draw(st.integers(1, 41)) for _ in range(3))
    order = draw(st.permutations(["m", "n", "k"]))
    stages = [draw(st.sampled_from([i, "k"])) for i in ("m", "n")]
    (x_at, x), (w_at, w) = (
        draw(st.sampled_from([(f"{i}, k", f"{d}, K"), (f"k, {i}", f"K, {d}")])) for i, d in (("m", "M"), ("n", "N"))
    )
    mc, nc = draw(st.integers(1, 19)), draw(st.integers(1, 40))
    text = RANDOM.format(
        x=x, w=w, x_at=x_at, w_at=w_at, order=", ".join(order), x_stage=stages[0], w_stage=stages[1],
        core=mc * draw(st.integers(1, 3)), mc=mc, mr=draw(st.integers(1, 4)), nc=nc, nv=draw(st.integers(1, 3)),
        kc=2 * draw(st.integers(1, 12)), x_by=draw(st.sampled_from(["", " by widening"])),
    )  # fmt: skip
    level = draw(st.sampled_from([m.name for m in MACHINES if m.name != "avx512bf16"]))
    module = load_text(text, "random.tc")
    rng = np.random.default_rng(k)
    left, right, y = (rng.integers(-9, 10, s).astype(np.float32) for s in ((m, k), (n, k), (m, n)))
    arrays = {"X": left if x.startswith("M") else left.T, "W": right if w.startswith("N") else right.T, "Y": y}
    got = run(module.ops["f"], module, {"M": m, "N": n, "K": k}, arrays, detect(f"{level}+avx512bf16"), objects)
    np.testing.assert_array_equal(got["Y"], left @ right.T + y, err_msg=text)


# ------------------------------------------------------------------------------------------------- the loops

_FEATURES = (
    *("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2"),
    *("avx512bf16", "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"),
)
ZEN4 = CpuMachine("avx512bf16", tuple(sorted(_FEATURES)), 16, 32, 32 << 10, 1 << 20, 32 << 20, 2)


def dot_loops(assembly: str) -> list[list[str]]:
    """The instructions of each innermost loop with dot products."""
    found = []
    for block in re.split(r"\n(?=\.LBB)", assembly):
        back = re.search(rf"\tj\w+\t{re.escape(block.split(':')[0])}\b", block)
        if back and "vdpbf16ps" in block:
            found.append([i.strip() for i in block[: back.end()].splitlines()[1:] if i.startswith("\t")])
    return found


def products(kernels: tuple[Kernel, ...]) -> list[Kernel]:
    return [k for k in kernels if any("vdpbf16ps" in str(p) for p in k.phases)]


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 assembly")
@pytest.mark.parametrize("name", ["linear_gelu", "matmul"])
def test_the_inner_loops_are_loads_and_dot_products(name: str, gpt2: Module) -> None:
    """A group is 24 dots (8 rows by 3 vectors), 3 vectors and 8 broadcast words; no widening, no spill. What is fetched
    ahead takes at most 20 instructions for addresses in each turn, and 16 more where that is results as well."""
    dims = {"M": 256, "N": 3072, "K": 768}
    seen = 0
    for op in (gpt2.ops[name], backward_of(name, gpt2)):
        assert op is not None
        for kernel in products(lower(bound(op, DType.BF16), gpt2, dims, ZEN4, threads=2).kernels):
            (loop,) = dot_loops(kernel_assembly(kernel, ZEN4))
            counts = Counter(i.split()[0] for i in loop)
            groups = counts["vdpbf16ps"] // 24
            assert groups >= 1 and counts["vdpbf16ps"] == 24 * groups
            assert counts["vmovups"] + counts["vbroadcastss"] + sum("1to16" in i for i in loop) == 11 * groups
            assert all("zmm" in i for i in loop if i.startswith("vdpbf16ps"))
            assert not any("(%rsp" in i for i in loop), "a spill in the inner loop"
            ahead = sum(i.startswith("prefetch") for i in loop)
            assert 1 <= ahead <= 3
            assert len(loop) <= 35 * groups + 24 + 16 * (ahead > 1)
            seen += 1
    assert seen == 3
