"""The GPU half of `tcomp build`: a step's kernels to PTX, to cubins, and the table and findings of what came of it.

Kernels become PTX one after another while two threads assemble: nvJitLink works outside Python's lock.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tcomp.cli.display import bars
from tcomp.errors import UserError

if TYPE_CHECKING:
    from tcomp.codegen.nvptx.assembly.assemble import Assembled
    from tcomp.codegen.nvptx.assembly.report import Code, KernelReport
    from tcomp.ir.tile import Kernel
    from tcomp.machine.gpu import GpuMachine
    from tcomp.model.step import Step
    from tcomp.runtime.executor import Executor


@dataclass(frozen=True)
class TargetDevice:
    """A GPU that is built for and need not be here."""

    machine: GpuMachine
    threads: int = 1
    kind: str = "target"

    @property
    def description(self) -> str:
        return f"{self.machine.label} ({self.machine.target})"

    def begin(self, kernel: Kernel) -> None:
        pass

    def abandon(self) -> None:
        pass

    def open(self, step: Step) -> Executor:
        raise UserError(f"nothing runs on {self.machine.name} here: it is only built for", "run on --device virtual")

    def free_memory(self) -> int | None:
        return self.machine.memory_bytes

    def finish(self) -> None:
        pass


@dataclass(frozen=True)
class GpuBuild:
    """`files` go to the build folder."""

    reports: tuple[KernelReport, ...]
    files: dict[str, str | bytes]
    table: str

    @property
    def findings(self) -> list[str]:
        """Every finding with its place and advice."""
        return [line for r in self.reports for line in r.lines()]

    @property
    def count(self) -> int:
        return sum(len(r.findings) for r in self.reports)


def build_kernels(
    kernels: Sequence[Kernel], machine: GpuMachine, cache: Path | None = None, colour: bool = False
) -> GpuBuild:
    """PTX and cubins of all kernels, each assembled and reported. UserError, at the schedule, where one fails."""
    from tcomp.codegen.nvptx.assembly.assemble import WORKERS, assemble, assembler_version
    from tcomp.codegen.nvptx.assembly.report import as_json, kernel_report, table
    from tcomp.codegen.nvptx.launch import GpuKernel, to_json

    version = assembler_version()  # before any work: what is missing should be told at once
    ptx_of = generator(machine, cache)
    jobs: list[tuple[Kernel, Code, Future[Assembled]]] = []
    with bars() as progress:
        pool = ThreadPoolExecutor(WORKERS)
        try:
            generated = progress.add_task("PTX", total=len(kernels))
            assembled = progress.add_task("cubins", total=len(kernels))
            for kernel in kernels:
                code = ptx_of(kernel)
                future = pool.submit(assemble, code.ptx, machine.target, cache)
                future.add_done_callback(lambda _: progress.advance(assembled))
                jobs.append((kernel, code, future))
                progress.advance(generated)
            results = [(kernel, code, _finished(kernel, future)) for kernel, code, future in jobs]
        finally:
            pool.shutdown(cancel_futures=True)
    reports = tuple(kernel_report(k.name, k.span, code.launches, a, machine, k.origins) for k, code, a in results)
    files: dict[str, str | bytes] = {f"ptx/{k.name}.ptx": code.ptx for k, code, _ in results}
    files |= {f"cubin/{k.name}.cubin": a.cubin for k, _, a in results}
    files |= {
        f"launch/{k.name}.json": to_json(code, ptx=False) for k, code, _ in results if isinstance(code, GpuKernel)
    }
    files["table.json"] = json.dumps(as_json(reports, machine, version), indent=1) + "\n"
    printed = table(reports, machine)
    files["kernels.txt"] = _text(printed, False) + "".join(f"{x}\n" for r in reports for x in r.lines())
    return GpuBuild(reports, files, _text(printed, colour))


def generator(machine: GpuMachine, cache: Path | None) -> Callable[[Kernel], Code]:
    """Kernels to PTX, kept in the cache under the names that training looks for."""
    from tcomp.runtime.cuda.kernels import compile_all

    return lambda kernel: compile_all({kernel.name: kernel}, machine, cache)[kernel.name]


def _finished(kernel: Kernel, future: Future[Assembled]) -> Assembled:
    try:
        return future.result()
    except UserError as e:
        raise UserError(f"{kernel.span}: kernel {kernel.name}: {e.message}", e.hint) from e


def _text(printed: object, colour: bool) -> str:
    """As wide as it needs to be: a narrow terminal breaks its lines, nothing is cut off."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=400, force_terminal=colour, no_color=not colour).print(printed)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"
