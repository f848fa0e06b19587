"""The ops of models/ops at awkward shapes: cases, random inputs, and the same in PyTorch, for tests on any device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values

GPT2 = Path(__file__).resolve().parent.parent.parent / "models" / "gpt2.tc"
Arrays = dict[str, np.ndarray]
Dims = dict[str, int]


@dataclass(frozen=True)
class Case:
    """An op at some dimensions. `terms` is the length of its longest sum."""

    op: str
    dims: tuple[tuple[str, int], ...]
    terms: int

    def __str__(self) -> str:
        return self.op + "-" + "x".join(f"{value}{name}" for name, value in self.dims)


def case(op: str, terms: int, **dims: int) -> Case:
    return Case(op, tuple(dims.items()), terms)


# Ones, primes, one below and one above the tiles of the schedules (MR 8, NV 3 vectors, BQ 64, KC 384, ...).
MATRICES = [
    (1, 1, 1),
    (1, 17, 5),
    (13, 1, 29),
    (7, 31, 1),
    (9, 49, 383),
    (61, 193, 97),
    (131, 67, 389),
    (257, 97, 64),
    (517, 199, 23),
]
FEWER = [(7, 31, 1), (1, 17, 5), (517, 199, 389)]
MATRIX_OPS = {
    "linear_gelu": MATRICES,  # the others have its schedules
    **dict.fromkeys(("matmul", "matmul_residual", "linear", "linear_residual"), FEWER),
}
ATTENTION = [(1, 1, 1, 1), (2, 5, 3, 7), (1, 64, 2, 16), (1, 67, 1, 17), (2, 129, 2, 24), (1, 131, 3, 64)]
CASES = [
    *(case(op, max(m, n, k), M=m, N=n, K=k) for op, sizes in MATRIX_OPS.items() for m, n, k in sizes),
    *(case("layernorm", max(m, c), M=m, C=c) for m, c in [(1, 2), (3, 7), (37, 96), (67, 131), (70, 256), (5, 1031)]),
    *(case("attention", max(t, d), B=b, T=t, H=h, D=d) for b, t, h, d in ATTENTION),
    *(
        case("crossentropy", v, M=m, P=p, V=v)
        for m, p, v in [(1, 1, 1), (3, 8, 5), (37, 128, 113), (5, 5003, 5003), (2, 8320, 8209)]
    ),
    *(case("mean", m, M=m) for m in (1, 2, 17, 64, 1031)),
    *(
        case("embedding", b * t, B=b, T=t, V=v, C=c, S=s)
        for b, t, v, c, s in [
            (1, 1, 1, 1, 1),
            (3, 37, 11, 96, 37),
            (2, 128, 211, 67, 141),
            (2, 70, 5, 9, 70),
            (5, 3, 2, 257, 3),
        ]
    ),
    *(case("lookup", b * t, B=b, T=t, V=v, C=c) for b, t, v, c in [(1, 1, 1, 1), (3, 37, 11, 96), (2, 29, 211, 67)]),
    *(case("rmsnorm", max(m, c), M=m, C=c) for m, c in [(1, 1), (3, 7), (37, 96), (67, 131), (5, 1031)]),
    *(case("swiglu", 1, M=m, F=f) for m, f in [(1, 1), (5, 7), (37, 96), (3, 1031)]),
    *(case("rotary_table", 8 * t, T=t, E=e) for t, e in [(1, 1), (131, 19)]),
    *(
        case("rotary", 2, B=b, T=t, H=h, G=g, E=e)
        for b, t, h, g, e in [(1, 1, 1, 1, 1), (2, 5, 6, 2, 3), (1, 67, 4, 1, 8), (3, 7, 3, 3, 17)]
    ),
    *(
        case("grouped_attention", max(r * t, d), B=b, T=t, G=g, R=r, D=d)
        for b, t, g, r, d in [
            (1, 1, 1, 1, 1),
            (2, 5, 2, 3, 7),
            (1, 67, 1, 2, 17),
            (1, 131, 3, 1, 64),
        ]
    ),
]


@cache
def library() -> Module:
    """Every op of models/ops."""
    return load_text("import gpt2\nimport llama\n", str(GPT2.with_name("every_op.tc")))


def stored_inputs(op: Op, module: Module, dims: Dims, real: DType = DType.BF16) -> Arrays:
    """Random operands rounded to the types they are stored in; of a backward op, those of the forward op at `real` and
    what it gives at them."""
    forward = bound(module.ops[op.name.removesuffix(".backward")], real)
    found = random_inputs(forward, dims, seed=5)
    found = {p.name: values(stored(found[p.name], p.dtype), p.dtype) for p in forward.params}
    if op.backward_of is None:
        return found
    found |= {n: np.asarray(a, np.float32) for n, a in evaluate(forward, module, found, dims).items()}
    rng = np.random.default_rng(3)
    for p in op.params:
        a = found[p.name] if p.name in found else rng.standard_normal(operand_shape(p, dims), np.float32)
        found[p.name] = values(stored(a, p.dtype), p.dtype)
    return {p.name: found[p.name] for p in op.params}


SCALARS = {"eps": 1e-5, "theta": 10000.0, "factor": 8.0, "low": 1.0, "high": 4.0, "original": 64.0}


def random_inputs(op: Op, dims: Dims, seed: int) -> Arrays:
    """Values for the op's parameters: normal floats, integers below the dimension that they index."""
    rng = np.random.default_rng(seed)
    values: Arrays = {}
    for p in op.params:
        shape = operand_shape(p, dims)
        if p.dtype is DType.I32:
            values[p.name] = rng.integers(0, dims["V"], shape, dtype=np.int32)
        elif p.name in SCALARS:
            values[p.name] = np.array(SCALARS[p.name], np.float32)
        else:
            values[p.name] = rng.standard_normal(shape, dtype=np.float32)
    return values


