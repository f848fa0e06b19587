"""8-bit floats that are only moved keep their bytes: no conversion to f32 and back stands between two memories."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.errors import UserError
from tcomp.machine.gpu import H100, machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.schedule.lower import lower
from tests.test_ops_gpu import execute

CAST = """
op cast(X: f32[M, N], s: f32[]) -> R: {t}[M, N], T: {t}[N, M]:
  Q[m, n]: {t} = X[m, n] * s
  R[m, n] = Q[m, n]
  T[n, m] = Q[m, n]

schedule cast on gpu:
  m -> grid.y(64) / warp.y(8) / lane.y(2)
  n -> grid.x(64) / lane.x / vec(8)
  n of T -> warp.y(8) / lane.y(2)
  m of T -> lane.x / vec(8)
"""


@pytest.mark.parametrize("dtype", [DType.E4M3, DType.E5M2], ids=lambda d: d.value)
def test_a_cast_that_is_also_transposed_converts_each_pair_once_for_either_memory(dtype: DType) -> None:
    module = load_text(CAST.format(t=dtype.value), "f.tc")
    dims = {"M": 128, "N": 64}
    lowered = lower(module.ops["cast"], module, dims, H100)
    (kernel,) = lowered.kernels
    ptx = compile_kernel(kernel, H100).ptx
    assert "st.global" in ptx and ptx.count(f"cvt.rn.f16x2.{dtype.value}x2") <= 16  # (what rounding to it leaves)
    transposed = ptx[ptx.index("bar.sync") :] if "bar.sync" in ptx else ptx[ptx.index("barrier") :]
    assert "cvt.rn" not in transposed and "ld.shared" in transposed
    x = np.random.default_rng(0).standard_normal((128, 64)).astype(np.float32) * 9
    x[0, :4] = 0.0, -0.0, 1e9, -1e9
    inputs = {"X": x, "s": np.float32(3.0)}
    found = execute(lowered, module.ops["cast"], inputs)
    wanted = evaluate(module.ops["cast"], module, inputs, dims)
    for name in ("R", "T"):
        exact = values(stored(wanted[name], dtype), dtype)
        np.testing.assert_array_equal(found[name], exact)


def test_a_gpu_without_8_bit_conversions_is_refused_at_the_kernel() -> None:
    module = load_text(CAST.format(t="e4m3"), "f.tc")
    machine = machine_for_target("sm_80")
    (kernel,) = lower(module.ops["cast"], module, {"M": 8, "N": 8}, machine).kernels
    with pytest.raises(UserError, match=r"f\.tc:7:1: kernel 'cast': sm_80 has no fp8\.convert instructions"):
        compile_kernel(kernel, machine)
