"""The oracle against PyTorch in float64, and the meaning of each construct on small examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.numeric import random_uniform, round_to
from tcomp.oracle import evaluate

Array = NDArray[Any]
GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


def run(text: str, dims: dict[str, int] | None = None, **inputs: Any) -> dict[str, Array]:
    """Evaluate the only op `f` of a text."""
    module = load_text(text)
    return evaluate(module.ops["f"], module, inputs, dims or {})


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape)


def t(x: Array) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x))


# ---------------------------------------------------------------------------------------- the op library


def test_linear_layers_equal_torch(gpt2: Module) -> None:
    dims = {"M": 5, "K": 7, "N": 3}
    x, w, b, r = normal(5, 7), normal(3, 7), normal(3), normal(5, 3)
    plain = F.linear(t(x), t(w), t(b)).numpy()
    assert np.allclose(evaluate(gpt2.ops["matmul"], gpt2, {"X": x, "W": w}, dims)["Y"], x @ w.T, rtol=1e-14, atol=1e-14)
    assert np.allclose(evaluate(gpt2.ops["linear"], gpt2, {"X": x, "W": w, "b": b}, dims)["Y"], plain, rtol=1e-14)
    got = evaluate(gpt2.ops["linear_residual"], gpt2, {"X": x, "W": w, "b": b, "R": r}, dims)["Y"]
    assert np.allclose(got, plain + r, rtol=1e-14, atol=1e-14)
    both = evaluate(gpt2.ops["linear_gelu"], gpt2, {"X": x, "W": w, "b": b}, dims)
    assert np.allclose(both["P"], plain, rtol=1e-14)
    assert np.allclose(both["Y"], F.gelu(t(plain), approximate="tanh").numpy(), rtol=1e-13)


def test_layernorm_equals_torch(gpt2: Module) -> None:
    x, w, b = normal(5, 7), normal(7), normal(7, seed=1)
    got = evaluate(gpt2.ops["layernorm"], gpt2, {"X": x, "w": w, "b": b}, {"M": 5, "C": 7})
    assert np.allclose(got["Y"], F.layer_norm(t(x), (7,), t(w), t(b), 1e-5).numpy(), rtol=1e-12)
    assert np.allclose(got["mean"], x.mean(1))
    assert np.allclose(got["rstd"], 1 / np.sqrt(x.var(1) + 1e-5))


@pytest.mark.parametrize("fold", [False, True], ids=["closed form", "folded"])
def test_attention_equals_torch(gpt2: Module, fold: bool) -> None:
    dims = {"B": 2, "T": 7, "H": 3, "D": 5}
    qkv = normal(2, 7, 3, 3, 5)
    got = evaluate(gpt2.ops["attention"], gpt2, {"QKV": qkv}, dims, fold_monoids=fold)
    q, k, v = t(qkv).permute(2, 0, 3, 1, 4)
    assert np.allclose(
        got["O"], F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).numpy(), rtol=1e-12
    )
    scores = (q @ k.transpose(-1, -2)) * 5**-0.5
    masked = scores.masked_fill(torch.ones(7, 7).triu(1).bool(), -torch.inf)
    assert np.allclose(got["L"], masked.logsumexp(-1).numpy(), rtol=1e-12)


def test_crossentropy_and_mean_equal_torch(gpt2: Module) -> None:
    x, targets = normal(5, 13), np.array([0, 10, 3, 3, 7])
    got = evaluate(gpt2.ops["crossentropy"], gpt2, {"X": x, "targets": targets}, {"M": 5, "P": 13, "V": 11})
    want = F.cross_entropy(t(x[:, :11]), t(targets), reduction="none").numpy()
    assert np.allclose(got["loss"], want, rtol=1e-12)
    assert np.allclose(evaluate(gpt2.ops["mean"], gpt2, {"X": want}, {"M": 5})["y"], want.mean())


def test_embedding_gathers_and_its_backward_adds_repeated_rows(gpt2: Module) -> None:
    dims = {"B": 2, "T": 3, "V": 5, "S": 7, "C": 2}
    tokens, wte, wpe = np.array([[1, 1, 4], [0, 1, 4]]), normal(5, 2), normal(7, 2)
    got = evaluate(gpt2.ops["embedding"], gpt2, {"tokens": tokens, "wte": wte, "wpe": wpe}, dims)["x"]
    assert np.array_equal(got, wte[tokens] + wpe[:3])
    dx = normal(2, 3, 2)
    back = evaluate(gpt2.ops["embedding.backward"], gpt2, {"tokens": tokens, "dx": dx}, dims)
    assert np.allclose(back["dwte"][1], dx[0, 0] + dx[0, 1] + dx[1, 1])
    assert np.array_equal(back["dwte"][[2, 3]], np.zeros((2, 2)))
    assert np.array_equal(back["dwpe"][3:], np.zeros((4, 2))), "rows that nothing wrote are zero"


def test_adamw_changes_its_inout_operands_as_torch_does(gpt2: Module) -> None:
    p = torch.nn.Parameter(t(normal(7)))
    optimizer = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    state: dict[str, Any] = {"p": p.detach().numpy().copy(), "m": np.zeros(7), "v": np.zeros(7)}
    fixed = {"lr": 0.01, "scale": 1.0, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    for step in range(3):
        g = normal(7, seed=step)
        p.grad = t(g)
        optimizer.step()
        state = evaluate(gpt2.ops["adamw"], gpt2, {**state, **fixed, "g": g, "step": step}, {"N": 7})
    np.testing.assert_array_equal(state.pop("w"), state["p"])
    assert sorted(state) == ["m", "p", "v"]
    assert np.allclose(state["p"], p.detach().numpy(), rtol=1e-12)


def test_inputs_are_not_changed(gpt2: Module) -> None:
    p = np.ones(3)
    fixed = {"lr": 1.0, "scale": 1.0, "beta1": 0.0, "beta2": 0.0, "eps": 0.0, "weight_decay": 0.0, "step": 0}
    evaluate(gpt2.ops["adamw"], gpt2, {"p": p, "g": p, "m": p, "v": p, **fixed}, {"N": 3})
    assert np.array_equal(p, np.ones(3))


# ---------------------------------------------------------------------------------------- the language


def test_affine_subscripts_remainder_and_whole_division() -> None:
    got = run(
        "op f(x: f32[2 * N + 1]) -> y: f32[N], z: f32[N]:\n"
        "  y[i] = x[2 * i + 1] - x[2 * i]\n"
        "  z[i] = x[i // 2] + 10 * x[(i + 3) % 4]\n",
        {"N": 3},
        x=np.arange(7.0),
    )
    assert np.array_equal(got["y"], [1, 1, 1])
    assert np.array_equal(got["z"], [0 + 30, 0 + 0, 1 + 10])


def test_a_guard_hides_accesses_outside_the_tensor() -> None:
    text = "op f(x: f32[N], w: f32[3], one: i32[]) -> y: f32[N]:\n  y[i] = sum j{}: x[i + j - one] * w[j]\n"
    got = run(
        text.format(" where i + j >= 1 and i + j <= N"), {"N": 5}, x=np.arange(1.0, 6.0), w=[1.0, 10.0, 100.0], one=1
    )
    assert np.array_equal(got["y"], [210, 321, 432, 543, 54])
    with pytest.raises(TcError, match="outside its extent 5") as caught:
        run(text.format(""), {"N": 5}, x=np.ones(5), w=np.ones(3), one=1)
    assert caught.value.notes == ("the subscript is -1 at i = 0, j = 0",)


def test_select_hides_accesses_and_nan_of_the_other_branch() -> None:
    got = run(
        "op f(x: f32[N]) -> y: f32[N], z: f32[N]:\n"
        "  y[i] = select(i > 0, select(x[i - 1] > 0.0, x[i - 1], -1.0), -1.0)\n"
        "  z[i] = select(x[i] > 0.0, log(x[i]), 0.0) * 2\n",
        {"N": 3},
        x=[-1.0, 1.0, 2.0],
    )
    assert np.array_equal(got["y"], [-1, -1, 1])
    assert np.allclose(got["z"], [0, 0, 2 * np.log(2)])


def test_a_gather_outside_is_an_error_that_says_where() -> None:
    with pytest.raises(TcError, match="'x' is accessed outside its extent 2") as caught:
        run(
            "op f(x: f32[M], ids: i32[N]) -> y: f32[N]:\n  y[i] = x[ids[i]]\n",
            {"M": 2, "N": 3},
            x=[1, 2],
            ids=[0, 5, 1],
        )
    assert caught.value.notes == ("the subscript is 5 at i = 1",)
    assert "y[i] = x[ids[i]]" in str(caught.value)


def test_a_wrong_shape_is_an_error() -> None:
    with pytest.raises(TcError, match=r"'x' has shape \(2,\), not \(3,\)"):
        run("op f(x: f32[N]) -> y: f32[N]:\n  y[i] = x[i]\n", {"N": 3}, x=[1, 2])


def test_reducers_with_guards() -> None:
    text = "op f(x: f32[M, N]) -> a: f32[M], b: f32[M], c: f32[M]:\n"
    text += "".join(
        f"  {n}[m] = {r} n where n <= m: x[m, n]\n" for n, r in zip("abc", ("sum", "max", "min"), strict=True)
    )
    x = np.array([[1.0, 9, 9], [2, -3, 9]])
    got = run(text, {"M": 2, "N": 3}, x=x)
    assert np.array_equal(got["a"], [1, -1])
    assert np.array_equal(got["b"], [1, 2])
    assert np.array_equal(got["c"], [1, -3])


def test_a_sum_repeats_what_does_not_depend_on_its_index() -> None:
    got = run("op f(x: f32[M]; N) -> y: f32[M]:\n  index n: N\n  y[m] = sum n: 2 * x[m]\n", {"M": 2, "N": 5}, x=[1, 2])
    assert np.array_equal(got["y"], [10, 20])


def test_a_guard_drops_infinities_rather_than_multiplying_them_by_zero() -> None:
    got = run("op f(x: f32[N]) -> y: f32[]:\n  y = sum n where x[n] > 0.0: 1 / x[n] * 2\n", {"N": 3}, x=[0.0, 1.0, 2.0])
    assert got["y"] == 3


def test_integers_stay_integers() -> None:
    got = run(
        "op f(a: i32[N]) -> q: i32[N], r: i32[N], s: i32[], h: f32[N]:\n"
        "  q[n] = a[n] // 2\n  r[n] = a[n] % 3\n  s = sum n: a[n]\n  h[n] = a[n] / 2\n",
        {"N": 3},
        a=[-3, 4, 2_000_000_001],
    )
    assert got["q"].dtype == np.int64
    assert list(got["q"]) == [-2, 2, 1_000_000_000]
    assert list(got["r"]) == [0, 1, 0]
    assert got["s"] == 2_000_000_002
    assert list(got["h"]) == [-1.5, 2, 1_000_000_000.5]


def test_accumulating_starts_at_zero_and_in_order() -> None:
    got = run(
        "op f(x: f32[N]; M) -> y: f32[M], z: f32[2, N]:\n  y[i % M] += x[i]\n  z[1, i] = x[i]\n  z[1, i] += y[0]\n",
        {"N": 5, "M": 2},
        x=np.arange(5.0),
    )
    assert np.array_equal(got["y"], [6, 4])
    assert np.array_equal(got["z"], [np.zeros(5), np.arange(5) + 6])


MONOIDS = """
monoid lowsum by m:
  m = min(a.m, b.m)
  x = a.x * exp(m - a.m) + b.x * exp(m - b.m)

