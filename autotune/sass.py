"""Machine code of a GPU kernel as basic blocks, read from nvdisasm's text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
LABEL = re.compile(r"^(\.L_x_\d+):")
TABLE = re.compile(r"\.L_x_\d+")
ENTRY = re.compile(r"^\.text\.([\w$]+):")


@dataclass(frozen=True, eq=False)
class Instruction:
    """`@!P0 LDG.E.128 R4, [R2.64]`: `guard` is `@!P0`, `opcode` all of `LDG.E.128`, `operands` the rest split. Equal
    only to itself, so that what is known of one is quickly found."""

    address: int
    guard: str
    opcode: str
    operands: tuple[str, ...]
    paired: bool = True
    """Of a wide load of shared memory: whether lanes in pairs read the same (`sass_lanes`)."""

    @cached_property
    def name(self) -> str:
        """LDG for LDG.E.128."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> str:
        """The label a branch goes to."""
        found = re.search(r"\.L_x_\d+", " ".join(self.operands))
        return found[0] if found else ""


@dataclass(frozen=True)
class Block:
    """Instructions with one way in and one way out. `target` and `next` are block numbers (None: leaves); `jumps` those
    of the places that a jump table has, in its order."""

    number: int
    instructions: tuple[Instruction, ...]
    target: int | None
    next: int | None
    jumps: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Function:
    """An entry's machine code as basic blocks. Equal only to itself, as an instruction is."""

    name: str
    blocks: tuple[Block, ...]

    @property
    def instructions(self) -> list[Instruction]:
        return [i for b in self.blocks for i in b.instructions]


def functions_of(text: str) -> dict[str, Function]:
    """All functions of nvdisasm's output (`nvdisasm -c`)."""
    found: dict[str, Function] = {}
    name = ""
    lines: list[str] = []
    for line in [*text.splitlines(), ".text.end:"]:
        entry = ENTRY.match(line)
        if entry:
            if name and lines:
                found[name] = _function(name, lines)
            name, lines = entry[1], []
        elif name:
            lines.append(line)
    return found


def _function(name: str, lines: Sequence[str]) -> Function:
    starts: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for line in lines:
        label = LABEL.match(line)
        if label:
            if starts[-1]:
                starts.append([])
            labels[label[1]] = len(starts) - 1
            continue
        m = LINE.match(line)
        if m is None:
            continue
        operands = tuple(o.strip() for o in _split(m[4])) if m[4] else ()
        instruction = Instruction(int(m[1], 16), m[2] or "", m[3], operands)
        starts[-1].append(instruction)
        if instruction.name in ("BRA", "EXIT", "RET", "BRX", "JMP") or instruction.opcode.startswith("CALL.REL"):
            starts.append([])
    for body in starts:
        if body and body[-1].opcode.startswith("CALL.REL") and _leaves(starts, labels, body[-1].target):
            body[-1] = replace(body[-1], opcode="BRA.CALL")
    blocks = []
    for i, body in enumerate(starts):
        last = body[-1] if body else None
        target = labels.get(last.target) if last and last.name == "BRA" else None
        ends = last is not None and last.name in ("BRA", "EXIT", "RET") and not _conditional(last)
        following = i + 1 if i + 1 < len(starts) else None
        jumps = tuple(labels[x] for x in TABLE.findall(" ".join(last.operands)) if x in labels) if last else ()
        blocks.append(Block(i, tuple(body), target, None if ends else following, jumps if _jumps(last) else ()))
    return Function(name, tuple(blocks))


def _jumps(last: Instruction | None) -> bool:
    return last is not None and last.name == "BRX"


def _leaves(starts: Sequence[Sequence[Instruction]], labels: Mapping[str, int], label: str) -> bool:
    """Whether no way from a label comes to a return: a call to it never comes back. Before sm_90 a loop is left so."""
    waiting = [labels[label]] if label in labels else []
    seen: set[int] = set()
    while waiting:
        at = waiting.pop()
        if at in seen or at >= len(starts):
            continue
        seen.add(at)
        last = starts[at][-1] if starts[at] else None
        if last is not None and last.name == "RET":
            return False
        if last is not None and last.name == "BRA" and last.target in labels:
            waiting.append(labels[last.target])
        if last is None or last.name not in ("BRA", "EXIT") or _conditional(last):
            waiting.append(at + 1)
    return bool(seen)


def _split(text: str) -> list[str]:
    """Operands at commas outside brackets."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += c in "[({"
        depth -= c in "])}"
        if c == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += c
    return [*parts, current]


def _conditional(i: Instruction) -> bool:
    """A branch that may fall through: guarded, or on a predicate among its operands."""
    if i.guard and i.guard not in ("@PT", "@UPT"):
        return True
    return any(re.fullmatch(r"!?U?P\d", o) for o in i.operands[:-1]) or i.opcode.startswith("BRA.DIV")
