"""Computes in a row that share a test (`threads/runs.py`), sums whose parts are scaled in place, and descriptors
that stay in uniform registers: what the loop of flash attention issues."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pytest
from published_attention import attention_text

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.threads.runs import without_points
from tcomp.dsl.ast import DType, Num
from tcomp.dsl.load import load, load_text
from tcomp.dsl.storage import bound
from tcomp.ir.tile import Compute, Kernel, Loop
from tcomp.ir.walk import statements_in
from tcomp.machine.gpu import H100
from tcomp.schedule.lower import lower

SHAPE = {"B": 1, "T": 1024, "H": 1, "D": 64}
COPIES = 4
"""of a turn's code: the first turn apart from the others, and whole tiles apart from cut ones"""
ROWS, WEIGHTS = 2, 32
"""of a thread: two rows of 64 keys, shared by four lanes"""


@cache
def causal_kernel() -> tuple[Kernel, ...]:
    """Causal attention at GPT-2's shape."""
    module = load("models/ops/attention.tc")
    op = bound(module.ops["attention"], DType.BF16)
    return lower(op, module, SHAPE, H100).kernels


def in_the_loop() -> list[Compute]:
    (kernel,) = causal_kernel()
    (loop,) = (s for phase in kernel.phases for s in statements_in(phase) if isinstance(s, Loop) and s.level == "pipe")
    return [s for s in loop.body if isinstance(s, Compute)]


@cache
def forward() -> str:
    """Its PTX."""
    (kernel,) = causal_kernel()
    return compile_kernel(kernel, H100).ptx


def test_maxima_weights_and_their_sums_stand_in_one_piece_of_code() -> None:
    pieces = re.split(r"^\$L__\w+:", forward(), flags=re.MULTILINE)
    found = [p for p in pieces if p.count("ex2.approx.ftz.f32") == WEIGHTS + ROWS]
    assert len(found) == COPIES
    assert all(p.count("max.f32") >= WEIGHTS and p.count("add.rn.f32") >= WEIGHTS for p in found)


def test_lanes_exchange_maxima_every_turn_and_sums_once() -> None:
    assert forward().count("shfl.sync.bfly.b32") == 2 * ROWS * (COPIES + 1)


def test_maxima_begin_as_the_first_of_their_values() -> None:
    chains = [re.findall(r"max\.f32", p.split("shfl")[0]) for p in re.split(r"ex2\.approx", forward())]
    assert max(len(c) for c in chains) == WEIGHTS - ROWS


@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_weights_are_computed_beside_the_product_of_the_turn_before() -> None:
    """Without a mask there is no branch, behind which the assembler would have to leave the wait."""
    module = load_text(attention_text(causal=False), "ops/attention.tc")
    (kernel,) = lower(bound(module.ops["attention"], DType.BF16), module, SHAPE, H100).kernels
    code = disassemble(assemble(compile_kernel(kernel, H100).ptx, "sm_90a").cubin)
    found = re.findall(r"HGMMA|MUFU\.EX2|DEPBAR\.LE gsb0, 0x[01]", code)
    turn = "".join({"H": "H", "M": "M"}.get(x[0], x[-1]) for x in found)
    assert re.search(r"H{8}1M{34}0", turn), turn  # both products, wait for the first, all weights, wait for the second


@pytest.mark.skipif(cuda_tool("nvdisasm") is None, reason="needs nvdisasm")
def test_descriptors_of_a_ring_stay_in_uniform_registers_beside_the_thread_that_fills_it() -> None:
    lines = [x for x in disassemble(assemble(forward(), "sm_90a").cubin).splitlines() if ";" in x]
    matrix = [i for i, x in enumerate(lines) if "HGMMA" in x]
    assert len(matrix) == 4 + 8 + 4  # the first turn, the loop, the last product
    turn = lines[matrix[4] - 25 : matrix[11]]
    assert sum("R2UR" in x for x in turn) <= 4  # (of 16 that each would take)


def test_where_no_key_counts_weights_are_zero_and_nothing_else_is_done() -> None:
    turn = in_the_loop()
    (maxima,) = (s for s in turn if s.reducer == "max")
    assert maxima.guard is not None
    left = without_points([s for s in turn if not s.instruction], maxima.guard)
    assert left is not None and not any(s.reduced for s, _ in left)  # (neither the maxima nor the sums)
    assert [new.value for _, new in left if new.target.tensor == "m.weight"] == [Num(0.0)]
    assert all(new is s or new == s for s, new in left if s.target.tensor != "m.weight")


def test_a_result_that_begins_under_the_condition_is_not_left_out() -> None:
    (maxima,) = (s for s in in_the_loop() if s.reducer == "max")
    assert maxima.guard is not None
    assert without_points([replace(maxima, accumulate=False)], maxima.guard) is None
