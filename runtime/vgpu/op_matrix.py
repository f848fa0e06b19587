"""ldmatrix, stmatrix, movmatrix and mma.sync (PTX ISA 9.7.14.5). All 32 lanes of a warp must take part.

A fragment is described by the (row, column) of each lane's elements; mma gathers the three operands of every
warp into dense matrices, multiplies, and scatters the result back. Products are exact and summed in f64, then
rounded once to f32: hardware sums in another order, so results may differ in the last bits.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import formats
from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.op_warp import FULL, _sync
from tcomp.runtime.vgpu.ptx import Instr, Operand, Vec

_LANE = np.arange(32)[:, None]
_G, _T = _LANE >> 2, _LANE & 3


def _all(sel: Sel) -> Any:
    return FULL


def _items(o: Operand) -> tuple[Operand, ...]:
    return o.items if isinstance(o, Vec) else (o,)


def _matrices(i: Instr) -> int:
    return next(int(p[1]) for p in i.parts if p in ("x1", "x2", "x4"))


@instruction("ldmatrix", "stmatrix")
def matrix_move(d: Decoder, i: Instr) -> Run:
    """8x8 matrices of 16-bit elements: lane 8q + r gives the address of row r of matrix q."""
    _m, n, trans, loads = d.m, _matrices(i), "trans" in i.parts, i.parts[0] == "ldmatrix"
    if "m8n8" not in i.parts or i.parts[-1] != "b16":
        raise d.unknown(i)
    registers, address = (i.operands[0], i.operands[1]) if loads else (i.operands[1], i.operands[0])
    access = Access(d, i, address, "shared", 16, 1, False)
    row_access = 8
    access.element, access.shift = row_access, 3  # initialisation is checked in two 8-byte halves
    puts = [d.put(o, "b32") for o in _items(registers)] if loads else []
    sources = [] if loads else [d.source(o, "b32") for o in _items(registers)]

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        giving = lanes[lanes & 31 < 8 * n]
        access.current = giving
        tiles = np.zeros((len(lanes) // 32, n, 8, 8), np.uint16)
        if not loads:
            for q, source in enumerate(sources):
                pair = np.ascontiguousarray(np.broadcast_to(source(sel), len(lanes))).view(np.uint16).reshape(-1, 8, 8)
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

    return _sync(d, i, _all, act)


@instruction("movmatrix")
def transpose(d: Decoder, i: Instr) -> Run:
    a, put = d.source(i.operands[1], "b32"), d.put(i.operands[0], "b32")

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        tile = np.ascontiguousarray(np.broadcast_to(a(sel), len(lanes))).view(np.uint16).reshape(-1, 8, 8)
        put(sel, np.ascontiguousarray(tile.transpose(0, 2, 1)).view(np.uint32).reshape(-1))

    return _sync(d, i, _all, act)


def fragment(rows: int, columns: int, bits: int) -> tuple[Array, Array]:
    """(row, column) of each lane's elements, registers in order: 8-row halves first, then 16-byte columns."""
    per = 32 // bits
    e = np.arange(rows * columns // 32)[None, :]
    register, within = e // per, e % per
    halves = rows // 8
    return _G + 8 * (register % halves), per * _T + within + 4 * per * (register // halves)


def _accumulator() -> tuple[Array, Array]:
    e = np.arange(4)[None, :]
    return _G + 8 * (e >> 1), 2 * _T + (e & 1)


def _numbers(kind: str, bits32: Array) -> Array:
    """Packed registers (lanes, registers) -> f64 values (lanes, elements)."""
    raw = np.ascontiguousarray(bits32)
    if kind in ("f16", "bf16"):
        return formats.from16(raw.view(np.uint16), kind).astype(np.float64)
    if kind == "tf32":
        return (raw & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)
    if kind in ("e4m3", "e5m2"):
        return formats.from8(raw.view(np.uint8), kind).astype(np.float64)
    return raw.view(np.int8 if kind == "s8" else np.uint8).astype(np.float64)


_BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8}


@instruction("mma")
def multiply(d: Decoder, i: Instr) -> Run:
    shape = re.search(r"\.m16n8k(\d+)\.row\.col\.", i.opcode)
    td, ta, tb, tc = i.parts[-4:]
    if shape is None or ta not in _BITS or tb not in _BITS or _BITS[ta] != _BITS[tb] or td != tc:
        raise d.unknown(i)
    if td not in ("f32", "f16", "s32") or {"sp", "block_scale", "satfinite"} & set(i.parts):
        raise d.unknown(i)
    k = int(shape[1])
    bits = _BITS[ta]
    at_a, at_bt, at_c = fragment(16, k, bits), fragment(8, k, bits), _accumulator()
    a, b, c = ([d.source(o, "b32") for o in _items(x)] for x in i.operands[1:4])
    if len(a) * 1024 != 16 * k * bits or len(b) * 1024 != 8 * k * bits:
        raise d.unknown(i)
    puts = [d.put(o, "b32") for o in _items(i.operands[0])]

    def gather(sources: list[Callable[[Sel], Any]], sel: Sel, n: int) -> Array:
        return np.stack([np.broadcast_to(s(sel), n) for s in sources], axis=1)

    def dense(values: Array, at: tuple[Array, Array], rows: int, columns: int) -> Array:
        out = np.zeros((len(values) // 32, rows, columns))
        out[:, at[0], at[1]] = values.reshape(-1, 32, values.shape[1])
        return out

    def act(sel: Sel, lanes: Array, members: Array) -> None:
        n = len(lanes)
        left = dense(_numbers(ta, gather(a, sel, n)), at_a, 16, k)
        right = dense(_numbers(tb, gather(b, sel, n)), at_bt, 8, k)
        raw = gather(c, sel, n)
        start: Array = raw.view(np.float32 if td == "f32" else np.int32)
        if td == "f16":
            start = formats.from16(raw.view(np.uint16), "f16")
        product = np.einsum("wmk,wnk->wmn", left, right)[:, at_c[0], at_c[1]].reshape(n, 4) + start
        if td == "f32":
            out = product.astype(np.float32).view(np.uint32)
        elif td == "s32":
            out = product.astype(np.int64).astype(np.uint32)
        else:
            out = np.ascontiguousarray(formats.to16(product, "f16")).view(np.uint32)
        for q, put in enumerate(puts):
            put(sel, out[:, q])

    return _sync(d, i, _all, act)
