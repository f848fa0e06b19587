"""Operands and gradients that are quantised where they are made: the same step, one pass over memory less for each."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.assembly.assemble import assemble
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import dimensions
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.storage import bound
from tcomp.machine.gpu import A100, H100, GpuMachine
from tcomp.model.autodiff import Variants
from tcomp.model.graph import Node
from tcomp.model.programs import Programs, build_programs
from tcomp.model.quantised_gradient import quantised_gradients
from tcomp.model.unroll import build_graph
from tcomp.oracle import evaluate
from tcomp.schedule.lower import lower
from tests.tcomp.graph_interpreter import Memory, run as interpret
from tests.test_fp8_tensor_cores import inputs_of
from tests.test_ops_gpu import execute

SHIPPED = (library() / "gpt2.tc").read_text()
PLACE = "quantised(layernorm_cast_fp8, linear_given_fp8, sm_90a, sm_100a)"
GRADIENT = "quantised_gradient(layernorm_gradients_cast_fp8, given_fp8_gradients, sm_90a, sm_100a)"
OPS = ("layernorm_cast_fp8", "linear_given_fp8", "linear_gelu_given_fp8")
GRADIENTS = ("layernorm_gradients_cast_fp8", "given_fp8_gradients")
DIMS = {"M": 200, "N": 112, "K": 272, "H": 16}
"""M is whole tiles of neither kernel"""
GPT2 = {"M": 16384, "N": 2304, "K": 768, "C": 768, "H": 16}
STEPS = {DType.E4M3: 2.0**-3, DType.E5M2: 2.0**-2}
"""from a value to the next, relative, at most"""
WIDTHS = [1024, 1280, 1600, 1792]
"""those of GPT-2's configurations, and the most for which rows of layer normalisation are in registers"""


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(library() / "gpt2.tc")


def programs(
    module: Module,
    machine: GpuMachine = H100,
    apart: bool = False,
    precision: str = "fp8",
    accumulation: int = 1,
    length: int = 8,
) -> Programs:
    graph = build_graph(module, "gpt2", "tiny", {"B": 2, "T": length}, {"L": 2, "V": 40}, precision)
    return build_programs(graph, module, apart=apart, targets=machine.targets, accumulation=accumulation)


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [n.op.name for n in nodes]


def test_maker_and_reader_change_and_the_tensor_between_them_is_gone(gpt2: Module) -> None:
    p, apart = programs(gpt2), programs(gpt2, apart=True)
    changes = {"layernorm": OPS[0], "linear_fp8": OPS[1], "linear_gelu_fp8": OPS[2]}
    layers = names(apart.forward).index("matmul") - 1  # (a product in 16 bits, with a normalisation of its own)
    assert names(p.forward)[:layers] == [changes.get(n, n) for n in names(apart.forward)[:layers]]
    assert names(p.forward)[layers : layers + 2] == ["layernorm", "matmul"]
    maker, reader = p.forward[1:3]
    assert all(maker.operands[m] == reader.operands[r] for m, r in (("Yr", "Xr"), ("sW", "sW"), ("u", "u")))
    assert "h" not in reader.operands, "one launch for the scales of both"
    old = apart.forward[2].operands
    assert {maker.operands["Yt"].tensor.name, maker.operands["rY"].tensor.name} == {
        old["Xt"].tensor.name, old["rX"].tensor.name,
    }  # fmt: skip
    assert all(v.tensor.name != old["X"].tensor.name for n in (*p.forward, *p.backward) for v in n.operands.values())


def test_so_do_the_backward_ops_of_a_residual_and_the_gradient_stays(gpt2: Module) -> None:
    p, apart = programs(gpt2), programs(gpt2, apart=True)
    new, both = names(p.backward), apart.backward[-len(p.backward) :]  # (without cross-entropy's)
    changed = [(a, b) for a, b in zip(names(both), new, strict=True) if a != b]
    assert changed == [("layernorm.backward", GRADIENTS[0]), ("linear_residual_fp8.backward", GRADIENTS[1])] * 3
    at = new.index(GRADIENTS[0])
    maker, reader, before = p.backward[at], p.backward[at + 1], both[at + 1]
    made = {n: maker.operands[n] for n in ("Dr", "Dt", "rD")}
    assert all(reader.operands[n] is v for n, v in made.items()), "both orders and the rows' largest values"
    assert maker.operands["dbdX"].tensor.name == before.operands["db"].tensor.name and "db" not in reader.operands
    assert maker.operands["sD"].tensor.name == before.operands["sD"].tensor.name
    assert maker.operands["dX"].tensor.name == before.operands["dY"].tensor.name and "dY" not in reader.operands
    every = {id(n.operands["Dr"].tensor): n.operands["Dr"].tensor.name for n in p.backward if "Dr" in n.operands}
    assert len(every) == len(set(every.values())) == 3, "a name for each"


