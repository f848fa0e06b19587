"""st.async and red.async (PTX ISA 9.7.9.12, 9.7.13.7): stores and reductions that report to an mbarrier when done."""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu import proxy
from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.bulk_operands import combiner
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, ids, one_each, some
from tcomp.runtime.vgpu.mbarrier import KIND, Flight, Mbarriers
from tcomp.runtime.vgpu.op_mbarrier import live
from tcomp.runtime.vgpu.op_tensor import REDUCTIONS
from tcomp.runtime.vgpu.ptx import Instr, Vec
from tcomp.runtime.vgpu.types import scalar


@instruction("st.async", "red.async")
def asynchronous(d: Decoder, i: Instr) -> Run:
    """{st|red}.async [a], b, [mbar]: the bytes arrive when the mbarrier's phase completes."""
    m, b = d.m, Mbarriers.of(d.m)
    if len(i.operands) != 3:
        raise d.unknown(i, "the forms without an mbarrier need sm_100")
    t = scalar(i.parts[-1], i.line)
    to, value, mbar = i.operands
    items = value.items if isinstance(value, Vec) else (value,)
    sources = [d.source(o, t) for o in items]
    space = "shared" if "shared::cluster" in i.parts else "generic"
    size = t.size * len(items)
    place, barrier = Access(d, i, to, space, size, 1, True), Access(d, i, mbar, space, 8, 1, True)
    combine = None
    if i.parts[0] == "red":
        combine = combiner(d, i, next(p for p in i.parts if p in REDUCTIONS), t.name)

    def run(sel: Sel) -> None:
        lanes = ids(sel)
        values = np.stack([one_each(s(sel), len(lanes)) for s in sources], axis=1)
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(len(lanes), size)
        at, objects = live(b, barrier, sel)
        of = dict(zip(at.tolist(), objects.tolist(), strict=True))
        place.current = sel
        for p in place.parts(sel):
            where = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
            if p.segment is not m.shared:
                m.finding("out of bounds shared", i, lanes[where], "the destination is not in shared memory")
                continue
            known = np.array([k in of for k in where.tolist()], bool)
            targets = np.array([of.get(k, 0) for k in where.tolist()], np.int64)
            apart = known & (p.start // m.shared_stride != b.place[targets] // m.shared_stride)
            if some(apart):
                m.finding(KIND, i, lanes[where[apart]], "the mbarrier is in another block than the destination")
            for k, start in zip(where[known].tolist(), p.start[known].tolist(), strict=True):
                begin(int(lanes[k]), start, raw[k], of[k])

    def begin(lane: int, start: int, data: Array, n: int) -> None:
        if combine is None:
            landing = proxy.async_write(m, i, lane, np.array([start]), size)

        def land() -> None:
            span = slice(start, start + size)
            m.shared.data[span] = data if combine is None else combine(m.shared.data[span], data)
            if combine is None:
                proxy.finish_write(m, landing)

        b.report_later(n, Flight(i, np.array([lane]), size, 0, land))

    return run
