"""`import FILE under PRECISION`: read for all precisions together, or for the one that a command runs under."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcomp.dsl.errors import TcError
from tcomp.dsl.load import library, load, load_text
from tcomp.dsl.variants import mentioned


def test_only_what_a_precision_needs_is_read() -> None:
    gpt2 = library() / "gpt2.tc"
    assert {"linear_fp8", "linear_fp8_block"} <= load(gpt2).ops.keys()
    own = load(gpt2, "")
    assert own.precision == "f32" and not {"linear_fp8", "linear_fp8_block"} & own.ops.keys()
    fp8 = load(gpt2, "fp8").ops.keys()
    assert "linear_fp8" in fp8 and "linear_fp8_block" not in fp8
    assert "fp8" in mentioned(own.models["gpt2"])


def test_a_models_own_precision_is_the_one_read(tmp_path: Path) -> None:
    (tmp_path / "m.tc").write_text(
        "import ops.linear\nimport ops.crossentropy\nimport ops.fp8 under fp8\n\n"
        "model m(B):\n  config one: C = 8\n  precision fp8\n  param w: real[1, C] = zeros\n  input x: real[B, C]\n"
        "  forward:\n    y = matmul(x, w)\n    loss = mean(y as [B])\n  loss loss\n"
    )
    assert "linear_fp8" in load(tmp_path / "m.tc", "").ops


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(TcError, match="precision 'fp7' is not supported"):
        load_text("import ops.linear under fp7\n", "m.tc")
