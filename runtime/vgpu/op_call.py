"""What stands for calls in a flattened kernel: parameter passing of run-time calls, printf, malloc and free.

`vgpu.pass` copies .param variables to the passing area of argument memory, `vgpu.result` back from there.
"""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.program import up
from tcomp.runtime.vgpu.ptx import Instr, Reg, Sym


@instruction("vgpu")
def internal(d: Decoder, i: Instr) -> Run:
    match i.parts[1]:
        case "zero":
            return zero(d, i)
        case "pass" | "result":
            return passing(d, i)
        case "malloc":
            return allocate(d, i)
        case "free":
            return release(d, i)
    raise d.unknown(i)


def args_of(m: Machine) -> tuple[Array, Array]:
    """Argument memory and its initialisation, as (lanes, bytes)."""
    shape = (m.lanes, m.args_stride)
    size = m.lanes * m.args_stride
    return m.args.data[:size].reshape(shape), m.args.init[:size].reshape(shape)


def zero(d: Decoder, i: Instr) -> Run:
    """The result of an ignored external call is 0."""
    m = d.m
    puts = [d.put(o, d.m.program.registers[o.name].replace("f", "b")) for o in i.operands if isinstance(o, Reg)]
    spans = [(m.program.offsets[o.name], m.program.variables[o.name].size) for o in i.operands if isinstance(o, Sym)]

    def run(sel: Sel) -> None:
        data, init = args_of(m)
        for start, size in spans:
            data[sel, start : start + size] = 0
            init[sel, start : start + size] = 1
        for put in puts:
            put(sel, 0)

    return run


def passing(d: Decoder, i: Instr) -> Run:
    m, p = d.m, d.m.program
    out = i.parts[1] == "pass"
    moves, at = [], p.passing
    for o in i.operands:
        assert isinstance(o, Sym)
        size = p.variables[o.name].size
        moves.append((at, p.offsets[o.name] + o.offset, size))
        at += up(size, 16)

    def run(sel: Sel) -> None:
        for of_memory in args_of(m):
            for area, own, size in moves:
                to, source = (area, own) if out else (own, area)
                of_memory[sel, to : to + size] = of_memory[sel, source : source + size]

    return run


def allocate(d: Decoder, i: Instr) -> Run:
    """malloc: each lane gets an allocation of its own, uninitialised."""
    m, p = d.m, d.m.program
    result, size = i.operands
    assert isinstance(result, Sym) and isinstance(size, Sym)
    to, of = p.offsets[result.name], p.offsets[size.name]

    def run(sel: Sel) -> None:
        data, init = args_of(m)
        for lane in m.ids[sel].tolist():
            n = int(data[lane, of : of + 8].view(np.uint64)[0])
            address = m.memory.allocate(max(n, 1), "malloc").base
            data[lane, to : to + 8] = np.array([address], np.uint64).view(np.uint8)
            init[lane, to : to + 8] = 1

    return run


def release(d: Decoder, i: Instr) -> Run:
    m, p = d.m, d.m.program
    pointer = i.operands[-1]
    assert isinstance(pointer, Sym)
    at = p.offsets[pointer.name]

    def run(sel: Sel) -> None:
        data, _ = args_of(m)
        for lane in m.ids[sel].tolist():
            address = int(data[lane, at : at + 8].view(np.uint64)[0])
            found = m.memory.find(address) if address else None
            if address and (found is None or found.base != address or found.name != "malloc"):
                m.finding("free of no allocation", i, np.array([lane]), "not the address that malloc gave", address)
            elif address:
                m.memory.free(address)

    return run