def assert_close(got: Mapping[str, np.ndarray], want: Mapping[str, np.ndarray], terms: int, what: str) -> None:
    """Each element within the rounding of a sum of `terms` f32 products of that tensor's magnitude."""
    for name, wanted in want.items():
        scale = max(1.0, float(np.abs(wanted).max(initial=0.0)))
        bound = 2.0**-24 * (32 + terms) * scale
        error = np.abs(got[name].astype(np.float64) - wanted)
        worst = np.unravel_index(int(np.argmax(np.nan_to_num(error, nan=np.inf))), error.shape)
        assert np.isfinite(got[name]).all() and error.max(initial=0.0) <= bound, (
            f"{name}[{', '.join(str(i) for i in worst)}] is {got[name][worst]}, by {what} {wanted[worst]}; "
            f"{int((~(error <= bound)).sum())} of {error.size} elements are off by more than {bound:.1e}"
        )


def torch_linear(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    return {"Y": F.linear(t["X"], t["W"], t.get("b"))}


def torch_matmul_residual(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    return {"Y": t["X"] @ t["W"].T + t["R"]}


def torch_linear_gelu(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    p = F.linear(t["X"], t["W"], t["b"])
    return {"P": p, "Y": F.gelu(p, approximate="tanh")}


def torch_linear_residual(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    return {"Y": F.linear(t["X"], t["W"], t["b"]) + t["R"]}


def torch_layernorm(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    mean = t["X"].mean(-1)
    rstd = (t["X"].var(-1, unbiased=False) + 1e-5).rsqrt()
    return {"Y": F.layer_norm(t["X"], (dims["C"],), t["w"], t["b"], 1e-5), "mean": mean, "rstd": rstd}


def torch_attention(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    q, k, v = t["QKV"].permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) * dims["D"] ** -0.5
    future = torch.ones(dims["T"], dims["T"], dtype=torch.bool).triu(1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return {"O": out.transpose(1, 2), "L": scores.masked_fill(future, -torch.inf).logsumexp(-1)}


def torch_crossentropy(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    words = t["X"][:, : dims["V"]]
    return {"loss": F.cross_entropy(words, t["targets"].long(), reduction="none"), "lse": words.logsumexp(-1)}


def torch_mean(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    return {"y": t["X"].mean()}


def torch_embedding(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    return {"x": F.embedding(t["tokens"].long(), t["wte"]) + t["wpe"][: dims["T"]]}


def torch_lookup(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    return {"x": F.embedding(t["tokens"].long(), t["wte"])}


def torch_rmsnorm(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    rstd = (t["X"].square().mean(-1) + t["eps"]).rsqrt()
    return {"Y": t["X"] * rstd[:, None] * t["w"], "rstd": rstd}


def torch_swiglu(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    gate, up = t["X"].unbind(1)
    return {"Y": F.silu(gate) * up}


def torch_rotary_table(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    w = t["theta"] ** (-torch.arange(dims["E"], dtype=torch.float64) / dims["E"])
    kept = ((t["original"] * w / (2 * torch.pi) - t["low"]) / (t["high"] - t["low"])).clamp(0, 1)
    angles = torch.arange(dims["T"])[:, None] * w * (kept + (1 - kept) / t["factor"])
    return {"cosine": angles.cos(), "sine": angles.sin()}


def torch_rotary(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    h, g = dims["H"], dims["G"]
    q, k, v = t["X"].split([h, g, g], dim=2)
    cosine, sine = (torch.cat([t[n], t[n]], -1)[:, None] for n in ("cosine", "sine"))

    def turned(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return x * cosine + torch.cat([-b, a], -1) * sine

    return {"Q": turned(q), "K": turned(k), "V": v}


def torch_grouped_attention(t: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    q = t["Q"].permute(0, 2, 3, 1, 4)
    k, v = (t[n].permute(0, 2, 1, 3)[:, :, None] for n in ("K", "V"))
    scores = (q @ k.transpose(-1, -2)) * dims["D"] ** -0.5
    scores = scores.masked_fill(torch.ones(dims["T"], dims["T"], dtype=torch.bool).triu(1), -torch.inf)
    return {"O": (scores.softmax(-1) @ v).permute(0, 3, 1, 2, 4), "L": scores.logsumexp(-1)}


IN_TORCH: dict[str, Callable[[Mapping[str, Tensor], Dims], dict[str, Tensor]]] = {
    "matmul": torch_linear,
    "matmul_residual": torch_matmul_residual,
    "linear": torch_linear,
    "linear_gelu": torch_linear_gelu,
    "linear_residual": torch_linear_residual,
    "layernorm": torch_layernorm,
    "attention": torch_attention,
    "crossentropy": torch_crossentropy,
    "mean": torch_mean,
    "embedding": torch_embedding,
    "lookup": torch_lookup,
    "rmsnorm": torch_rmsnorm,
    "swiglu": torch_swiglu,
    "rotary_table": torch_rotary_table,
    "rotary": torch_rotary,
    "grouped_attention": torch_grouped_attention,
}


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Float arrays as float64 leaves that need gradients, integers as they are."""
    return {
        n: torch.from_numpy(a.astype(np.float64)).requires_grad_() if a.dtype.kind == "f" else torch.from_numpy(a)
        for n, a in arrays.items()
    }


def torch_forward(c: Case, inputs: Arrays) -> Arrays:
    outputs = IN_TORCH[c.op](tensors(inputs), dict(c.dims))
    return {name: t.detach().numpy() for name, t in outputs.items()}


def torch_backward(c: Case, backward: Op, given: Arrays, inputs: Arrays) -> Arrays:
    """Gradients of the forward op's `inputs`, for the gradients of its results that are in `given`."""
    forward = library().ops[c.op]
    leaves = tensors(inputs)
    outputs = IN_TORCH[c.op](leaves, dict(c.dims))
    roots = [o.name for o in forward.outputs if f"d{o.name}" in given]
    wanted = [p.name for p in forward.params if backward.operand(f"d{p.name}") in backward.outputs]
    gradients = torch.autograd.grad(
        [outputs[name] for name in roots],
        [leaves[name] for name in wanted],
        [torch.from_numpy(given[f"d{name}"].astype(np.float64)) for name in roots],
    )
    return {f"d{name}": g.detach().numpy() for name, g in zip(wanted, gradients, strict=True)}


def backward_inputs(c: Case, backward: Op, seed: int) -> tuple[Arrays, Arrays]:
    """A backward op's inputs (forward inputs and results that it reads, random gradients of the results),
    and the forward op's own inputs."""
    forward = library().ops[c.op]
    dims = dict(c.dims)
    inputs = random_inputs(forward, dims, seed)
    results = {n: a.astype(np.float32) for n, a in evaluate(forward, library(), inputs, dims).items()}
    known = random_inputs(backward, dims, seed + 1) | results | inputs
    return {p.name: known[p.name] for p in backward.params}, inputs


WEIGHTS = {
    "matmul": {"dW"},
    "linear": {"dW", "db"},
    "linear_gelu": {"dW", "db"},
    "linear_residual": {"dW", "db"},
    "layernorm": {"dw", "db"},
    "embedding": {"dwte", "dwpe"},
    "lookup": {"dwte"},
    "rmsnorm": {"dw"},
    "matmul_residual": {"dW"},
}
"""The gradients that a second micro-batch adds to."""


def scalars(**values: float) -> Arrays:
    return {n: np.array(v, np.int32 if n == "step" else np.float32) for n, v in values.items()}
