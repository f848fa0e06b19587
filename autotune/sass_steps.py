"""What each instruction makes of a warp's values, read once for all warps that pass it.

`decoded` turns the instructions on which a kernel's branches depend into functions of a warp's `State`: their operands,
guards and tables are read from the text there, so that a walk (`sass_walk`) only computes. A value that is not known is
None.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

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

DATA = {"LDG", "LD", "LDS", "LDL", "FSETP", "FCHK", "DSETP", "HSETP2", "ATOMG", "ATOM", "VOTE", "VOTEU"}
"""Instructions whose results are data."""
TABLES = "c[0x2]["
"""The constant bank of jump tables, whose entries are as many as the places that a jump names, in their order."""


@dataclass(slots=True)
class State:
    """`special` gives special registers (SR_TID.X, SR_CTAID.X, ...) and `constants` known words of the constant bank by
    offset."""

    special: Mapping[str, int]
    constants: Mapping[int, int]
    values: dict[str, Value] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    """registers that hold a place of a jump table -> its number there"""
    data: set[str] = field(default_factory=set)
    """registers and predicates that are unknown because they follow from data"""


Read = Callable[[State], Value]
Test = Callable[[State], "bool | None"]
Results = Sequence[tuple[str, Value]]


@dataclass(frozen=True, slots=True)
class Step:
    """An instruction that branches depend on, or (`evaluate` None) one that counts unless its guard holds it back."""

    address: int
    guard: Test | None
    evaluate: Callable[[State], Results] | None
    reads: frozenset[str]
    loads: bool
    """its results are data"""

    def execute(self, state: State) -> None:
        """Write what the instruction writes; under an unknown guard that is unknown."""
        known = True if self.guard is None else self.guard(state)
        if known is False or self.evaluate is None:
            return
        found = self.evaluate(state)
        if known and None not in [value for _, value in found]:
            state.values.update(found)
            state.data.difference_update([name for name, _ in found])
            return
        from_data = self.loads or not state.data.isdisjoint(self.reads)
        for name, value in found:
            state.values[name] = value if known else None
            if from_data and state.values[name] is None:
                state.data.add(name)
            else:
                state.data.discard(name)


@dataclass(frozen=True, slots=True)
class Branch:
    """A block's last instruction: whether it is taken, where it is a jump the registers that may hold its place."""

    name: str
    taken: Test
    named: frozenset[str]
    place: tuple[str, ...]
    rescales: bool


@dataclass(frozen=True, slots=True)
class Steps:
    """A block's; `branch` is None where it goes on in the next one whatever happens."""

    steps: tuple[Step, ...]
    branch: Branch | None


@lru_cache(maxsize=4)
def decoded(function: Function) -> tuple[Steps, ...]:
    """The steps of each block of a function."""
    chosen = dependences(function)
    return tuple(
        Steps(tuple(_step(i) for i in chosen[b.number]), _branch(function, b)) for b in function.blocks
    )  # fmt: skip


def rescales(function: Function, block: Block) -> bool:
    """Does the block end by a vote on whether running sums are multiplied, or left alone as no maximum grew?"""
    body = function.blocks[block.next].instructions if block.next is not None else ()
    products = sum(i.name == "FMUL" for i in body)
    return 2 * products > len(body) and any(i.name == "VOTE" for i in block.instructions)


def _step(i: Instruction) -> Step:
    guard = _predicate(i.guard[1:]) if i.guard else None
    evaluate = None if i.name in COUNTED else _results(i)
    return Step(i.address, guard, evaluate, frozenset(registers_read(i)), i.name in DATA)


def _branch(function: Function, block: Block) -> Branch | None:
    last = block.instructions[-1] if block.instructions else None
    if last is None or last.name not in ("BRA", "EXIT", "RET", "BRX"):
        return None
    place = tuple(REGISTER.findall(last.operands[0])) if block.jumps else ()
    return Branch(last.name, _taken(last), frozenset(registers_named(last)), place, rescales(function, block))


def _taken(i: Instruction) -> Test:
    """Of a branch: whether its guard and the predicates among its operands hold."""
    tests = [_predicate(i.guard[1:])] if i.guard else []
    if i.opcode.startswith("BRA.DIV"):
        return lambda state: None if any(t(state) is None for t in tests) else False
    tests += [_predicate(o) for o in i.operands[:-1] if is_predicate(o)]

    def all_hold(state: State) -> bool | None:
        found = [t(state) for t in tests]
        return None if None in found else all(found)

    return all_hold


# ------------------------------------------------------------------------------------------------ operands


@cache
def _predicate(text: str) -> Test:
    """P0, !P0, PT."""
    negated, name = text.startswith("!"), text.lstrip("!")
    if name in ("PT", "UPT"):
        return lambda _: not negated

    def test(state: State) -> bool | None:
        value = state.values.get(name)
        return None if value is None else bool(value) != negated

    return test


