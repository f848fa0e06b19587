"""Synchronisation through words of shared memory: strong accesses and atomics that carry an order between warps.

A warp that writes a word strongly publishes there what it has released (all of it with release semantics, what
came before its last fence otherwise); a warp that reads the word strongly learns it (at once with acquire
semantics, at its next fence otherwise). PTX ISA chapter 8: causality order through morally strong accesses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tcomp.runtime.vgpu.lanes import Array
from tcomp.runtime.vgpu.ptx import Instr

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.machine import Machine

STRONG = {"volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"}


def synchronises(i: Instr) -> bool:
    """May `i` be such an access to shared memory?"""
    parts = set(i.parts)
    return not parts & {"global", "local"} and (i.parts[0] in ("atom", "red") or bool(parts & STRONG))


def meet(m: Machine, i: Instr, start: Array, lanes: Array) -> None:
    """The strong access `i` by `lanes` to the words at `start` of the shared segment."""
    order, parts = m.order, i.parts
    reads, writes = parts[0] != "st", parts[0] != "ld"
    acquires, releases = bool({"acquire", "acq_rel"} & set(parts)), bool({"release", "acq_rel"} & set(parts))
    publishes = writes and (releases or order.released is not None)
    if not publishes and not order.flags:
        return
    # in lane order, as atomics are applied: a later warp of this very step learns what an earlier one published
    meeting: dict[tuple[int, int], list[int]] = {}
    for lane, word in zip(lanes.tolist(), start.tolist(), strict=True):
        meeting.setdefault((lane >> 5, word), []).append(lane)
    for (warp, word), those in meeting.items():
        first, by = np.array([warp * 32]), (np.zeros(len(those), np.int64), np.array(those))
        team, place = m.team[first], m.place[first]
        known = order.flags.get(word)
        mine = order.rows(team, place, m.now, not releases, by) if publishes else None
        if reads and known is not None:
            order.acquire(team, place, known, relaxed=not acquires)
        if mine is not None:
            order.flags[word] = mine if known is None else np.maximum(mine, known)
