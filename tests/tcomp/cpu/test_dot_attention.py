"""Attention by vdpbf16ps: the shipped schedules at sizes that fill no pair, vector or block, against PyTorch in double
precision; and temporaries that an instruction multiplies, packed before the sum."""

from __future__ import annotations

import math
import platform
from pathlib import Path

import numpy as np
import pytest
import torch

from tcomp.codegen.cpu.compile import kernel_assembly
from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import load, load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.print import print_kernel
from tcomp.machine.cpu import CpuMachine
from tcomp.numeric import round_to
from tcomp.schedule.lower import lower
from tests.tcomp.cpu.test_dot import HOSTS, ZEN4, Arrays, dot_loops, emulating, run

SIZES = [(1, 1, 2, 8), (2, 3, 1, 5), (1, 37, 2, 6), (1, 70, 1, 64), (2, 131, 1, 24), (1, 200, 1, 33)]
"""B, T, heads, D"""
HEADS = {0: "packed", 1: "one query head", 3: "three query heads"}


@pytest.fixture(scope="module")
def attention() -> Module:
    return load("models/ops/attention.tc")


def rounded(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return round_to(rng.standard_normal(shape).astype(np.float32), DType.BF16).astype(np.float64)


def near(got: np.ndarray, want: np.ndarray) -> None:
    """Results of bf16, and probabilities rounded to bf16 in their sums: 2**-9 of values of about one, several added."""
    assert np.linalg.norm(got - want) <= 2.0**-7 * np.linalg.norm(want) + 1e-6 * got.size
    np.testing.assert_allclose(got, want, rtol=2.0**-5, atol=2.0**-5 * max(1.0, float(np.abs(want).max())))


def torch_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T, G, R, D] by [B, T, G, D]: outputs, and the log-sum-exp [B, G, R, T]."""
    scores = torch.einsum("bqgrd,bkgd->bgrqk", q, k) / math.sqrt(q.shape[-1])
    t = q.shape[1]
    scores = scores.masked_fill(~torch.tril(torch.ones(t, t, dtype=torch.bool)), -math.inf)
    return torch.einsum("bgrqk,bkge->bqgre", scores.softmax(-1), v), scores.logsumexp(-1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "heads", "machine"),
    [
        pytest.param(s, h, *host.values, id=f"{'x'.join(map(str, s))}-{HEADS[h]}-{host.id}", marks=host.marks)
        for i, s in enumerate(SIZES)
        for j, h in enumerate(HEADS)
        for host in HOSTS[0 if (i + j) % 3 == 1 else 1 :]  # (the meaning, of the same lowering, at half of the sizes)
        if (i + j) % 3
    ],
)
def test_forward_and_backward_agree_with_torch(
    size: tuple[int, int, int, int], heads: int, machine: CpuMachine, attention: Module, objects: Path
) -> None:
    b, t, g, d = size
    rng = np.random.default_rng(t)
    r = max(1, heads)
    q, dy = (rounded(rng, b, t, g, r, d) for _ in range(2))
    k, v = (rounded(rng, b, t, g, d) for _ in range(2))
    inputs = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
    o, log_sum = torch_attention(*inputs)
    o.backward(torch.from_numpy(dy))
    grads = [x.grad.numpy() for x in inputs if x.grad is not None]
    if heads:
        name, dims = "grouped_attention", {"B": b, "T": t, "G": g, "R": r, "D": d}
        given: Arrays = {"Q": q, "K": k, "V": v}
        want = dict(zip(("dQ", "dK", "dV"), grads, strict=True))
    else:
        name, dims = "attention", {"B": b, "T": t, "H": g, "D": d}
        given = {"QKV": np.stack([q[:, :, :, 0], k, v], 2)}
        want = {"dQKV": np.stack([grads[0][:, :, :, 0], *grads[1:]], 2)}
        o, log_sum, dy = o[:, :, :, 0], log_sum[:, :, 0], dy[:, :, :, 0]
    got = run(bound(attention.ops[name], DType.BF16), attention, dims, given, machine, objects)
    near(got["O"], o.detach().numpy())
    np.testing.assert_allclose(got["L"], log_sum.detach().numpy(), rtol=1e-5, atol=1e-4)
    backward = backward_of(name, attention)
    assert backward is not None
    more = {"O": got["O"], "L": got["L"], "dO": dy}
    grown = run(bound(backward, DType.BF16), attention, dims, given | more, machine, objects)
    for tensor, x in want.items():
        near(grown[tensor], x)


@pytest.mark.parametrize(("name", "forward", "backward"), [("attention", 2, 5), ("grouped_attention", 2, 5)])
def test_all_their_products_use_it(name: str, forward: int, backward: int, attention: Module) -> None:
    dims = {"B": 1, "T": 256, "H": 2, "D": 64} if name == "attention" else {"B": 1, "T": 256, "G": 2, "R": 3, "D": 64}
    gradient = backward_of(name, attention)
    assert gradient is not None
    for op, products in ((attention.ops[name], forward), (gradient, backward)):
        (kernel,) = lower(bound(op, DType.BF16), attention, dims, emulating()).kernels
        text = print_kernel(kernel)
        assert text.count("# by vdpbf16ps") == products
        (plain,) = lower(op, attention, dims, emulating()).kernels
        assert "vdpbf16ps" not in print_kernel(plain)


def test_a_temporary_is_packed_in_pairs_of_the_index_that_each_sum_takes(attention: Module) -> None:
    """dQ sums over keys, along which the gradients of the scores lie; dK over queries, whose pairs lie side by side."""
    op = backward_of("attention", attention)
    assert op is not None
    dims = {"B": 1, "T": 256, "H": 2, "D": 64}
    (kernel,) = lower(bound(op, DType.BF16), attention, dims, emulating()).kernels
    tiles = {t.name: t for t in kernel.tiles}
    assert "ds.rounded.k" in tiles and "panels" not in str(tiles["ds.rounded.k"].layout).lower()
    assert "group=2, grouped=0" in str(tiles["ds.rounded.q"].layout)
    assert {t.dtype for n, t in tiles.items() if ".rounded" in n} == {DType.BF16}
    assert tiles["ds"].dtype is DType.F32


TWICE = """
op f(X: bf16[M, K], W, U: bf16[N, K]) -> Y, Z: f32[M, N]:
  t[m, k] = X[m, k] * 0.3
  Y[m, n] = sum k: t[m, k] * W[n, k]
  Z[m, n] = sum k: t[m, k] * U[n, k]

