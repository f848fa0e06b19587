"""What an optimizer gives the model to read is what it keeps."""

from __future__ import annotations

import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.model.stored import check_stored

SGD = """
op sgd(inout p: f32[N], g: f32[N], lr: f32[]) -> w: real[N]:
"""
MATRICES = """
op step(inout p: f32[R, C], g: f32[R, C], lr: f32[]) -> w: real[R, C]:
  {0}
  {1}

update sgd(inout p: f32[R, C], g: f32[R, C], lr: f32[]) -> w: real[R, C]:
  w = step(p, g, lr)
"""
CHANGE, COPY = "p[r, c] = p[r, c] - lr * g[r, c]", "w[r, c] = p[r, c]"
RIGHT = {
    "copied": ("p[i] = p[i] - lr * g[i]", "w[i] = p[i]"),
    "the same again": ("w[i] = p[i] - lr * g[i]", "p[i] = w[i]"),
    "rounded": ("p[i] = p[i] - lr * g[i]", "w[i] = real(p[i], random(i, 3))"),
}
WRONG = {
    "before": (("w[i] = p[i]", "p[i] = p[i] - lr * g[i]"), "write this equation last, as `w[..] = p[..]`"),
    "other": (("p[i] = p[i] - lr * g[i]", "w[i] = 2.0 * p[i]"), "write this equation, as `w[..] = p[..]`"),
}


def test_a_state_of_whole_numbers_is_left_to_who_refuses_it() -> None:
    text = (
        SGD.replace("lr: f32[]", "lr: f32[], inout c: i32[N]")
        + "  c[i] = c[i] + 1\n  p[i] = p[i] - lr * g[i]\n  w[i] = p[i]\n"
    )
    check_stored("sgd", load_text(text, "sgd.tc"))


@pytest.mark.parametrize("lines", RIGHT.values(), ids=RIGHT)
def test_the_kept_parameters_by_whatever_equations(lines: tuple[str, str]) -> None:
    check_stored("sgd", load_text(SGD + "".join(f"  {line}\n" for line in lines), "sgd.tc"))


@pytest.mark.parametrize(("lines", "hint"), WRONG.values(), ids=WRONG)
def test_others_are_refused(lines: tuple[str, str], hint: str) -> None:
    with pytest.raises(TcError, match="'w' of 'sgd' is not 'p', so the model would read other parameters") as e:
        check_stored("sgd", load_text(SGD + "".join(f"  {line}\n" for line in lines), "sgd.tc"))
    assert e.value.hint == hint


def test_so_is_the_last_call_of_an_update() -> None:
    check_stored("sgd", load_text(MATRICES.format(CHANGE, COPY), "sgd.tc"))
    with pytest.raises(TcError, match="'w' of 'step' is not 'p'"):
        check_stored("sgd", load_text(MATRICES.format(COPY, CHANGE), "sgd.tc"))