def test_ops_stay_apart_where_results_are_computed_again(gpt2: Module) -> None:
    """The backward pass reads the operand then, as under a memory budget."""
    graph = build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 8}, {"L": 2, "V": 40}, "fp8")
    again = {n: frozenset(o.name for o in n.op.outputs) for n in graph.nodes if n.op.name == "linear_fp8"}
    nodes = tuple(replace(n, recompute=again[n]) if n in again else n for n in graph.nodes)
    p = build_programs(replace(graph, nodes=nodes), gpt2, targets=H100.targets)
    assert {"linear_fp8", "layernorm", OPS[0], OPS[2]} <= set(names(p.forward)) and OPS[1] not in names(p.forward)
    assert "linear_fp8" in names(p.backward)


def test_the_first_maker_that_finds_its_operands_is_taken(gpt2: Module) -> None:
    """Where the product with GELU is computed again it quantises its operand itself, for the next layer as well."""
    graph = build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 64}, {"L": 1, "V": 40}, "fp8_block")
    again = {n: frozenset({"Y"}) for n in graph.nodes if n.op.name == "linear_gelu_fp8_block"}
    nodes = tuple(replace(n, recompute=again.get(n, n.recompute)) for n in graph.nodes)
    for found, maker in ((graph.nodes, "linear_before_gelu_given_fp8_block"), (nodes, "linear_before_gelu_fp8_block")):
        p = build_programs(replace(graph, nodes=found), gpt2, targets=H100.targets)
        assert maker in names(p.forward) and "linear_residual_of_gelu_fp8_block" in names(p.forward)


def test_gradients_stay_apart_where_their_scale_is_not_known_to_the_op_before(gpt2: Module) -> None:
    """As if it were computed again between the two."""
    p = programs(gpt2, apart=True)
    backward = p.backward
    at = next(i for i, n in enumerate(backward) if "proj_w" in n.label)
    scale = next(n for n in p.forward if n.operands.get("sD") == backward[at].operands["sD"])
    between = (*backward[:at], replace(scale, quantised_gradient=None), *backward[at:])
    for nodes, count in ((backward, 3), (between, 2)):
        found = names(quantised_gradients(nodes, H100.targets, Variants(gpt2), p.news.values()))
        assert found.count(GRADIENTS[0]) == found.count(GRADIENTS[1]) == count


def test_a_gradient_that_begins_where_it_is_made_is_left_alone() -> None:
    """Whatever op it begins in: the last layer's, here of a head that normalises nothing and names its operand Q."""
    head = "op head(Q: real[M, C], W: real[V, C]) -> Y: real[M, V]:\n  Y[m, v] = sum c: Q[m, c] * W[v, c]\n\n"
    normalised = "    h, _, _ = layernorm(x, lnf_w, lnf_b)\n    logits = matmul(h, wte) [chunks(K)]\n"
    assert normalised in SHIPPED
    model = SHIPPED.replace(normalised, "    logits = head(x, wte)\n").replace("model gpt2", head + "model gpt2")
    found = names(programs(load_text(model, str(library() / "own.tc"))).backward)
    assert found.count(GRADIENTS[0]) == found.count(GRADIENTS[1]) == 3


@pytest.mark.parametrize("frozen, joined", [("proj_w", 1), ("ln2_b", 1), ("proj_b", 3)])
def test_so_is_one_where_the_ops_would_give_gradients_of_what_is_not_trained(frozen: str, joined: int) -> None:
    """Of three places. With ln2_b frozen the new ops' `db` would be the next layer's, beside `dbdX`."""
    p = programs(load_text(without(frozen), str(library() / "own.tc")))
    found = names(p.backward)
    assert found.count(GRADIENTS[0]) == found.count(GRADIENTS[1]) == joined
    for n in p.backward:
        results = [n.operands[o.name] for o in n.op.outputs]
        assert not any(v.meets(w) for i, v in enumerate(results) for w in results[:i]), n.label


def without(*parameters: str) -> str:
    """The shipped model with these frozen."""
    text = SHIPPED
    for name in parameters:
        text, count = re.subn(rf"(param {name}: .*) in \w+", r"\1 frozen", text)
        assert count == 1
    return text


