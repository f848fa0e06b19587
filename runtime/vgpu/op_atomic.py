"""atom and red (PTX ISA 9.7.13): lanes that hit one address act one after another, in lane order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.access import Access
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.op_float import extreme, pack, unpack
from tcomp.runtime.vgpu.op_memory import note_fence, space_of
from tcomp.runtime.vgpu.ptx import Instr, Vec
from tcomp.runtime.vgpu.types import Scalar, scalar

OPERATIONS = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
Fold = Callable[..., Any]


def _fold(d: Decoder, i: Instr, name: str, t: Scalar) -> Fold:
    if t.kind == "x" or t.name == "f16":
        halves: dict[str, Fold] = {"add": np.add, "min": extreme("min", []), "max": extreme("max", [])}
        f = halves.get(name)
        if f is None:
            raise d.unknown(i)
        return lambda old, a: pack(f(unpack(old, t), unpack(a, t)), t)
    simple: dict[str, Fold] = {
        "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
        "xor": np.bitwise_xor, "exch": lambda old, a: a, "cas": lambda old, a, b: np.where(old == a, b, old),
        "inc": lambda old, a: np.where(old >= a, np.zeros_like(old), old + old.dtype.type(1)),
        "dec": lambda old, a: np.where((old == 0) | (old > a), a, old - old.dtype.type(1)),
    }  # fmt: skip
    return simple[name]


@instruction("atom", "red")
def atomic(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    if t.bits > 64 or "async" in i.parts or any("vec" in p for p in i.parts):
        raise d.unknown(i)
    name = next(p for p in i.parts if p in OPERATIONS)
    returns = i.parts[0] == "atom"
    operands = list(i.operands)
    put = d.put(operands.pop(0), t) if returns else None
    if any(isinstance(o, Vec) for o in operands):
        raise d.unknown(i, "vector atomics are not executed")
    access = Access(d, i, operands[0], space_of(i), t.size, 1, True)
    sources = [d.source(o, t) for o in operands[1:]]
    fold = _fold(d, i, name, t)
    m = d.m
    release = bool({"release", "acq_rel"} & set(i.parts))

    def run(sel: Sel) -> None:
        access.current = sel
        if release:
            note_fence(m, sel)
        found = False
        for p in access.parts(sel):
            lanes = m.ids[sel] if p.where is None else m.ids[sel][p.where]
            key = p.start >> access.shift
            access.check_read(p, [key], lanes)
            access.count_traffic(p, lanes, True)
            view = p.segment.view(t.dtype)
            values = [np.broadcast_to(s(sel), len(m.ids[sel])) for s in sources]
            if p.where is not None:
                values = [v[p.where] for v in values]
            old = apply(view, key, values, fold, name, t, returns)
            if not p.segment.initialised:
                p.segment.init_view(t.size)[key] = np.iinfo(f"u{t.size}").max // 255
            if put is not None:
                put(sel if p.where is None else lanes, old)
            found = True
        if not found and put is not None:
            put(sel, t.dtype.type(0))

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
    if first.all():
        old = view[key]
        view[key] = fold(old, *values)
        return old
    begin = np.flatnonzero(first)
    group = np.cumsum(first) - 1
    result = np.empty(len(key), view.dtype)
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
    for r in range(int(rank.max()) + 1):
        at = order[rank == r]
        old = view[key[at]]
        result[at] = old
        view[key[at]] = fold(old, *(v[at] for v in values))
    return result
