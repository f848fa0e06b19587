"""Every op of models/ops, forward and backward, at awkward shapes on the CPU: right values, no stray write.

An op is lowered by its own schedule, compiled, and run by a team of threads over buffers that start as NaN
and are followed by guard bytes. Its results are held against the oracle and against torch autograd, both in
float64, with an error bound that grows with the number of terms summed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tcomp.dsl.ast import Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load_text
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.model.single import single_op_step
from tcomp.oracle import evaluate
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.schedule.lower import lower
from tests.reference import torch_gpt2 as reference
from tests.reference.op_cases import (
    CASES,
    WEIGHTS,
    Arrays,
    Case,
    Dims,
    assert_close,
    backward_inputs,
    library,
    random_inputs,
    scalars,
    torch_backward,
    torch_forward,
)

GUARD = 0x5A5A5A5A


TARGETS = [(detect(), 2)]
if detect().name.startswith("avx512"):
    TARGETS.append((detect("avx2"), 3))


def seconds(cases: list[Case]) -> list[Case]:
    """Every second case of each op, with its last."""
    by_op = {c.op: [other for other in cases if other.op == c.op] for c in cases}
    return [c for own in by_op.values() for c in own[::-1][::2]]


ALIKE = ("matmul", "matmul_residual", "linear")
"""Products by the schedules of `linear_residual` and `linear_gelu`."""
NARROW = [c for c in seconds(CASES) if c.op not in ALIKE or c.terms < 100]
ON_TARGETS = [(c, *target) for target, cases in zip(TARGETS, (CASES, NARROW), strict=False) for c in cases]
"""The same schedules with narrower vectors are asked at every second shape; of products alike, at small ones."""


def shown(value: object) -> str | None:
    return value.name if isinstance(value, CpuMachine) else str(value) if isinstance(value, Case) else None


def run(op: Op, dims: Dims, inputs: Arrays, machine: CpuMachine, threads: int, objects: Path) -> Arrays:
    """The op's outputs and inout parameters, computed twice: both runs must be equal to the last bit."""
    lowered = lower(op, library(), dims, machine, threads=threads)
    executor = CpuExecutor(single_op_step(lowered, dims, guard=256), machine, threads, objects)
    changed = [o.name for o in op.outputs] + [p.name for p in op.params if p.inout]
    try:
        results = []
        for _ in range(2):
            for name, slot in executor.step.slots.items():
                array = executor.array(name)
                if slot.owner == "guard":
                    array[...] = GUARD
                elif name in inputs:
                    array[...] = inputs[name]
                else:
                    array[...] = np.nan if slot.dtype.is_float else -1
            executor.run("run")
            for name, slot in executor.step.slots.items():
                if slot.owner == "guard":
                    assert (executor.array(name) == GUARD).all(), f"{op.name} wrote past {name[6:]}"
                elif name in inputs and name not in changed:
                    np.testing.assert_array_equal(executor.array(name), inputs[name], f"{name} was changed")
            results.append({name: np.array(executor.array(name)) for name in changed})
    finally:
        executor.close()
    for name in changed:
        assert results[0][name].tobytes() == results[1][name].tobytes(), f"{name} differs between two runs"
    return results[0]


# ------------------------------------------------------------------------------------ the same in PyTorch


@pytest.mark.parametrize(("c", "machine", "threads"), ON_TARGETS, ids=shown)
def test_forward(c: Case, machine: CpuMachine, threads: int, objects: Path) -> None:
    op, dims = library().ops[c.op], dict(c.dims)
    inputs = random_inputs(op, dims, seed=11)
    got = run(op, dims, inputs, machine, threads, objects)
    assert_close(got, torch_forward(c, inputs), c.terms, "torch")
    assert_close(got, evaluate(op, library(), inputs, dims), c.terms, "the oracle")


@pytest.mark.parametrize(("c", "machine", "threads"), ON_TARGETS, ids=shown)
def test_backward(c: Case, machine: CpuMachine, threads: int, objects: Path) -> None:
    op, dims = backward_of(c.op, library()), dict(c.dims)
    assert op is not None
    given, inputs = backward_inputs(c, op, seed=12)
    got = run(op, dims, given, machine, threads, objects)
    assert_close(got, evaluate(op, library(), given, dims), c.terms, "the oracle")
    assert_close(got, torch_backward(c, op, given, inputs), c.terms, "torch autograd")


