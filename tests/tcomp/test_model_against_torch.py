"""The graph, run node by node through the float64 oracle, is the same function as a PyTorch GPT-2: loss,
gradients (one micro-batch and two), and the parameters after an update."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tcomp.dsl.ast import Module
from tcomp.dsl.load import load, load_text
from tcomp.machine.cpu import detect
from tcomp.model.build import build_step
from tcomp.model.programs import Programs, build_programs
from tcomp.model.request import StepRequest
from tcomp.model.unroll import build_graph
from tests.reference import torch_gpt2 as reference
from tests.tcomp.graph_interpreter import Memory, run

GPT2 = Path(__file__).resolve().parents[2] / "models" / "gpt2.tc"
CONFIG = reference.Config(L=2, H=2, C=8, V=11, S=7)
B, T = 2, 5


@pytest.fixture(scope="module")
def gpt2() -> Module:
    """With GELU's derivative behind the product that gives the gradient, on GPUs."""
    assert "early(dP, gpu)" in GPT2.read_text(encoding="utf-8")
    return load(GPT2)


def programs(module: Module, accumulation: int, target: str = "cpu") -> Programs:
    graph = build_graph(module, "gpt2", "tiny", {"B": B, "T": T}, asdict(CONFIG))
    return build_programs(graph, module, True, accumulation, targets=(target,))


def distance(got: np.ndarray, want: torch.Tensor) -> float:
    w = want.detach().numpy()
    return float(np.linalg.norm(got - w) / (np.linalg.norm(w) + 1e-12))


def memory_of(p: Programs, params: reference.Params, accumulation: int) -> Memory:
    memory = Memory({q.tensor: params[q.tensor.name].numpy() for q in p.graph.parameters})
    memory.write(p.seed.whole(), np.array(1.0 / accumulation))
    return memory


def feed(memory: Memory, p: Programs, batch: reference.Batch) -> None:
    for name, value in zip(("tokens", "targets"), batch, strict=True):
        memory.write(p.graph.inputs[name].whole(), value.numpy())


def recomputing() -> Module:
    """GPT-2 whose layer norms and up-projections are computed again for the backward pass."""
    lines = GPT2.read_text(encoding="utf-8").splitlines()
    marked = [_recompute(x) if "= layernorm(" in x or "= linear_gelu(" in x else x for x in lines]
    assert marked != lines
    return load_text("\n".join(marked) + "\n", "gpt2-recomputing.tc")


def _recompute(line: str) -> str:
    """With the annotation, before others where there are some."""
    return f"{line}recompute," if line.endswith(" [") else f"{line} [recompute]"


@pytest.mark.parametrize("target", ["cpu", "gpu"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_loss_and_gradients_are_those_of_torch(gpt2: Module, accumulation: int, target: str) -> None:
    check_gradients(gpt2, accumulation, target)


def test_recomputed_values_give_the_same_gradients_in_less_memory(gpt2: Module) -> None:
    again = recomputing()
    for target in ("cpu", "gpu"):
        check_gradients(again, 1, target)
    plain, less = (
        build_step(m, StepRequest("gpt2", "tiny", {"B": 4, "T": 64}), detect(), threads=1) for m in (gpt2, again)
    )
    assert len(less.programs["micro_first"]) == len(plain.programs["micro_first"]) + 3 * 4 + 1
    assert less.arena_bytes < 0.85 * plain.arena_bytes


def check_gradients(gpt2: Module, accumulation: int, target: str) -> None:
    params = reference.random_params(CONFIG, 3, torch.float64)
    batches = reference.random_batches(CONFIG, 4, B, T, accumulation)
    p = programs(gpt2, accumulation, target)
    memory = memory_of(p, params, accumulation)
    losses = []
    for i, batch in enumerate(batches):
        feed(memory, p, batch)
        run(p.forward_next if i else p.forward, gpt2, memory)
        losses.append(float(memory.read(p.graph.loss)))
        run(p.backward_next if i else p.backward, gpt2, memory)
    want = reference.train_steps(params, batches, CONFIG, accumulation=accumulation)
    assert np.mean(losses) == pytest.approx(want.losses[0], rel=1e-12)
    for parameter, gradient in p.gradients.items():
        got = memory.read(gradient.whole())
        assert distance(got, want.gradients[0][parameter.name]) < 1e-10, parameter.name


def test_an_update_on_flat_vectors_is_that_of_torch(gpt2: Module) -> None:
    """Parameters and gradients are laid side by side, padding included, as the arena has them."""
    params = reference.random_params(CONFIG, 5, torch.float64)
    batches = reference.random_batches(CONFIG, 6, B, T, 1)
    p = programs(gpt2, 1)
    assert p.update is not None
    memory = memory_of(p, params, 1)
    feed(memory, p, batches[0])
    run(p.forward + p.backward, gpt2, memory)
    flats = p.update.flats
    for name, flat in flats.items():
        memory.write(flat.whole(), np.zeros(flat.elements))
        for parameter in p.gradients:
            at = p.layout.offsets[parameter.name]
            source = parameter if name == "p" else p.gradients[parameter]
            if name in ("p", "g"):
                memory.flat[flat][at : at + parameter.elements] = memory.read(source.whole()).reshape(-1)
    memory.write(p.step.whole(), np.array(0))
    for tensor, value in p.update.hyper.items():
        memory.write(tensor.whole(), np.array(value))
    run(p.update.nodes, gpt2, memory)
    want = reference.train_steps(params, batches, CONFIG)
    assert float(memory.read(p.update.results["norm"].whole())) == pytest.approx(want.norms[0], rel=1e-10)
    used = np.zeros(p.layout.elements, bool)
    for parameter in p.gradients:
        at = p.layout.offsets[parameter.name]
        got = memory.flat[flats["p"]][at : at + parameter.elements].reshape(parameter.shape)
        assert distance(got, want.params[parameter.name]) < 1e-10, parameter.name
        used[at : at + parameter.elements] = True
    assert not used.all(), "this configuration has padding"
    for name, flat in flats.items():
        assert not memory.flat[flat][~used].any(), f"padding of {name} stays zero"
