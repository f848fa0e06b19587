"""A written backward of which only some results are wanted (an operand needs no gradient; two operands are one tensor,
to whose gradient one result is added after the other) is scheduled by what of its schedule is about them."""

from __future__ import annotations

from textwrap import indent

import pytest

from tcomp.dsl.ast import DType
from tcomp.dsl.infer import dimensions
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.shared_schedules import fitted
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating, restricted
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import A100, H100, GpuMachine
from tcomp.schedule.choose import choice_of
from tcomp.schedule.lower import lower
from tcomp.schedule.refusals import of_results

DIMS = {"M": 32, "N": 48, "K": 64, "H": 4, "C": 64, "B": 1, "T": 32, "G": 2, "R": 2, "D": 16}


@pytest.mark.parametrize("machine", [None, H100], ids=["cpu", "h100"])
@pytest.mark.parametrize(
    ("file", "op"),
    [
        ("fp8", "matmul_residual_fp8"), ("fp8_block", "linear_gelu_fp8_block"), ("layernorm", "layernorm"),
        ("attention", "grouped_attention"),
    ],
)  # fmt: skip
def test_each_result_alone_has_its_schedule(file: str, op: str, machine: GpuMachine | None) -> None:
    module = load(library() / "ops" / f"{file}.tc")
    whole = bound(module.ops[f"{op}.backward"], DType.BF16)
    for result in whole.outputs:
        part = restricted(whole, frozenset({result.name}))
        dims = {n: DIMS[n] for n in dimensions(part)}
        kernels = lower(part, module, dims, machine or detect(), threads=2).kernels
        assert result.name in set().union(*(k.writes for k in kernels))


def test_what_is_added_to_rows_that_tensor_copies_cannot_take_has_another_schedule() -> None:
    module = load(library() / "ops" / "fp8_block.tc")
    op = accumulating(bound(module.ops["matmul_fp8_block.backward"], DType.BF16), frozenset({"dX"}))
    assert lower(op, module, {"M": 13, "N": 32, "K": 33}, H100).kernels


def test_what_was_computed_beside_a_product_that_is_not_wanted_has_another_schedule() -> None:
    """On Hopper a bias gradient is summed in the blocks of dW, of which a frozen weight has none."""
    module = load(library() / "ops" / "linear.tc")
    whole = backward_of("linear", module)
    assert whole is not None
    part = restricted(bound(whole, DType.BF16), frozenset({"dX", "db"}))
    dims = {"M": 1024, "N": 768, "K": 768}
    (refused,) = choice_of(part, module, dims, H100.targets).refused
    assert refused.kind == "results" and refused.schedule.target == "sm_90a" and "of db is that of a" in refused.reason
    assert {n for k in lower(part, module, dims, H100).kernels for n in k.writes} == {"dX", "db"}


GRADIENTS = """op gradients(dY: real[M, N], X: real[M, K]) -> dW: real[N, K], db: real[N], dX: real[M, K]:
  acc[n, k]: f32 = sum m: dY[m, n] * X[m, k]
  dW[n, k] = 2.0 * acc[n, k]
  db[n] = sum m: dY[m, n]
  dX[m, k] = X[m, k]

schedule gradients on sm_80:
"""
PRODUCT = """n -> grid.y(64) / warp.y(64) / mma
k -> grid.x(64) / warp.x(32) / mma
m -> pipe(32, 2) / mma
use mma.sync for acc
"""
PLACES = {
    "in a kernel": ("  kernel dW, db:\n" + indent(PRODUCT, "    "), {"db"}, {"dX"}),
    "beside kernels": (indent(PRODUCT, "  ") + "  kernel dW, db:\n    where M > 0\n", {"db"}, {"dX"}),
    "without kernels": (indent(PRODUCT, "  "), {"db"}, {"dW", "db"}),
}


@pytest.mark.parametrize(("lines", "lost", "kept"), PLACES.values(), ids=PLACES)
def test_a_lost_product_is_known_by_the_sum_that_the_line_names(lines: str, lost: set[str], kept: set[str]) -> None:
    """`use mma.sync for acc`, where dW is made of acc: without dW there is nothing to multiply beside db."""
    module = load_text(GRADIENTS + lines)
    whole = bound(module.ops["gradients"], DType.BF16)
    (written,) = module.schedules.values()
    refused = []
    for results in (lost, kept, {"dW", "db", "dX"}):
        part = restricted(whole, frozenset(results))
        found = of_results(written, fitted(written, part, module), whole)
        refused.append(found.kind if found is not None else "")
    assert refused == ["results", "", ""]


@pytest.mark.parametrize("sum_of", ["dW", "acc"])
def test_a_kernel_beside_that_of_a_product_is_taken_without_it(sum_of: str) -> None:
    """`use` above all kernels is of the one that gives dW, of the sum itself or made of it: dX alone has none to
    lose."""
    text = GRADIENTS
    if sum_of == "dW":
        text = text.replace("acc[n, k]: f32 = sum", "dW[n, k] = sum").replace("  dW[n, k] = 2.0 * acc[n, k]\n", "")
    lines = f"""  use mma.sync for {sum_of}
  kernel dW:
    where M > 0
  kernel db, dX:
    where M > 0
"""
    module = load_text(text + lines)
    whole = bound(module.ops["gradients"], DType.BF16)
    part = restricted(whole, frozenset({"dX"}))
    (written,) = module.schedules.values()
    assert of_results(written, fitted(written, part, module), whole) is None
    dims = {"M": 32, "N": 48, "K": 64}
    assert choice_of(part, module, dims, A100.targets).refused == ()