@pytest.mark.parametrize("machine, precision", [(A100, "fp8"), (H100, "bf16"), (H100, "fp8_block")])
def test_other_targets_and_precisions_have_the_ops_apart(gpt2: Module, machine: GpuMachine, precision: str) -> None:
    p = programs(gpt2, machine, precision=precision)
    assert not {*OPS, *GRADIENTS} & {*names(p.forward), *names(p.backward)}


@pytest.mark.parametrize("frozen", [(), ("proj_w", "ln2_b", "down_b")], ids=["all trained", "some frozen"])
def test_the_step_is_the_same(frozen: tuple[str, ...]) -> None:
    """Losses, gradients and histories of two micro-batches, from histories of two layers that differ."""
    found = []
    gpt2 = load_text(without(*frozen), str(library() / "own.tc"))
    for p in (programs(gpt2, accumulation=2), programs(gpt2, apart=True, accumulation=2)):
        random = np.random.default_rng(3)
        memory = Memory({q.tensor: 0.1 * random.standard_normal(q.tensor.shape) for q in p.graph.parameters})
        for t in p.graph.inputs.values():
            memory.write(t.whole(), random.integers(0, 40, t.shape))
        for t in p.graph.states:
            memory.write(t.whole(), random.uniform(0.5, 4.0, t.shape))
        memory.write(p.seed.whole(), np.array(1.0))
        interpret((*p.forward, *p.backward), gpt2, memory)
        for t in p.graph.inputs.values():
            memory.write(t.whole(), random.integers(0, 40, t.shape))
        interpret((*p.forward_next, *p.backward_next), gpt2, memory)
        results = [*p.gradients.values(), *p.news.values()]
        assert p.graph.loss is not None
        found.append([memory.read(p.graph.loss), *(memory.read(t.whole()) for t in results)])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS + GRADIENTS)
@pytest.mark.parametrize("columns", [272, 90], ids=["by the copy engine", "rows it cannot take"])
def test_ops_are_the_oracles(gpt2: Module, name: str, columns: int) -> None:
    """On the virtual GPU, all of its checks on."""
    op = bound(gpt2.ops[name], DType.BF16)
    dims = {d: (DIMS | {"K": columns, "C": columns})[d] for d in dimensions(op)}
    inputs = inputs_of(op, dims)
    found = execute(lower(op, gpt2, dims, H100), op, inputs, H100)
    for output, x in evaluate(op, gpt2, inputs, dims).items():
        got, o = found[output], op.operand(output)
        if o is not None and o.dtype in STEPS:  # a value beside a tie may become the neighbour of the oracle's
            assert np.mean(got != x) < 0.01 and np.all(np.abs(got - x) <= np.abs(x) * STEPS[o.dtype] + 2.0**-9), output
        else:  # wgmma keeps 14 bits of a sum, results are rounded to 8
            np.testing.assert_allclose(got, x, rtol=2.0**-7, atol=2.0**-6 * np.abs(x).max(), err_msg=output)


@pytest.mark.slow
@pytest.mark.parametrize("name", [OPS[0], GRADIENTS[0]])
def test_blocks_that_take_several_turns(gpt2: Module, name: str) -> None:
    """As all do at full size: rows are copied while others are used, and sums go on."""
    op = bound(gpt2.ops[name], DType.BF16)
    dims = {d: {"M": 72, "C": 48, "H": 16}[d] for d in dimensions(op)}
    inputs = inputs_of(op, dims)
    found = execute(lower(op, gpt2, dims, replace(H100, sms=2)), op, inputs, H100)
    for output, x in evaluate(op, gpt2, inputs, dims).items():
        o = op.operand(output)
        step = STEPS.get(o.dtype, 2.0**-7) if o is not None else 0.0
        assert np.all(np.abs(found[output] - x) <= np.abs(x) * step + 2.0**-6), output


@pytest.mark.slow
@pytest.mark.parametrize("name", [OPS[0], GRADIENTS[0]])
@pytest.mark.parametrize("columns", [1032, 2056, 9000])
def test_long_rows_and_those_that_registers_have_no_room_for(gpt2: Module, columns: int, name: str) -> None:
    op = bound(gpt2.ops[name], DType.BF16)
    dims = {d: {"M": 3, "C": columns, "H": 16}[d] for d in dimensions(op)}
    inputs = inputs_of(op, dims)
    lowered = lower(op, gpt2, dims, H100)
    assert (len(lowered.kernels) == 3) == (columns > 2048)
    found = execute(lowered, op, inputs, H100)
    for output, x in evaluate(op, gpt2, inputs, dims).items():
        step = STEPS[DType.E5M2] if output in ("Dr", "Dt") else STEPS[DType.E4M3]
        assert np.all(np.abs(found[output] - x) <= np.abs(x) * step + 2.0**-6), output


