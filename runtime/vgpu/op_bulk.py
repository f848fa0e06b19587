"""cp.async.bulk, cp.reduce.async.bulk and their groups (PTX ISA 9.7.9.25.4, 9.7.9.27.2): one-dimensional copies.

Tensor copies, which share these instruction names, are in op_tensor.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu import op_tensor, proxy
from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.async_global import piece
from tcomp.runtime.vgpu.bulk import BulkStores, Combine, load
from tcomp.runtime.vgpu.bulk_operands import Place, Target, combiner, per_lane
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, ids, indices, some
from tcomp.runtime.vgpu.machine import Machine
from tcomp.runtime.vgpu.mbarrier import Flight, Mbarriers
from tcomp.runtime.vgpu.ptx import Addr, Imm, Instr
from tcomp.runtime.vgpu.types import scalar


@instruction("cp.async.bulk", "cp.reduce.async")
def bulk(d: Decoder, i: Instr) -> Run:
    parts = i.parts
    stores = BulkStores.of(d.m)
    if "commit_group" in parts:
        return stores.commit
    if "wait_group" in parts:
        keep = i.operands[0]
        assert isinstance(keep, Imm)
        newest, read = int(keep.value), "read" in parts
        return lambda sel: stores.wait(sel, newest, read)
    if "tensor" in parts:
        return op_tensor.tensor(d, i)
    if "prefetch" in parts:
        return prefetch(d, i)
    at = parts.index("bulk")
    to, source = parts[at + 1], parts[at + 2]
    if "cp_mask" in parts:
        raise d.unknown(i, ".cp_mask needs sm_100")
    if to == "global":
        return store(d, i, stores)
    if to not in ("shared::cluster", "shared::cta"):
        raise d.unknown(i)
    return from_global(d, i) if source == "global" else between_blocks(d, i)


def sizes(d: Decoder, i: Instr, sel: Sel, size: Any) -> tuple[Array, Array]:
    """(positions with a usable size, sizes of all the lanes)."""
    lanes = ids(sel)
    n = per_lane(size, sel)
    bad = n % 16 != 0
    if some(bad):
        d.m.finding("misaligned", i, lanes[bad], f"a bulk copy of {int(n[bad][0])} bytes: it must be a multiple of 16")
    return indices(~bad & (n > 0)), n


def prefetch(d: Decoder, i: Instr) -> Run:
    size, source = d.source(i.operands[1], "u32"), Access(d, i, i.operands[0], "global", 16, 1, False)
    m = d.m

    def run(sel: Sel) -> None:
        ok, n = sizes(d, i, sel, size)
        a = source.addresses(sel)
        for k in ok.tolist():
            piece(m, i, int(ids(sel)[k]), int(a[k]), np.array([0, n[k] - 1]))

    return run


def global_start(m: Machine, i: Instr, lane: int, address: int) -> bool:
    if address % 16:
        m.finding("misaligned", i, np.array([lane]), "the global address of a bulk copy must be a multiple of 16",
                  address)  # fmt: skip
        return False
    return True


def from_global(d: Decoder, i: Instr) -> Run:
    m = d.m
    to, source, size, mbar = i.operands[:4]
    assert isinstance(source, Addr)
    target = Target(d, i, to, mbar, i.operands[4] if "multicast::cluster" in i.parts else None)
    at_global, bytes_of = Access(d, i, source, "global", 16, 1, False), d.source(size, "u32")

    def run(sel: Sel) -> None:
        ok, n = sizes(d, i, sel, bytes_of)
        addresses = at_global.addresses(sel)
        for k, lane, targets in target.of(sel, n, ok):
            count = int(n[k])
            if not global_start(m, i, lane, int(addresses[k])):
                continue
            found = piece(m, i, lane, int(addresses[k]), np.arange(count))
            chunks = np.arange(0, count, 16)
            load(m, i, lane, found, np.arange(count if found else 0), [(start + chunks, b) for start, b in targets],
                 count)  # fmt: skip

    return run


def store(d: Decoder, i: Instr, stores: BulkStores) -> Run:
    m = d.m
    to, source, size = i.operands[:3]
    assert isinstance(to, Addr)
    place = Place(d, i, source, False)
    at_global, bytes_of = Access(d, i, to, "global", 16, 1, False), d.source(size, "u32")
    combine: Combine | None = None
    if i.parts[1] == "reduce":
        t = scalar(i.parts[-1], i.line)
        combine = combiner(d, i, next(p for p in i.parts if p in op_tensor.REDUCTIONS), t.name)

    def run(sel: Sel) -> None:
        ok, n = sizes(d, i, sel, bytes_of)
        addresses = at_global.addresses(sel)
        for k, lane, start in place.of(sel, n, ok):
            if not global_start(m, i, lane, int(addresses[k])):
                continue
            found = piece(m, i, lane, int(addresses[k]), np.arange(int(n[k])))
            if found is not None:
                stores.begin(i, lane, start + np.arange(int(n[k])), found, combine)
                m.traffic("shared async").bytes_read += int(n[k])
                m.traffic("global async").bytes_written += int(n[k])

    return run


def between_blocks(d: Decoder, i: Instr) -> Run:
    """shared::cta -> shared::cluster, plain or reducing; reports to the mbarrier of the receiving block."""
    m, b = d.m, Mbarriers.of(d.m)
    to, source, size, mbar = i.operands[:4]
    target, place, bytes_of = Target(d, i, to, mbar, None), Place(d, i, source, False), d.source(size, "u32")
    combine: Combine | None = None
    if i.parts[1] == "reduce":
        t = scalar(i.parts[-1], i.line)
        combine = combiner(d, i, next(p for p in i.parts if p in op_tensor.REDUCTIONS), t.name)

    def run(sel: Sel) -> None:
        ok, n = sizes(d, i, sel, bytes_of)
        begins = {k: start for k, _, start in place.of(sel, n, ok)}
        for k, lane, targets in target.of(sel, n, np.array(sorted(begins), np.int64)):
            count = int(n[k])
            (start, barrier), origin = targets[0], begins[k]
            if start // m.shared_stride == origin // m.shared_stride:
                m.finding("bulk copy misuse", i, np.array([lane]), "the destination must be in another block of the "
                          "cluster than the source")  # fmt: skip
            chunks = np.arange(0, count, 16)
            held = proxy.async_read(m, i, lane, origin + chunks, 16)
            landing = proxy.async_write(m, i, lane, start + chunks, 16)

            def land(
                start: int = start, origin: int = origin, count: int = count, held: proxy.InFlight = held,
                landing: proxy.InFlight = landing,
            ) -> None:  # fmt: skip
                data = m.shared.data[origin : origin + count].copy()
                if combine is not None:
                    data = combine(m.shared.data[start : start + count], data)
                m.shared.data[start : start + count] = data
                proxy.finish_read(m, held)
                proxy.finish_write(m, landing)

            if barrier >= 0:
                b.report_later(barrier, Flight(i, np.array([lane]), count, 0, land))

    return run


@instruction("createpolicy")
def create_policy(d: Decoder, i: Instr) -> Run:
    """Cache policies are hints; their value is opaque."""
    put = d.put(i.operands[0], "b64")
    return lambda sel: put(sel, np.uint64(0))


@instruction("multimem")
def multimem(d: Decoder, i: Instr) -> Run:
    raise d.unknown(i, "memory shared between several GPUs is not modelled")
