"""Illegal schedules are refused with the location, the clash as a counterexample, and the remedy.

Each tests/tcomp/illegal/NAME.tc (illegal/gpu, b200 and a100 for GPUs, illegal/dot for CPUs with bf16 dot products)
stands beside NAME.expected; TCOMP_UPDATE_GOLDENS=1 rewrites those.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tcomp.dsl.ast import Op
from tcomp.dsl.errors import TcError
from tcomp.dsl.load import load_text
from tcomp.grad.accumulate import accumulating
from tcomp.machine.cpu import CpuMachine
from tcomp.machine.gpu import H100, GpuMachine, machine_for_target
from tcomp.schedule.lower import lower

HERE = Path(__file__).parent / "illegal"
MACHINE = CpuMachine("avx2", ("avx2", "fma"), 8, 16, 32768, 1 << 20, 1 << 24, 2)
MACHINES = {
    "gpu": H100, "b200": machine_for_target("sm_100a"), "a100": machine_for_target("sm_80"),
    "dot": replace(MACHINE, emulated=("avx512bf16",)),
}  # fmt: skip
"""by the folder in illegal/"""


def message(path: Path, machine: CpuMachine | GpuMachine) -> str:
    """Check and lower every op of the file; the diagnostic's text."""
    try:
        module = load_text(path.read_text(), path.name)
        for op in module.ops.values():
            assert isinstance(op, Op)
            dims = dict.fromkeys(("M", "N", "K", "T", "C", "V"), 64)
            lower(op, module, dims, machine, threads=2)
    except TcError as e:
        return e.render() + "\n"
    return "accepted\n"


@pytest.mark.parametrize("path", sorted(HERE.rglob("*.tc")), ids=lambda p: p.stem)
def test_illegal_schedule_is_refused_with_its_diagnostic(path: Path) -> None:
    found = message(path, MACHINES.get(path.parent.name, MACHINE))
    expected = path.with_suffix(".expected")
    if os.environ.get("TCOMP_UPDATE_GOLDENS"):
        expected.write_text(found)
    assert found != "accepted\n"
    assert found == expected.read_text()


BACKWARD = """
op scaled(X: f32[M, K], w: f32[K]) -> Y: f32[M, K]:
  Y[m, k] = X[m, k] * w[k]

backward scaled(X: f32[M, K], dY: f32[M, K]) -> dw: f32[K]:
  dw[k] = sum m: X[m, k] * dY[m, k]

schedule scaled.backward on cpu:
  k -> core / vec
  m -> seq(8)
  stage dw in packed at m
"""


@pytest.mark.parametrize("adding", [False, True])
def test_what_a_written_backward_adds_to_is_checked_like_what_it_writes(adding: bool) -> None:
    module = load_text(BACKWARD, "adding.tc")
    op = module.ops["scaled.backward"]
    op = accumulating(op, frozenset({"dw"})) if adding else op
    with pytest.raises(TcError, match="'dw' cannot be staged"):
        lower(op, module, {"M": 16, "K": 32}, MACHINE)