@pytest.mark.parametrize("name", [OPS[0], GRADIENTS[0]])
@pytest.mark.parametrize("columns", [1600, 1792, 2048, 12288])
def test_models_of_any_width_have_a_schedule(gpt2: Module, columns: int, name: str) -> None:
    op = bound(gpt2.ops[name], DType.BF16)
    lower(op, gpt2, {d: {"M": 4096, "C": columns, "H": 16}[d] for d in dimensions(op)}, H100)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPS + GRADIENTS)
def test_nothing_spills(gpt2: Module, name: str) -> None:
    assert spilling(gpt2, name, GPT2) == []


@pytest.mark.slow
@pytest.mark.parametrize("columns", WIDTHS)
def test_nothing_spills_where_rows_of_layer_normalisation_are_longer(gpt2: Module, columns: int) -> None:
    assert [x for n in (OPS[0], GRADIENTS[0]) for x in spilling(gpt2, n, GPT2 | {"C": columns})] == []


def spilling(module: Module, name: str, dims: dict[str, int]) -> list[str]:
    """The assembler's findings about an op's kernels."""
    op = bound(module.ops[name], DType.BF16)
    codes = [compile_kernel(k, H100) for k in lower(op, module, {d: dims[d] for d in dimensions(op)}, H100).kernels]
    return [m.describe() for code in codes for m in assemble(code.ptx, H100.target).findings]


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


@pytest.mark.parametrize(
    "text, message",
    [
        ("layernorm_gradients_cast_fp8", "`quantised_gradient` does not name two ops"),
        ("layernorm_cast_fp8, given_fp8_gradients, sm_90a", "does not add to 'dX' of 'layernorm.backward'"),
        ("layernorm_gradients_cast_fp8, linear_given_fp8, sm_90a", "has an operand 'Xr' that nobody gives"),
        ("layernorm_gradients_cast_fp8, rows_of_gradients, sm_90a", "nobody gives 'dX'"),
    ],
)
def test_so_is_a_gradient(text: str, message: str) -> None:
    assert SHIPPED.count(GRADIENT) == 2
    own = "op rows_of_gradients(rD: f32[M]) -> dh: f32[3, 16]:\n  dh[i, j] = 0.0\n\n"
    model = SHIPPED.replace(GRADIENT, f"quantised_gradient({text})").replace("model gpt2", own + "model gpt2")
    with pytest.raises(TcError, match=message) as e:
        programs(load_text(model, str(library() / "own.tc")))
    assert e.value.span.file.endswith("own.tc")


@pytest.mark.parametrize("whole", [True, False], ids=["whole blocks", "64 rows"])
def test_blocks_are_quantised_where_their_tensor_is_made(whole: bool, gpt2: Module) -> None:
    """By layer normalisation, where blocks are whole. GELU is applied where the next layer quantises: that takes what
    the maker keeps, and what the layer gave is in no launch's hands."""
    length = 64 if whole else 32
    p = programs(gpt2, precision="fp8_block", length=length)
    first = "linear_before_gelu_given_fp8_block" if whole else "linear_before_gelu_fp8_block"
    at = names(p.forward).index(first)
    maker, reader = p.forward[at : at + 2]
    assert reader.op.name == "linear_residual_of_gelu_fp8_block" and reader.operands["P"] == maker.operands["P"]
    assert names(p.forward).count("layernorm_cast_fp8_block") == 4 * whole
    assert names(p.forward).count("layernorm") == 5 - 4 * whole
    results = {}
    for programs_ in (p, programs(gpt2, precision="fp8_block", apart=True, length=length)):
        random = np.random.default_rng(3)
        memory = Memory({q.tensor: 0.1 * random.standard_normal(q.tensor.shape) for q in programs_.graph.parameters})
        for t in programs_.graph.inputs.values():
            memory.write(t.whole(), random.integers(0, 40, t.shape))
        memory.write(programs_.seed.whole(), np.array(1.0))
        interpret((*programs_.forward, *programs_.backward), gpt2, memory)
        results[programs_ is p] = [memory.read(t.whole()) for t in programs_.gradients.values()]
    for one, other in zip(results[True], results[False], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