@cache
def _operand(text: str) -> Read:
    """A number, a word of the constant bank, a register."""
    t = text.strip().removesuffix(".reuse").removesuffix(".64")
    change = t[0] if t[:1] in ("-", "~") else ""
    t = t.lstrip("-~").removesuffix(".reuse").removesuffix(".H0_H0").strip("|")
    if t in ("RZ", "URZ", "SRZ") or re.fullmatch(r"0x[0-9a-f]+|\d+", t):
        number = _changed(0 if t[-1] == "Z" else int(t, 16 if t.startswith("0x") else 10), change)
        return lambda _: number
    if m := re.fullmatch(r"c\[0x0\]\[(0x[0-9a-f]+)\]", t):
        offset = int(m[1], 16)
        return lambda state: _changed(state.constants.get(offset), change)
    # (Of a register that was never written, code only keeps what it has put there since.)
    if not change:
        return lambda state: state.values.get(t, 0)
    return lambda state: _changed(state.values.get(t, 0), change)


def _changed(value: Value, change: str) -> Value:
    if value is None:
        return None
    return (-value if change == "-" else ~value if change == "~" else value) & MASK


def _numbers(o: tuple[str, ...]) -> list[Read]:
    """The operands that are read and no predicates."""
    return [_operand(x) for x in o[1:] if not is_predicate(x)]


@cache
def _is_register(text: str) -> bool:
    return REGISTER.fullmatch(text) is not None


# ------------------------------------------------------------------------------------------------- results


def _results(i: Instruction) -> Callable[[State], Results]:
    """What an instruction of the slice writes."""
    o, name = i.operands, plain(i)
    if not o:
        return lambda _: ()
    if name not in EVALUATED:
        unknown = [(r, None) for r in registers_written(i)]
        return lambda _: unknown
    if name == "ISETP":
        return _compare(i)
    if name == "PLOP3":
        return _combine(o)
    if i.opcode in ("P2R", "UP2UR"):
        return _packed_predicates(i)
    if name == "R2P":
        return _unpacked_predicates(i)
    if name == "LOP3" and is_predicate(o[0]):
        return _tested(o)
    target = o[0].removesuffix(".64")
    pair = pair_of(target)
    if name == "CS2R":
        zero = 0 if o[-1] == "SRZ" else None
        zeros = [(target, zero), (pair, zero)]
        return lambda _: zeros
    carries: list[tuple[str, Value]] = []
    if name in ("IADD3", "LEA", "LOP3", "IMAD"):
        carries = [(x, None) for x in o[1:3] if is_predicate(x) and _is_register(x)]
    result = _result(i, name, target)
    if (".WIDE" in i.opcode or ".64" in i.opcode) and pair:
        carries = [(pair, None), *carries]
    if name != "IMAD" or ".WIDE" not in i.opcode:
        return lambda state: ((target, result(state)), *carries)
    numbers, opcode = _numbers(o), i.opcode

    def wide(state: State) -> Results:
        found = product(opcode, o, [n(state) for n in numbers])
        if found is not None:
            return ((target, found & MASK), (pair, found >> 32))
        return ((target, result(state)), *carries)

    return wide


def _result(i: Instruction, name: str, target: str) -> Read:
    """What an instruction with one result writes to `target`."""
    o, opcode = i.operands, i.opcode
    if name in ("MOV", "R2UR") or opcode.startswith("IMAD.MOV"):
        return _operand(o[-1] if name != "MOV" or len(o) < 3 else o[1])
    if name == "HFMA2":
        constant = halves(o)
        return lambda _: constant
    if name in ("S2R", "S2UR"):
        return lambda state: state.special.get(o[-1])
    if name == "LDC":
        return _loaded(i, target)
    numbers = _numbers(o)
    if name == "SEL":
        test, yes, no = _predicate(o[-1]), _operand(o[1]), _operand(o[2])

        def chosen(state: State) -> Value:
            p = test(state)
            return None if p is None else (yes if p else no)(state)

        return chosen
    if name == "LOP3":
        return _logic(o[1] == target, target, numbers)
    wide = name == "IMAD" and (".HI" in opcode or ".WIDE" in opcode)
    extremes = name in ("IMNMX", "VIMNMX", "VIADDMNMX")
    least = _predicate(o[-1]) if extremes else None

    def computed(state: State) -> Value:
        known: list[int] = []
        for read in numbers:
            if (value := read(state)) is None:
                return None
            known.append(value)
        if wide:
            found = product(opcode, o, known)
            return None if found is None else found >> 32
        if least is not None:
            p = least(state)
            return None if p is None else extreme(name, opcode, known, min if p else max)
        return arithmetic(name, opcode, known)

    return computed


