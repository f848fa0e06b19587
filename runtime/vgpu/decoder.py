"""Operands -> closures. An instruction is decoded once; running it is then a few NumPy calls on whole rows.

`source` gives a function Sel -> array of a PTX type, `put` a function (Sel, array) that writes a destination.
Instructions register themselves with `@instruction("add", "sub")`; a decoder returns the closure that runs it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import memory as mem
from tcomp.runtime.vgpu.errors import PtxError, UnknownInstruction
from tcomp.runtime.vgpu.lanes import Array, Sel, every
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Imm, Instr, Not, Operand, Reg, Sym
from tcomp.runtime.vgpu.special import special
from tcomp.runtime.vgpu.types import Scalar, scalar

Source = Callable[[Sel], Any]
Put = Callable[[Sel, Any], None]
Run = Callable[[Sel], Any]
Decode = Callable[["Decoder", Instr], Run]
INSTRUCTIONS: dict[str, Decode] = {}
Watcher = Callable[["Decoder", Instr, Run], Run]
WATCHERS: list[Watcher] = []


def instruction(*names: str) -> Callable[[Decode], Decode]:
    def register(f: Decode) -> Decode:
        for name in names:
            INSTRUCTIONS[name] = f
        return f

    return register


def watcher(f: Watcher) -> Watcher:
    """Registers a function that sees every decoded instruction and may wrap its closure with checks."""
    WATCHERS.append(f)
    return f


@cache
def _decoder_of(opcode: str) -> Decode | None:
    parts = opcode.split(".")
    names = (".".join(parts[:k]) for k in (3, 2, 1))  # `cp.async.bulk` before `cp`
    return next((INSTRUCTIONS[n] for n in names if n in INSTRUCTIONS), None)


class Decoder:
    def __init__(self, machine: Machine) -> None:
        self.m = machine
        self.line = 0
        self.instr: Instr | None = None

    def decode(self, i: Instr) -> Run:
        self.line, self.instr = i.line, i
        f = _decoder_of(i.opcode)
        if f is None:
            raise UnknownInstruction(i.opcode, i.line)
        try:
            run = f(self, i)
        except (IndexError, KeyError, AssertionError) as e:
            raise UnknownInstruction(i.opcode, i.line, f"this form is not executed ({e!r})") from e
        for watch in WATCHERS:
            run = watch(self, i, run)
        return run

    def unknown(self, i: Instr, why: str = "this form is not executed") -> UnknownInstruction:
        return UnknownInstruction(i.opcode, i.line, why)

    # --- operands
    def view(self, name: str, t: Scalar) -> Array:
        """The register's row as type `t` (its low bytes when the register is wider)."""
        row = self.m.row(name)
        if row.dtype == bool:
            if t.kind != "p":
                raise PtxError(f"predicate `{name}` used as .{t.name}", self.line)
            return row
        if t.kind == "p":
            raise PtxError(f"`{name}` is not a predicate", self.line)
        ratio = row.dtype.itemsize // t.dtype.itemsize
        if ratio == 0:
            raise PtxError(f"register `{name}` is narrower than .{t.name}", self.line)
        return row.view(t.dtype) if ratio == 1 else row.view(t.dtype)[::ratio]

    def source(self, o: Operand, t: Scalar | str, plain_move: bool = False) -> Source:
        t = scalar(t) if isinstance(t, str) else t
        if isinstance(o, Not):
            inner = self.source(o.item, t)
            return (lambda sel: ~inner(sel)) if t.kind == "p" else (lambda sel: -inner(sel))
        if isinstance(o, Imm):
            value = self.literal(o, t)
            return lambda sel: value
        if isinstance(o, Sym):
            return self.symbol(o, t)
        if not isinstance(o, Reg):
            raise PtxError("this operand is not a value", self.line)
        if o.name not in self.m.program.registers:
            return special(self.m, o.name, t, self.line)
        get: Source = self.view(o.name, t).__getitem__
        if o.name in self.m.flow.tracked and not plain_move and self.m.options.checks:
            return self.checked(o.name, get)
        return get

    def checked(self, name: str, get: Source) -> Source:
        m, instr, defined = self.m, self.instr, self.m.defined[name]
        assert instr is not None

        def run(sel: Sel) -> Any:
            ok = defined[sel]
            if not every(ok):
                bad = m.ids[sel][~ok]
                m.finding("uninitialised register", instr, bad, f"`{name}` is read before anything is written to it")
                defined[sel] = True
            return get(sel)

        return run

    def literal(self, o: Imm, t: Scalar) -> Any:
        if t.kind == "p":
            return np.bool_(o.value)
        if t.kind == "f":
            if o.bits in (32, 64):
                raw = int(o.value).to_bytes(o.bits // 8, "little")
                number = struct.unpack("<f" if o.bits == 32 else "<d", raw)[0]
                if o.bits == t.bits:
                    return np.frombuffer(raw, t.dtype)[0]
                return t.dtype.type(number)
            if o.bits == 1 or t.bits > 16:
                return t.dtype.type(o.value)
            return np.frombuffer(int(o.value).to_bytes(2, "little"), t.dtype)[0]
        value = int(o.value)
        if o.bits == 32 and t.bits == 64:
            value = value & 0xFFFFFFFF
        value &= (1 << t.bits) - 1
        return np.frombuffer(value.to_bytes(t.size, "little"), t.dtype)[0]

    def address_of(self, name: str) -> int:
        """The numeric address of a variable: within its space for shared and local, within the frame for a
        variable of a run-time function, generic otherwise."""
        p = self.m.program
        v = p.variables.get(name)
        if v is None and name in self.m.module_addresses:  # a function
            return int(self.m.module_addresses[name])
        if v is None:
            raise PtxError(f"unknown name `{name}`", self.line)
        if v.space in ("global", "const"):
            return int(self.m.module_addresses[name])
        base = {"shared": 0, "local": 0, "frame": 0, "param": mem.ARGS_WINDOW, "kernel": mem.PARAM_WINDOW}[v.space]
        return base + p.offsets[name]

    def symbol(self, o: Sym, t: Scalar) -> Source:
        value = self.literal(Imm(self.address_of(o.name) + o.offset), t)
        v = self.m.program.variables.get(o.name)
        if v is not None and v.space == "frame":
            frame = self.m.frame
            return lambda sel: frame[sel].astype(t.dtype) + value
        if v is not None and v.space == "shared" and self.m.ranks > 1 and t.size >= 4:
            # As the assembler has it (SR_CgaCtaId): with the block's number in the cluster above the place.
            own = (self.m.rank.astype(t.dtype) + t.dtype.type(1)) * t.dtype.type(mem.CLUSTER_STEP) + value
            return lambda sel: own[sel]
        return lambda sel: value

    def put(self, o: Operand, t: Scalar | str) -> Put:
        """Writes values of type `t`; a wider register is filled by sign or zero extension."""
        t = scalar(t) if isinstance(t, str) else t
        if not isinstance(o, Reg):
            raise PtxError("the destination is not a register", self.line)
        if o.name == "_":
            return lambda sel, value: None
        if o.name not in self.m.program.registers:
            raise PtxError(f"unknown register `{o.name}`", self.line)
        row = self.m.row(o.name)
        if row.dtype == bool or row.dtype.itemsize == t.dtype.itemsize:
            target = self.view(o.name, t)
        elif row.dtype.itemsize < t.dtype.itemsize:
            raise PtxError(f"register `{o.name}` is narrower than .{t.name}", self.line)
        else:
            target = row.view(f"i{row.dtype.itemsize}" if t.signed else f"u{row.dtype.itemsize}")
            if t.kind == "f":
                plain, raw = target.__setitem__, np.dtype(f"u{t.size}")
                return self.tracking(o.name, lambda sel, value: plain(sel, np.asarray(value, t.dtype).view(raw)))
        return self.tracking(o.name, target.__setitem__)

    def tracking(self, name: str, put: Put) -> Put:
        if name not in self.m.flow.tracked:
            return put
        defined = self.m.defined[name]

        def run(sel: Sel, value: Any) -> None:
            put(sel, value)
            defined[sel] = True

        return run

    def target_row(self, o: Operand, t: Scalar) -> Array | None:
        """The destination's row when results may be computed straight into it (NumPy's `out=`)."""
        if not isinstance(o, Reg) or o.name not in self.m.program.registers or o.name in self.m.flow.tracked:
            return None
        row = self.m.row(o.name)
        return self.view(o.name, t) if row.dtype == bool or row.dtype.itemsize == t.dtype.itemsize else None

    def binary(self, i: Instr, t: Scalar, f: Callable[..., Any]) -> Run:
        """d = f(a, b) for a NumPy ufunc, computed in place when the lanes are contiguous."""
        a, b = self.source(i.operands[1], t), self.source(i.operands[2], t)
        put, row = self.put(i.operands[0], t), self.target_row(i.operands[0], t)
        if row is None:
            return lambda sel: put(sel, f(a(sel), b(sel)))

        def run(sel: Sel) -> None:
            if sel.__class__ is slice:
                f(a(sel), b(sel), out=row[sel])
            else:
                row[sel] = f(a(sel), b(sel))

        return run
