"""Runs one wave of blocks: groups of lanes with a common position step together, lowest position first.

Lowest-first makes lanes that took different ways meet again where the ways join, because compilers lay code
out in that order; correctness does not depend on it. Cohorts of blocks (starts.py) do not meet: a position of a
later cohort comes after all of an earlier one's, so it runs while those wait or rest. A group that spins on memory
(goes round a loop with an atomic or volatile load and none of its lanes leaves) rests until nobody else can run.
Lanes that wait for others (barriers, warp instructions) are set aside until those come. When nothing can run, or all
that can goes round with nothing changed in memory or registers, that is a deadlock and is reported.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from tcomp.runtime.vgpu import operations as _operations
from tcomp.runtime.vgpu.barriers import Barriers
from tcomp.runtime.vgpu.calls import Calls
from tcomp.runtime.vgpu.cluster import barrier as cluster_barrier
from tcomp.runtime.vgpu.decoder import Decoder, Run, Source
from tcomp.runtime.vgpu.flow import TRANSFERS, waits
from tcomp.runtime.vgpu.lanes import Sel, count, distinct, ids, merge, narrow, warps
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Instr, Reg, Sym
from tcomp.runtime.vgpu.types import scalar

Finish = Callable[[Sel], list[tuple[int, Sel]]]
SPIN = 8  # turns of a loop that no lane leaves, before its lanes rest
LOOKS = frozenset(8**k for k in range(1, 9))  # rounds of nothing but spinning after which the state is compared
assert _operations


@dataclass
class _Wave:
    """Lanes on their way: those that have yet to start (in which round, where), and those that can go on, by where they
    are. `rounds` counts how often all had to wait."""

    later: list[tuple[int, int, Sel]]
    ready: dict[int, Sel] = field(default_factory=dict)
    rounds: int = 0
    steps: int = 0
    """basic blocks that were run"""
    turns: dict[int, tuple[int, int]] = field(default_factory=dict)
    """of a loop, turns in a row with as many lanes, and how many lanes"""
    idle: int = 0
    """rounds of nothing but spinning in which nothing changed"""
    last: tuple[object, ...] | None = None
    """what there was to be seen after the round before"""
    retried: bool = False
    """lanes that wait have looked again since anything happened"""


class Executor:
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.barriers = Barriers(m)
        self.calls = Calls(m)
        self.parked: dict[int, Sel] = {}  # by position: basic block + cohort x span
        self.base = 0  # the position of the running cohort's first basic block
        self.looked: tuple[int, ...] = ()
        self.bodies: list[list[Run]] = []
        self.finish: list[Finish] = []
        self.lengths: list[int] = []
        self.spins: list[Instr | None] = []  # what the loop that begins here watches
        self.resting: dict[int, Sel] = {}
        d = Decoder(m)
        blocks = m.flow.blocks
        self.span = len(blocks) + 1
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
            self.spins.append(next((i for i in loop if _watches(i)), None))

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
        m, barriers = self.m, self.barriers

        def run(sel: Sel) -> list[tuple[int, Sel]]:
            m.alive[sel] = False
            m.progress += 1
            for leaving in m.on_exit:
                leaving(i, ids(sel))
            if trap:
                m.finding("trap", i, ids(sel), "the kernel trapped", stop=True)
            return barriers.after_exit(sel)

        return run

    def waiting(self, run: Run, n: int) -> Finish:
        """`run` gives the lanes that could go on (None: all of them); the rest stand here."""
        executor = weakref.proxy(self)  # (which has this closure)

        def act(sel: Sel) -> list[tuple[int, Sel]]:
            go = run(sel)
            if go is None:
                return [(n + 1, sel)]
            stay = np.setdiff1d(ids(sel), go, assume_unique=True)
            if len(stay):
                executor.parked[executor.base + n] = stay
            return [(n + 1, go)] if len(go) else []

        return act

    # --- running
    def run_wave(self, cohorts: list[tuple[int, Sel]]) -> None:
        """`cohorts`: the round in which each starts (how often all before it have waited), and its lanes."""
        wave = _Wave([(start, k * self.span, sel) for k, (start, sel) in enumerate(cohorts)])
        self.parked.clear()
        self.barriers.start()
        self.calls.start()
        self.resting.clear()
        while not self.m.stopped:
            self.start_cohorts(wave)
            if not wave.ready and self.resting and not self.resume_spinning(wave):
                return
            if not wave.ready:
                if not self.resume_parked(wave):
                    return
                continue
            n, following = self.run_ready(wave)
            self.distribute(wave, n, following)
            if wave.steps > self.m.options.max_steps:
                self.deadlock(f"still running after {wave.steps} steps: a loop that never ends", wave.ready)
                return

    def start_cohorts(self, wave: _Wave) -> None:
        """Lanes whose round has come start, where no others are ready; also where no others can go on."""
        while wave.later and not wave.ready:
            if wave.later[0][0] > wave.rounds and self.can_go_on(wave.retried, wave.idle):
                break
            _, at, sel = wave.later.pop(0)
            wave.ready[at], wave.idle, wave.last = sel, 0, None
        wave.rounds += not wave.ready

    def resume_spinning(self, wave: _Wave) -> bool:
        """Let lanes that go round in loops have another turn, and those that wait look again; False, as a deadlock,
        where that has changed nothing for long."""
        spinning = (*self.resting.items(), *self.parked.items())
        where = (self.m.progress, *((n, count(sel)) for n, sel in spinning))
        wave.idle, wave.last = (wave.idle + 1, wave.last) if where == wave.last else (0, where)
        if wave.idle and self.stuck(wave.idle):
            self.deadlock("all that can run goes round in loops, and nothing changes any more")
            return False
        if wave.idle:
            self.late()
        self.m.settle()
        wave.ready = self.resting
        for n, sel in self.parked.items():
            wave.ready[n] = merge(wave.ready[n], sel) if n in wave.ready else sel
        self.resting, self.parked = {}, {}
        wave.turns.clear()
        return True

    def resume_parked(self, wave: _Wave) -> bool:
        """Let lanes that wait look once more: those that they wait for may have left since. False at the end, or as a
        deadlock, where none goes on."""
        if self.parked and (not wave.retried or self.late()):
            self.m.settle()
            wave.ready, self.parked, wave.retried = self.parked, {}, True
            return True
        if self.parked or self.barriers.waiting():
            self.deadlock("no lane can go on")
        return False

    def run_ready(self, wave: _Wave) -> tuple[int, list[tuple[int, Sel]]]:
        """Run the lanes that are furthest behind, block after block while they stay together and nobody else waits: the
        last block's number, and where its lanes go."""
        at = min(wave.ready)
        here = wave.ready.pop(at)
        for others in (self.parked, self.resting):
            if at in others:
                here = merge(here, others.pop(at))
        n = at % self.span
        self.base = base = at - n
        m, bodies, finish, lengths = self.m, self.bodies, self.finish, self.lengths
        while True:
            m.report.instructions += count(here) * lengths[n]
            m.report.warp_instructions += warps(here) * lengths[n]
            for run in bodies[n]:
                run(here)
            before = len(self.parked)
            following = finish[n](here)
            m.now += 1
            wave.steps += 1
            if following or len(self.parked) == before:
                wave.retried = False
            if len(following) != 1 or wave.ready or self.parked or following[0][0] <= n:
                return n, following
            n, here = following[0]
            if base + n in self.resting:  # (lanes that spin there go on with these)
                here = merge(here, self.resting.pop(base + n))

    def distribute(self, wave: _Wave, n: int, following: list[tuple[int, Sel]]) -> None:
        """Put the lanes that leave block n where they go. Those that have gone round a loop without doing anything for
        many turns rest there until all others have waited."""
        for to, sel in following:
            at = self.base + to
            if to <= n and self.spins[n] is not None:
                lanes, loop = count(sel), self.base + n
                before, as_many = wave.turns.get(loop, (0, 0))
                wave.turns[loop] = (before + 1 if lanes == as_many else 0, lanes)
                if before >= SPIN and at not in wave.ready:
                    self.resting[at] = merge(self.resting[at], sel) if at in self.resting else sel
                    del wave.turns[loop]
                    continue
            wave.ready[at] = merge(wave.ready[at], sel) if at in wave.ready else sel

    def can_go_on(self, retried: bool, idle: int) -> bool:
        """May lanes that wait or spin go on, though no others start?"""
        return not idle if self.resting else bool(self.parked) and not retried

    def stuck(self, idle: int) -> bool:
        """Has a round of spinning left everything as it was? Looked at now and then, for it takes a while."""
        if idle - 1 in LOOKS:
            return self.state() == self.looked
        if idle in LOOKS:
            self.looked = self.state()
        return False

    def state(self) -> tuple[int, ...]:
        """A fingerprint of registers and memory."""
        m = self.m
        segments = [m.shared, m.local, m.args, *(s for s in m.memory.segments if not s.read_only)]
        return tuple(zlib.crc32(a.data) for a in (*m.files.values(), *(s.data for s in segments)))

    def late(self) -> bool:
        return any(part.time_out() for part in self.m.parts)

    def first_of(self, at: int) -> Instr:
        return self.m.program.code[self.m.flow.blocks[at % self.span].start]

    def deadlock(self, why: str, running: Mapping[int, Sel] = MappingProxyType({})) -> None:
        """One finding that lists each waiting, spinning or running warp with its line and what it waits for."""
        m, lines, first, where = self.m, [], None, None

        def note(i: Instr, sel: Sel, what: Callable[[int], str]) -> None:
            nonlocal first, where
            first, where = (sel, i) if first is None else (first, where)
            for w in distinct(ids(sel) >> 5)[:64]:
                lane = int(ids(sel)[ids(sel) >> 5 == w][0])
                at = f"block {int(m.block_of_lane[lane])} warp {int(m.warp[lane])} at PTX line {i.line}"
                lines.append(f"{at} {what(lane)}")

        for n, sel in sorted(self.parked.items()):
            i = self.first_of(n)
            waits = f"waits in `{i.opcode}` for the other lanes of its mask"
            note(i, sel, m.explain.get((i.line, i.opcode), lambda _, text=waits: text))  # type: ignore[misc]
        for n, sel in sorted(self.resting.items()):
            loop = next((i for i in self.spins[n % self.span :] if i is not None), self.first_of(n))
            note(loop, sel, lambda _: "spins on the memory that this line looks at")
        for n, sel in sorted(running.items()):
            note(self.first_of(n), sel, lambda _: "is running")
        for i, lanes, text in self.barriers.describe():
            first, where = (lanes, i) if first is None else (first, where)
            lines += text
        if first is not None and where is not None:
            m.finding("deadlock", where, ids(first), f"{why}\n    " + "\n    ".join(lines), stop=True)


def _watches(i: Instr) -> bool:
    parts = i.parts
    return parts[0] in ("atom", "nanosleep") or (
        parts[0] == "ld" and any(p in parts for p in ("volatile", "acquire", "relaxed", "mmio", "cv"))
    )
