"""`real` in an op: bound by a call to one storage type, everywhere it stands and nowhere else."""

from __future__ import annotations

import pytest

from tcomp.dsl.ast import DType, Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.infer import infer
from tcomp.dsl.load import load_text
from tcomp.dsl.printer import print_op
from tcomp.dsl.storage import STORAGE, binding, bound, is_generic
from tcomp.errors import UserError
from tcomp.model.unroll import build_graph

TEXT = """
op f(X, W: real[N], s: f32[]) -> Y: real[N], m: f32[N]:
  t[n]: real = X[n] * s
  m[n] = t[n]
  Y[n] = m[n] + real(W[n] + 1.0)
"""
MODULE = load_text(TEXT, "f.tc")
F: Op = MODULE.ops["f"]


@pytest.mark.parametrize("storage", STORAGE)
def test_binding_replaces_real_in_operands_temporaries_and_casts(storage: DType) -> None:
    text = print_op(F).replace("real", storage.value)
    assert bound(F, storage) == load_text(text).ops["f"]
    assert not is_generic(bound(F, storage))
    assert infer(bound(F, storage), MODULE).temporaries["t"].dtype is storage


def test_an_op_without_real_stays_the_same_object() -> None:
    op = load_text("op g(X: f32[N]) -> Y: f32[N]:\n  Y[n] = X[n]\n").ops["g"]
    assert bound(op, DType.BF16) is op


def test_a_call_binds_real_to_what_it_passes() -> None:
    assert binding(F, {"X": DType.BF16, "W": DType.BF16, "s": DType.F32}, DType.F32) is DType.BF16
    assert binding(F, {"s": DType.F32}, DType.F16) is DType.F16
    with pytest.raises(TcError, match=r"would be bf16 \(operand 'X'\) and f32 \(operand 'W'\)"):
        binding(F, {"X": DType.BF16, "W": DType.F32}, DType.F32)
    with pytest.raises(TcError, match="cannot be i32"):
        binding(F, {"X": DType.I32}, DType.F32)


def test_calls_on_f32_tensors_stay_f32_beside_the_models_own_type() -> None:
    module = load_text(
        "import ops.linear\nimport ops.crossentropy\n\n"
        "model m(B):\n  config one: C = 8\n  param w: real[C, C] = normal(1.0)\n  param u: f32[C, C] = normal(1.0)\n"
        "  input x: real[B, C]\n  input z: f32[B, C]\n"
        "  forward:\n    y = matmul(x, w)\n    v = matmul(z, u)\n"
        "    a = mean(y as [B * C])\n    loss = mean(v as [B * C])\n"
        "  loss loss\n",
        "m.tc",
    )
    graph = build_graph(module, "m", "one", {"B": 2})
    assert {n.op.operands[-1].dtype for n in graph.nodes} == {DType.F32}
    with pytest.raises(UserError, match="no precision 'bf17'"):
        build_graph(module, "m", "one", {"B": 2}, precision="bf17")