@pytest.mark.parametrize("c", seconds([c for c in CASES if c.op in WEIGHTS]), ids=str)
def test_accumulating_backward_adds_to_what_is_there(c: Case, objects: Path) -> None:
    backward, dims = backward_of(c.op, library()), dict(c.dims)
    assert backward is not None
    op = accumulating(backward, frozenset(WEIGHTS[c.op]))
    given, inputs = backward_inputs(c, backward, seed=13)
    want = torch_backward(c, backward, given, inputs)
    rng = np.random.default_rng(14)
    for name in WEIGHTS[c.op]:
        operand = op.operand(name)
        assert operand is not None and operand.inout
        given[name] = rng.standard_normal(operand_shape(operand, dims), dtype=np.float32)
        want[name] = want[name] + given[name]
    got = run(op, dims, given, detect(), 2, objects)
    assert_close(got, want, c.terms, "torch autograd added to the old value")


SLOPES = """
import ops.math
op gelus(X: f32[N]) -> Y: f32[N]:
  Y[n] = gelu(X[n])
op slopes(X, dY: f32[N]) -> dX: f32[N]:
  dX[n] = dY[n] * gelu_slope(X[n])
"""


@pytest.mark.parametrize("written", [True, False], ids=["written", "derived"])
def test_the_slope_of_gelu_at_any_argument(written: bool, objects: Path) -> None:
    module = load_text(SLOPES)
    op = module.ops["slopes"] if written else backward_of("gelus", module)
    assert op is not None
    x = np.array([0.0, 1e-30, 0.5, 1, 3, 5, 7.9, 8, 8.1, 100, 1e10, 1e13, 1e19, 1e25, 1e36], np.float32)
    x = np.concatenate([x, -x])
    got = run(op, {"N": len(x)}, {"X": x, "dY": np.ones_like(x)}, detect(), 1, objects)["dX"]
    at = torch.tensor(x, dtype=torch.float64).clamp(-50, 50).requires_grad_()
    torch.nn.functional.gelu(at, approximate="tanh").sum().backward()  # type: ignore[no-untyped-call]
    assert at.grad is not None
    np.testing.assert_allclose(got, at.grad.numpy(), rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize(("machine", "threads"), TARGETS, ids=shown)
@pytest.mark.parametrize("step", [0, 9, 10, 11, 55, 99, 100, 1000])
@pytest.mark.parametrize("warmup", [0, 10])
def test_cosine(step: int, warmup: int, machine: CpuMachine, threads: int, objects: Path) -> None:
    hyper = reference.Hyper(peak_lr=1.0, warmup=warmup, total=100, final_lr=0.1)
    inputs = scalars(step=step, peak_lr=1.0, final_lr=0.1, warmup=warmup, total=100)
    got = run(library().ops["cosine"], {}, inputs, machine, threads, objects)
    assert_close(got, {"lr": np.array(reference.learning_rate(step, hyper))}, 1, "the reference")
    assert_close(got, evaluate(library().ops["cosine"], library(), inputs, {}), 1, "the oracle")


@pytest.mark.parametrize(("machine", "threads"), TARGETS, ids=shown)
@pytest.mark.parametrize("n", [1, 7, 127, 65537, 150001])
@pytest.mark.parametrize("clip", [0.0, 1.0, 1e4])
def test_global_norm(n: int, clip: float, machine: CpuMachine, threads: int, objects: Path) -> None:
    op = library().ops["global_norm"]
    inputs = {"g": np.random.default_rng(n).standard_normal(n, dtype=np.float32), **scalars(clip=clip)}
    got = run(op, {"N": n}, inputs, machine, threads, objects)
    norm = np.linalg.norm(inputs["g"].astype(np.float64))
    scale = min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0
    assert abs(got["norm"] / norm - 1) < 1e-5
    assert abs(got["scale"] / scale - 1) < 1e-5


@pytest.mark.parametrize(("machine", "threads"), TARGETS, ids=shown)
@pytest.mark.parametrize("n", [1, 13, 1025, 4099])
@pytest.mark.parametrize("step", [0, 500])
def test_adamw(n: int, step: int, machine: CpuMachine, threads: int, objects: Path) -> None:
    op = library().ops["adamw"]
    rng = np.random.default_rng(n)
    inputs = {name: rng.standard_normal(n, dtype=np.float32) for name in ("p", "g", "m", "v")}
    inputs["v"] = np.abs(inputs["v"]) + np.float32(0.1)
    values = {"lr": 0.01, "scale": 0.7, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    inputs |= scalars(step=step, **values)
    got = run(op, {"N": n}, inputs, machine, threads, objects)
    p, g, m, v = (inputs[name].astype(np.float64) for name in ("p", "g", "m", "v"))
    g = g * 0.7
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
    update = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
    assert_close(got, {"p": p - 0.01 * (update + 0.1 * p), "m": m, "v": v}, 1, "AdamW in float64")
    assert_close(got, evaluate(op, library(), inputs, {"N": n}), 1, "the oracle")
