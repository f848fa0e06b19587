"""What a machine instruction writes, as a function of what is known of the warp (`results`)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from tcomp.autotune.sass import Instruction
from tcomp.autotune.sass_operands import Read, State, is_register, operand, predicate, sources
from tcomp.autotune.sass_registers import (
    EVALUATED,
    is_predicate,
    masked_predicates,
    packed_predicates,
    pair_of,
    plain,
    registers_written,
)
from tcomp.autotune.sass_values import MASK, Value, arithmetic, extreme, halves, logic, product, signed

TABLES = "c[0x2]["
"""The constant bank of jump tables, whose entries are as many as the places that a jump names, in their order."""
Results = Sequence[tuple[str, Value]]


def results(i: Instruction) -> Callable[[State], Results]:
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
        carries = [(x, None) for x in o[1:3] if is_predicate(x) and is_register(x)]
    result = _result(i, name, target)
    if (".WIDE" in i.opcode or ".64" in i.opcode) and pair:
        carries = [(pair, None), *carries]
    if name != "IMAD" or ".WIDE" not in i.opcode:
        return lambda state: ((target, result(state)), *carries)
    numbers, opcode = sources(o), i.opcode

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
        return operand(o[-1] if name != "MOV" or len(o) < 3 else o[1])
    if name == "HFMA2":
        constant = halves(o)
        return lambda _: constant
    if name in ("S2R", "S2UR"):
        return lambda state: state.special.get(o[-1])
    if name == "LDC":
        return _loaded(i, target)
    numbers = sources(o)
    if name == "SEL":
        test, yes, no = predicate(o[-1]), operand(o[1]), operand(o[2])

        def chosen(state: State) -> Value:
            p = test(state)
            return None if p is None else (yes if p else no)(state)

        return chosen
    if name == "LOP3":
        return _logic(o[1] == target, target, numbers)
    wide = name == "IMAD" and (".HI" in opcode or ".WIDE" in opcode)
    extremes = name in ("IMNMX", "VIMNMX", "VIADDMNMX")
    least = predicate(o[-1]) if extremes else None

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
        return operand(place) if len(i.operands) == 2 and ".64" not in i.opcode else lambda _: None
    read = operand(place.removeprefix(TABLES).rstrip("]"))

    def noted(state: State) -> Value:
        state.tables.pop(target, None)
        if (offset := read(state)) is not None:
            state.tables[target] = offset // 4
        return None

    return noted


def _packed_predicates(i: Instruction) -> Callable[[State], Results]:
    """P2R R0, PR, R1, 0x3: P0 and P1 as the lowest bits, the others those of R1."""
    o, names = i.operands, packed_predicates(i)
    rest, mask = operand(o[2]), operand(o[3])
    tests = [(int(p.lstrip("UP")), predicate(p)) for p in names]

    def packed(state: State) -> Results:
        others, which, bits = rest(state), mask(state), [(n, t(state)) for n, t in tests]
        if others is None or which is None or any(bit is None for _, bit in bits):
            return ((o[0], None),)
        return ((o[0], others & ~which & MASK | sum(bool(bit) << n for n, bit in bits)),)

    return packed


def _unpacked_predicates(i: Instruction) -> Callable[[State], Results]:
    """R2P PR, R1.B1, 0x3: P0 and P1 are the lowest bits of the register's second byte, the others as they were."""
    register, _, byte = i.operands[1].partition(".B")
    read, shift, names = operand(register), 8 * int(byte or 0), masked_predicates(i.operands[2])

    def unpacked(state: State) -> Results:
        value = read(state)
        bits = None if value is None else value >> shift
        return [(p, None if bits is None else bits >> int(p[1:]) & 1) for p in names]

    return unpacked


def _combine(o: tuple[str, ...]) -> Callable[[State], Results]:
    """PLOP3.LUT P0, P1, a, b, c, table, table: both results are looked up by the three predicates."""
    tests = [predicate(x) for x in o[2:5]]
    targets = [(t, x) for t, x in zip(o[:2], o[5:7], strict=False) if is_register(t)]
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
    reads = [operand(x) for x in o[2:6]]
    targets = [(n, t) for n, t in enumerate(o[:2]) if is_register(t)]

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
    targets = [(n, p) for n, p in enumerate(o[:2]) if is_register(p)]
    unknown = [(p, None) for _, p in targets]
    test = next((COMPARE[p] for p in parts[1:] if p in COMPARE), None)
    if test is None or ".EX" in i.opcode:
        return lambda _: unknown
    compare, join = test, JOIN["OR" if "OR" in parts else "XOR" if "XOR" in parts else "AND"]
    first, second, third = operand(o[2]), operand(o[3]), predicate(o[4] if len(o) > 4 else "PT")
    has_sign = "U32" not in i.opcode

    def compared(state: State) -> Results:
        a, b, p = first(state), second(state), third(state)
        if a is None or b is None or p is None:
            return unknown
        holds = compare(signed(a), signed(b)) if has_sign else compare(a, b)
        return [(t, int(join(holds != bool(n), p))) for n, t in targets]

    return compared
