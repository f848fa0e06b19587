"""A model's text becomes nodes over views: names, shapes, labels, layers, and what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from tcomp.dsl.ast import Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.errors import UserError
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.dimensions import of_no_size
from tcomp.model.graph import Graph, Node
from tcomp.model.request import StepRequest
from tcomp.model.unroll import build_graph

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"

SMALL = """
op double(X: f32[M, K]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] * 2.0

op seven(X: f32[7, K]) -> Y: f32[7, K]:
  Y[m, k] = X[m, k] * 7.0

op scale(X: f32[M, K], s: f32[]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] * s

op total(X: f32[M, K]) -> y: f32[]:
  y = sum m, k: X[m, k]

model small(B):
  config one: L = 3, C = 4
  let D = C // 2
  require B <= 2 * C
  param w: f32[L, B, C] = normal(1.0 / C)
  input ids: i32[B] below C
  forward:
{forward}
  loss loss
"""


def small(*lines: str) -> Module:
    return load_text(SMALL.replace("{forward}", "\n".join(f"    {line}" for line in lines)), "small.tc")


def graph(*lines: str, sizes: dict[str, int] | None = None, **overrides: int) -> Graph:
    return build_graph(small(*lines), "small", "one", sizes or {"B": 2}, overrides)


def test_numbers_that_follow_from_no_size() -> None:
    """Not E, which follows from B, nor F, which follows from E."""
    text = SMALL.replace("  let D = C // 2", "  let D = C // 2\n  let E = max(B, 2)\n  let F = E + D")
    module = load_text(text.replace("{forward}", "    loss = total(w[0])"), "small.tc")
    dims = build_graph(module, "small", "one", {"B": 2}, {}).dims
    assert set(dims) == {"B", "L", "C", "D", "E", "F"}
    assert of_no_size(module.models["small"], dims) == {"L": 3, "C": 4, "D": 2}


def calls(g: Graph) -> list[tuple[str, dict[str, tuple[str, int, tuple[int, ...]]]]]:
    """Each node by its label and the places and shapes of its operands."""
    views = [(n.label, {o: (v.tensor.name, v.offset, v.shape) for o, v in n.operands.items()}) for n in g.nodes]
    return [(label, dict(sorted(v.items()))) for label, v in views]


def test_a_further_name_is_the_same_memory_and_no_call() -> None:
    """What the name meant there: also after a loop gave the other one a new tensor, turn by turn."""
    g = graph(
        "x = double(w[0])", "first = x", "flat = x as [B * C]", "for l in L:", "  before = x",
        "  x = scale(before, 0.5)", "y = double(before)", "z = double(first)", "v = double(flat as [C, B])",
        "sum = total(y)", "loss = sum",
    )  # fmt: skip
    named = {n.label: n for n in g.nodes}
    assert [n.op.name for n in g.nodes] == ["double", "scale", "scale", "scale", "double", "double", "double", "total"]
    assert g.nodes[4].operands["X"].tensor is named["l1.scale"].operands["Y"].tensor
    made = g.nodes[0].operands["Y"].tensor
    assert g.nodes[5].operands["X"] == made.whole()
    assert (g.nodes[6].operands["X"].tensor, g.nodes[6].operands["X"].shape) == (made, (4, 2))
    assert g.loss == g.nodes[-1].operands["y"]


def test_a_further_name_of_an_input_is_no_loss() -> None:
    text = SMALL.replace("  input ids", "  input s: f32[]\n  input ids").replace("{forward}", "    loss = s")
    with pytest.raises(TcError, match="the model's loss 'loss' is never computed") as e:
        build_graph(load_text(text, "small.tc"), "small", "one", {"B": 2})
    assert text.splitlines()[e.value.span.line - 1] == "  loss loss"


@pytest.mark.parametrize("decode", [False, True])
def test_further_names_change_no_graph(gpt2: Module, decode: bool) -> None:
    text = GPT2.read_text()
    named = text.replace("    for l in L:", "    entered = x\n    x = entered as [B, T, C]\n    for l in L:", 1)
    named = named.replace("      x = ", "      kept = x\n      x = ", 1)
    assert named.count("kept = x") == named.count("entered = x") == 1
    sizes = {"B": 2, "T": 1 if decode else 8, "W": 16} if decode else {"B": 2, "T": 8}
    plain, other = (build_graph(m, "gpt2", "tiny", sizes, decode=decode) for m in (gpt2, load_text(named, str(GPT2))))
    assert calls(plain) == calls(other)


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


@pytest.fixture(scope="module")
def tiny(gpt2: Module) -> Graph:
    return build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 16})


def labelled(g: Graph, label: str) -> Node:
    return next(n for n in g.nodes if n.label == label)


def test_gpt2_has_seven_nodes_per_layer(tiny: Graph) -> None:
    assert len(tiny.nodes) == 1 + 7 * 4 + 4
    assert [n.label for n in tiny.nodes[:5]] == [
        "embedding wte wpe",
        "l0.layernorm ln1_w ln1_b",
        "l0.linear qkv_w qkv_b",
        "l0.attention",
        "l0.linear_residual proj_w proj_b",
    ]
    assert [n.label for n in tiny.nodes[-3:]] == ["matmul wte", "crossentropy", "mean"]


def test_dimensions_come_from_sizes_config_and_lets(tiny: Graph) -> None:
    assert tiny.dims == {"B": 2, "T": 16, "L": 4, "H": 4, "C": 128, "V": 256, "S": 128, "K": 0, "D": 32, "P": 256}


def test_the_vocabulary_is_padded_to_whole_tiles(gpt2: Module) -> None:
    g = build_graph(gpt2, "gpt2", "124M", {"B": 1, "T": 8})
    assert g.dims["P"] == 50304
    assert labelled(g, "crossentropy").dims["V"] == 50257
    assert g.bounds == {"tokens": 50257, "targets": 50257}


def test_a_layers_weight_is_a_view_at_its_offset(tiny: Graph) -> None:
    w = labelled(tiny, "l2.linear qkv_w qkv_b").operands["W"]
    assert (w.tensor.name, w.offset, w.shape) == ("qkv_w", 2 * 384 * 128, (384, 128))


def test_a_reshaped_operand_is_the_same_memory(tiny: Graph) -> None:
    made = labelled(tiny, "l0.linear qkv_w qkv_b").operands["Y"]
    read = labelled(tiny, "l0.attention").operands["QKV"]
    assert made.tensor is read.tensor
    assert (made.shape, read.shape) == ((32, 384), (2, 16, 3, 4, 32))


def test_the_tied_weight_is_one_tensor(tiny: Graph) -> None:
    assert (
        labelled(tiny, "embedding wte wpe").operands["wte"].tensor is labelled(tiny, "matmul wte").operands["W"].tensor
    )


def test_a_name_bound_in_a_layer_carries_to_the_next(tiny: Graph) -> None:
    out = labelled(tiny, "l0.linear_residual down_w down_b").operands["Y"]
    assert labelled(tiny, "l1.layernorm ln1_w ln1_b").operands["X"].tensor is out.tensor


def test_tensor_names_are_unique(tiny: Graph) -> None:
    tensors = {v.tensor for n in tiny.nodes for v in n.operands.values()}
    assert len({t.name for t in tensors}) == len(tensors)


def test_initialisers_are_evaluated(tiny: Graph) -> None:
    values = {p.decl.name: (p.decl.init.function, p.value) for p in tiny.parameters}
    assert values["wte"] == ("normal", 0.02)
    assert values["proj_w"] == ("normal", pytest.approx(0.02 / 8**0.5))
    assert values["ln1_w"][0] == "ones"


def test_a_scalar_operand_may_be_an_expression_of_dimensions() -> None:
    g = graph("y = scale(w[0], 1.0 / C)", "loss = total(y)")
    (scalar,) = g.scalars
    assert g.scalars[scalar] == 0.25 and g.nodes[0].operands["s"].tensor is scalar


def test_loops_over_layers_are_unrolled() -> None:
    g = graph("x = double(w[0])", "for l in L - 1:", "  x = double(x)", "loss = total(x)")
    assert [n.label for n in g.nodes] == ["double w", "l0.double", "l1.double", "total"]


def test_an_override_replaces_a_configs_value(gpt2: Module) -> None:
    g = build_graph(gpt2, "gpt2", "tiny", {"B": 1, "T": 4}, {"L": 1, "C": 64})
    assert len(g.nodes) == 12 and g.dims["D"] == 16


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("y = double(w[0] as [7, C])", "'w' has shape [2, 4], which is 8 elements; as [7, 4] it would be 28"),
        ("y = double(w[3 - 3 * (B // 7)])", "subscript 3 of 'w' is outside 0 .. 2"),
        ("y = seven(w[0])", "in the call 'seven' at small.tc:"),
    ],
)
def test_faults_of_a_model_at_its_sizes_point_at_the_text(line: str, message: str) -> None:
    """Each is in order at the sizes that the checker tries (B = 7), and not at B = 2."""
    assert graph(line, "loss = total(y)", sizes={"B": 7})
    with pytest.raises(TcError) as e:
        graph(line, "loss = total(y)", sizes={"B": 2})
    assert message in str(e.value)
    assert str(e.value).startswith("small.tc:")


def test_a_requirement_that_fails_shows_the_values(gpt2: Module) -> None:
    with pytest.raises(TcError) as e:
        build_graph(gpt2, "gpt2", "tiny", {"B": 1, "T": 129})
    text = str(e.value)
    assert "requires T <= S" in text and "T = 129" in text and "S = 128" in text and "gpt2.tc:" in text


@pytest.mark.parametrize(
    ("model", "config", "sizes", "overrides", "message"),
    [
        ("gpt3", "tiny", {"B": 1, "T": 4}, {}, "no model 'gpt3'"),
        ("gpt2", "huge", {"B": 1, "T": 4}, {}, "no config 'huge'"),
        ("gpt2", "tiny", {"B": 1}, {}, "needs a size for 'T'"),
        ("gpt2", "tiny", {"B": 1, "T": 0}, {}, "must be at least 1"),
        ("gpt2", "tiny", {"B": 1, "T": 4, "Q": 1}, {}, "no size 'Q'"),
        ("gpt2", "tiny", {"B": 1, "T": 4}, {"Z": 3}, "no value 'Z'"),
    ],
)
def test_wrong_requests_are_the_users_errors(
    gpt2: Module, model: str, config: str, sizes: dict[str, int], overrides: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        build_graph(gpt2, model, config, sizes, overrides)


def test_two_calls_do_not_keep_their_positions_in_one_part_of_a_cache() -> None:
    text = GPT2.read_text()
    call = "      a, _ = attention(qkv as [B, T, 3, H, D])\n"
    assert call in text
    module = load_text(text.replace(call, call + call.replace("a,", "a2,")), str(GPT2))
    with pytest.raises(TcError, match="'keys' of 'attention_at' is here a part of cache 'keys' that the call") as e:
        build_graph(module, "gpt2", "tiny", {"B": 1, "T": 1, "W": 8}, decode=True)
    assert "give the cache an axis for both" in e.value.hint


def test_two_operands_of_a_call_do_not_write_one_part_of_a_cache() -> None:
    module = load_text(GPT2.read_text().replace("with keys[l], values[l]", "with keys[l], keys[l]"), str(GPT2))
    with pytest.raises(TcError, match="that another operand of the call writes too") as e:
        build_graph(module, "gpt2", "tiny", {"B": 1, "T": 1, "W": 8}, decode=True)
    assert e.value.hint == "give each operand a part of its own"


def test_an_input_that_has_no_value_is_refused() -> None:
    module = load_text(
        GPT2.read_text().replace("input targets: i32[B, T] below V", "input targets: i32[B, T] below 2 - S")
    )
    with pytest.raises(TcError, match="no value of 'targets' is from 0 on and below -126"):
        build_graph(module, "gpt2", "tiny", {"B": 1, "T": 1})


def test_what_a_step_has_of_its_own_takes_a_name() -> None:
    text = GPT2.read_text().replace("normf_w", "norm").replace("lnf_w", "norm")
    with pytest.raises(TcError, match="'norm' of the model is also the name of a tensor") as refused:
        build_step(load_text(text, str(GPT2)), StepRequest("gpt2", "tiny", {"B": 1, "T": 8}), detect(), 1)
    line = text.splitlines()[refused.value.span.line - 1]
    assert line.strip().startswith("param norm:")
    assert line in refused.value.render()


def test_a_loss_is_not_of_the_narrow_type_that_others_are_stored_in() -> None:
    module = small("loss = total(w[0])")
    text = module.sources["small.tc"].replace("-> y: f32[]", "-> y: real[]")
    for precision, refused in (("f32", False), ("bf16", True)):
        with pytest.raises(TcError, match="the loss 'loss' is bf16") if refused else nullcontext():
            build_graph(load_text(text, "small.tc"), "small", "one", {"B": 2}, precision=precision)
