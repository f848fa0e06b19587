"""Which registers wgmma.mma_async may still read or write, and where in the program that can be.

The hardware owns the accumulators, and the A registers, of an mma_async until a wait_group retires it. Their
rows in the register file must stay theirs for as long: `in_flight` gives, for each basic block, the registers
that some path leaves with the hardware at its start and at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

from tcomp.runtime.vgpu.ptx import Imm, Instr, Reg, Vec


def fragments(i: Instr) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the accumulator registers of an mma_async, and those of A (none when A is in shared memory)."""
    d, a = i.operands[0], i.operands[1]
    return _names(d), _names(a) if isinstance(a, Vec) else ()


def _names(o: object) -> tuple[str, ...]:
    return tuple(r.name for r in o.items if isinstance(r, Reg)) if isinstance(o, Vec) else ()


def is_multiply(i: Instr) -> bool:
    return i.opcode.startswith("wgmma.mma_async") and len(i.operands) >= 3


def in_flight(
    code: Sequence[Instr], spans: Sequence[tuple[int, int]], successors: Sequence[Sequence[int]], number: dict[str, int]
) -> tuple[list[int], list[int]]:
    """Bit masks of register numbers held by the hardware at the start and end of each block."""
    start, end = [0] * len(spans), [0] * len(spans)
    if not any(is_multiply(i) for i in code):
        return start, end
    work = list(range(len(spans)))
    while work:
        b = work.pop()
        mask = start[b]
        for i in code[spans[b][0] : spans[b][1]]:
            if is_multiply(i):
                for r in (*fragments(i)[0], *fragments(i)[1]):
                    if r in number:
                        mask |= 1 << number[r]
            elif i.opcode.startswith("wgmma.wait_group") and _all(i):
                mask = 0
        if mask != end[b] or not mask:
            end[b] = mask
            for s in successors[b]:
                if start[s] | mask != start[s]:
                    start[s] |= mask
                    work.append(s)
    return start, end


def _all(i: Instr) -> bool:
    n = i.operands[0] if i.operands else None
    return isinstance(n, Imm) and int(n.value) == 0 and i.guard is None
