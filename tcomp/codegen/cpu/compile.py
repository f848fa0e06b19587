"""Kernels to object code: one object per kernel, one exported function per phase.

The generator's IR is already hoisted, deduplicated and vectorised, so LLVM's own vectorisers stay off and only
a short list of clean-up passes runs before its instruction selection.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir

from tcomp.codegen.cpu.compiled import CompiledKernel, kernel_key, memory_needs, symbols_of
from tcomp.codegen.cpu.loops import PhaseGenerator
from tcomp.codegen.llvm.text import text_of
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel
from tcomp.machine.cpu import CpuMachine


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
    return str(target.emit_assembly(optimized(kernel_ir(kernel, machine), target)))


def compile_kernel(kernel: Kernel, machine: CpuMachine) -> CompiledKernel:
    """Generate and compile one kernel; nothing is read from or written to the cache."""
    target = target_machine(machine)
    code = target.emit_object(optimized(kernel_ir(kernel, machine), target))
    scratch, team = memory_needs(kernel)
    return CompiledKernel(symbols_of(kernel, kernel_key(kernel, machine)), bytes(code), scratch, team)
