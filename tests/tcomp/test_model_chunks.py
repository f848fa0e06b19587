"""Results made in row chunks: never whole in memory, the same training, refused where rows depend on each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load, load_text
from tcomp.model.chunks import in_chunks
from tcomp.model.graph import Graph
from tcomp.model.unroll import build_graph
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


def test_chunks_train_as_the_whole(tmp_path: Path) -> None:
    """GPT-2, rows that the chunks do not divide, two micro-batches; the head is tied, so its gradient adds up."""
    cfg = gpt2.Config(L=1, H=2, C=32, V=211, S=64)
    hyper = gpt2.Hyper(peak_lr=2e-3, warmup=3, total=12)
    params, batches = gpt2.random_params(cfg, 1), gpt2.random_batches(cfg, 2, 2, 19, 6)
    want = gpt2.train_steps(doubled(params), batches, cfg, hyper, 2)
    with built("gpt2", {**asdict(cfg), "K": 3}, 2, 19, 2, 2, tmp_path) as (step, executor):
        assert max(s.shape[0] for n, s in step.slots.items() if "logits" in n) == 16
        run = train(step, executor, params, batches, hyper, 2)
    assert_same(run, want)


@pytest.mark.slow
def test_llama_trains_in_chunks(tmp_path: Path) -> None:
    cfg = llama.Config(L=1, H=2, G=1, D=16, C=32, F=48, V=300, TIED=0)
    hyper = gpt2.Hyper(peak_lr=2e-3, warmup=3, total=12)
    params, batches = llama.random_params(cfg, 1), gpt2.random_batches(cfg, 2, 2, 19, 6)
    want = gpt2.train_steps(doubled(params), batches, cfg, hyper, 2, llama.forward, llama.MATRICES)
    with built("llama", {**llama.dims(cfg), "K": 4}, 2, 19, 2, 2, tmp_path) as (step, executor):
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