schedule f on cpu.avx512bf16:
  m -> core(4) / unroll(4)
  n -> seq(32) / unroll(2) / vec
  k -> seq(16) / vec
  order m, k, n
  stage W, U in packed at n
  cast Y.t to bf16
  cast Z.t to bf16
  use vdpbf16ps for Y, Z
"""


@pytest.mark.parametrize("k", [1, 13, 16, 45])
def test_a_rounded_temporary_of_odd_length_ends_with_zeros(k: int, objects: Path) -> None:
    module, rng = load_text(TWICE, "twice.tc"), np.random.default_rng(6)
    x, w, u = (rounded(rng, n, k) for n in (9, 37, 37))
    dims = {"M": 9, "N": 37, "K": k}
    got = run(module.ops["f"], module, dims, {"X": x, "W": w, "U": u}, emulating(), objects)
    t = round_to((x * np.float32(0.3)).astype(np.float32), DType.BF16).astype(np.float64)
    np.testing.assert_allclose(got["Y"], t @ w.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got["Z"], t @ u.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "rounds"), [(64, True), (256, True), (65, False)])
def test_the_map_that_makes_whole_rows_rounds_them(length: int, rounds: bool, attention: Module) -> None:
    """The weights' one; p is read by columns, and ds by rows and by columns. A cut pair needs a zero behind it."""
    gradient = backward_of("attention", attention)
    assert gradient is not None
    dims = {"B": 1, "T": length, "H": 2, "D": 64}
    for op, name in ((attention.ops["attention"], "m.weight"), (gradient, "ds")):
        (kernel,) = lower(bound(op, DType.BF16), attention, dims, emulating()).kernels
        text = print_kernel(kernel)
        assert (f"pack {name}.rounded.k" not in text) == rounds == (f"    {name}.rounded.k[" in text)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 assembly")
def test_their_inner_loops_widen_and_round_nothing(attention: Module) -> None:
    """Register tiles of 8 x 2 and 4 x 4 vectors: 16 dots a pair, from 512-bit registers, without a spill."""
    dims = {"B": 1, "T": 1024, "H": 12, "D": 64}
    op = backward_of("attention", attention)
    assert op is not None
    (kernel,) = lower(bound(op, DType.BF16), attention, dims, ZEN4, threads=2).kernels
    assembly = kernel_assembly(kernel, ZEN4)
    assert "vcvtneps2bf16" in assembly and "vcvtne2ps2bf16" in assembly  # dS, by keys; P and dS, by queries
    loops = dot_loops(assembly)
    assert len(loops) >= 5
    for loop in loops:
        dots = [i for i in loop if i.startswith("vdpbf16ps")]
        assert len(dots) % 16 == 0
        assert all("%zmm" in i for i in dots)
        assert not any("rsp" in i or i.startswith(("vcvt", "vpmov", "vpsll")) for i in loop if "zmm" in i)
