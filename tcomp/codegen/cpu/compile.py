"""Kernels to object code: one object per kernel, one exported function per phase.

The generator's IR is already hoisted, deduplicated and vectorised, so LLVM's own vectorisers stay off and only
a short list of clean-up passes runs before its instruction selection.
"""

from __future__ import annotations

import math

import llvmlite.binding as llvm
from llvmlite import ir

from tcomp.codegen.cpu.compiled import CompiledKernel, kernel_key, memory_needs, symbols_of
from tcomp.codegen.cpu.loops import PhaseGenerator
from tcomp.codegen.llvm.strength import strength_reduction
from tcomp.codegen.llvm.text import text_of
from tcomp.errors import UserError
from tcomp.ir.tile import Compute, Kernel
from tcomp.ir.walk import computes
from tcomp.machine.cpu import CpuMachine

SUMS = 8
"""From so many registers of sums on a kernel is a product: the latency of one is hidden by others."""


class Unsupported(UserError, NotImplementedError):
    """A sound op that this code generator has no code for yet, such as fp8 storage."""


def kernel_ir(kernel: Kernel, machine: CpuMachine) -> str:
    """The kernel as LLVM IR text, before LLVM's passes."""
    module = ir.Module(name=kernel.name)
    module.triple = machine.triple
    try:
        for symbol, phase in zip(symbols_of(kernel, kernel_key(kernel, machine)), kernel.phases, strict=True):
            PhaseGenerator(module, symbol, kernel, machine).generate(phase)
    except NotImplementedError as e:
        raise Unsupported(f"{kernel.span}: op '{kernel.op or kernel.name}' cannot be compiled for the CPU: {e}") from e
    return text_of(module)


def gains_by_strength_reduction(kernel: Kernel, machine: CpuMachine) -> bool:
    """Whether a kernel is faster with it: all but products where x86 has 32 vector registers. With 16, and where
    conditions cut loops short as in attention, some kernels lose percents without; other processors were not
    measured."""
    roomy = machine.triple.startswith("x86_64") and machine.vector_registers == 32
    return not (roomy and _is_product(kernel))


def _is_product(kernel: Kernel) -> bool:
    """Has it a register tile of sums, and no condition?"""
    found = [c for phase in kernel.phases for c in computes(phase)]
    free = all(c.guard is None and c.region is None for c in found)
    return free and any(c.reduced and _sums(c) >= SUMS for c in found)


def _sums(c: Compute) -> int:
    return math.prod(a.unroll for a in c.axes if a.name not in c.reduced)


def target_machine(machine: CpuMachine) -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.llvm_cpu, features=machine.llvm_features, opt=3, reloc="pic", codemodel="small"
    )


def optimized(text: str, target: llvm.TargetMachine) -> llvm.ModuleRef:
    """Parse, verify and clean up generated IR."""
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    builder = llvm.create_pass_builder(target, options)
    passes = llvm.create_new_module_pass_manager()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    return module


def kernel_assembly(kernel: Kernel, machine: CpuMachine) -> str:
    """The kernel as the machine's assembly text, for reading."""
    target = target_machine(machine)
    module = optimized(kernel_ir(kernel, machine), target)
    with strength_reduction(gains_by_strength_reduction(kernel, machine)):
        return str(target.emit_assembly(module))


def compile_kernel(kernel: Kernel, machine: CpuMachine) -> CompiledKernel:
    """Generate and compile one kernel; nothing is read from or written to the cache."""
    target = target_machine(machine)
    module = optimized(kernel_ir(kernel, machine), target)
    with strength_reduction(gains_by_strength_reduction(kernel, machine)):
        code = target.emit_object(module)
    scratch, team = memory_needs(kernel)
    return CompiledKernel(symbols_of(kernel, kernel_key(kernel, machine)), bytes(code), scratch, team)
