"""wmma.load, wmma.mma and wmma.store (PTX ISA 9.7.14.4).

Which elements a lane holds is left to the implementation. Here a matrix is cut into 32-bit words along K (A and B)
or along N (C and D, two neighbouring elements going together), and word w is in lane w % 32: the same for .row and
.col, and unlike any real GPU's, so that a kernel which relies on a layout shows it. f16 fragments of A and B have
eight registers whatever the shape; those that are not needed repeat the others, as on real GPUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.formats import from16, to16
from tcomp.runtime.vgpu.lanes import Array, Sel, count, some
from tcomp.runtime.vgpu.matrix_numbers import BITS, values
from tcomp.runtime.vgpu.op_matrix import items, whole_warps
from tcomp.runtime.vgpu.op_memory import space_of
from tcomp.runtime.vgpu.op_mma import Form, combine, gather
from tcomp.runtime.vgpu.ptx import Instr

SHAPES = {
    "m16n16k16": ("f16", "bf16", "s8", "u8"), "m8n32k16": ("f16", "bf16", "s8", "u8"),
    "m32n8k16": ("f16", "bf16", "s8", "u8"), "m16n16k8": ("tf32",), "m8n8k4": ("f64",), "m8n8k32": ("s4", "u4"),
    "m8n8k128": ("b1",),
}  # fmt: skip
_SIZES = {**BITS, "f32": 32, "s32": 32}


@dataclass(frozen=True)
class Matrix:
    """One operand: `rows` x `columns` with words running along the columns; `use` is a, b or c."""

    use: str
    kind: str
    rows: int
    columns: int

    @property
    def word(self) -> int:
        """Bits of a register."""
        return 64 if self.kind == "f64" else 32

    @property
    def elements(self) -> int:
        """Elements that a lane holds."""
        return self.rows * self.columns // 32

    @property
    def per(self) -> int:
        return max(1, self.word // _SIZES[self.kind])

    @property
    def registers(self) -> int:
        return 8 if self.kind == "f16" and self.use in "ab" else self.elements // self.per

    def places(self) -> tuple[Array, Array]:
        """(row, column) of each lane's elements: arrays (32, elements). Pairs at least go together."""
        run = max(2 if self.elements > 1 else 1, self.per)
        e = np.arange(self.elements)[None, :]
        linear = (e // run * 32 + np.arange(32)[:, None]) * run + e % run
        return linear // self.columns, linear % self.columns


def shape_of(d: Decoder, i: Instr) -> tuple[str, int, int, int]:
    found = next((re.fullmatch(r"m(\d+)n(\d+)k(\d+)", p) for p in i.parts if re.fullmatch(r"m\d+n\d+k\d+", p)), None)
    if found is None or found[0] not in SHAPES:
        raise d.unknown(i, "wmma has no such shape")
    return found[0], int(found[1]), int(found[2]), int(found[3])


def matrix(use: str, kind: str, m: int, n: int, k: int) -> Matrix:
    return Matrix(use, kind, *{"a": (m, k), "b": (n, k), "c": (m, n), "d": (m, n)}[use])


@instruction("wmma")
def wmma(d: Decoder, i: Instr) -> Run:
    what = i.parts[1]
    if "sync" not in i.parts:
        raise d.unknown(i, "wmma needs .sync")
    if what == "mma":
        return multiply(d, i)
    if what in ("load", "store"):
        return move(d, i, what == "load")
    raise d.unknown(i)


def move(d: Decoder, i: Instr, loads: bool) -> Run:
    m = d.m
    name, sm, sn, sk = shape_of(d, i)
    use, kind = i.parts[2], i.parts[-1]
    if use in "ab" and kind not in SHAPES[name]:
        raise d.unknown(i, f"{name} multiplies .{', .'.join(SHAPES[name])}")
    tile = matrix(use, kind, sm, sn, sk)
    row_major = "row" in i.parts
    along = row_major if use in "acd" else not row_major  # do a word's elements lie next to each other in memory
    bits = _SIZES[kind]
    if bits < 8 and not along:
        raise d.unknown(i, "4-bit and 1-bit matrices have one layout: A .row, B .col")
    pointer, registers = (i.operands[1], i.operands[0]) if loads else (i.operands[0], i.operands[1])
    if len(items(registers)) != tile.registers:
        raise d.unknown(i, f"this fragment has {tile.registers} registers")
    size = tile.word // 8 if along and tile.per > 1 else max(1, bits // 8)
    step = size * 8 // bits  # elements of one access
    access = Access(d, i, pointer, space_of(i), size, 1, False)
    if access.space not in ("global", "shared", "generic"):
        raise d.unknown(i, "matrices lie in global or shared memory")
    length = tile.columns if along else tile.rows
    stride = d.source(i.operands[2], "u32") if len(i.operands) > 2 else lambda sel: np.uint32(length)
    row, column = tile.places()
    puts = [d.put(o, f"b{tile.word}") for o in items(registers)] if loads else []
    collect = gather(d, registers, tile.word) if not loads else None
    dtype = np.dtype(f"u{size}")
    fragment = max(1, tile.registers * tile.word // 8)

    def act(sel: Sel) -> None:
        n = count(sel)
        base = access.addresses(sel)
        ld = np.broadcast_to(np.asarray(stride(sel), np.int64), n)
        uniform(base, ld, sel)
        held = np.zeros((n, tile.elements // step), dtype)
        if collect is not None:
            raw = collect(sel)[: tile.elements // tile.per]
            held = np.ascontiguousarray(raw.T).view(dtype).reshape(n, -1)
        lane = np.arange(n) % 32
        access.current = sel
        for e in range(held.shape[1]):
            r, c = row[lane, e * step], column[lane, e * step]
            at = base + (r * ld + c if along else c * ld + r) * bits // 8
            for p in access.locate(access.space, at, sel, None):
                lanes = m.ids[sel] if p.where is None else m.ids[sel][p.where]
                chosen = slice(None) if p.where is None else p.where
                key = p.start >> access.shift
                if loads:
                    access.check_read(p, [key], lanes)
                    held[chosen, e] = p.segment.view(dtype)[key]
                else:
                    access.check_write(p, lanes)
                    p.segment.view(dtype)[key] = held[chosen, e]
                    if not p.segment.initialised:
                        p.segment.init_view(size)[key] = np.iinfo(dtype).max // 255
                access.count_traffic(p, lanes, not loads)
        if loads:
            words = np.ascontiguousarray(held).view(f"u{tile.word // 8}")
            for q, put in enumerate(puts):
                put(sel, words[:, q % words.shape[1]])

    def uniform(base: Array, ld: Array, sel: Sel) -> None:
        by_warp, strides = base.reshape(-1, 32), ld.reshape(-1, 32)
        bad = (by_warp != by_warp[:, :1]) | (strides != strides[:, :1])
        if some(bad):
            m.finding("wmma operands differ", i, m.ids[sel][bad.reshape(-1)],
                      "the lanes of a warp give different addresses or strides")  # fmt: skip
        step_bytes = min(fragment, 16)
        wrong = (base % fragment != 0) | ((ld * bits // 8 % step_bytes != 0) & (ld != length))
        if some(wrong):
            m.finding("misaligned", i, m.ids[sel][wrong],
                      f"wmma needs addresses that are multiples of {fragment} bytes and rows of {step_bytes}",
                      int(base[wrong][0]))  # fmt: skip
        if some(ld < length):
            m.finding("wmma stride too small", i, m.ids[sel][ld < length], f"below {length} elements")

    return whole_warps(d, i, act)


def multiply(d: Decoder, i: Instr) -> Run:
    name, sm, sn, sk = shape_of(d, i)
    types = [p for p in i.parts if p in _SIZES]
    if len(types) == 2:
        types = [types[0], "f16", "f16", types[1]]
    if len(types) != 4:
        raise d.unknown(i, "expected the types of D, A, B, C")
    td, ta, tb, tc = types
    if ta not in SHAPES[name] or ta != tb:
        raise d.unknown(i, f"{name} multiplies .{', .'.join(SHAPES[name])}, the same for A and B")
    allowed = {"f16": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",), "f64": ("f64",)}.get(ta, ("s32",))
    if td not in allowed or tc not in allowed:
        raise d.unknown(i, f".{ta} accumulates in .{' or .'.join(allowed)}")
    matrices = [matrix(use, kind, sm, sn, sk) for use, kind in zip("dabc", types, strict=True)]
    for o, x in zip(i.operands, matrices, strict=True):
        if len(items(o)) != x.registers:
            raise d.unknown(i, f"matrix {x.use} has {x.registers} registers")
    a, b, c = (gather(d, o, x.word) for o, x in zip(i.operands[1:], matrices[1:], strict=True))
    puts = [d.put(o, f"b{matrices[0].word}") for o in items(i.operands[0])]
    form = Form(sm, sk, td, ta, tb, tc, frozenset(i.parts))

    def act(sel: Sel) -> None:
        left, right = dense(a(sel), matrices[1]), dense(b(sel), matrices[2])
        found = combine(form, left, right, dense(c(sel), matrices[3]))
        r, col = matrices[0].places()
        picked = np.ascontiguousarray(found[:, r, col])
        bits = to16(picked, "f16") if td == "f16" else picked
        words = np.ascontiguousarray(bits).view(f"u{matrices[0].word // 8}").reshape(-1, len(puts))
        for q, put in enumerate(puts):
            put(sel, words[:, q])

    return whole_warps(d, i, act)


def dense(raw: Array, x: Matrix) -> Array:
    """(registers, lanes) -> (warps, rows, columns) values."""
    words = np.ascontiguousarray(raw[: x.elements // x.per].T)
    if x.use == "c":
        if x.kind == "f16":
            elements = from16(words.view(np.uint16), "f16")
        else:
            elements = words.view({"f32": np.float32, "s32": np.int32, "f64": np.float64}[x.kind])
    else:
        elements = values(words.view(np.uint8), x.kind)
    row, column = x.places()
    out = np.zeros((len(words) // 32, x.rows, x.columns), elements.dtype)
    out[:, row, column] = elements.reshape(-1, 32, x.elements)
    return out
