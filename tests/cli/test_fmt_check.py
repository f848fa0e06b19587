"""`tcomp fmt` and `check`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import OP, Tcomp, refused
from tests.turns import in_turns


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


def test_fmt_of_a_link_leaves_it_a_link(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "op.tc").write_text(OP.replace("X[m, n] * 2.0", "X[m,n]*2.0"))
    (tmp_path / "link.tc").symlink_to("op.tc")
    assert tcomp("fmt", "link.tc").code == 0
    assert (tmp_path / "link.tc").is_symlink() and (tmp_path / "op.tc").read_text() == OP


def test_fmt_reads_no_pipes_and_utf_8_whatever_the_locale(tcomp: Tcomp, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tc")
    refused(tcomp("fmt", "pipe.tc"), "pipe.tc: cannot read it: not a regular file")
    (tmp_path / "op.tc").write_text("# é\n" + OP, encoding="utf-8")
    locale = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = subprocess.run(
        [sys.executable, "-m", "tcomp", "fmt", "--check", "op.tc"], env=locale, capture_output=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


def test_check_passes_for_an_op_file_and_fails_for_a_wrong_tolerance(tcomp: Tcomp) -> None:
    good = tcomp("check", "ops/layernorm", "--threads", "1")
    assert good.code == 0, good.error
    assert "layernorm.backward" in good.out and "ok" in good.out
    refused(tcomp("check", "ops/layernorm", "--tolerance", "0", "--threads", "1"), "from the oracle")


def test_a_written_backward_is_checked_by_its_name(tcomp: Tcomp, tmp_path: Path) -> None:
    """It had no line of its own, and nothing was compared."""
    file = tmp_path / "double.tc"
    file.write_text(
        "op double(X: f32[N]) -> Y: f32[N]:\n  Y[n] = 2.0 * X[n]\n\n"
        "backward double(dY: f32[N]) -> dX: f32[N]:\n  dX[n] = 3.0 * dY[n]\n"
    )
    wrong = tcomp("check", str(file), "double.backward", "--threads", "1")
    assert "double.backward" in wrong.out and "own = derived" in wrong.out
    refused(wrong, "1 check differs from the oracle")


QUARTER = "op quarter(X: {0}[N]) -> Y: {0}[N]:\n  Y[n] = {0}(f32(X[n]) * 0.2)\n"


@pytest.mark.parametrize("dtype", ["bf16", "f16", "e4m3", "e5m2"])
def test_check_of_a_narrow_dtype_allows_for_its_rounding(dtype: str, tcomp: Tcomp, tmp_path: Path) -> None:
    file = tmp_path / "quarter.tc"
    file.write_text(QUARTER.format(dtype))
    assert tcomp("check", str(file)).code == 0


SCALES = """op weigh(X: f16[N, M], w: f16[M]) -> y: f32[]:
  s = sum n, m: X[n, m] * w[m] * w[m]
  y = s

op step(inout p: f16[N], g: f32[N], rate: f32[]):
  p[i] = p[i] - rate * g[i]

model scales(N):
  config one: M = 5
  param w: f16[M] = ones in all
  input x: f16[N, M]
  forward:
    loss = weigh(x, w)
  loss loss
  optimizer step:
    group all: rate = 0.1
