"""Where an input's values may pick what is beyond a tensor's end, the graph is refused at the call."""

from __future__ import annotations

import pytest

from tcomp.dsl.ast import Module
from tcomp.dsl.errors import TcError
from tcomp.dsl.files import library
from tcomp.dsl.load import load_text
from tcomp.model.unroll import build_graph

TEXT = """
op pick(at: i32[B], first: i32[], E: f32[N, C]) -> x: f32[]:
  y[b] = sum c: {picked}
  x = sum b: y[b]

model small(B):
  config one: N = 8, C = 2
  param E: f32[N, C] = zeros
  input at: i32[B] below {below}
  input first: i32[] below 3
  forward:
    loss = pick(at, first, E)
  loss loss
"""


def gpt2(below: str = "V") -> Module:
    """Its context has another name, and nothing says that texts end with it."""
    text = (library() / "gpt2.tc").read_text().replace("  require T <= S\n", "")
    return load_text(text.replace("below V", f"below {below}"), str(library() / "gpt2.tc"))


@pytest.mark.parametrize("at_once", [1, 8])
def test_positions_of_a_decoding_form_are_rows_of_its_table(at_once: int) -> None:
    module, sizes = gpt2(), {"B": 1, "T": at_once}
    build_graph(module, "gpt2", "tiny", {**sizes, "W": 128}, decode=True)
    with pytest.raises(TcError, match="input 'start' of the model may pick 128 of 'wpe', which has 128") as e:
        build_graph(module, "gpt2", "tiny", {**sizes, "W": 129}, decode=True)
    assert "shorter texts" in str(e.value.hint) and "wpe[start + t, c]" in e.value.notes[0]


def test_words_are_rows_of_their_table() -> None:
    sizes = {"B": 2, "T": 16}
    build_graph(gpt2("P"), "gpt2", "tiny", sizes)
    with pytest.raises(TcError, match="input 'tokens' of the model may pick 256 of 'wte', which has 256"):
        build_graph(gpt2("P + 1"), "gpt2", "tiny", sizes)


@pytest.mark.parametrize(
    ("picked", "most"),
    [
        ("E[at[b], c]", 8),
        ("E[at[b] + first, c]", 6),
        ("E[2 * at[b] + c, c]", 4),
        ("E[N - 1 - at[b], c]", None),
        ("E[min(at[b], N - 1), c]", None),
        ("select(at[b] < N, E[at[b], c], 0.0)", None),
    ],
)
def test_what_is_no_sum_of_inputs_and_indices_is_the_texts_own_affair(picked: str, most: int | None) -> None:
    def build(below: int) -> None:
        module = load_text(TEXT.format(picked=picked, below=below), "small.tc")
        build_graph(module, "small", "one", {"B": 2})

    if most is None:
        build(1000)
        return
    build(most)
    with pytest.raises(TcError, match=r"may pick \d of 'E', which has 8") as e:
        build(most + 1)
    assert e.value.span.line
