"""Text becomes the tree it says: precedence, blocks, continuation, what only the whole op decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.dsl import ast
from tcomp.dsl.ast import Access, Binary, Call, DType, Name, Num, Unary
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import library
from tcomp.dsl.parse import parse, parse_expression

A, B, C = Name("a"), Name("b"), Name("c")
MODEL_FILES = sorted(library().rglob("*.tc"))


def op(text: str) -> ast.Op:
    (item,) = parse(text).items
    assert isinstance(item, ast.Op)
    return item


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a + b * c", Binary("+", A, Binary("*", B, C))),
        ("a - b - c", Binary("-", Binary("-", A, B), C)),
        ("a ** b ** c", Binary("**", A, Binary("**", B, C))),
        ("-a ** b", Unary("-", Binary("**", A, B))),
        ("a ** -0.5", Binary("**", A, Num(-0.5))),
        ("-2 ** 2", Unary("-", Binary("**", Num(2), Num(2)))),
        ("(-2) ** 2", Binary("**", Num(-2), Num(2))),
        ("-(2)", Unary("-", Num(2))),
        ("-a * b", Binary("*", Unary("-", A), B)),
        ("a // b % c", Binary("%", Binary("//", A, B), C)),
        ("a < b and not b < c or c == a", None),
        ("a.m", Name("a.m")),
        ("64KB", Num(64 * 1024)),
        ("1e-5", Num(1e-5)),
        ("2.5e3", Num(2500.0)),
        ("bf16(a)", Call("bf16", (A,))),
        ("X[i, W[j] + 1,]", Access("X", (Name("i"), Binary("+", Access("W", (Name("j"),)), Num(1))))),
    ],
)
def test_expressions_bind_as_written(text: str, tree: ast.Expr | None) -> None:
    found = parse_expression(text)
    if tree is None:
        left = Binary("and", Binary("<", A, B), Unary("not", Binary("<", B, C)))
        tree = Binary("or", left, Binary("==", C, A))
    assert found == tree


def test_integer_and_real_literals_differ() -> None:
    assert isinstance(parse_expression("1").value, int)  # type: ignore[union-attr]
    assert isinstance(parse_expression("1.0").value, float)  # type: ignore[union-attr]


def test_spans_cover_exactly_the_text_of_each_node() -> None:
    text = "op f(X: f32[N]) -> Y: f32[N]:\n  Y[n] = exp(X[n]) * (X[n] + 1)\n"
    product = op(text).equations[0].value
    assert isinstance(product, Binary)
    line = text.splitlines()[1]

    def shown(e: ast.Expr) -> str:
        assert e.span.line == 2
        return line[e.span.column - 1 : e.span.end_column - 1]

    assert shown(product) == "exp(X[n]) * (X[n] + 1)"
    assert shown(product.left) == "exp(X[n])"
    assert shown(product.right) == "(X[n] + 1)"


def test_a_header_may_go_on_in_brackets_and_at_the_arrow() -> None:
    long = "op f(X: f32[N],  # input\n    lr: f32[];\n  V)\n    # result\n    -> Y: f32[N]:\n  Y[n] = X[n]\n"
    assert op(long) == op("op f(X: f32[N], lr: f32[]; V) -> Y: f32[N]:\n  Y[n] = X[n]\n")
    behind_commas = "schedule f,  # the first\n\n  g on gpu,\nsm_80:\n  m -> grid(1)\n"
    assert parse(behind_commas).items == parse("schedule f, g on gpu, sm_80:\n  m -> grid(1)\n").items


def test_neighbours_share_a_type() -> None:
    f = op("op f(A, B: f32[N], inout C: f32[M]) -> D, E: f32[N]:\n  D[n] = A[n]\n  E[n] = B[n]\n  C[m] = 0.0\n")
    assert [(o.name, o.inout) for o in f.operands] == [
        ("A", False),
        ("B", False),
        ("C", True),
        ("D", False),
        ("E", False),
    ]
    assert f.operand("E") == ast.Operand("E", DType.F32, (Name("N"),))


def test_scalar_operands_and_temporaries_are_read_as_accesses() -> None:
    f = op("op f(X: f32[M], lr: f32[]) -> y: f32[]:\n  s = sum m: X[m] * lr\n  y = s / M\n")
    reduction, value = (q.value for q in f.equations)
    assert isinstance(reduction, ast.Reduction)
    assert reduction.values == (Binary("*", Access("X", (Name("m"),)), Access("lr", ())),)
    assert value == Binary("/", Access("s", ()), Name("M"))
    assert f.equations[0].target == ast.Target("s", ())


def test_a_backward_is_named_after_its_op() -> None:
    f = op("backward g(X: f32[N]) -> dX: f32[N]:\n  dX[n] = X[n]\n")
    assert (f.name, f.backward_of) == ("g.backward", "g")


def test_the_comment_directly_above_is_the_doc() -> None:
    text = "# not this\n\n# What it does.\n#   Indented.\nop f(X: f32[N]) -> Y: f32[N]:\n  Y[n] = X[n]\n"
    assert op(text).doc == "What it does.\n  Indented."


def test_reductions_and_monoids() -> None:
    f = op(
        "op f(s: f32[Q, K], V: f32[K, E]) -> m: f32[Q], o: f32[Q, E]:\n"
        "  m[q], o[q, e] = expsum k where k <= q by s[q, k]: V[k, e]\n"
    )
    assert f.equations[0].value == ast.Reduction(
        "expsum",
        ("k",),
        Binary("<=", Name("k"), Name("q")),
        Access("s", (Name("q"), Name("k"))),
        (Access("V", (Name("k"), Name("e"))),),
    )


def test_keywords_are_names_where_they_cannot_be_keywords() -> None:
    f = op(
        "op f(step: i32[], loss: f32[N], order: f32[N]) -> norm: f32[N]:\n  norm[in] = loss[in] * order[in] + step\n"
    )
    assert f.equations[0].value == Binary(
        "+",
        Binary("*", Access("loss", (Name("in"),)), Access("order", (Name("in"),))),
        Access("step", ()),
    )


def test_every_directive() -> None:
    text = (
        "schedule f, g.backward on cpu.avx2:\n"
        "  tune BM = 64 from 8, 64..128 step 32\n"
        "  where BM <= 128 and BM * 4 <= 32KB\n"
        "  inline t, u\n"
        "  kernel y, z:\n"
        "    b, h -> core(1)\n"
        "    n of y -> seq(BM) / vec 128\n"
        "    order n, k, n\n"
        "    fuse s, y at n\n"
        "    stage X, W.1 in packed at n by cp.async swizzle(128) pad(4)\n"
        "    use fma for y\n"
        "    cast o.weight to bf16\n"
        "    combine y over n by partials\n"
    )
    first, second = parse(text).items
    assert isinstance(first, ast.Schedule) and isinstance(second, ast.Schedule)
    assert (first.op, second.op, first.target) == ("f", "g.backward", "cpu.avx2")
    assert first.kernels == second.kernels
    bm = Name("BM")
    assert first.shared == (
        ast.Tune("BM", Num(64), (Num(8), Num(64), Num(96), Num(128))),
        ast.Where((Binary("<=", bm, Num(128)), Binary("<=", Binary("*", bm, Num(4)), Num(32768)))),
        ast.Flag("inline", (Name("t"), Name("u"))),
    )
    assert first.kernels == (
        ast.KernelSchedule(
            ("y", "z"),
            (
                ast.MapLoops(("b", "h"), (), (ast.Level("core", (Num(1),)),)),
                ast.MapLoops(("n",), ("y",), (ast.Level("seq", (bm,)), ast.Level("vec", (Num(128),)))),
                ast.Order(("n", "k", "n")),
                ast.Fuse(("s", "y"), "n"),
                ast.Stage(
                    ("X", "W.1"),
                    "packed",
                    "n",
                    "cp.async",
                    (ast.Level("swizzle", (Num(128),)), ast.Level("pad", (Num(4),))),
                ),
                ast.Use("fma", ("y",)),
                ast.Cast("o.weight", DType.BF16),
                ast.Combine(("y",), "n", "partials"),
            ),
        ),
    )


def test_a_schedule_without_kernel_lines_is_one_kernel_of_the_whole_op() -> None:
    (s,) = parse("schedule f on cpu:\n  n -> core\n").items
    assert isinstance(s, ast.Schedule)
    assert s.shared == ()
    assert s.kernels == (ast.KernelSchedule((), (ast.MapLoops(("n",), (), (ast.Level("core"),)),)),)


def test_the_gpt2_model() -> None:
    model = parse((library() / "gpt2.tc").read_text(), "gpt2.tc").items[-1]
    assert isinstance(model, ast.Model)
    assert [c.name for c in model.configs] == ["tiny", "124M", "355M", "774M", "1558M"]
    assert dict(model.configs[1].values)["V"] == Num(50257)
    assert model.params[0] == ast.ParamDecl(
        "wte", DType.REAL, (Name("P"), Name("C")), Call("normal", (Num(0.02),)), "matrices"
    )
    assert model.inputs[0].below == Name("V")
    loop = next(s for s in model.forward if isinstance(s, ast.ForLayers))
    first = loop.body[0]
    assert isinstance(first, ast.OpCall)
    assert first.results[1] == ast.TensorRef("_")
    assert first.args[:2] == (
        ast.TensorRef("x", (), (Binary("*", Name("B"), Name("T")), Name("C"))),
        ast.TensorRef("ln1_w", (Name("l"),)),
    )
    assert model.optimizer is not None
    assert (model.optimizer.op, model.optimizer.schedule, model.optimizer.norm) == ("adamw", "cosine", "global_norm")
    assert model.loss == "loss" and model.logits == "logits"


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda p: p.stem)
def test_every_library_file_parses(path: Path) -> None:
    assert parse(path.read_text(), path.name).items


def test_an_empty_file_has_no_items() -> None:
    assert parse("").items == ()
    assert parse("\n# only a comment\n").items == ()
    assert parse("# no newline at the end").items == ()


def test_windows_line_ends_are_read() -> None:
    text = "op f(X: f32[N]) -> Y: f32[N]:\n  Y[n] = X[n]\n"
    assert parse(text.replace("\n", "\r\n")).items == parse(text).items


def test_a_failed_parse_leaves_nothing_behind() -> None:
    with pytest.raises(TcError):
        parse("op f(X: f32[N]", "a.tc")
    assert parse("fn f(x) = x\n", "b.tc").items[0].span.file == "b.tc"


def test_arrows_in_comments_go_on_with_no_line() -> None:
    text = """
op f(X: f32[M])  # -> not yet
    -> Y: f32[M]:
  Y[m] = X[m] * 2.0

schedule f on cpu:
  m -> core(1) / vec
  use mma.sync for Y, acc

# 184 to 151,
# 103 -> 83
schedule f on gpu:
  m -> grid(32) / lane
"""
    assert len(parse(text).items) == 3
