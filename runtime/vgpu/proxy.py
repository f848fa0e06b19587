"""The asynchronous proxy: TMA, bulk copies and wgmma at shared memory (PTX ISA 9.7.13.4, 9.7.9.25.2).

What such an operation reads must have been made visible to its proxy: whoever wrote it with ordinary stores
executes `fence.proxy.async` and only then synchronises with the issuer (or the issuer fences after it has
synchronised). An operation is in flight from its issue until its completion is waited for: in between, writes to
its source and any access to its destination are findings.

    held = async_read(m, i, lanes, starts, size)      # at issue; later `finish_read(m, held)` at the wait
    landing = async_write(m, i, lanes, starts, size)  # at issue; later `finish_write(m, landing)` at the wait
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tcomp.runtime.vgpu.lanes import Array, Sel, distinct, ids, indices, some
from tcomp.runtime.vgpu.ptx import Instr

if TYPE_CHECKING:
    from tcomp.runtime.vgpu.machine import Machine


@dataclass
class InFlight:
    """Bytes of the shared segment that an operation in flight reads or writes, as 4-byte words."""

    instr: Instr
    words: Array  # indices of 4-byte words in the shared segment of the wave
    lanes: Array  # the issuing lane of each word
    writes: bool


def shared_start(m: Machine, lanes: Array, offset: Any) -> Array:
    """Places in `m.shared` of `offset` bytes into the shared memory of each lane's block."""
    found: Array = m.shared_base[lanes] + np.asarray(offset, np.int64)
    return found


def async_read(m: Machine, i: Instr, lanes: Any, starts: Array, size: int) -> InFlight:
    """An operation issued by `i` begins to read `size` bytes (a multiple of 4) at each of `starts`.

    `starts`: byte places in `m.shared`, multiples of 4 (see `shared_start`), each piece once. `lanes`: the issuing
    lane, one for all pieces or one for each. Reports a missing proxy fence, bytes that another copy has yet to
    write, uninitialised bytes and races. Nothing is read here: the caller does,
    when it likes. The result goes to `finish_read` when the completion of the operation has been waited for."""
    words, by = _words(lanes, starts, size)
    if m.options.checks and len(words):
        _check_landing(m, i, words, by, "reads")
        bad = m.shared.init.view(np.uint32)[words] != 0x01010101
        if some(bad):
            _report(m, "uninitialised read of shared memory", i, words, by, bad, "nothing was written there before")
        _check_fence(m, i, words, by, "reads")
        _race(m, i, words, by, "read")  # who has read is noted when the reads are over
    flight = InFlight(i, words, by, False)
    m.shared.watched().begin(words, writes=False)
    return flight


def async_write(m: Machine, i: Instr, lanes: Any, starts: Array, size: int) -> InFlight:
    """Like `async_read` for an operation that will write these bytes: they may not be touched before its end."""
    words, by = _words(lanes, starts, size)
    if m.options.checks and len(words):
        _check_landing(m, i, words, by, "writes")
        _check_leaving(m, i, words, by)
        _check_fence(m, i, words, by, "writes")
        _race(m, i, words, by, "write")
        for k in _granules(m, words):
            m.shared.shadow().asynchronous()[k] = m.now
    flight = InFlight(i, words, by, True)
    m.shared.watched().begin(words, writes=True)
    return flight


def finish_read(m: Machine, flight: InFlight) -> None:
    """The reads are over: whoever writes there must be ordered after this moment."""
    m.shared.watched().end(flight.words, writes=False)
    if not m.options.checks or not len(flight.words):
        return
    order = m.order
    reader = m.warp_of_lane[flight.lanes] if order.alive is None else order.lane_reader(flight.lanes).astype(np.int32)
    if flight.instr.opcode.startswith("wgmma"):  # one operation of a warpgroup: any warp's wait tells of all of it
        reader = order.group_reader(m.slot[flight.lanes], m.warp[flight.lanes]).astype(np.int32)
        for r in distinct(reader).tolist():
            order.group_has_read(r, m.now)
    for k in _granules(m, flight.words):
        m.shared.shadow().note_read(k, reader, m.now, m.shared_floor)


