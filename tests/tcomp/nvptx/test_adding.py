"""Sums that blocks add to memory at the same time (`combine ... by atomic`): by the copy engine or by threads, in
clusters and not, against the interpreter within what another order of additions may round."""

from __future__ import annotations

import numpy as np
import pytest
from published_attention import attention_text

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.dsl.ast import DType
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower
from tests.tcomp.nvptx.support import Arrays, given, interpreted, launch

RNG = np.random.default_rng(11)
TEXT = """
op f(Q: bf16[N, D], K: bf16[M, D]) -> O: {t}[N, D]:
  O[n, d] = sum m: Q[n, d] * K[m, d]

schedule f on sm_90a:
  m -> grid(32){cluster}
  n -> pipe(16, 2) / warp.y(8) / lane.y(4)
  d -> lane.x / vec(2)
  order m, n
  stage Q in shared at n by tma
  {stage}
  combine O over m by atomic
"""
WITH = "stage O in shared at n by tma"


def added(text: str, dims: dict[str, int]) -> tuple[Kernel, Arrays, Arrays]:
    """The lowered kernel, and its operands before and after: what is added to is zero before."""
    module = load_text(text, "f.tc")
    (kernel,) = lower(module.ops["f"], module, dims, H100, deterministic=False).kernels
    inputs = given(kernel, RNG)
    inputs |= {o.name: np.zeros(o.shape, np.float32) for o in kernel.operands if o.name not in inputs}
    return kernel, inputs, interpreted(kernel, inputs)


@pytest.mark.parametrize(
    "t,stage,how", [("bf16", WITH, "cp.reduce.async.bulk"), ("bf16", "", "red"), ("f32", "", "red")]
)
@pytest.mark.parametrize("cluster,m", [("", 96), (" / cluster(16)", 80)])
def test_many_blocks_add_to_one_tile(t: str, stage: str, how: str, cluster: str, m: int) -> None:
    """In clusters also where the blocks are no whole clusters: one that has no part of the sum adds nothing."""
    kernel, inputs, wanted = added(TEXT.format(t=t, stage=stage, cluster=cluster), {"N": 40, "M": m, "D": 64})
    gpu = compile_kernel(kernel, H100)
    found, _ = launch(kernel, gpu, inputs)
    assert how in gpu.ptx
    scale = 2e-4 if t == "f32" else 2**-8
    np.testing.assert_allclose(found["O"], wanted["O"], rtol=scale, atol=scale)


def test_a_cluster_that_is_not_whole_reads_nothing_that_its_threads_did_not_write() -> None:
    """Its last block leaves out what threads write, and so products may not read that: one message, not garbage."""
    text = attention_text(causal=False).replace("by turns", "by atomic")
    text = text.replace("k -> grid(BK) / warpgroup(64)", "k -> grid(2 * BK) / cluster(BK) / warpgroup(64)")
    module = load_text(text, "attention.tc")
    op = backward_of("attention", module)
    assert op is not None
    kernel = lower(
        bound(op, DType.BF16), module, {"B": 1, "T": 260, "H": 1, "D": 64}, H100, deterministic=False
    ).kernels[-1]
    assert kernel.gpu.cluster is not None
    with pytest.raises(Unsupported, match="no whole clusters, and matrix instructions read 'ds'") as e:
        compile_kernel(kernel, H100)
    assert e.value.hint
