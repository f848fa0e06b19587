"""Kernels of a step as predictions: tile IR to PTX, to a cubin, to machine code, to counts, to a time.

All without a GPU. A kernel's phases are launches of their own; a kernel whose code cannot be read is an error, never a
guess.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from tcomp.autotune.gpu_blocks import block_turns
from tcomp.autotune.gpu_conditions import clock_of_step, left_in_cache, settled
from tcomp.autotune.gpu_copies import copies_of
from tcomp.autotune.gpu_model import HBM_EFFICIENCY, Prediction, predict
from tcomp.autotune.gpu_scatter import with_contributions
from tcomp.autotune.gpu_traffic import phase_moves, phase_traffic
from tcomp.autotune.gpu_turns import waiting
from tcomp.autotune.gpu_work import Known, launch_work
from tcomp.autotune.sass import Function, functions_of
from tcomp.autotune.sass_lanes import with_paired_loads
from tcomp.codegen.nvptx.assembly.assemble import Assembled, assemble_all
from tcomp.codegen.nvptx.assembly.disassemble import disassemble_all
from tcomp.codegen.nvptx.assembly.occupancy import occupancy
from tcomp.codegen.nvptx.launch import GpuKernel
from tcomp.codegen.nvptx.products.block_pairs import in_pairs
from tcomp.errors import UserError
from tcomp.ir.tile import Kernel, Loop, Statement
from tcomp.machine.gpu import GpuMachine
from tcomp.model.step import Step
from tcomp.runtime.cuda.kernels import compile_all

AT_ONCE = 16
"""Kernels of a step whose machine code is read in one start of nvdisasm."""


@dataclass(frozen=True)
class KernelPrediction:
    """A kernel's launches, one per phase."""

    name: str
    launches: tuple[Prediction, ...]
    assembled: Assembled
    counted: bool = True
    """False where the time would need more than the matrix units' peak rate: then a loop's turns were misread"""

    @property
    def seconds(self) -> float:
        return sum(p.seconds for p in self.launches)

    @property
    def binding(self) -> str:
        """That of the longest launch."""
        return max(self.launches, key=lambda p: p.seconds).binding


def predict_kernel(
    kernel: Kernel, machine: GpuMachine, cache: Path | None = None, before: float | None = None, most: float = math.inf
) -> KernelPrediction:
    """The prediction for one kernel. `before`: bytes that others left in L2 for memory (`gpu_conditions`); None: as
    many as this one leaves. `most`: hertz of the clock at most. UserError when it cannot be compiled, assembled or
    disassembled."""
    (code,) = _machine_code([kernel], machine, cache)
    return _predicted(kernel, code, machine, before, most)


def predict_kernels(
    kernels: Sequence[Kernel], machine: GpuMachine, cache: Path | None = None
) -> list[KernelPrediction]:
    """The same for each of an op's kernels, by itself."""
    codes = _machine_code(kernels, machine, cache)
    return [_predicted(k, code, machine, None, math.inf) for k, code in zip(kernels, codes, strict=True)]


class _Code(NamedTuple):
    """A kernel's PTX with its launches, its cubin, and the cubin's text."""

    gpu: GpuKernel
    assembled: Assembled
    text: str


def _machine_code(kernels: Sequence[Kernel], machine: GpuMachine, cache: Path | None) -> list[_Code]:
    compiled = compile_all({k.name: k for k in kernels}, machine, cache)
    codes = [compiled[k.name] for k in kernels]
    assembled = assemble_all([(code.ptx, machine.target) for code in codes], cache)
    texts = disassemble_all([a.cubin for a in assembled], cache)
    return [_Code(*parts) for parts in zip(codes, assembled, texts, strict=True)]


def _predicted(
    kernel: Kernel, found: _Code, machine: GpuMachine, before: float | None, most: float
) -> KernelPrediction:
    code, assembled, text = found
    functions = {n: with_paired_loads(f) for n, f in functions_of(text).items()}
    launches = tuple(_launches(kernel, code, assembled, functions, machine, before, most))
    counted = kernel.flops <= _peak(kernel, machine) * sum(p.seconds for p in launches)
    if not counted:
        note = "not to be believed: faster than the GPU can be, so a loop was not counted to its end"
        launches = tuple(replace(p, notes=(*p.notes, note)) for p in launches)
    return KernelPrediction(kernel.name, launches, assembled, counted)


def _peak(kernel: Kernel, machine: GpuMachine) -> float:
    """The greatest rate in FLOP/s at which the machine multiplies values of the kernel's types."""
    rates = (machine.tensor_rate(b.dtype.value) for b in kernel.operands + kernel.tiles)
    return max((r for r in rates if r), default=machine.tensor_rate("tf32") or math.inf)


