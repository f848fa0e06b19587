"""mma.sync in every dense shape and type up to sm_90 (PTX ISA 9.7.14.5.14). All 32 lanes of a warp take part.

Products are exact and summed in f32, then added to C with one more rounding; PTX leaves the order open. f64 is a
chain of fused multiply-adds along K. Sparse and block-scaled forms are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tcomp.runtime.vgpu import formats, rounding
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, count
from tcomp.runtime.vgpu.matrix_numbers import BITS, INTEGERS, canonical, saturate32, wrap32
from tcomp.runtime.vgpu.mma_fragments import (
    accumulator,
    accumulator_registers,
    multiplicand,
    small_multiplicand,
    small_places,
)
from tcomp.runtime.vgpu.op_matrix import items, whole_warps
from tcomp.runtime.vgpu.ptx import Instr, Operand

SHAPES: dict[str, tuple[str, ...]] = {
    "f16": ("m8n8k4", "m16n8k8", "m16n8k16"),
    "bf16": ("m16n8k8", "m16n8k16"),
    "tf32": ("m16n8k4", "m16n8k8"),
    "f64": ("m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"),
    "s8": ("m8n8k16", "m16n8k16", "m16n8k32"),
    "s4": ("m8n8k32", "m16n8k32", "m16n8k64"),
    "b1": ("m8n8k128", "m16n8k128", "m16n8k256"),
    "e4m3": ("m16n8k16", "m16n8k32"),
}
ALIKE = {"u8": "s8", "u4": "s4", "e5m2": "e4m3"}
ACCUMULATORS = {"f16": ("f16", "f32"), "e4m3": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",), "f64": ("f64",)}


@dataclass(frozen=True)
class Form:
    m: int
    k: int
    d: str
    a: str
    b: str
    c: str
    modifiers: frozenset[str]


def form_of(d: Decoder, i: Instr) -> Form:
    """Reads and checks the opcode; UnknownInstruction says what there is not."""
    parts = i.parts
    if "sp" in parts or "sp::ordered_metadata" in parts:
        raise d.unknown(i, "sparse mma is not executed")
    if "block_scale" in parts or any(p.startswith("kind::") for p in parts):
        raise d.unknown(i, "block-scaled mma and .kind belong to sm_100 and later")
    if parts[1:3] != ["sync", "aligned"]:
        raise d.unknown(i, "mma needs .sync.aligned")
    found = next((re.fullmatch(r"m(\d+)n8k(\d+)", p) for p in parts if p.startswith("m") and "n8k" in p), None)
    types = [p for p in parts if p in (*BITS, "f32", "s32")]
    if found is None or len(types) != 4:
        raise d.unknown(i, "expected a shape and four types")
    td, ta, tb, tc = types
    family = ALIKE.get(ta, ta)
    if family != ALIKE.get(tb, tb) or family not in SHAPES or (family == "b1" and "popc" not in parts):
        raise d.unknown(i, f"no mma multiplies .{ta} by .{tb}")
    if found[0] not in SHAPES[family]:
        raise d.unknown(i, f".{ta} has the shapes {', '.join(SHAPES[family])}")
    allowed = ACCUMULATORS.get(family, ("s32",))
    mixed = found[0] == "m8n8k4" and (td, tc) == ("f32", "f16")
    if td not in allowed or tc not in allowed or (td != tc and not mixed):
        raise d.unknown(i, f".{ta} accumulates in .{' or .'.join(allowed)}, the same for C and D")
    layouts = [p for p in parts if p in ("row", "col")]
    if layouts != ["row", "col"] and not (found[0] == "m8n8k4" and ta == "f16"):
        raise d.unknown(i, "A is .row and B is .col")
    return Form(int(found[1]), int(found[2]), td, ta, tb, tc, frozenset(parts))


@instruction("mma")
def multiply(d: Decoder, i: Instr) -> Run:
    form = form_of(d, i)
    if form.a == "f16" and (form.m, form.k) == (8, 4):
        return quad_multiply(d, i, form)
    width = 64 if form.a == "f64" else 32
    per = max(1, width // BITS[form.a])
    per_d = 2 if form.d == "f16" else 1
    want = (form.m * 8 // 32 // per_d, form.m * form.k // 32 // per, 8 * form.k // 32 // per, form.m * 8 // 32 // per_d)
    have = tuple(len(items(o)) for o in i.operands[:4])
    if have != want:
        raise d.unknown(i, f"D, A, B, C take {want} registers, not {have}")
    a, b, c = (gather(d, o, width) for o in i.operands[1:4])
    puts = [d.put(o, f"b{width}") for o in items(i.operands[0])]
    halves = form.m // 8

    def act(sel: Sel) -> None:
        left, right = multiplicand(a(sel), halves, form.a), multiplicand(b(sel), 1, form.b)
        out = accumulator_registers(combine(form, left, right, accumulator(c(sel), form.c)), form.d)
        for put, bits in zip(puts, out, strict=True):
            put(sel, bits)

    return whole_warps(d, i, act)


def gather(d: Decoder, o: Operand, width: int) -> Callable[[Sel], Array]:
    """The registers of a fragment as one (registers, lanes) array of unsigned integers."""
    sources = [d.source(x, f"b{width}") for x in items(o)]
    dtype = np.dtype(f"u{width // 8}")

    def run(sel: Sel) -> Array:
        out = np.empty((len(sources), count(sel)), dtype)
        for n, source in enumerate(sources):
            out[n] = source(sel)
        return out

    return run


def combine(form: Form, left: Array, right: Array, start: Array) -> Array:
    """(.., M, K) and (.., N, K) values and C -> D, in the accumulator's type."""
    if form.d == "f64":
        mode = next((p for p in ("rz", "rm", "rp") if p in form.modifiers), "rn")
        total = start
        for k in range(left.shape[-1]):
            a, b = np.broadcast_arrays(left[..., :, None, k], right[..., None, :, k])
            total = rounding.fma64(a.reshape(-1), b.reshape(-1), total.reshape(-1), mode).reshape(start.shape)
        return total
    product = np.matmul(left, right.swapaxes(-1, -2))
    if form.a in INTEGERS:
        whole = product.astype(np.int64)
        if "xor" in form.modifiers:  # |a ^ b| = |a| + |b| - 2 |a & b|
            ones = left.sum(axis=-1)[..., :, None] + right.sum(axis=-1)[..., None, :]
            whole = ones.astype(np.int64) - 2 * whole
        total64 = start.astype(np.int64) + whole
        return saturate32(total64) if "satfinite" in form.modifiers else wrap32(total64)
    result: Array = start + product
    return canonical(result) if form.d == "f32" else result


