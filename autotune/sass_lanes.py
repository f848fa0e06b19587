"""Loads of shared memory whose lanes read the same in pairs.

Shared memory gives a warp one register of 32 lanes in a cycle. Of a load of several registers it gives two in a cycle
where lanes are in pairs that read the same address: lanes n and n ^ 1, or n and n ^ 2, all over the warp (said of
compute capability 7 by NVIDIA's staff on its forum, "Unexpected shared memory bank conflict"; on an H100 the gradients
of weights with block scales, whose lanes read columns, take as long as that says). A row of an accumulator is such an
address, a column is none: lanes n and n ^ 1 have different ones, n and n ^ 2 too.

So it is asked of which bits of a lane's number an address may follow: for each register, which of its own bits may be
others in lane n ^ 1 (or n ^ 2), instruction by instruction, over all ways through the code. What is not understood may
be different in every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from tcomp.autotune.sass import Function, Instruction
from tcomp.autotune.sass_registers import REGISTER, all_written, is_predicate, plain, registers_named
from tcomp.autotune.sass_values import MASK

Bits = tuple[int, int]
"""Bits of a register that may be others in lane n ^ 1, and in lane n ^ 2"""
NONE: Bits = (0, 0)
ALL: Bits = (MASK, MASK)
State = dict[str, Bits]
LOADS = {"LDS", "LDG", "LDL", "LD", "LDSM", "ATOMS", "ATOMG", "ATOM"}
EXACT = {"MOV", "IADD3", "VIADD", "IADD", "IMAD", "LEA", "SHF", "SHL", "SHR", "LOP3", "SGXT", "SEL"}


def with_paired_loads(function: Function) -> Function:
    """The function, each wide load of shared memory marked whose lanes may differ from both neighbours."""
    if not any(_wide(i) for i in function.instructions):
        return function
    apart = _apart(function)
    blocks = tuple(
        replace(b, instructions=tuple(replace(i, paired=i.address not in apart) for i in b.instructions))
        for b in function.blocks
    )
    return replace(function, blocks=blocks)


def _wide(i: Instruction) -> bool:
    return i.name == "LDS" and any(part in ("64", "128") for part in i.opcode.split("."))


def _apart(function: Function) -> set[int]:
    """Addresses of the wide loads whose lanes are in no such pairs."""
    before: dict[int, State] = {0: {}}
    waiting, apart = [0], set[int]()
    while waiting:
        at = waiting.pop()
        block, state = function.blocks[at], dict(before[at])
        for i in block.instructions:
            if _wide(i):
                address = _joined([state.get(r, NONE) for r in REGISTER.findall(" ".join(i.operands[1:]))])
                if all(address):
                    apart.add(i.address)
            _step(i, state)
        for following in (block.target, block.next, *block.jumps):
            if following is not None and _merge(before, following, state):
                waiting.append(following)
    return apart


def _merge(before: dict[int, State], at: int, state: State) -> bool:
    """Add what comes to a block from one of those before it; whether that is new there."""
    if at not in before:
        before[at] = dict(state)
        return True
    new, known = False, before[at]
    for r, bits in state.items():
        joined = _joined([bits, known.get(r, NONE)])
        if joined != known.get(r, NONE):
            known[r], new = joined, True
    return new


def _step(i: Instruction, state: State) -> None:
    """What an instruction writes."""
    found = _result(i, state)
    guard = state.get(i.guard.lstrip("@!"), NONE) if i.guard else NONE
    for r in all_written(i):
        own = found if r == _register(i.operands[0]) or r[0] == "P" else _spread(found)
        if r.startswith("U"):
            own = NONE  # (the uniform unit has one value for all lanes)
        state[r] = _joined([own, state.get(r, NONE), _spread(guard)]) if i.guard else own


def _result(i: Instruction, state: State) -> Bits:
    o, name = i.operands, plain(i)
    if name in ("S2R", "S2UR"):
        return (1, 2) if o[-1] in ("SR_TID.X", "SR_LANEID") else NONE
    if name == "SHFL" and ".IDX" in i.opcode and len(o) > 3 and _number(o[3]) is not None:
        return NONE
    if i.name in LOADS:
        return ALL
    reads = [x for x in o[1:] if not is_predicate(x)]
    wide = "64" in i.opcode if name == "SHF" else ".HI" in i.opcode  # (of two registers together)
    if name not in EXACT or wide or ".X" in i.opcode:
        return _spread(_joined([state.get(r, NONE) for r in registers_named(i)]))
    sources = [_read(x, state) for x in reads]
    low, high = (_one(name, i.opcode, reads, [s[n] for s in sources]) for n in (0, 1))
    chosen = [state.get(x.lstrip("!"), NONE) for x in o[1:] if is_predicate(x)] if name == "SEL" else []
    return _joined([(low, high), _spread(_joined(chosen))])


def _one(name: str, opcode: str, reads: Sequence[str], bits: Sequence[int]) -> int:
    """The same for one of the two neighbours."""
    number = [_number(x) for x in reads]
    if name == "MOV" or opcode.startswith("IMAD.MOV"):
        return _any(bits)
    if name == "LOP3":
        return _logic(number, bits)
    if name in ("SHF", "SHL", "SHR", "SGXT"):
        return _moved(name, opcode, number, bits)
    if name == "IMAD" and len(reads) == 3:
        return _sum([_times(number, bits), bits[2]])
    if name == "LEA" and len(reads) == 3:
        shift = number[2]
        return _sum([_up(bits[0]) if shift is None else bits[0] << shift & MASK, bits[1]])
    if name == "SEL":
        return _any(bits[:2])
    return _sum(bits)


def _moved(name: str, opcode: str, number: Sequence[int | None], bits: Sequence[int]) -> int:
    """Shifts and fields."""
    amount = number[1] if len(number) > 1 else None
    if amount is None:
        return MASK if any(bits) else 0
    if name == "SGXT":
        field = (1 << amount) - 1
        return bits[0] & field if ".U32" in opcode else _signed(bits[0] & field, amount)
    left = name == "SHL" or ".L" in opcode
    if left:
        return (bits[0] << amount | (bits[2] >> (32 - amount) if len(bits) > 2 and amount else 0)) & MASK
    source = bits[2] if name == "SHF" else bits[0]
    other = bits[0] << (32 - amount) & MASK if name == "SHF" else 0
    return source >> amount | other | (MASK if source >> 31 and ".S32" in opcode else 0)


def _signed(bits: int, width: int) -> int:
    return bits | (MASK & ~((1 << width) - 1) if bits >> (width - 1) & 1 else 0)


def _times(number: Sequence[int | None], bits: Sequence[int]) -> int:
    """Of a product: where one factor is a number, no bit below the other's lowest times that number's."""
    for factor, own in ((number[0], bits[1]), (number[1], bits[0])):
        if factor is not None:
            lowest = factor & -factor
            moved = own * lowest & MASK
            return moved if factor == lowest else _up(moved)
    return MASK if any(bits[:2]) else 0


def _logic(number: Sequence[int | None], bits: Sequence[int]) -> int:
    """LOP3 a, b, c, table: bits of the result follow those of operands, unless numbers among the others decide them."""
    table, values = number[3] or 0, list(number[:3])
    known = [n for n, v in enumerate(values) if v is not None]
    out = 0
    for pattern in product((0, 1), repeat=len(known)):
        fixed = dict(zip(known, pattern, strict=True))
        here = MASK
        for n, bit in fixed.items():
            here &= (values[n] or 0) if bit else ~(values[n] or 0)
        for x in (n for n in range(3) if n not in fixed):
            if here and bits[x] and _decides(table, x, fixed):
                out |= bits[x] & here
    return out & MASK


def _decides(table: int, x: int, fixed: Mapping[int, int]) -> bool:
    """May operand x decide the result, given the bits of others?"""
    for p in product((0, 1), repeat=3):
        if all(p[n] == bit for n, bit in fixed.items()):
            place = p[0] << 2 | p[1] << 1 | p[2]
            if (table >> place ^ table >> (place ^ 4 >> x)) & 1:
                return True
    return False


def _sum(bits: Sequence[int]) -> int:
    """Of a sum: carries go up."""
    return _up(_any(bits))


def _up(bits: int) -> int:
    """All bits from the lowest on."""
    return MASK & ~((bits & -bits) - 1) if bits else 0


def _any(bits: Sequence[int]) -> int:
    out = 0
    for b in bits:
        out |= b
    return out


def _joined(bits: Sequence[Bits]) -> Bits:
    return _any([b[0] for b in bits]), _any([b[1] for b in bits])


def _spread(bits: Bits) -> Bits:
    """May any bit be another one?"""
    return (MASK if bits[0] else 0, MASK if bits[1] else 0)


def _read(text: str, state: State) -> Bits:
    """Of an operand."""
    return _joined([state.get(r, NONE) for r in REGISTER.findall(text)])


def _register(text: str) -> str:
    return text.removesuffix(".64")


def _number(text: str) -> int | None:
    """The number that an operand is; None for a register or a constant bank's word."""
    t = text.strip().removesuffix(".reuse")
    if t in ("RZ", "URZ"):
        return 0
    try:
        return int(t.lstrip("-"), 0) * (-1 if t.startswith("-") else 1) & MASK
    except ValueError:
        return None
