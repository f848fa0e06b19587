"""Kernels to PTX: one module per kernel, one entry per phase.

The generator's IR is already hoisted and unrolled as wanted, so only clean-up passes run before LLVM's instruction
selection: register tiles out of the stack, common subexpressions, loop-invariant code.
"""

from __future__ import annotations

from functools import lru_cache

import llvmlite.binding as llvm
from llvmlite import ir

from tcomp.codegen.llvm.strength import strength_reduction
from tcomp.codegen.llvm.text import safe_name
from tcomp.codegen.llvm.types import I8
from tcomp.codegen.nvptx.assembly.occupancy import shared_for
from tcomp.codegen.nvptx.assembly.residency import shared_wanted
from tcomp.codegen.nvptx.copies.tensor_copy import maps_of
from tcomp.codegen.nvptx.emitter import SHARED, finished_text
from tcomp.codegen.nvptx.entry import DYNAMIC
from tcomp.codegen.nvptx.errors import Unsupported
from tcomp.codegen.nvptx.launch import GpuKernel, LaunchShape
from tcomp.codegen.nvptx.layout import ALIGNMENT, alignment_of, shared_layout
from tcomp.codegen.nvptx.phase import PhaseGenerator
from tcomp.codegen.nvptx.phase_facts import threads_of
from tcomp.codegen.nvptx.products.block_pairs import in_pairs
from tcomp.dsl.ast import NO_SPAN, DType
from tcomp.errors import UserError
from tcomp.ir.multicast import cluster_of
from tcomp.ir.regions import SHARED as SHARED_REGIONS, tile_offsets
from tcomp.ir.tile import Compute, Kernel
from tcomp.ir.walk import statements_in
from tcomp.machine.gpu import GpuMachine
from tcomp.machine.targets import target_named

TRIPLE = "nvptx64-nvidia-cuda"
LAYOUT = "e-p3:32:32-p4:32:32-p5:32:32-p6:32:32-p7:32:32-i64:64-i128:128-i256:256-v16:16-v32:32-n16:32:64"
"""LLVM's data layout with 32-bit pointers to shared memory, so that addresses in it take one register"""
MAX_THREADS = 1024


def compile_kernel(kernel: Kernel, machine: GpuMachine) -> GpuKernel:
    """Generate one kernel. UserError where it does not fit the machine, `Unsupported` where there is no code for it."""
    text, launches = kernel_ir(kernel, machine)
    try:
        ptx = to_ptx(text, machine, _features(kernel))
    except UserError as e:  # an instruction that the target lacks
        raise Unsupported(f"kernel '{kernel.name}': {e.message}", kernel.span, e.hint) from None
    team, words = (tile_offsets(kernel, scope)[1] for scope in SHARED_REGIONS)
    return GpuKernel(kernel.name, ptx, launches, team, words)


def symbols_of(kernel: Kernel) -> tuple[str, ...]:
    """The entries' names."""
    return tuple(f"tc_{safe_name(kernel.name)}_{i}" for i in range(len(kernel.phases)))


def kernel_ir(kernel: Kernel, machine: GpuMachine) -> tuple[str, tuple[LaunchShape, ...]]:
    """The kernel as LLVM IR text, before LLVM's passes, and its launches."""
    if kernel.blocks is None:
        raise Unsupported(f"kernel '{kernel.name}' was not lowered for a GPU: it has no block of threads", kernel.span)
    count = max((threads_of(kernel, p) for p in kernel.phases), default=0)
    if count > MAX_THREADS:
        raise UserError(
            f"{kernel.span}: kernel '{kernel.name}' has blocks of {count} threads; {MAX_THREADS} is the most",
            "divide loops among fewer warps",
        )
    kernel = in_pairs(kernel, machine.target)
    module = ir.Module(name=kernel.name)
    module.triple, module.data_layout = TRIPLE, LAYOUT
    shared = ir.GlobalVariable(module, ir.ArrayType(I8, 0), DYNAMIC, addrspace=3)
    shared.linkage, shared.align = "external", max((alignment_of(t) for t in kernel.tiles), default=ALIGNMENT)
    shared.type = SHARED  # an untyped pointer, as everything derived from it
    buffers = kernel.buffers
    launches = []
    try:
        for symbol, phase in zip(symbols_of(kernel), kernel.phases, strict=True):
            layout = shared_layout(phase, kernel, machine.shared_per_block, shared_wanted(phase, kernel, machine))
            cluster = cluster_of(kernel, phase)
            maps = maps_of(phase, buffers, cluster)
            if maps and machine.sm < 90:
                raise Unsupported(f"{machine.target} has no tensor copies (tma)", kernel.span, "stage by cp.async")
            generator = PhaseGenerator(module, symbol, kernel, phase, layout, machine, maps)
            blocks, size = generator.generate(), cluster.blocks if cluster else 1
            count = threads_of(kernel, phase)
            columns, shared = generator.tensor.columns, layout.bytes
            if columns and size > 1:
                # Blocks of two clusters, each of which waits for columns that the other's peer has, would wait for
                # ever: an SM holds no more of them than have columns.
                shared = max(shared, shared_for(machine, machine.tensor_columns // columns))
            launches.append(LaunchShape(symbol, blocks, count, shared, maps, size, generator.resident, columns))
    except Unsupported as e:
        if e.span != NO_SPAN:
            raise
        raise Unsupported(e.reason, kernel.span, e.hint) from e
    except UserError:
        raise
    except NotImplementedError as e:
        raise Unsupported(f"op '{kernel.op or kernel.name}' cannot be compiled for a GPU: {e}", kernel.span) from e
    return finished_text(module), tuple(launches)


def _features(kernel: Kernel) -> set[str]:
    if not any(b.dtype in (DType.E4M3, DType.E5M2) for b in kernel.operands + kernel.tiles):
        return set()
    matrix = any(isinstance(s, Compute) and s.instruction for p in kernel.phases for s in statements_in(p))
    return {"fp8.convert", "fp8.mma"} if matrix else {"fp8.convert"}


@lru_cache(maxsize=1)
def _initialise() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.set_option("tcomp", "--nvptx-short-ptr")
    # From sm_100 on LLVM would keep pairs of 32-bit values in registers of 64, one half perhaps unwritten.
    llvm.set_option("tcomp", "--nvptx-no-f32x2")


def target_machine(machine: GpuMachine, features: set[str]) -> llvm.TargetMachine:
    _initialise()
    llvm_features = target_named(machine.target).llvm_features(features)
    return llvm.Target.from_triple(TRIPLE).create_target_machine(cpu=machine.target, features=llvm_features, opt=3)


def to_ptx(text: str, machine: GpuMachine, features: set[str]) -> str:
    """LLVM IR as PTX for the machine's target, in the lowest PTX version that has its features."""
    target = target_machine(machine, features)
    module = llvm.parse_assembly(text)
    module.verify()
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, builder)
    with strength_reduction(True):
        return str(target.emit_assembly(module))
