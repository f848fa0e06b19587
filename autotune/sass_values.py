"""What integer instructions of machine code make of 32-bit values: numbers from 0, or None where one is not known."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

MASK = 0xFFFFFFFF
Value = int | None


def signed(x: int) -> int:
    return x - (1 << 32) if x & 0x80000000 else x


def product(opcode: str, o: tuple[str, ...], n: Sequence[Value]) -> Value:
    """IMAD.WIDE and IMAD.HI: all 64 bits of the product of a division by a constant, which adds nothing (else the
    addend is a pair of registers)."""
    if len(n) != 3 or o[-1] not in ("RZ", "URZ") or ".X" in opcode:
        return None
    a, b = n[:2]
    if a is None or b is None:
        return None
    return (a * b if ".U32" in opcode else signed(a) * signed(b)) & (MASK << 32 | MASK)


def extreme(name: str, opcode: str, n: Sequence[int], pick: Callable[[int, int], int]) -> Value:
    """IMNMX d, a, b, P0, and VIADDMNMX d, a, b, c, P0: that of a + b and c."""
    if name == "VIADDMNMX":
        return pick((n[0] + n[1]) & MASK, n[2]) if ".U32" in opcode else None
    a, b = n[:2] if ".U32" in opcode else (signed(n[0]), signed(n[1]))
    return pick(a, b) & MASK


def arithmetic(name: str, opcode: str, n: Sequence[int]) -> Value:
    """Sums, products, shifts and fields of known numbers; None for forms that no counter or index needs (.X takes a
    carry)."""
    if ".X" in opcode:
        return None
    match name:
        case "IADD3" | "VIADD" | "IADD":
            return sum(n) & MASK
        case "IMAD" if len(n) == 3:
            return (n[0] * n[1] + n[2]) & MASK
        case "LEA" if ".HI" not in opcode and len(n) == 3:
            return ((n[0] << n[2]) + n[1]) & MASK
        case "LEA" if ".HI" in opcode and len(n) >= 3:
            high = n[2] if len(n) == 4 else (MASK if ".SX32" in opcode and n[0] >> 31 else 0)
            return (((high << 32 | n[0]) << n[-1] >> 32) + n[1]) & MASK
        case "SHF" if len(n) == 3:
            return shift(opcode, n)
        case "SHL":
            return n[0] << n[1] & MASK
        case "SHR":
            return n[0] >> n[1] & MASK
        case "SGXT" if "U32" in opcode:
            return n[0] & ((1 << (n[1] if len(n) > 1 else 32)) - 1)
    return None


def shift(opcode: str, n: Sequence[int]) -> Value:
    """SHF.R.U32.HI d, RZ, s, x and SHF.L.U32 d, x, s, RZ."""
    if ".R." in opcode:
        source = signed(n[2]) if ".S32" in opcode else n[2]
        return (source >> (n[1] & 31)) & MASK
    return (n[0] << (n[1] & 31)) & MASK


def halves(o: tuple[str, ...]) -> Value:
    """HFMA2.MMA d, -RZ, RZ, high, low: how the assembler writes some constants, as two f16 numbers."""
    if len(o) != 5 or o[1].lstrip("-") != "RZ" or o[2].lstrip("-") != "RZ":
        return None
    try:
        high, low = (int.from_bytes(struct.pack("<e", float(x)), "little") for x in o[3:])
    except (ValueError, OverflowError):
        return None
    return high << 16 | low


def logic(a: Value, b: Value, c: Value, table: int) -> Value:
    """LOP3's table over the bits; a factor of zero makes an unknown one known (`x & 0`)."""
    known = MASK
    for v in (a, b, c):
        if v is None:
            known = 0
    if not known:
        zero_makes_zero = {0xC0: (a, b), 0x80: (a, b), 0xA0: (a, c), 0x88: (b, c)}.get(table, ())
        return 0 if 0 in zero_makes_zero else None
    out = 0
    x, y, z = a or 0, b or 0, c or 0
    for bit in range(8):
        if table >> bit & 1:
            out |= (x if bit & 4 else ~x) & (y if bit & 2 else ~y) & (z if bit & 1 else ~z)
    return out & MASK
