"""What `tcomp check` compares: sizes, inputs and types of the ops it runs."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest

from tcomp.cli.common import load_module
from tcomp.dsl.ast import DType
from tcomp.dsl.dims import evaluate_dim
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.request import StepRequest
from tcomp.model.single import single_op_step
from tcomp.numeric import round_to
from tcomp.runtime.awkward import awkward_dims
from tcomp.runtime.cpu.executor import CpuExecutor
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.verify import (
    distance,
    fineness,
    oracle_case,
    random_inputs,
    rounding,
    verify_op,
    verify_step,
)
from tcomp.schedule.lower import lower


def test_sizes_of_a_backward_keep_its_forwards_requirements() -> None:
    module = load_module("gpt2")
    forward, backward = module.ops["embedding"], module.ops["embedding.backward"]
    assert forward.requires
    for seed in range(30):
        dims = awkward_dims(backward, module, np.random.default_rng(seed))
        assert dims is not None and all(evaluate_dim(r, dims) for r in forward.requires)


def test_sizes_leave_every_tensor_an_extent() -> None:
    """Where a `require` line says so, and where none does."""
    text = "op f(X: f32[N], w: f32[K]) -> Y: f32[N - K + 1]:\n  Y[n] = sum k: X[n + k] * w[k]\n"
    for more in ("", "  require N >= K\n"):
        op = load_text(text.replace(":\n", ":\n" + more, 1)).ops["f"]
        for seed in range(9):
            dims = awkward_dims(op, load_text(text), np.random.default_rng(seed))
            assert dims is not None and dims["N"] >= dims["K"] - 1


def test_sizes_beside_given_ones_leave_every_tensor_an_extent() -> None:
    module = load_text("op f(X: f32[N], w: f32[K]) -> Y: f32[N - K + 1]:\n  Y[n] = sum k: X[n + k] * w[k]\n")
    for seed in range(9):
        dims = awkward_dims(module.ops["f"], module, np.random.default_rng(seed), given={"N": 3})
        assert dims is not None and dims["N"] == 3 and dims["K"] <= 4
    with pytest.raises(TcError, match="would have an extent of -1"):
        awkward_dims(module.ops["f"], module, np.random.default_rng(0), given={"N": 3, "K": 5})


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16])
def test_a_narrow_op_is_given_what_its_type_can_hold(dtype: DType) -> None:
    module = load_module("ops/embedding")
    op = bound(module.ops["embedding"], dtype)
    assert {o.name: o.dtype for o in op.operands if o.dtype is not DType.I32}.keys() == {"wte", "wpe", "x"}
    assert all(o.dtype in (dtype, DType.I32) for o in op.operands)
    dims = {"B": 2, "T": 3, "V": 5, "C": 7, "S": 3}
    for name, value in random_inputs(op, dims, np.random.default_rng(0), False).items():
        if name in ("wte", "wpe"):
            np.testing.assert_array_equal(value, round_to(value, dtype).astype(np.float32))
            assert len(np.unique(value)) > 10
    assert rounding(op) > 0 == rounding(bound(module.ops["embedding"], DType.F32))


def test_subscripts_of_several_tensors_stay_on_their_axis() -> None:
    """Also in a derived gradient, whose guard stands in the subscript: `dE[select(n < count[b], ids[b, n], 0), c]`."""
    text = "op f(first, ids: i32[T], count: i32[], E: f32[V, C]) -> Y: f32[T, C]:\n"
    text += "  Y[t, c] = select(t < count, E[first[t] + 2 * ids[t], c], 0.0)\n"
    module = load_text(text)
    for op in (module.ops["f"], backward_of("f", module)):
        assert op is not None
        for seed in range(9):
            drawn = random_inputs(op, {"T": 40, "V": 13, "C": 2}, np.random.default_rng(seed), False)
            at = drawn["first"] + 2 * drawn["ids"]
            assert 9 <= at.max() < 13, at


def test_lengths_reach_to_the_end_of_what_they_are_compared_with() -> None:
    text = "op f(X: f32[B, T], lengths: i32[B]; W) -> y: f32[B]:\n"
    text += "  y[b] = sum t where t < lengths[b] and t < W: X[b, t]\n"
    op = load_text(text).ops["f"]
    drawn = random_inputs(op, {"B": 99, "T": 7, "W": 2}, np.random.default_rng(0), False)
    assert set(drawn["lengths"]) == set(range(8))


@pytest.mark.parametrize(
    "last",
    [
        "p[b]: i32 = ends[b]\n  last[b] = X[b, p[b]]",
        "double[b, t] = X[b, t] * 2.0\n  last[b] = double[b, ends[b]]",
        "double[b, t] = X[b, t] * 2.0\n  last[b] = select(double[b, ends[b]] < 0.0, 1.0, 0.0)",
    ],
)
def test_lengths_that_are_also_places_stay_within(last: str) -> None:
    text = f"op f(X: f32[B, T], ends: i32[B]) -> y, last: f32[B]:\n  {last}\n"
    text += "  y[b] = sum t where t < ends[b]: X[b, t]\n"
    drawn = random_inputs(load_text(text).ops["f"], {"B": 99, "T": 7}, np.random.default_rng(0), False)
    assert drawn["ends"].max() < 7


COUNTING = """
import ops.linear
import ops.crossentropy

op sgd(inout p: f32[N], g: f32[N], inout seen: f32[N], rate: f32[]):
  seen[i] = seen[i] + g[i] * g[i]
  p[i] = p[i] - rate * g[i]

