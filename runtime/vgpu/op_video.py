"""SIMD video instructions (PTX ISA 9.7.19): vadd2, vabsdiff4 and the like, on the halves or bytes of 32 bits.

`vop.dtype.atype.btype{.sat|.add} d, a, b, c`: each part of a and b is extended by its type; with `.add` the
parts' results are summed onto c, otherwise each is written to its place in d, wrapped or (`.sat`) clamped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tcomp.runtime.vgpu.decoder import Decoder, Run, Source, instruction
from tcomp.runtime.vgpu.lanes import Array, Sel
from tcomp.runtime.vgpu.op_compare import COMPARISONS
from tcomp.runtime.vgpu.ptx import Instr

_OPERATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "vadd": np.add, "vsub": np.subtract, "vmin": np.minimum, "vmax": np.maximum,
    "vabsdiff": lambda a, b: np.abs(a - b), "vavrg": lambda a, b: (a + b + (a + b >= 0)) >> 1,
}  # fmt: skip


@instruction(*(f"{name}{n}" for name in (*_OPERATIONS, "vset") for n in (2, 4)))
def video(d: Decoder, i: Instr) -> Run:
    name, count = i.parts[0][:-1], int(i.parts[0][-1])
    types = [p for p in i.parts if p in ("u32", "s32")]
    modifiers = set(i.parts[1:]) - {"u32", "s32"}
    if name == "vset":
        types.insert(0, "u32")
        f = COMPARISONS[next(p for p in i.parts[1:] if p in COMPARISONS)]
        modifiers -= set(COMPARISONS)
    else:
        f = _OPERATIONS[name]
    if len(types) != 3 or modifiers - {"sat", "add"}:
        raise d.unknown(i)
    put, a, b, c = d.put(i.operands[0], "b32"), *(d.source(o, "b32") for o in i.operands[1:4])
    bits = 32 // count
    low, high = (0, (1 << bits) - 1) if types[0] == "u32" else (-(1 << bits - 1), (1 << bits - 1) - 1)

    def parts(source: Source, sel: Sel, kind: str) -> Any:
        raw = np.ascontiguousarray(np.atleast_1d(source(sel)), np.uint32)
        return raw.view(f"{'u' if kind == 'u32' else 'i'}{bits // 8}").reshape(-1, count).astype(np.int64)

    def run(sel: Sel) -> None:
        r = np.asarray(f(parts(a, sel, types[1]), parts(b, sel, types[2]))).astype(np.int64)
        if "add" in modifiers:
            put(sel, (r.sum(axis=1) + np.asarray(c(sel)).astype(np.int64)).astype(np.uint32))
            return
        if "sat" in modifiers:
            r = np.clip(r, low, high)
        put(sel, np.ascontiguousarray(r.astype(f"u{bits // 8}")).view(np.uint32).reshape(-1))

    return run
