"""Formatting keeps the meaning and the comments, and does nothing the second time."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from tcomp.dsl.errors import TcError
from tcomp.dsl.format import format_text
from tcomp.dsl.load import library
from tcomp.dsl.parse import parse

FILES = [*sorted(library().rglob("*.tc")), *sorted((Path(__file__).parents[1] / "tcomp" / "illegal").glob("*.tc"))]


def comments(text: str) -> list[str]:
    return [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_formatting_twice_changes_nothing_more(path: Path) -> None:
    once = format_text(path.read_text(), path.name)
    assert format_text(once, path.name) == once


@pytest.mark.parametrize("path", sorted(library().rglob("*.tc")), ids=lambda p: p.stem)
def test_formatting_keeps_items_and_comments(path: Path) -> None:
    text = path.read_text()
    formatted = format_text(text, path.name)
    assert parse(formatted).items == parse(text).items
    assert comments(formatted) == comments(text)


UGLY = """\
#first


op   a( X:f32[ N ,M] ,   # the input
     # more
   lr:f32[] ; V )
 -> Y :f32[N]: # out
     # about s
     s[n]=sum m where m<=n and(m>-1):X[n,m]*-2**-n   # first
     Y[n]  = -s[n]+(-1)*lr   - -1  #second line
     # the end of a


# about b
fn f(x)= x*x
schedule a,
 b on cpu,gpu :
    for  b :
     raster 8
    tune A=4 from 1,2,64 .. 128 step 32
    where(A<=4)and A>1
    n->core( 4 )/unroll(2)/vec 8
    stage X in packed at n by copy swizzle( 128 )
model g(B):
    config 1M: L=1,C=200
    config 234M: L=1000,C=2
    forward:
        x=f(a,b  as[B*2] , V=3)[recompute]   # c
        for l in L :
            x=f(x , w [ l ])
    loss x
"""
CLEAN = """\
# first

op a(X: f32[N, M],  # the input
    # more
    lr: f32[]; V)
    -> Y: f32[N]:  # out
  # about s
  s[n] = sum m where m <= n and (m > -1): X[n, m] * -2 ** -n  # first
  Y[n] = -s[n] + (-1) * lr - -1                               # second line
  # the end of a

# about b
fn f(x) = x * x
schedule a,
    b on cpu, gpu:
  for b:
    raster 8
  tune A = 4 from 1, 2, 64..128 step 32
  where (A <= 4) and A > 1
  n -> core(4) / unroll(2) / vec 8
  stage X in packed at n by copy swizzle(128)
model g(B):
  config 1M:   L = 1,    C = 200
  config 234M: L = 1000, C = 2
  forward:
    x = f(a, b as [B * 2], V = 3) [recompute]  # c
    for l in L:
      x = f(x, w[l])
  loss x
"""


def test_the_format() -> None:
    assert format_text(UGLY) == CLEAN


@given(
    st.lists(
        st.sampled_from(["", " ", "  ", "# c", "  # deep", "    #deeper", "\t"]), min_size=len(CLEAN.splitlines()) + 1
    )
)
@settings(max_examples=100, deadline=None)
def test_comments_and_blank_lines_anywhere_are_kept_in_order(extra: list[str]) -> None:
    lines = CLEAN.splitlines()
    mixed = "\n".join(x for pair in zip(extra, lines, strict=False) for x in pair) + "\n" + extra[-1] + "\n"
    once = format_text(mixed)
    assert format_text(once) == once
    assert comments(once) == comments(mixed)


@given(st.lists(st.integers(0, 3), min_size=200, max_size=200))
@settings(max_examples=50, deadline=None)
def test_spaces_between_tokens_do_not_matter(gaps: list[int]) -> None:
    spaced, n = "", 0
    for ch in CLEAN:
        if ch == " " and spaced and spaced[-1] not in "\n ":
            n += 1
            ch = " " * (1 + gaps[n % len(gaps)])
        spaced += ch
    assert format_text(spaced.replace("#  ", "# ")).replace(" ", "") == CLEAN.replace(" ", "")


def test_text_that_does_not_parse_is_an_error() -> None:
    with pytest.raises(TcError):
        format_text("op f(", "broken.tc")
