"""bar.sync, bar.arrive, bar.red and barrier.*: who has arrived, who may go on, and what that orders.

Blocks whose every lane arrives at once go through without bookkeeping. Otherwise each barrier of each block has
a round: the arrivals since it last completed, and what their warps had done when they came. A thread waits at one
barrier at most, but may have arrived (bar.arrive) at several. Threads that have left no longer count where the
barrier is for the whole block. What a round has collected goes to those who waited; the race check reads it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder
from tcomp.runtime.vgpu.lanes import Array, Sel, changes, compact, distinct, every, ids, indices, merge, one_each, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Imm, Instr

KIND = "barrier misuse"
COUNT = 16  # barriers of a block


@dataclass
class Round:
    """The arrivals at one barrier since it last completed."""

    expected: int | None  # threads; None: all of the block
    lanes: Array  # that have arrived
    rows: Array  # (2, order.width): what their warps knew then


class Barriers:
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.start()
        self.reductions: dict[int, tuple[str, Any, Any]] = {}
        self.instr: dict[int, Instr] = {}

    def start(self) -> None:
        m = self.m
        self.at: Array = np.full(m.lanes, -1)  # the basic block where the lane waits
        self.id: Array = np.full(m.lanes, -1)  # the barrier it waits at
        self.partial: Array = np.zeros(m.lanes, bool)  # arrived without the rest of its warp
        self.rounds: dict[tuple[int, int], Round] = {}  # (slot, barrier)
        self.ended: dict[tuple[int, int], tuple[Array, Array]] = {}  # of the last round: whose arrivals, and when

    def waiting(self) -> bool:
        return some(self.at >= 0)

    def decode(self, d: Decoder, i: Instr, n: int) -> Any:
        m, parts = self.m, i.parts
        d.line, d.instr = i.line, i
        operands = list(i.operands)
        self.instr[n] = i
        put, predicate, fold = None, None, ""
        if "red" in parts:
            fold = next(p for p in parts if p in ("popc", "and", "or"))
            put = d.put(operands.pop(0), "u32" if fold == "popc" else "pred")
            predicate = d.source(operands.pop(), "pred")
            self.reductions[n] = (fold, put, np.zeros(m.lanes, bool))
        elif not ("sync" in parts or "arrive" in parts):
            raise d.unknown(i)
        constant = isinstance(operands[0], Imm)
        number = d.source(operands[0], "u32")
        threads = d.source(operands[1], "u32") if len(operands) > 1 else None
        arrive_only = "arrive" in parts
        aligned = parts[0] == "bar" or "aligned" in parts

        def run(sel: Sel) -> list[tuple[int, Sel]]:
            whole = (
                sel.__class__ is slice and not sel.start % m.stride and not sel.stop % m.stride
                and m.threads == m.stride and constant and not fold and not arrive_only and not self.rounds
            )  # fmt: skip
            if whole and (threads is None or every(threads(sel) == m.threads)):
                m.order.whole_blocks(sel.start // m.stride, sel.stop // m.stride, m.now)
                m.shared_floor = m.order.floor()
                m.now += 1
                return [(n + 1, sel)]
            lanes = ids(sel)
            numbers = one_each(number(sel), len(lanes)).astype(np.int64)
            counts = None if threads is None else one_each(threads(sel), len(lanes)).astype(np.int64)
            self.check_operands(i, lanes, numbers, counts)
            numbers = numbers % COUNT
            if predicate is not None:
                self.reductions[n][2][lanes] = predicate(sel)
            if aligned and m.options.checks:
                here = np.bincount(lanes >> 5, minlength=m.lanes // 32)
                alive = m.alive.reshape(-1, 32).sum(axis=1)
                self.partial[lanes] = (here < alive)[lanes >> 5]
            if not arrive_only:
                self.id[lanes] = numbers
                self.at[lanes] = n
            slots = m.slot[lanes]
            self.arrive(i, lanes, slots, numbers, counts)
            out = self.release(distinct(slots))
            if arrive_only:
                out.append((n + 1, sel))
            return out

        return run

    def check_operands(self, i: Instr, lanes: Array, numbers: Array, counts: Array | None) -> None:
        bad = (numbers < 0) | (numbers >= COUNT)
        if some(bad):
            self.m.finding(
                KIND, i, lanes[bad], f"barrier {int(numbers[bad][0])}: a block has barriers 0 to {COUNT - 1}"
            )
        if counts is None:
            return
        bad = (counts % 32 != 0) | (counts <= 0)
        if some(bad):
            self.m.finding(KIND, i, lanes[bad], f"{int(counts[bad][0])} threads: it must be a multiple of 32")

    def arrive(self, i: Instr, lanes: Array, slots: Array, numbers: Array, counts: Array | None) -> None:
        m = self.m
        begins = beginnings(lanes >> 5)  # of warps, whose lanes stand together
        warps = lanes[begins] >> 5
        rows = m.order.rows(m.team[warps << 5], m.place[warps << 5], m.now)
        for mine, own in arrivals(slots, numbers, begins):
            new = lanes[mine]
            slot, number = int(slots[mine][0]), int(numbers[mine][0])
            known = rows[:, own].max(axis=1)
            if m.options.checks and (slot, number) in self.ended:
                self.check_ended(i, new, slot, number, warps[own], rows[0, own])
            expected = None if counts is None else int(counts[mine][0])
            old = self.rounds.get((slot, number))
            if old is None:
                self.rounds[slot, number] = Round(expected, new, known)
                continue
            if (expected or m.threads) != (old.expected or m.threads):
                m.finding(KIND, i, new, f"barrier {number} is for {expected or m.threads} threads here, and for "
                          f"{old.expected or m.threads} where others have arrived")  # fmt: skip
            again = np.isin(new, old.lanes)
            if some(again):
                m.finding(KIND, i, new[again], f"arrives at barrier {number} again before it has completed")
            old.lanes = np.concatenate([old.lanes, new])
            old.rows = np.maximum(old.rows, known)
            old.expected = old.expected if expected is not None else None

    def check_ended(self, i: Instr, lanes: Array, slot: int, number: int, warps: Array, known: Array) -> None:
        """Warps begin or join a round, which must surely not be the one before: they know of all its arrivals."""
        places, times = self.ended[slot, number]
        early = warps[(known[:, places] < times).any(axis=1)]
        if len(early):
            text = f"arrives at barrier {number}, which others use: nothing makes sure that they are through"
            self.m.finding(KIND, i, lanes[np.isin(lanes >> 5, early)], text)

    def after_exit(self, sel: Sel) -> list[tuple[int, Sel]]:
        return self.release(distinct(self.m.slot[sel])) if self.waiting() else []

    def lacking(self, slot: int, r: Round) -> int:
        """Arrivals that the round still needs."""
        m = self.m
        if r.expected is not None:
            return r.expected - len(r.lanes)
        span = slice(slot * m.stride, (slot + 1) * m.stride)
        coming = m.alive[span].copy()
        coming[r.lanes - span.start] = False
        return int(coming.sum())

    def release(self, slots: Array) -> list[tuple[int, Sel]]:
        out: dict[int, Sel] = {}
        here = set(slots.tolist())
        for (slot, number), r in list(self.rounds.items()):
            if slot in here and self.lacking(slot, r) <= 0:
                del self.rounds[slot, number]
                places = self.m.place[distinct(r.lanes >> 5) << 5]
                self.ended[slot, number] = places, r.rows[0][places].copy()
                self.pass_through(slot, number, r, out)
        if out:
            self.m.shared_floor = self.m.order.floor()
        return list(out.items())

    def pass_through(self, slot: int, number: int, r: Round, out: dict[int, Sel]) -> None:
        m = self.m
        span = slice(slot * m.stride, (slot + 1) * m.stride)
        waiting = indices(self.id[span] == number) + span.start
        if not len(waiting):
            return
        self.check_divergence(waiting)
        first = distinct(waiting >> 5) << 5
        m.order.acquire(m.team[first], m.place[first], r.rows[:, None])
        m.now += 1
        at = self.at[waiting]
        for n in {int(at[0])} if every(at == at[0]) else distinct(at).tolist():
            group = waiting[at == n]
            if n in self.reductions:
                fold, put, values = self.reductions[n]
                v = values[waiting]
                put(group, np.uint32(v.sum()) if fold == "popc" else bool(every(v) if fold == "and" else some(v)))
            sel = compact(group)
            out[n + 1] = merge(out[n + 1], sel) if n + 1 in out else sel
        self.id[waiting] = -1
        self.at[waiting] = -1

    def check_divergence(self, lanes: Array) -> None:
        """Lanes of one warp that came to an aligned barrier by different ways, or without the others."""
        m = self.m
        suspect = lanes[self.partial[lanes]]
        if not len(suspect) or not m.options.checks:
            return
        for w in distinct(suspect >> 5).tolist():
            of_warp = np.arange(w * 32, w * 32 + 32)
            inside = lanes[lanes >> 5 == w]
            places = distinct(self.at[inside])
            absent = m.valid[of_warp].sum() - len(inside)
            if len(places) > 1 or absent:
                i = self.instr[int(self.at[suspect[suspect >> 5 == w][0]])]
                m.finding("divergent barrier", i, suspect[suspect >> 5 == w],
                          "only some lanes of the warp came to this aligned barrier")  # fmt: skip
        self.partial[lanes] = False

    def describe(self) -> list[tuple[Instr, Array, list[str]]]:
        m, out = self.m, []
        for n in distinct(self.at[self.at >= 0]).tolist():
            i, lanes = self.instr[n], indices(self.at == n)
            text = []
            for w in distinct(lanes >> 5).tolist()[:64]:
                slot, number = int(m.slot[w * 32]), int(self.id[lanes[lanes >> 5 == w][0]])
                r = self.rounds[slot, number]
                have = len(r.lanes)
                need = have + self.lacking(slot, r)
                text.append(f"block {int(m.block_of_lane[w * 32])} warp {int(m.warp[w * 32])} at PTX line {i.line} "
                            f"waits at barrier {number}: {have} of {need} threads have arrived")  # fmt: skip
            out.append((i, lanes, text))
        return out


def beginnings(values: Array) -> Array:
    """Where in an array that is not empty a value stands behind another one."""
    return indices(changes(values))


def arrivals(slots: Array, numbers: Array, begins: Array) -> Iterator[tuple[Any, Any]]:
    """For each barrier of a block that lanes come to: which of them, and which of their warps (that begin at
    `begins`)."""
    if every(numbers == numbers[0]):  # lanes are in the order of their blocks
        starts = beginnings(slots)
        ends, warps = np.append(starts[1:], len(slots)).tolist(), np.searchsorted(begins, starts).tolist()
        for start, end, own, others in zip(starts.tolist(), ends, warps, [*warps[1:], len(begins)], strict=True):
            yield slice(start, end), slice(own, others)
        return
    keys = slots * COUNT + numbers
    of_warp = np.repeat(np.arange(len(begins)), np.diff(np.append(begins, len(slots))))
    for key in distinct(keys).tolist():
        mine = keys == key
        yield mine, distinct(of_warp[mine])
