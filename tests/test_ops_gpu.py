"""Every op of models/ops, forward and backward, at awkward shapes on the virtual GPU with all of its checks on.

An op is lowered by its GPU schedule (or the default one), compiled to PTX and run over buffers that start
uninitialised; the checks refuse out-of-bounds and uninitialised reads, races and misaligned accesses. Results are held
against the oracle: f32 like the CPU's, bf16 within the rounding of its stored tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from tcomp.autotune import virtual_run
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.dims import operand_shape
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.grad.accumulate import accumulating
from tcomp.machine.gpu import GpuMachine, machine_for_target
from tcomp.oracle import evaluate
from tcomp.runtime.values import stored, values
from tcomp.runtime.vgpu import Options
from tcomp.schedule.lower import LoweredOp, lower
from tests.reference import torch_gpt2 as reference
from tests.reference.op_cases import (
    CASES,
    WEIGHTS,
    Arrays,
    Case,
    Dims,
    assert_close,
    backward_inputs,
    case,
    library,
    random_inputs,
    scalars,
    torch_backward,
)

H100 = machine_for_target("sm_90a")
LARGEST = 70
"""cases with a larger dimension run with the slow tests"""
SMALL = [
    pytest.param(c, id=str(c), marks=[pytest.mark.slow] if max(n for _, n in c.dims) > LARGEST else [])
    for c in CASES
    if c.op == "crossentropy" or max(n for _, n in c.dims) <= (129 if "attention" in c.op else 260)
]
LONGEST = "grouped_attention-1Bx67Tx1Gx2Rx17D"  # its backward runs with the slow tests; in bf16 it always does
BACKWARD = [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow) if p.id == LONGEST else p for p in SMALL]
TINY = [c for c in CASES if max(n for _, n in c.dims) <= LARGEST]


def execute(
    lowered: LoweredOp, op: Op, inputs: Arrays, machine: GpuMachine = H100, conflicts: float = math.inf,
    codes: Mapping[str, GpuKernel] | None = None,
) -> Arrays:  # fmt: skip
    """The op's results as floats, from a fresh virtual GPU; any finding of its checks fails, and more than `conflicts`
    bank conflicts an access."""
    return virtual_run.execute(op, lowered, inputs, machine, Options(conflicts=conflicts), codes)


def run(op: Op, module: Module, dims: Dims, inputs: Arrays, machine: GpuMachine = H100) -> Arrays:
    return execute(lower(op, module, dims, machine), op, inputs, machine)


@pytest.mark.parametrize("c", SMALL)
def test_forward(c: Case) -> None:
    op, dims = library().ops[c.op], dict(c.dims)
    inputs = random_inputs(op, dims, seed=11)
    assert_close(run(op, library(), dims, inputs), evaluate(op, library(), inputs, dims), c.terms, "the oracle")


@pytest.mark.parametrize("c", BACKWARD)
def test_backward(c: Case) -> None:
    op, dims = backward_of(c.op, library()), dict(c.dims)
    assert op is not None
    given, inputs = backward_inputs(c, op, seed=12)
    got = run(op, library(), dims, given)
    assert_close(got, evaluate(op, library(), given, dims), c.terms, "the oracle")
    assert_close(got, torch_backward(c, op, given, inputs), c.terms, "torch autograd")


@pytest.mark.slow
@pytest.mark.parametrize("c", TINY, ids=str)
def test_default_schedules(c: Case) -> None:
    bare = replace(library(), schedules={})
    for op in (bare.ops[c.op], backward_of(c.op, bare)):
        assert op is not None
        dims = dict(c.dims)
        inputs = random_inputs(op, dims, 11) if op.name == c.op else backward_inputs(c, op, seed=12)[0]
        assert_close(run(op, bare, dims, inputs), evaluate(op, bare, inputs, dims), c.terms, "the oracle")


OTHERS = ["sm_80", *(pytest.param(t, marks=pytest.mark.slow) for t in ("sm_89", "sm_100a")), "sm_120a"]


@pytest.mark.slow
@pytest.mark.parametrize("target", OTHERS)
@pytest.mark.parametrize("name", ["linear_gelu", "attention", "layernorm"])
def test_other_targets(name: str, target: str) -> None:
    c = next(c for c in reversed(TINY) if c.op == name)
    op, dims = library().ops[name], dict(c.dims)
    inputs = random_inputs(op, dims, seed=3)
    got = run(op, library(), dims, inputs, machine_for_target(target))
    assert_close(got, evaluate(op, library(), inputs, dims), c.terms, "the oracle")


@pytest.mark.parametrize("c", [c for c in TINY if c.op in WEIGHTS], ids=str)
def test_accumulating_backward_adds_to_what_is_there(c: Case) -> None:
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
    assert_close(run(op, library(), dims, given), want, c.terms, "torch autograd added to the old value")


# ------------------------------------------------------------------------------------------------------------ bf16

BF16 = [c for c in TINY if c.op != "mean"]


def assert_within_bf16(got: Arrays, want: Arrays, module_op: Op, terms: int) -> None:
    """Within two units in the last place of a bf16, of the element or a sixteenth of the tensor's largest (what is
    computed from a stored bf16, as gelu(P) is, inherits its rounding); f32 results within their sums' rounding. Where
    the schedule rounds the factors of every term for matrix instructions, their errors add up like a random walk."""
    for name, wanted in want.items():
        operand = module_op.operand(name)
        assert operand is not None
        unit = 2.0**-8 if operand.dtype is DType.BF16 else 2.0**-24 * (32 + terms)
        if module_op.name == "linear_gelu.backward" or "attention" in module_op.name:
            unit *= 2 + terms**0.5
        bound = 2 * unit * np.maximum(np.abs(wanted), max(1.0, float(np.abs(wanted).max(initial=0.0))) / 16)
        bound = bound + 2.0**-24 * (32 + terms) * max(1.0, float(np.abs(wanted).max(initial=0.0)))
        error = np.abs(got[name].astype(np.float64) - wanted)
        assert (error <= bound).all(), f"{name}: off by up to {float((error / bound).max()):.1f} times the bound"


@pytest.mark.slow
@pytest.mark.parametrize("c", BF16, ids=str)
def test_bf16_with_f32_sums(c: Case) -> None:
    """Bound to bf16: tensors are stored in bf16; statistics, losses and sums stay f32."""
    dims = dict(c.dims)
    forward, backward = library().ops[c.op], backward_of(c.op, library())
    assert backward is not None
    for op in (bound(forward, DType.BF16), bound(backward, DType.BF16)):
        inputs = random_inputs(op, dims, 5)
        if op.name != c.op:
            inputs |= backward_inputs(c, op, seed=6)[0]
        for p in op.params:
            if p.dtype is DType.BF16:
                inputs[p.name] = values(stored(inputs[p.name], DType.BF16), DType.BF16)
        assert_within_bf16(run(op, library(), dims, inputs), evaluate(op, library(), inputs, dims), op, c.terms)


@pytest.mark.parametrize(
    "name,n",
    [("linear_gelu", 136), *(pytest.param(n, 264, marks=pytest.mark.slow) for n in ("linear", "linear_residual"))],
)
def test_products_in_clusters(name: str, n: int) -> None:
    """Three tiles of rows for clusters of two, on so few multiprocessors that blocks take tile after tile."""
    c = case(name, 320, M=320, N=n, K=72)
    dims, machine = dict(c.dims), replace(H100, sms=4)
    forward, backward = library().ops[name], backward_of(name, library())
    assert backward is not None
    for op in (bound(forward, DType.BF16), bound(backward, DType.BF16)):
        inputs = random_inputs(op, dims, 5)
        if op.name != name:
            inputs |= backward_inputs(c, op, seed=6)[0]
        inputs |= {p.name: values(stored(inputs[p.name], p.dtype), p.dtype) for p in op.params if p.dtype is DType.BF16}
        lowered = lower(op, library(), dims, machine)
        assert any(k.gpu.cluster is not None for k in lowered.kernels)
        got = execute(lowered, op, inputs, machine, conflicts=0)
        assert_within_bf16(got, evaluate(op, library(), inputs, dims), op, c.terms)


# ------------------------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize("step", [0, 10, 55, 100, 1000])
def test_cosine(step: int) -> None:
    hyper = reference.Hyper(peak_lr=1.0, warmup=10, total=100, final_lr=0.1)
    inputs = scalars(step=step, peak_lr=1.0, final_lr=0.1, warmup=10, total=100)
    got = run(library().ops["cosine"], library(), {}, inputs)
    assert_close(got, {"lr": np.array(reference.learning_rate(step, hyper))}, 1, "the reference")


@pytest.mark.parametrize("n", [1, 127, 65537, 150001])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_global_norm(n: int, clip: float) -> None:
    inputs = {"g": np.random.default_rng(n).standard_normal(n, dtype=np.float32), **scalars(clip=clip)}
    got = run(library().ops["global_norm"], library(), {"N": n}, inputs)
    norm = np.linalg.norm(inputs["g"].astype(np.float64))
    assert abs(got["norm"] / norm - 1) < 1e-5
    assert abs(got["scale"] / (min(1.0, clip / (norm + 1e-6)) if clip > 0 else 1.0) - 1) < 1e-5


@pytest.mark.parametrize("n", [1, 1025, 4099])
@pytest.mark.parametrize("step", [0, 500])
def test_adamw(n: int, step: int) -> None:
    op = library().ops["adamw"]
    rng = np.random.default_rng(n)
    inputs = {name: rng.standard_normal(n, dtype=np.float32) for name in ("p", "g", "m", "v")}
    inputs["v"] = np.abs(inputs["v"]) + np.float32(0.1)
    rates = {"lr": 0.01, "scale": 0.7, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
    inputs |= scalars(step=step, **rates)
    assert_close(run(op, library(), {"N": n}, inputs), evaluate(op, library(), inputs, {"N": n}), 1, "the oracle")


def test_atomic_sums_need_leave_and_add_up() -> None:
    module = load_text(
        "op f(ids: i32[M], X: f32[M, N]; V) -> E: f32[V, N], y: f32[N]:\n"
        "  E[ids[m], n] += X[m, n]\n  y[n] = sum m: X[m, n]\n\n"
        "schedule f on gpu:\n  m -> grid(16) / warp.y(1, 4)\n  n -> lane / vec\n  combine E, y over m by atomic\n",
        "f.tc",
    )
    op, dims = module.ops["f"], {"M": 61, "N": 37, "V": 5}
    inputs = random_inputs(op, dims, seed=1)
    got = execute(lower(op, module, dims, H100, deterministic=False), op, inputs)
    assert_close(got, evaluate(op, module, inputs, dims), 61, "the oracle")
    with pytest.raises(Exception, match="depend on the order in which blocks run"):
        lower(op, module, dims, H100)


def test_a_guard_reads_memory_only_where_what_stands_before_holds() -> None:
    text = """
