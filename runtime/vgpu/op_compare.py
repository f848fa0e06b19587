"""Comparison and selection (PTX ISA 9.7.6 and 9.7.7): setp, set, selp, slct."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.op_float import flush, unpack
from tcomp.runtime.vgpu.ptx import Instr, Pair
from tcomp.runtime.vgpu.types import Scalar, scalar

_PLAIN: dict[str, Callable[..., Any]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
COMPARISONS = _PLAIN
_UNORDERED = {"equ": "eq", "neu": "ne", "ltu": "lt", "leu": "le", "gtu": "gt", "geu": "ge"}
_BOOLS: dict[str, Callable[..., Any]] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def comparison(d: Decoder, i: Instr, name: str, t: Scalar) -> Callable[[Any, Any], Any]:
    if t.kind not in ("f", "x"):
        return _PLAIN[name]
    if name in _PLAIN and name != "ne":
        return _PLAIN[name]
    if name == "ne":
        return lambda a, b: np.not_equal(a, b) & ~(np.isnan(a) | np.isnan(b))
    if name in _UNORDERED:
        f = _PLAIN[_UNORDERED[name]]
        return lambda a, b: f(a, b) | np.isnan(a) | np.isnan(b)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    raise d.unknown(i)


def _tester(d: Decoder, i: Instr, t: Scalar, modifiers: list[str]) -> Callable[[Sel], Array]:
    names = [x for x in modifiers if x in _PLAIN or x in _UNORDERED or x in ("num", "nan")]
    f = comparison(d, i, names[0], t)
    a, b = d.source(i.operands[1], t), d.source(i.operands[2], t)
    if t.kind == "x" or t.name == "f16":
        narrow = t
        return lambda sel: f(unpack(a(sel), narrow), unpack(b(sel), narrow))
    if "ftz" in modifiers:
        return lambda sel: f(flush(a(sel)), flush(b(sel)))
    return lambda sel: f(a(sel), b(sel))


@instruction("setp")
def set_predicate(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    modifiers = i.parts[1:-1]
    test = _tester(d, i, t, modifiers)
    fold = next((x for x in modifiers[1:] if x in _BOOLS), None)
    third: Source | None = d.source(i.operands[3], "pred") if fold else None
    to = i.operands[0]
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    put = d.put(first, "pred")
    put2 = d.put(second, "pred") if second is not None else None
    packed = t.name.endswith("x2")
    if put2 is None and fold is None and not packed:
        row = d.target_row(first, scalar("pred"))
        if row is not None and t.kind in "usb":
            ufunc = _PLAIN[modifiers[0]]
            a, b = d.source(i.operands[1], t), d.source(i.operands[2], t)

            def fast(sel: Sel) -> None:
                row[sel] = ufunc(a(sel), b(sel))

            return fast
        return lambda sel: put(sel, test(sel))

    def run(sel: Sel) -> None:
        r = test(sel)
        q = r[..., 1] if packed else ~r
        p = r[..., 0] if packed else r
        if fold and third is not None:
            c = third(sel)
            p, q = _BOOLS[fold](p, c), _BOOLS[fold](q, c)
        put(sel, p)
        if put2 is not None:
            put2(sel, q)

    return run


@instruction("set")
def set_value(d: Decoder, i: Instr) -> Run:
    out, t = scalar(i.parts[-2], i.line), scalar(i.parts[-1], i.line)
    modifiers = i.parts[1:-2]
    test = _tester(d, i, t, modifiers)
    fold = next((x for x in modifiers[1:] if x in _BOOLS), None)
    third = d.source(i.operands[3], "pred") if fold else None
    if t.name.endswith("x2"):
        return set_pair(d, i, out, test, fold, third)
    put = d.put(i.operands[0], out)
    true: Any
    if out.name == "bf16":
        true = np.uint16(0x3F80)
    else:
        true = out.dtype.type(1.0) if out.kind == "f" else np.array(-1).astype(out.dtype)[()]

    def run(sel: Sel) -> None:
        r = test(sel)
        if fold and third is not None:
            r = _BOOLS[fold](r, third(sel))
        put(sel, np.where(r, true, out.dtype.type(0)))

    return run


def set_pair(
    d: Decoder, i: Instr, out: Scalar, test: Callable[[Sel], Array], fold: str | None, third: Source | None
) -> Run:
    """f16x2 and bf16x2: each half is 1.0 or 0 (same type), or all ones or 0 (u32, s32)."""
    one = {"f16x2": 0x3C00, "bf16x2": 0x3F80, "u32": 0xFFFF, "s32": 0xFFFF}.get(out.name)
    if one is None:
        raise d.unknown(i)
    put = d.put(i.operands[0], "b32")

    def run(sel: Sel) -> None:
        r = test(sel)
        if fold and third is not None:
            r = _BOOLS[fold](r, np.atleast_1d(third(sel))[:, None])
        halves = np.where(r, np.uint16(one), np.uint16(0))
        put(sel, np.ascontiguousarray(halves).view(np.uint32).reshape(-1))

    return run


@instruction("selp")
def select(d: Decoder, i: Instr) -> Run:
    t = scalar(i.parts[-1], i.line)
    a, b, p = d.source(i.operands[1], t), d.source(i.operands[2], t), d.source(i.operands[3], "pred")
    put = d.put(i.operands[0], t)
    return lambda sel: put(sel, np.where(p(sel), a(sel), b(sel)))


@instruction("slct")
def select_by_sign(d: Decoder, i: Instr) -> Run:
    t, tc = scalar(i.parts[-2], i.line), scalar(i.parts[-1], i.line)
    a, b, c = d.source(i.operands[1], t), d.source(i.operands[2], t), d.source(i.operands[3], tc)
    put = d.put(i.operands[0], t)
    return lambda sel: put(sel, np.where(c(sel) >= 0, a(sel), b(sel)))
