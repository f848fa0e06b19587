"""`tcomp fmt` and `check`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import OP, Tcomp, refused


def test_fmt_rewrites_once_and_check_tells(tcomp: Tcomp, tmp_path: Path) -> None:
    path = tmp_path / "op.tc"
    path.write_text("# a comment\n" + OP.replace("X[m, n] * 2.0", "X[m,n]*2.0   # twice"))
    assert tcomp("fmt", "--check", "op.tc").code == 1
    assert "formatted op.tc" in tcomp("fmt", "op.tc").out
    assert "X[m, n] * 2.0" in path.read_text() and "# twice" in path.read_text()
    again = tcomp("fmt", "--check", ".")
    assert (again.code, again.out) == (0, "")
    path.write_text("op (")
    refused(tcomp("fmt", "op.tc"), "op.tc:1:")
    assert path.read_text() == "op ("


def test_check_passes_for_an_op_file_and_fails_for_a_wrong_tolerance(tcomp: Tcomp) -> None:
    good = tcomp("check", "ops/layernorm", "--threads", "1")
    assert good.code == 0, good.error
    assert "layernorm.backward" in good.out and "ok" in good.out
    refused(tcomp("check", "ops/layernorm", "--tolerance", "0", "--threads", "1"), "from the oracle")


QUARTER = "op quarter(X: {0}[N]) -> Y: {0}[N]:\n  Y[n] = {0}(f32(X[n]) * 0.2)\n"


def test_check_of_a_dtype_that_it_cannot_compare(tcomp: Tcomp, tmp_path: Path) -> None:
    file = tmp_path / "quarter.tc"
    file.write_text(QUARTER.format("e4m3"))
    refused(tcomp("check", str(file)), "quarter", "e4m3", "f32")


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_check_of_a_narrow_dtype_allows_for_its_rounding(dtype: str, tcomp: Tcomp, tmp_path: Path) -> None:
    file = tmp_path / "quarter.tc"
    file.write_text(QUARTER.format(dtype))
    assert tcomp("check", str(file)).code == 0
