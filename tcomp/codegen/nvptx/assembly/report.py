"""The table of a GPU build: what each launch takes of the machine, and the findings at their schedule's line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from tcomp.codegen.nvptx.assembly.assemble import Assembled
from tcomp.codegen.nvptx.assembly.diagnostics import Message, advice, origin
from tcomp.codegen.nvptx.assembly.occupancy import Occupancy, occupancy
from tcomp.codegen.nvptx.assembly.resources import Resources
from tcomp.dsl.ast import Span
from tcomp.ir.origins import Origins
from tcomp.machine.gpu import GpuMachine

if TYPE_CHECKING:
    from rich.table import Table


class Launch(Protocol):
    """One launch of a kernel (`tcomp.codegen.nvptx.compile.LaunchShape`). `shared_bytes` is dynamic shared memory."""

    @property
    def symbol(self) -> str: ...

    @property
    def blocks(self) -> int: ...

    @property
    def threads(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...

    @property
    def tensor_columns(self) -> int: ...


class Code(Protocol):
    """A kernel as PTX (`tcomp.codegen.nvptx.compile.GpuKernel`)."""

    @property
    def ptx(self) -> str: ...

    @property
    def launches(self) -> Sequence[Launch]: ...


@dataclass(frozen=True)
class LaunchReport:
    """`dynamic_shared` in bytes per block, beside the static ones among the resources."""

    symbol: str
    blocks: int
    threads: int
    dynamic_shared: int
    resources: Resources
    occupancy: Occupancy


@dataclass(frozen=True)
class KernelReport:
    """A kernel's launches and findings. `span` is where its schedule stands, or its op where no schedule is written;
    `origins` are the lines of it that findings come from."""

    name: str
    span: Span
    launches: tuple[LaunchReport, ...]
    findings: tuple[Message, ...]
    origins: Origins = Origins()

    def place(self, m: Message) -> Span:
        """Where a finding comes from, as far as it is known."""
        return origin(m, self.origins, self.span)

    def lines(self) -> list[str]:
        """The findings for people, each at its place, each followed by advice where there is some."""
        out = []
        for m in self.findings:
            out.append(m.describe(self.place(m)))
            if hint := advice(m, self.origins):
                out.append(f"  help: {hint}")
        return out


def kernel_report(
    name: str,
    span: Span,
    launches: Sequence[Launch],
    assembled: Assembled,
    machine: GpuMachine,
    origins: Origins = Origins(),
) -> KernelReport:
    """The report of one kernel. A launch that the machine cannot hold is a finding too. KeyError for a launch of a
    symbol that the module lacks."""
    reports, findings = [], list(assembled.findings)
    for launch in launches:
        r = assembled.of(launch.symbol)
        shared = r.shared_bytes + launch.shared_bytes
        fit = occupancy(machine, r.registers, launch.threads, shared, launch.tensor_columns)
        if fit.problem:
            findings.append(Message("error", "launch", f"cannot run on {machine.name}: {fit.problem}", launch.symbol))
        elif r.shared_bytes > machine.static_shared:
            text = f"{r.shared_bytes} bytes of static shared memory, more than {machine.static_shared} must be dynamic"
            findings.append(Message("error", "launch", text, launch.symbol))
        reports.append(LaunchReport(launch.symbol, launch.blocks, launch.threads, launch.shared_bytes, r, fit))
    named = (m if m.symbol else replace(m, symbol=name) for m in findings)
    return KernelReport(name, span, tuple(reports), tuple(dict.fromkeys(named)), origins)


def table(reports: Sequence[KernelReport], machine: GpuMachine) -> Table:
    """One row per launch."""
    from rich import box
    from rich.table import Table

    grid = Table(
        box=box.SIMPLE, title=f"{machine.label or machine.name} ({machine.target})", title_justify="left", expand=False
    )
    grid.add_column("kernel", no_wrap=True)
    for name in ("blocks", "threads", "registers", "spilled", "stack", "shared", "dynamic", "barriers"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("occupancy", no_wrap=True)
    for kernel in reports:
        marked = {m.symbol for m in kernel.findings}
        for launch in kernel.launches:
            r, o = launch.resources, launch.occupancy
            cells = (
                launch.blocks, launch.threads, r.registers, r.spill_store_bytes + r.spill_load_bytes, r.stack_bytes,
                r.shared_bytes, launch.dynamic_shared, r.barriers,
            )  # fmt: skip
            fit = (
                f"{o.fraction:4.0%}  {o.blocks} block{'s' * (o.blocks > 1)} by {o.limit}"
                if o.blocks
                else "does not fit"
            )
            grid.add_row(
                launch.symbol, *(str(c) if c else "-" for c in cells), fit,
                style="yellow" if launch.symbol in marked else None,
            )  # fmt: skip
    return grid


def as_json(reports: Sequence[KernelReport], machine: GpuMachine, assembler: tuple[int, int]) -> dict[str, Any]:
    """The whole table as plain data, for tools and for comparing builds."""
    return {
        "machine": machine.name,
        "target": machine.target,
        "assembler": "nvjitlink {}.{}".format(*assembler),
        "kernels": [
            {
                "name": k.name,
                "schedule": str(k.span),
                "launches": [asdict(launch) for launch in k.launches],
                "findings": [asdict(m) | {"place": str(k.place(m))} for m in k.findings],
            }
            for k in reports
        ],
    }
