"""Tiles in shared memory and registers: staging, barriers, rings, scatters, guards over tiles; what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.dsl.ast import DType, Num, Span
from tcomp.errors import UserError
from tcomp.ir.blocks import ThreadShape
from tcomp.ir.tile import SERIAL, Axis, Compute, Pack, Pitched, Scope, Spread
from tcomp.machine.gpu import H100
from tests.tcomp.nvptx.support import (
    at,
    axis,
    ex,
    fn,
    from_bits,
    grid,
    kernel,
    lanes,
    launch,
    local,
    loop,
    lowered,
    op,
    operand,
    registers,
    run,
    shared,
    tile_axis,
    to_bits,
)

RNG = np.random.default_rng(5)
FOUR = ThreadShape(4)
WIDE = Spread(1, "x", 32, "x", 4, 32)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def bare(a: Axis) -> Axis:
    return replace(a, spread=None)


def test_threads_exchange_through_a_shared_tile() -> None:
    n = 500
    a = tile_axis("i", 128, n, WIDE)
    reversed_ = op("-", op("-", fn("min", op("+", "i.0", 128), n), 1), "i")
    tile = shared("t", 128)
    body = [Compute(at("t", local("i")), at("X", "i"), (a,)), Compute(at("Y", "i"), at("t", reversed_), (a,))]
    k = kernel([operand("X", n), operand("Y", n)], [[grid("i", n, 128, *body)]], [tile], FOUR)
    ptx, _ = run(k, {"X": rand(n)})
    assert ptx.count("bar.sync") == 1


def test_each_threads_own_elements_need_no_barrier() -> None:
    n = 512
    a = tile_axis("i", 128, n, WIDE)
    body = [Compute(at("t", local("i")), at("X", "i"), (a,)), Compute(at("Y", "i"), at("t", local("i")), (a,))]
    k = kernel([operand("X", n), operand("Y", n)], [[grid("i", n, 128, *body)]], [shared("t", 128)], FOUR)
    ptx, _ = run(k, {"X": rand(n)})
    assert "bar.sync" not in ptx


def test_a_loop_waits_before_it_writes_again() -> None:
    n = 300
    a = tile_axis("i", 128, n, WIDE)
    total = Compute(at("Y", "i"), at("t", "j"), (a, axis("j", 100)), frozenset({"j"}), "sum")
    one = Compute(at("t", "j"), op("+", at("X", "j"), "i.0"), (axis("j", 100, WIDE),))
    k = kernel(
        [operand("X", 100), operand("Y", n)],
        [[grid("b", 1, 1, loop("i", n, 128, one, total))]],
        [shared("t", 100)],
        FOUR,
    )
    ptx, _ = run(k, {"X": rand(100)}, tolerance=1e-4)
    assert ptx.count("bar.sync") == 2


def test_an_operand_written_and_read_in_one_phase() -> None:
    a = axis("i", 128, WIDE)
    body = [
        Compute(at("Y", "i"), op("*", at("X", "i"), 2.0), (a,)),
        Compute(at("Z", "i"), at("Y", op("-", 127, "i")), (a,)),
    ]
    k = kernel([operand("X", 128), operand("Y", 128), operand("Z", 128)], [body], threads=FOUR)
    ptx, _ = run(k, {"X": rand(128)})
    assert ptx.count("bar.sync") == 1 and "ld.global.b32" in ptx


def test_one_thread_sums_for_all() -> None:
    """A shared scalar, written by the first thread, read by every one."""
    n = 100
    total = Compute(at("t"), at("X", "j"), (axis("j", n, Spread(1, "x", 32)),), frozenset({"j"}), "sum")
    use = Compute(at("Y", "i"), op("-", at("X", "i"), at("t")), (axis("i", n, WIDE),))
    k = kernel([operand("X", n), operand("Y", n)], [[total, use]], [shared("t")], FOUR)
    run(k, {"X": rand(n)}, tolerance=1e-4)


@pytest.mark.parametrize("by", ["copy", "cp.async"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F64])
@pytest.mark.parametrize("m,n", [(8, 64), (13, 50), (1, 3), (40, 128)])
def test_staged_tiles(by: str, dtype: DType, m: int, n: int) -> None:
    ma, na = tile_axis("m", 16, m), tile_axis("n", 32, n)
    tile = shared("t", 16, 32, layout=Pitched(40), dtype=dtype)
    use = Compute(at("Y", "m", "n"), at("t", local("m"), local("n")), (ma, replace(na, spread=Spread(4, "x", 32))))
    pack = Pack("t", (ma, na), at("X", "m", "n"), by=by)
    operands = [operand("X", m, n, dtype=dtype), operand("Y", m, n, dtype=dtype)]
    k = kernel(operands, [[grid("m", m, 16, grid("n", n, 32, pack, use))]], [tile], FOUR)
    ptx, _ = run(k, {"X": rand(m, n)})
    if (m, n) == (40, 128):
        wide = ("cp.async.cg.shared.global", "v4.b32", "v2.b64")
        assert any(w in ptx for w in wide[:1] if by == "cp.async") or any(w in ptx for w in wide[1:])


def test_a_tile_staged_transposed() -> None:
    m, n = 37, 70
    ma, na = tile_axis("m", 16, m), tile_axis("n", 32, n)
    tile = shared("t", 32, 16, layout=Pitched(17))
    use = Compute(at("Y", "n", "m"), at("t", local("n"), local("m")), (na, replace(ma, spread=lanes(1, 16))))
    for by in ("copy", "cp.async"):
        pack = Pack("t", (na, ma), at("X", "m", "n"), by=by)
        k = kernel(
            [operand("X", m, n), operand("Y", n, m)],
            [[grid("m", m, 16, grid("n", n, 32, pack, use))]],
            [tile],
            ThreadShape(2, 1, 16, 2),
        )
        run(k, {"X": rand(m, n)})


def test_three_dimensions_and_many_pieces() -> None:
    a, b, c = axis("a", 3), axis("b", 10), axis("c", 48)
    tile = shared("t", 3, 10, 48)
    use = Compute(at("Y", "a", "b", "c"), at("t", "a", "b", "c"), (a, b, replace(c, spread=lanes())))
    k = kernel(
        [operand("X", 3, 10, 48), operand("Y", 3, 10, 48)],
        [[Pack("t", (a, b, c), at("X", "a", "b", "c")), use]],
        [tile],
    )
    run(k, {"X": rand(3, 10, 48)})
    big = shared("t", 100, 33)
    rows, cols = axis("m", 100), axis("n", 33)
    use = Compute(at("Y", "m", "n"), at("t", "m", "n"), (rows, replace(cols, spread=lanes())))
    k = kernel(
        [operand("X", 100, 33), operand("Y", 100, 33)], [[Pack("t", (rows, cols), at("X", "m", "n")), use]], [big]
    )
    ptx, _ = run(k, {"X": rand(100, 33)})
    assert ptx.count("st.shared") < 20


@pytest.mark.parametrize("c", [32, 36, 50])
def test_a_scatter_runs_in_order(c: int) -> None:
    n = 23
    ids = RNG.integers(0, 5, n)
    body = Compute(
        at("dE", at("ids", "t"), "c"),
        at("g", "t", "c"),
        (axis("t", n), tile_axis("c", 64, c, lanes(2))),
        reducer="sum",
        accumulate=True,
        distinct=False,
    )
    operands = [operand("ids", n, dtype=DType.I32), operand("g", n, c), operand("dE", 5, c)]
    k = kernel(operands, [[grid("c", c, 64, body)]])
    run(k, {"ids": ids, "g": rand(n, c), "dE": rand(5, c)}, tolerance=1e-4)


@pytest.mark.parametrize("dtype", [DType.F32, DType.I32])
def test_blocks_add_to_one_place(dtype: DType) -> None:
    """The sum is exact here, so its order does not matter."""
    n = 90
    body = Compute(
        at("s", "c"),
        at("X", "m", "c"),
        (tile_axis("m", 16, n), axis("c", 21, lanes())),
        frozenset({"m"}),
        "sum",
        True,
        atomic=True,
    )
    k = kernel([operand("X", n, 21, dtype=dtype), operand("s", 21, dtype=dtype)], [[grid("m", n, 16, body)]])
    ptx, _ = run(k, {"X": RNG.integers(-50, 50, (n, 21)), "s": np.ones(21)})
    assert "red.global.add" in ptx


def test_a_register_tile_whose_ranges_differ_keeps_what_lies_beyond() -> None:
    s = Spread(2, "x", 32)
    whole, part = Axis("i", Num(0), Num(64), 64, spread=s), Axis("i", Num(0), op("+", "b.0", 37), 64, spread=s)
    body = [
        Compute(at("t", "i"), Num(5.0), (whole,)),
        Compute(at("t", "i"), at("X", "i"), (part,), reducer="sum", accumulate=True),
        Compute(at("Y", "b.0", "i"), at("t", "i"), (whole,)),
    ]
    k = kernel([operand("X", 64), operand("Y", 3, 64)], [[grid("b", 3, 1, *body)]], [registers("t", (64, s))])
    run(k, {"X": rand(64)})


def test_a_guarded_register_assignment() -> None:
    s = lanes(2)
    a = axis("i", 64, s)
    body = [
        Compute(at("t", "i"), at("X", "i"), (a,)),
        Compute(at("t", "i"), Num(0.0), (a,), guard=op(">", "i", 40)),
        Compute(at("Y", "i"), at("t", "i"), (a,)),
    ]
    run(kernel([operand("X", 64), operand("Y", 64)], [body], [registers("t", (64, s))]), {"X": rand(64)})


def test_bf16_registers_are_rounded() -> None:
    s = lanes(2)
    a = axis("i", 64, s)
    body = [Compute(at("t", "i"), at("X", "i"), (a,)), Compute(at("Y", "i"), at("t", "i"), (a,))]
    k = kernel([operand("X", 64), operand("Y", 64)], [body], [registers("t", (64, s), dtype=DType.BF16)])
    ptx, _ = run(k, {"X": rand(64)}, tolerance=5e-3)
    assert "cvt.rn.bf16" in ptx


def test_a_causal_loop_over_tiles() -> None:
    """Rows q of a triangle: k runs in tiles up to the diagonal, guarded within."""
    n, s = 50, Spread(1, "y", 4)
    q, k = tile_axis("q", 8, n, s), tile_axis("k", 16, n, Spread(1, "x", 8))
    acc = registers("acc", (8, s))
    end = fn("min", op("+", "q.0", 8), n)
    add = Compute(at("acc", local("q")), at("X", "q", "k"), (q, k), frozenset({"k"}), "sum", True, op("<=", "k", "q"))
    body = [
        Compute(at("acc", local("q")), Num(0.0), (q,)),
        replace(loop("k", n, 16, add), stop=end),
        Compute(at("Y", "q"), at("acc", local("q")), (q,)),
    ]
    run(
        kernel([operand("X", n, n), operand("Y", n)], [[grid("q", n, 8, *body)]], [acc], ThreadShape(1, 1, 8, 4)),
        {"X": rand(n, n)},
        tolerance=1e-4,
    )


# ------------------------------------------------------------------------------------------- refusals


def test_too_much_shared_memory_names_the_tiles() -> None:
    a = axis("i", 60000, WIDE)
    body = [Compute(at("t", "i"), at("X", "i"), (a,)), Compute(at("Y", "i"), at("t", "i"), (a,))]
    k = kernel([operand("X", 60000), operand("Y", 60000)], [body], [shared("t", 60000)], FOUR)
    with pytest.raises(UserError, match=r"240,\d+ bytes of shared memory; a block has 232,448(.|\n)*t 240,000"):
        compile_kernel(k, H100)


def test_a_register_tile_walked_by_other_threads() -> None:
    a, b = axis("i", 64, lanes(2)), axis("i", 64, lanes(1))
    span = Span("x.tc", 3, 5, 3, 9)
    body = [Compute(at("t", "i"), at("X", "i"), (a,)), Compute(at("Y", "i"), at("t", "i"), (b,))]
    k = kernel([operand("X", 64), operand("Y", 64)], [body], [registers("t", (64, lanes(2)))])
    with pytest.raises(Unsupported, match=r"x\.tc:3:5: 't' in registers(.|\n)*help: map these loops in another way"):
        compile_kernel(replace(k, span=span), H100)


def test_two_axes_along_one_dimension() -> None:
    body = Compute(
        at("Y", "i", "j"), ex(0.0), (axis("i", 64, lanes()), axis("j", 64, lanes())), span=Span("x.tc", 3, 5, 3, 9)
    )
    with pytest.raises(Unsupported, match=r"x\.tc:3:5: 'i' and 'j' are both divided along lane\.x"):
        compile_kernel(kernel([operand("Y", 64, 64)], [[body]]), H100)


def test_a_kernel_without_threads() -> None:
    k = kernel([operand("Y", 4)], [[Compute(at("Y", "i"), ex(0.0), (axis("i", 4),))]])
    with pytest.raises(Unsupported, match="not lowered for a GPU"):
        compile_kernel(replace(k, blocks=None), H100)
    scratch = replace(shared("t", 4), scope=Scope.SCRATCH)
    body = [Compute(at("t", "i"), ex(0.0), (axis("i", 4),)), Compute(at("Y", "i"), at("t", "i"), (axis("i", 4),))]
    with pytest.raises(Unsupported, match="scratch"):
        compile_kernel(kernel([operand("Y", 4)], [body], [scratch]), H100)
    assert SERIAL.grain == 1


NARROW = """
op f(X: bf16[M], c: f32[M]) -> P: bf16[M], Y: f32[M]:
  t[m]: {narrow} = X[m] * c[m]
  P[m] = t[m] * 1.5
  Y[m] = P[m] * 3.0 + t[m]

schedule f on gpu:
  m -> grid(64) / lane
"""


@pytest.mark.parametrize("narrow", ["bf16", "e4m3", "f16"])
def test_what_is_inlined_is_read_as_it_was_rounded(narrow: str) -> None:
    """A result is stored as well; readers compute it, and a temporary, again, to the bits that they would have read."""
    text = NARROW.format(narrow=narrow)
    x, c = np.linspace(-2, 3, 70, dtype=np.float32), np.linspace(1, 1.7, 70, dtype=np.float32)
    plain, inlined = lowered(text, {"M": 70}), lowered(text + "  inline t, P\n", {"M": 70})
    assert "P" in plain.reads and inlined.reads == {"X", "c"} and inlined.writes == {"P", "Y"}
    found = [launch(k, compile_kernel(k, H100), {"X": x, "c": c})[0] for k in (plain, inlined)]
    for name in ("P", "Y"):
        np.testing.assert_array_equal(found[0][name], found[1][name])
    held = from_bits(to_bits(x, DType.BF16), DType.BF16) * c
    unrounded = from_bits(to_bits(held * np.float32(1.5), DType.BF16), DType.BF16) * np.float32(3.0) + held
    assert (found[1]["Y"] != unrounded).any(), "t is rounded"
