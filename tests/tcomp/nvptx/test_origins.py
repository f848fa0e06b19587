"""Findings about an assembled kernel are told at the line of its schedule that causes them."""

from __future__ import annotations

import pytest

from tcomp.codegen.nvptx.assembly.assemble import Assembled, assemble
from tcomp.codegen.nvptx.assembly.diagnostics import Message
from tcomp.codegen.nvptx.assembly.report import kernel_report
from tcomp.codegen.nvptx.compile import compile_kernel
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import H100
from tests.tcomp.nvptx.support import lowered

PRODUCT = """op f(X: bf16[M, K], W: bf16[N, K]) -> Y: bf16[M, N]:
  Y[m, n] = sum k: X[m, k] * W[n, k]

schedule f on sm_90a:
  tune BM = 128 from 64, 128
  tune BN = 256 from 128, 256
  tune S = 3 from 2, 3
  m -> grid.y(BM) / warpgroup(64) / mma
  n -> grid.x(BN) / mma
  k -> pipe(64, S) / mma
  stage X, W in shared at k by tma
  use wgmma for Y
  producer warpgroup(40)
"""
PLAIN = """op f(X: f32[M]) -> Y: f32[M]:
  Y[m] = X[m] * 2

schedule f on gpu:
  m -> grid(1024) / lane / unroll(8)
"""


def kernel(text: str) -> Kernel:
    return lowered(text, {n: 256 for n in ("M", "N", "K") if f"{n}]" in text or f"{n}," in text})


def lines(found: Kernel, *codes: str) -> list[str]:
    messages = tuple(Message("warning", c, "a remark", "f") for c in codes)
    return kernel_report(found.name, found.span, (), Assembled(b"", (), messages), H100, found.origins).lines()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("C7504", 13), ("C7508", 13),  # setmaxnreg: the producer
        ("C7510", 12), ("C7514", 12), ("C7517", 12), ("C7520", 12),  # wgmma: its `use`
        ("spill", 6), ("C7602", 6),  # registers: the largest tile size
        ("stack", 4), ("extern", 4), ("launch", 4),  # nothing known: the schedule
    ],
)  # fmt: skip
def test_the_line_that_causes_a_finding(code: str, line: int) -> None:
    assert lines(kernel(PRODUCT), code)[0].startswith(f"f.tc:{line}:3: " if line > 4 else "f.tc:4:1: ")


def test_short_registers_come_with_the_sizes_that_take_them() -> None:
    _, hint = lines(kernel(PRODUCT), "spill")
    assert hint.endswith("; sizes here: BN = 256 (line 6), BM = 128 (line 5), m -> warpgroup(64) (line 8)")
    assert "S = 3" not in hint, "stages take no registers"


def test_without_such_lines_a_finding_stands_at_the_loop_or_the_schedule() -> None:
    found = kernel(PLAIN)
    assert lines(found, "spill")[0].startswith("f.tc:5:3: ")
    assert [x.partition(" ")[0] for x in lines(found, "C7510", "C7504") if "warning" in x] == ["f.tc:4:1:"] * 2


def test_a_remark_of_the_assembler_on_its_way_to_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvJitLink, in ptxas's place, has no use for setmaxnreg, and says so."""
    monkeypatch.setattr("tcomp.codegen.nvptx.assembly.assemble.whole_program_tool", lambda _: None)
    found = kernel(PRODUCT)
    gpu = compile_kernel(found, H100)
    report = kernel_report(found.name, found.span, gpu.launches, assemble(gpu.ptx, "sm_90a"), H100, found.origins)
    assert report.lines()[0].startswith("f.tc:13:3: warning: kernel tc_f_0: ")
