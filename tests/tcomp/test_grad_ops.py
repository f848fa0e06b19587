"""The derived backward of the op library: its text, its values against torch autograd and hand-written ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tcomp.dsl.ast import Module
from tcomp.dsl.format import print_op
from tcomp.dsl.load import load, load_text
from tcomp.grad import backward_of, derive
from tcomp.grad.check import compare_backward, random_inputs
from tcomp.oracle import evaluate

Array = NDArray[Any]
GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


def equations(module: Module, name: str, *outputs: str) -> list[str]:
    """The printed equations of a derived backward."""
    backward = derive(module.ops[name], module, frozenset(outputs) if outputs else None)
    lines = print_op(backward).splitlines()
    return [line.strip() for line in lines if " = " in line or " += " in line]


# -------------------------------------------------------------------------------------------- the text


def test_linear(gpt2: Module) -> None:
    assert print_op(derive(gpt2.ops["linear"], gpt2)).splitlines() == [
        "backward linear(X: real[M, K], W: real[N, K], dY: real[M, N]) -> dX: real[M, K], dW: real[N, K], db: real[N]:",
        "  dX[m, k] = sum n: dY[m, n] * W[n, k]",
        "  dW[n, k] = sum m: dY[m, n] * X[m, k]",
        "  db[n] = sum m: dY[m, n]",
    ]


def test_the_residual_gradient_is_a_plain_copy(gpt2: Module) -> None:
    assert "dR[m, n] = dY[m, n]" in equations(gpt2, "linear_residual")


def test_the_adjoint_of_an_intermediate_output_is_a_temporary_shared_by_three_gradients(gpt2: Module) -> None:
    first, *rest = equations(gpt2, "linear_gelu", "Y")
    assert first.startswith("dP[m, n] = 0.5 * dY[m, n] * (1.0 + tanh(")
    assert rest == [
        "dX[m, k] = sum n: dP[m, n] * W[n, k]",
        "dW[n, k] = sum m: dP[m, n] * X[m, k]",
        "db[n] = sum m: dP[m, n]",
    ]


def test_where_that_output_has_a_gradient_too_it_is_added(gpt2: Module) -> None:
    first, *rest = equations(gpt2, "linear_gelu")
    assert first.startswith("dP_total[m, n] = dP[m, n] + 0.5 * dY[m, n] * ")
    assert rest[-1] == "db[n] = sum m: dP_total[m, n]"


def test_attention_reads_like_the_flash_backward(gpt2: Module) -> None:
    assert equations(gpt2, "attention", "O") == [
        "qk[b, h, q, k] = sum d: QKV[b, q, 0, h, d] * QKV[b, k, 1, h, d]",
        "g1[b, q, h] = sum e: dO[b, q, h, e] * O[b, q, h, e]",
        "p[b, h, q, k] = select(k <= q, exp(qk[b, h, q, k] * D ** -0.5 - L[b, h, q]), 0.0)",
        "g2[b, h, q, k] = sum e: dO[b, q, h, e] * QKV[b, k, 2, h, e]",
        "dqk[b, h, q, k] = p[b, h, q, k] * (g2[b, h, q, k] - g1[b, q, h]) * D ** -0.5",
        "dQKV[b, k, 2, h, e] = sum q where k <= q: dO[b, q, h, e] * p[b, h, q, k]",
        "dQKV[b, q, 0, h, d] = sum k where k <= q: dqk[b, h, q, k] * QKV[b, k, 1, h, d]",
        "dQKV[b, k, 1, h, d] = sum q where k <= q: dqk[b, h, q, k] * QKV[b, q, 0, h, d]",
    ]


def test_crossentropy_needs_neither_maximum_nor_sum_again(gpt2: Module) -> None:
    assert equations(gpt2, "crossentropy", "loss") == [
        "dX[m, v] = dloss[m] * exp(X[m, v] - lse[m])",
        "dX[m, targets[m]] += -dloss[m]",
    ]


def test_layernorm_drops_the_sum_of_deviations_which_is_zero(gpt2: Module) -> None:
    assert equations(gpt2, "layernorm", "Y") == [
        "g1[m] = sum c: dY[m, c] * w[c]",
        "drstd[m] = sum c: dY[m, c] * w[c] * (X[m, c] - mean[m])",
        "dv[m] = -(0.5 * drstd[m] * rstd[m] * rstd[m] * rstd[m] / C)",
        "dX[m, c] = dY[m, c] * rstd[m] * w[c] + 2.0 * dv[m] * (X[m, c] - mean[m]) - g1[m] * rstd[m] / C",
        "dw[c] = sum m: dY[m, c] * rstd[m] * (X[m, c] - mean[m])",
        "db[c] = sum m: dY[m, c]",
    ]


def test_embedding_scatters(gpt2: Module) -> None:
    assert equations(gpt2, "embedding") == [
        "dwte[tokens[b, t], c] += dx[b, t, c]",
        "dwpe[t, c] = sum b: dx[b, t, c]",
    ]


NAMES = ("matmul", "linear", "linear_gelu", "linear_residual", "layernorm", "attention", "crossentropy", "mean")


@pytest.mark.parametrize("name", [*NAMES, "embedding", "cosine", "global_norm"])
def test_printed_backward_parses_and_checks_to_the_same_op(gpt2: Module, name: str) -> None:
    backward = derive(gpt2.ops[name], gpt2)
    forward = print_op(gpt2.ops[name])
    text = f"import ops.math\n\n{forward}\n{print_op(backward)}"
    assert load_text(text).ops[f"{name}.backward"] == backward


# ------------------------------------------------------------------------------------------ the values

DIMS: dict[str, dict[str, int]] = {
    "matmul": {"M": 5, "K": 7, "N": 3},
    "linear": {"M": 5, "K": 7, "N": 3},
    "linear_gelu": {"M": 5, "K": 7, "N": 3},
    "linear_residual": {"M": 5, "K": 7, "N": 3},
    "layernorm": {"M": 5, "C": 7},
    "attention": {"B": 2, "T": 7, "H": 3, "D": 5},
    "crossentropy": {"M": 5, "P": 13, "V": 11},
    "mean": {"M": 7},
    "embedding": {"B": 3, "T": 5, "V": 7, "C": 2, "S": 6},
}


def in_torch(name: str, x: dict[str, torch.Tensor], dims: dict[str, int]) -> dict[str, torch.Tensor]:
    """The forward op written with torch's own functions."""
    match name:
        case "matmul" | "linear" | "linear_residual":
            return {"Y": F.linear(x["X"], x["W"], x.get("b")) + x.get("R", 0.0)}
        case "linear_gelu":
            p = F.linear(x["X"], x["W"], x["b"])
            return {"P": p, "Y": F.gelu(p, approximate="tanh")}
        case "layernorm":
            rstd = (x["X"].var(-1, unbiased=False) + 1e-5).rsqrt()
            y = F.layer_norm(x["X"], (dims["C"],), x["w"], x["b"], 1e-5)
            return {"Y": y, "mean": x["X"].mean(-1), "rstd": rstd}
        case "attention":
            q, k, v = x["QKV"].permute(2, 0, 3, 1, 4)
            later = torch.ones(dims["T"], dims["T"]).triu(1).bool()
            scores = (q @ k.transpose(-1, -2) * dims["D"] ** -0.5).masked_fill(later, -torch.inf)
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
            return {"O": out, "L": scores.logsumexp(-1)}
        case "crossentropy":
            words = x["X"][:, : dims["V"]]
            return {"loss": F.cross_entropy(words, x["targets"], reduction="none"), "lse": words.logsumexp(-1)}
        case "mean":
            return {"y": x["X"].mean()}
        case "embedding":
            return {"x": F.embedding(x["tokens"], x["wte"]) + x["wpe"][: dims["T"]]}
    raise KeyError(name)


