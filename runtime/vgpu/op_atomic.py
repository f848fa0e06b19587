"""atom and red (PTX ISA 9.7.13.5, .6): lanes that hit one address act one after another, in lane order.

Vector forms act on each element by itself, as PTX says they do. f32 sums in global memory flush subnormals, as the
L2 does. A cache policy is read and has no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import wide
from tcomp.runtime.vgpu.access import Access, Part
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel, every, greatest, indices, one_each
from tcomp.runtime.vgpu.op_fence import note_fence
from tcomp.runtime.vgpu.op_float import extreme, flush, pack, unpack
from tcomp.runtime.vgpu.op_memory import space_of
from tcomp.runtime.vgpu.ptx import Instr, Operand, Vec
from tcomp.runtime.vgpu.types import Scalar, scalar

OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
Fold = Callable[..., Any]
_HALVES = ("f16", "bf16", "f16x2", "bf16x2")
_BITS32_64 = ("b32", "u32", "s32", "b64", "u64", "s64")
_TYPES: dict[str, tuple[str, ...]] = {
    "add": ("u32", "s32", "u64", "s64", "f32", "f64", "f16", "bf16", "f16x2", "bf16x2"),
    "and": _BITS32_64, "or": _BITS32_64, "xor": _BITS32_64, "exch": (*_BITS32_64, "f32"),
    "cas": ("b16", *_BITS32_64), "inc": ("u32",), "dec": ("u32",), "min": ("u32", "s32", "u64", "s64"),
    "max": ("u32", "s32", "u64", "s64"),
}  # fmt: skip
_VECTORS = {"f32": (2, 4), "f16": (2, 4, 8), "bf16": (2, 4, 8), "f16x2": (2, 4), "bf16x2": (2, 4)}


def _fold(d: Decoder, i: Instr, name: str, t: Scalar) -> Fold:
    if t.name in _HALVES:
        halves: dict[str, Fold] = {"add": np.add, "min": extreme("min", []), "max": extreme("max", [])}
        f = halves[name]
        return lambda old, a: pack(f(unpack(old, t), unpack(a, t)), t)
    simple: dict[str, Fold] = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor, "exch": lambda old, a: a, "cas": lambda old, a, b: np.where(old == a, b, old),
        "inc": lambda old, a: np.where(old >= a, np.zeros_like(old), old + old.dtype.type(1)),
        "dec": lambda old, a: np.where((old == 0) | (old > a), a, old - old.dtype.type(1)),
    }  # fmt: skip
    return simple[name]


def _form(d: Decoder, i: Instr) -> tuple[str, Scalar, int]:
    """(operation, element type, elements); UnknownInstruction says what PTX does not have."""
    if "async" in i.parts:
        raise d.unknown(i)
    name = next((p for p in i.parts if p in OPERATIONS), "")
    width = next((int(p[1:]) for p in i.parts if p in ("v2", "v4", "v8")), 1)
    # the order of type, vector and .noftz varies between compilers
    kind = next((p for p in reversed(i.parts) if p in ("f32", "f64", *_HALVES) or p[1:] in ("16", "32", "64")), "")
    t = scalar(kind, i.line)
    if width > 1 and (width not in _VECTORS.get(kind, ()) or name not in ("add", "min", "max")):
        raise d.unknown(i, f"there is no .v{width} of .{kind} with .{name}")
    wide = width > 1 and kind != "f32"
    if not wide and kind not in _TYPES.get(name, ()):
        raise d.unknown(i, f".{name} has no type .{kind}")
    if i.parts[0] == "red" and name in ("exch", "cas"):
        raise d.unknown(i, f"red has no .{name}")
    if kind in _HALVES and "noftz" not in i.parts:
        raise d.unknown(i, f".{kind} needs .noftz")
    if width > 1 and any(p.startswith("shared") for p in i.parts):
        raise d.unknown(i, "vector atomics are for global memory")
    return name, t, width


def _items(o: Operand, width: int, d: Decoder, i: Instr) -> tuple[Operand, ...]:
    found = o.items if isinstance(o, Vec) else (o,)
    if len(found) != width:
        raise d.unknown(i, f"expected {width} registers")
    return found


def wide_atomic(d: Decoder, i: Instr) -> Run:
    """atom.exch.b128 and atom.cas.b128."""
    name = next((p for p in i.parts if p in OPERATIONS), "")
    if i.parts[0] != "atom" or name not in ("exch", "cas"):
        raise d.unknown(i, ".b128 has exch and cas")
    puts = wide.puts(d, i.operands[0])
    access = Access(d, i, i.operands[1], space_of(i), 8, 2, True)
    sources = [wide.whole(d, o) for o in i.operands[2 : 4 if name == "cas" else 3]]
    m = d.m

    def fold(old: Array, a: Array, *b: Array) -> Array:
        return np.where((old == a).all(axis=1)[:, None], b[0], old) if b else a

    def run(sel: Sel) -> None:
        access.current = sel
        if {"release", "acq_rel"} & set(i.parts):
            note_fence(m, sel)
        for p in access.parts(sel):
            where = slice(None) if p.where is None else p.where
            lanes, key = m.ids[sel][where], p.start >> 3
            access.check_read(p, [key, key + 1], lanes)
            access.count_traffic(p, lanes, True)
            view = p.segment.view(np.dtype(np.uint64)).reshape(-1, 2)
            old = apply(view, p.start >> 4, [s(sel)[where] for s in sources], fold, name, scalar("b128"), True)
            if not p.segment.initialised:
                p.segment.init_view(8).reshape(-1, 2)[p.start >> 4] = np.iinfo(np.uint64).max // 255
            for n, put in enumerate(puts):
                put(lanes, old[:, n])

    return run


@instruction("atom", "red")
def atomic(d: Decoder, i: Instr) -> Run:
    if i.parts[-1] == "b128":
        return wide_atomic(d, i)
    name, t, width = _form(d, i)
    operands = list(i.operands)
    puts = [d.put(o, t) for o in _items(operands.pop(0), width, d, i)] if i.parts[0] == "atom" else []
    access = Access(d, i, operands[0], space_of(i), t.size, width, True)
    taken = operands[1 : 3 if name == "cas" else 2]
    sources = [[d.source(o, t) for o in _items(x, width, d, i)] for x in taken]
    fold = _fold(d, i, name, t)
    m = d.m
    release = bool({"release", "acq_rel"} & set(i.parts))
    flushes = name == "add" and t.name == "f32"
    full = np.iinfo(f"u{t.size}").max // 255

    def run(sel: Sel) -> None:
        access.current = sel
        if release:
            note_fence(m, sel)
        found = False
        for p in access.parts(sel):
            lanes = m.ids[sel] if p.where is None else m.ids[sel][p.where]
            first = p.start >> access.shift
            access.check_read(p, [first + n for n in range(width)], lanes)
            access.count_traffic(p, lanes, True)
            for n in range(width):
                old = element(p, first + n, [s[n] for s in sources], sel)
                if puts:
                    puts[n](sel if p.where is None else lanes, old)
            found = True
        if not found:
            for put in puts:
                put(sel, t.dtype.type(0))

    def element(p: Part, key: Array, values: list[Any], sel: Sel) -> Array:
        view = p.segment.view(t.dtype)
        given = [one_each(s(sel), len(m.ids[sel])) for s in values]
        if p.where is not None:
            given = [v[p.where] for v in given]
        subnormal = flushes and p.segment.space == "global"
        if subnormal:
            given = [flush(v) for v in given]
            view[key] = flush(view[key])
        old = apply(view, key, given, fold, name, t, bool(puts))
        if subnormal:
            view[key] = flush(view[key])
        if not p.segment.initialised:
            p.segment.init_view(t.size)[key] = full
        return old

    return run


def apply(view: Array, key: Array, values: list[Array], fold: Fold, name: str, t: Scalar, returns: bool) -> Array:
    """Updates view[key] lane after lane; the values that each lane found."""
    if not returns and isinstance(fold, np.ufunc):
        fold.at(view, key, values[0])
        return key
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    first = np.ones(len(key), bool)
    first[1:] = sorted_key[1:] != sorted_key[:-1]
    if every(first):
        old = view[key]
        view[key] = fold(old, *values)
        return old
    begin = indices(first)
    group = np.cumsum(first) - 1
    result = np.empty((len(key), *view.shape[1:]), view.dtype)
    if name == "add" and t.kind in "usb":
        v = values[0][order]
        total = np.cumsum(v, dtype=view.dtype)
        before = total - v
        start = view[sorted_key[begin]]
        result[order] = before - before[begin][group] + start[group]
        last = np.append(begin[1:], len(key)) - 1
        view[sorted_key[begin]] = start + (total[last] - before[begin])
        return result
    rank = np.arange(len(key)) - begin[group]
    for r in range(greatest(rank) + 1):
        at = order[rank == r]
        old = view[key[at]]
        result[at] = old
        view[key[at]] = fold(old, *(v[at] for v in values))
    return result
