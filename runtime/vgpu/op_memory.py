"""ld, st, prefetches, fences (PTX ISA 9.7.9 and 9.7.13)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu import wide
from tcomp.runtime.vgpu.access import SPACES, Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Sel, every, some
from tcomp.runtime.vgpu.op_fence import note_fence
from tcomp.runtime.vgpu.ptx import Addr, Instr, Operand, Reg, Vec
from tcomp.runtime.vgpu.types import scalar

STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"}


def space_of(i: Instr) -> str:
    for p in i.parts[1:]:
        s = p.split("::")
        if s[0] in SPACES:
            return s[0]
    return "generic"


def _shape(d: Decoder, i: Instr) -> tuple[int, str]:
    lanes = next((int(p[1:]) for p in i.parts if p in ("v2", "v4", "v8")), 1)
    return lanes, i.parts[-1]


def shifted(key: Any, n: int) -> Any:
    if n == 0:
        return key
    return slice(key.start + n, key.stop + n, key.step) if isinstance(key, slice) else key + n


def first_guess(d: Decoder, operand: Operand) -> bool:
    """Whether this plain load only starts a compare-and-swap loop at the same address register: the swap
    checks what was read, so meeting other threads' atomics is no fault."""
    if not isinstance(operand, Addr) or not isinstance(operand.base, Reg):
        return False
    if d.m.flow.guesses is None:
        code = d.m.program.code
        d.m.flow.guesses = {
            (a.base, a.offset)
            for c in code if c.parts[0] == "atom" and "cas" in c.parts and isinstance(a := c.operands[1], Addr)
        }  # fmt: skip
    return (operand.base, operand.offset) in d.m.flow.guesses


@instruction("ld", "ldu")
def load(d: Decoder, i: Instr) -> Run:
    lanes_, type_name = _shape(d, i)
    t = scalar(type_name, i.line)
    to, operand = i.operands[0], i.operands[1]
    wide_puts = wide.puts(d, to) if t.bits == 128 else []
    if wide_puts:
        t, lanes_ = scalar("b64"), 2
    strong = bool(STRONG & set(i.parts)) or first_guess(d, operand)
    access = Access(d, i, operand, space_of(i), t.size, lanes_, strong)
    if wide_puts:
        puts = wide_puts
    else:
        puts = [d.put(o, t) for o in (to.items if isinstance(to, Vec) else (to,))]
    if len(puts) != lanes_:
        raise d.unknown(i)
    m = d.m

    def run(sel: Sel) -> None:
        access.current = sel
        done = False
        for p in access.parts(sel):
            lanes = m.ids[sel] if p.where is None else m.ids[sel][p.where]
            key = access.key(p.start, access.shift)
            keys = [shifted(key, n) for n in range(lanes_)]
            access.check_read(p, keys, lanes)
            access.count_traffic(p, lanes, False)
            view = p.segment.view(t.dtype)
            here = sel if p.where is None else lanes
            if p.where is not None and not done:
                for put in puts:
                    put(sel, t.dtype.type(0))
            for k, put in zip(keys, puts, strict=True):
                put(here, view[k])
            done = True
        if not done:
            for put in puts:
                put(sel, t.dtype.type(0))

    return run


@instruction("st")
def store(d: Decoder, i: Instr) -> Run:
    lanes_, type_name = _shape(d, i)
    t = scalar(type_name, i.line)
    operand, value = i.operands[:2]  # a cache policy may follow
    wide_sources = wide.sources(d, value) if t.bits == 128 else []
    if wide_sources:
        t, lanes_ = scalar("b64"), 2
    access = Access(d, i, operand, space_of(i), t.size, lanes_, bool(STRONG & set(i.parts)))
    items = value.items if isinstance(value, Vec) else (value,)
    if len(items) != lanes_ and not wide_sources:
        raise d.unknown(i)
    sources = wide_sources or [d.source(o, t) for o in items]
    m = d.m
    release = "release" in i.parts
    raw = np.dtype(f"u{t.size}")

    def run(sel: Sel) -> None:
        access.current = sel
        if release:
            note_fence(m, sel)
        for p in access.parts(sel):
            lanes = m.ids[sel] if p.where is None else m.ids[sel][p.where]
            key = access.key(p.start, access.shift)
            if isinstance(key, int):
                key = p.start >> access.shift
            values = [s(sel) for s in sources]
            if p.where is not None:
                values = [v if np.ndim(v) == 0 else v[p.where] for v in values]
            same = m.options.checks and _unchanged(p, key, values, raw)
            if not same:
                access.check_write(p, lanes)
            access.count_traffic(p, lanes, True)
            s = p.segment
            view = s.view(raw)
            for n, v in enumerate(values):
                k = shifted(key, n)
                bits = np.asarray(v).view(raw)
                view[k] = bits
                if not s.initialised:
                    s.init_view(t.size)[k] = np.iinfo(raw).max // 255
                if m.options.checks and isinstance(k, np.ndarray) and s.space in ("global", "shared"):
                    lost = view[k] != bits
                    if some(lost):
                        kind = "shared memory race" if s.space == "shared" else "global memory race"
                        m.finding(kind, i, lanes[lost], "lanes write different values to the same place at once",
                                  s.base + int(p.start[lost][0]))  # fmt: skip

    def _unchanged(p: Any, key: Any, values: list[Any], raw_type: Any) -> bool:
        """Writing the values that are already there, by everyone, is no race (replicated results)."""
        s = p.segment
        if s.space not in ("global", "shared") or s.race is None:
            return False
        if not s.initialised:
            init = s.init_view(t.size)
            if not every(init[key] != 0):
                return False
        floor = m.shared_floor if s.space == "shared" else m.launch_start
        if s.race.latest_write <= floor:
            return False
        view = s.view(raw_type)
        return all(every(view[shifted(key, n)] == np.asarray(v).view(raw_type)) for n, v in enumerate(values))

    return run


@instruction("prefetch", "prefetchu", "discard", "applypriority", "pmevent", "nanosleep")
def nothing(d: Decoder, i: Instr) -> Run:
    return lambda sel: None


@instruction("brkpt")
def breakpoint_trap(d: Decoder, i: Instr) -> Run:
    return lambda sel: d.m.finding("trap", i, d.m.ids[sel], "breakpoint", stop=True)


@instruction("createpolicy")
def cache_policy(d: Decoder, i: Instr) -> Run:
    """An opaque value; the instructions that take it only hint at caches."""
    put = d.put(i.operands[0], "b64")
    return lambda sel: put(sel, np.uint64(0x12F0000000000000))
