"""What of flat vectors a thread's share of a phase touches."""

from __future__ import annotations

import pytest

from tcomp.dsl.load import load_text
from tcomp.ir.shares import Shares, flat_shares
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import detect
from tcomp.schedule.lower import lower

N = 100_001

UPDATE = """
op update(inout p: f32[N], g: f32[N], lr: f32[]) -> w: bf16[N]:
  c = lr * 2.0
  p[i] = p[i] - g[i] * c * lr
  w[i] = p[i]

schedule update on cpu:
  i -> core / seq(1024) / unroll(2) / vec
"""

NORM = """
op norm(g: f32[N]) -> s: f32[]:
  s = sum i: g[i] * g[i]

schedule norm on cpu:
  i -> core(4096) / unroll(8) / vec
  combine s over i by partials
"""


def lowered(text: str, name: str) -> Kernel:
    module = load_text(text)
    (kernel,) = lower(module.ops[name], module, {"N": N}, detect(), threads=2).kernels
    return kernel


def test_an_update_of_flat_vectors() -> None:
    kernel = lowered(UPDATE, "update")
    found = flat_shares(kernel, 1)
    assert found is not None and not found.fixed
    assert (found.extent, found.reads, found.writes, found.scalars) == (N, {"p", "g"}, {"p", "w"}, {"lr"})
    assert flat_shares(kernel, 0) is None  # the scalar c


def test_partial_sums_go_by_fixed_blocks() -> None:
    kernel = lowered(NORM, "norm")
    assert flat_shares(kernel, 0) == Shares(N, 4096, True, frozenset("g"), frozenset(), frozenset())
    assert flat_shares(kernel, 1) is None


@pytest.mark.parametrize("count", [1, 2, 3, 97, 3126])
def test_shares_are_all_of_it(count: int) -> None:
    shares = Shares(N, 32, False, frozenset(), frozenset(), frozenset())
    starts = [shares.start(j, count) for j in range(count + 1)]
    assert starts[0] == 0 and starts[-1] == N and starts == sorted(starts)
    assert all(s % 32 == 0 for s in starts[:-1])


@pytest.mark.parametrize(
    "equation",
    [
        "p[i] = p[i] - g[(i + 1) % N] * lr",  # another share's gradient
        "p[i] = p[i] - g[N - 1 - i] * lr",
        "p[i] = p[i] - g[i] * g[0] * lr",
    ],
)
def test_what_reads_elsewhere_has_no_plain_shares(equation: str) -> None:
    text = f"""
op update(inout p: f32[N], g: f32[N], lr: f32[]):
  {equation}

schedule update on cpu:
  i -> core / seq(1024) / unroll(2) / vec
"""
    assert flat_shares(lowered(text, "update"), 0) is None


def test_rows_have_no_plain_shares() -> None:
    text = """
op scale(X: f32[N, 4]) -> Y: f32[N, 4]:
  Y[i, j] = X[i, j] * 2.0

schedule scale on cpu:
  i -> core / seq(1024)
  j -> vec
"""
    assert flat_shares(lowered(text, "scale"), 0) is None
