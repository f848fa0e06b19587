"""Basic blocks, register liveness, and the packing of registers into as few rows as are live at once.

Two results matter. Registers that no path can read before writing need no initialisation check at run
time; only the rest (those live into the entry) are tracked. And a kernel in SSA form with thousands of
names fits in the few hundred rows that are live together, so the register file stays in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from heapq import heappop, heappush
from typing import Any

from tcomp.runtime.vgpu.errors import PtxError
from tcomp.runtime.vgpu.program import Program
from tcomp.runtime.vgpu.ptx import Addr, Instr, Not, Operand, Pair, Reg, Sym, Vec
from tcomp.runtime.vgpu.types import scalar
from tcomp.runtime.vgpu.wgmma_registers import in_flight

NO_DESTINATION = {
    "st", "red", "bar", "barrier", "membar", "fence", "bra", "brx", "call", "exit", "ret", "trap", "brkpt", "cp",
    "prefetch", "prefetchu", "nanosleep", "stmatrix", "discard", "applypriority", "setmaxnreg", "griddepcontrol",
    "pmevent", "multimem", "tensormap",
}  # fmt: skip
# Instructions that may wait for other lanes: each begins a basic block, so waiting lanes can stand there.
WAITING = {"bar", "barrier", "shfl", "vote", "match", "redux", "elect", "ldmatrix", "stmatrix", "movmatrix", "mma",
           "wgmma", "activemask", "setmaxnreg"}  # fmt: skip
WAITING_FORMS = ("mbarrier.try_wait", "mbarrier.test_wait", "tcgen05.alloc", "tcgen05.dealloc", "tcgen05.relinquish",
                 "tcgen05.ld", "tcgen05.st", "tcgen05.wait")  # fmt: skip
READS_DESTINATION = {"wgmma"}


def waits(i: Instr) -> bool:
    return i.opcode.split(".")[0] in WAITING or i.opcode.startswith(WAITING_FORMS)


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
    if i.opcode.startswith(
        ("wgmma.fence", "wgmma.commit", "wgmma.wait", "mbarrier.init", "mbarrier.inval", "tcgen05.dealloc")
    ):
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
    facts: dict[int, tuple[list[str], list[str]]] = field(default_factory=dict)
    """registers that each instruction (its `id`) of the program uses and defines"""


@cache
def width(type_name: str) -> int:
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
        used: set[str] = set()
        defined: set[str] = set()
        for n in range(block.end - 1, block.start - 1, -1):
            reads, writes = facts[n]
            if p.code[n].guard is None:
                defined.update(writes)
                used.difference_update(writes)
            used.update(reads)
        gen[b], kill[b] = (sum(1 << number[r] for r in of) for of in (used, defined))
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
    starts, ends = in_flight(p.code, [(b.start, b.end) for b in blocks], [b.successors for b in blocks], number)
    entering = [a | b for a, b in zip(live_in, starts, strict=True)]
    leaving = [a | b for a, b in zip(live_out, ends, strict=True)]
    first, last = _touched(blocks, facts, entering, leaving, names)
    tracked = set(_members(live_in[0], names))
    for name in tracked:
        first[name], last[name] = 0, len(p.code)
    live = [set(_members(mask, names)) for mask in live_in] if p.calls else []
    known = {id(i): f for i, f in zip(p.code, facts, strict=True)}
    return Flow(blocks, *_pack(p, first, last), tracked, live, facts=known)


def _touched(
    blocks: list[Block], facts: list[tuple[list[str], list[str]]], entering: list[int], leaving: list[int],
    names: list[str],
) -> tuple[dict[str, int], dict[str, int]]:  # fmt: skip
    """Where each register is touched first and last: named by an instruction, or live at a block's start or end."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    noted = 0
    for b, block in enumerate(blocks):
        for r in _members(entering[b] & ~noted, names):
            first.setdefault(r, block.start)
        for n in range(block.start, block.end):
            for r in (*facts[n][0], *facts[n][1]):
                first.setdefault(r, n)
                last[r] = n
        for r in _members(leaving[b] & ~noted, names):
            first.setdefault(r, block.end)
        noted |= entering[b] | leaving[b]
    noted = 0
    for b in reversed(range(len(blocks))):
        for mask, at in ((leaving[b], blocks[b].end), (entering[b], blocks[b].start)):
            for r in _members(mask & ~noted, names):
                last[r] = max(last.get(r, at), at)
            noted |= mask
    return first, last


def _members(mask: int, names: list[str]) -> Iterator[str]:
    """The registers whose bits are set."""
    while mask:
        low = mask & -mask
        yield names[low.bit_length() - 1]
        mask ^= low


def _pack(p: Program, first: dict[str, int], last: dict[str, int]) -> tuple[dict[str, int], dict[int, int]]:
    """Linear scan: a row is free again after its register's last touch (not in the same instruction)."""
    row: dict[str, int] = {}
    rows: dict[int, int] = {}
    free: dict[int, list[int]] = {width(t): [] for t in p.registers.values()}
    active: list[tuple[int, int, int]] = []  # a heap: last touch, width, row
    for r in sorted(first, key=first.__getitem__):
        while active and active[0][0] < first[r]:
            _, w, at = heappop(active)
            free[w].append(at)
        w = width(p.registers[r])
        if free[w]:
            at = free[w].pop()
        else:
            at = rows.get(w, 0)
            rows[w] = at + 1
        row[r] = at
        heappush(active, (last[r], w, at))
    return row, rows
