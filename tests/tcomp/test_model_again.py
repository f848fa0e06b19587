"""Forms that compute an op's results again from its others, and which results have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import load, load_text
from tcomp.dsl.printer import print_op
from tcomp.dsl.storage import bound
from tcomp.model.again import again
from tcomp.oracle import evaluate

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"

OPS = """
op parts(X: f32[M, N], c: f32[N]) -> A: f32[M, N], S: f32[M], Y: f32[M, N]:
  A[m, n] = X[m, n] * c[n]
  S[m] = sum n: A[m, n]
  t[m, n] = A[m, n] + S[m]
  Y[m, n] = t[m, n] * t[m, n] + c[n]

op twice(X: f32[M]) -> A: f32[M], Y: f32[M]:
  A[m] = X[m] * 2.0
  A[m] += X[m]
  Y[m] = A[m] + 1.0

op folded(X: f32[M]) -> A: f32[M], Y: f32[M]:
  A[m] = X[m] * 2.0
  t[m] = A[m] * 3.0
  Y[m] = t[m] + 1.0

schedule folded on cpu:
  m -> vec
  inline t
"""


@pytest.fixture(scope="module")
def module() -> Module:
    return load_text(OPS, "ops.tc")


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


def test_a_gelu_is_computed_again_from_what_it_was_applied_to(gpt2: Module) -> None:
    form = again(bound(gpt2.ops["linear_gelu"], DType.F32), frozenset({"Y"}), gpt2)
    assert form is not None
    expected = "op linear_gelu.Y(P: f32[M, N]) -> Y: f32[M, N]:\n  Y[m, n] = gelu(P[m, n])"
    assert print_op(form).split() == expected.split()


def test_all_results_are_computed_again_by_the_op_itself(gpt2: Module) -> None:
    op = gpt2.ops["attention"]
    assert again(op, frozenset({"O", "L"}), gpt2) is op


def test_a_row_is_normalised_again_from_its_mean(gpt2: Module) -> None:
    form = again(bound(gpt2.ops["layernorm"], DType.F32), frozenset({"Y"}), gpt2)
    assert form is not None and [p.name for p in form.params] == ["X", "w", "b", "mean", "rstd"]


def test_what_needs_a_reduction_has_no_form_of_its_own(gpt2: Module) -> None:
    for name, result in (("linear_gelu", "P"), ("attention", "O"), ("layernorm", "mean")):
        assert again(bound(gpt2.ops[name], DType.F32), frozenset({result}), gpt2) is None, name


def test_a_rounded_result_is_read_as_it_was_rounded(gpt2: Module) -> None:
    form = again(bound(gpt2.ops["linear_gelu"], DType.BF16), frozenset({"Y"}), gpt2)
    assert form is not None and [p.dtype for p in form.params] == [DType.BF16]


def test_a_result_that_changes_after_it_is_written_is_not_built_on(module: Module) -> None:
    assert again(module.ops["twice"], frozenset({"Y"}), module) is None


def test_what_a_schedule_inlines_has_no_form_of_its_own(module: Module) -> None:
    assert again(module.ops["folded"], frozenset({"Y"}), module) is None


def test_a_form_means_what_the_op_means(module: Module) -> None:
    op = module.ops["parts"]
    form = again(op, frozenset({"Y"}), module)
    assert form is not None and {p.name for p in form.params} == {"A", "S", "c"}
    rng = np.random.default_rng(0)
    inputs = {"X": rng.normal(size=(3, 5)), "c": rng.normal(size=5)}
    whole = evaluate(op, module, inputs, {"M": 3, "N": 5})
    part = evaluate(form, module, {**inputs, **{n: whole[n] for n in ("A", "S")}}, {"M": 3, "N": 5})
    np.testing.assert_array_equal(part["Y"], whole["Y"])