op counted(X: f32[M]) -> n: f32[G]:
  index g: G
  index k: 8
  n[g] = sum k where 8 * g + k < M and abs(X[8 * g + k]) > 0.5: 1.0
"""
    module, dims = load_text(text), {"M": 13, "G": 2}
    op = module.ops["counted"]
    inputs = random_inputs(op, dims, seed=3)
    assert_close(run(op, module, dims, inputs), evaluate(op, module, inputs, dims), 8, "the oracle")


@pytest.mark.parametrize("dtype", ["f32", "bf16", "e4m3", "f64"])
@pytest.mark.parametrize("i", [0, 2])
def test_where_a_guard_is_false_nothing_is_read_that_other_blocks_write(dtype: str, i: int) -> None:
    text = """
op f(X: f32[M, N], i: i32[]) -> Y: DTYPE[M, N], z: f32[M]:
  Y[m, n] = X[m, n]
  z[m] = select(i > 0, f32(Y[m, i]), 0.5)

schedule f on gpu:
  m -> grid(1)
"""
    module = load_text(text.replace("DTYPE", dtype))
    inputs = {"X": np.arange(15, dtype=np.float32).reshape(3, 5), "i": np.array(i, np.int32)}
    found = run(module.ops["f"], module, {"M": 3, "N": 5}, inputs)
    assert (found["z"] == (inputs["X"][:, i] if i > 0 else 0.5)).all()


def test_no_half_of_a_pair_of_values_is_read_before_it_is_written() -> None:
    """One of two neighbours that are stored together is known before the block that computes the other."""
    text = """
op f(X: f32[J, H, H], a: f32[I], n: i32[]) -> Y: f32[J, I, H]:
  index i2: I
  Y[j, i, h] = sum i2 where i2 < n: 0.25 * a[i] - select(h >= 1, X[j, h, h - 1], 0.5)

schedule f on gpu:
  i -> grid(4) / warp.y(3)
  j -> seq(3)
"""
    module, dims = load_text(text), {"I": 8, "J": 3, "H": 2}
    op = module.ops["f"]
    inputs = {**random_inputs(replace(op, params=op.params[:2]), dims, seed=1), "n": np.array(3, np.int32)}
    got = run(op, module, dims, inputs, machine_for_target("sm_100a"))
    assert_close(got, evaluate(op, module, inputs, dims), 8, "the oracle")
