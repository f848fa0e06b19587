"""ldmatrix, stmatrix and movmatrix (PTX ISA 9.7.14.5.15 to .17). All 32 lanes of a warp must take part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, compact, distinct, one_each
from tcomp.runtime.vgpu.op_warp import FULL, _sync
from tcomp.runtime.vgpu.ptx import Instr, Operand, Vec


def everyone(sel: Sel) -> Any:
    return FULL


def whole_warps(d: Decoder, i: Instr, act: Callable[[Sel], None]) -> Run:
    """Runs `act` when all living lanes of a warp have come; warps with lanes missing for good are a finding."""
    m = d.m

    def checked(sel: Sel, lanes: Array, members: Array) -> None:
        if len(lanes) % 32 or (sel.__class__ is not slice and len(distinct(lanes >> 5)) * 32 != len(lanes)):
            here = np.bincount(lanes >> 5, minlength=m.lanes // 32)
            part = here[lanes >> 5] < 32
            m.finding("partial warp", i, lanes[part], "a matrix instruction needs all 32 lanes of its warp")
            lanes = lanes[~part]
            if not len(lanes):
                return
            sel = compact(lanes)
        act(sel)

    return _sync(d, i, everyone, checked)


def items(o: Operand) -> tuple[Operand, ...]:
    return o.items if isinstance(o, Vec) else (o,)


def _matrices(i: Instr) -> int:
    return next(int(p[1]) for p in i.parts if p in ("x1", "x2", "x4"))


@instruction("ldmatrix", "stmatrix")
def matrix_move(d: Decoder, i: Instr) -> Run:
    """8x8 matrices of 16-bit elements: lane 8q + r gives the address of row r of matrix q."""
    m, n, trans, loads = d.m, _matrices(i), "trans" in i.parts, i.parts[0] == "ldmatrix"
    if "m8n8" not in i.parts or i.parts[-1] != "b16":
        raise d.unknown(i, "the 8-bit m16n16, m8n16 and m16n8 forms belong to sm_100 and later")
    registers, address = (i.operands[0], i.operands[1]) if loads else (i.operands[1], i.operands[0])
    access = Access(d, i, address, "shared", 16, 1, False)
    row_access = 8
    access.element, access.shift = row_access, 3  # initialisation is checked in two 8-byte halves
    puts = [d.put(o, "b32") for o in items(registers)] if loads else []
    sources = [] if loads else [d.source(o, "b32") for o in items(registers)]

    def act(sel: Sel) -> None:
        lanes = m.ids[sel]
        giving = lanes[lanes & 31 < 8 * n]
        access.current = giving
        tiles = np.zeros((len(lanes) // 32, n, 8, 8), np.uint16)
        if not loads:
            for q, source in enumerate(sources):
                pair = np.ascontiguousarray(one_each(source(sel), len(lanes))).view(np.uint16).reshape(-1, 8, 8)
                tiles[:, q] = pair.transpose(0, 2, 1) if trans else pair
        flat = tiles.reshape(-1, 8)
        for p in access.parts(giving):
            who = giving if p.where is None else giving[p.where]
            at = np.arange(len(giving)) if p.where is None else p.where
            inside = p.start[:, None] + np.arange(16)
            access.count_traffic(p, who, not loads)
            if loads:
                key = p.start >> 3
                access.check_read(p, [key, key + 1], who)
                flat[at] = p.segment.data[inside].view(np.uint16)
            else:
                access.check_write(p, who)
                p.segment.data[inside] = np.ascontiguousarray(flat[at]).view(np.uint8)
                p.segment.init[inside] = 1
        for q, put in enumerate(puts):
            tile = tiles[:, q].transpose(0, 2, 1) if trans else tiles[:, q]
            put(sel, np.ascontiguousarray(tile).view(np.uint32).reshape(-1))

    return whole_warps(d, i, act)


@instruction("movmatrix")
def transpose(d: Decoder, i: Instr) -> Run:
    a, put = d.source(i.operands[1], "b32"), d.put(i.operands[0], "b32")

    def act(sel: Sel) -> None:
        lanes = d.m.ids[sel]
        tile = np.ascontiguousarray(one_each(a(sel), len(lanes))).view(np.uint16).reshape(-1, 8, 8)
        put(sel, np.ascontiguousarray(tile.transpose(0, 2, 1)).view(np.uint32).reshape(-1))

    return whole_warps(d, i, act)
