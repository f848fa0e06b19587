"""The backward pass as a list of nodes: what writes, what adds, what launches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tcomp.dsl.ast import DType, Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.model.autodiff import Variants, copied_gradient, differentiate
from tcomp.model.flat import like_parameters
from tcomp.model.graph import Graph, Node, Tensor
from tcomp.model.unroll import build_graph

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"

SMALL = """
op add(A: f32[M], B: f32[M]) -> Y: f32[M]:
  Y[m] = A[m] + B[m]

op times(A: f32[M], B: f32[M]) -> Y: f32[M]:
  Y[m] = A[m] * B[m]

op total(X: f32[M]) -> y: f32[]:
  y = sum m: X[m]

op product(W: f32[K, M]) -> Y: f32[K, M]:
  Y[k, m] = W[k, m] * W[k, m]

op halves(X: f32[M]) -> Y: f32[M]:
  Y[m] = X[m] * 0.5

op gather(w: f32[M], ids: i32[N]) -> Y: f32[N]:
  Y[n] = w[ids[n]]

op stingy(A: f32[M], B: f32[M]) -> Y: f32[M]:
  Y[m] = A[m] * B[m]

backward stingy(B: f32[M], dY: f32[M]) -> dA: f32[M]:
  dA[m] = dY[m] * B[m]

op both(A: f32[M]) -> Y: f32[M], Z: f32[M]:
  Y[m] = A[m] + 1.0
  Z[m] = A[m] * 2.0

backward both(dY: f32[M], dZ: f32[M]) -> dA: f32[M]:
  dA[m] = dY[m] + dZ[m] * 2.0

model small(N):
  config one: L = 2
  param w: f32[L, N] = normal(1.0)
  input ids: i32[N] below N
  input x: f32[N]
  forward:
{forward}
  loss loss
