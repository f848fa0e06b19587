"""Results do not depend on the order in which blocks run, bit by bit, but for `combine ... by atomic`.

The virtual GPU runs blocks in other orders for other seeds (`Options.order`), as a GPU may for no reason at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from published_attention import attention_text

from tcomp.autotune import virtual_run
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.gpu import H100
from tcomp.runtime.vgpu import Options
from tcomp.schedule.lower import lower
from tests.reference.op_cases import stored_inputs
from tests.turns import in_turns

ORDERS = range(5)
MACHINE = replace(H100, sms=4)
"""so few multiprocessors that persistent blocks take several tiles"""
PRODUCT = """
op product(S: bf16[M, K], X: bf16[M, N]) -> Y: f32[K, N]:
  Y[k, n] = sum m: S[m, k] * X[m, n]

schedule product on sm_90a:
{schedule}
  combine Y over m by {how}
"""
CORES = """  m -> grid(16)
  k -> seq(16) / lane.y(4)
  n -> lane.x"""
STAGED = (
    CORES
    + """
  order m, k
  stage Y in shared at k by tma"""
)
TENSOR = """  k -> grid.y(128) / warpgroup(64) / mma
  n -> grid.x(64) / mma
  m -> grid.z(128) / pipe(64, 2) / mma
  stage S, X in shared at m by tma
  use wgmma for Y
  producer warp
  persistent"""


def results(op: Op, module: Module, dims: dict[str, int], result: str, orders: Sequence[int] = ORDERS) -> set[bytes]:
    """The bits of a result, or of a sum in memory that it is made from, in several orders."""
    inputs = stored_inputs(op, module, dims)
    lowered = lower(op, module, dims, MACHINE, deterministic=False)
    of_result = replace(op, outputs=(replace(op.outputs[0], name=result),))
    codes = virtual_run.codes_of(lowered, MACHINE)
    found = [
        virtual_run.execute(of_result, lowered, inputs, MACHINE, Options(order=order), codes)[result]
        for order in orders
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-5 * float(np.abs(found[0]).max()))
    return {f.tobytes() for f in found}


@pytest.mark.parametrize(
    "schedule,how,dims",
    [
        (STAGED, "turns", {"M": 56, "K": 16, "N": 32}),
        (CORES, "partials", {"M": 56, "K": 16, "N": 32}),
        (CORES, "atomic", {"M": 56, "K": 16, "N": 32}),
        (TENSOR, "partials", {"M": 600, "K": 128, "N": 128}),
    ],
    ids=["turns", "partials", "atomic", "wgmma partials"],
)
def test_products_whose_sum_is_divided_among_blocks(schedule: str, how: str, dims: dict[str, int]) -> None:
    module = load_text(PRODUCT.format(schedule=schedule, how=how), "f.tc")
    found = results(module.ops["product"], module, dims, "Y")
    assert len(found) > 1 if how == "atomic" else len(found) == 1


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("how,head", [("turns", 128), ("atomic", 64)])
def test_attention_backward_whose_blocks_add_to_dq(how: str, head: int) -> None:
    """dQ as it is summed, in f32: rounded to bf16, most of its differences would not be seen."""
    module = load_text(attention_text(causal=True).replace("by turns", f"by {how}"), "ops/attention.tc")
    op = backward_of("attention", module)
    assert op is not None
    found = results(bound(op, DType.BF16), module, {"B": 1, "T": 400, "H": 1, "D": head}, "dQKV.0.joined", range(3))
    assert len(found) > 1 if how == "atomic" else len(found) == 1
