"""Stacked tensors whose parts no vector may begin at, on GPUs: copies in which they lie apart."""

from __future__ import annotations

import numpy as np
import pytest

from tcomp.dsl.load import library, load
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.machine.gpu import H100, GpuMachine
from tcomp.model.build import build_step
from tcomp.model.graph import Node, View
from tcomp.model.programs import build_programs
from tcomp.model.request import StepRequest
from tcomp.model.spaced import JOINED, SPACED, VECTOR, in_spaced_parts
from tcomp.model.step import Step
from tcomp.model.unroll import build_graph
from tests.tcomp.graph_interpreter import Memory, run as interpret

SIZES = {"L": 3, "H": 1, "C": 6, "V": 24, "S": 8}
ODD = {"ln1_w", "ln1_b", "ln2_w", "ln2_b", "proj_b", "down_b", "qkv_b"}
"""parameters of which a layer has no multiple of 16 bytes in f32"""


def step(machine: GpuMachine | CpuMachine, sizes: dict[str, int], text: str = "gpt2", precision: str = "f32") -> Step:
    request = StepRequest("gpt2", "tiny", {"B": 1, "T": 4}, dims=sizes, precision=precision)
    return build_step(load(library() / f"{text}.tc"), request, machine)


@pytest.mark.parametrize(
    ("text", "sizes", "precision"), [("gpt2", {}, "f32"), ("gpt2_muon", {"C": 7}, "f32"), ("gpt2_muon", {}, "bf16")]
)
def test_every_launch_is_given_what_begins_where_a_vector_may(text: str, sizes: dict[str, int], precision: str) -> None:
    built = step(H100, {**SIZES, "L": 2, **sizes}, text, precision)
    for program, launches in built.programs.items():
        for launch in launches:
            operands = built.kernels[launch.kernel].operands
            wrong = [o.name for o, at in zip(operands, launch.offsets, strict=False) if at % VECTOR and o.bytes > 4]
            assert not wrong, (program, launch.label)


def test_a_program_copies_what_it_is_given_once_and_what_it_writes_back() -> None:
    graph = build_graph(load(library() / "gpt2.tc"), "gpt2", "tiny", {"B": 1, "T": 4}, SIZES, "f32")
    p = build_programs(graph, load(library() / "gpt2.tc"), accumulation=2, targets=H100.targets)
    alone = frozenset(p.forward)
    nodes, kept = in_spaced_parts((*p.forward, *p.backward), alone)
    assert names(nodes, SPACED) == ODD
    assert names(nodes, JOINED) == {f"grad.{n}" for n in ODD}, "gradients are written before they are read"
    assert len(nodes) == len(p.forward) + len(p.backward) + 2 * len(ODD)
    assert [n for n in nodes if n in kept] == list(nodes[: len(p.forward) + len(ODD)]), "the forward pass by itself"
    later, _ = in_spaced_parts((*p.forward_next, *p.backward_next), frozenset())
    assert names(later, SPACED) == ODD | {f"grad.{n}" for n in ODD}, "added to what is there"
    assert names(later, JOINED) == {f"grad.{n}" for n in ODD}


def names(nodes: tuple[Node, ...], op: str) -> set[str]:
    """The tensors of which those nodes are copies, or are written back."""
    found = [n.operands["X" if op == SPACED else "Y"].tensor.name for n in nodes if n.op.name == op]
    assert len(found) == len(set(found)), "once each"
    return set(found)


@pytest.mark.parametrize("sizes", [{**SIZES, "C": 8}, {**SIZES, "L": 1}], ids=["whole vectors", "one layer"])
def test_nothing_is_copied_where_all_parts_begin_at_vectors(sizes: dict[str, int]) -> None:
    assert not copies(step(H100, sizes))


def test_nor_on_a_cpu() -> None:
    assert not copies(step(detect(), SIZES))


def copies(built: Step) -> list[str]:
    return [x.label for launches in built.programs.values() for x in launches if x.label.startswith("parts.")]


def test_a_tensor_of_which_some_parts_are_written_by_nobody_stays() -> None:
    """Their gradients are not there to be copied."""
    graph = build_graph(load(library() / "gpt2.tc"), "gpt2", "tiny", {"B": 1, "T": 4}, SIZES, "f32")
    p = build_programs(graph, load(library() / "gpt2.tc"), targets=H100.targets)
    middle = tuple(n for n in p.backward if n.label.startswith("l1."))
    nodes, _ = in_spaced_parts(middle, frozenset())
    assert not names(nodes, JOINED) and names(nodes, SPACED)


def test_copies_change_no_value() -> None:
    """Of two micro-batches, and of a forward pass by itself; and what is not written is not read."""
    module = load(library() / "gpt2.tc")
    graph = build_graph(module, "gpt2", "tiny", {"B": 1, "T": 4}, {**SIZES, "L": 2}, "f32")
    p = build_programs(graph, module, accumulation=2, targets=H100.targets)
    steps = (*p.forward, *p.backward), (*p.forward_next, *p.backward_next)
    (first, kept), (later, _) = (in_spaced_parts(nodes, frozenset(p.forward) - p.ahead) for nodes in steps)
    found = []
    for programs in (steps, (first, later), ([n for n in first if n in kept],)):
        random = np.random.default_rng(3)
        memory = Memory({q.tensor: single(random.standard_normal(q.tensor.shape)) for q in graph.parameters})
        memory.write(p.seed.whole(), np.array(0.5))
        for nodes in programs:
            for t in graph.inputs.values():
                memory.write(t.whole(), random.integers(0, 24, t.shape))
            interpret(nodes, module, memory)
            assert graph.loss is not None
            found.append([float(memory.read(graph.loss)), *(memory.read(g.whole()) for g in p.gradients.values())])
    for one, other in zip(found[:2], found[2:4], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)
    assert found[4][0] == pytest.approx(found[0][0], rel=1e-6)


def test_an_update_of_matrices_is_given_each_of_them_so() -> None:
    """Of the flat vectors each stacked parameter's part is copied, and those of matrices that are changed are copied
    back; all others, and vectors, stay."""
    module = load(library() / "gpt2_muon.tc")
    graph = build_graph(module, "gpt2", "tiny", {"B": 1, "T": 4}, {**SIZES, "C": 7}, "f32")
    update = build_programs(graph, module, targets=H100.targets).update
    assert update is not None
    nodes, _ = in_spaced_parts(update.nodes, frozenset())
    back = [n.operands["Y"] for n in nodes if n.op.name == JOINED]
    assert {v.tensor.name for v in back} == {"flat.p", "flat.m"}
    assert sorted(v.shape for v in back if v.tensor.name == "flat.p") == [(3, 49), (3, 147)], "up_w is whole vectors"
    found = []
    for program in (update.nodes, nodes):
        random = np.random.default_rng(4)
        memory = Memory({t: single(random.standard_normal(t.shape)) for t in update.flats.values()})
        for t, value in {**update.hyper, **update.scalars}.items():
            memory.write(t.whole(), np.array(value))
        memory.write(graph_step(program), np.array(3))
        interpret(program, module, memory)
        found.append([memory.read(update.flats[n].whole()) for n in ("p", "m", "v")])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def graph_step(nodes: tuple[Node, ...]) -> View:
    """The counter of steps."""
    return next(n.operands["step"] for n in nodes if "step" in n.operands)


def single(values: np.ndarray) -> np.ndarray:
    """Values that f32 has."""
    return values.astype(np.float32).astype(np.float64)
