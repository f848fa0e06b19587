"""Sums of narrow results are rounded once, wherever the results are written."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.machine.cpu import detect
from tcomp.model.single import single_op_step
from tcomp.numeric import round_to
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.values import stored, values
from tcomp.runtime.verify import distance
from tcomp.schedule.lower import lower

TEXT = """
op f(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[{shape}]:
  Y[{place}] {assign} sum k: X[m, k] * W[n, k]

schedule f on cpu:
  m -> seq(4)
  k -> seq(8)
"""


@pytest.mark.parametrize(
    ("shape", "place", "assign", "limit"),
    [
        ("M, N", "m, n", "=", 2.0**-9),
        ("2 * M + 1, N", "2 * m + 1, n", "=", 2.0**-9),
        ("M, N", "M - 1 - m, n", "=", 2.0**-9),
        ("M * N", "m * N + n", "=", 2.0**-9),
        ("M + N", "m + n", "+=", 2.0**-7),  # what comes to one element is added in its type
    ],
)
def test_a_sum_over_tiles_is_rounded_once(shape: str, place: str, assign: str, limit: float) -> None:
    module = load_text(TEXT.format(shape=shape, place=place, assign=assign))
    op, dims, machine, random = module.ops["f"], {"M": 5, "N": 3, "K": 400}, detect(), np.random.default_rng(0)
    x = {n: round_to(random.standard_normal((dims[e], 400)), DType.BF16) for n, e in (("X", "M"), ("W", "N"))}
    wanted = evaluate(op, module, x, dims)["Y"]
    executor = CpuExecutor(single_op_step(lower(op, module, dims, machine, threads=1), dims), machine, 1)
    try:
        for name, value in x.items():
            executor.write(name, stored(value, DType.BF16))
        executor.run("run")
        assert distance(values(executor.read("Y"), DType.BF16), wanted) <= limit
    finally:
        executor.close()