def quad_multiply(d: Decoder, i: Instr, form: Form) -> Run:
    """The f16 m8n8k4: four independent products in one warp."""
    layouts = [p for p in i.parts if p in ("row", "col")]
    a, b = (gather(d, o, 32) for o in i.operands[1:3])
    c, puts = gather(d, i.operands[3], 32), [d.put(o, "b32") for o in items(i.operands[0])]
    if len(items(i.operands[3])) != (4 if form.c == "f16" else 8) or len(puts) != (4 if form.d == "f16" else 8):
        raise d.unknown(i, "C and D take four registers of .f16 or eight of .f32")
    at_c, at_d = small_places(form.c), small_places(form.d)

    def act(sel: Sel) -> None:
        left, right = small_multiplicand(a(sel), layouts[0] == "row"), small_multiplicand(b(sel), layouts[1] == "col")
        raw = c(sel).T.reshape(-1, 32, c(sel).shape[0])
        old = np.ascontiguousarray(raw)
        start = np.zeros((len(old), 4, 8, 8), np.float32)
        start[:, at_c[0], at_c[1], at_c[2]] = (
            old.view(np.float32) if form.c == "f32" else formats.from16(old.view(np.uint16), "f16")
        )
        found = combine(form, left, right, start)[:, at_d[0], at_d[1], at_d[2]]
        bits = found if form.d == "f32" else formats.to16(found, "f16")
        out = np.ascontiguousarray(bits).view(np.uint32).reshape(-1, len(puts))
        for n, put in enumerate(puts):
            put(sel, out[:, n])

    return whole_warps(d, i, act)
