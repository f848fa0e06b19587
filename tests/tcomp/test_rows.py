"""Operands of which only rows are read that another operand chooses."""

from __future__ import annotations

import pytest

from tcomp.dsl.load import load_text
from tcomp.ir.rows import chosen_rows
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import detect
from tcomp.schedule.lower import lower


def lowered(equation: str) -> Kernel:
    text = f"""
op rows(ids: i32[T], E: f32[V, C], P: f32[V, C]) -> x: f32[T, C]:
  require T <= V
  {equation}
"""
    module = load_text(text)
    (kernel,) = lower(module.ops["rows"], module, {"T": 5, "V": 8, "C": 16}, detect(), threads=2).kernels
    return kernel


def test_an_embedding_reads_the_rows_of_its_tokens() -> None:
    kernel = lowered("x[t, c] = E[ids[t], c] + P[t, c]")
    assert chosen_rows(kernel, "E") == "ids"
    assert chosen_rows(kernel, "P") is None
    assert chosen_rows(kernel, "ids") is None
    assert chosen_rows(kernel, "x") is None


@pytest.mark.parametrize("equation", ["x[t, c] = E[ids[t], c] + E[0, c]", "x[t, c] = E[ids[t] // 2, c] + P[t, c]"])
def test_other_rows_are_no_choice_of_the_operand(equation: str) -> None:
    assert chosen_rows(lowered(equation), "E") is None