def _logic(own: bool, target: str, numbers: Sequence[Read]) -> Read:
    """LOP3.LUT R0, a, b, c, table. `own`: a is R0 itself."""

    def bits(state: State) -> Value:
        n = [read(state) for read in numbers]
        if len(n) < 4 or n[3] is None:
            return None
        # (Predicates are kept as bits of a register that nothing has written yet.)
        return logic(0 if own and target not in state.values else n[0], n[1], n[2], n[3])

    return bits


def _loaded(i: Instruction, target: str) -> Read:
    """LDC R0, c[0x0][0x28]: a known word of the constant bank. Of a jump table only the place is known."""
    place = i.operands[1]
    if not place.startswith(TABLES):
        return _operand(place) if len(i.operands) == 2 and ".64" not in i.opcode else lambda _: None
    read = _operand(place.removeprefix(TABLES).rstrip("]"))

    def noted(state: State) -> Value:
        state.tables.pop(target, None)
        if (offset := read(state)) is not None:
            state.tables[target] = offset // 4
        return None

    return noted


def _packed_predicates(i: Instruction) -> Callable[[State], Results]:
    """P2R R0, PR, R1, 0x3: P0 and P1 as the lowest bits, the others those of R1."""
    o, names = i.operands, packed_predicates(i)
    rest, mask = _operand(o[2]), _operand(o[3])
    tests = [(int(p.lstrip("UP")), _predicate(p)) for p in names]

    def packed(state: State) -> Results:
        others, which, bits = rest(state), mask(state), [(n, t(state)) for n, t in tests]
        if others is None or which is None or any(bit is None for _, bit in bits):
            return ((o[0], None),)
        return ((o[0], others & ~which & MASK | sum(bool(bit) << n for n, bit in bits)),)

    return packed


def _unpacked_predicates(i: Instruction) -> Callable[[State], Results]:
    """R2P PR, R1.B1, 0x3: P0 and P1 are the lowest bits of the register's second byte, the others as they were."""
    register, _, byte = i.operands[1].partition(".B")
    read, shift, names = _operand(register), 8 * int(byte or 0), masked_predicates(i.operands[2])

    def unpacked(state: State) -> Results:
        value = read(state)
        bits = None if value is None else value >> shift
        return [(p, None if bits is None else bits >> int(p[1:]) & 1) for p in names]

    return unpacked


def _combine(o: tuple[str, ...]) -> Callable[[State], Results]:
    """PLOP3.LUT P0, P1, a, b, c, table, table: both results are looked up by the three predicates."""
    tests = [_predicate(x) for x in o[2:5]]
    targets = [(t, x) for t, x in zip(o[:2], o[5:7], strict=False) if _is_register(t)]
    tables = [(t, int(x, 16) if x.startswith("0x") else None) for t, x in targets]

    def combined(state: State) -> Results:
        inputs = [t(state) for t in tests]
        if None in inputs:
            return [(t, None) for t, _ in tables]
        place = sum(bool(x) << (2 - n) for n, x in enumerate(inputs))
        return [(t, None if table is None else table >> place & 1) for t, table in tables]

    return combined


def _tested(o: tuple[str, ...]) -> Callable[[State], Results]:
    """LOP3.LUT P0, R0, a, b, c, table, !PT: the bits, and whether any of them is set."""
    reads = [_operand(x) for x in o[2:6]]
    targets = [(n, t) for n, t in enumerate(o[:2]) if _is_register(t)]

    def tested(state: State) -> Results:
        a, b, c, table = (r(state) for r in reads)
        bits = None if table is None else logic(a, b, c, table)
        found = (None if bits is None or o[-1] not in ("!PT", "!UPT") else int(bits != 0), bits)
        return [(t, found[n]) for n, t in targets]

    return tested


COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
JOIN: dict[str, Callable[[bool, bool], bool]] = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def _compare(i: Instruction) -> Callable[[State], Results]:
    """ISETP.LT.U32.AND P0, P1, a, b, P2 (and the .EX form with a low part's predicate: unknown)."""
    o, parts = i.operands, i.opcode.split(".")
    targets = [(n, p) for n, p in enumerate(o[:2]) if _is_register(p)]
    unknown = [(p, None) for _, p in targets]
    test = next((COMPARE[p] for p in parts[1:] if p in COMPARE), None)
    if test is None or ".EX" in i.opcode:
        return lambda _: unknown
    compare, join = test, JOIN["OR" if "OR" in parts else "XOR" if "XOR" in parts else "AND"]
    first, second, third = _operand(o[2]), _operand(o[3]), _predicate(o[4] if len(o) > 4 else "PT")
    has_sign = "U32" not in i.opcode

    def compared(state: State) -> Results:
        a, b, p = first(state), second(state), third(state)
        if a is None or b is None or p is None:
            return unknown
        holds = compare(signed(a), signed(b)) if has_sign else compare(a, b)
        return [(t, int(join(holds != bool(n), p))) for n, t in targets]

    return compared
