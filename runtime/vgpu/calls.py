"""Run-time calls: recursion and calls through registers, with a stack per lane.

A call notes where the lane goes on, moves its frame past the caller's, and, when the caller may be entered
again before that, saves the caller's live registers and its parameters. Which lanes return where is read off
the stack when they return. Stack space grows with need up to STACK_LIMIT bytes a lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder
from tcomp.runtime.vgpu.flow import width
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, count, distinct, every, narrow
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.memory import Segment
from tcomp.runtime.vgpu.op_call import args_of
from tcomp.runtime.vgpu.ptx import Instr, Sym

STACK_LIMIT = 1 << 16


@dataclass
class _Site:
    """What a call site saves: (width, row) of registers, (offset, size) of argument memory; `step` moves the frame."""

    registers: list[tuple[int, int]]
    spans: list[tuple[int, int]]
    step: int


class Calls:
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.sites: dict[int, _Site] = {}
        self.start()

    def start(self) -> None:
        m = self.m
        if not m.program.callees:
            return
        m.frame[:] = 0
        self.depth: Array = np.zeros(m.lanes, np.int32)
        self.back: list[Array] = []  # by depth: the basic block each lane returns to
        self.saved: dict[tuple[int, int], list[Array]] = {}  # (depth, block to return to) -> what was saved there

    def decode(self, d: Decoder, i: Instr, n: int, index: dict[int, int]) -> Any:
        """The ending of basic block `n`, a `call` or `ret`; `index` gives the block that starts at an instruction."""
        if i.opcode.startswith("ret"):
            return self.leave(n)
        m, p = self.m, self.m.program
        site = p.calls[m.flow.blocks[n].end - 1]
        entry = {t: index[p.labels[p.callees[t].label]] for t in site.targets}
        caller = p.callees.get(site.caller)
        self.sites[n + 1] = self.site(site.caller, n)
        step = self.sites[n + 1].step
        target = i.operands[0]
        if isinstance(target, Sym):
            (name,) = site.targets

            def direct(sel: Sel) -> list[tuple[int, Sel]]:
                self.enter(sel, n + 1, step, caller is not None and caller.recursive)
                return self.begin(sel, i, name, entry[name])

            return direct
        d.line, d.instr = i.line, i
        get = d.source(target, "u64")
        address = {t: m.module_addresses[t] for t in site.targets}

        def through_register(sel: Sel) -> list[tuple[int, Sel]]:
            where = np.broadcast_to(get(sel), count(sel))
            known = np.isin(where, np.array(list(address.values()), np.uint64))
            if not every(known):
                m.finding("call of no function", i, m.ids[sel][~known], "the register does not hold the address of a "
                          "function with these parameters", int(where[~known][0]), stop=True)  # fmt: skip
                return []
            out = []
            self.enter(sel, n + 1, step, caller is not None and caller.recursive)
            for t, a in address.items():
                sub = narrow(sel, where == a)
                if sub is not None:
                    out += self.begin(sub, i, t, entry[t])
            return out

        return through_register

    def site(self, caller: str, n: int) -> _Site:
        m, p = self.m, self.m.program
        if not caller:
            return _Site([], [], (p.local_bytes + 15) // 16 * 16)
        c = p.callees[caller]
        live = sorted(r for r in m.flow.live_in[n + 1] if r.startswith(c.label))
        rows = sorted({(width(p.registers[r]), m.flow.row[r]) for r in live})
        return _Site(rows, c.formals + c.results, c.frame)

    def enter(self, sel: Sel, back: int, step: int, saves: bool) -> None:
        m = self.m
        depths = self.depth[sel]
        for level in distinct(depths).tolist():
            if level == len(self.back):
                self.back.append(np.zeros(m.lanes, np.int32))
            lanes = m.ids[sel][depths == level]
            self.back[level][lanes] = back
            if saves:
                self.save(level, back, lanes)
        self.depth[sel] += 1
        m.frame[sel] += step

    def save(self, level: int, back: int, lanes: Array) -> None:
        m, site = self.m, self.sites[back]
        store = self.saved.get((level, back))
        if store is None:
            data, init = args_of(m)
            store = [np.zeros(m.lanes, m.files[w].dtype) for w, _ in site.registers]
            for start, size in site.spans:
                store += [np.zeros_like(x[:, start : start + size]) for x in (data, init)]
            self.saved[level, back] = store
        for kept, here in zip(store, self.places(site), strict=True):
            kept[lanes] = here[lanes]

    def places(self, site: _Site) -> list[Array]:
        data, init = args_of(self.m)
        rows = [self.m.files[w][row] for w, row in site.registers]
        return rows + [x[:, start : start + size] for start, size in site.spans for x in (data, init)]

    def begin(self, sel: Sel, i: Instr, name: str, entry: int) -> list[tuple[int, Sel]]:
        """Makes room for the callee's frame, and hands over its parameters."""
        m, c = self.m, self.m.program.callees[name]
        need = int(m.frame[sel].max()) + c.frame
        if need > STACK_LIMIT or int(self.depth[sel].max()) > STACK_LIMIT // 16:
            m.finding("stack overflow", i, m.ids[sel], f"calls {int(self.depth[sel].max())} deep, with {need} bytes of "
                      f"stack; a thread has {STACK_LIMIT}", stop=True)  # fmt: skip
            return []
        if need > m.local_stride:
            grow(m, need)
        m.local_limit = max(m.local_limit, need)
        if c.frame:
            first = m.local_base[sel] + m.frame[sel]
            m.local.init[first[:, None] + np.arange(c.frame)] = 0
        at = m.program.passing
        for start, size in c.formals:
            for x in args_of(m):
                x[sel, start : start + size] = x[sel, at : at + size]
            at += (size + 15) // 16 * 16
        return [(entry, sel)]

    def leave(self, n: int) -> Any:
        m, p = self.m, self.m.program
        c = p.callees[p.returns[m.flow.blocks[n].end - 1]]

        def run(sel: Sel) -> list[tuple[int, Sel]]:
            at = p.passing
            for start, size in c.results:
                for x in args_of(m):
                    x[sel, at : at + size] = x[sel, start : start + size]
                at += (size + 15) // 16 * 16
            self.depth[sel] -= 1
            lanes, depths = m.ids[sel], self.depth[sel]
            out: dict[int, list[Array]] = {}
            for level in distinct(depths).tolist():
                mine = lanes[depths == level]
                to = self.back[level][mine]
                for block in distinct(to).tolist():
                    here = mine[to == block]
                    site = self.sites[block]
                    m.frame[here] -= site.step
                    if (level, block) in self.saved:
                        for kept, place in zip(self.saved[level, block], self.places(site), strict=True):
                            place[here] = kept[here]
                    out.setdefault(block, []).append(here)
            return [(b, compact(np.sort(np.concatenate(parts)))) for b, parts in out.items()]

        return run


def grow(m: Machine, need: int) -> None:
    """Makes each lane's local memory larger, keeping what is there."""
    stride = max(need, 2 * m.local_stride, 256)
    stride = (stride + 15) // 16 * 16
    old, width_ = m.local, m.local_stride
    m.local = Segment("local", stride * m.lanes)
    for name in ("data", "init"):
        new = getattr(m.local, name)[: stride * m.lanes].reshape(m.lanes, stride)
        new[:, :width_] = getattr(old, name)[: width_ * m.lanes].reshape(m.lanes, width_)
    m.local_stride = stride
    m.local_base = m.ids * stride
