"""One kernel as a flat list of instructions, with the place of every variable.

`flatten` expands calls in place where it can (see expand.py); functions that are called through a register,
call themselves or are too large to repeat stand in front of the kernel's own code and are called at run time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from tcomp.runtime.vgpu.ptx import Function, Instr, Variable


@dataclass(frozen=True)
class CallSite:
    """A run-time call. `targets`: the functions it may reach; `caller`: the function it stands in, "" the kernel."""

    targets: tuple[str, ...]
    caller: str


@dataclass
class Callee:
    """A function that is called at run time: registers and labels have the prefix `name:`.

    `frame` is the bytes of its variables on the stack, `formals` and `results` its parameters and results as
    (offset, size) in argument memory, `recursive` whether a call may come back to it.
    """

    name: str
    recursive: bool
    label: str
    frame: int = 0
    formals: list[tuple[int, int]] = field(default_factory=list)
    results: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class Program:
    """`labels` and `calls` are indexed by place in `code`; `offsets` places each variable within its space.

    A variable of space "frame" lies on the stack of the run-time function it belongs to. `passing` is the
    place in argument memory through which run-time calls hand over parameters and results.
    """

    entry: Function
    code: list[Instr] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    callees: dict[str, Callee] = field(default_factory=dict)
    calls: dict[int, CallSite] = field(default_factory=dict)
    returns: dict[int, str] = field(default_factory=dict)
    local_bytes: int = 0
    args_bytes: int = 0
    shared_bytes: int = 0
    dynamic_shared: list[str] = field(default_factory=list)
    param_bytes: int = 0
    passing: int = 0

    @cached_property
    def uses_wgmma(self) -> bool:
        return any(i.opcode.startswith("wgmma.mma_async") for i in self.code)

    @cached_property
    def uses_tensor_loads(self) -> bool:
        return any(i.opcode.startswith("tcgen05.ld") for i in self.code)

    def place(self, name: str, v: Variable, callee: Callee | None = None) -> None:
        """Gives `v`, known as `name`, its offset; a local variable of a run-time function goes to its frame."""
        self.variables[name] = v
        if v.space == "shared" and (v.extern or v.size == 0):
            self.dynamic_shared.append(name)
            return
        if v.space == "local" and callee is not None:
            self.offsets[name] = up(callee.frame, v.align)
            callee.frame = up(self.offsets[name] + v.size, 16)
            return
        attribute = {"local": "local_bytes", "param": "args_bytes", "shared": "shared_bytes"}.get(v.space)
        if attribute is None:
            return
        start = up(getattr(self, attribute), v.align)
        self.offsets[name] = start
        setattr(self, attribute, start + v.size)


def up(value: int, align: int) -> int:
    return (value + align - 1) // align * align