def cases() -> list[tuple[str, str]]:
    every = [(name, "all") for name in DIMS]
    main = {"linear_gelu": "Y", "layernorm": "Y", "attention": "O", "crossentropy": "loss"}
    return every + list(main.items()) + [("linear_gelu", "P"), ("layernorm", "rstd"), ("attention", "L")]


@pytest.mark.parametrize(("name", "which"), cases())
def test_derived_backward_equals_torch_autograd(gpt2: Module, name: str, which: str) -> None:
    op, dims = gpt2.ops[name], DIMS[name]
    given = {o.name for o in op.outputs} if which == "all" else {which}
    backward = derive(op, gpt2, frozenset(given))
    values = random_inputs(op, dims, seed=3)
    leaves = {n: torch.tensor(v, requires_grad=v.dtype.kind == "f") for n, v in values.items()}
    outputs = in_torch(name, leaves, dims)
    random = np.random.default_rng(4)
    d = {n: random.standard_normal(tuple(outputs[n].shape)) for n in sorted(given)}
    floats = [n for n, v in leaves.items() if v.requires_grad]
    want = torch.autograd.grad(
        [outputs[n] for n in d], [leaves[n] for n in floats], [torch.tensor(v) for v in d.values()],
        allow_unused=True,
    )  # fmt: skip
    values |= evaluate(op, gpt2, values, dims) | {f"d{n}": v for n, v in d.items()}
    got = evaluate(backward, gpt2, {p.name: values[p.name] for p in backward.params}, dims)
    assert sorted(got) == sorted(f"d{n}" for n in floats)
    for n, g in zip(floats, want, strict=True):
        wanted = np.zeros(leaves[n].shape) if g is None else g.numpy()
        assert np.allclose(got[f"d{n}"], wanted, rtol=1e-10, atol=1e-12), n


