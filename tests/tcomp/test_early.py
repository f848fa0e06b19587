"""An equation of one backward op computed by the op before it: the same numbers, one pass over memory less."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.printer import print_op
from tcomp.grad import backward_of
from tcomp.grad.accumulate import restricted
from tcomp.grad.early import extended, given, pointwise
from tcomp.ir.tile import Kernel, Loop, Statement
from tcomp.ir.walk import instruction_of
from tcomp.machine.cpu import detect
from tcomp.machine.gpu import A100, H100, GpuMachine
from tcomp.model.build import build_step
from tcomp.model.chunks import in_chunks
from tcomp.model.programs import Programs, build_programs
from tcomp.model.request import StepRequest
from tcomp.model.unroll import build_graph
from tcomp.oracle import evaluate
from tcomp.runtime.cuda.device import virtual_device
from tcomp.runtime.device import CpuDevice
from tcomp.runtime.initialise import initialise
from tcomp.runtime.verify import distance, random_inputs, verify_op, verify_step
from tcomp.schedule.lower import lower
from tests.tcomp.graph_interpreter import Memory, run as interpret
from tests.test_ops_gpu import execute
from tests.turns import in_turns

SHIPPED = (library() / "gpt2.tc").read_text()
WITHOUT = SHIPPED.replace(", early(dP, gpu)]", "]")
TWO = """
op product(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

op act(X: f32[M, K], W: f32[N, K]) -> P: f32[M, N], Y: f32[M, N]:
  P[m, n] = sum k: X[m, k] * W[n, k]
  Y[m, n] = P[m, n] * P[m, n] / N

backward act(X: f32[M, K], W: f32[N, K], P: f32[M, N], dY: f32[M, N]) -> dX: f32[M, K], dW: f32[N, K]:
  dP[m, n] = 2.0 * dY[m, n] * P[m, n] / N
  dX[m, k] = sum n: dP[m, n] * W[n, k]
  dW[n, k] = sum m: dP[m, n] * X[m, k]
"""
CHANGED = """\
backward product(X: f32[M, K], W: f32[N, K], dY: f32[M, N], P: f32[M, K]) -> dX: f32[M, K], dW: f32[N, K]:
  dX_sum[m, k] = sum n: dY[m, n] * W[n, k]
  dW[n, k] = sum m: dY[m, n] * X[m, k]
  dX[m, k] = 2.0 * dX_sum[m, k] * P[m, k] / K

backward act(X: f32[M, K], W: f32[N, K], dP: f32[M, N]) -> dX: f32[M, K], dW: f32[N, K]:
  dX[m, k] = sum n: dP[m, n] * W[n, k]
  dW[n, k] = sum m: dP[m, n] * X[m, k]
"""
MODEL = """
model m(B):
  config c: C = 6, H = 10, D = 4
  param up: f32[H, C] = normal(0.5)
  param down: f32[D, H] = normal(0.5)
  input x: f32[B, C]
  forward:
    _, u = act(x, up) [early(dP)]
    y = product(u, down)
    loss = mean(y as [B * D])
  loss loss
"""


@pytest.fixture(scope="module")
def gpt2() -> Module:
    """The shipped model, which has the annotation."""
    assert SHIPPED != WITHOUT
    return load(library() / "gpt2.tc")


def programs(module: Module, target: str = "gpu", apart: bool = False, model: str = "m", **sizes: int) -> Programs:
    graph = build_graph(module, model, next(iter(module.models[model].configs)).name, sizes or {"B": 5})
    return build_programs(in_chunks(graph, module), module, apart=apart, targets=(target,))


def own(text: str = MODEL, ops: str = TWO) -> Module:
    return load_text(f"import ops.crossentropy\n{ops}{text}", str(library() / "own.tc"))


def gradients(p: Programs, module: Module) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    memory = Memory({q.tensor: random.standard_normal(q.tensor.shape) for q in p.graph.parameters})
    for t in p.graph.inputs.values():
        memory.write(t.whole(), random.standard_normal(t.shape))
    memory.write(p.seed.whole(), np.array(1.0))
    interpret((*p.forward, *p.backward), module, memory)
    return {t.name: memory.read(g.whole()) for t, g in p.gradients.items()}


def same_gradients(module: Module) -> Programs:
    """The programs with the equation moved, whose gradients are those without."""
    early, apart = programs(module), programs(module, apart=True)
    for (name, got), want in zip(gradients(early, module).items(), gradients(apart, module).values(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, err_msg=name)
    return early


def test_two_ops_change_as_their_text_says() -> None:
    module = own()
    first, second = backward_of("product", module), backward_of("act", module)
    assert first is not None and second is not None
    p = pointwise(second, "dP", ["dY"])
    form, names = extended(first, "dX", p, second, {"M": 5, "K": 6, "N": 10})
    assert "\n".join(print_op(op) for op in (form, given(second, p))) == CHANGED and names == {"P": "P"}


def test_a_gradient_is_the_same_and_one_tensor_is_less() -> None:
    module = own()
    early, apart = same_gradients(module), programs(module, apart=True)
    assert [n.op.name for n in early.backward] == [n.op.name for n in apart.backward]
    first, second = early.backward[1:]
    assert first.operands["dX"] == second.operands["dP"] and first.operands["P"].tensor.name == "act.P"
    assert "P" not in second.operands and "dY" not in second.operands


def test_a_name_that_the_other_op_has_is_another_there() -> None:
    product, act = TWO.split("op act")
    clash = product.replace("X", "P") + "op act" + act
    first = same_gradients(own(ops=clash)).backward[1]
    assert {"P", "P_2"} <= set(first.operands)


def test_targets_choose_and_other_precisions_replace_the_op(gpt2: Module) -> None:
    def readers(target: str, precision: str = "f32") -> list[Op]:
        graph = build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 16}, {"L": 2}, precision)
        p = build_programs(graph, gpt2, targets=(target,))
        return [n.op for n in p.backward if n.op.name.startswith("linear_gelu")]

    for precision in ("f32", "bf16"):
        assert [op.operand("dP") is not None for op in readers("gpu", precision)] == [True, True]
        assert [op.operand("dP") is not None for op in readers("cpu", precision)] == [False, False]
    for precision in ("fp8", "fp8_block"):
        assert all(op.operand("dY") is not None for op in readers("gpu", precision))


def test_values_computed_again_are_there_in_time() -> None:
    """Where only the moved equation reads them, they are computed before the op that it moves to."""
    ops = """
op double(X: f32[M, N]) -> Y: f32[M, N]:
  Y[m, n] = 2.0 * X[m, n]

op gate(X: f32[M, N], A: f32[M, N]) -> Y: f32[M, N]:
  Y[m, n] = X[m, n] * A[m, n]

backward gate(X: f32[M, N], A: f32[M, N], dY: f32[M, N]) -> dX: f32[M, N]:
  t[m, n] = dY[m, n] * A[m, n]
  dX[m, n] = t[m, n]
"""
    text = MODEL.replace("_, u = act(x, up) [early(dP)]", "_, h = act(x, up)\n    a = double(c) [recompute]")
    text = text.replace("y = product(u", "u = gate(h, a) [early(t)]\n    y = product(u")
    text = text.replace("  input x: f32[B, C]\n", "  input x: f32[B, C]\n  input c: f32[B, H]\n")
    early = same_gradients(own(text, TWO + ops))
    names = [n.label.split()[0] + " (again)" * ("again" in n.label) for n in early.backward]
    assert names == ["mean.backward", "double (again)", "product.backward", "gate.backward", "act.backward"]


SUMMED = "  dP[m, n] = 2.0 * dY[m, n] * P[m, n] / N\n"
REFUSED = {
    "no temporary": ("early(dP)", "early(dQ)", "'act.backward' has no temporary 'dQ' (its temporaries: dP)"),
    "a result": ("early(dP)", "early(dX)", "'act.backward' has no temporary 'dX' (its temporaries: dP)"),
    "a sum": (SUMMED, SUMMED.replace("= ", "= sum j: ").replace("n] * P[m, n]", "j] * P[m, n]"), "is not one equation"),
    "another point": (
        SUMMED,
        SUMMED.replace("dY[m, n]", "dY[m, N - 1 - n]"),
        "'dP' of 'act.backward' reads 'dY' at another point than it writes",
    ),
    "read again": (
        "dW[n, k] = sum m: dP[m, n] * X[m, k]",
        "dW[n, k] = sum m: (dP[m, n] + dY[m, n]) * X[m, k]",
        "'act.backward' reads 'dY' in other equations too",
    ),
    "temporaries": (
        SUMMED,
        "  a[m, n] = P[m, n]\n" + SUMMED.replace("P[m, n] / N", "a[m, n] / N"),
        "'dP' of 'act.backward' reads the temporary 'a'",
    ),
    "read by two": (
        "    loss = mean(y as [B * D])",
        "    z = product(u, down)\n    loss = mean2(y as [B * D], z as [B * D])",
        "'grad.u' is used by product.backward",
    ),
    "another shape": (
        "y = product(u, down)\n    loss = mean(y as [B * D])",
        "y = product(u as [2 * B, H // 2], half)\n    loss = mean(y as [2 * B * D])",
        "'grad.u' has another shape where 'product.backward' makes it",
    ),
}
HALF = "  param half: f32[D, H // 2] = normal(0.5)\n"
MEAN2 = """
op mean2(x: f32[N], y: f32[N]) -> s: f32[]:
  s = sum n: x[n] + y[n]
"""


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_move_is_refused_where_it_is_asked_for(name: str) -> None:
    old, new, message = REFUSED[name]
    text = f"{TWO}{MEAN2}{MODEL}".replace("  param down", HALF + "  param down")
    assert text.count(old) == 1
    module = load_text(f"import ops.crossentropy\n{text.replace(old, new)}", str(library() / "own.tc"))
    with pytest.raises(TcError) as e:
        programs(module)
    assert message in e.value.message and e.value.message.startswith("'d"), e.value.message
    assert "early(" in e.value.text.splitlines()[e.value.span.line - 1] and e.value.hint
    assert programs(module, apart=True).backward


@pytest.mark.parametrize("annotation", ["early", "early(3)", "early(dP, gpus)", "early(dP, 3)"])
def test_an_annotation_that_says_nothing_is_refused(annotation: str) -> None:
    with pytest.raises(TcError) as e:
        own(MODEL.replace("early(dP)", annotation))
    assert "early" in e.value.message and e.value.hint


def forms(module: Module, precision: str) -> tuple[Op, Op]:
    """The two ops that the shipped model's annotation changes, without what else they give."""
    graph = build_graph(module, "gpt2", "tiny", {"B": 2, "T": 16}, {"L": 1}, precision)
    p = build_programs(graph, module, targets=("gpu",))
    first = next(n.op for n in p.backward if n.op.operand("P") is not None)
    second = next(n.op for n in p.backward if n.op.name == "linear_gelu.backward")
    return first, second


@pytest.mark.parametrize(
    ("precision", "machine", "dims"),
    [
        ("f32", H100, {"M": 70, "N": 33, "K": 67}),
        ("bf16", H100, {"M": 70, "N": 33, "K": 131}),
        ("bf16", A100, {"M": 200, "N": 72, "K": 152}),
        ("bf16", H100, {"M": 200, "N": 72, "K": 152}),
        ("bf16", replace(H100, sms=2), {"M": 392, "N": 136, "K": 256}),
        pytest.param("bf16", replace(H100, sms=2), {"M": 512, "N": 192, "K": 384}, marks=pytest.mark.slow),
        ("bf16", replace(H100, sms=2), {"M": 130, "N": 64, "K": 128}),
        ("bf16", H100, {"M": 1, "N": 8, "K": 8}),
    ],
    ids=["f32", "odd", "a100", "h100", "two sides", "wide", "short", "tiny"],
)
def test_gpus_give_what_the_oracle_gives(
    precision: str, machine: GpuMachine, dims: dict[str, int], gpt2: Module
) -> None:
    op = restricted(forms(gpt2, precision)[0], frozenset({"dX"}))
    inputs = random_inputs(op, dims, np.random.default_rng(1), False)
    lowered = lower(op, gpt2, dims, machine)
    (kernel,) = lowered.kernels
    assert {b.name for b in kernel.operands} == {"dX", "dY", "W", "P"}, "nothing else is in memory"
    if precision == "bf16" and dims["K"] % 8 == 0:
        assert instruction_of(kernel) == ("wgmma" if machine.target == "sm_90a" else "mma.sync")
        assert kernel.gpu.sides == (2 if dims["K"] >= 256 else 1)
        assert kernel.gpu.sides == 1 or tile_of(kernel)[0] == (192 if dims["K"] == 384 else 128)
    got = execute(lowered, op, inputs, machine)
    error = distance(got["dX"], evaluate(op, gpt2, inputs, dims)["dX"])
    assert error < (2.0**-8 if precision == "bf16" else 1e-6)


@pytest.mark.parametrize("real", [DType.F32, DType.BF16], ids=str)
def test_cpus_give_what_the_oracle_gives(real: DType, gpt2: Module, objects: Path) -> None:
    for op in forms(gpt2, "bf16" if real is DType.BF16 else "f32"):
        for found in verify_op(op, gpt2, {"M": 37, "N": 19, "K": 67}, CpuDevice(detect(), 2, objects), seed=1):
            assert found.error <= (2.0**-7 if real is DType.BF16 else 1e-5), f"{found.what}: {found.error:.1e}"


@pytest.mark.parametrize(
    ("machine", "columns", "tile"),
    [(H100, 3072, (192, 32, 6)), (H100, 4096, (128, 64, 5)), (A100, 3072, (128, 32, 4))],
    ids=["h100", "h100, other columns", "a100"],
)
def test_no_register_is_spilled_at_the_shipped_sizes(
    machine: GpuMachine, columns: int, tile: tuple[int, int, int], gpt2: Module
) -> None:
    op = restricted(forms(gpt2, "bf16")[0], frozenset({"dX"}))
    (kernel,) = lower(op, gpt2, {"M": 16384, "N": 768, "K": columns}, machine).kernels
    assert tile_of(kernel) == tile
    assembled = assemble(compile_kernel(kernel, machine).ptx, machine.target)
    assert not assembled.findings and not any(r.spills for r in assembled.resources)


def tile_of(kernel: Kernel) -> tuple[int, int, int]:
    """Columns of a tile, and depth and number of the stages that its operands come by."""
    loops = list(loops_in(kernel.phases[0]))
    pipe = next(x for x in loops if x.level == "pipe")
    return next(x.step for x in loops if x.variable == "k.0"), pipe.step, pipe.stages


def loops_in(statements: Iterable[Statement]) -> Iterator[Loop]:
    for s in statements:
        if isinstance(s, Loop):
            yield s
            yield from loops_in(s.body)


def test_a_step_has_fewer_launches_and_no_larger_plan(gpt2: Module) -> None:
    apart = load_text(WITHOUT, str(library() / "own.tc"))
    early, other = (
        build_step(m, StepRequest("gpt2", "tiny", {"B": 4, "T": 64}, precision="bf16"), H100) for m in (gpt2, apart)
    )
    assert early.arena_bytes <= other.arena_bytes
    assert len(early.programs["micro_first"]) == len(other.programs["micro_first"]) - early.dims["L"]


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "accumulation", "layers"), [("f32", 1, 1), ("bf16", 2, 2), ("fp8", 2, 1)])
def test_a_whole_step_is_the_oracles(
    precision: str, accumulation: int, layers: int, gpt2: Module, objects: Path
) -> None:
    """On the virtual GPU, whose op computes GELU's derivative, beside both ops apart; `early` and not in 8 bits."""
    device, sizes = virtual_device("h100", objects, True), {"C": 32, "H": 2, "L": layers, "V": 37, "S": 16}
    step = build_step(
        gpt2,
        StepRequest("gpt2", "tiny", {"B": 1, "T": 16}, dims=sizes, precision=precision, accumulation=accumulation),
        device.machine,
    )
    product = step.kernels.get("linear_residual.backward.dX")
    assert precision == "fp8" or (product is not None and any(b.name == "P" for b in product.operands))
    executor = device.open(step)
    try:
        initialise(executor, 1, 1)
        worst = max(c.error for c in verify_step(executor, gpt2, sizes) if c.what.startswith("grad."))
    finally:
        executor.close()
    device.finish()
    assert worst < {"f32": 1e-5, "bf16": 0.02, "fp8": 0.1}[precision]
