"""Results made in row chunks: never whole in memory, the same training, refused where rows depend on each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.machine.cpu import CpuMachine, detect
from tcomp.machine.gpu import GpuMachine, machine_named
from tcomp.model.build import build_step
from tcomp.model.chunks import backward_order, in_chunks
from tcomp.model.graph import Graph
from tcomp.model.parts import with_parts
from tcomp.model.request import StepRequest
from tcomp.model.unroll import build_graph
from tcomp.runtime.initialise import initialise
from tests.reference import torch_gpt2 as gpt2, torch_llama as llama
from tests.reference.runs import MODELS, assert_same, built, doubled, train

TEXT = """
op mix(X: f32[M, K], W: f32[K]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] * W[k]

op square(X: f32[M, K]) -> y: f32[M], z: f32[M, K]:
  y[m] = sum k: X[m, k] * X[m, k]
  z[m, k] = X[m, k] * y[m]

op running(X: f32[M, K]) -> Y: f32[M, K]:
  Y[m, k] = sum n where n <= m: X[n, k]

op numbered(X: f32[M, K]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] * m

op total(X: f32[M, K]) -> y: f32[]:
  y = sum m, k: X[m, k]

op averaged(X: f32[M, K]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] / M

model small(B):
  config one: C = 4, K = 3
  param w: f32[C] = ones
  input x: f32[B, C]
  forward:
    a = mix(x, w) [chunks(K)]
{lines}
  loss loss
"""


def graph(*lines: str, rows: int = 37) -> Graph:
    module = load_text(TEXT.replace("{lines}", "\n".join(f"    {line}" for line in lines)), "small.tc")
    return in_chunks(build_graph(module, "small", "one", {"B": rows}), module)


def test_a_model_writes_though_training_never_has_its_logits_whole() -> None:
    sizes, dims = {"B": 2, "T": 16}, {"L": 1, "H": 2, "C": 16, "K": 2}
    step = build_step(load(MODELS / "gpt2.tc"), StepRequest("gpt2", "tiny", sizes, dims), detect(), 1)
    assert step.writes and "logits" not in step.slots


def test_maker_and_reader_take_turns() -> None:
    g = graph("y, z = square(a)", "loss = total(z)")
    assert [n.label for n in g.nodes] == [
        "mix w (chunk 1 of 3)", "square (chunk 1 of 3)", "mix w (chunk 2 of 3)", "square (chunk 2 of 3)",
        "mix w (chunk 3 of 3)", "square (chunk 3 of 3)", "total",
    ]  # fmt: skip
    rows = [(n.operands["y"].offset, n.operands["y"].shape) for n in g.nodes if n.op.name == "square"]
    assert rows == [(0, (16,)), (16, (16,)), (32, (5,))]
    inputs = [(n.operands["X"].offset, n.operands["X"].shape) for n in g.nodes if n.op.name == "mix"]
    assert inputs == [(0, (16, 4)), (64, (16, 4)), (128, (5, 4))]
    assert all(n.recompute == {"Y"} for n in g.nodes if n.op.name == "mix")
    assert max(v.tensor.elements for n in g.nodes for v in n.operands.values() if v.tensor.name.startswith("a")) == 64


def test_fewer_rows_than_chunks_and_no_reader() -> None:
    assert sum(n.op.name == "mix" for n in graph("y, z = square(a)", "loss = total(z)", rows=9).nodes) == 2
    assert [n.label for n in graph("loss = total(x)").nodes] == ["total", "mix w"]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (("loss = total(a)",), "'total' does not treat the rows of 'X' one by one: 'y' is of all rows"),
        (("b = running(a)", "loss = total(b)"), "the equation of 'Y' reads other rows"),
        (("b = numbered(a)", "loss = total(b)"), "the equation of 'Y' depends on which row it is"),
        (("b = averaged(a)", "loss = total(b)"), "the equation of 'Y' depends on their number"),
        (("y, z = square(a) [recompute]", "loss = total(z)"), "cannot be recomputed itself"),
        (("y, z = square(a as [B * 2, C // 2])", "loss = total(z)"), "in another shape than they are made in"),
    ],
)
def test_rows_that_depend_on_each_other_are_refused(lines: tuple[str, ...], reason: str) -> None:
    with pytest.raises(TcError) as e:
        graph(*lines)
    assert reason in e.value.message


def test_the_backward_of_parts_runs_from_the_first_to_the_last() -> None:
    nodes = graph("y, z = square(a)", "loss = total(z)").nodes
    order = [n.label for n in backward_order(nodes)]
    assert order == ["total"] + [f"{op} (chunk {i} of 3)" for i in (1, 2, 3) for op in ("square", "mix w")]


HEAD = {"L": 1, "H": 2, "C": 16, "V": 61, "S": 512}


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_where_the_text_leaves_it_open_long_batches_are_made_in_parts_on_cpus(model: str) -> None:
    module = load(MODELS / f"{model}.tc")

    def parts(B: int, machine: CpuMachine | GpuMachine, **more: Any) -> list[int]:
        whole = build_graph(
            module, model, "tiny", {"B": B, "T": 128}, more.pop("dims", {}), more.pop("precision", None)
        )
        return [n.chunks for n in with_parts(whole, module, machine).nodes if n.chunks != 1]

    assert parts(7, detect()) == [] and parts(8, detect()) == [2] and parts(13, detect()) == [3]
    assert parts(8, detect(), precision="bf16") == []
    assert parts(8, detect(), dims={"K": 1}) == [] and parts(2, detect(), dims={"K": 5}) == [5]
    assert parts(8, machine_named("h100")) == []


def test_no_parts_of_its_own_accord_where_the_gradient_is_not_there_at_once() -> None:
    text = (MODELS / "gpt2.tc").read_text().replace(" [at_once(crossentropy_at_once)]", "")
    module = load_text(text, str(MODELS / "own.tc"))
    whole = build_graph(module, "gpt2", "tiny", {"B": 8, "T": 128})
    assert all(n.chunks == 1 for n in with_parts(whole, module, detect()).nodes)


def test_parts_take_less_memory_and_a_forward_pass_alone_leaves_their_backward_out() -> None:
    module = load(MODELS / "gpt2.tc")
    dims = {**HEAD, "V": 50000, "L": 2}
    whole, parts = (
        build_step(module, StepRequest("gpt2", "tiny", {"B": 2, "T": 512}, dims={**dims, "K": k}), detect())
        for k in (1, 0)
    )
    size = 1024 * 50048 * 4
    assert whole.arena_bytes - parts.arena_bytes > 0.49 * size
    assert parts.arena_bytes <= 1.02 * parts.lower_bound_bytes
    labels = [launch.label for launch in parts.programs["forward"]]
    assert len([x for x in labels if "chunk 2 of 2" in x]) == 2 and not any("matmul.backward" in x for x in labels)
    passed = [launch for launch in parts.programs["micro_first"] if launch in parts.programs["forward"]]
    assert tuple(passed) == parts.programs["forward"], "at the same addresses"


@pytest.mark.slow
def test_parts_give_the_same_losses_and_gradients(objects: Path) -> None:
    """Bit for bit but the head's gradient, whose sum over the rows is made in other parts."""
    found: list[dict[str, np.ndarray]] = []
    for k in (1, 3):
        with built("gpt2", {**HEAD, "V": 211, "K": k}, 2, 19, 2, 1, objects) as (step, executor):
            initialise(executor, 1, 1)
            rng, values = np.random.default_rng(5), {}
            for program in ("micro_first", "micro_next"):
                for name in ("tokens", "targets"):
                    executor.array(name)[...] = rng.integers(0, 211, executor.array(name).shape)
                for one in ("forward", program):
                    executor.run(one)
                    values[f"loss of {one}, {program}"] = executor.read("loss").copy()
                assert values[f"loss of forward, {program}"] == values[f"loss of {program}, {program}"]
            found.append(values | {n: executor.read(n).copy() for n, s in step.slots.items() if s.kind == "gradient"})
    whole, parts = found
    np.testing.assert_allclose(parts.pop("grad.wte"), whole.pop("grad.wte"), rtol=1e-4, atol=1e-7)
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values, err_msg=name)


