"""How often a warp issues each instruction of a kernel.

`Walk` follows one warp's path through the blocks with only the values that branches depend on: constants, thread and
block numbers, loop counters. What a branch depends on beyond those is unknown; then a backward branch (a wait that
spins) is left, and a forward one is not taken, but where it depends on data (a loaded value, a comparison of floats):
such a branch goes around a rare case. So the counts are exact for loops whose bounds were known when the code was
built, which is all of ours.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from tcomp.autotune.sass import Block, Function, Instruction
from tcomp.autotune.sass_registers import (
    COUNTED,
    EVALUATED,
    REGISTER,
    dependences,
    is_predicate,
    masked_predicates,
    packed_predicates,
    pair_of,
    plain,
    registers_named,
    registers_read,
    registers_written,
)
from tcomp.autotune.sass_values import MASK, Value, arithmetic, extreme, halves, logic, product, signed

STEPS = 200_000
"""Blocks that one walk may pass; a kernel that takes more is cut off and said to be."""
DATA = {"LDG", "LD", "LDS", "LDL", "FSETP", "FCHK", "DSETP", "HSETP2", "ATOMG", "ATOM", "VOTE", "VOTEU"}
"""Instructions whose results are data."""
TABLES = "c[0x2]["
"""The constant bank of jump tables, whose entries are as many as the places that a jump names, in their order."""


@dataclass(frozen=True)
class Way:
    """How often a warp enters each block, how often a guard is known to hold back a memory or matrix instruction (by
    address), and whether any branch was unknown or the walk was cut off."""

    visits: Mapping[int, int]
    held_back: Mapping[int, int]
    unknown: int = 0
    cut: bool = False
    path: tuple[int, ...] = ()
    """the blocks in the order in which they are entered"""

    def times(self, block: Block, i: Instruction) -> int:
        """How often the warp issues an instruction of a block."""
        return self.visits.get(block.number, 0) - self.held_back.get(i.address, 0)


ROWS = 64
"""of a warpgroup, whose warps wait for each other at the next product"""


def new_maximum(turn: int, rows: int = ROWS) -> float:
    """How likely one of the rows has a new maximum in that turn (from 1), of values in no order."""
    return 1.0 - (1.0 - 1.0 / turn) ** rows


def rescales(function: Function, block: Block) -> bool:
    """Does the block end by a vote on whether running sums are multiplied, or left alone as no maximum grew?"""
    body = function.blocks[block.next].instructions if block.next is not None else ()
    products = sum(i.name == "FMUL" for i in body)
    return 2 * products > len(body) and any(i.name == "VOTE" for i in block.instructions)


class Walk:
    """One warp's way. `special` gives special registers (SR_TID.X, SR_CTAID.X, ...) and `constants` known words of the
    constant bank by offset."""

    def __init__(self, function: Function, special: Mapping[str, int], constants: Mapping[int, int]) -> None:
        self.function, self.special, self.constants = function, special, constants
        self.slice = dependences(function)
        self.values: dict[str, Value] = {}
        self.tables: dict[str, int] = {}
        """registers that hold a place of a jump table -> its number there"""
        self.data: set[str] = set()
        """registers and predicates that are unknown because they follow from data"""

    def run(self) -> Way:
        """Follow the way from the entry to the exit."""
        visits: Counter[int] = Counter()
        held: Counter[int] = Counter()
        unknown, steps = 0, 0
        asked, due = 0, 0.0
        path: list[int] = []
        at: int | None = 0
        while at is not None:
            steps += 1
            if steps > STEPS:
                return Way(visits, held, unknown, True, tuple(path))
            block = self.function.blocks[at]
            visits[at] += 1
            path.append(at)
            for i in self.slice[at]:
                if i.name in COUNTED:
                    held[i.address] += self._predicate(i.guard[1:]) is False
                else:
                    self._execute(i)
            last = block.instructions[-1] if block.instructions else None
            if last is None or last.name not in ("BRA", "EXIT", "RET", "BRX"):
                at = block.next
                continue
            if block.jumps:
                at = self._jump(block, last)
                unknown += at is None
                continue
            taken = self._taken(last)
            if taken is None:
                unknown += 1
                taken = self._around(last, at, block.target)
                if taken and rescales(self.function, block):
                    asked += 1
                    due += new_maximum(asked)
                    taken = due < 1.0
                    due -= not taken
            if last.name != "BRA":
                at = None if taken else block.next
            else:
                at = block.target if taken else block.next
        return Way(visits, held, unknown, False, tuple(path))

    def _jump(self, block: Block, i: Instruction) -> int | None:
        """Where a jump through a table leads; None where its place there is not known."""
        place = next((self.tables[r] for r in REGISTER.findall(i.operands[0]) if r in self.tables), None)
        return block.jumps[place] if place is not None and place < len(block.jumps) else None

    def _around(self, i: Instruction, at: int, target: int | None) -> bool:
        """Whether an unknown branch goes around what data decides, to a later place."""
        return target is not None and target > at and any(n in self.data for n in registers_named(i))

    def _taken(self, i: Instruction) -> bool | None:
        guard = self._predicate(i.guard[1:]) if i.guard else True
        if guard is None or i.opcode.startswith("BRA.DIV"):
            return None if guard is None else False
        for o in i.operands[:-1]:
            if is_predicate(o):
                p = self._predicate(o)
                if p is None:
                    return None
                guard = guard and p
        return guard

    def _predicate(self, text: str) -> bool | None:
        negated = text.startswith("!")
        name = text.lstrip("!")
        if name in ("PT", "UPT"):
            return not negated
        value = self.values.get(name)
        return None if value is None else bool(value) != negated

    def _operand(self, text: str) -> Value:
        kind, what, change = _form(text)
        value: Value
        if kind == "number":
            value = int(what)
        elif kind == "constant":
            value = self.constants.get(int(what))
        else:
            # (Of a register that was never written, code only keeps what it has put there since.)
            value = self.values.get(str(what), 0)
        if value is None:
            return None
        return (-value if change == "-" else ~value if change == "~" else value) & MASK

    def _packed_predicates(self, i: Instruction) -> Value:
        """P2R R0, PR, R1, 0x3: P0 and P1 as the lowest bits, the others those of R1."""
        rest, mask = self._operand(i.operands[2]), self._operand(i.operands[3])
        bits = [self._predicate(p) for p in packed_predicates(i)]
        if rest is None or mask is None or None in bits:
            return None
        return rest & ~mask & MASK | sum(
            bool(bit) << int(p.lstrip("UP")) for p, bit in zip(packed_predicates(i), bits, strict=True)
        )

    def _unpacked_predicates(self, i: Instruction) -> list[tuple[str, Value]]:
        """R2P PR, R1.B1, 0x3: P0 and P1 are the lowest bits of the register's second byte, the others as they were."""
        register, _, byte = i.operands[1].partition(".B")
        value = self._operand(register)
        bits = None if value is None else value >> 8 * int(byte or 0)
        return [(p, None if bits is None else bits >> int(p[1:]) & 1) for p in masked_predicates(i.operands[2])]

    def _execute(self, i: Instruction) -> None:
        guard = self._predicate(i.guard[1:]) if i.guard else True
        if guard is False:
            return
        from_data = i.name in DATA or any(n in self.data for n in registers_read(i))
        for name, value in self._results(i):
            self.values[name] = value if guard else None
            if self.values[name] is None and from_data:
                self.data.add(name)
            else:
                self.data.discard(name)

    def _results(self, i: Instruction) -> list[tuple[str, Value]]:
        """What an instruction of the slice writes."""
        o = i.operands
        name = plain(i)
        if not o:
            return []
        if name not in EVALUATED:
            return [(r, None) for r in registers_written(i)]
        if name == "ISETP":
            return self._compare(i)
        if name == "PLOP3":
            return self._combine(o)
        if i.opcode in ("P2R", "UP2UR"):
            return [(o[0], self._packed_predicates(i))]
        if name == "R2P":
            return self._unpacked_predicates(i)
        if name == "LOP3" and is_predicate(o[0]):
            return self._tested(o)
        target = o[0].removesuffix(".64")
        if name == "CS2R":
            zero = 0 if o[-1] == "SRZ" else None
            return [(target, zero), (pair_of(target), zero)]
        if name == "IMAD" and ".WIDE" in i.opcode and (wide := product(i.opcode, o, self._numbers(o))) is not None:
            return [(target, wide & MASK), (pair_of(target), wide >> 32)]
        out = [(target, self._result(i, name, target))]
        if (".WIDE" in i.opcode or ".64" in i.opcode) and pair_of(target):
            out.append((pair_of(target), None))
        if name in ("IADD3", "LEA", "LOP3", "IMAD"):
            out += [(x, None) for x in o[1:3] if is_predicate(x) and _is_register(x)]
        return out

    def _numbers(self, o: tuple[str, ...]) -> list[Value]:
        """The operands that are read and no predicates."""
        return [self._operand(x) for x in o[1:] if not is_predicate(x)]

    def _result(self, i: Instruction, name: str, target: str) -> Value:
        """What an instruction with one result writes to `target`."""
        o = i.operands
        if name in ("MOV", "R2UR") or i.opcode.startswith("IMAD.MOV"):
            return self._operand(o[-1] if name != "MOV" or len(o) < 3 else o[1])
        if name == "HFMA2":
            return halves(o)
        if name in ("S2R", "S2UR"):
            return self.special.get(o[-1])
        if name == "LDC":
            return self._loaded(i, target)
        if name == "SEL":
            p = self._predicate(o[-1])
            return None if p is None else self._operand(o[1] if p else o[2])
        n = self._numbers(o)
        if name == "LOP3":
            if len(n) < 4 or n[3] is None:
                return None
            # (Predicates are kept as bits of a register that nothing has written yet.)
            first = 0 if o[1] == target and target not in self.values else n[0]
            return logic(first, n[1], n[2], n[3])
        known = [x for x in n if x is not None]
        if len(known) < len(n):
            return None
        if name == "IMAD" and (".HI" in i.opcode or ".WIDE" in i.opcode):
            wide = product(i.opcode, o, n)
            return None if wide is None else wide >> 32
        if name in ("IMNMX", "VIMNMX", "VIADDMNMX"):
            p = self._predicate(o[-1])
            return None if p is None else extreme(name, i.opcode, known, min if p else max)
        return arithmetic(name, i.opcode, known)

    def _loaded(self, i: Instruction, target: str) -> Value:
        """LDC R0, c[0x0][0x28]: a known word of the constant bank. Of a jump table only the place is known."""
        place = i.operands[1]
        if not place.startswith(TABLES):
            return self._operand(place) if len(i.operands) == 2 and ".64" not in i.opcode else None
        self.tables.pop(target, None)
        if (offset := self._operand(place.removeprefix(TABLES).rstrip("]"))) is not None:
            self.tables[target] = offset // 4
        return None

    def _combine(self, o: tuple[str, ...]) -> list[tuple[str, Value]]:
        """PLOP3.LUT P0, P1, a, b, c, table, table: both results are looked up by the three predicates."""
        inputs = [self._predicate(x) for x in o[2:5]]
        out: list[tuple[str, Value]] = []
        for target, table in zip(o[:2], o[5:7], strict=False):
            if not _is_register(target):
                continue
            known = all(x is not None for x in inputs) and table.startswith("0x")
            place = sum(bool(x) << (2 - n) for n, x in enumerate(inputs))
            out.append((target, int(table, 16) >> place & 1 if known else None))
        return out

    def _tested(self, o: tuple[str, ...]) -> list[tuple[str, Value]]:
        """LOP3.LUT P0, R0, a, b, c, table, !PT: the bits, and whether any of them is set."""
        a, b, c, table = (self._operand(x) for x in o[2:6])
        bits = None if table is None else logic(a, b, c, table)
        any_set = None if bits is None or o[-1] != "!PT" else int(bits != 0)
        return [(t, v) for t, v in ((o[0], any_set), (o[1], bits)) if _is_register(t)]

    def _compare(self, i: Instruction) -> list[tuple[str, Value]]:
        """ISETP.LT.U32.AND P0, P1, a, b, P2 (and the .EX form with a low part's predicate: unknown)."""
        o = i.operands
        targets = [p for p in o[:2] if _is_register(p)]
        a, b = self._operand(o[2]), self._operand(o[3])
        third = self._predicate(o[4]) if len(o) > 4 else True
        if a is None or b is None or third is None or ".EX" in i.opcode:
            return [(t, None) for t in targets]
        if "U32" not in i.opcode:
            a, b = signed(a), signed(b)
        parts = _parts(i.opcode)
        test = next((COMPARE[p] for p in parts[1:] if p in COMPARE), None)
        if test is None:
            return [(t, None) for t in targets]
        holds = test(a, b)
        combine = "OR" if "OR" in parts else "XOR" if "XOR" in parts else "AND"
        joined = {"AND": holds and third, "OR": holds or third, "XOR": holds != third}[combine]
        other = {"AND": not holds and third, "OR": not holds or third, "XOR": (not holds) != third}[combine]
        out: list[tuple[str, Value]] = []
        if _is_register(o[0]):
            out.append((o[0], int(joined)))
        if _is_register(o[1]):
            out.append((o[1], int(other)))
        return out


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}


@cache
def _form(text: str) -> tuple[str, str | int, str]:
    """(number | constant | register, which, sign) of an operand."""
    t = text.strip().removesuffix(".reuse").removesuffix(".64")
    change = t[0] if t[:1] in ("-", "~") else ""
    t = t.lstrip("-~").removesuffix(".reuse").removesuffix(".H0_H0").strip("|")
    if t in ("RZ", "URZ", "SRZ"):
        return "number", 0, change
    if re.fullmatch(r"0x[0-9a-f]+", t):
        return "number", int(t, 16), change
    if re.fullmatch(r"\d+", t):
        return "number", int(t), change
    if m := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", t):
        return "constant", int(m[1], 16), change
    return "register", t, change


@cache
def _is_register(text: str) -> bool:
    return REGISTER.fullmatch(text) is not None


@cache
def _parts(opcode: str) -> tuple[str, ...]:
    return tuple(opcode.split("."))


def issued(function: Function, path: Way) -> Counter[str]:
    """Opcode -> how often the warp issues it."""
    out: Counter[str] = Counter()
    for number in path.visits:
        for i in function.blocks[number].instructions:
            out[i.opcode] += path.times(function.blocks[number], i)
    return out
