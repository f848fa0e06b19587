"""Candidates on an NVIDIA GPU: assembled and looked at, then timed by events, L2 emptied before each run, on copies of
the operands in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.autotune.backend import Clock, Examined
from tcomp.autotune.gpu_predict import KernelPrediction, predict_kernels
from tcomp.autotune.gpu_registers import spill_of
from tcomp.codegen.nvptx.assembly.assemble import assemble_all
from tcomp.codegen.nvptx.assembly.tools import cuda_tool
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel
from tcomp.machine.gpu import GpuMachine
from tcomp.model.step import Step
from tcomp.runtime.executor import Executor

if TYPE_CHECKING:
    from tcomp.runtime.cuda.timing import ColdClock

COVERED = 4
"""The copies of the operands are together this many times as large as L2, so that the first has left it when its turn
comes again."""
MOST = 8
"""Copies at most: small operands are kept from L2 by the clock's flush alone."""


@dataclass(frozen=True)
class _Clock:
    """The GPU's clock as the bench reads it."""

    gpu: ColdClock

    def seconds(self, executor: Executor, programs: Sequence[str]) -> float:
        from tcomp.runtime.cuda.executor import CudaExecutor

        assert isinstance(executor, CudaExecutor)
        return statistics.fmean(self.gpu.programs(executor, programs)) * 1e-3

    def close(self) -> None:
        self.gpu.close()


@dataclass(frozen=True)
class CudaBackend:
    """`which` GPU of the driver's (a number or part of a name, "" for the first); `machine` is its description
    (`gpus.machine_of`), `cache` has PTX and cubins."""

    machine: GpuMachine
    which: str
    cache: Path | None
    threads: int = 1
    aligned: bool = True

    def copies(self, size: int) -> int:
        wanted = -(-COVERED * self.machine.l2_bytes // max(size, 1))
        return 1 if size >= COVERED * self.machine.l2_bytes else min(MOST, max(2, wanted))

    def refusal(self, kernel: Kernel, default: Kernel) -> str:
        return spill_of(kernel, self.machine)

    def estimate(self, kernel: Kernel) -> float:
        """The roofline's time, the same for all candidates: the static model needs machine code (`examine`)."""
        m = self.machine
        rates = (m.tensor_rate(b.dtype.value) for b in kernel.operands + kernel.tiles)
        peak = max((r for r in rates if r), default=m.f32_flops)
        return max(kernel.flops / peak, kernel.traffic / m.memory_bandwidth)

    def begin(self) -> Clock:
        from tcomp.runtime.cuda.gpus import choose, gpus
        from tcomp.runtime.cuda.timing import ColdClock

        return _Clock(ColdClock(choose(self.which, gpus()), self.machine))

    def examine(self, kernels: Sequence[Kernel]) -> Examined:
        """What the assembler says, and the static model's estimate where nvdisasm is installed to read the code."""
        from tcomp.runtime.cuda.kernels import compile_all

        compiled = compile_all({k.name: k for k in kernels}, self.machine, self.cache)
        texts = list(dict.fromkeys(c.ptx for c in compiled.values()))
        assembled = assemble_all([(ptx, self.machine.target) for ptx in texts], self.cache)
        findings = [m.text for a in assembled for m in a.findings]
        predictions = self._predictions(kernels)
        if not predictions:
            return Examined(findings[0] if findings else "")
        longest = max(predictions, key=lambda p: p.seconds)
        facts = {"model": sum(p.seconds for p in predictions), "binding": longest.binding}
        return Examined(findings[0] if findings else "", facts)

    def _predictions(self, kernels: Sequence[Kernel]) -> list[KernelPrediction]:
        if cuda_tool("nvdisasm") is None:
            return []
        try:
            found = predict_kernels(kernels, self.machine, self.cache)
        except UserError:
            return []
        return found if all(p.counted for p in found) else []

    def open(self, step: Step) -> Executor:
        from tcomp.runtime.cuda.executor import CudaExecutor
        from tcomp.runtime.cuda.gpus import choose, gpus

        return CudaExecutor(step, self.machine, choose(self.which, gpus()), True, self.cache)
