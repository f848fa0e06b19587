"""Calls that evaluation's numbers make copies of their operands: what reads them reads these."""

from __future__ import annotations

import pytest

from tcomp.dsl.load import load_text
from tcomp.model.graph import Graph
from tcomp.model.request import StepRequest
from tcomp.model.unroll import graph_of

TEXT = """
import ops.dropout

op scale(X: real[M, N], by: f32[]) -> Y: real[M, N]:
  Y[m, n] = X[m, n] * by

op turned(X: real[M, M], by: f32[]) -> Y: real[M, M]:
  Y[m, n] = X[n, m] * by

op later(X: real[M, N], batch: i32[]) -> Y: real[M, N]:
  Y[m, n] = select(batch < 1, X[m, n], 0.0)

op thinned(X: real[M, N], rate: f32[], batch: i32[]) -> Y: real[M, N]:
  Y[m, n] = select(random(batch, m * N + n) < rate, 0.0, X[m, n])

op total(X: real[M, N]) -> y: f32[]:
  y = sum m, n: X[m, n]

model some(B):
  config one: K = 4
  param w: real[2, K, K] = ones
  input x: real[4, 4]
  forward:
    h = scale(w[1], 3.0)
{forward}
    loss = total(h)
  loss loss
  logits h
"""


def graph(*lines: str, program: str = "forward") -> Graph:
    text = TEXT.replace("{forward}", "\n".join(f"    {line}" for line in lines))
    return graph_of(load_text(text), StepRequest("some", "one", {"B": 2}, programs=(program,)))


@pytest.mark.parametrize(
    ("line", "left_out"),
    [
        ("h = dropout(h, 0.5 * training, 1, batch_number)", True),
        ("h = dropout(h, 0.5, 1, batch_number)", False),
        ("h = dropout_residual(h, h, 0.5 * training, 1, batch_number)", False),
        ("h = thinned(h, 0.5 * training, batch_number)", True),
        ("h = thinned(h, 0.5, batch_number)", False),
        ("h = scale(h, 1.0 + training)", True),
        ("h = scale(h, 0.0)", False),
        ("h = turned(h, 1.0)", False),
        ("h = later(h, batch_number)", False),
        ("h = scale(x, 1.0)", False),
    ],
)
def test_a_copy_by_the_numbers_of_evaluation_is_left_out(line: str, left_out: bool) -> None:
    """A copy of an input or a parameter stays: a result has memory of its own."""
    nodes = [n.op.name for n in graph(line).nodes]
    called = line.partition("(")[0].removeprefix("h = ")
    assert nodes == ["scale", *([] if left_out else [called]), "total"]
    assert [n.op.name for n in graph(line, program="train").nodes] == ["scale", called, "total"]


def test_what_reads_a_part_of_a_copy_reads_it_of_the_original() -> None:
    found = graph(
        "h = dropout(h as [2, 8], 0.1 * training, 1, batch_number)",
        "h = dropout(h, 0.1 * training, 2, batch_number)", "h = scale(h[1] as [2, 4], 2.0)",
    )  # fmt: skip
    first, second, last = found.nodes
    view = second.operands["X"]
    assert (view.tensor, view.offset, view.shape) == (first.operands["Y"].tensor, 8, (2, 4))
    assert found.logits == last.operands["X"] == second.operands["Y"]
