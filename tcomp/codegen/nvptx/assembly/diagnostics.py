"""What is wrong or slow about an assembled module: the assembler's remarks, spills, local memory, calls out of it.

Each is a `Message` with the kernel and, where known, the PTX line. Severity "error" is what the assembler refuses,
"warning" is a finding (it costs speed, or the code is not what was meant), "note" is neither. The codes are the
assembler's: C7504..C7508 setmaxnreg ignored, C7509..C7516, C7518 and C7520 wgmma serialised, C7517 and C7519 wait or
arrive injected, C7602 no registers for a wgmma. Remarks without a code get one of ours: spill, stack, extern, warning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from tcomp.codegen.nvptx.assembly.resources import Resources
from tcomp.dsl.ast import NO_SPAN, Span
from tcomp.errors import UserError
from tcomp.ir.origins import Origins


@dataclass(frozen=True)
class Message:
    """`line` counts from 1 in the PTX text; 0 and an empty `symbol` where the assembler does not tell."""

    severity: str
    code: str
    text: str
    symbol: str = ""
    line: int = 0

    @property
    def finding(self) -> bool:
        """True when a strict build must fail for it."""
        return self.severity != "note"

    def describe(self, span: Span = NO_SPAN) -> str:
        """One line, at the place of the schedule that the kernel came from:
        `ops/linear.tc:12:1: warning: kernel linear: 96 bytes of registers are spilled [spill]`."""
        place = "" if span == NO_SPAN else f"{span}: "
        kernel = f"kernel {self.symbol}: " if self.symbol else ""
        at = f" (PTX line {self.line})" if self.line else ""
        return f"{place}{self.severity}: {kernel}{self.text}{at} [{self.code}]"


HINTS = {
    "spill": "use a smaller register tile (unroll, vec), or fewer threads per block",
    "stack": "an array indexed at run time lies in local memory: unroll the loop that indexes it",
    "extern": "everything a kernel calls must be inlined",
    "C7504": "nvJitLink assembles for linking, where registers cannot move: install ptxas (nvidia-cuda-nvcc), "
    "or let the producer keep its registers",
    "C7508": "give the kernel its number of threads (.maxntid or .reqntid)",
    "C7511": "use a smaller tile, or spread it over more warpgroups",
    "C7512": "use a smaller tile, or spread it over more warpgroups",
    "C7514": "read the accumulators only after the wait that retires their group",
    "C7602": "use a smaller tile, fewer threads per block, or more warpgroups",
    "C7517": "read the accumulators only after the wait that retires their group",
}

PRODUCER = frozenset(f"C{n}" for n in range(7504, 7509))
"""setmaxnreg ignored"""
INSTRUCTION = frozenset(f"C{n}" for n in range(7509, 7521))
"""wgmma serialised, or waited for where the code does not say so"""
REGISTERS = frozenset(("spill", "C7511", "C7512", "C7602"))
"""the tile takes more registers than there are"""


def origin(m: Message, origins: Origins, kernel: Span) -> Span:
    """The line of the schedule that causes a finding, where it is known; else the kernel's."""
    found = NO_SPAN
    if m.code in PRODUCER:
        found = origins.producer
    elif m.code in INSTRUCTION:
        found = origins.instruction
    elif m.code in REGISTERS and origins.sizes:
        found = origins.sizes[0].span
    return kernel if found == NO_SPAN else found


def advice(m: Message, origins: Origins) -> str:
    """How to mend it; "" where nothing is known. Where registers are short, with the sizes that take them."""
    hint = HINTS.get(m.code, "")
    if m.code in REGISTERS and origins.sizes:
        hint += f"; sizes here: {', '.join(map(str, origins.sizes))}"
    return hint


_LINE = re.compile(
    r"^ptxas(?: (?P<file>application ptx input|[^,:]*), line (?P<line>\d+);)? +"
    r"(?P<severity>info|warning|error|fatal)\s*: (?P<text>.*)$"
)
_CODE = re.compile(r"^\((C\d+)\) ?")
_IN_FUNCTION = re.compile(r"(?:in (?:the )?|for )function '?([^'\s.]+)'?")
_AT_LINE = re.compile(r" (?:in|at|in around|around) line (\d+)")
_PLACE = re.compile(r" in the function '[^']+'(?: in line \d+)?$")
_ROUTINE = ("Ptx assembly aborted", "Overriding maximum register limit", "Local memory used", "Registers are spilled")
"""Lines that repeat what another line says, or that answer to an option."""


