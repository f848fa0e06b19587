"""Every allocation of the process, device and pinned host, by address."""

from __future__ import annotations

import mmap
from bisect import bisect_right, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.shim.context import Context


@dataclass(order=True)
class Allocation:
    """`kind`: device, host (pinned), registered (pinned later), managed, or pool. `owner` made it."""

    base: int
    size: int = field(compare=False)
    kind: str = field(compare=False)
    owner: Context = field(compare=False)
    number: int = field(compare=False)
    flags: int = field(compare=False, default=0)
    pool: int = field(compare=False, default=0)
    mapping: mmap.mmap | None = field(compare=False, default=None)
    pages: list[Any] = field(compare=False, default_factory=list)

    @property
    def end(self) -> int:
        return self.base + self.size

    @property
    def on_device(self) -> bool:
        return self.kind in ("device", "pool")


class Allocations:
    def __init__(self) -> None:
        self._sorted: list[Allocation] = []

    def __iter__(self) -> Any:
        return iter(list(self._sorted))

    def add(self, one: Allocation) -> None:
        insort(self._sorted, one)

    def remove(self, one: Allocation) -> None:
        self._sorted.remove(one)

    def find(self, address: int) -> Allocation | None:
        """The allocation that holds that byte."""
        n = bisect_right(self._sorted, address, key=lambda a: a.base) - 1
        found = self._sorted[n] if n >= 0 else None
        return found if found is not None and address < found.end else None

    def at(self, address: int) -> Allocation | None:
        """The allocation that starts there."""
        found = self.find(address)
        return found if found is not None and found.base == address else None
