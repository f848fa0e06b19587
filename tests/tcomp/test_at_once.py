"""A call and its backward computed at once: the same numbers, one kernel that reads the logits once, no more memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.nvptx.sync import Planner
from tcomp.dsl.ast import DType, Module
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.storage import bound
from tcomp.grad import backward_of
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import H100
from tcomp.model.build import build_step
from tcomp.model.chunks import in_chunks
from tcomp.model.graph import Node
from tcomp.model.programs import Programs, build_programs
from tcomp.model.request import StepRequest
from tcomp.model.unroll import build_graph
from tcomp.oracle import evaluate
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.verify import distance, random_inputs, verify_op, verify_step
from tcomp.schedule.lower import lower
from tests.test_ops_gpu import run

ROWS = {"M": 7, "P": 600, "V": 571}


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(library() / "gpt2.tc")


def programs(module: Module, apart: bool = False, accumulation: int = 1, **overrides: int) -> Programs:
    graph = build_graph(module, "gpt2", "tiny", {"B": 2, "T": 16}, overrides)
    return build_programs(in_chunks(graph, module), module, accumulation=accumulation, apart=apart)


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [n.op.name for n in nodes]


def test_it_computes_what_the_call_and_its_backward_compute(gpt2: Module) -> None:
    op, call, back = gpt2.ops["crossentropy_at_once"], gpt2.ops["crossentropy"], backward_of("crossentropy", gpt2)
    assert back is not None
    inputs = random_inputs(bound(op, DType.F32), ROWS, np.random.default_rng(0), False)
    forward = evaluate(call, gpt2, {n: inputs[n] for n in ("X", "targets")}, ROWS)
    expected = forward | evaluate(back, gpt2, inputs | forward, ROWS)
    for name, value in evaluate(op, gpt2, inputs, ROWS).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-15)


def test_what_the_incoming_gradient_follows_from_moves_in_front(gpt2: Module) -> None:
    p, apart = programs(gpt2), programs(gpt2, apart=True)
    assert names(p.forward)[-3:] == ["mean.backward", "crossentropy_at_once", "mean"]
    assert names(apart.backward)[:2] == ["mean.backward", "crossentropy.backward"]
    assert names(p.backward) == names(apart.backward)[2:]
    later = programs(gpt2, accumulation=2)
    assert names(later.forward_next) == names(later.forward) and names(later.backward_next) == names(later.backward)


def test_a_gradient_of_slices_moves_with_all_that_makes_it() -> None:
    """The mean of one sequence's losses writes one slice of their gradient; zeros are the rest."""
    text = (library() / "gpt2.tc").read_text().replace("losses, _ = cross", "losses as [B, T], _ = cross")
    text = text.replace("loss = mean(losses)", "loss = mean(losses[1])")
    p = programs(load_text(text, str(library() / "own.tc")))
    assert names(p.forward)[-4:] == ["mean.backward", "gradient.zeros", "crossentropy_at_once", "mean"]


def test_logits_in_chunks_are_not_computed_again(gpt2: Module) -> None:
    """Each part's gradient is used before the next part is made; the first one writes the head's gradient."""
    for p in (programs(gpt2, K=2), programs(gpt2, K=2, accumulation=2)):
        part = ["matmul", "crossentropy_at_once", "matmul.backward"]
        first = names(p.forward)[-8:]
        assert first == [part[0], "mean.backward", *part[1:], part[0], *part[1:], "mean"]
        assert not any(n.startswith("crossentropy") or n == "matmul" for n in names(p.backward))
        writing, adding = [n.op for n in p.forward if n in p.ahead]
        assert [{q.name for q in op.params if q.inout} for op in (writing, adding)] == [set(), {"dW"}]
        for n in p.forward_next:
            assert n not in p.ahead or {q.name for q in n.op.params if q.inout} == {"dW"}


def test_results_that_others_read_stay_apart(gpt2: Module) -> None:
    text = (library() / "gpt2.tc").read_text().replace("losses, _ = cross", "losses, spread = cross")
    text = text.replace("loss = mean(losses)", "loss = mean(losses)\n    other = mean(spread)")
    other = load_text(text, str(library() / "own.tc"))
    assert "crossentropy_at_once" not in names(programs(other).forward)


