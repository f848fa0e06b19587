"""Registers and predicates that an instruction reads and writes, and what branches of a kernel depend on by them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache, lru_cache, wraps
from typing import TypeVar

from tcomp.autotune.sass import Block, Function, Instruction

T = TypeVar("T")

REGISTER = re.compile(r"\b(U?R\d+|U?P\d+)\b")
EVALUATED = {
    "MOV", "IMAD", "IADD3", "VIADD", "IADD", "LEA", "SHF", "SHL", "SHR", "LOP3", "SEL", "IMNMX", "VIMNMX", "SGXT",
    "S2R", "S2UR", "CS2R", "LDC", "ISETP", "PLOP3", "R2UR", "HFMA2", "P2R", "R2P",
    "VIADDMNMX",
}  # fmt: skip
"""Instructions whose results `Walk` works out (their uniform forms too); what others give is unknown."""
COUNTED = {
    "LDGSTS", "UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "STG", "RED", "REDG", "ATOMG", "HGMMA", "QGMMA", "IGMMA",
    "HMMA", "QMMA",
}  # fmt: skip
"""Instructions whose guards count: what they move or compute is what a kernel is about. Branches do not depend on what
they write."""


def once(read: Callable[[Instruction], T]) -> Callable[[Instruction], T]:
    """What is read of an instruction is kept with it: a search reads millions, and few live long."""
    name = f"_{read.__name__}"

    @wraps(read)
    def kept(i: Instruction) -> T:
        of = i.__dict__
        if name not in of:
            of[name] = read(i)
        found: T = of[name]
        return found

    return kept


@once
def plain(i: Instruction) -> str:
    """The name without the U of the uniform unit: IADD3 for UIADD3."""
    if i.name == "UP2UR":
        return "P2R"
    return i.name[1:] if i.name[0] == "U" and i.name[1:] in EVALUATED else i.name


@once
def registers_read(i: Instruction) -> tuple[str, ...]:
    return tuple(REGISTER.findall(" ".join(_sources(i))))


@once
def registers_named(i: Instruction) -> tuple[str, ...]:
    return tuple(REGISTER.findall(" ".join((i.guard, *i.operands))))


@cache
def pair_of(target: str) -> str:
    """R5 for R4, the other half of a pair; empty for what is no register."""
    m = re.fullmatch(r"(U?R)(\d+)", target)
    return f"{m[1]}{int(m[2]) + 1}" if m else ""


def _sources(i: Instruction) -> tuple[str, ...]:
    """Operands that are read: all but those that are written."""
    if plain(i) in ("ISETP", "PLOP3"):
        return i.operands[2:]
    if plain(i) == "LOP3" and is_predicate(i.operands[0]):
        return i.operands[2:]
    if plain(i) in ("IADD3", "LEA", "LOP3", "IMAD"):  # those between are carries out
        return tuple(o for n, o in enumerate(i.operands) if n > 2 or (n and not is_predicate(o)))
    if i.opcode in ("P2R", "UP2UR"):
        return (*packed_predicates(i), *i.operands[2:])
    return i.operands[1:]


def packed_predicates(i: Instruction) -> tuple[str, ...]:
    """The predicates that P2R packs into a register, by its mask; those of the uniform unit for UP2UR."""
    unit = "U" if i.name == "UP2UR" else ""
    return tuple(unit + p for p in masked_predicates(i.operands[3]))


def masked_predicates(mask: str) -> tuple[str, ...]:
    """The predicates of a mask's bits; of one that is no number, none."""
    bits = int(mask, 0) if mask.startswith("0x") else 0
    return tuple(f"P{n}" for n in range(7) if bits >> n & 1)


@once
def registers_written(i: Instruction) -> frozenset[str]:
    """Registers and predicates an instruction writes (with the other half of a pair)."""
    if i.name in ("ST", "STG", "STS", "BRA", "EXIT", "BAR", "RED", "LDGSTS", "UTMASTG", "UTMALDG", "RET"):
        return frozenset()
    if i.name == "R2P":
        return frozenset(masked_predicates(i.operands[2]))
    out: set[str] = set()
    tests = plain(i) == "LOP3" and is_predicate(i.operands[0])  # (a predicate, then the bits that it tells of)
    for o in i.operands[: 1 + tests]:
        m = re.match(r"(U?R)(\d+)", o)
        if m:
            out |= {f"{m[1]}{m[2]}", f"{m[1]}{int(m[2]) + 1}"} if _wide(i) else {f"{m[1]}{m[2]}"}
    for o in i.operands[:3]:
        if re.fullmatch(r"U?P\d", o):
            out.add(o)
    return frozenset(out)


