"""Operands that are quantised where they are made: the same step, one pass over memory less for each."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import A100, H100, GpuMachine
from tcomp.model.graph import Node
from tcomp.model.programs import Programs, build_programs
from tcomp.model.unroll import build_graph
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.tcomp.graph_interpreter import Memory, run as interpret
from tests.test_fp8_tensor_cores import inputs_of
from tests.test_ops_gpu import execute

SHIPPED = (library() / "gpt2.tc").read_text()
PLACE = "quantised(layernorm_cast_fp8, linear_given_fp8, sm_90a)"
OPS = ("layernorm_cast_fp8", "linear_given_fp8", "linear_gelu_given_fp8")
DIMS = {"M": 200, "N": 112, "K": 272, "C": 272, "H": 16}
"""M is whole tiles of neither kernel"""
GPT2 = {"M": 16384, "N": 2304, "K": 768, "C": 768, "H": 16}


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(library() / "gpt2.tc")


def programs(module: Module, machine: GpuMachine = H100, apart: bool = False, precision: str = "fp8") -> Programs:
    graph = build_graph(module, "gpt2", "tiny", {"B": 2, "T": 8}, {"L": 2, "V": 40}, precision)
    return build_programs(graph, module, apart=apart, targets=machine.targets)


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [n.op.name for n in nodes]


def test_maker_and_reader_change_and_the_tensor_between_them_is_gone(gpt2: Module) -> None:
    p, apart = programs(gpt2), programs(gpt2, apart=True)
    changes = {"layernorm": OPS[0], "linear_fp8": OPS[1], "linear_gelu_fp8": OPS[2]}
    layers = names(apart.forward).index("matmul") - 1  # (a product in 16 bits, with a normalisation of its own)
    assert names(p.forward)[:layers] == [changes.get(n, n) for n in names(apart.forward)[:layers]]
    assert names(p.forward)[layers : layers + 2] == ["layernorm", "matmul"]
    maker, reader = p.forward[1:3]
    assert maker.operands["Yr"] == reader.operands["Xr"] and maker.operands["hY"] == reader.operands["h"]
    old = apart.forward[2].operands
    assert {maker.operands["Yt"].tensor.name, maker.operands["rY"].tensor.name} == {
        old["Xt"].tensor.name, old["rX"].tensor.name,
    }  # fmt: skip
    assert all(v.tensor.name != old["X"].tensor.name for n in (*p.forward, *p.backward) for v in n.operands.values())


def test_ops_stay_apart_where_results_are_computed_again(gpt2: Module) -> None:
    """The backward pass reads the operand then, as under a memory budget."""
    graph = build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 8}, {"L": 2, "V": 40}, "fp8")
    again = {n: frozenset(o.name for o in n.op.outputs) for n in graph.nodes if n.op.name == "linear_fp8"}
    nodes = tuple(replace(n, recompute=again[n]) if n in again else n for n in graph.nodes)
    p = build_programs(replace(graph, nodes=nodes), gpt2, targets=H100.targets)
    assert {"linear_fp8", "layernorm", OPS[0], OPS[2]} <= set(names(p.forward)) and OPS[1] not in names(p.forward)
    assert "linear_fp8" in names(p.backward)


@pytest.mark.parametrize("machine, precision", [(A100, "fp8"), (H100, "bf16"), (H100, "fp8_block")])
def test_other_targets_and_precisions_have_the_ops_apart(gpt2: Module, machine: GpuMachine, precision: str) -> None:
    assert not set(OPS) & set(names(programs(gpt2, machine, precision=precision).forward))


def test_the_step_is_the_same(gpt2: Module) -> None:
    """Losses, gradients and histories, from histories of two layers that differ."""
    found = []
    for p in (programs(gpt2), programs(gpt2, apart=True)):
        random = np.random.default_rng(3)
        memory = Memory({q.tensor: 0.1 * random.standard_normal(q.tensor.shape) for q in p.graph.parameters})
        for t in p.graph.inputs.values():
            memory.write(t.whole(), random.integers(0, 40, t.shape))
        for t in p.graph.states:
            memory.write(t.whole(), random.uniform(0.5, 4.0, t.shape))
        memory.write(p.seed.whole(), np.array(1.0))
        interpret((*p.forward, *p.backward), gpt2, memory)
        results = [*p.gradients.values(), *p.news.values()]
        assert p.graph.loss is not None
        found.append([memory.read(p.graph.loss), *(memory.read(t.whole()) for t in results)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("columns", [272, 90], ids=["by the copy engine", "rows it cannot take"])
def test_ops_are_the_oracles(gpt2: Module, name: str, columns: int) -> None:
    """On the virtual GPU, all of its checks on."""
    op = bound(gpt2.ops[name], DType.BF16)
    dims = {d: (DIMS | {"K": columns, "C": columns})[d] for d in op_dims(gpt2, name)}
    inputs = inputs_of(op, dims)
    found = execute(lower(op, gpt2, dims, H100), op, inputs, H100)
    for output, x in evaluate(op, gpt2, inputs, dims).items():
        got, o = found[output], op.operand(output)
        if o is not None and o.dtype is DType.E4M3:  # a value beside a tie may become the neighbour of the oracle's
            assert np.mean(got != x) < 0.01 and np.all(np.abs(got - x) <= np.abs(x) / 8 + 2.0**-9), output
        else:  # wgmma keeps 14 bits of a sum, results are rounded to 8
            np.testing.assert_allclose(got, x, rtol=2.0**-7, atol=2.0**-6 * np.abs(x).max(), err_msg=output)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [2056, 9000])
def test_rows_longer_than_registers_have_room_for(gpt2: Module, columns: int) -> None:
    op = bound(gpt2.ops[OPS[0]], DType.BF16)
    dims = {"M": 3, "C": columns, "H": 16}
    inputs = inputs_of(op, dims)
    lowered = lower(op, gpt2, dims, H100)
    assert len(lowered.kernels) == 3
    found = execute(lowered, op, inputs, H100)
    for output, x in evaluate(op, gpt2, inputs, dims).items():
        assert np.mean(np.abs(found[output] - x) > np.abs(x) / 8 + 2.0**-6) == 0, output


@pytest.mark.parametrize("columns", [1600, 1792, 2048, 12288])
def test_models_of_any_width_have_a_schedule(gpt2: Module, columns: int) -> None:
    lower(bound(gpt2.ops[OPS[0]], DType.BF16), gpt2, {"M": 4096, "C": columns, "H": 16}, H100)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS)
def test_nothing_spills(gpt2: Module, name: str) -> None:
    op = bound(gpt2.ops[name], DType.BF16)
    for kernel in lower(op, gpt2, {d: GPT2[d] for d in op_dims(gpt2, name)}, H100).kernels:
        code = compile_kernel(kernel, H100)
        assert not assemble(code.ptx, H100.target).findings, kernel.name


def op_dims(module: Module, name: str) -> list[str]:
    return ["M", "C", "H"] if name == "layernorm_cast_fp8" else ["M", "N", "K", "H"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("quantised(layernorm_cast_fp8)", "does not name two ops"),
        ("quantised(layernorm_cast, linear_given_fp8)", "unknown op 'layernorm_cast'"),
        ("quantised(layernorm_cast_fp8, linear_given_fp8, tpu)", "takes targets"),
        ("quantised(layernorm_cast_fp8, linear_fp8, sm_90a)", "reads 'X' itself"),
        ("quantised(linear_fp8, linear_given_fp8, sm_90a)", "has an operand 'Xr' that nobody gives"),
    ],
)
def test_what_does_not_fit_is_refused_where_it_stands(text: str, message: str) -> None:
    assert PLACE in SHIPPED
    with pytest.raises(TcError, match=message) as e:
        programs(load_text(SHIPPED.replace(PLACE, text), str(library() / "own.tc")))
    assert e.value.span.file.endswith("own.tc")
