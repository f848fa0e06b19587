"""Variants of backward ops: only some results, and results added to what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tcomp.dsl.ast import Module, Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_op
from tcomp.dsl.load import load, load_text
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating, restricted
from tcomp.grad.check import random_inputs, small_dims
from tcomp.oracle import evaluate

Array = NDArray[Any]
GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"
NAMES = ("linear", "linear_gelu", "layernorm", "attention", "embedding", "crossentropy", "mean")


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


def of(name: str, module: Module) -> Op:
    backward = backward_of(name, module)
    assert backward is not None
    return backward


def run(op: Op, module: Module, values: dict[str, Array], dims: dict[str, int]) -> dict[str, Array]:
    return evaluate(op, module, {p.name: values[p.name] for p in op.params}, dims)


def test_the_example_of_the_module(gpt2: Module) -> None:
    backward = of("linear", gpt2)
    assert print_op(restricted(backward, frozenset({"db"}))) == (
        "backward linear(dY: real[M, N]) -> db: real[N]:\n  db[n] = sum m: dY[m, n]\n"
    )
    assert print_op(accumulating(restricted(backward, frozenset({"db"})), frozenset({"db"}))) == (
        "backward linear(dY: real[M, N], inout db: real[N]):\n  db[n] += sum m: dY[m, n]\n"
    )


@pytest.mark.parametrize("name", NAMES)
def test_each_result_alone_is_what_the_whole_op_gives(gpt2: Module, name: str) -> None:
    backward = of(name, gpt2)
    dims = small_dims(gpt2.ops[name])
    values = random_inputs(backward, dims, seed=1)
    whole = run(backward, gpt2, values, dims)
    for output in backward.outputs:
        one = restricted(backward, frozenset({output.name}))
        assert [o.name for o in one.outputs] == [output.name]
        assert len(one.params) <= len(backward.params)
        got = run(one, gpt2, values, dims)
        assert np.array_equal(got[output.name], whole[output.name])


@pytest.mark.parametrize("name", NAMES)
def test_accumulating_adds_the_result(gpt2: Module, name: str) -> None:
    backward = of(name, gpt2)
    dims = small_dims(gpt2.ops[name])
    values = random_inputs(backward, dims, seed=1)
    whole = run(backward, gpt2, values, dims)
    for output in backward.outputs:
        adding = accumulating(backward, frozenset({output.name}))
        assert output.name in [p.name for p in adding.params if p.inout]
        old = random_inputs(adding, dims, seed=2)[output.name]
        got = run(adding, gpt2, {**values, output.name: old}, dims)
        for n, v in got.items():
            assert np.allclose(v, whole[n] + (old if n == output.name else 0), rtol=1e-13, atol=1e-13)


def test_a_dropped_operands_dimension_becomes_a_static_one(gpt2: Module) -> None:
    assert restricted(of("embedding", gpt2), frozenset({"dwpe"})).dims == ("S",)
    both = accumulating(of("embedding", gpt2), frozenset({"dwte", "dwpe"}))
    assert both.dims == (), "the inout operands' shapes give V and S"


def test_a_result_that_is_read_again_is_computed_aside_first() -> None:
    module = load_text("op f(x: f32[N]) -> y: f32[N], z: f32[N]:\n  y[i] = exp(x[i])\n  z[i] = y[i] * y[i]\n")
    adding = accumulating(module.ops["f"], frozenset({"y"}))
    got = evaluate(adding, module, {"x": np.zeros(2), "y": np.array([5.0, 6])}, {"N": 2})
    assert np.array_equal(got["y"], [6, 7])
    assert np.array_equal(got["z"], [1, 1])
    only = restricted(module.ops["f"], frozenset({"z"}))
    assert np.array_equal(evaluate(only, module, {"x": np.zeros(2)}, {"N": 2})["z"], [1, 1])


def test_one_field_of_a_monoid_reduction_can_be_added_alone(gpt2: Module) -> None:
    text = "import ops.math\n\nop f(x: f32[M, N]) -> m: f32[M], l: f32[M]:\n  m[i], l[i] = expsum n by x[i, n]: 1\n"
    module = load_text(text)
    x = np.array([[1.0, 2], [3, 4]])
    plain = evaluate(module.ops["f"], module, {"x": x}, {"M": 2, "N": 2})
    adding = accumulating(module.ops["f"], frozenset({"l"}))
    got = evaluate(adding, module, {"x": x, "l": np.array([10.0, 20])}, {"M": 2, "N": 2})
    assert np.allclose(got["l"], plain["l"] + [10, 20])
    assert np.array_equal(got["m"], plain["m"])


def test_refusals(gpt2: Module) -> None:
    with pytest.raises(TcError, match=r"has no result 'dZ'(.|\n)*it gives: dW, dX, db"):
        restricted(of("linear", gpt2), frozenset({"dZ"}))
    with pytest.raises(TcError, match="has no output 'dZ'"):
        accumulating(of("linear", gpt2), frozenset({"dZ"}))
    module = load_text("op f(x: f32[N]) -> y: f32[N]:\n  y[i] = x[i]\n  y[i] = 2 * x[i]\n")
    with pytest.raises(TcError, match="'y' is assigned twice"):
        accumulating(module.ops["f"], frozenset({"y"}))