model line(B):
  config default: C = 8
  param w: f32[3, C] = normal(1.0) in all
  input x: f32[B, C]
  forward:
    y = matmul(x, w)
    loss = mean(y as [B * 3])
  loss loss
  optimizer sgd:
    group all: rate = 0.1
"""


def test_what_an_optimizer_keeps_is_compared(objects: Path) -> None:
    """A state that a first step's change of parameters does not depend on."""
    step = build_step(load_text(COUNTING), StepRequest("line", "default", {"B": 4}), detect(), 1)
    executor = CpuExecutor(step, detect(), 1, objects)
    other = load_text(COUNTING.replace("+ g[i] * g[i]", "+ abs(g[i])"))
    try:
        for module, wrong in ((load_text(COUNTING), []), (other, ["state.seen.w"])):
            initialise(executor, 1, 1)
            executor.write("state.seen.w", 0.0)
            assert [c.what for c in verify_step(executor, module, {}) if not c.error < 1e-4] == wrong
    finally:
        executor.close()


ROUNDED = """op f(a: bf16[M, N], b: bf16[N]) -> y: f32[M]:
  t[m, n] = a[m, n] * 0.3
  y[m] = sum n: t[m, n] * b[n]

schedule f on cpu:
  cast t to bf16
"""


def test_terms_that_a_schedule_rounds_may_cancel(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of seven terms is so little that their rounding is 3% of it; a kernel is held to the rounded terms,
    so half of that is still seen."""
    from tcomp.runtime import verify

    module, dims, device = load_text(ROUNDED), {"M": 1, "N": 7}, CpuDevice(detect(), 1, objects)
    op = module.ops["f"]
    (found,) = verify_op(op, module, dims, device, 67)
    assert found.error < 1e-5
    inputs, expected = oracle_case(op, module, dims, 67)
    rounded = verify.evaluate(verify.as_cast(op, module, dims, device), module, inputs, dims)
    assert distance(rounded["y"], expected["y"]) > 3 * rounding(op)
    floats = verify.floats
    monkeypatch.setattr(verify, "floats", lambda e, name: floats(e, name) * 0.985)
    (found,) = verify_op(op, module, dims, device, 67)
    assert found.error > rounding(op)


@pytest.mark.parametrize("schedule", ["", "schedule f on cpu:\n  e -> seq(3) / vec\n  fuse m, l, z at e\n"])
def test_a_monoid_of_f64_is_summed_in_f64(schedule: str, tmp_path: Path) -> None:
    """Weights and what partial sums are scaled by, too; keys may be beyond those of f32."""
    text = """
    monoid expsum by m:
      m = max(a.m, b.m)
      x = a.x * exp(a.m - m) + b.x * exp(b.m - m)

    op f(G: f64[M, E], Y: f64[E, N], far: f64[]) -> Z: f64[M, N], top: f64[M]:
      s[i, e] = G[i, e] + far
      m[i], l[i], z[i, n] = expsum e by s[i, e]: 1, Y[e, n]
      Z[i, n] = z[i, n] / l[i]
      top[i] = m[i]
    """
    module = load_text(dedent(text) + schedule)
    op, device = module.ops["f"], CpuDevice(detect(), 1, tmp_path)
    assert fineness(op) < 1 == fineness(bound(load_module("ops/linear").ops["matmul"], DType.F32))
    dims = {"M": 2, "E": 7, "N": 3}
    assert all(c.error < 1e-14 for c in verify_op(op, module, dims, device))
    executor = device.open(single_op_step(lower(op, module, dims, device.machine, threads=1), dims))
    executor.write("G", np.zeros((2, 7)))
    executor.write("Y", np.ones((7, 3)))
    executor.write("far", np.array(-1e300))
    executor.run("run")
    assert (executor.read("top") == -1e300).all() and (executor.read("Z") == 1.0).all()
    executor.close()


def test_sizes_that_a_requirement_says_in_full_are_as_it_says() -> None:
    """Drawn at random they would hardly ever be: an op would go unchecked."""
    module = load_text(
        "op f(X: f32[N, D], y: f32[E, H, G]) -> Z: f32[N, D]:\n"
        "  require N == H + 2 * G and 2 * E == D\n  Z[n, d] = X[n, d]\n"
    )
    for seed in range(9):
        dims = awkward_dims(module.ops["f"], module, np.random.default_rng(seed))
        assert dims is not None and dims["N"] == dims["H"] + 2 * dims["G"] and dims["D"] == 2 * dims["E"]
    given = awkward_dims(module.ops["f"], module, np.random.default_rng(0), given={"D": 14})
    assert given is not None and given["E"] == 7
    chain = load_text(
        "op f(X: f32[D, E, F, G]) -> Z: f32[D]:\n"
        "  require D == 2 * E\n  require E == 2 * F\n  require F == 2 * G\n  Z[d] = X[d, 0, 0, 0]\n"
    )
    assert awkward_dims(chain.ops["f"], chain, np.random.default_rng(0)) is not None


def test_inputs_whose_result_f32_does_not_hold_give_way_to_positive_ones() -> None:
    module = load_text("op f(x: f32[N]) -> y: f32[N]:\n  y[n] = (2.0 * x[n]) ** 400\n")
    inputs, _ = oracle_case(module.ops["f"], module, {"N": 67}, 0)
    assert inputs["x"].min() > 0
