"""Float arithmetic of sm_100 and later (PTX ISA 9.7.3 and 9.7.5): f32 with 16-bit operands, and pairs of f32.

`add.rn.f32.f16 d, a, c`: the 16-bit operands (a of add and sub, a and b of fma) are widened, which is exact, and the
operation is that of f32. `fma.rn.f32x2 d, a, b, c`: two f32 operations on the halves of 64-bit registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu import formats, rounding
from tcomp.runtime.vgpu.decoder import Decoder, Run
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.op_float import MODES, canonical, flush
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.types import scalar

_OPERANDS = {"add": 2, "sub": 2, "mul": 2, "fma": 3}


def is_mixed(i: Instr) -> bool:
    """f32 arithmetic with 16-bit operands?"""
    return i.parts[-2:-1] == ["f32"] and i.parts[-1] in ("f16", "bf16")


def mixed(d: Decoder, i: Instr) -> Run:
    base, narrow = i.parts[0], i.parts[-1]
    f = _operation(d, i, i.parts[1:-2], {"sat"})
    if base not in ("add", "sub", "fma"):
        raise d.unknown(i)
    wide, t = scalar("f32"), scalar(narrow)
    sources = [d.source(o, t) for o in i.operands[1:-1]]
    last, put, sat = d.source(i.operands[-1], wide), d.put(i.operands[0], wide), "sat" in i.parts

    def run(sel: Sel) -> None:
        r = f(*(_widened(s(sel), narrow) for s in sources), np.asarray(last(sel), np.float32))
        if sat:
            r = np.where(np.isnan(r), np.float32(0), np.clip(r, np.float32(0), np.float32(1)))
        put(sel, canonical(r))

    return run


def pairs(d: Decoder, i: Instr) -> Run:
    f = _operation(d, i, i.parts[1:-1], {"ftz"})
    word = scalar("b64")
    sources, put, ftz = [d.source(o, word) for o in i.operands[1:]], d.put(i.operands[0], word), "ftz" in i.parts

    def run(sel: Sel) -> None:
        values = [np.ascontiguousarray(np.atleast_1d(s(sel))).view(np.float32) for s in sources]
        r = f(*(map(flush, values) if ftz else values))
        r = canonical(flush(r) if ftz else r)
        put(sel, np.ascontiguousarray(r, np.float32).view(np.uint64))

    return run


def _operation(d: Decoder, i: Instr, modifiers: list[str], allowed: set[str]) -> Callable[..., Array]:
    """The f32 operation that an opcode names; one rounding mode and the allowed modifiers may stand with it."""
    base = i.parts[0]
    modes = [m for m in modifiers if m in MODES]
    if set(modifiers) - set(MODES) - allowed or len(modes) > 1 or len(i.operands) != 1 + _OPERANDS.get(base, 0):
        raise d.unknown(i)
    if base == "fma" and not modes:
        raise d.unknown(i, "fma has no default rounding")
    mode = modes[0] if modes else "rn"
    table: dict[str, Callable[..., Any]] = {
        "add": lambda a, b: a + b if mode == "rn" else rounding.sum32(a, b, mode),
        "sub": lambda a, b: a - b if mode == "rn" else rounding.sum32(a, -b, mode),
        "mul": lambda a, b: a * b if mode == "rn" else rounding.product32(a, b, mode),
        "fma": lambda a, b, c: rounding.fma32(a, b, c, mode),
    }
    return table[base]


def _widened(bits: Any, kind: str) -> Array:
    return formats.from16(np.ascontiguousarray(np.atleast_1d(bits)).view(np.uint16), kind)