@pytest.mark.parametrize("name", ["embedding", "layernorm", "attention", "crossentropy"])
def test_hand_written_backward_equals_the_derived_one(gpt2: Module, name: str) -> None:
    for dims in (DIMS[name], {**DIMS[name], "T": 1} if "T" in DIMS[name] else DIMS[name], None):
        errors = compare_backward(name, gpt2, dims)
        assert sorted(errors) == sorted(o.name for o in gpt2.ops[f"{name}.backward"].outputs)
        assert max(errors.values()) < 1e-12, errors


def test_a_wrong_hand_written_backward_is_found() -> None:
    module = load_text(
        "op square(x: f32[N]) -> y: f32[N]:\n  y[i] = x[i] * x[i]\n\n"
        "backward square(x: f32[N], dy: f32[N]) -> dx: f32[N]:\n  dx[i] = 1.99 * dy[i] * x[i]\n"
    )
    assert compare_backward("square", module)["dx"] == pytest.approx(0.005)


def test_backward_of_prefers_the_ops_own_and_remembers_what_it_derived(gpt2: Module) -> None:
    assert backward_of("attention", gpt2) is gpt2.ops["attention.backward"]
    first = backward_of("linear_gelu", gpt2, frozenset({"Y"}))
    assert first is backward_of("linear_gelu", gpt2, frozenset({"Y"}))
    assert first != backward_of("linear_gelu", gpt2)
    module = load_text("op count(x: i32[N]) -> y: i32[]:\n  y = sum n: x[n]\n")
    assert backward_of("count", module) is None


def test_scattered_gradients_are_f32_whatever_is_stored(gpt2: Module) -> None:
    derived = derive(gpt2.ops["embedding"], gpt2)
    assert {o.name: o.dtype.value for o in derived.outputs} == {"dwte": "f32", "dwpe": "real"}


def test_a_backward_is_compared_at_several_sizes() -> None:
    """At the first, 3 x 5 x 2 x 7 x 4 x 1, this one would be right."""
    axes, at = "f32[A, B, C, D, E, F]", "[a, b, c, d, e, f]"
    text = f"op last(x: {axes}) -> y: {axes}:\n  y{at} = x{at} * F\n\n"
    text += f"backward last(dy: {axes}) -> dx: {axes}:\n  dx{at} = dy{at}\n"
    assert compare_backward("last", load_text(text))["dx"] > 0.3


def test_a_backward_is_compared_where_its_op_is_finite() -> None:
    """`eps` may be drawn below zero, where there is no root."""
    text = """
op scaled(x: f32[N], eps: f32[]) -> y: f32[N]:
  y[n] = x[n] * sqrt(eps)

backward scaled(eps: f32[], dy: f32[N]) -> dx: f32[N]:
  dx[n] = dy[n] * sqrt(eps)
"""
    module = load_text(text)
    assert all(compare_backward("scaled", module, seed=seed)["dx"] < 1e-12 for seed in range(4))


def test_only_what_must_be_positive_is() -> None:
    """Beside an `eps` that is drawn below zero, x keeps its signs, by which max has two cases."""
    text = """
op gate(x: f32[N], eps: f32[]) -> y: f32[N]:
  y[n] = max(x[n], 0.0) * sqrt(eps)

backward gate(eps: f32[], dy: f32[N]) -> dx: f32[N]:
  dx[n] = dy[n] * sqrt(eps)
"""
    module = load_text(text)
    assert all(compare_backward("gate", module, seed=seed)["dx"] > 0.1 for seed in range(4))
