"""What the code generator believes about integers is true: checked against all values of small loops."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings, strategies as st

from tcomp.codegen.llvm.integers import Affine, Facts, Known, affine_form, extent
from tcomp.dsl.ast import Binary, Call, Expr, Name, Num, Unary
from tcomp.ir.tile import Axis


def evaluate(e: Expr, values: dict[str, int]) -> int:
    match e:
        case Num(v):
            return int(v)
        case Name(name):
            return values[name]
        case Unary("-", x):
            return -evaluate(x, values)
        case Call("min", (x, y)):
            return min(evaluate(x, values), evaluate(y, values))
        case Call("max", (x, y)):
            return max(evaluate(x, values), evaluate(y, values))
        case Binary(op, x, y):
            a, b = evaluate(x, values), evaluate(y, values)
            return {"+": a + b, "-": a - b, "*": a * b}.get(op, 0) if op in "+-*" else a // b if op == "//" else a % b
    raise AssertionError(e)


def holds(known: Known, value: int) -> bool:
    inside = (known.lo is None or known.lo <= value) and (known.hi is None or value <= known.hi)
    congruent = value == known.residue if known.modulus == 0 else (value - known.residue) % known.modulus == 0
    return inside and congruent


leaves = st.sampled_from([Name("x"), Name("y")]) | st.integers(-20, 20).map(Num)
expressions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from("+-"), inner, inner).map(lambda t: Binary(*t)),
        st.tuples(inner, st.integers(-6, 6)).map(lambda t: Binary("*", t[0], Num(t[1]))),
        st.tuples(st.sampled_from(["//", "%"]), inner, st.integers(1, 9)).map(lambda t: Binary(t[0], t[1], Num(t[2]))),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda t: Call(t[0], (t[1], t[2]))),
        inner.map(lambda x: Unary("-", x)),
    ),
    max_leaves=6,
)
loops = st.tuples(st.integers(-10, 10), st.integers(1, 40), st.integers(1, 12))


@settings(max_examples=300, deadline=None)
@given(expressions, loops, loops)
def test_every_value_is_as_known(e: Expr, x: tuple[int, int, int], y: tuple[int, int, int]) -> None:
    facts = Facts()
    ranges = {}
    for name, (start, length, step) in (("x", x), ("y", y)):
        facts.symbols[name] = facts.loop(Num(start), Num(start + length), step)
        ranges[name] = range(start, start + length, step)
    known = facts.of(e)
    for a, b in product(ranges["x"], ranges["y"]):
        assert holds(known, evaluate(e, {"x": a, "y": b}))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5))
def test_the_extent_of_a_tile_is_as_known(size: int, step: int, block: int, threads: int) -> None:
    """start = t in range(s, s.stop, block), stop = min(t + block, s.stop), s a share of range(0, size, step)."""
    facts = Facts()
    facts.symbols["s"], facts.symbols["s.stop"] = facts.chunk(Num(0), Num(size), step)
    facts.symbols["t"] = facts.loop(Name("s"), Name("s.stop"), block)
    axis = Axis("i", Name("t"), Call("min", (Binary("+", Name("t"), Num(block)), Name("s.stop"))), block)
    known = extent(axis, facts)
    units = -(-size // step)
    for thread in range(threads):
        first, last = thread * units // threads * step, min(size, (thread + 1) * units // threads * step)
        for t in range(first, last, block):
            assert holds(known, min(t + block, last) - t)


def test_whole_tiles_need_no_tail() -> None:
    facts = Facts()
    facts.symbols["n"] = facts.loop(Num(0), Num(768), 192)
    assert (
        extent(Axis("i", Name("n"), Call("min", (Binary("+", Name("n"), Num(192)), Num(768))), 192), facts).value == 192
    )
    facts.symbols["s"], facts.symbols["s.stop"] = facts.chunk(Num(0), Num(768), 48)
    facts.symbols["m"] = facts.loop(Name("s"), Name("s.stop"), 192)
    share = Axis("i", Name("m"), Call("min", (Binary("+", Name("m"), Num(192)), Name("s.stop"))), 192)
    assert extent(share, facts).multiple_of(48)
    assert not extent(share, facts).multiple_of(96)


def test_affine_forms_cancel() -> None:
    form = affine_form(Binary("-", Binary("+", Name("n"), Num(3)), Name("n")))
    assert form is not None and form.terms == () and form.constant == 3
    assert affine_form(Binary("*", Name("n"), Name("m"))) is None


def test_an_affine_form_is_of_what_terms_leave() -> None:
    """Products of names, quotients and fractions are in none, unless they cancel."""
    n, k = Name("n"), Name("k")
    for other in (Binary("*", n, k), Binary("//", n, Num(4)), Binary("*", n, Num(0.5))):
        assert affine_form(Binary("+", other, k)) is None
        form = affine_form(Binary("-", Binary("+", other, k), other))
        assert form is not None and (form.terms, form.constant) == ((("k", 1),), 0)
    form = affine_form(Binary("-", Binary("*", Num(3), n), k), {"n": Affine((("b", 16),), 1)})
    assert form == Affine((("b", 48), ("k", -1)), 3)