def finish_write(m: Machine, flight: InFlight) -> None:
    """The bytes have arrived (the caller has put them in `m.shared.data`): readers must be ordered after this."""
    m.shared.watched().end(flight.words, writes=True)
    m.shared.init.view(np.uint32)[flight.words] = 0x01010101
    if m.options.checks and len(flight.words):
        shadow = m.shared.shadow()
        times = shadow.asynchronous()
        for k in _granules(m, flight.words):
            shadow.write_time[k] = m.now
            shadow.write_actor[k] = m.lane_actor[flight.lanes]
            times[k] = m.now
        shadow.latest_write = m.now


def fence(m: Machine, sel: Sel, shared: bool, everywhere: bool) -> None:
    """fence.proxy.async by these lanes: what their warps know of shared memory is visible to the async proxy."""
    lanes = ids(sel)
    if shared:
        m.order.fence_proxy(m, lanes)
    if everywhere:
        for b in distinct(m.block_of_lane[lanes]).tolist():
            m.proxy_fences[b] = m.now
    m.now += 1  # accesses that follow in the same run of instructions are later


# --- checks
def _words(lanes: Any, starts: Array, size: int) -> tuple[Array, Array]:
    starts = np.asarray(starts, np.int64).reshape(-1)
    words = ((starts >> 2)[:, None] + np.arange(size // 4)).reshape(-1)
    by = np.empty((len(starts), size // 4), np.int64)
    by[:] = np.asarray(lanes).reshape(-1, 1)
    return words, by.reshape(-1)


def _granules(m: Machine, words: Array) -> list[Array]:
    """The race shadow's granules of these words (several a word where narrower accesses refined it)."""
    n = 4 // m.shared.shadow().granule
    return [words * n + k for k in range(n)]


def _report(m: Machine, kind: str, i: Instr, words: Array, by: Array, bad: Array, text: str) -> None:
    first = int(words[bad][0]) * 4
    m.finding(kind, i, distinct(by[bad]), text, first % m.shared_stride if m.shared_stride else first)


def _check_landing(m: Machine, i: Instr, words: Array, by: Array, verb: str) -> None:
    watch = m.shared.watched()
    if watch.landing is not None and watch.landing_count:
        bad = watch.landing[words] > 0
        if some(bad):
            kind = "read before completion" if verb == "reads" else "write before completion"
            _report(m, kind, i, words, by, bad, f"{verb} what an asynchronous copy has yet to write")


def _check_leaving(m: Machine, i: Instr, words: Array, by: Array) -> None:
    watch = m.shared.watched()
    if watch.leaving is not None and watch.leaving_count:
        bad = watch.leaving[words] > 0
        if some(bad):
            _report(m, "write before completion", i, words, by, bad,
                    "writes what an asynchronous operation in flight is still reading")  # fmt: skip


def _check_fence(m: Machine, i: Instr, words: Array, by: Array, verb: str) -> None:
    shadow = m.shared.shadow()
    times = shadow.asynchronous()
    for k in _granules(m, words):
        when = shadow.write_time[k]
        generic = (when > 0) & (when != times[k])
        if not some(generic):
            continue
        at = indices(generic)
        bad = at[~m.order.fenced_for(m, shadow.write_actor[k[at]], when[at], by[at])]
        if len(bad):
            wrong = np.zeros(len(words), bool)
            wrong[bad] = True
            _report(m, "missing proxy fence", i, words, by, wrong,
                    f"{verb} through the async proxy what ordinary stores wrote, with no fence.proxy.async by the "
                    "writer before it synchronised with this thread")  # fmt: skip
            return


def _race(m: Machine, i: Instr, words: Array, by: Array, what: str) -> None:
    shadow = m.shared.shadow()
    order = m.shared_order(by)
    for k in _granules(m, words):
        if what == "read":
            bad = shadow.unordered_writes(k, m.lane_actor[by], m.shared_floor, order)
        else:
            bad = shadow.write(k, m.lane_actor[by], m.warp_of_lane[by], m.now, m.shared_floor, order)
        if bad is not None:
            wrong = np.zeros(len(words), bool)
            wrong[bad] = True
            _report(m, "shared memory race", i, words, by, wrong,
                    f"this asynchronous {what} meets an earlier access by other threads without a barrier between "
                    "them")  # fmt: skip
            return
