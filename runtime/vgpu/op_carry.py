"""Extended-precision integers (PTX ISA 9.7.2): add.cc, addc, sub.cc, subc, mad.cc, madc with one carry bit a lane."""

from __future__ import annotations

import numpy as np

from tcomp.runtime.vgpu import op_integer
from tcomp.runtime.vgpu.decoder import Decoder, Run, instruction
from tcomp.runtime.vgpu.lanes import Sel
from tcomp.runtime.vgpu.ptx import Instr
from tcomp.runtime.vgpu.types import scalar


@instruction("addc", "subc", "madc")
def with_carry(d: Decoder, i: Instr) -> Run:
    """Also add.cc, sub.cc and mad.cc, which op_integer hands over.

    As on hardware, a - b is a + ~b + 1: after a subtraction the flag is set when there was no borrow, which
    compiled code relies on when it reads the flag with addc.
    """
    base, t = i.parts[0], scalar(i.parts[-1], i.line)
    if t.bits not in (32, 64):
        raise d.unknown(i)
    raw, flag = scalar(f"u{t.bits}"), d.m.carry
    takes, gives = base.endswith("c"), "cc" in i.parts
    subtract, multiply = base.startswith("sub"), base.startswith("mad")
    high = "hi" in i.parts
    a, b = d.source(i.operands[1], t), d.source(i.operands[2], t)
    c = d.source(i.operands[3], raw) if multiply else None
    put = d.put(i.operands[0], raw)

    def run(sel: Sel) -> None:
        x, y = np.asarray(a(sel)), np.asarray(b(sel))
        if c is not None:
            product = op_integer.high_half(x, y, t) if high else x * y
            x, y = product.view(raw.dtype), np.asarray(c(sel))
        x, y = x.view(raw.dtype), y.view(raw.dtype)
        if subtract:
            y = ~y
        old = flag[sel].astype(raw.dtype) if takes else raw.dtype.type(subtract)
        first = x + y
        result = first + old
        out = (first < x) | (result < first)
        put(sel, result)
        if gives:
            flag[sel] = out

    return run
