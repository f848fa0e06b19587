"""Tensor maps made in a kernel (PTX ISA 9.7.9.28, 9.7.13.16): tensormap.replace and tensormap.cp_fenceproxy.

A map begins as zeros or as a copy of another; each replace changes one field of the layout of tensor_map.py.
Whether the fields go together is looked at when a copy uses the map. That fence.proxy.tensormap came between is not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tcomp.runtime.vgpu import tensor_map
from tcomp.runtime.vgpu.access import Access, Part
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Sel, ids
from tcomp.runtime.vgpu.op_memory import space_of
from tcomp.runtime.vgpu.ptx import Imm, Instr


@instruction("tensormap")
def tensormap(d: Decoder, i: Instr) -> Run:
    if "replace" in i.parts:
        return replace(d, i)
    if "cp_fenceproxy" in i.parts:
        return publish(d, i)
    raise d.unknown(i)


def replace(d: Decoder, i: Instr) -> Run:
    """[map], {ordinal,} value."""
    field = i.parts[3]
    ordinal = 0
    if len(i.operands) == 3:
        which = i.operands[1]
        assert isinstance(which, Imm)
        ordinal = int(which.value)
    known = tensor_map.FIELDS.get(field)
    if known is None or ordinal >= known.count or i.parts[2] != "tile":
        raise d.unknown(i, f"there is no field {field} {ordinal}")
    m, value = d.m, d.source(i.operands[-1], i.parts[-1].replace("b", "u"))
    access = Access(d, i, i.operands[0], space_of(i), tensor_map.ALIGN, 1, False)

    def run(sel: Sel) -> None:
        access.current = sel
        given = np.broadcast_to(np.asarray(value(sel)), len(ids(sel)))
        for p in access.parts(sel):
            _written(access, p, sel)
            values = given if p.where is None else given[p.where]
            for start, v in zip(p.start.tolist(), values.tolist(), strict=True):
                raw = p.segment.data[start : start + tensor_map.SIZE].tobytes()
                try:
                    new = tensor_map.replaced(raw, field, ordinal, int(v))
                except tensor_map.TensorMapError as error:
                    m.finding("bad tensor map", i, ids(sel)[:1], error.message)
                    continue
                p.segment.data[start : start + tensor_map.SIZE] = np.frombuffer(new, np.uint8)

    return run


def publish(d: Decoder, i: Instr) -> Run:
    """Copies a map from shared to global memory, in the generic proxy."""
    to = Access(d, i, i.operands[0], "global", tensor_map.ALIGN, 1, False)
    source = Access(d, i, i.operands[1], "shared", tensor_map.ALIGN, 1, False)
    n = tensor_map.SIZE

    def run(sel: Sel) -> None:
        lanes = ids(sel)
        data: dict[int, Any] = {}
        source.current = to.current = sel
        for p in source.parts(sel):
            where = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
            source.race(p, "read", lanes[where])
            for k, start in zip(where.tolist(), p.start.tolist(), strict=True):
                data[k] = p.segment.data[start : start + n].copy()
        for p in to.parts(sel):
            where = np.arange(len(lanes)) if p.where is None else np.asarray(p.where)
            _written(to, p, sel)
            for k, start in zip(where.tolist(), p.start.tolist(), strict=True):
                if k in data:
                    p.segment.data[start : start + n] = data[k]

    return run


def _written(access: Access, p: Part, sel: Sel) -> None:
    lanes = ids(sel) if p.where is None else ids(sel)[p.where]
    access.check_write(p, lanes)
    if not p.segment.initialised:
        p.segment.init[p.start[:, None] + np.arange(tensor_map.SIZE)] = 1
