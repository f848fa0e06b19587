"""Basic blocks, register liveness, and the packing of registers into as few rows as are live at once.

Two results matter. Registers that no path can read before writing need no initialisation check at run
time; only the rest (those live into the entry) are tracked. And a kernel in SSA form with thousands of
names fits in the few hundred rows that are live together, so the register file stays in cache.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.program import Program
from tcomp.runtime.vgpu.ptx import Addr, Instr, Not, Operand, Pair, Reg, Sym, Vec
from tcomp.runtime.vgpu.wgmma_registers import in_flight

NO_DESTINATION = {
    "st", "red", "bar", "barrier", "membar", "fence", "bra", "brx", "call", "exit", "ret", "trap", "brkpt", "cp",
    "prefetch", "prefetchu", "nanosleep", "stmatrix", "discard", "applypriority", "setmaxnreg", "griddepcontrol",
    "pmevent", "multimem", "tensormap",
}  # fmt: skip
# Instructions that may wait for other lanes: each begins a basic block, so waiting lanes can stand there.
WAITING = {"bar", "barrier", "shfl", "vote", "match", "redux", "elect", "ldmatrix", "stmatrix", "movmatrix", "mma",
           "wgmma", "activemask", "setmaxnreg"}  # fmt: skip
READS_DESTINATION = {"wgmma"}


def waits(i: Instr) -> bool:
    return i.opcode.split(".")[0] in WAITING or i.opcode.startswith(("mbarrier.try_wait", "mbarrier.test_wait"))


# Instructions after which a lane may stand elsewhere: each ends a basic block.
TRANSFERS = {"bra", "brx", "exit", "trap", "call", "ret"}


def registers_in(o: Operand) -> list[str]:
    if isinstance(o, Reg):
        return [o.name]
    if isinstance(o, Vec):
        return [r for i in o.items for r in registers_in(i)]
    if isinstance(o, Pair):
        return registers_in(o.first) + registers_in(o.second)
    if isinstance(o, Not):
        return registers_in(o.item)
    if isinstance(o, Addr):
        names = [o.base.name] if isinstance(o.base, Reg) else []
        return names + [r for c in o.coords for r in registers_in(c)]
    return []


def uses_and_definitions(i: Instr, registers: dict[str, str]) -> tuple[list[str], list[str]]:
    base = i.opcode.split(".")[0]
    first_is_destination = base not in NO_DESTINATION and i.operands and not isinstance(i.operands[0], Addr)
    if i.opcode.startswith(("barrier.cta.red", "barrier.red", "bar.red")):
        first_is_destination = True
    if i.opcode.startswith(("wgmma.fence", "wgmma.commit", "wgmma.wait", "mbarrier.init", "mbarrier.inval")):
        first_is_destination = False
    sources = i.operands[1:] if first_is_destination else i.operands
    defined = registers_in(i.operands[0]) if first_is_destination else []
    used = [r for o in sources for r in registers_in(o)]
    if base in READS_DESTINATION:
        used += defined
    if i.guard:
        used.append(i.guard)
    return [r for r in used if r in registers], [r for r in defined if r in registers]


@dataclass
class Block:
    start: int
    end: int
    successors: list[int] = field(default_factory=list)


@dataclass
class Flow:
    blocks: list[Block]
    row: dict[str, int]
    rows: dict[int, int]  # width in bits -> rows of that width (1 is predicates)
    tracked: set[str]  # registers that some path may read before writing
    live_in: list[set[str]] = field(default_factory=list)  # per block, where run-time calls have to know
    guesses: set[tuple[Any, int]] | None = None  # addresses of compare-and-swaps, once a load has asked


def width(type_name: str) -> int:
    from tcomp.runtime.vgpu.types import scalar

    bits = scalar(type_name).bits
    return 16 if bits == 8 else bits


def analyse(p: Program) -> Flow:
    code = p.code
    leaders = {0, *p.labels.values()}
    for n, i in enumerate(code):
        base = i.opcode.split(".")[0]
        if base in TRANSFERS:
            leaders.add(n + 1)
        elif waits(i):
            leaders |= {n, n + 1}
    starts = sorted(x for x in leaders if x < len(code))
    index = {s: b for b, s in enumerate(starts)}
    blocks = [Block(s, e) for s, e in zip(starts, [*starts[1:], len(code)], strict=True)]
    for number, b in enumerate(blocks):
        last = code[b.end - 1]
        base = last.opcode.split(".")[0]
        if base == "bra":
            b.successors.append(index[_target(p, last)])
        elif base == "brx":
            table = last.operands[1]
            assert isinstance(table, Sym)
            b.successors += [index[p.labels[t]] for t in p.tables[table.name]]
        elif base == "call":
            b.successors += [index[p.labels[p.callees[t].label]] for t in p.calls[b.end - 1].targets]
        elif base == "ret":
            b.successors += [index[n + 1] for n, c in p.calls.items() if p.returns[b.end - 1] in c.targets]
        # A call also "falls through": what its caller needs afterwards is live across it, whatever a recursive
        # callee writes to the same registers in between.
        falls = base not in ("bra", "brx", "exit", "ret") or last.guard is not None
        if falls and number + 1 < len(blocks):
            b.successors.append(number + 1)
    return _rows(p, blocks)


def _target(p: Program, i: Instr) -> int:
    target = i.operands[0]
    if not isinstance(target, Sym) or target.name not in p.labels:
        raise PtxError(f"branch to an unknown label in `{i.opcode}`", i.line)
    return p.labels[target.name]


def _rows(p: Program, blocks: list[Block]) -> Flow:
    number = {r: n for n, r in enumerate(p.registers)}
    names = list(p.registers)
    facts = [uses_and_definitions(i, p.registers) for i in p.code]
    live_in = [0] * len(blocks)
    gen, kill = [0] * len(blocks), [0] * len(blocks)
    for b, block in enumerate(blocks):
        for n in range(block.end - 1, block.start - 1, -1):
            used, defined = facts[n]
            if p.code[n].guard is None:
                for r in defined:
                    kill[b] |= 1 << number[r]
                    gen[b] &= ~(1 << number[r])
            for r in used:
                gen[b] |= 1 << number[r]
    preds: list[list[int]] = [[] for _ in blocks]
    for b, block in enumerate(blocks):
        for s in block.successors:
            preds[s].append(b)
    live_out = [0] * len(blocks)
    work = list(range(len(blocks)))
    while work:
        b = work.pop()
        out = 0
        for s in blocks[b].successors:
            out |= live_in[s]
        live_out[b] = out
        new = gen[b] | (out & ~kill[b])
        if new != live_in[b]:
            live_in[b] = new
            work += preds[b]
    first: dict[int, int] = {}
    last: dict[int, int] = {}

    def touch(r: int, at: int) -> None:
        first[r] = min(first.get(r, at), at)
        last[r] = max(last.get(r, at), at)

    for b, block in enumerate(blocks):
        for mask, at in ((live_in[b], block.start), (live_out[b], block.end)):
            while mask:
                low = mask & -mask
                touch(low.bit_length() - 1, at)
                mask ^= low
        for n in range(block.start, block.end):
            for r in (*facts[n][0], *facts[n][1]):
                touch(number[r], n)
    starts, ends = in_flight(p.code, [(b.start, b.end) for b in blocks], [b.successors for b in blocks], number)
    for b, block in enumerate(blocks):
        for mask, at in ((starts[b], block.start), (ends[b], block.end)):
            while mask:
                low = mask & -mask
                touch(low.bit_length() - 1, at)
                mask ^= low
    tracked = {names[r] for r in range(len(names)) if live_in[0] >> r & 1}
    for name in tracked:
        touch(number[name], 0)
        touch(number[name], len(p.code))
    live = [{names[r] for r in range(len(names)) if mask >> r & 1} for mask in live_in] if p.calls else []
    return Flow(blocks, *_pack(p, names, first, last), tracked, live)


def _pack(
    p: Program, names: list[str], first: dict[int, int], last: dict[int, int]
) -> tuple[dict[str, int], dict[int, int]]:
    """Linear scan: a row is free again after its register's last touch (not in the same instruction)."""
    row: dict[str, int] = {}
    rows: dict[int, int] = {}
    free: dict[int, list[int]] = {}
    active: list[tuple[int, int, int]] = []
    for r in sorted(first, key=lambda x: first[x]):
        w = width(p.registers[names[r]])
        keep = []
        for end, aw, arow in active:
            if end < first[r]:
                free.setdefault(aw, []).append(arow)
            else:
                keep.append((end, aw, arow))
        active = keep
        pool = free.setdefault(w, [])
        if pool:
            at = pool.pop()
        else:
            at = rows.get(w, 0)
            rows[w] = at + 1
        row[names[r]] = at
        active.append((last[r], w, at))
    return row, rows