"""


def test_check_of_a_model_with_sizes_and_types_of_its_own(tcomp: Tcomp, tmp_path: Path) -> None:
    """Neither B nor T, a real input, parameters that are f16 whatever the precision."""
    (tmp_path / "scales.tc").write_text(SCALES)
    assert "step of scales               ok" in tcomp("check", "scales.tc", "--threads", "1").out
    assert (
        "step of scales               ok"
        in tcomp("check", "scales.tc", "--dim", "N=7", "--dim", "M=3", "--trials", "1").out
    )
    refused(tcomp("check", "scales.tc", "--dim", "Q=7"), "model 'scales' has no dimension 'Q'", "it has N, M")
    assert "f16[7, 5]" in tcomp("plan", "scales.tc", "--dim", "N=7").out
    refused(tcomp("plan", "scales.tc", "--dim", "N=2.5"), "--dim N=2.5: must be a whole number")
    refused(tcomp("plan", "gpt2", "--dim", "B=4"), "'B' is a size", "give it by -B 4")


def test_the_step_has_the_configurations_values_where_small_ones_break_its_rules(tcomp: Tcomp, tmp_path: Path) -> None:
    rules = "  let H = C // D\n  require H == 2\n  param w"
    (tmp_path / "scales.tc").write_text(SCALES.replace("M = 5", "M = 5, C = 32, D = 16").replace("  param w", rules))
    found = tcomp("check", "scales.tc", "--threads", "1", "--trials", "1")
    assert found.code == 0 and "step of scales               ok" in found.out, found.error
    refused(tcomp("check", "scales.tc", "--dim", "C=16", "--trials", "1"), "requires H == 2")
    (tmp_path / "scales.tc").write_text(
        SCALES.replace("M = 5", "M = 8").replace("  param w", "  require N % M == 0\n  param w")
    )
    assert "step of scales               ok" in tcomp("check", "scales.tc", "--trials", "1").out, "a larger size"


def test_check_of_a_model_that_trains_nothing(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "still.tc").write_text(SCALES.replace("ones in all", "ones frozen").partition("  optimizer")[0])
    assert "step of scales               ok" in tcomp("check", "still.tc", "--trials", "1", "--threads", "1").out


@in_turns(2)
@pytest.mark.slow
@pytest.mark.parametrize("precision,wrongs", [("bf16", (1.03, 0.97)), ("f32", (1.001,)), ("fp8", (1.5,))])
def test_a_step_with_a_wrong_gradient_is_called_wrong(
    precision: str, wrongs: tuple[float, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where schedules cast, which allows most."""
    from tcomp.cli.check import CheckOptions, _check_step, _small_step
    from tcomp.cli.common import device_for, load_module
    from tcomp.machine.cpu import detect
    from tcomp.runtime import verify

    monkeypatch.setenv("TCOMP_CPU", f"{detect().name.removesuffix('bf16')}+avx512bf16")
    module, floats = load_module("gpt2"), verify.floats
    own = CheckOptions("gpt2", precision=precision)
    step = (module, _small_step(module, own, {}), own, device_for(threads=1))
    assert _check_step(*step)
    scale: dict[str, float] = {}
    monkeypatch.setattr(verify, "floats", lambda e, name: floats(e, name) * scale.get(name, 1.0))
    for wrong in wrongs:
        scale["grad.qkv_w"] = wrong
        assert not _check_step(*step)
        assert "grad.qkv_w" in capsys.readouterr().out


def test_check_takes_the_sizes_that_a_schedule_is_for(tcomp: Tcomp, tmp_path: Path) -> None:
    file = tmp_path / "own.tc"
    file.write_text(
        "op f(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[M, N]:\n"
        "  Y[m, n] = sum k: X[m, k] * W[n, k]\n\n"
        "schedule f on sm_90a:\n"
        "  m -> grid.y(64) / warpgroup(64) / mma\n"
        "  n -> grid.x(64) / mma\n"
        "  k -> pipe(64, 2) / mma\n"
        "  stage X, W in shared at k by tma\n"
        "  use wgmma for Y\n"
    )
    found = tcomp("check", str(file), "f", "--device", "virtual")
    assert found.code == 2 and "REFUSED at M = " in found.out and "--dim NAME=NUMBER" in found.out
    assert "error: 1 op is refused" in found.error and "oracle" not in found.error
    sizes = ("--dim", "K=64", "--dim", "N=64", "--trials", "1")
    good = tcomp("check", str(file), "f", "--device", "virtual", *sizes)
    assert good.code == 0 and "f.backward" in good.out, good.out + good.error
    refused(tcomp("check", str(file), "f", "--dim", "J=2"), "no dimension 'J'")
    refused(tcomp("check", str(file), "--dim", "M=2"), "--dim is for one op")


def test_check_of_a_file_without_ops_says_so(tcomp: Tcomp, tmp_path: Path) -> None:
    (tmp_path / "empty.tc").write_text("")
    refused(tcomp("check", "empty.tc"), "empty.tc: nothing to check")


SLICES = """
op scale(X: real[M, K], w: real[K]) -> Y: real[M, K]:
  Y[m, k] = X[m, k] * w[k]

op cube(X: real[K]) -> Y: real[K]:
  Y[k] = X[k] * X[k] * X[k]

op total(X: real[K], Z: real[M]) -> y: f32[]:
  y = sum k: X[k] * Z[0]

model slices(B):
  config one: C = 5
  param v: real[C] = ones
  input x: real[B, C]
  forward:
    a = scale(x, v)
    h = scale(a, v)
    p = cube(h[1])
    q = cube(a[0])
    loss = total(p, q)
  loss loss
"""


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_a_step_whose_activations_have_gradients_in_slices_alone(precision: str, tcomp: Tcomp, tmp_path: Path) -> None:
    """Its inputs are real numbers, and it has no length."""
    (tmp_path / "slices.tc").write_text(SLICES)
    result = tcomp("check", "slices.tc", "--trials", "1", "--precision", precision)
    assert result.code == 0 and "step of slices               ok" in result.out, result
