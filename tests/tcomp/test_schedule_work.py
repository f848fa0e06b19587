"""Arithmetic and traffic of kernels, counted by hand."""

from __future__ import annotations

from tcomp.dsl.load import load
from tcomp.grad import backward_of
from tcomp.machine.cpu import CpuMachine
from tcomp.schedule.lower import lower

MACHINE = CpuMachine("avx512", (), 16, 32, 49152, 2 << 20, 32 << 20, 2)


def test_causal_attention_counts_the_pairs_under_the_diagonal() -> None:
    b, t, h, d = 2, 8, 3, 4
    module = load("models/gpt2.tc")
    (kernel,) = lower(module.ops["attention"], module, {"B": b, "T": t, "H": h, "D": d}, MACHINE).kernels
    pairs = b * h * t * (t + 1) // 2
    rows = b * h * t
    # Per pair: d products and sums for the score; its scale and the maximum; one sum for the weights, and for each of
    # the d columns of the output a product and a sum. Per row: d divisions and one addition.
    scale = 1
    assert kernel.flops == pairs * (2 * d + scale + 1 + 1 + 2 * d) + rows * (d + 1)
    assert kernel.traffic == 4 * (b * t * 3 * h * d + b * t * h * d + b * h * t)


def test_a_product_counts_two_operations_a_step_and_each_operand_once() -> None:
    module = load("models/gpt2.tc")
    (kernel,) = lower(module.ops["matmul"], module, {"M": 5, "N": 7, "K": 11}, MACHINE).kernels
    assert kernel.flops == 2 * 5 * 7 * 11
    assert kernel.traffic == 4 * (5 * 11 + 7 * 11 + 5 * 7)


def test_a_gather_reads_the_rows_it_names_and_not_the_table() -> None:
    module = load("models/gpt2.tc")
    dims = {"B": 2, "T": 3, "V": 1000, "S": 10, "C": 4}
    (kernel,) = lower(module.ops["embedding"], module, dims, MACHINE).kernels
    rows = 2 * 3
    assert kernel.traffic == 4 * (rows + rows * 4 + 3 * 4 + rows * 4)
    assert kernel.gathered == ((4 * 4, rows * 4 * 4),), "rows of four values, chosen by tokens"


def test_a_scatter_reads_and_writes_the_rows_it_names() -> None:
    module = load("models/gpt2.tc")
    op = backward_of("embedding", module)
    assert op is not None
    dims = {"B": 2, "T": 3, "V": 1000, "S": 10, "C": 4}
    dwte, dwpe = lower(op, module, dims, MACHINE).kernels
    assert dwte.gathered == ((4 * 4, 2 * 2 * 3 * 4 * 4),) and dwpe.gathered == ()


def test_an_output_that_a_kernel_clears_is_written_whole() -> None:
    module = load("models/gpt2.tc")
    op = backward_of("embedding", module)
    assert op is not None
    dims = {"B": 2, "T": 3, "V": 1000, "S": 10, "C": 4}
    dwte, dwpe = lower(op, module, dims, MACHINE).kernels
    # Read: tokens and dx, or dx; and the rows that are added to.
    assert dwte.traffic == 4 * (2 * 3 + 2 * 3 * 4 + 2 * 3 * 4 + 1000 * 4)
    assert dwpe.traffic == 4 * (2 * 3 * 4 + 3 * 4 + 10 * 4)
