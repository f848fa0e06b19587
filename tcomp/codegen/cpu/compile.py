"""Kernels to object code: one object per kernel, one exported function per phase.

The generator's IR is already hoisted, deduplicated and vectorised, so LLVM's own vectorisers stay off and only
a short list of clean-up passes runs before its instruction selection.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm
from llvmlite import ir

import tcomp
import tcomp.instructions as declarations
from tcomp.codegen.cpu.loops import PhaseGenerator, tile_offsets
from tcomp.errors import UserError
from tcomp.ir.content import content_text
from tcomp.ir.tile import Kernel, Scope
from tcomp.machine.cpu import CpuMachine


@lru_cache(maxsize=1)
def generator_digest() -> str:
    """A hash of the generator's own source files, declarations of instructions included: a changed generator finds none
    of the old one's objects."""
    digest = hashlib.sha256()
    for path in sorted([*Path(__file__).parent.glob("*.py"), *Path(declarations.__file__).parent.glob("vector*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


class Unsupported(UserError, NotImplementedError):
    """A sound op that this code generator has no code for yet, such as fp8 storage."""


@dataclass(frozen=True)
class CompiledKernel:
    """`symbols[i]` is phase i's function in `object`. Bytes of scratch are per thread, of team for all."""

    symbols: tuple[str, ...]
    object: bytes
    scratch_bytes: int
    team_bytes: int


def kernel_key(kernel: Kernel, machine: CpuMachine) -> str:
    """A hash of all that the object code depends on."""
    version = getattr(tcomp, "__version__", "0")
    target = (machine.name, machine.features, machine.lanes_f32, machine.vector_registers, machine.triple)
    tools = (version, generator_digest(), llvmlite.__version__, llvm.llvm_version_info)
    text = content_text((kernel.name, kernel.operands, kernel.tiles, kernel.phases, target, tools))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def symbols_of(kernel: Kernel, key: str) -> tuple[str, ...]:
    return tuple(f"tc_{key}_{i}" for i in range(len(kernel.phases)))


def kernel_ir(kernel: Kernel, machine: CpuMachine) -> str:
    """The kernel as LLVM IR text, before LLVM's passes."""
    module = ir.Module(name=kernel.name)
    module.triple = machine.triple
    try:
        for symbol, phase in zip(symbols_of(kernel, kernel_key(kernel, machine)), kernel.phases, strict=True):
            PhaseGenerator(module, symbol, kernel, machine).generate(phase)
    except NotImplementedError as e:
        raise Unsupported(f"{kernel.span}: op '{kernel.op or kernel.name}' cannot be compiled for the CPU: {e}") from e
    return str(module)


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


def memory_needs(kernel: Kernel) -> tuple[int, int]:
    """Bytes of scratch per thread, and of the team region."""
    return tile_offsets(kernel.tiles, Scope.SCRATCH)[1], tile_offsets(kernel.tiles, Scope.TEAM)[1]


def compile_kernel(kernel: Kernel, machine: CpuMachine) -> CompiledKernel:
    """Generate and compile one kernel; nothing is read from or written to the cache."""
    target = target_machine(machine)
    code = target.emit_object(optimized(kernel_ir(kernel, machine), target))
    scratch, team = memory_needs(kernel)
    return CompiledKernel(symbols_of(kernel, kernel_key(kernel, machine)), bytes(code), scratch, team)
