"""Ranges, temporaries and their types follow from the equations; dimensions follow from shapes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.dsl.ast import DType, Module, Op
from tcomp.dsl.check import diagnose, infer
from tcomp.dsl.dims import bind, evaluate_dim, operand_shape
from tcomp.dsl.errors import TcError
from tcomp.dsl.format import print_expression
from tcomp.dsl.inline import inline_functions
from tcomp.dsl.load import library, load, load_text, schedule_for
from tcomp.dsl.parse import parse, parse_expression
from tcomp.errors import UserError


def only(text: str) -> tuple[Op, Module]:
    module = load_text(text)
    return next(iter(module.ops.values())), module


def ranges(text: str) -> dict[str, str]:
    op, module = only(text)
    return {n: print_expression(e) for n, e in infer(op, module).ranges.items()}


def test_an_index_takes_the_extent_of_the_axis_it_stands_on() -> None:
    text = "op f(X: f32[M, 2 * K], W: f32[N, 2 * K]) -> Y: f32[M, N]:\n  Y[m, n] = sum k: X[m, k] * W[n, k]\n"
    assert ranges(text) == {"m": "M", "n": "N", "k": "2 * K"}


def test_equal_extents_may_be_written_differently() -> None:
    text = "op f(X: f32[2 * K], W: f32[K + K]) -> y: f32[]:\n  y = sum k: X[k] * W[k]\n"
    assert ranges(text) == {"k": "2 * K"}


def test_the_smallest_extent_wins_when_a_require_orders_them() -> None:
    text = "op f(x: f32[T], p: f32[S]) -> y: f32[S]:\n  require T <= S\n  y[t] = x[t] + p[t]\n"
    assert ranges(text) == {"t": "T"}


def test_requires_chain() -> None:
    text = "op f(x: f32[A], p: f32[C]; B) -> y: f32[C]:\n  require A <= B and C >= B\n  y[t] = x[t] + p[t]\n"
    assert ranges(text) == {"t": "A"}


def test_a_backward_op_may_rely_on_its_forward_ops_requires() -> None:
    text = (
        "op f(x: f32[T], p: f32[S]) -> y: f32[T]:\n  require T <= S\n  y[t] = x[t] + p[t]\n\n"
        "backward f(dy: f32[T]; S) -> dx: f32[T], dp: f32[S]:\n  dx[t] = dy[t]\n  dp[t] += dy[t]\n"
    )
    module = load_text(text)
    assert print_expression(infer(module.ops["f.backward"], module).ranges["t"]) == "T"


def test_ranges_pass_through_temporaries() -> None:
    text = "op f(X: f32[T, D]) -> y: f32[T]:\n  s[q, k] = sum d: X[q, d] * X[k, d]\n  y[i] = sum j: s[i, j]\n"
    assert ranges(text) == {"i": "T", "q": "T", "k": "T", "d": "D", "j": "T"}


def test_types_of_temporaries() -> None:
    op, module = only(
        "fn double(x) = 2 * x\n"
        "op f(a: f32[N], b: f64[N], i: i32[N], h: bf16[N]) -> y: f32[N]:\n"
        "  t1[n] = a[n] * 2\n"
        "  t2[n] = double(b[n]) + 0.5\n"
        "  t3[n] = double(i[n]) // 3 + n\n"
        "  t4[n] = h[n] * h[n]\n"
        "  t5[n] = i[n] / 2\n"
        "  t6[n]: bf16 = a[n]\n"
        "  t7[n] = f64(a[n])\n"
        "  t8[n] = i32(a[n])\n"
        "  y[n] = t1[n]\n"
    )
    assert [t.dtype for t in infer(op, module).temporaries.values()] == [
        DType.F32, DType.F64, DType.I32, DType.F32, DType.F32, DType.BF16, DType.F64, DType.I32,
    ]  # fmt: skip


def test_parallel_indices_include_those_inside_a_scatter() -> None:
    op, module = only("op f(ids: i32[B, T], g: f32[B, T, C]) -> d: f32[V, C]:\n  d[ids[b, t], c] += g[b, t, c]\n")
    info = infer(op, module)
    assert info.equation_indices == (("b", "t", "c"),)
    assert info.dims == ("B", "T", "C", "V")


@pytest.mark.parametrize(
    "text",
    [
        "op flatten(X: f32[T, H]) -> Y: f32[T * H]:\n  Y[t * H + h] = X[t, h]\n",
        "op even(X: f32[N]) -> Y: f32[2 * N]:\n  Y[2 * n] = X[n]\n",
        "op shift(X: f32[N]) -> Y: f32[N]:\n  Y[n] = select(n > 0, X[n - 1], 0.0)\n",
        "op pairs(X: f32[2 * N]) -> Y: f32[N]:\n  Y[n] = X[2 * n] + X[2 * n + 1]\n",
        "op window(X: f32[N + K]; K) -> Y: f32[N]:\n  index k: K\n  Y[n] = sum k: X[n + k]\n",
        "op group(X: f32[H, D], W: f32[H // 4, D]) -> Y: f32[H]:\n  Y[h] = sum d: X[h, d] * W[h // 4, d]\n",
    ],
    ids=lambda t: t.split("(")[0],
)
def test_affine_subscripts_that_stay_inside_are_accepted(text: str) -> None:
    load_text(text)


# ---------------------------------------------------------------------------------------- dimensions


def test_dimension_arithmetic() -> None:
    dims = {"V": 50257, "C": 768, "H": 12}
    assert evaluate_dim(parse_expression("(V + 127) // 128 * 128"), dims) == 50304
    assert evaluate_dim(parse_expression("min(C, V) % 5 == 3 and not H < 3"), dims) == 1
    assert evaluate_dim(parse_expression("0.02 / (2 * H) ** 0.5"), dims) == pytest.approx(0.02 / 24**0.5)
    with pytest.raises(TcError, match="'Q' is not known"):
        evaluate_dim(parse_expression("Q + 1"), dims)


def test_bind_solves_expressions_with_one_unknown() -> None:
    op, _ = only("op f(X: f32[M, 3 * K + 1]) -> Y: f32[K]:\n  Y[k] = X[0, k]\n")
    assert bind(op, {"X": (2, 13)}, {}) == {"M": 2, "K": 4}
    assert operand_shape(op.outputs[0], {"K": 4}) == (4,)
    with pytest.raises(TcError, match="not given by the shape"):
        bind(op, {"X": (2, 12)}, {})


def test_bind_refuses_shapes_that_contradict_each_other() -> None:
    op, _ = only("op f(X: f32[M, K], W: f32[N, K]) -> Y: f32[M, N]:\n  Y[m, n] = sum k: X[m, k] * W[n, k]\n")
    with pytest.raises(TcError, match=r"dimension 'K' of op 'f' is 3 .* and 4"):
        bind(op, {"X": (2, 3), "W": (5, 4)}, {})
    with pytest.raises(TcError, match="2 axes"):
        bind(op, {"X": (2,), "W": (5, 4)}, {})


def test_bind_checks_requires() -> None:
    op, _ = only("op f(x: f32[T], p: f32[S]) -> y: f32[T]:\n  require T <= S\n  y[t] = x[t] + p[t]\n")
    assert bind(op, {"x": (3,), "p": (3,)}, {}) == {"T": 3, "S": 3}
    with pytest.raises(TcError, match="requires"):
        bind(op, {"x": (4,), "p": (3,)}, {})


# ------------------------------------------------------------------------------------------- loading


def test_functions_are_expanded() -> None:
    module = load_text("fn sq(x) = x * x\nfn quad(x) = sq(sq(x))\n")
    e = inline_functions(parse_expression("quad(a + 1) - exp(a)"), module)
    assert print_expression(e) == "(a + 1) * (a + 1) * ((a + 1) * (a + 1)) - exp(a)"


def test_the_whole_library_is_free_of_errors() -> None:
    for path in sorted(library().rglob("*.tc")):
        load(path)


def test_imports_are_found_beside_the_file_before_the_library(tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops" / "linear.tc").write_text("import ops.math\nfn mine(x) = gelu(x)\n")
    (tmp_path / "main.tc").write_text("import ops.linear\nimport main\n")
    module = load(tmp_path / "main.tc")
    assert set(module.functions) == {"mine", *load(library() / "ops" / "math.tc").functions}
    assert "linear" not in module.ops


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load(tmp_path / "none.tc")
    (tmp_path / "bytes.tc").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        load(tmp_path / "bytes.tc")
    with pytest.raises(UserError, match="folder"):
        load(tmp_path)


def test_the_most_specific_schedule_is_chosen() -> None:
    module = load_text(
        "op f(X: f32[N]) -> Y: f32[N]:\n  Y[n] = X[n]\n\n"
        "schedule f on cpu:\n  n -> core\n\nschedule f on cpu.avx2:\n  n -> vec\n"
    )
    for chain, target in ((("cpu.avx2", "cpu"), "cpu.avx2"), (("cpu.avx512", "cpu"), "cpu")):
        chosen = schedule_for(module, "f", chain)
        assert chosen is not None and chosen.target == target
    assert schedule_for(module, "f", ("gpu",)) is None


def test_diagnose_gives_one_error_for_each_faulty_item() -> None:
    text = "op f(X: f32[N]) -> Y: f32[N]:\n  Y[n] = Z[n]\n\nop g(X: f32[N]) -> Y: f32[N]:\n  Y[n] = X[m]\n"
    assert [e.span.line for e in diagnose((parse(text, "two.tc"),))] == [2, 5]
