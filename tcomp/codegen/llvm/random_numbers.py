"""The language's random numbers (`tcomp/numeric.py` has their meaning), as integer arithmetic."""

from __future__ import annotations

from tcomp.codegen.llvm.emitter import Emitter
from tcomp.codegen.llvm.types import F32, I32, I64, IrValue, constant, like


def random_uniform(em: Emitter, seed: IrValue, counter: IrValue) -> IrValue:
    """Uniform in [0, 1): 24 bits of a hash of (seed, counter), integers taken modulo 2**32."""
    b = em.builder
    if seed.type == I64:
        seed, counter = b.trunc(seed, I32), b.trunc(counter, I32)
    t = seed.type

    def mix(h: IrValue) -> IrValue:
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, None)):
            h = b.xor(h, b.lshr(h, constant(t, shift)))
            if factor is not None:
                h = b.mul(h, constant(t, factor))
        return h

    h = mix(b.add(mix(b.add(seed, constant(t, 0x9E3779B9))), counter))
    return b.fmul(b.uitofp(b.lshr(h, constant(t, 8)), like(t, F32)), constant(like(t, F32), 2.0**-24))
