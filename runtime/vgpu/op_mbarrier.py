"""The mbarrier instructions (PTX ISA 9.7.13.15): init, inval, expect_tx, complete_tx, arrive, waits, pending_count."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, every, ids, one_each, some
from tcomp.runtime.vgpu.mbarrier import KIND, Flight, Mbarriers, phase_of
from tcomp.runtime.vgpu.op_async import arrive_on_copies
from tcomp.runtime.vgpu.ptx import Instr, Operand


def object_access(d: Decoder, i: Instr, o: Operand) -> Access:
    space = "shared" if any(p.startswith("shared") for p in i.parts) else "generic"
    return Access(d, i, o, space, 8, 1, True)


def located(access: Access, sel: Sel, what: str = "atomic") -> tuple[Array, Array]:
    """(positions in sel, byte in the shared segment) of the mbarriers that these lanes name."""
    m = access.m
    access.current = sel
    lanes = ids(sel)
    where, starts = [], []
    for p in access.parts(sel):
        at = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
        if p.segment is not m.shared:
            m.finding(KIND, access.i, lanes[at], f"an mbarrier in {p.segment.space} memory: it must be in shared")
            continue
        access.race(p, what, lanes[at])
        where.append(at)
        starts.append(p.start)
    if not where:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(where), np.concatenate(starts)


def live(b: Mbarriers, access: Access, sel: Sel) -> tuple[Array, Array]:
    """(positions in sel, mbarrier numbers)."""
    at, starts = located(access, sel)
    lanes = ids(sel)
    if not len(at):
        return at, at
    ok, objects = b.find(access.i, lanes[at], starts)
    return at[ok], objects.astype(np.int64)


def values(source: Source | None, sel: Sel, at: Array) -> Array:
    """A count operand of lanes `at`; 1 where the instruction has none."""
    if source is None:
        return np.ones(len(at), np.int64)
    found: Array = one_each(source(sel), len(ids(sel)))[at].astype(np.int64)
    return found


@instruction("mbarrier")
def mbarrier(d: Decoder, i: Instr) -> Run:
    act = i.parts[1]
    if act == "pending_count":
        return pending_count(d, i)
    b = Mbarriers.of(d.m)
    if act in ("init", "inval", "expect_tx", "complete_tx"):
        access = object_access(d, i, i.operands[0])
        amount = d.source(i.operands[1], "u32") if len(i.operands) > 1 else None
        return lifecycle(b, i, act, access, amount)
    if act in ("arrive", "arrive_drop"):
        return arrive(d, b, i)
    if act in ("test_wait", "try_wait"):
        return wait(d, b, i)
    raise d.unknown(i)


def lifecycle(b: Mbarriers, i: Instr, act: str, access: Access, amount: Source | None) -> Run:
    def run(sel: Sel) -> None:
        if act == "init":
            at, starts = located(access, sel, "write")
            if len(at):
                b.init(i, ids(sel)[at], starts, values(amount, sel, at))
            return
        if act == "inval":
            at, starts = located(access, sel, "inval")
            if not len(at):
                return
            ok, objects = b.find(i, ids(sel)[at], starts)
            b.invalidate(i, ids(sel)[at[ok]], objects)
            return
        at, objects = live(b, access, sel)
        if len(at):
            apply = b.expect if act == "expect_tx" else b.complete_tx
            apply(i, ids(sel)[at], objects, values(amount, sel, at))

    return run


def arrive(d: Decoder, b: Mbarriers, i: Instr) -> Run:
    """arrive{.expect_tx}{.noComplete} state, [addr]{, count or bytes}; `_` or no state for remote ones."""
    m, operands = d.m, list(i.operands)
    put = d.put(operands.pop(0), "b64")
    access = object_access(d, i, operands[0])
    amount = d.source(operands[1], "u32") if len(operands) > 1 else None
    expects, drop, quiet = "expect_tx" in i.parts, i.parts[1] == "arrive_drop", "noComplete" in i.parts
    relaxed = "relaxed" in i.parts

    def run(sel: Sel) -> None:
        put(sel, np.uint64(0))
        at, objects = live(b, access, sel)
        if not len(at):
            return
        lanes = ids(sel)[at]
        counts = values(None if expects else amount, sel, at)
        if expects:
            b.expect(i, lanes, objects, values(amount, sel, at))
        states = b.arrive(i, lanes, objects, counts, relaxed, drop, not quiet)
        put(lanes, states)

    assert m is b.m
    return run


def wait(d: Decoder, b: Mbarriers, i: Instr) -> Run:
    """{test|try}_wait{.parity} p, [addr], state or parity{, time}. Gives the lanes that go on."""
    m = d.m
    put, access = d.put(i.operands[0], "pred"), object_access(d, i, i.operands[1])
    by_parity = "parity" in i.parts
    which = d.source(i.operands[2], "u32" if by_parity else "u64")
    relaxed = "relaxed" in i.parts
    m.explain[i.line, i.opcode] = b.describe

    def run(sel: Sel) -> Any:
        lanes = ids(sel)
        at, objects = live(b, access, sel)
        put(sel, True)
        if not len(at):
            return None
        given = one_each(which(sel), len(lanes))[at]
        parity = given.astype(np.int64) if by_parity else of_state(lanes[at], objects, given)
        if by_parity and some(parity > 1):
            m.finding(KIND, i, lanes[at][parity > 1], f"a parity of {int(parity.max())}: it must be 0 or 1")
            parity = parity & 1
        go, done = b.wait(i, lanes[at], objects, parity, relaxed)
        put(lanes[at[go]], done)
        if len(go) == len(at):
            return None
        stays = np.ones(len(at), bool)
        stays[go] = False
        return np.delete(lanes, at[stays])

    def of_state(who: Array, objects: Array, states: Array) -> Array:
        phase, _, real = phase_of(states)
        old = b.phase[objects] - phase
        bad = ~real | (old < 0) | (old > 1)
        if some(bad):
            m.finding(KIND, i, who[bad], "the state is not that of an arrival in this phase or the one before")
        return np.where(bad, (b.phase[objects] & 1) ^ 1, phase & 1)

    return run


def pending_count(d: Decoder, i: Instr) -> Run:
    m, put, state = d.m, d.put(i.operands[0], "u32"), d.source(i.operands[1], "u64")

    def run(sel: Sel) -> None:
        _, pending, real = phase_of(np.atleast_1d(state(sel)))
        if not every(real):
            m.finding(KIND, i, ids(sel)[~np.broadcast_to(real, len(ids(sel)))],
                      "the state is not what mbarrier.arrive.noComplete gave")  # fmt: skip
        put(sel, pending.astype(np.uint32))

    return run


@instruction("cp.async.mbarrier")
def copies_arrive(d: Decoder, i: Instr) -> Run:
    """cp.async.mbarrier.arrive{.noinc}: arrives once the lane's cp.async so far have landed."""
    b, m = Mbarriers.of(d.m), d.m
    access = object_access(d, i, i.operands[0])
    counted = "noinc" not in i.parts

    def run(sel: Sel) -> None:
        at, objects = live(b, access, sel)
        lanes = ids(sel)[at]
        for n in distinct(objects).tolist():
            who = lanes[objects == n]
            if counted:
                b.pending[n] += len(who)
            b.report_later(n, Flight(i, who, 0, len(who), arrive_on_copies(m, who)))

    return run