def _launches(
    kernel: Kernel, code: GpuKernel, assembled: Assembled, functions: Mapping[str, Function], machine: GpuMachine,
    before: float | None, most: float,
) -> Iterator[Prediction]:  # fmt: skip
    if before is None:  # (as if it ran again and again)
        before = settled([phase_moves(kernel, phase) for phase in kernel.phases], machine)[0]
    paired = in_pairs(kernel, machine.target)
    for phase, own, launch in zip(kernel.phases, paired.phases, code.launches, strict=True):
        if launch.symbol not in functions:
            raise UserError(
                f"kernel {kernel.name}: its machine code has no entry {launch.symbol}",
                "remove the cache of kernels, in case it is damaged; else please report it",
            )
        resources = assembled.of(launch.symbol)
        shared = resources.shared_bytes + launch.shared_bytes
        fit = occupancy(machine, resources.registers, launch.threads, shared, launch.tensor_columns)
        traffic = phase_traffic(kernel, phase, machine, max(1, fit.blocks))
        known = Known(
            traffic, kernel.flops / len(kernel.phases), _stages(phase), turns=block_turns(kernel, phase),
            copy=copies_of(paired, own), sides=kernel.gpu.sides,
        )  # fmt: skip
        work = launch_work(functions[launch.symbol], launch, resources, machine, known)
        slots = (work.sms or machine.sms) * work.resident
        work = replace(
            work, work=with_contributions(work.work, phase), waiting=waiting(kernel, phase, slots),
            moves=phase_moves(kernel, phase),
        )  # fmt: skip
        yield predict(work, machine, before, most)
        before = left_in_cache(before, work.moves, machine)


def _stages(phase: tuple[Statement, ...]) -> int | None:
    """The depth of the deepest pipeline in a phase; None without one."""
    found = [_stages_of(s) for s in phase]
    known = [s for s in found if s]
    return max(known) if known else None


def _stages_of(s: Statement) -> int:
    if not isinstance(s, Loop):
        return 0
    own = s.stages if s.level == "pipe" else 0
    return max([own, *(_stages_of(b) for b in s.body)])


@dataclass(frozen=True)
class StepPrediction:
    """A step's kernels with how often a step launches each, in order of the time they take."""

    kernels: tuple[tuple[KernelPrediction, int], ...]

    @property
    def seconds(self) -> float:
        """Of one step: one micro-batch per accumulation and one update."""
        return sum(k.seconds * n for k, n in self.kernels)


def launches_of(step: Step, accumulation: int = 1) -> dict[str, int]:
    """Kernel -> launches in one step."""
    times = {"micro_first": 1, "micro_next": accumulation - 1, "update": 1}
    if "micro_first" not in step.programs:
        times = {"forward": 1}
    counts: dict[str, int] = {}
    for program, n in times.items():
        for launch in step.programs.get(program, ()):
            counts[launch.kernel] = counts.get(launch.kernel, 0) + n
    return {k: n for k, n in counts.items() if n}


def behind(step: Step, machine: GpuMachine, accumulation: int = 1) -> dict[str, float]:
    """Kernel -> bytes that others left in L2 for memory when it begins, on the average of its launches in a step."""
    moves = {
        k: [phase_moves(step.kernels[k], p) for p in step.kernels[k].phases] for k in launches_of(step, accumulation)
    }
    names = [launch.kernel for program in step.programs.values() for launch in program if launch.kernel in moves]
    left = settled([m for name in names for m in moves[name]], machine)
    found: dict[str, list[float]] = {}
    at = 0
    for name in names:
        found.setdefault(name, []).append(left[at])
        at += len(moves[name])
    return {name: fmean(bytes_left) for name, bytes_left in found.items()}


def clock_in(step: Step, machine: GpuMachine, accumulation: int = 1) -> float:
    """Hertz at most of a launch in the step, by how much of its time matrix products need at the least."""
    products = whole = 0.0
    for name, n in launches_of(step, accumulation).items():
        kernel = step.kernels[name]
        rates = [r for r in (machine.tensor_rate(b.dtype.value) for b in kernel.operands + kernel.tiles) if r]
        seconds = kernel.flops / max(rates) if rates else 0.0
        products += n * seconds
        whole += n * max(seconds, kernel.traffic / (machine.memory_bandwidth * HBM_EFFICIENCY))
    return clock_of_step(machine, products / whole if whole else 0.0)


def predict_step(
    step: Step,
    machine: GpuMachine,
    cache: Path | None = None,
    accumulation: int = 1,
    only: Container[str] | None = None,
) -> Iterator[tuple[KernelPrediction, int]]:
    """Each kernel of the step (of those that `only` has) and its launches per step, as they are predicted (assembling
    takes a while), each behind what it runs behind there, at the step's clock."""
    left, most = behind(step, machine, accumulation), clock_in(step, machine, accumulation)
    counts = launches_of(step, accumulation)
    names = [name for name in counts if only is None or name in only]
    for at in range(0, len(names), AT_ONCE):
        some = names[at : at + AT_ONCE]
        for name, code in zip(some, _machine_code([step.kernels[n] for n in some], machine, cache), strict=True):
            yield _predicted(step.kernels[name], code, machine, left[name], most), counts[name]