def test_the_gradient_takes_the_logits_place(gpt2: Module) -> None:
    """The plan of a step is no larger than with two kernels."""
    op = bound(gpt2.ops["crossentropy_at_once"], DType.BF16)
    for machine in (detect(), H100):
        (kernel,) = lower(op, gpt2, ROWS, machine).kernels
        assert ("dX", "X") in kernel.inplace
    sizes = {"B": 2, "T": 16}
    step = build_step(gpt2, StepRequest("gpt2", "tiny", sizes, precision="bf16"), H100)
    text = (library() / "gpt2.tc").read_text().replace(" [at_once(crossentropy_at_once)]", "")
    apart = build_step(
        load_text(text, str(library() / "own.tc")), StepRequest("gpt2", "tiny", sizes, precision="bf16"), H100
    )
    assert step.arena_bytes <= apart.arena_bytes and len(step.programs["micro_first"]) < len(
        apart.programs["micro_first"]
    )


def test_a_blocks_threads_meet_before_a_row_is_overwritten(gpt2: Module) -> None:
    (kernel,) = lower(bound(gpt2.ops["crossentropy_at_once"], DType.BF16), gpt2, ROWS, H100).kernels
    buffers = kernel.buffers
    assert kernel.blocks is not None
    places = [
        Planner(kernel.phases[0], buffers, kernel.gpu.shape, False, pairs).plan(kernel.phases[0]).barriers
        for pairs in (kernel.inplace, ())
    ]
    assert places[1] < places[0]


@pytest.mark.parametrize("real", [DType.F32, DType.BF16], ids=str)
def test_compiled_code_is_the_oracle(real: DType, gpt2: Module, objects: Path) -> None:
    op = bound(gpt2.ops["crossentropy_at_once"], real)
    for found in verify_op(op, gpt2, ROWS, CpuDevice(detect(), 2, objects), seed=1):
        assert found.error <= 2.0**-8, f"{found.what}: {found.error:.1e}"
    inputs = random_inputs(op, ROWS, np.random.default_rng(2), False)
    got = run(op, gpt2, ROWS, inputs)
    for name, value in evaluate(op, gpt2, inputs, ROWS).items():
        assert distance(got[name], value) <= 2.0**-8, name


@pytest.mark.slow
@pytest.mark.parametrize("row", [57600, 115200])
def test_rows_that_a_multiprocessor_has_one_of(row: int, gpt2: Module) -> None:
    op, dims = bound(gpt2.ops["crossentropy_at_once"], DType.BF16), {"M": 2, "P": row, "V": row - 29}
    inputs = random_inputs(op, dims, np.random.default_rng(2), False)
    got = run(op, gpt2, dims, inputs)
    for name, value in evaluate(op, gpt2, inputs, dims).items():
        assert distance(got[name], value) <= 2.0**-8, name


WRONG = """
op wrong_at_once(X: real[M, P], targets: i32[M], dloss: f32[M]; V) -> loss: f32[M], dX: real[M, P]:
  require V <= P
  index v: V
  mx[m], z[m] = expsum v by X[m, v]: 1
  lse[m] = mx[m] + log(z[m])
  loss[m] = lse[m] - X[m, targets[m]]
  dX[m, p] = select(p < V, exp(X[m, p] - lse[m]) * dloss[m], 0.0)
"""


@pytest.mark.slow
def test_a_check_of_the_step_finds_an_op_that_is_not_the_call_and_its_backward(objects: Path) -> None:
    text = (library() / "gpt2.tc").read_text()
    device, sizes = CpuDevice(detect(), 2, objects), {"C": 16, "H": 2, "L": 1, "V": 37, "S": 16}
    for own in (text, text.replace("crossentropy_at_once", "wrong_at_once") + WRONG):
        module = load_text(own, str(library() / "own.tc"))
        step = build_step(module, StepRequest("gpt2", "tiny", {"B": 2, "T": 8}, dims=sizes), device.machine, threads=2)
        executor = device.open(step)
        try:
            initialise(executor, 1, 1)
            worst = max(c.error for c in verify_step(executor, module, sizes) if c.what.startswith("grad."))
        finally:
            executor.close()
        assert worst < 1e-3 if own == text else worst > 0.1