def _wide(i: Instruction) -> bool:
    return any(x in i.opcode for x in (".WIDE", ".64", ".128")) or i.name == "CS2R"


@once
def all_read(i: Instruction) -> tuple[str, ...]:
    """As `registers_read`, with every register of wide operands and the address of a store."""
    wide = {n: size for n, size in enumerate(_sizes(i)) if n and size > 1}
    address = REGISTER.findall(i.operands[0]) if i.name in ("STS", "STG", "STSM") and i.operands else ()
    return (*registers_read(i), *address, *(r for n, size in wide.items() for r in _run_of(i, n, size)))


@once
def all_written(i: Instruction) -> tuple[str, ...]:
    """As `registers_written`, with every register of a wide result."""
    sizes = _sizes(i)
    return tuple(registers_written(i) | set(_run_of(i, 0, sizes[0]) if sizes and sizes[0] > 1 else ()))


def _sizes(i: Instruction) -> tuple[int, ...]:
    """Registers of each operand, where one has more than the text says: fragments and vectors."""
    parts = i.opcode.split(".")
    if i.name in ("HMMA", "QMMA", "IMMA"):
        half = "1688" in parts and "TF32" not in parts
        return (4, 2, 1, 4) if half else (4, 4, 2, 4)
    vector = next((n for text, n in (("128", 4), ("64", 2)) if text in parts), 1)
    if i.name in ("LDS", "LDG", "LDL", "LDC"):
        return (vector,)
    if i.name in ("STS", "STG"):
        return (1, vector)
    if i.name in ("LDSM", "STSM"):
        n = int(parts[-1]) if parts[-1].isdigit() else 1
        return (n,) if i.name == "LDSM" else (1, n)
    return ()


def _run_of(i: Instruction, operand: int, size: int) -> tuple[str, ...]:
    """R4, R5, R6, R7 for an operand R4 of four registers."""
    m = re.match(r"-?\|?(U?R)(\d+)", i.operands[operand]) if operand < len(i.operands) else None
    return tuple(f"{m[1]}{int(m[2]) + n}" for n in range(size)) if m else ()


@cache
def is_predicate(text: str) -> bool:
    return re.fullmatch(r"!?U?P(\d|T)", text) is not None


def dependences(function: Function, roots: Mapping[int, set[str]] | None = None) -> list[list[Instruction]]:
    """Of each block, the instructions that branches depend on: found backward, register by register, until nothing
    is added. With `roots` (registers by the address of an instruction that reads them), what those depend on."""
    before: dict[int, tuple[Block, ...]] = {}
    for b in function.blocks:
        for at in (b.target, b.next, *b.jumps):
            if at is not None:
                before[at] = (*before.get(at, ()), b)
    live_out: dict[int, set[str]] = {b.number: set() for b in function.blocks}
    chosen: dict[int, list[Instruction]] = {}
    waiting = list(function.blocks)
    while waiting:
        b = waiting.pop()
        live, kept = set(live_out[b.number]), []
        for i in reversed(b.instructions):
            if roots is not None:
                live |= roots.get(i.address, set())
            elif i.name in ("BRA", "EXIT", "RET", "BRX"):
                live |= set(REGISTER.findall(" ".join((i.guard, *i.operands))))
                continue
            if roots is None and i.name in COUNTED and i.guard:
                live |= set(REGISTER.findall(i.guard))
                kept.append(i)
                continue
            written = registers_written(i)
            if not written & live:
                continue
            kept.append(i)
            if not i.guard:
                live -= written
            if plain(i) in EVALUATED:
                live |= set(REGISTER.findall(" ".join((i.guard, *_sources(i)))))
        chosen[b.number] = kept[::-1]
        for p in before.get(b.number, ()):
            if not live <= live_out[p.number]:
                live_out[p.number] |= live
                waiting.append(p)
    return [chosen.get(b.number, []) for b in function.blocks]


@lru_cache(maxsize=1 << 10)
def depends_on_thread(function: Function, i: Instruction) -> bool:
    """Whether the address of a memory instruction may differ between the threads of a warp: found backward from its
    address, register by register."""
    address = set(REGISTER.findall(" ".join(i.operands[1:])))
    chosen = dependences(function, {i.address: address})
    return any(
        (c.name in ("S2R", "S2UR") and c.operands[-1] in ("SR_TID.X", "SR_LANEID")) or plain(c) not in EVALUATED
        for block in chosen
        for c in block
    )
