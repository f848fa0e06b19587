"""Runs one wave of blocks: groups of lanes with a common position step together, lowest position first.

Lowest-first makes lanes that took different ways meet again where the ways join, because compilers lay code
out in that order; correctness does not depend on it. A group that spins on memory (a backward branch over
an atomic or volatile load) lets the others run after a while. Lanes that wait for others (barriers, warp
instructions) are set aside until those come; when nothing else can run, that is a deadlock and is reported.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tcomp.runtime.vgpu import operations as _operations
from tcomp.runtime.vgpu.barriers import Barriers
from tcomp.runtime.vgpu.calls import Calls
from tcomp.runtime.vgpu.cluster import barrier as cluster_barrier
from tcomp.runtime.vgpu.decoder import Decoder, Run, Source
from tcomp.runtime.vgpu.flow import TRANSFERS, waits
from tcomp.runtime.vgpu.lanes import Sel, count, ids, merge, narrow, warps
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Instr, Sym
from tcomp.runtime.vgpu.types import scalar

Finish = Callable[[Sel], list[tuple[int, Sel]]]
SPIN = 64
assert _operations


class Executor:
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.barriers = Barriers(m)
        self.calls = Calls(m)
        self.parked: dict[int, Sel] = {}
        self.bodies: list[list[Run]] = []
        self.finish: list[Finish] = []
        self.lengths: list[int] = []
        self.spins: list[bool] = []
        d = Decoder(m)
        blocks = m.flow.blocks
        self.index = {b.start: n for n, b in enumerate(blocks)}
        for n, b in enumerate(blocks):
            code = m.program.code[b.start : b.end]
            base = code[-1].opcode.split(".")[0]
            ends = base in TRANSFERS or waits(code[-1])
            plain = code[:-1] if ends else code
            self.bodies.append([self.guarded(d, i) for i in plain])
            self.finish.append(self.ending(d, n, code[-1]) if ends else self.jump(n + 1))
            self.lengths.append(len(code))
        for n, b in enumerate(blocks):
            back = min([s for s in b.successors if s <= n], default=n + 1)
            loop = m.program.code[blocks[back].start : b.end] if back <= n else []
            self.spins.append(any(_watches(i) for i in loop))

    # --- decoding
    def guarded(self, d: Decoder, i: Instr) -> Run:
        run = d.decode(i)
        if i.guard is None:
            return run
        guard = self.guard(d, i)

        def conditional(sel: Sel) -> None:
            sub = narrow(sel, guard(sel))
            if sub is not None:
                run(sub)

        return conditional

    def guard(self, d: Decoder, i: Instr) -> Source:
        from tcomp.runtime.vgpu.ptx import Reg

        assert i.guard is not None
        d.line, d.instr = i.line, i
        get = d.source(Reg(i.guard), scalar("pred"))
        return (lambda sel: ~get(sel)) if i.guard_not else get

    def ending(self, d: Decoder, n: int, i: Instr) -> Finish:
        base = i.opcode.split(".")[0]
        guard = self.guard(d, i) if i.guard else None
        if base == "bra":
            target = i.operands[0]
            assert isinstance(target, Sym)
            act: Finish = self.jump(self.index[self.m.program.labels[target.name]])
        elif base == "brx":
            act = self.table_jump(d, i)
        elif base in ("exit", "trap"):
            act = self.leave(i, base == "trap")
        elif base in ("call", "ret"):
            act = self.calls.decode(d, i, n, self.index)
        elif base == "barrier" and "cluster" in i.parts:
            act = self.waiting(cluster_barrier(self.m, i), n)
        elif base in ("bar", "barrier") and ".warp" not in i.opcode:
            act = self.barriers.decode(d, i, n)
        else:
            act = self.waiting(d.decode(i), n)
        if guard is None:
            return act
        test = guard

        def conditional(sel: Sel) -> list[tuple[int, Sel]]:
            p = test(sel)
            yes, no = narrow(sel, p), narrow(sel, ~p)
            out = act(yes) if yes is not None else []
            return [*out, (n + 1, no)] if no is not None else out

        return conditional

    def jump(self, to: int) -> Finish:
        return lambda sel: [(to, sel)]

    def table_jump(self, d: Decoder, i: Instr) -> Finish:
        d.line, d.instr = i.line, i
        get = d.source(i.operands[0], "u32")
        table = i.operands[1]
        assert isinstance(table, Sym)
        targets = [self.index[self.m.program.labels[t]] for t in self.m.program.tables[table.name]]

        def run(sel: Sel) -> list[tuple[int, Sel]]:
            which = np.broadcast_to(get(sel), count(sel))
            out = []
            for k, to in enumerate(targets):
                sub = narrow(sel, which == k)
                if sub is not None:
                    out.append((to, sub))
            return out

        return run

    def leave(self, i: Instr, trap: bool) -> Finish:
        def run(sel: Sel) -> list[tuple[int, Sel]]:
            self.m.alive[sel] = False
            self.m.progress += 1
            for leaving in self.m.on_exit:
                leaving(i, ids(sel))
            if trap:
                self.m.finding("trap", i, ids(sel), "the kernel trapped", stop=True)
            return self.barriers.after_exit(sel)

        return run

    def waiting(self, run: Run, n: int) -> Finish:
        """`run` gives the lanes that could go on (None: all of them); the rest stand here."""

        def act(sel: Sel) -> list[tuple[int, Sel]]:
            go = run(sel)
            if go is None:
                return [(n + 1, sel)]
            stay = np.setdiff1d(ids(sel), go, assume_unique=True)
            if len(stay):
                self.parked[n] = stay
            return [(n + 1, go)] if len(go) else []

        return act

    # --- running
    def run_wave(self, sel: Sel) -> None:
        m = self.m
        ready: dict[int, Sel] = {0: sel}
        self.parked.clear()
        self.barriers.start()
        self.calls.start()
        report, bodies, finish, lengths = m.report, self.bodies, self.finish, self.lengths
        spin, steps = 0, 0
        retried = False
        while not m.stopped:
            if not ready:
                if self.parked and (not retried or self.late()):  # lanes they wait for may have left since
                    m.settle()
                    ready, self.parked, retried = self.parked, {}, True
                    continue
                if self.parked or self.barriers.waiting():
                    self.deadlock("no lane can go on")
                return
            if spin > SPIN and self.parked:  # those who spin may wait for those who are set aside
                m.settle()
                for k, sub in self.parked.items():
                    ready[k] = merge(ready[k], sub) if k in ready else sub
                self.parked = {}
            if spin > SPIN and len(ready) > 1:
                n = max(ready)
                spin = 0
            else:
                n = min(ready)
            here = ready.pop(n)
            if n in self.parked:
                here = merge(here, self.parked.pop(n))
            while True:
                lanes = count(here)
                report.instructions += lanes * lengths[n]
                report.warp_instructions += warps(here) * lengths[n]
                for run in bodies[n]:
                    run(here)
                before = len(self.parked)
                following = finish[n](here)
                m.now += 1
                steps += 1
                if following or len(self.parked) == before:
                    retried = False
                if len(following) == 1 and not ready and not self.parked and following[0][0] > n:
                    n, here = following[0]
                    continue
                break
            if steps > m.options.max_steps:
                for to, sub in following:
                    ready[to] = sub
                self.parked.update(ready)
                self.deadlock(f"still running after {steps} steps: a loop that never ends")
                return
            for to, sub in following:
                if to <= n and self.spins[n]:
                    spin += 1
                ready[to] = merge(ready[to], sub) if to in ready else sub

    def late(self) -> bool:
        return any(part.time_out() for part in self.m.parts)

    def deadlock(self, why: str) -> None:
        """One finding that lists each waiting warp with its line and what it waits for."""
        m, lines, first, where = self.m, [], None, None
        for n, sel in sorted(self.parked.items()):
            i = m.program.code[m.flow.blocks[n].start]
            first, where = (sel, i) if first is None else (first, where)
            for w in np.unique(ids(sel) >> 5)[:64]:
                explain = m.explain.get((i.line, i.opcode))
                lane = int(ids(sel)[ids(sel) >> 5 == w][0])
                what = explain(lane) if explain else f"waits in `{i.opcode}` for the other lanes of its mask"
                lines.append(f"block {int(m.block_of_lane[lane])} warp {int(m.warp[lane])} at PTX line {i.line} {what}")
        for i, lanes, text in self.barriers.describe():
            first, where = (lanes, i) if first is None else (first, where)
            lines += text
        if first is not None and where is not None:
            m.finding("deadlock", where, ids(first), f"{why}\n    " + "\n    ".join(lines), stop=True)


def _watches(i: Instr) -> bool:
    parts = i.parts
    return parts[0] in ("atom", "nanosleep") or (
        parts[0] == "ld" and any(p in parts for p in ("volatile", "acquire", "relaxed"))
    )