def messages_in(log: str) -> tuple[Message, ...]:
    """The assembler's own remarks, without the tables of resources."""
    found = []
    for raw in log.splitlines():
        m = _LINE.match(raw.strip())
        if m is None or m["text"].startswith(_ROUTINE):
            continue
        text, severity = m["text"].strip(), {"fatal": "error"}.get(m["severity"], m["severity"])
        code = _CODE.match(text)
        if code:
            text = text[code.end() :]
        elif severity == "info":
            continue
        function, line = _IN_FUNCTION.search(text), m["line"] or (_AT_LINE.search(text) or ("", ""))[1]
        text = _PLACE.sub("", text.removeprefix("Potential Performance Loss: ")).replace("  ", " ")
        found.append(
            Message(
                "error" if severity == "error" else "warning",
                code[1] if code else severity,
                text,
                function[1] if function else "",
                int(line or 0),
            )
        )
    return tuple(dict.fromkeys(found))


_SPILL_SLACK = 64
"""Bytes of stack beyond what was spilled that are alignment and saved registers, not an array."""


def resource_messages(resources: Iterable[Resources]) -> Iterator[Message]:
    """A finding for every function that spills, and for every one that keeps arrays in local memory."""
    for r in resources:
        if r.spills:
            text = f"{r.spill_store_bytes} bytes of registers are spilled, {r.spill_load_bytes} bytes loaded back"
            yield Message("warning", "spill", text, r.symbol)
        if r.stack_bytes > r.spill_store_bytes + _SPILL_SLACK:
            yield Message("warning", "stack", f"{r.stack_bytes} bytes of local memory per thread", r.symbol)


_ENTRY = re.compile(r"^\s*(?:\.visible\s+|\.weak\s+)?\.(entry|func)\b(?:\s*\([^)]*\))?\s*([\w$.]+)")
_EXTERN = re.compile(r"\.extern\s+\.func\s*(?:\([^)]*\))?\s*([\w$.]+)")
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)


def blank_comments(ptx: str) -> str:
    """The text with its comments blanked, every line where it was."""
    return _COMMENT.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), ptx)


def extern_messages(ptx: str) -> tuple[Message, ...]:
    """Calls of functions that the module does not hold, by kernel and line; declarations where nothing calls them."""
    ptx = blank_comments(ptx)
    names = list(dict.fromkeys(_EXTERN.findall(ptx)))
    names += [n for n in dict.fromkeys(re.findall(r"\bllvm\.nvvm\.[\w.]+", ptx)) if n not in names]
    found = []
    for name in names:
        lines = [
            ptx.count("\n", 0, m.start()) + 1
            for m in re.finditer(rf"^[^\n]*\bcall\b[^;]*?(?<![\w$.]){re.escape(name)}(?![\w$.])", ptx, re.M)
        ]
        unknown = name.startswith("llvm.")
        text = f"calls {name}, " + (
            "an intrinsic that this LLVM does not know" if unknown else "which is not in the module"
        )
        for line in lines or [_line_of(ptx, name)]:
            # The call itself is on the line that ends the match, which a long argument list may push down.
            found.append(Message("error" if unknown else "warning", "extern", text, symbol_at(ptx, line), line))
    return tuple(found)


def symbol_at(ptx: str, line: int) -> str:
    """The kernel or function whose text holds that line; empty before the first."""
    name = ""
    for text in ptx.split("\n")[:line]:
        if m := _ENTRY.match(text):
            name = m[2]
    return name


def located(messages: Iterable[Message], ptx: str) -> Iterator[Message]:
    """The messages, with the kernel added to those that name a line, or that can only mean the module's one kernel."""
    entries = [m[2] for m in map(_ENTRY.match, ptx.split("\n")) if m and m[1] == "entry"]
    for m in messages:
        if m.symbol:
            yield m
        elif m.line:
            yield replace(m, symbol=symbol_at(ptx, m.line))
        else:
            yield replace(m, symbol=entries[0]) if len(entries) == 1 else m


def refusal(errors: Iterable[Message], ptx: str, target: str) -> UserError:
    """The error for PTX that does not assemble, with the PTX lines to blame."""
    errors = list(errors)
    lines = ptx.splitlines()
    parts = []
    for e in errors[:5]:
        shown = lines[e.line - 1].strip()[:160] if 0 < e.line <= len(lines) else ""
        parts.append("  " + e.describe() + (f"\n    {e.line} | {shown}" if shown else ""))
    if len(errors) > 5:
        parts.append(f"  and {len(errors) - 5} more")
    advice = next((HINTS[e.code] for e in errors if e.code in HINTS and e.code != "extern"), "")
    return UserError(
        f"the PTX does not assemble for {target}\n" + "\n".join(parts),
        advice or "PTX that tcomp made should always assemble: please report it; in your own PTX, correct these lines",
    )


def _line_of(ptx: str, name: str) -> int:
    at = ptx.find(name)
    return ptx.count("\n", 0, at) + 1 if at >= 0 else 0