"""


@dataclass
class Built:
    graph: Graph
    nodes: tuple[Node, ...]
    seed: Tensor
    gradients: dict[str, Tensor]

    def __getitem__(self, label: str) -> Node:
        return next(n for n in self.nodes if n.label == label)

    def labels(self) -> list[str]:
        return [n.label for n in self.nodes]


def backward(module: Module, graph: Graph, accumulate: bool = False) -> Built:
    seed = Tensor("loss_gradient", DType.F32, (), "scalar")
    gradients = like_parameters(graph, "grad", "gradient")
    nodes = differentiate(graph, Variants(module), gradients, seed, accumulate)
    return Built(graph, nodes, seed, {p.name: g for p, g in gradients.items()})


def small(*lines: str) -> Built:
    module = load_text(SMALL.replace("{forward}", "\n".join(f"    {line}" for line in lines)), "small.tc")
    return backward(module, build_graph(module, "small", "one", {"N": 5}))


@pytest.fixture(scope="module")
def gpt2() -> Module:
    return load(GPT2)


@pytest.fixture(scope="module")
def tiny(gpt2: Module) -> Built:
    return backward(gpt2, build_graph(gpt2, "gpt2", "tiny", {"B": 2, "T": 16}))


def writes(n: Node) -> set[str]:
    return {o.name for o in n.op.outputs}


def adds(n: Node) -> set[str]:
    return {o.name for o in n.op.params if o.inout}


def test_backward_runs_in_reverse(tiny: Built) -> None:
    assert tiny.labels()[:4] == [
        "mean.backward",
        "crossentropy.backward",
        "matmul.backward wte",
        "layernorm.backward lnf_w lnf_b",
    ]
    assert tiny.labels()[-1] == "embedding.backward wte wpe"


def test_the_seed_is_the_gradient_of_the_loss(tiny: Built) -> None:
    assert tiny["mean.backward"].operands["dy"].tensor is tiny.seed


def test_the_residual_branch_launches_nothing(tiny: Built) -> None:
    n = tiny["l3.linear_residual.backward down_w down_b"]
    assert writes(n) == {"dX", "dW", "db"}
    taken = n.operands["dY"].tensor
    norm = tiny["l3.layernorm.backward ln2_w ln2_b"]
    assert norm.operands["dX"].tensor is taken and adds(norm) == {"dX"}
    assert tiny["l0.layernorm.backward ln1_w ln1_b"].operands["dX"].tensor is taken, "one buffer from top to bottom"
    assert tiny["embedding.backward wte wpe"].operands["dx"].tensor is taken


def test_the_tied_weight_gets_both_contributions(tiny: Built) -> None:
    head, table = tiny["matmul.backward wte"], tiny["embedding.backward wte wpe"]
    assert head.operands["dW"].tensor is table.operands["dwte"].tensor is tiny.gradients["wte"]
    assert "dW" in writes(head)
    assert adds(table) == {"dwte"} and writes(table) == {"dwpe"}


def test_every_parameter_of_gpt2_gets_a_gradient(tiny: Built) -> None:
    written: dict[Tensor, int] = {}
    for n in tiny.nodes:
        for name in writes(n):
            v = n.operands[name]
            written[v.tensor] = written.get(v.tensor, 0) + v.elements
    assert {g.name: written[g] for g in tiny.gradients.values()} == {
        g.name: g.elements for g in tiny.gradients.values()
    }


def test_a_layers_gradient_goes_to_its_slice(tiny: Built) -> None:
    v = tiny["l2.linear.backward qkv_w qkv_b"].operands["dW"]
    assert v.tensor is tiny.gradients["qkv_w"] and v.offset == 2 * 384 * 128


def test_a_later_micro_batch_adds_everywhere(gpt2: Module, tiny: Built) -> None:
    later = backward(gpt2, tiny.graph, accumulate=True)
    assert later.labels() == tiny.labels()
    parameters = set(later.gradients.values())
    for n in later.nodes:
        assert not [o for o in writes(n) if n.operands[o].tensor in parameters], n.label


def test_equal_layers_share_their_ops(tiny: Built) -> None:
    forms = {id(n.op) for n in tiny.nodes if "linear_gelu" in n.label}
    assert len(forms) == 1


def test_no_work_for_what_depends_on_no_parameter() -> None:
    b = small("h = halves(x)", "y = times(h, w[0])", "loss = total(y)")
    assert b.labels() == ["total.backward", "times.backward w"]
    assert writes(b["times.backward w"]) == {"dB"}


def test_results_that_the_loss_does_not_need_have_no_backward() -> None:
    b = small("y = halves(w[0])", "z = halves(w[1])", "loss = total(y)")
    assert b.labels() == ["total.backward", "halves.backward w"]


def test_integer_operands_get_no_gradient() -> None:
    b = small("y = gather(w[0], ids)", "loss = total(y)")
    assert writes(b["gather.backward w"]) == {"dw"}


def test_only_the_first_of_two_copies_takes_the_buffer_over() -> None:
    b = small("p = halves(w[0])", "q = halves(w[1])", "y = add(p, q)", "loss = total(y)")
    n = b["add.backward"]
    assert writes(n) == {"dB"}
    p, q = (m for m in b.nodes if m.label == "halves.backward w")
    taken = {p.operands["dY"].tensor, q.operands["dY"].tensor}
    assert taken == {n.operands["dY"].tensor, n.operands["dB"].tensor} and len(taken) == 2


def test_a_parameters_gradient_is_never_a_buffer_taken_over() -> None:
    b = small("p = halves(w[0])", "y = add(w[1], p)", "loss = total(y)")
    assert writes(b["add.backward w"]) == {"dA"}


def test_a_tensor_used_twice_by_one_node_is_added_in_a_second_launch() -> None:
    b = small("p = halves(w[0])", "y = times(p, p)", "loss = total(y)")
    first, second = (n for n in b.nodes if n.label == "times.backward")
    assert writes(first) == {"dA"} and not adds(first)
    assert adds(second) == {"dB"} and not writes(second)
    assert first.operands["dA"].tensor is second.operands["dB"].tensor


def test_a_copy_of_a_tensor_added_to_itself_is_not_handed_over() -> None:
    b = small("p = halves(w[0])", "y = add(p, p)", "loss = total(y)")
    assert [sorted(writes(n) | adds(n)) for n in b.nodes if n.label == "add.backward"] == [["dA"], ["dB"]]


def test_a_written_backward_must_give_what_is_needed() -> None:
    with pytest.raises(TcError, match="does not give dB"):
        small("y = stingy(w[0], w[1])", "loss = total(y)")
    assert "stingy.backward w" in small("y = stingy(w[0], x)", "loss = total(y)").labels()


def test_a_written_backward_that_reads_a_gradient_which_is_not_there_is_refused() -> None:
    with pytest.raises(TcError, match="'backward both' reads 'dY', but the loss does not depend on 'Y'"):
        small("y, z = both(w[0])", "loss = total(z)")
    assert "both.backward w" in small("y, z = both(w[0])", "p = add(y, z)", "loss = total(p)").labels()


def test_a_weight_used_whole_is_added_to_what_its_slices_gave_and_to_zero_elsewhere() -> None:
    b = small("a = total(w as [L * N])", "p = halves(w[1])", "y = add(p, p)", "b = total(y)",
              "s = add(a as [1], b as [1])", "loss = total(s)")  # fmt: skip
    whole, zero = b["total.backward w"], b["total w (zeros in grad.w)"]
    assert adds(whole) == {"dX"} and whole.operands["dX"].covers
    assert (zero.operands["Z"].tensor, zero.operands["Z"].offset, zero.dims) == (b.gradients["w"], 0, {"N": 5})
    assert b.nodes.index(b["halves.backward w"]) < b.nodes.index(zero) < b.nodes.index(whole)


def test_an_activation_of_which_slices_have_a_gradient_is_zero_elsewhere() -> None:
    b = small("h = halves(x)", "w2 = product(w)", "p = times(w2[1], h)", "loss = total(p)")
    (zero,) = (n for n in b.nodes if n.op.name == "gradient.zeros")
    whole = b["product.backward w"].operands["dY"]
    assert whole.covers and zero.operands["Z"].tensor is whole.tensor and zero.operands["Z"].elements == 5


def test_recomputed_values_are_computed_again_before_their_use(gpt2: Module) -> None:
    b = small("h = halves(w[0]) [recompute]", "y = times(h, h)", "loss = total(y)")
    assert b.labels() == ["total.backward", "halves w (again)", "times.backward", "times.backward", "halves.backward w"]
    again = b["halves w (again)"].operands["Y"].tensor
    assert again is b["times.backward"].operands["B"].tensor
    assert again is not b.graph.nodes[0].operands["Y"].tensor


@pytest.mark.parametrize(
    ("equation", "source"),
    [("dR[m, n] = dY[m, n]", "dY"), ("dR[n, m] = dY[m, n]", None), ("dR[m, n] = dY[m, n] * 2.0", None),
     ("dR[m, n] += dY[m, n]", None), ("dR[m, n] = R[m, n]", None)],
)  # fmt: skip
def test_only_a_plain_copy_of_a_gradient_is_an_identity(equation: str, source: str | None) -> None:
    text = f"op f(dY: f32[M, M], R: f32[M, M]) -> dR: f32[M, M]:\n  {equation}\n"
    from tcomp.dsl.ast import Op
    from tcomp.dsl.parse import parse

    (op,) = (i for i in parse(text).items if isinstance(i, Op))
    assert copied_gradient(op, "dR") == source
