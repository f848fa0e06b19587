"""Schedules that a GPU build could not take: what is said, what counts as a finding, names checked before lowering."""

from __future__ import annotations

import pytest

from tcomp.cli.untaken import schedules
from tcomp.dsl.ast import DType, Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.files import library
from tcomp.dsl.load import load, load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.grad.schedules import check_derived_schedules
from tcomp.machine.gpu import machine_for_target

LINEAR, HOPPER = load(library() / "ops/linear.tc"), machine_for_target("sm_90a")


def linear(dtype: DType, backward: bool = False) -> Op:
    op = backward_of("linear", LINEAR) if backward else LINEAR.ops["linear"]
    assert op is not None
    return bound(op, dtype)


def test_rows_that_the_copy_engine_cannot_read_are_a_finding() -> None:
    dims = {"M": 64, "N": 50257, "K": 768}
    found = schedules(LINEAR, [(linear(DType.BF16, backward=True), dims)], HOPPER)
    assert found.count == 1
    line, remedy = found.lines
    assert "ops/linear.tc:" in line
    assert "warning: linear.backward at M = 64, N = 50257, K = 768 does not take its schedule on sm_90a" in line
    assert "but that on sm_80" in line and "dY of 100514 bytes" in line
    assert remedy == "  help: make N (here 50257) a multiple of 8: 50264"


def test_shapes_that_fit_say_nothing_and_types_are_noted_once() -> None:
    dims = {"M": 64, "N": 64, "K": 64}
    assert schedules(LINEAR, [(linear(DType.BF16), dims)], HOPPER).lines == ()
    plain = [(linear(DType.F32), dims), (linear(DType.F32, backward=True), dims)]
    found = schedules(LINEAR, plain, HOPPER)
    assert found.count == 0
    assert found.lines == (
        "note: wgmma does not multiply f32 by f32 on sm_90a, so other schedules are taken for linear, linear.backward",
    )


def test_a_where_line_is_a_note() -> None:
    module = load(library() / "ops/layernorm.tc")
    found = schedules(module, [(bound(module.ops["layernorm"], DType.BF16), {"M": 8, "C": 4096})], HOPPER)
    assert found.count == 0 and "note: layernorm" in found.lines[0] and "C <= 2048" in found.lines[0]


def test_attention_of_an_odd_length_takes_its_schedule() -> None:
    module = load(library() / "ops/attention.tc")
    ops = [module.ops["attention"], backward_of("attention", module)]
    instances = [(bound(op, DType.BF16), {"B": 1, "T": 67, "H": 2, "D": 64}) for op in ops if op is not None]
    assert schedules(module, instances, HOPPER).lines == ()


SHARED = """op twice(X: f32[N]) -> Y: f32[N]:
  Y[n] = 2.0 * X[n]

op thrice(X: f32[N], W: f32[N]) -> Y: f32[N]:
  Y[n] = W[n] * X[n]

schedule twice.backward, thrice.backward on cpu:
  kernel dX:
    n -> vec
  kernel {name}:
    n -> vec
"""


def test_names_beside_derived_backwards_are_checked_without_lowering() -> None:
    check_derived_schedules(load_text(SHARED.format(name="dW")))  # thrice's alone
    with pytest.raises(TcError) as refused:
        check_derived_schedules(load_text(SHARED.format(name="dWW")))
    assert refused.value.span.line == 10 and refused.value.text
    assert "'dWW'" in refused.value.message and refused.value.hint


def test_all_shipped_schedules_of_derived_backwards_name_what_there_is() -> None:
    for model in ("gpt2", "llama"):
        check_derived_schedules(load(library() / f"{model}.tc"))
