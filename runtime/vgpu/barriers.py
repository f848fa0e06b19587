"""bar.sync, bar.arrive, bar.red and barrier.*: who has arrived, who may go on, and what that orders.

Blocks whose every lane arrives at once go through without bookkeeping. Otherwise lanes are noted by
(barrier, position) and released when the count is full; threads that have left no longer count. Each
release joins the clocks of the warps that took part, which is what the race check reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, ids, merge
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.ptx import Imm, Instr


class Barriers:
    def __init__(self, m: Machine) -> None:
        self.m = m
        self.start()
        self.reductions: dict[int, tuple[str, Any, Any]] = {}
        self.instr: dict[int, Instr] = {}

    def start(self) -> None:
        m = self.m
        self.at: Array = np.full(m.lanes, -1)  # the basic block where the lane waits
        self.id: Array = np.full(m.lanes, -1)  # the barrier it arrived at
        self.arrived_only: Array = np.zeros(m.lanes, bool)
        self.partial: Array = np.zeros(m.lanes, bool)  # arrived without the rest of its warp
        self.expected: dict[tuple[int, int], int] = {}
        self.reported = False

    def waiting(self) -> bool:
        return bool((self.at >= 0).any())

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
                and m.threads == m.stride and constant and not fold and not arrive_only
            )  # fmt: skip
            if whole and (threads is None or bool((threads(sel) == m.threads).all())):
                m.order.whole_blocks(sel.start // m.stride, sel.stop // m.stride, m.now)
                m.shared_floor = m.order.floor()
                m.now += 1
                return [(n + 1, sel)]
            lanes = ids(sel)
            self.id[lanes] = np.broadcast_to(number(sel), len(lanes))
            self.at[lanes] = n
            self.arrived_only[lanes] = arrive_only
            if predicate is not None:
                self.reductions[n][2][lanes] = predicate(sel)
            slots = m.slot[lanes]
            if threads is not None:
                counts = np.broadcast_to(threads(sel), len(lanes))
                for s, b, c in {
                    (int(a), int(b), int(c)) for a, b, c in zip(slots, self.id[lanes], counts, strict=True)
                }:
                    self.expected[s, b] = c
            if aligned and m.options.checks:
                here = np.bincount(lanes >> 5, minlength=m.lanes // 32)
                alive = m.alive.reshape(-1, 32).sum(axis=1)
                self.partial[lanes] = (here < alive)[lanes >> 5]
            out = self.release(np.unique(slots))
            if arrive_only:
                out.append((n + 1, sel))
            return out

        return run

    def after_exit(self, sel: Sel) -> list[tuple[int, Sel]]:
        return self.release(np.unique(self.m.slot[sel])) if self.waiting() else []

    def release(self, slots: Array, force: bool = False) -> list[tuple[int, Sel]]:
        m = self.m
        out: dict[int, Sel] = {}
        for slot in slots.tolist():
            span = slice(slot * m.stride, (slot + 1) * m.stride)
            for number in np.unique(self.id[span][self.id[span] >= 0]).tolist():
                inside = np.flatnonzero(self.id[span] == number) + span.start
                expected = self.expected.get((slot, number))
                need = expected if expected is not None else int(m.alive[span].sum())
                if len(inside) < need and not force:
                    continue
                self.pass_through(slot, inside, out)
                self.expected.pop((slot, number), None)
        return list(out.items())

    def pass_through(self, slot: int, lanes: Array, out: dict[int, Sel]) -> None:
        m = self.m
        waiting = lanes[~self.arrived_only[lanes]]
        self.check_divergence(waiting)
        m.order.join(slot // m.order.ranks, np.unique(m.place[lanes]), np.unique(m.place[waiting]), m.now)
        m.shared_floor = m.order.floor()
        m.now += 1
        for n in np.unique(self.at[waiting]).tolist():
            group = waiting[self.at[waiting] == n]
            if n in self.reductions:
                fold, put, values = self.reductions[n]
                v = values[lanes]
                put(group, np.uint32(v.sum()) if fold == "popc" else bool(v.all() if fold == "and" else v.any()))
            sel = compact(group)
            out[n + 1] = merge(out[n + 1], sel) if n + 1 in out else sel
        self.id[lanes] = -1
        self.at[lanes] = -1
        self.arrived_only[lanes] = False

    def check_divergence(self, lanes: Array) -> None:
        """Lanes of one warp that came to an aligned barrier by different ways, or without the others."""
        m = self.m
        suspect = lanes[self.partial[lanes]]
        if not len(suspect) or not m.options.checks:
            return
        for w in np.unique(suspect >> 5).tolist():
            of_warp = np.arange(w * 32, w * 32 + 32)
            inside = lanes[lanes >> 5 == w]
            places = np.unique(self.at[inside])
            absent = m.valid[of_warp].sum() - len(inside)
            if len(places) > 1 or absent:
                i = self.instr[int(self.at[suspect[suspect >> 5 == w][0]])]
                m.finding("divergent barrier", i, suspect[suspect >> 5 == w],
                          "only some lanes of the warp came to this aligned barrier")  # fmt: skip
        self.partial[lanes] = False

    def describe(self) -> list[tuple[Instr, Array, list[str]]]:
        m, out = self.m, []
        for n in np.unique(self.at[self.at >= 0]).tolist():
            i, lanes = self.instr[n], np.flatnonzero(self.at == n)
            text = []
            for w in np.unique(lanes >> 5).tolist()[:64]:
                slot, number = int(m.slot[w * 32]), int(self.id[lanes[lanes >> 5 == w][0]])
                have = int((self.id[slot * m.stride : (slot + 1) * m.stride] == number).sum())
                need = self.expected.get((slot, number)) or int(m.alive[slot * m.stride : (slot + 1) * m.stride].sum())
                text.append(f"block {int(m.block_of_lane[w * 32])} warp {int(m.warp[w * 32])} at PTX line {i.line} "
                            f"waits at barrier {number}: {have} of {need} threads have arrived")  # fmt: skip
            out.append((i, lanes, text))
        return out