monoid welford by n:
  n = a.n + b.n
  x = (a.x * a.n + b.x * b.n) / n

op low(k: f32[M, N], v: f32[N]) -> m: f32[M], l: f32[M], o: f32[M]:
  m[i], l[i], o[i] = lowsum n where n <= i + 1 by k[i, n]: 1, v[n]

op average(w: f32[N], v: f32[N]) -> n: f32[], x: f32[]:
  n, x = welford i by w[i]: v[i]
"""


def test_a_monoid_is_the_fold_of_its_combining_equations() -> None:
    module = load_text(MONOIDS)
    w, v = np.array([1.0, 2, 5]), np.array([3.0, 1, 4])
    got = evaluate(module.ops["average"], module, {"w": w, "v": v}, {"N": 3})
    assert got["n"] == 8
    assert np.isclose(got["x"], (w * v).sum() / 8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5))
def test_the_closed_form_of_a_rescaled_sum_equals_its_fold(seed: int, m: int, n: int) -> None:
    module = load_text(MONOIDS)
    inputs = {"k": 5 * normal(m, n, seed=seed), "v": normal(n, seed=seed)}
    closed = evaluate(module.ops["low"], module, inputs, {"M": m, "N": n})
    folded = evaluate(module.ops["low"], module, inputs, {"M": m, "N": n}, fold_monoids=True)
    for name, value in closed.items():
        assert np.allclose(value, folded[name], rtol=1e-12, atol=1e-14)


# -------------------------------------------------------------------------------- casts, random numbers


@pytest.mark.parametrize(
    ("dtype", "in_torch"),
    [
        (DType.BF16, torch.bfloat16),
        (DType.F16, torch.float16),
        (DType.E4M3, torch.float8_e4m3fn),
        (DType.E5M2, torch.float8_e5m2),
    ],
    ids=str,
)
def test_casts_round_to_nearest_even_as_torch_does(dtype: DType, in_torch: torch.dtype) -> None:
    random = np.random.default_rng(0)
    x = (random.standard_normal(4000) * np.exp(random.uniform(-25, 5, 4000))).astype(np.float32)
    codes = 2 ** (16 if in_torch.itemsize == 2 else 8)
    every = torch.arange(codes, dtype=torch.int32).to(torch.uint8 if codes == 256 else torch.int32)
    every = (every if codes == 256 else every.to(torch.uint16)).view(in_torch).double().numpy()
    every = np.sort(every[np.isfinite(every)])
    between = ((every[1:] + every[:-1]) / 2)[np.diff(every) > 0]  # ties
    tied = between[between.astype(np.float32) == between]
    for values in (x.astype(np.float64), every, tied):
        want = t(values.astype(np.float32)).to(in_torch).double().numpy()
        assert np.array_equal(round_to(values, dtype), want)


def test_too_large_values_saturate_in_eight_bits_and_overflow_in_sixteen() -> None:
    big = np.array([1e9, -1e9])
    assert np.array_equal(round_to(big, DType.E4M3), [448, -448])
    assert np.array_equal(round_to(big, DType.E5M2), [57344, -57344])
    assert np.array_equal(round_to(big, DType.F16), [np.inf, -np.inf])
    assert np.isnan(round_to(np.array([np.nan]), DType.E4M3)).all()


def test_a_cast_rounds_only_where_it_is_written() -> None:
    got = run(
        "op f(x: bf16[N]) -> y: f32[N], z: f32[N], i: i32[N]:\n"
        "  y[n] = x[n]\n  z[n] = bf16(x[n])\n  i[n] = i32(x[n])\n",
        {"N": 2},
        x=[1.001, -2.7],
    )
    assert np.array_equal(got["y"], [1.001, -2.7])
    assert np.array_equal(got["z"], [1.0, -2.703125])
    assert list(got["i"]) == [1, -2]


def test_random_numbers_are_fixed_uniform_and_24_bits() -> None:
    def mix(h: int) -> int:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
            h = (h ^ (h >> shift)) * factor % 2**32
        return h

    counters = np.array([0, 1, 77, -1, 2**31 - 1])
    want = [(mix((mix((5 + 0x9E3779B9) % 2**32) + int(c)) % 2**32) >> 8) / 2**24 for c in counters]
    assert np.array_equal(random_uniform(np.array(5), counters), want)
    many = random_uniform(np.array(3), np.arange(200_000))
    assert many.min() >= 0 and many.max() < 1
    assert np.array_equal(many * 2**24, np.floor(many * 2**24))
    assert np.abs(np.histogram(many, 16, (0, 1))[0] / 200_000 * 16 - 1).max() < 0.03
    assert abs(np.corrcoef(many[1:], many[:-1])[0, 1]) < 0.01
    other = random_uniform(np.array(4), np.arange(200_000))
    assert abs(np.corrcoef(many, other)[0, 1]) < 0.01
