"""membar and fence (PTX ISA 9.7.13.4): memory fences and proxy fences. That after mbarrier.init is taken for any other:
copies that report to an mbarrier access it by the generic proxy (9.7.9.25.4.1)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu import proxy
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.flags import synchronises
from tcomp.runtime.vgpu.lanes import Sel, distinct, ids
from tcomp.runtime.vgpu.ptx import Instr

_WIDE = ("gl", "sys", "gpu", "cluster")


def note_fence(m: Any, sel: Sel) -> None:
    """These blocks' accesses to global memory so far are released."""
    for b in distinct(m.block_of_lane[sel]).tolist():
        m.fences.setdefault(b, []).append(m.now)


@instruction("membar", "fence")
def fence(d: Decoder, i: Instr) -> Run:
    m, parts = d.m, i.parts
    if "proxy" in parts:
        return proxy_fence(d, i)
    wide = any(p in _WIDE for p in parts)

    def run(sel: Sel) -> None:
        if wide:
            note_fence(m, sel)
        lanes = ids(sel)
        warps, warp = np.unique(lanes >> 5, return_inverse=True)
        first = warps << 5
        m.order.fence(m.team[first], m.place[first], m.now, (warp, lanes))

    code = m.program.code
    relaxed = any(c.opcode.startswith(("mbarrier", "barrier.cluster")) and "relaxed" in c.parts for c in code)
    if relaxed or any(c.parts[0] in ("ld", "st", "atom", "red") and synchronises(c) for c in code):
        return run  # relaxed arrivals, waits and flags lean on fences
    return (lambda sel: note_fence(m, sel)) if wide else (lambda sel: None)


def proxy_fence(d: Decoder, i: Instr) -> Run:
    """fence.proxy.async{.global|.shared::*}; the alias and tensormap proxies need nothing here, where caches are
    not modelled."""
    m = d.m
    kind = i.parts[i.parts.index("proxy") + 1]
    if kind == "alias" or kind.startswith("tensormap"):
        return lambda sel: None
    if kind not in ("async", "async::generic"):
        raise d.unknown(i)
    if kind == "async::generic" and "acquire" in i.parts:
        return lambda sel: None
    spaces = [p for p in i.parts if p.startswith("shared") or p == "global"]
    shared, everywhere = not spaces or "global" not in spaces, not spaces or "global" in spaces
    m.order.track_proxy(m.lanes)
    return lambda sel: proxy.fence(m, sel, shared, everywhere)
