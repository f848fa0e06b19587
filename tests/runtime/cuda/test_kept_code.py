"""Code is kept by what it was generated from, and found again by every GPU that the same is generated for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tcomp.dsl.load import load_text
from tcomp.machine.gpu import H100, H200, GpuMachine
from tcomp.runtime.cuda.kernels import compile_all
from tcomp.schedule.lower import lower


def test_gpus_that_differ_in_their_memory_share_code(tmp_path: Path) -> None:
    module = load_text("op f(X: f32[M]) -> Y: f32[M]:\n  Y[m] = X[m] + 1.0\n")
    kernels = {k.name: k for k in lower(module.ops["f"], module, {"M": 64}, H100).kernels}

    def kept(machine: GpuMachine) -> int:
        compile_all(kernels, machine, tmp_path)
        return len(list(tmp_path.glob("*.ptx")))

    assert [kept(m) for m in (H100, H200, replace(H100, sms=8))] == [1, 1, 2]