@pytest.mark.slow
def test_chunks_train_as_the_whole(objects: Path) -> None:
    """GPT-2, rows that the chunks do not divide, two micro-batches; the head is tied, so its gradient adds up."""
    cfg = gpt2.Config(L=1, H=2, C=32, V=211, S=64)
    hyper = gpt2.Hyper(peak_lr=2e-3, warmup=3, total=12)
    params, batches = gpt2.random_params(cfg, 1), gpt2.random_batches(cfg, 2, 2, 19, 6)
    want = gpt2.train_steps(doubled(params), batches, cfg, hyper, 2)
    with built("gpt2", {**asdict(cfg), "K": 3}, 2, 19, 2, 2, objects) as (step, executor):
        assert max(s.shape[0] for n, s in step.slots.items() if "logits" in n) == 16
        run = train(step, executor, params, batches, hyper, 2)
    assert_same(run, want)


@pytest.mark.slow
def test_llama_trains_in_chunks(objects: Path) -> None:
    cfg = llama.Config(L=1, H=2, G=1, D=16, C=32, F=48, V=300, TIED=0)
    hyper = gpt2.Hyper(peak_lr=2e-3, warmup=3, total=12)
    params, batches = llama.random_params(cfg, 1), gpt2.random_batches(cfg, 2, 2, 19, 6)
    want = gpt2.train_steps(doubled(params), batches, cfg, hyper, 2, llama.forward, llama.MATRICES)
    with built("llama", {**llama.dims(cfg), "K": 4}, 2, 19, 2, 2, objects) as (step, executor):
        run = train(step, executor, params, batches, hyper, 2)
    assert_same(run, want)


def test_the_peak_at_a_vocabulary_of_128k() -> None:
    """One chunk's logits and their gradient share a buffer; whole logits would be 1 GiB."""
    module = load(MODELS / "llama.tc")
    g = in_chunks(build_graph(module, "llama", "1B", {"B": 1, "T": 2048}, {"L": 1, "K": 16}), module)
    largest = max((v.tensor for n in g.nodes for v in n.operands.values() if v.tensor.kind == "activation"),
                  key=lambda t: t.bytes)  # fmt: skip
    assert largest.bytes == 2048 * 2 * 8192 * 4, "the largest activation is the feed-forward layer's"
    assert g.logits is None
