"""What a launch tells: findings (each with PTX line, lane, block and address) and counts of what was executed."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Finding:
    """One fault, merged over all lanes that showed it at the same PTX line; lane and block are the first's."""

    kind: str
    message: str
    line: int
    source: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    lane: int
    address: int | None = None
    count: int = 1

    def __str__(self) -> str:
        where = f" at address {self.address:#x}" if self.address is not None else ""
        more = f" (and {self.count - 1} more lanes)" if self.count > 1 else ""
        return (
            f"{self.kind}: {self.message}{where}\n  PTX line {self.line}: {self.source}\n"
            f"  block {self.block}, thread {self.thread}, lane {self.lane}{more}"
        )


@dataclass
class Traffic:
    """Bytes that lanes asked for, and how they fell on 32-byte sectors (global) or banks (shared)."""

    bytes_read: int = 0
    bytes_written: int = 0
    requests: int = 0
    sectors: int = 0
    bank_conflicts: int = 0

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests if self.requests else 0.0


@dataclass
class Report:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    instructions: int = 0  # thread-instructions
    warp_instructions: int = 0
    seconds: float = 0.0
    traffic: dict[str, Traffic] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    waited_for_columns: int = 0  # blocks for which their SM had too little tensor memory left at first

    @property
    def ok(self) -> bool:
        return not self.findings

    def kinds(self) -> set[str]:
        return {f.kind for f in self.findings}

    def check(self) -> Report:
        """Raises KernelFault with every finding's text if there is one."""
        if self.findings:
            raise KernelFault(self)
        return self

    def __str__(self) -> str:
        rate = self.instructions / self.seconds / 1e6 if self.seconds else 0.0
        lines = [
            f"{self.kernel} grid {self.grid} block {self.block}: {self.instructions:,} thread-instructions in "
            f"{self.seconds:.3f} s ({rate:.0f} million a second), {self.warp_instructions:,} warp-instructions"
        ]
        for space, t in sorted(self.traffic.items()):
            text = f"  {space}: {t.bytes_read:,} bytes read, {t.bytes_written:,} written"
            if space == "global" and t.requests:
                text += f", {t.sectors:,} sectors in {t.requests:,} requests ({t.sectors_per_request:.2f} a request)"
            if space == "shared" and t.requests:
                text += f", {t.bank_conflicts:,} bank conflicts in {t.requests:,} requests"
            lines.append(text)
        if self.waited_for_columns:
            lines.append(f"  tensor memory: {self.waited_for_columns:,} blocks waited for columns of others on an SM")
        lines.append(f"  findings: {len(self.findings) or 'none'}")
        return "\n".join(lines + [str(f) for f in self.findings])


class KernelFault(Exception):
    """A launch ended with findings; `report` has them."""

    def __init__(self, report: Report) -> None:
        super().__init__("\n".join(str(f) for f in report.findings))
        self.report = report
