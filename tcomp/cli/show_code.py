"""The part of `tcomp show` that lowers an op: tile IR, LLVM IR, and what the machine runs in the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tcomp.codegen.nvptx.assembly.disassemble import disassemble
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.dsl.ast import Module, Op
    from tcomp.ir.tile import Kernel
    from tcomp.machine.cpu import CpuMachine
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.lowering import Lower


@dataclass(frozen=True)
class Code:
    """Which forms of a kernel to show."""

    tile: bool = False
    llvm: bool = False
    asm: bool = False
    ptx: bool = False
    sass: bool = False

    @property
    def any(self) -> bool:
        return self.tile or self.llvm or self.asm or self.ptx or self.sass

    def check(self, machine: CpuMachine | GpuMachine) -> None:
        """UserError for a form that the machine has not."""
        from tcomp.machine.gpu import GpuMachine

        if isinstance(machine, GpuMachine) and self.asm:
            raise UserError(f"--asm is for CPUs, not {machine.target}", "give --ptx or --sass")
        if not isinstance(machine, GpuMachine) and (self.ptx or self.sass):
            raise UserError("--ptx and --sass are for GPUs", "give --target sm_90a")

    def texts(
        self, op: Op, module: Module, dims: dict[str, int], machine: CpuMachine | GpuMachine, lower: Lower
    ) -> Iterator[str]:
        """The chosen forms of each kernel that `lower` makes of an op instance for this machine, in order."""
        from tcomp.ir.print import print_kernel
        from tcomp.machine.gpu import GpuMachine

        for kernel in lower(op, module, dims).kernels:
            if self.tile:
                yield print_kernel(kernel)
            if isinstance(machine, GpuMachine):
                yield from self._gpu(kernel, machine)
            else:
                yield from self._cpu(kernel, machine)

    def _cpu(self, kernel: Kernel, machine: CpuMachine) -> Iterator[str]:
        from tcomp.codegen.cpu.compile import kernel_assembly, kernel_ir

        if self.llvm:
            yield kernel_ir(kernel, machine)
        if self.asm:
            yield kernel_assembly(kernel, machine)

    def _gpu(self, kernel: Kernel, machine: GpuMachine) -> Iterator[str]:
        from tcomp.cli.build_gpu import generator
        from tcomp.codegen.nvptx.assembly.assemble import assemble
        from tcomp.codegen.nvptx.compile import kernel_ir
        from tcomp.runtime.cache import cache_folder

        if self.llvm:
            yield kernel_ir(kernel, machine)[0]
        if not (self.ptx or self.sass):
            return
        cache = cache_folder("kernels")
        text = generator(machine, cache)(kernel).ptx
        if self.ptx:
            yield text
        if self.sass:
            yield disassemble(assemble(text, machine.target, cache).cubin, cache_dir=cache)
